"""Overrides of a command line as typed values, and typed values as text again."""

import re
from collections.abc import Iterable
from typing import Any

WHOLE = re.compile(r"[+-]?[0-9]{1,30}")
REAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
Value = bool | int | float | str


def typed_overrides(overrides: Iterable[str]) -> dict[str, Value]:
    """Key to value of `key=value` texts as Hydra writes them; a deletion such as `~scheduler` has an empty value."""
    pairs = (override.replace("\\:", ":").partition("=") for override in overrides)  # Hydra escapes colons
    return {key.lstrip("+"): typed(value) for key, _, value in pairs}


def typed(text: str) -> Value:
    """A whole number, a number, true or false as such, all else as text, without the quotes around it."""
    if WHOLE.fullmatch(text):
        return int(text)
    if REAL.fullmatch(text):
        return float(text)
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def as_text(value: Any) -> str:
    """A cell of a table: `true`, `4` also where a column made it 4.0, nothing where there is no value."""
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:
        return ""
    if type(value).__name__ == "bool":  # Python's or numpy's
        return str(bool(value)).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)
