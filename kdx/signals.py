"""Signals that ask a process to end: how a command hears them, and what the processes that it starts inherit."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SAME_REQUEST_SECONDS = 1.0  # a terminal, a shell and a sweep's parent may all pass one request on
LOOK_AGAIN_SECONDS = 0.05  # whether an import is over
IMPORT_SYSTEM = "<frozen importlib._bootstrap>"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)  # USR1: SLURM, before a job's time is up


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to end. As after Ctrl-C, no `except Exception` on the way holds it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class FirstSignal:
    """Calls `act` at the first signal. The same request may arrive several times; one that is repeated later ends
    the process at once.
    """

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act
        self.heard: float | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.heard is None:
            self.heard = now
            self.act(number)
        elif now - self.heard > SAME_REQUEST_SECONDS:
            os._exit(128 + number)


def heard_signals() -> list[signal.Signals]:
    """The signals that this process does not ignore; nohup ignores SIGHUP, `command &` in a script SIGINT."""
    return [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def handled(act: Callable[[int], None]) -> Iterator[None]:
    """Let the first signal call `act`, and put back what was there before. Ignored signals stay ignored."""
    with _dispositions(FirstSignal(act), heard_signals()):
        yield


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the first signal raise `Interrupted`, so that temporary files go and jobs are asked to save.

    Only in the main thread, where Python runs handlers; elsewhere nothing changes. An import is finished first: a
    module written in C makes other errors of what is raised while it is set up.
    """

    before: list[Any] = []  # the alarm's handler, once the alarm is needed

    def interrupt(number: int) -> None:
        if not _is_importing():
            raise Interrupted(number)
        before.append(signal.signal(signal.SIGALRM, lambda *_: interrupt(number)))
        signal.setitimer(signal.ITIMER_REAL, LOOK_AGAIN_SECONDS)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with handled(interrupt):
        try:
            yield
        finally:
            if before:  # a command that ends by itself before the next look needs no signal
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, before[0])


def _is_importing() -> bool:
    """Whether the main thread's Python, where handlers run, is in the middle of an import."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


@contextmanager
def ignored(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Start, within, processes that a signal to the whole process group is not to end: they inherit this."""
    with _dispositions(signal.SIG_IGN, numbers):
        yield


def stop_ignoring(numbers: Iterable[signal.Signals]) -> None:
    """Undo `ignored` in a process that was started within."""
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@contextmanager
def _dispositions(
    handler: Callable[[int, FrameType | None], None] | signal.Handlers, numbers: Iterable[signal.Signals]
) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)  # None: not set by Python
