"""What one value of a configuration may be: each rule says what it needs in words. Imports no torch."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from omegaconf import MISSING

from kdx.errors import hint_last, suggest
from kdx.text import harmless

LARGEST = 2**63 - 1  # what a tensor's int64 holds
LONGEST = 4096  # characters of a text, PATH_MAX of Linux
SHOWN = 120  # characters of a value in an error's line
LONGEST_NAME = 255  # bytes of one part of a path, NAME_MAX of Linux


class Rule(Protocol):
    def problem(self, value: Any) -> str | None:
        """What is needed instead of `value`, or None where it is right."""


@dataclass(frozen=True)
class Whole:
    """A whole number from `least` to `most`, which is told to who exceeds it only."""

    least: int
    most: int

    def problem(self, value: Any) -> str | None:
        if _is_number(value) and isinstance(value, int) and self.least <= value <= self.most:
            return None
        limit = f" and at most {self.most}" if _is_number(value) and value > self.most else ""
        return f"a whole number of at least {self.least}{limit} is needed"


@dataclass(frozen=True)
class Real:
    """A finite number of at least `least` or above `above`, and at most `most` or below `below`."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def problem(self, value: Any) -> str | None:
        if _is_number(value) and self._holds(value):
            return None
        if self.least is not None and self.below is not None:
            return f"a number from {self.least} to below {self.below} is needed"
        if self.least == 0 and self.most == 1:
            return "a number from 0 to 1 is needed"
        least = f"above {self.above}" if self.least is None else f"of at least {self.least}"
        exceeds = self.most is not None and _is_number(value) and value > self.most
        return f"a finite number {least}" + (f" and at most {self.most}" if exceeds else "") + " is needed"

    def _holds(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Flag:
    """true or false, or one of some words; a number is none of them."""

    words: tuple[str, ...] = ()

    def problem(self, value: Any) -> str | None:
        if isinstance(value, bool) or (isinstance(value, str) and value in self.words):
            return None
        return f"choose {', '.join(('true', 'false', *self.words))}"


@dataclass(frozen=True)
class Choice:
    """One of some words or numbers."""

    choices: tuple[str | int, ...]

    def problem(self, value: Any) -> str | None:
        if not isinstance(value, bool) and isinstance(value, str | int) and value in self.choices:
            return None
        words = [str(choice) for choice in self.choices]
        return f"choose {', '.join(words)}{suggest(shown(value), words)}"


@dataclass(frozen=True)
class Words:
    """Some of several words: a list, or a text with commas or spaces between them."""

    choices: tuple[str, ...]

    def problem(self, value: Any) -> str | None:
        return ListOf(Choice(self.choices), most=20).problem(self.read(value))

    @staticmethod
    def read(value: Any) -> Any:
        """A text's words; anything else as it is."""
        return value.replace(",", " ").split() if isinstance(value, str) else value


@dataclass(frozen=True)
class Text:
    """Printable text that matches `pattern` as a whole; `needed` says so. A whole number is read as text."""

    pattern: str = ".+"
    needed: str = "a text is needed"
    longest: int = LONGEST

    def problem(self, value: Any) -> str | None:
        text = str(value) if _is_number(value) and isinstance(value, int) and abs(value) <= LARGEST else value
        if not isinstance(text, str) or not text.strip() or not re.fullmatch(self.pattern, text, re.DOTALL):
            return self.needed
        return bad_text(text, self.longest)


@dataclass(frozen=True)
class Folder:
    """The path of a file or folder, whether it is there or not.

    `own`: of a folder for results, not the one that a command is started in, of which cleaning knows nothing.
    """

    own: bool = False

    def problem(self, value: Any) -> str | None:
        problem = Text(needed="a path is needed").problem(value)
        if problem is None and any(len(part.encode()) > LONGEST_NAME for part in str(value).split("/")):
            return f"a path whose parts have at most {LONGEST_NAME} bytes is needed"
        return self._unfit(str(value)) if problem is None and self.own else problem

    def _unfit(self, text: str) -> str | None:
        path = os.path.abspath(text)
        if path in (os.getcwd(), "/", "//") or set(os.path.normpath(text).split("/")) <= {".", ".."}:
            return "a folder of its own is needed, e.g. outputs"
        while not os.path.lexists(path):
            path = os.path.dirname(path)
        return None if os.path.isdir(path) else f"{shown(path)} is no folder; choose another"


@dataclass(frozen=True)
class ListOf:
    """A list of `fewest` to `most` values that each follow `rule`."""

    rule: Rule
    fewest: int = 0
    most: int = 1000

    def problem(self, value: Any) -> str | None:
        if not isinstance(value, list | tuple) or not self.fewest <= len(value) <= self.most:
            size = str(self.most) if self.fewest == self.most else f"{self.fewest} to {self.most}"
            needed = self.rule.problem(None) or "any value"
            return f"a list of {size} values is needed; for each: {needed.removesuffix(' is needed')}"
        found = ((one, self.rule.problem(one)) for one in value)
        return next((f"{shown(one)}: {problem}" for one, problem in found if problem is not None), None)


@dataclass(frozen=True)
class Interval:
    """Two numbers [low, high], neither above the other, that each follow `rule`."""

    rule: Rule

    def problem(self, value: Any) -> str | None:
        problem = ListOf(self.rule, 2, 2).problem(value)
        return "[low, high] with low <= high is needed" if problem is None and value[0] > value[1] else problem


@dataclass(frozen=True)
class Either:
    """What one of several rules allows."""

    rules: tuple[Rule, ...]

    def problem(self, value: Any) -> str | None:
        problems = [rule.problem(value) for rule in self.rules]
        if None in problems:
            return None
        return hint_last("; or ".join(filter(None, problems)))


@dataclass(frozen=True)
class Nullable:
    """null, or what a rule allows."""

    rule: Rule

    def problem(self, value: Any) -> str | None:
        problem = None if value is None else self.rule.problem(value)
        return problem if problem is None else hint_last(f"{problem}, or null")


@dataclass(frozen=True)
class Group:
    """A mapping: with the keys of `schema`, or of a swap point, whose `_target_` decides what its keys are."""

    schema: type | None = None
    words: str = "a mapping {key: value}"

    def problem(self, value: Any) -> str | None:
        return None if isinstance(value, Mapping) else f"{self.words} is needed"


@dataclass(frozen=True)
class Ramp:
    """A loss's weight: a number, or {from, to, until}, of which `until` is a share of all steps."""

    def problem(self, value: Any) -> str | None:
        weight = Real(least=0, most=1e9)
        ramp = value if isinstance(value, Mapping) else {"from": value, "to": value, "until": 0}
        if set(ramp) == {"from", "to", "until"}:
            if all(weight.problem(ramp[key]) is None for key in ("from", "to")):
                if Real(least=0, most=1).problem(ramp["until"]) is None:
                    return None
        return "a number of at least 0 is needed, or {from: 0, to: 1, until: 0.1}, until from 0 to 1 of all steps"


@dataclass(frozen=True)
class Anything:
    """Whatever is finite and printable: a user's own code, or a check of its own, decides."""

    def problem(self, value: Any) -> str | None:
        return None


def key(rule: Rule, default: Any = MISSING) -> Any:
    """A dataclass field that holds a configuration's key: its rule and its default."""
    metadata = {"rule": rule}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def stray(value: Any) -> str | None:
    """Why a number or text is refused wherever it stands, also among the keys of a user's own code, or None."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number is needed"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a number of at most {LARGEST} is needed"
    return bad_text(value) if isinstance(value, str) else None


def bad_text(text: str, longest: int = LONGEST) -> str | None:
    """Why no text of a configuration may look like this, or None."""
    if len(text) > longest:
        return f"a text of at most {longest} characters is needed"
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):
        return "a text in UTF-8 is needed"
    if any(ord(character) < 32 or 127 <= ord(character) < 160 or character in "\u2028\u2029" for character in text):
        return "a text without control characters is needed"
    return None


def shown(value: Any) -> str:
    """A value as it stands in an error's line: on one line, not longer than a reader wants."""
    if isinstance(value, int) and abs(value) > LARGEST**4:  # Python refuses to print the longest ones
        return "a number of more than 70 digits"
    text = str(value)
    return harmless(text if len(text) <= SHOWN else text[:SHOWN] + "...")


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key below a plain value `name`, and the value there; those of a list are the list's."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}".lstrip("."))
    elif isinstance(node, list | tuple):
        for value in node:
            yield from leaves(value, name)
    else:
        yield name, node


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)
