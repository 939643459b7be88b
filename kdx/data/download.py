"""Fetch a file whole, checked and resumable, in bounded time whatever the server does."""

import hashlib
import http.client
import logging
import os
import queue
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kdx.data.waiting import only_one
from kdx.errors import KdxError
from kdx.files import make_folder, size_of

log = logging.getLogger(__name__)

CHUNK = 1 << 16
STALL_SECONDS = 60.0  # in each of which at least so many bytes must come, or the transfer has stalled:
STALL_BYTES = 10_000
SPARE_BYTES = 1 << 28  # of the disk stay free where the length is not known: a server may never end


def fetch(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`, resuming from a part that is there; the file appears only once its md5 is right.

    Raises `KdxError` where the transfer breaks off or stalls (the part stays, for the next try) or the file is another
    one.
    """
    part = path.with_name(path.name + ".part")
    with _folder_for(path), only_one(path.with_name(path.name + ".lock"), part):
        if path.exists():
            return
        try:
            _append(url, part)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not size_of(part):
                part.unlink(missing_ok=True)
            kept = f"{size_of(part) / 1e6:.1f} MB are kept: start again to go on" if part.exists() else "nothing came"
            raise KdxError(f"{url}: {_reason(error)}; {kept}") from error
        actual = md5_of(part) if part.exists() else None
        if actual != md5:
            begins = _beginning(part)
            part.unlink(missing_ok=True)
            raise KdxError(f"{url}: its md5 is {actual}, not {md5}: what came is discarded ({begins})")
        os.replace(part, path)


def md5_of(path: Path) -> str:
    """The md5 of a file, the checksum that data sets are published with."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _folder_for(path: Path) -> Iterator[None]:
    """The folder that a file is to lie in; what of it was made for nothing goes again."""
    made = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    make_folder(path.parent, "data_dir")
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def _append(url: str, part: Path) -> None:
    """Fetch what is missing of the part behind it; from the start where the server cannot do that."""
    have = size_of(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with _Transfer(request) as transfer:
        status, headers = transfer.head()
        if status == 416:  # nothing is missing
            return
        resumes = status == 206 and _continues(headers.get("Content-Range"), have)
        stated = headers.get("Content-Length") or ""
        left = int(stated) if stated.isascii() and stated.isdigit() else 0
        start = have if resumes else 0
        _check_space(part, left or SPARE_BYTES)
        chunks = transfer.chunks()
        first = next(chunks, b"")
        if start == 0 and first.lstrip()[:1] == b"<":  # what is kept of the file stays
            raise OSError("the server sends a web page instead of the file")
        with (
            open(part, "ab" if resumes else "wb") as file,
            tqdm(total=start + left or None, initial=start, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            for number, chunk in enumerate(chain([first], chunks)):
                file.write(chunk)
                bar.update(len(chunk))
                if not left and number % 1000 == 999:
                    _check_space(part, SPARE_BYTES)
    if left and size_of(part) != start + left:
        raise OSError(f"the connection ended after {size_of(part)} of {start + left} bytes")


def _continues(content_range: str | None, have: int) -> bool:
    """Whether a partial answer begins where the part ends; a server that does not say where is believed."""
    if content_range is None or content_range.startswith(f"bytes {have}-"):
        return True
    if content_range.startswith("bytes 0-"):
        return False
    raise OSError(f"the server sends {content_range[:50]!r} where what is behind byte {have} was asked for")


class _Transfer:
    """A request in a thread of its own: a server may hold up each step of it, and no single timeout covers all."""

    def __init__(self, request: urllib.request.Request) -> None:
        self.request, self.had = request, bool(request.headers)
        self.arrived: queue.Queue[Any] = queue.Queue(maxsize=64)
        self.given_up = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True)  # one that hangs must not keep the process

    def __enter__(self) -> "_Transfer":
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.given_up.set()

    def head(self) -> tuple[int, Any]:
        """Status and headers."""
        return self._next(time.monotonic() + STALL_SECONDS)

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes; `OSError` where it comes too slowly."""
        until, count = time.monotonic() + STALL_SECONDS, 0
        while (chunk := self._next(until)) is not None:
            count += len(chunk)
            if count >= STALL_BYTES:
                until, count = time.monotonic() + STALL_SECONDS, 0
            yield chunk

    def _next(self, until: float) -> Any:
        try:
            found = self.arrived.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            raise OSError(f"stalled: fewer than {STALL_BYTES} bytes came in {STALL_SECONDS:.0f} s") from None
        if isinstance(found, Exception):
            raise found
        return found

    def _work(self) -> None:
        try:
            with self._open() as answer:
                self._put((answer.status, answer.headers))
                while not self.given_up.is_set() and (chunk := answer.read1(CHUNK)):
                    self._put(chunk)
            self._put(None)
        except Exception as error:  # raised again by whoever waits for it
            self._put(error)

    def _open(self) -> Any:
        try:
            return urllib.request.urlopen(self.request, timeout=STALL_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code == 416 and self.had:
                return error
            error.close()
            raise

    def _put(self, item: Any) -> None:
        while not self.given_up.is_set():
            try:
                return self.arrived.put(item, timeout=1)
            except queue.Full:
                continue


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(f"the disk of data_dir has {free / 1e6:.1f} MB free; make room or choose another data_dir")


def _beginning(part: Path) -> str:
    if not size_of(part):
        return "nothing came"
    with open(part, "rb") as file:
        return f"it begins with {file.read(16)!r}"


def _reason(error: Exception) -> str:
    """An error in one line; a server may have put anything into it."""
    text = "".join(c if c.isprintable() else " " for c in str(error))
    known = f"{type(error).__name__}: " if isinstance(error, http.client.HTTPException) else ""
    return known + " ".join(text.split())[:200] or type(error).__name__
