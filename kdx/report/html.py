"""A web page in one file: opens from disk without network, sorts its tables, is readable on a phone."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from kdx.text import harmless

REPORT = "report.html"

STYLE, SCRIPT = "page.css", "page.js"  # beside this file
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
        f"{again}<style>\n{_file(STYLE)}</style>\n</head>\n<body>\n<h1>{_shown(title)}</h1>\n"
        + _sections(parts)
        + f"\n<script>\n{_file(SCRIPT)}</script>\n</body>\n</html>\n"
    )


def _file(name: str) -> str:
    return Path(__file__).with_name(name).read_text()


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
