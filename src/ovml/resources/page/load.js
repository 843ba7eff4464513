() => { // images that are pasted or dropped anywhere are uploaded
  const give = (event, data) => {
    const input = document.querySelector('#drop input[type=file]');
    const files = data ? [...data.files].filter((file) => file.type.startsWith('image/')) : [];
    if (!input || !files.length) return;
    event.preventDefault();
    const taken = new DataTransfer();
    files.forEach((file) => taken.items.add(file));
    input.files = taken.files;
    input.dispatchEvent(new Event('change', {bubbles: true}));
  };
  document.addEventListener('paste', (event) => give(event, event.clipboardData), true);
  document.addEventListener('dragover', (event) => event.preventDefault());
  document.addEventListener('drop', (event) => {
    if (event.defaultPrevented) return;
    event.preventDefault();
    give(event, event.dataTransfer);
  });
}
