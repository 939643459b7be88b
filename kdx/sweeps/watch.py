"""Shows what jobs that run together are doing: a live table on a terminal, a line a minute elsewhere."""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO, cast

from tqdm import tqdm

from kdx.sweeps.jobs import Job
from kdx.sweeps.outlook import Outlook
from kdx.sweeps.words import heading, sentence, table

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds between two looks at the jobs' files where somebody watches
REST = 20  # times as long as a look takes: at most a twentieth of one processor
A_MINUTE = 60.0


@contextmanager
def watched(outlook: Outlook, name: Callable[[Job], str]) -> Iterator[None]:
    """Show what jobs are doing as long as the block lasts, where several run at a time; `name` tells them apart."""
    if not outlook.executor.quiet:  # a job that shows by itself what it does
        yield
        return
    over = threading.Event()
    show = draw if _is_watched() else tell
    thread = threading.Thread(target=show, args=(outlook, name, over), name="watch", daemon=True)
    try:
        thread.start()
        yield
    finally:
        over.set()
        thread.join()


def _is_watched() -> bool:
    """Whether a table can be drawn: a terminal that moves its cursor, to which the log goes, too."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and bool(_consoles())


def tell(outlook: Outlook, name: Callable[[Job], str], over: threading.Event) -> None:
    """Tell the log once a minute what the first few jobs are doing, until `over`."""
    while not over.wait(A_MINUTE):
        running = outlook.look()
        if running:
            far = heading(outlook.ended, outlook.total, len(running), outlook.left(running))
            log.info("%s; %s", far, sentence(running))


def draw(outlook: Outlook, name: Callable[[Job], str], over: threading.Event) -> None:
    """Draw the table below what is printed, anew every second, until `over`; then it is gone."""
    with ExitStack() as stack:
        bars = [_Line(position) for position in range(1 + outlook.executor.at_once)]
        for bar in bars:
            stack.callback(bar.close)  # the first one last: there the cursor is
        stack.enter_context(_log_above_bars())
        pause = 0.0
        while not over.wait(pause):
            began = time.monotonic()
            running = outlook.look()
            far = heading(outlook.ended, outlook.total, len(running), outlook.left(running))
            lines = [far, *table(running, [name(doing.job) for doing in running])]
            for bar, line in zip(bars, [*lines, *[""] * len(bars)], strict=False):
                bar.set_description_str(line)
            pause = max(EVERY, REST * (time.monotonic() - began))


class _Line(tqdm):
    """A line of the table at a position below the cursor's."""

    def __init__(self, position: int) -> None:
        super().__init__(file=sys.stdout, bar_format="{desc}", position=position, leave=False, dynamic_ncols=True)


class _Above:
    """A stream whose text is written above all bars."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        tqdm.write(text, file=self.stream, end="")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def _log_above_bars() -> Iterator[None]:
    """Let what the log prints on the terminal stand above the table."""
    before = [(handler, handler.stream) for handler in _consoles()]
    for handler, stream in before:
        handler.setStream(cast(TextIO, _Above(stream)))
    try:
        yield
    finally:
        for handler, stream in before:
            handler.setStream(stream)


def _consoles() -> list["logging.StreamHandler[TextIO]"]:
    """The log's handlers that print where a person looks."""
    handlers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    return [handler for handler in handlers if handler.stream in (sys.stdout, sys.stderr)]
