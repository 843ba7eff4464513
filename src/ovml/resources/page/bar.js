// Script of the ranking: a click marks a bar and sends its rank, a second click sends 0.
element.addEventListener('click', (event) => {
  const bar = event.target.closest('button[data-rank]');
  if (!bar) return;
  const shown = bar.getAttribute('aria-pressed') === 'true';
  for (const other of element.querySelectorAll('button[data-rank]')) {
    other.setAttribute('aria-pressed', String(other === bar && !shown));
  }
  trigger('click', {rank: shown ? 0 : Number(bar.dataset.rank)});
});
