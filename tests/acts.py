"""Whole programs of jobs for tests of what runs them; imports nothing that takes time."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


class SlowToLoad:
    """`act`, which a process needs two seconds to load; `begun` is there from the moment in which it begins to."""

    def __init__(self, begun: Path) -> None:
        self.begun = begun

    def __reduce__(self) -> tuple[Callable[[Path], Callable[[], None]], tuple[Path]]:
        return _load_slowly, (self.begun,)


def _load_slowly(begun: Path) -> Callable[[], None]:
    begun.touch()
    time.sleep(2)
    return act


def act() -> None:
    """`act.exit=CODE` and `act.kill=NUMBER` end the process, `act.sleep=FILE` leaves its number there and sleeps."""
    how, _, value = next(argument for argument in sys.argv if argument.startswith("act.")).partition("=")
    if how == "act.exit":
        os._exit(int(value))
    if how == "act.kill":
        os.kill(os.getpid(), signal.Signals(int(value)))
    written = Path(value + ".part")
    written.write_text(str(os.getpid()))
    written.rename(value)
    time.sleep(60)
