"""Work that is done beside the training, one piece at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class Background:
    """A thread for work that waits for a disk. An error comes up in whoever starts the next piece, waits or leaves.

    A context: what was started is done when it is left, also after an error.
    """

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.under_way: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin `work`, once what was started before is done."""
        self.wait()
        self.under_way = self.thread.submit(work)

    def wait(self) -> None:
        """Return when nothing is under way."""
        done, self.under_way = self.under_way, None
        if done is not None:
            done.result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.wait()
        finally:
            self.thread.shutdown()
