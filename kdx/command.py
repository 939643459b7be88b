"""The grammar of the small commands beside kdx, `python -m kdx.<tool> WORD... key=value`, and errors in one line.

`key=value`, `--key value` and `--key=value` are the same; `-` in a key's name stands for `_`; `--key` alone switches a
flag on; `--` ends the keys. Whatever is neither a key nor a word that the command takes is refused.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from kdx.errors import KdxError, suggest, then
from kdx.process import USER_ERROR, command_process
from kdx.text import harmless
from kdx.users_code import users_errors

SOME_FAILED = 1
MOST_SHOWN = 80  # characters of a value in an error


class Key(Protocol):
    """What a key of a command takes."""

    @property
    def default(self) -> Any: ...

    def read(self, text: str) -> Any:
        """The value that `text` stands for; `ValueError` says what is needed."""


@dataclass(frozen=True)
class Text:
    """A name or a path; `null` leaves it out where the default is None or `optional`."""

    default: str | None = None
    optional: bool = False

    def read(self, text: str) -> str | None:
        if text == "null" and (self.optional or self.default is None):
            return None
        if text in ("", "null"):
            raise ValueError("a value is needed")
        return text


@dataclass(frozen=True)
class Choice:
    """One of some words; `null` leaves it out where the default is None."""

    default: str | None
    choices: tuple[str, ...]

    def read(self, text: str) -> str | None:
        if text == "null" and self.default is None:
            return None
        if text not in self.choices:
            raise ValueError(_choose(text, self.choices))
        return text


@dataclass(frozen=True)
class Count:
    """A whole number between bounds; `null` leaves it out where the default is None."""

    default: int | None
    most: int
    least: int = 1

    def read(self, text: str) -> int | None:
        if text == "null" and self.default is None:
            return None
        digits = re.fullmatch("0*([0-9]+)", text)
        if digits is not None and len(digits[1]) > len(str(self.most)):  # Python refuses to read the longest
            raise ValueError(f"a whole number of at most {self.most} is needed")
        number = -1 if digits is None else int(digits[1])
        if number < self.least:
            raise ValueError(f"a whole number of at least {self.least} is needed")
        if number > self.most:
            raise ValueError(f"a whole number of at most {self.most} is needed")
        return number


@dataclass(frozen=True)
class Flag:
    """True or false."""

    default: bool = False

    def read(self, text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise ValueError("choose true, false")
        return text.lower() == "true"


@dataclass(frozen=True)
class Names:
    """Several names, with commas between them or as the words that follow the key."""

    default: tuple[str, ...] = ()

    def read(self, text: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in text.removeprefix("[").removesuffix("]").split(","))
        if not all(names):
            raise ValueError("names are needed")
        return names


@dataclass(frozen=True)
class Command:
    """A command: what it says for --help, what it does with its words and keys, and which it takes.

    `work(words, **keys)` gives what to print: a text, or texts one by one as they come; a `KdxError` among them is told
    on stderr, the others follow, and the process ends with code 1.
    """

    usage: str
    work: Callable[..., str | Iterable[str | KdxError]]
    keys: Mapping[str, Key]
    words: tuple[str, ...]  # what each word is: `[...]` may be left out, the last one with `...` takes all that follow

    def defaults(self) -> dict[str, Any]:
        """The value of every key that is not given."""
        return {name: key.default for name, key in self.keys.items()}

    def read(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The words and all keys of a command line; `KdxError` for what the command does not take."""
        words, given = read_line(arguments, self.keys)
        if len(words) < sum(not word.startswith("[") for word in self.words):
            usage = " ".join(self.usage.strip().split("\n\n")[0].split())
            raise KdxError(f"{self.words[len(words)]} is missing; usage: {usage}")
        if len(words) > len(self.words) and "..." not in "".join(self.words[-1:]):
            taken = " ".join(self.words) or "keys only"
            raise KdxError(f"{_short(words[len(self.words)])}: a word too many; the command takes {taken}")
        return words, self.defaults() | given


