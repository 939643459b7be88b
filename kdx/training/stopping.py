"""Stop when asked: after a signal the step ends and the state is saved."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from kdx.signals import handled


class Stopped(Exception):
    """Training ended because a signal asked for it; everything is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class StopRequest:
    """Remembers the signal that asked; `raise_if_asked` turns it into `Stopped`."""

    def __init__(self) -> None:
        self.number: int | None = None

    def note(self, number: int) -> None:
        self.number = number

    def raise_if_asked(self) -> None:
        if self.number is not None:
            raise Stopped(self.number)


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Note signals instead of dying of them, and put back what was there before. Main thread only."""
    request = StopRequest()
    with handled(request.note):
        yield request
