"""Files that are whole or absent: whoever reads sees the old or the new content, never a part.

What is read is checked before it is used: its size, then the type and range of every key that kdx knows.
"""

import glob
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from itertools import chain, count
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from kdx.errors import DamagedError, KdxError

log = logging.getLogger(__name__)

TEMP_PREFIX = ".tmp-kdx-"
LONGEST_CHECKSUM = 10_000  # bytes that are read of a checksum file
MOST_BYTES = 128 * 2**20  # of a text file: a run of three stages on 1,000 classes writes 42 MB

Record = TypeVar("Record")


def write_atomic(path: Path, content: bytes | memoryview) -> None:
    """Replace `path` by `content`: temp file in the same folder, flush, fsync, rename, fsync of the folder."""
    make_folder(path.parent)
    temp = None
    try:
        descriptor, temp = tempfile.mkstemp(prefix=f"{TEMP_PREFIX}{path.name}-", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temp, 0o666 & ~_umask())  # mkstemp leaves 0600, which locks colleagues out
        os.replace(temp, path)
        temp = None
        _sync_folder(path.parent)
    except OSError as error:
        raise KdxError(f"cannot write {path}: {error.strerror or error}; free space or choose output_dir") from error
    finally:
        if temp is not None and os.path.exists(temp):
            os.unlink(temp)


def write_with_hash(path: Path, content: bytes | memoryview) -> None:
    """`write_atomic` with the sha256 in a file beside it, so that a crash leaves the old or the new content.

    The checksum file is written first and keeps the hash that the file has now on its second line: whichever of
    the two files a crash leaves behind, it is known.
    """
    beside = hash_path(path)
    make_way(path)
    known = read_hashes(path)[:1] or [hash_file(path)] if path.exists() else []
    line = f"{hashlib.sha256(content).hexdigest()}  {path.name}"  # the format of sha256sum
    write_atomic(beside, "\n".join([line, *known, ""]).encode())
    write_atomic(path, content)


def verify_hash(path: Path) -> str:
    """The file's sha256; `KdxError` where the checksum beside it says another."""
    actual, known = hash_file(path), read_hashes(path)
    if known and actual not in known:
        beside = hash_path(path).name
        raise DamagedError(f"{path}: damaged (its sha256 is not the one in {beside}); take another or train again")
    return actual


def read_hashes(path: Path) -> list[str]:
    """The sha256 that the checksum file beside `path` states, the newest first; none without such a file.

    A checksum file of another form says nothing of `path`: it is set aside.
    """
    beside = hash_path(path)
    if not os.path.lexists(beside):
        return []
    try:
        lines = [line for line in beside.read_bytes()[:LONGEST_CHECKSUM].split(b"\n") if line]
    except OSError:
        lines = []
    hashes = [line.split(b" ")[0].decode("ascii", "replace") for line in lines]
    if hashes and all(re.fullmatch("[0-9a-f]{64}", text) for text in hashes):
        return hashes
    set_aside(beside, f"{beside}: not a checksum")
    return []


def hash_path(path: Path) -> Path:
    """Where the checksum of a file lies."""
    return path.with_name(path.name + ".sha256")


def make_folder(folder: Path, key: str = "output_dir") -> None:
    """Make a folder if it is not there; `KdxError`, with the key to change, where it cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KdxError(f"cannot make the folder {folder}: {error.strerror}; choose another {key}") from error
    if not os.access(folder, os.W_OK):
        raise KdxError(f"cannot write into the folder {folder}: permission denied; choose another {key}")


def nearest(folder: Path) -> Path:
    """The folder itself, or the innermost one around it that is there."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def free_bytes(folder: Path) -> int:
    """Room where a folder is, or will be."""
    return shutil.disk_usage(nearest(folder)).free


def sweep_temps(folder: Path, name: str = "") -> None:
    """Remove what writers that were killed left in a folder, of files whose names begin with `name`.

    Call it only while nobody else may be writing them.
    """
    for path in folder.glob(f"{TEMP_PREFIX}{glob.escape(name)}*"):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def set_aside(path: Path, why: object) -> None:
    """Give what cannot be used another name, `<name>.damaged`, and tell it: nothing is lost, nobody takes it up again.

    Does nothing where it is gone: another run may have done so.
    """
    aside = (path.with_name(f"{path.name}.damaged{number}") for number in chain([""], map("-{}".format, count(2))))
    target = next(other for other in aside if not os.path.lexists(other))
    try:
        path.rename(target)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("%s; it cannot be renamed: %s", why, error.strerror or error)
    else:
        log.warning("%s; it is set aside as %s", why, target.name)


def make_way(path: Path) -> None:
    """Set a folder aside that lies where a file of ours belongs."""
    if path.is_dir() and not path.is_symlink():
        set_aside(path, f"{path}: a folder where a file belongs")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON; NaN is refused, since no reader agrees on it."""
    write_atomic(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file of at most `most` bytes; `KdxError` names the file where it cannot be read.

    What is no regular file is refused: a pipe would never end.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise DamagedError(f"cannot read {path}: it is no file")
        if found.st_size > most:
            raise DamagedError(f"cannot read {path}: it has {found.st_size} bytes, at most {most} are read")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a path with a NUL is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise KdxError(f"cannot read {path}: {reason or error}") from error


def parse_json(text: bytes | str, where: Path) -> Any:
    """JSON as plain values: UTF-8, finite numbers, nested as deep as the interpreter allows; else `DamagedError`."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedError(f"cannot read {where}: not JSON that kdx writes ({error})") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file; `KdxError` names the file where it cannot be read."""
    return parse_json(read_bytes(path), path)


def as_record(value: Any, kind: type[Record], where: Path, key: str = "") -> Record:
    """Plain values as a `kind`: a dataclass, a TypedDict or any annotation, with ranges in `msgspec.Meta`.

    Keys that `kind` does not know are left out: a newer kdx may have written them. Raises `DamagedError` with the
    file (`where`, and the `key` in it that holds `value`) and the key that is missing or has another type or range.
    """
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise DamagedError(f"{where}: {_explained(error, key)}") from error


def read_record(path: Path, kind: type[Record]) -> Record:
    """The content of a JSON file as a `kind`; `KdxError` as in `read_json` and `as_record`."""
    return as_record(read_json(path), kind, path)


def _explained(error: Exception, key: str) -> str:
    """msgspec's error with the whole key: "Expected `int`, got `str` - at `$.epoch`" is "epoch: Expected int"."""
    reason, _, at = " ".join(str(error).split()).partition(" - at ")
    inner = re.sub(r"`(?:key` in `)?|\$\.?", "", at)
    return f"{'.'.join(filter(None, (key, inner))) or 'its content'}: {reason.replace('`', '')}"


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def relative(path: Path, start: Path) -> str:
    """`path` as seen from `start`: results hold no absolute path, so that a folder can be moved."""
    return os.path.relpath(path, start)


def from_here(path: Path) -> str:
    """`path` for messages: as it is typed in the working folder where it lies below it, else whole.

    Whole, too, for the working folder itself: with hydra.job.chdir=true it is not the one that the user is in.
    """
    path, here = Path(os.path.abspath(path)), Path.cwd()
    return str(path.relative_to(here)) if here in path.parents else str(path)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