def run_command(command: Command, arguments: Sequence[str] | None = None) -> None:
    """Do what the command line says; a `KdxError` is one line and code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with errors_end_the_process():
        if asks_for_help(arguments):
            print(command.usage.strip())
            return
        words, keys = command.read(arguments)
        failed = False
        with users_errors():
            said = command.work(words, **keys)
            for text in [said] if isinstance(said, str) else said:
                if isinstance(text, KdxError):
                    failed = True
                    tell_error(text)
                else:
                    print(text, flush=True)
        if failed:
            raise SystemExit(SOME_FAILED)


def choice(key: str, value: str, choices: Sequence[str]) -> str:
    """`value` if it is one of the choices, else `KdxError`."""
    if value not in choices:
        raise KdxError(f"{key}={_short(value)}: {_choose(value, choices)}")
    return value


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether -h or --help is there, before a `--`."""
    arguments = list(arguments)
    return bool({"-h", "--help"} & set(arguments[: arguments.index("--")] if "--" in arguments else arguments))


@contextmanager
def errors_end_the_process() -> Iterator[None]:
    """Print a `KdxError` as one line and end the process with code 2; signals and streams as for every command."""
    with command_process():
        try:
            yield
        except KdxError as error:
            tell_error(error)
            raise SystemExit(USER_ERROR) from None


def tell_error(error: KdxError) -> None:
    """An error as one line on stderr."""
    print(f"error: {harmless(str(error))}", file=sys.stderr)


def read_line(arguments: Sequence[str], keys: Mapping[str, Key]) -> tuple[list[str], dict[str, Any]]:
    """The words of a command line and the keys that it gives."""
    words: list[str] = []
    given: dict[str, Any] = {}
    rest = list(arguments)
    if "" in rest:
        raise KdxError("an argument is empty: is a variable of the shell not set?")
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            words += rest
            break
        if _is_word(argument, keys):
            words.append(argument)
            continue
        name, text = split_key(argument, keys, rest)
        key = keys[name]
        if name in given:
            raise KdxError(f"{name}: given twice")
        if isinstance(key, Names):
            while rest and _is_word(rest[0], keys):
                text += "," + rest.pop(0)
        try:
            given[name] = key.read(text)
        except ValueError as error:
            raise KdxError(f"{name}={_short(text)}: {error}") from None
    return words, given


def split_key(argument: str, keys: Mapping[str, Key], rest: list[str]) -> tuple[str, str]:
    """A key's name and the text of its value, taken from `rest` where it stands there."""
    given, equals, text = argument.removeprefix("--").partition("=")
    name = given.replace("-", "_")
    if name not in keys or given.startswith("-"):
        told = f"{_short(given)}: no such key{suggest(name, keys)}"
        raise KdxError(then(told, f"keys: {', '.join(keys)}"))
    if equals:
        return name, text
    if isinstance(keys[name], Flag):
        return name, rest.pop(0) if rest and rest[0].lower() in ("true", "false") else "true"
    if not rest or rest[0].startswith("--") or _begins_with_key(rest[0], keys):
        raise KdxError(f"{name}: a value is missing, write {name}=VALUE")
    return name, rest.pop(0)


def _is_word(argument: str, keys: Mapping[str, Key]) -> bool:
    """Whether an argument is no key: it has no `=`, or is a path or a file that has one in its name."""
    if argument.startswith("-") and argument != "-":
        return False
    name, equals, _ = argument.partition("=")
    if not equals or "/" in name or name.startswith("."):
        return True
    return not _begins_with_key(argument, keys) and os.path.lexists(argument)


def _begins_with_key(argument: str, keys: Mapping[str, Key]) -> bool:
    name, equals, _ = argument.partition("=")
    return bool(equals) and name.replace("-", "_") in keys


def _short(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def _choose(value: str, choices: Sequence[str]) -> str:
    return f"choose {', '.join(choices)}{suggest(value, choices)}"
