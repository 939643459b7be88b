"""Text of others (file, class and key names) made harmless for terminals, Markdown and spreadsheets."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji
FORMULA = re.compile("[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # also full-width: some spreadsheets take them alike
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)", re.IGNORECASE | re.ASCII)
QUOTED = re.compile('[",;\t\r\n]')


def harmless(text: str, keep: str = "") -> str:
    """`text` with control, direction and line characters as escapes such as `\\x1b`; those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(char if char in keep or char in JOINERS else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a file's name that is not UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char.encode("unicode_escape").decode()
    return char


def first_names(names: Sequence[str], most: int) -> str:
    """Up to `most` names with commas between them, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV in which no cell is a formula: text that begins like one gets an apostrophe; None is empty."""
    return "".join(",".join(_csv_cell(cell) for cell in row) + "\n" for row in rows)


def _csv_cell(cell: Any) -> str:
    """Numbers stay as they are. Semicolons are quoted, too: where they separate, a cell could end at one."""
    text = "" if cell is None else harmless(str(cell), keep="\t\r\n")
    if FORMULA.match(text) and not NUMBER.fullmatch(text):
        text = "'" + text
    return '"' + text.replace('"', '""') + '"' if QUOTED.search(text) else text


def markdown_text(text: str) -> str:
    """`text` for one line or cell of Markdown: no HTML, no cell's end, no link, no new line."""
    text = harmless(text.replace("\r\n", " ").replace("\n", " ").replace("\r", " ")).replace("\\", "\\\\")
    for char, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(char, entity)
    return text.replace("|", "\\|").replace("](", "]\\(").replace("`", "\\`")
