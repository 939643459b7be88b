"""Standard streams that may be closed, full or read by nobody: what cannot be written is lost, the work is not."""

import errno
import io
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Output(io.RawIOBase):
    """A file descriptor that drops what it does not take; `error` is then the reason, and nothing is tried twice."""

    def __init__(self, descriptor: int, error: OSError | None = None) -> None:
        self.descriptor, self.error = descriptor, error

    def write(self, data: Any) -> int:
        """Write `data` (bytes-like) or drop it; how many bytes are dealt with."""
        while self.error is None:
            try:
                return os.write(self.descriptor, data)
            except BlockingIOError:  # whoever started this process made the pipe non-blocking
                select.select([], [self.descriptor], [])
            except OSError as error:
                self.error = error
                _discard_output(self.descriptor)
        return memoryview(data).nbytes

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.descriptor

    def isatty(self) -> bool:
        return self.error is None and os.isatty(self.descriptor)


@contextmanager
def forgiving_streams() -> Iterator[Callable[[], OSError | None]]:
    """Let writing to stdout and stderr never raise; the yielded function says why stdout took not all of it.

    Characters that a terminal does not know are written as escapes. Streams that something else, such as a test,
    has put in the place of the process's own stay as they are.
    """
    _occupy_closed_descriptors()
    before = sys.stdout, sys.stderr
    streams = []
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):
            stream = _forgiving(stream, descriptor)
            setattr(sys, name, stream)
            streams.append(stream)

    def lost() -> OSError | None:
        sys.stdout.flush()
        return getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "error", None)

    try:
        yield lost
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def _forgiving(stream: TextIO | None, descriptor: int) -> TextIO:
    """A process's own stream, None where it was closed at the start, with `Output` underneath."""
    if stream is None:  # the descriptor may be another file's by now
        closed = Output(descriptor, OSError(errno.EBADF, "is closed"))
        return io.TextIOWrapper(io.BufferedWriter(closed), encoding="utf-8", errors="backslashreplace")
    stream.flush()
    assert isinstance(stream, io.TextIOWrapper)
    return io.TextIOWrapper(
        io.BufferedWriter(Output(descriptor)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _occupy_closed_descriptors() -> None:
    """Else the next file that is opened would get the number of a standard stream, and what libraries print."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _discard_output(descriptor)


def _discard_output(descriptor: int) -> None:
    """Let a descriptor be the null device, also for C libraries and for processes to come."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == descriptor:
        os.set_inheritable(descriptor, True)
    else:
        os.dup2(null, descriptor)
        os.close(null)
