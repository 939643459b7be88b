function decoded(text) {  // an address that was cut off is no reason to do nothing
  try { return decodeURIComponent(text); } catch { return text; }
}
const state = new Map(location.hash.slice(1).split(';').filter(Boolean).map(
  part => [part.split('=')[0], decoded(part.slice(part.indexOf('=') + 1))]));
function keep(name, value) {  // in the address: a link to what is shown, and a page that reloads itself shows it again
  if (value) state.set(name, value); else state.delete(name);
  const hash = [...state].map(([name, value]) => name + '=' + encodeURIComponent(value)).join(';');
  history.replaceState(null, '', '#' + hash);
}
function sortTable(head, descending) {
  const table = head.closest('table'), body = table.tBodies[0], column = head.cellIndex;
  const value = row => { const t = row.cells[column].textContent;
    const thousands = /^\d{1,3}(,\d{3})+(\.\d+)?$/.test(t);
    const n = parseFloat(thousands ? t.replaceAll(',', '') : t); return isNaN(n) ? t : n; };
  const rows = [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
    const mixed = typeof x !== typeof y;
    return mixed ? String(x).localeCompare(String(y)) : x < y ? -1 : x > y ? 1 : 0; });
  if (descending) rows.reverse();
  body.append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
}
// Words, or "several words"; key=value is the whole cell of that column, all else a part of any cell.
function filterTable(table, text) {
  const names = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
  const words = (text.match(/("[^"]*"?|[^\s"])+/g) ?? []).map(word => word.replaceAll('"', ''));
  for (const row of table.tBodies[0].rows) {
    const cells = [...row.cells].map(cell => cell.textContent);
    row.hidden = !words.every(word => {
      const at = word.indexOf('='), column = at > 0 ? names.indexOf(word.slice(0, at)) : -1;
      return column >= 0 ? cells[column] === word.slice(at + 1) : cells.some(cell => cell.includes(word));
    });
  }
}
for (const head of document.querySelectorAll('th')) {
  head.tabIndex = 0;
  const turn = () => {
    const descending = head.getAttribute('aria-sort') === 'ascending';
    sortTable(head, descending);
    keep('sort', [head.closest('table').id, head.cellIndex, descending ? 'down' : 'up'].join(','));
  };
  head.addEventListener('click', turn);
  head.addEventListener('keydown', event => { if (event.key === 'Enter') turn(); });
}
for (const input of document.querySelectorAll('.filter')) {
  const table = document.getElementById(input.dataset.of);
  input.value = state.get(table.id) ?? '';
  filterTable(table, input.value);
  input.addEventListener('input', () => { filterTable(table, input.value); keep(table.id, input.value); });
}
for (const figure of document.querySelectorAll('figure')) {
  figure.tabIndex = 0;
  const box = figure.querySelector('svg')?.viewBox.baseVal;
  figure.classList.toggle('tall', !!box && box.height > box.width);
  const zoom = () => figure.classList.toggle('zoomed');
  figure.addEventListener('click', zoom);
  figure.addEventListener('keydown', event => {
    if (event.key === 'Enter') zoom();
    if (event.key === 'Escape') figure.classList.remove('zoomed');
  });
}
const sorted = (state.get('sort') ?? '').match(/^([\w-]+),(\d+),(up|down)$/);
if (sorted) sortTable(document.getElementById(sorted[1]).tHead.rows[0].cells[+sorted[2]], sorted[3] === 'down');
