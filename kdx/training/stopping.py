"""Stop when asked: after SIGTERM, SIGINT or SLURM's SIGUSR1 the step ends and the state is saved."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SAME_WISH_SECONDS = 1.0  # a terminal and a sweep's parent both pass one Ctrl-C on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Stopped(Exception):
    """Training ended because a signal asked for it; everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class StopRequest:
    """Remembers the first signal; `raise_if_asked` turns it into `Stopped`."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.noted = 0.0

    def note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is not None and now - self.noted > SAME_WISH_SECONDS:
            os._exit(128 + number)  # asked twice: now
        if self.number is None:
            self.number, self.noted = number, now

    def raise_if_asked(self) -> None:
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Note signals instead of dying of them, and put back what was there before. Main thread only."""
    request = StopRequest()
    before = {number: signal.signal(number, request.note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
