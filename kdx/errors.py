"""The one error that a user is meant to read."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


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
    """The near miss as `; did you mean 'x'?`, or nothing."""
    near = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
