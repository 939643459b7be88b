"""One process at a time writes a large file; the others wait as long as it grows."""

import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from kdx.errors import KdxError
from kdx.files import size_of

log = logging.getLogger(__name__)

LOCK_SECONDS = 600.0  # to wait for another process whose part does not grow
REMIND_SECONDS = 60.0


@contextmanager
def only_one(path: Path, part: Path, doing: str = "downloads", key: str = "data_dir") -> Iterator[None]:
    """Hold a lock file; who holds it already, and is `doing` something, is waited for as long as the part grows."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))  # filelock would try for ever where this fails
    except OSError as error:
        raise KdxError(f"cannot write {path}: {error.strerror}; choose another {key}") from error
    lock = FileLock(path)
    size, grown, told = size_of(part), time.monotonic(), 0.0
    while True:
        try:
            lock.acquire(timeout=min(1.0, LOCK_SECONDS), poll_interval=0.05)
            break
        except Timeout:
            now = time.monotonic()
            if size_of(part) != size:
                size, grown = size_of(part), now
            if not told or now - told >= REMIND_SECONDS:
                log.info("waiting for another process that %s %s", doing, part.stem)
                told = now
            if now - grown >= LOCK_SECONDS:
                reason = f"another process holds {path}, and {part.name} has not grown for {now - grown:.0f} s"
                raise KdxError(f"{reason}: end that process, or choose another {key}") from None
        except OSError as error:
            raise KdxError(f"cannot lock {path}: {error.strerror or error}; choose another {key}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: who waits for it then looks for the file anew
        lock.release()
