"""Style sheet and scripts of the page."""

ON_BAR = """
element.addEventListener('click', (event) => {
  const bar = event.target.closest('button[data-rank]');
  if (!bar) return;
  const shown = bar.getAttribute('aria-pressed') === 'true';
  for (const other of element.querySelectorAll('button[data-rank]')) {
    other.setAttribute('aria-pressed', String(other === bar && !shown));
  }
  trigger('click', {rank: shown ? 0 : Number(bar.dataset.rank)});
});
"""
"""Script of the ranking: a click marks a bar and sends its rank, a second click sends 0."""

ON_TILE = """
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
"""
"""Script of the gallery: a click on an image sends its number, one on a step the position of a page's first image."""

ON_LOAD = """() => {
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
}"""
"""Script of the page: images that are pasted or dropped anywhere are uploaded."""

CSS = """
.gradio-container { overflow: clip !important; width: 100%; max-width: 1280px !important; margin: 0 auto !important; }
#head .html-container, #image .html-container, #result .html-container, #gallery .html-container { padding: 0; }
.ovml-title { font-size: 1.7rem; font-weight: 700; margin: .4rem 0 .2rem; }
.ovml-lead { color: var(--body-text-color-subdued); line-height: 1.55; margin: 0 0 .4rem; overflow-wrap: anywhere; }
.ovml-note { color: var(--body-text-color-subdued); font-size: var(--text-sm); margin: 0 0 .6rem; line-height: 1.45;
  overflow-wrap: anywhere; }
.ovml-empty { color: var(--body-text-color-subdued); border: 1px dashed var(--border-color-primary);
  border-radius: var(--radius-lg); padding: 2.5rem 1.5rem; text-align: center; line-height: 1.7; margin: 0; }
.ovml-error { color: var(--error-text-color); background: var(--error-background-fill);
  border: 1px solid var(--error-border-color); border-radius: var(--radius-lg); padding: .7rem .9rem; margin: 0;
  overflow-wrap: anywhere; }
#ask { align-items: end; }
@supports (field-sizing: content) {
  #labels textarea { field-sizing: content; height: auto !important; max-height: 12rem; overflow-y: auto !important; }
}
#drop [data-testid="upload-text"] { font-size: 0; flex-direction: row; gap: .6rem; }
#drop [data-testid="upload-text"]::after { content: "Drop, paste or choose images"; font-size: var(--text-md); }
#drop [data-testid="upload-text"] .or { display: none; }
#drop [data-testid="upload-icon"] { width: 1.4rem; margin: 0; }
.ovml-bars, .ovml-tiles { list-style: none; margin: 0; padding: 0; }
.ovml-bars li, .ovml-tiles li { margin: 0; padding: 0; }
.ovml-bar { display: grid; grid-template-columns: 1.6rem minmax(7rem, 42%) 1fr 3.6rem; gap: .6rem; align-items: center;
  width: 100%; padding: .22rem .5rem; border: 1px solid transparent; border-radius: var(--radius-md);
  background: none; color: var(--body-text-color); font-size: var(--text-md); font-weight: 400;
  text-align: left; cursor: pointer; }
.ovml-bar:hover, .ovml-tile:hover { background: var(--background-fill-secondary); }
.ovml-bar:focus-visible, .ovml-tile:focus-visible, .ovml-step:focus-visible {
  outline: 2px solid var(--color-accent); outline-offset: -1px; }
.ovml-bar[aria-pressed="true"], .ovml-tile[aria-pressed="true"] {
  border-color: var(--color-accent); background: var(--background-fill-secondary); }
.ovml-bar span { overflow-wrap: anywhere; }
.ovml-rank, .ovml-score { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums;
  text-align: right; font-size: var(--text-sm); }
.ovml-track { height: .7rem; border-radius: 99px; background: var(--border-color-primary); overflow: hidden; }
.ovml-fill { display: block; height: 100%; border-radius: 99px; background: var(--color-accent); }
.ovml-where { margin: 0; }
.ovml-where img { display: block; width: auto; height: auto; max-width: 100%; max-height: 60vh;
  border-radius: var(--radius-lg); margin: 0; }
.ovml-where figcaption { margin-top: .5rem; line-height: 1.5; color: var(--body-text-color); overflow-wrap: anywhere; }
.ovml-where figcaption .ovml-note { display: block; }
.ovml-pages { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin-bottom: .6rem; }
.ovml-pages .ovml-note { flex: 1 1 12rem; margin: 0; }
.ovml-step { margin: 0 !important; padding: .35rem .9rem; font-size: var(--text-sm); font-weight: 400;
  border: 1px solid var(--border-color-primary); border-radius: var(--radius-md);
  background: var(--background-fill-primary); color: var(--body-text-color); cursor: pointer; }
.ovml-step[aria-disabled="true"] { opacity: .45; cursor: default; }
.ovml-tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .75rem; }
.ovml-tile { display: flex; flex-direction: column; gap: .15rem; width: 100%; height: 100%; padding: .4rem;
  border: 1px solid var(--border-color-primary); border-radius: var(--radius-lg);
  background: var(--background-fill-primary); color: var(--body-text-color); text-align: left; font-weight: 400;
  cursor: pointer; }
.ovml-thumb { display: block; aspect-ratio: 1; border-radius: var(--radius-md); overflow: hidden;
  background: var(--background-fill-secondary); }
.ovml-thumb img { display: block; width: 100%; height: 100%; object-fit: cover; margin: 0; }
.ovml-file { color: var(--body-text-color-subdued); font-size: var(--text-xs); white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.ovml-tag { display: flex; gap: .4rem; justify-content: space-between; font-size: var(--text-sm); line-height: 1.35; }
.ovml-tag span { overflow-wrap: anywhere; }
.ovml-value { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; flex: none;
  font-size: var(--text-xs); }
.ovml-problem { color: var(--error-text-color); font-size: var(--text-sm); overflow-wrap: anywhere; }
@media (max-width: 640px) {
  .ovml-side { display: contents !important; }
  #image { position: sticky; top: 0; z-index: 10; background: var(--body-background-fill); }
  .ovml-where { padding-bottom: .5rem; }
  .ovml-pages .ovml-note { flex-basis: 100%; }
  .ovml-where img { max-height: 38vh; margin: 0 auto; }
  .ovml-tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
"""
