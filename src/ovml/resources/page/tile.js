// Script of the gallery: a click on an image sends its number, one on a step the position of a page's first image.
element.addEventListener('click', (event) => {
  const step = event.target.closest('button[data-first]');
  if (step && !step.ariaDisabled) trigger('input', {first: Number(step.dataset.first)});
  const tile = event.target.closest('button[data-picture]');
  if (!tile) return;
  for (const other of element.querySelectorAll('button[data-picture]')) {
    other.setAttribute('aria-pressed', String(other === tile));
  }
  const drop = document.getElementById('drop');
  const top = drop.getBoundingClientRect().top;
  if (top < 0 || top > innerHeight / 2) drop.scrollIntoView();
  trigger('click', {picture: Number(tile.dataset.picture)});
});
