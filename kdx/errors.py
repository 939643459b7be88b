"""The one error that a user is meant to read."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

BEGINNING = 3  # letters of a word from which on it is taken for the beginning of another


class KdxError(Exception):
    """Something the user can put right; its text is one line that names the key or file, the value, the choices."""


class DamagedError(KdxError):
    """A file whose content is wrong: it can be set aside, since no later try will read it."""


class BusyError(KdxError):
    """Somebody else is at work where this run wants to be; trying again later may do."""


@contextmanager
def errors_of(key: str) -> Iterator[None]:
    """Let what is said of a file, `weights.pth: is empty`, begin with the key that names it."""
    try:
        yield
    except KdxError as error:
        raise KdxError(f"{key}={error}") from error


def suggest(word: str, choices: Iterable[str]) -> str:
    """The near miss as `; did you mean 'x'?`, or nothing. What begins with the word comes before what resembles it."""
    choices = list(choices)
    begun = [choice for choice in choices if len(word) >= BEGINNING and choice.startswith(word)]
    near = [min(begun, key=len)] if begun else get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def hint_last(needed: str) -> str:
    """What is needed with the near miss, which stands among it, at its end."""
    hint = re.search(r"; did you mean '[^']*'\?", needed)
    return needed if hint is None else needed.replace(hint[0], "", 1) + hint[0]


def no_such(kind: str, word: str, choices: Sequence[str]) -> str:
    """What is said of a word that is none of the choices: the near miss, and all of them."""
    return then(f"no such {kind}{suggest(word, choices)}", f"choose {', '.join(choices)}")


def then(text: str, more: str) -> str:
    """A text and more of it, behind a question mark or a semicolon."""
    return f"{text} {more}" if text.endswith("?") else f"{text}; {more}"
