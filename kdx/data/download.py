"""Fetch a file whole, checked and resumable."""

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from filelock import FileLock
from tqdm import tqdm

from kdx.errors import KdxError

CHUNK = 1 << 16
TIMEOUT = 60  # seconds without a byte


def fetch(url: str, path: Path, md5: str) -> None:
    """Download `url` to `path`, going on with a part that is there; the file appears only once its md5 is right.

    Raises `KdxError` where the transfer breaks off (the part stays, for the next try) or the file is another one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with FileLock(path.with_name(path.name + ".lock")):  # another process may want the same file
        if path.exists():
            return
        try:
            _append(url, part)
        except (OSError, ValueError, urllib.error.URLError) as error:
            done = part.stat().st_size / 1e6 if part.exists() else 0.0
            raise KdxError(f"{url}: {error}; {done:.1f} MB are kept: start again to go on") from error
        actual = md5_of(part)
        if actual != md5:
            part.unlink()
            raise KdxError(f"{url}: its md5 is {actual}, not {md5}: what came is discarded")
        os.replace(part, path)


def md5_of(path: Path) -> str:
    """The md5 of a file, the checksum that data sets are published with."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _append(url: str, part: Path) -> None:
    """Fetch what is missing of the part behind it; from the start where the server cannot do that."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing
            return
        raise
    with answer:
        goes_on = answer.status == 206
        left = int(answer.headers.get("Content-Length") or 0)
        start = have if goes_on else 0
        with (
            open(part, "ab" if goes_on else "wb") as file,
            tqdm(total=start + left or None, initial=start, unit="B", unit_scale=True, desc=part.stem) as bar,
        ):
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if left and part.stat().st_size != start + left:
            raise OSError(f"the connection ended after {part.stat().st_size} of {start + left} bytes")
