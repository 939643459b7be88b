"""Checks of a method's numbers: a `ValueError` names the key, the value and what it may be."""

from collections.abc import Callable, Mapping
from math import isfinite


def above_zero(**numbers: float) -> None:
    """Raise unless each is a finite number above 0."""
    _check(numbers, "a finite number above 0", lambda value: value > 0)


def not_negative(**numbers: float) -> None:
    """Raise unless each is a finite number of at least 0."""
    _check(numbers, "a finite number of at least 0", lambda value: value >= 0)


def finite(**numbers: float) -> None:
    """Raise unless each is a finite number."""
    _check(numbers, "a finite number", lambda value: True)


def share(**numbers: float) -> None:
    """Raise unless each is a number from 0 to 1."""
    _check(numbers, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def count(**numbers: int) -> None:
    """Raise unless each is a whole number of at least 1."""
    _check(numbers, "a whole number of at least 1", lambda value: isinstance(value, int) and value >= 1)


def _check(numbers: Mapping[str, float], wanted: str, fits: Callable[[float], bool]) -> None:
    for name, value in numbers.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and isfinite(value) and fits(value)):
            raise ValueError(f"{name}={value}: {wanted} is needed")
