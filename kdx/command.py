"""The small commands beside kdx, `python -m kdx.<tool> FOLDER key=value`: their keys, and errors in one line."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kdx.errors import KdxError, suggest

USER_ERROR = 2


def run_command(usage: str, work: Callable[..., str], defaults: dict[str, Any], least: int = 1) -> None:
    """Call `work(words, **keys)` with the command line and print what it returns.

    Words are arguments without `=`, at least `least` of them; keys take the type of their default, numbers are counts.
    """
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(usage.strip())
        return
    with errors_end_the_process():
        words, keys = read_keys(arguments, defaults)
        if len(words) < least:
            raise KdxError(f"too few arguments; usage:\n{usage.strip()}")
        print(work(words, **keys))


@contextmanager
def errors_end_the_process() -> Iterator[None]:
    """Print a `KdxError` as one line and end the process with code 2."""
    try:
        yield
    except KdxError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(USER_ERROR) from None


def read_keys(arguments: Sequence[str], defaults: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The words and the keys of a command line; `KdxError` for an unknown key or a value of another type."""
    words: list[str] = []
    keys = dict(defaults)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or "/" in key or key.startswith("."):  # a file's name may hold an = as well
            words.append(argument)
        elif key not in defaults:
            raise KdxError(f"{key}: no such key{suggest(key, defaults)}; keys: {', '.join(defaults)}")
        else:
            keys[key] = _typed(key, value, defaults[key])
    return words, keys


def choice(key: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is one of the choices, else `KdxError`."""
    if value not in choices:
        raise KdxError(f"{key}={value}: choose {', '.join(choices)}{suggest(value, choices)}")
    return value


def _typed(key: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value not in ("true", "false"):
            raise KdxError(f"{key}={value}: choose true, false")
        return value == "true"
    if isinstance(default, int):
        if not value.isdigit() or int(value) < 1:
            raise KdxError(f"{key}={value}: a whole number of at least 1 is needed")
        return int(value)
    return None if value == "null" else value
