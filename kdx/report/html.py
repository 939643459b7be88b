"""A web page in one file: opens from disk without network, sorts its tables, is readable on a phone."""

from collections.abc import Sequence
from html import escape

from kdx.text import harmless

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td.long { white-space: normal; min-width: 14rem; text-align: left; }
th { cursor: pointer; user-select: none; position: sticky; top: 0; background: Canvas; }
th[aria-sort=ascending]::after { content: " \\25B2"; } th[aria-sort=descending]::after { content: " \\25BC"; }
figure { margin: 1rem 0; background: #fff; color: #111; border-radius: .3rem; padding: .3rem; }
figure svg, figure img { max-width: 100%; height: auto; display: block; }
.lead { font-size: 1.1rem; }
"""

SCRIPT = """
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
for (const head of document.querySelectorAll('th')) {
  head.tabIndex = 0;
  const turn = () => sortTable(head, head.getAttribute('aria-sort') === 'ascending');
  head.addEventListener('click', turn);
  head.addEventListener('keydown', event => { if (event.key === 'Enter') turn(); });
}
const wish = location.hash.match(/^#sort=([\\w-]+),(\\d+),(up|down)$/);  // a link to a sorted table
if (wish) sortTable(document.getElementById(wish[1]).tHead.rows[0].cells[+wish[2]], wish[3] === 'down');
"""


def page(title: str, parts: Sequence[str]) -> str:
    """The whole document."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{_shown(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{_shown(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """A section's heading."""
    return f"<h2>{_shown(text)}</h2>"


def lead(text: str) -> str:
    """A paragraph that stands out."""
    return f'<p class="lead">{_shown(text)}</p>'


def table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns sort on a click; `name` is its id in the page."""
    head = "".join(f"<th>{_shown(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table id="{name}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def picture(svg: str, caption: str) -> str:
    """A drawing with its caption."""
    return f"<figure>{svg}<figcaption>{_shown(caption)}</figcaption></figure>"


def _shown(text: str) -> str:
    return escape(harmless(text))


def _cell(text: str) -> str:
    return f'<td class="long">{_shown(text)}</td>' if len(text) > 60 else f"<td>{_shown(text)}</td>"
