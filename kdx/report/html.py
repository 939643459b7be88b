"""A web page in one file: opens from disk without network, sorts its tables, is readable on a phone."""

from collections.abc import Sequence
from html import escape

from kdx.text import harmless

REPORT = "report.html"

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 100rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
main { display: grid; grid-template-columns: minmax(0, 1fr); gap: 2rem; align-items: start; margin-top: 1.5rem; }
@media (min-width: 1000px) {
  main { grid-template-columns: repeat(2, minmax(0, 1fr)); grid-auto-flow: dense; }
  .wide { grid-column: 1 / -1; }
}
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th.words, td.words { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; text-align: left; }
th { cursor: pointer; user-select: none; position: sticky; top: 0; background: Canvas; }
th[aria-sort=ascending]::after { content: " \\25B2"; } th[aria-sort=descending]::after { content: " \\25BC"; }
.filter { font: inherit; width: 100%; max-width: 30rem; margin: 0 0 .5rem; padding: .2rem .5rem; }
.filter { box-sizing: border-box; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0 0 1rem; max-width: 36rem; padding: .3rem; border-radius: .3rem; cursor: zoom-in; }
figure { background: #fff; color: #111; }
figure svg, figure img { width: 100%; max-height: 22rem; height: auto; display: block; }
figcaption { font-size: .85rem; }
figure.zoomed { position: fixed; inset: 0; max-width: none; z-index: 1; margin: 0; overflow: auto; cursor: zoom-out; }
figure.zoomed svg, figure.zoomed img { max-height: 92vh; }
.lead { font-size: 1.05rem; margin: .4rem 0; max-width: 75rem; overflow-wrap: anywhere; }
@media (prefers-color-scheme: dark) {
  figure { background: #1c1c1c; color: #ddd; }
  figure svg { filter: invert(.9) hue-rotate(180deg); }
}
@media print {
  :root { color-scheme: light; }
  body { font-size: 10pt; padding: 0; } main { display: block; } table { font-size: 8pt; }
  .filter { display: none; } .scroll { overflow: visible; } th { position: static; }
  th, td { white-space: normal; padding: .1rem .3rem; } a { color: inherit; text-decoration: none; }
  figure { background: #fff; color: #111; } figure svg { filter: none; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } section { margin-bottom: 1rem; }
}
"""

SCRIPT = """
const state = new Map(location.hash.slice(1).split(';').filter(Boolean).map(
  part => [part.split('=')[0], decodeURIComponent(part.slice(part.indexOf('=') + 1))]));
function keep(name, value) {  // in the address: a link to what is shown, and a page that reloads itself shows it again
  if (value) state.set(name, value); else state.delete(name);
  const hash = [...state].map(([name, value]) => name + '=' + encodeURIComponent(value)).join(';');
  history.replaceState(null, '', '#' + hash);
}
function sortTable(head, descending) {
  const table = head.closest('table'), body = table.tBodies[0], column = head.cellIndex;
  const value = row => { const t = row.cells[column].dataset.value ?? row.cells[column].textContent;
    const n = parseFloat(t); return isNaN(n) ? t : n; };
  const rows = [...body.rows].sort((a, b) => { const x = value(a), y = value(b);
    const mixed = typeof x !== typeof y;
    return mixed ? String(x).localeCompare(String(y)) : x < y ? -1 : x > y ? 1 : 0; });
  if (descending) rows.reverse();
  body.append(...rows);
  for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', descending ? 'descending' : 'ascending');
}
function filterTable(table, text) {  // words; key=value is the whole cell of that column, all else a part of any cell
  const names = [...table.tHead.rows[0].cells].map(cell => cell.textContent);
  const words = text.split(/\\s+/).filter(Boolean);
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
  const zoom = () => figure.classList.toggle('zoomed');
  figure.addEventListener('click', zoom);
  figure.addEventListener('keydown', event => {
    if (event.key === 'Enter') zoom();
    if (event.key === 'Escape') figure.classList.remove('zoomed');
  });
}
const sorted = (state.get('sort') ?? '').match(/^([\\w-]+),(\\d+),(up|down)$/);
if (sorted) sortTable(document.getElementById(sorted[1]).tHead.rows[0].cells[+sorted[2]], sorted[3] === 'down');
"""
MANY_ROWS = 10  # of a table that gets a field to filter it
LONG = 30  # characters of a cell that is a sentence: its column wraps
HALF = 70  # characters of a row that fit beside another table; wider ones take the whole width of a page
MANY_PICTURES = 3  # that do so, too
NARROW, WIDE = '<div class="scroll">', '<div class="scroll wide">'
FIGURE = "<figure>"


class Linked(str):
    """A cell's text that leads to a page, `href` as seen from this one."""

    href: str

    def __new__(cls, text: str, href: str) -> "Linked":
        linked = super().__new__(cls, text)
        linked.href = href
        return linked


def page(title: str, parts: Sequence[str], reload: int | None = None) -> str:
    """The whole document; `reload` is after how many seconds it loads itself again."""
    again = "" if reload is None else f'<meta http-equiv="refresh" content="{reload}">\n'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_shown(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{again}<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_shown(title)}</h1>\n"
        + _sections(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _sections(parts: Sequence[str]) -> str:
    """What comes before the first heading, then a section a heading, two beside each other where each is narrow."""
    sections: list[list[str]] = [[]]
    for part in parts:
        if part.startswith("<h2>"):
            sections.append([])
        sections[-1].append(part)
    first, *others = sections
    return "\n".join([*first, "<main>", *map(_section, others), "</main>"])


def _section(parts: Sequence[str]) -> str:
    drawn = [part for part in parts if part.startswith(FIGURE)]
    rest = [part for part in parts if not part.startswith(FIGURE)]
    wide = ' class="wide"' if any(WIDE in part for part in parts) or len(drawn) >= MANY_PICTURES else ""
    pictures = [f'<div class="pictures">{"".join(drawn)}</div>'] if drawn else []
    return "\n".join([f"<section{wide}>", *rest, *pictures, "</section>"])


def heading(text: str) -> str:
    """A section's heading."""
    return f"<h2>{_shown(text)}</h2>"


def lead(text: str) -> str:
    """A paragraph that stands out."""
    return f'<p class="lead">{_shown(text)}</p>'


def table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns sort on a click; `name` is its id in the page."""
    wordy = [any(len(cell) > LONG for cell in column) for column in zip(header, *rows, strict=True)]
    head = "".join(_cell(cell, words, "th") for cell, words in zip(header, wordy, strict=True))
    body = "\n".join("<tr>" + "".join(map(_cell, row, wordy)) + "</tr>" for row in rows)
    words = f"filter: words, or {header[min(1, len(header) - 1)]}=value"
    field = f'<input class="filter" type="search" data-of="{name}" placeholder="{_shown(words)}" aria-label="filter">\n'
    longest = [max(map(len, column)) + 2 for column in zip(header, *rows, strict=True)]
    width = WIDE if sum(longest) > HALF else NARROW
    return (field if len(rows) > MANY_ROWS else "") + (
        f'{width}<table id="{name}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
    )


def picture(svg: str, caption: str) -> str:
    """A drawing with its caption."""
    return f"{FIGURE}{svg}<figcaption>{_shown(caption)}</figcaption></figure>"


def _shown(text: str) -> str:
    return escape(harmless(text))


def _cell(text: str, wordy: bool, tag: str = "td") -> str:
    """A cell; a `wordy` column has cells that are sentences: it wraps, so that it does not stand beyond the screen."""
    inner = f'<a href="{_shown(text.href)}">{_shown(text)}</a>' if isinstance(text, Linked) else _shown(text)
    return f'<{tag} class="words">{inner}</{tag}>' if wordy else f"<{tag}>{inner}</{tag}>"
