"""What every command does with its process: signals end it in order, streams that fail do not end it."""

import errno
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait

from kdx.signals import interruptible
from kdx.streams import forgiving_streams

USER_ERROR = 2
NOBODY_READS = 128 + signal.SIGPIPE
JOB_THREADS = "KDX_JOB_THREADS"  # in the environment of a sweep's job that types no `threads`: its share of the CPU's


@dataclass
class Running:
    """A command at work, whose end depends on this; `answers`: what it prints is all that it does."""

    answers: bool = True


@contextmanager
def command_process(how_to_go_on: str = "") -> Iterator[Running]:
    """Run a command within: a signal ends it with one line and 128 + its number, after everything was cleaned up.

    Whoever `answers` only fails where the answer cannot be written; silently where the reader, such as `head`, has
    seen enough. A training goes on: its files have all that it prints.
    """
    command = Running()
    logging.raiseExceptions = False  # a full disk under run.log: no traceback for each line
    with forgiving_streams() as lost, interruptible():
        try:
            yield command
            code = None
        except KeyboardInterrupt as interrupt:
            number = getattr(interrupt, "number", signal.SIGINT)
            print(f"stopped by {signal.Signals(number).name}{how_to_go_on}", file=sys.stderr)
            raise SystemExit(128 + number) from None
        except SystemExit as end:
            code = end.code
            if code:
                raise
        error = lost()
        if error is not None and command.answers:
            if error.errno == errno.EPIPE:
                raise SystemExit(NOBODY_READS)
            print(f"error: standard output: {error.strerror}; the answer is not written", file=sys.stderr)
            raise SystemExit(USER_ERROR)
        if code is not None:
            raise SystemExit(code)


def end_with_parent() -> None:
    """Let a process that multiprocessing started die with the one that started it, at once: its pipe closes then."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
