'use strict';
for (const article of document.querySelectorAll('article')) {
  const map = article.querySelector('.map'), said = article.querySelector('.picture .said');
  if (!map) continue;
  let pinned = null;
  const buttons = [...article.querySelectorAll('button[data-map]')];
  const show = button => {
    map.hidden = !button;
    if (button) map.src = button.dataset.map;
    said.textContent = button ? button.dataset.says : said.dataset.rest;
  };
  const pin = button => {
    pinned = button;
    for (const other of buttons) other.setAttribute('aria-pressed', String(other === pinned));
    show(pinned);
  };
  for (const button of buttons) {
    const row = button.closest('li');
    row.addEventListener('mouseenter', () => show(button));
    row.addEventListener('mouseleave', () => show(pinned));
    button.addEventListener('focus', () => show(button));
    button.addEventListener('blur', () => show(pinned));
    button.addEventListener('click', () => pin(pinned === button ? null : button));
  }
  article.addEventListener('keydown', event => { if (event.key === 'Escape') pin(null); });
}
addEventListener('beforeprint', () => { for (const more of document.querySelectorAll('details')) more.open = true; });
