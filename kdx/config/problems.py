"""What is wrong with a configuration, collected so that one error tells all of it. Imports no torch."""

from collections.abc import Collection, Iterable
from typing import Any

from omegaconf import MISSING

from kdx.errors import KdxError, suggest
from kdx.ranges import Rule, shown

OPTIONAL_GROUPS = ("kd", "scheduler")  # these have the option none


class Problems:
    """Collects what is wrong, so that one run tells all of it.

    What is wrong with one of `references`, the keys that take another key's value, is told where nothing else is.
    """

    def __init__(self, references: Collection[str] = ()) -> None:
        self.lines: list[str] = []
        self.keys: set[str] = set()
        self.references = references
        self.referred: list[str] = []

    def add(self, key: str, value: Any, needed: str) -> None:
        self.tell(key, f"{shown(key)}={shown(value)}: {needed}")

    def unknown(self, key: str, choices: Iterable[str]) -> None:
        """A key that nothing reads, with the near miss among those that are read beside it."""
        self.tell(key, f"{shown(key)}: no such key{suggest(key.rsplit('.', 1)[-1], choices)}")

    def unknown_role(self, role: str, choices: Iterable[str]) -> None:
        self.tell(f"stage.{role}", f"stage.{role}: no such role{suggest(role, choices)}")

    def left_out(self, key: str) -> None:
        """A key that an override such as `~key` removed."""
        instead = f"; write {key}=none to do without" if key in OPTIONAL_GROUPS else ""
        self.tell(key, f"{key}: it is left out, and needed{instead}")

    def tell(self, key: str, line: str) -> None:
        """A line about a key."""
        self.keys.add(key)
        (self.referred if key in self.references else self.lines).append(line)

    def rule(self, key: str, value: Any, rule: Rule) -> None:
        needed = "a value is needed" if value == MISSING else rule.problem(value)
        if needed is not None:
            self.add(key, value, needed)

    def raise_if_any(self) -> None:
        if self.lines or self.referred:
            raise KdxError("; ".join(self.lines or self.referred))
