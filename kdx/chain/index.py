"""outputs/index: fingerprint -> finished stage, so that later runs find it; and who is training one now."""

import hashlib
import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from msgspec import Meta

from kdx.errors import BusyError, DamagedError, KdxError
from kdx.files import as_record, make_folder, make_way, read_json, relative, set_aside, sweep_temps, write_json

log = logging.getLogger(__name__)

REMIND_SECONDS = 60  # how often a waiting job says for whom it waits
POLL_SECONDS = 0.2
RUN_MARKS = (".lock", ".hydra")  # only a run's own folder has these
ENTRY_HASH = "entry_hash"  # of all other fields: JSON with a flipped bit is JSON all the same
ENTRY_FORMAT = 1  # of that hash
FINGERPRINT_FORMAT = 2  # raise it when the same settings come to mean other weights; 2: code counts


@contextmanager
def own_folder(folder: Path, what: str = "run", key: str = "hydra.run.dir") -> Iterator[None]:
    """Be the only run in a folder; `BusyError` at once where another one is, with the key that names the folder."""
    make_folder(folder)
    lock = FileLock(folder / ".lock")
    if not _acquired(lock, 0.5):  # clean.sh looks at it for a moment
        raise BusyError(f"{folder}: another {what} is at work in this folder; choose another {key}")
    try:
        for place in _folders_of_run(folder):
            sweep_temps(place)
        yield
    finally:
        lock.release()


def _folders_of_run(folder: Path) -> Iterator[Path]:
    """A run's folder and those below it, but for other runs that lie there."""
    yield folder
    for below in folder.iterdir():
        if below.is_dir() and not below.is_symlink() and not any((below / mark).exists() for mark in RUN_MARKS):
            yield from _folders_of_run(below)


def fingerprint(facts: dict[str, Any]) -> str:
    """16 hex digits that stand for exactly these facts (plain values; the order of keys is irrelevant)."""
    return _hash(FINGERPRINT_FORMAT, facts)


def _hash(version: int, facts: dict[str, Any]) -> str:
    text = json.dumps([version, facts], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FinishedStage:
    """A stage that was trained, tested and filed. `checkpoint` is relative to the output folder."""

    fingerprint: str
    role: str
    network: str
    dataset: str
    data_digest: str
    num_classes: Annotated[int, Meta(ge=1)]
    checkpoint: Annotated[str, Meta(min_length=1, pattern=r"^[^\0]+$")]
    sha256: str
    epoch: Annotated[int, Meta(ge=0, le=2**53)]
    validation: dict[str, float]
    test: dict[str, Any]
    seconds: Annotated[float, Meta(ge=0, le=1e300)]
    finished: str
    surroundings: dict[str, Any] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)  # of a user's own network


@dataclass(frozen=True)
class Attempt:
    """Who is, or was, at work on a stage, and in which folder, relative to the output folder."""

    pid: int
    host: str
    folder: Annotated[str, Meta(min_length=1, pattern=r"^[^\0]+$")]


class StageIndex:
    """One JSON file a finished stage under `<output folder>/index`."""

    def __init__(self, outputs: Path) -> None:
        self.outputs = outputs
        self.folder = outputs / "index"

    def add(self, stage: FinishedStage) -> None:
        """File a stage; the atomic appearance of its entry is what makes it finished."""
        record = asdict(stage)
        make_way(self.folder / f"{stage.fingerprint}.json")
        write_json(self.folder / f"{stage.fingerprint}.json", record | {ENTRY_HASH: _hash(ENTRY_FORMAT, record)})

    def find(self, wanted: str) -> FinishedStage | None:
        """The stage with this fingerprint, if it is finished and its checkpoint still there."""
        path = self.folder / f"{wanted}.json"
        return self._read(path) if path.exists() else None

    def newest_first(
        self, *, role: str, network: str, data_digest: str, num_classes: int, code: dict[str, str] | None = None
    ) -> list[FinishedStage]:
        """The stages of this role, network, data and classes; the one that was finished last comes first.

        `code` is that of a user's own network: weights mean nothing to another one.
        """
        wanted = (role, network, code or {}, data_digest, num_classes)
        stages = [self._read(path) for path in self.folder.glob("*.json")]
        fitting = [s for s in stages if s and (s.role, s.network, s.code, s.data_digest, s.num_classes) == wanted]
        return sorted(fitting, key=lambda stage: (stage.finished, stage.fingerprint), reverse=True)

    @contextmanager
    def claim(
        self, wanted: str, what: str, folder: Path, while_waiting: Callable[[], None]
    ) -> Iterator[tuple[Path | None, bool]]:
        """Be the only one who trains the stage `wanted` in `folder`; waits while another holder lives.

        The lock is the operating system's: it is free as soon as its holder is dead. `while_waiting` is called
        every second and may raise. Yields the folder of an attempt that did not finish, or None, and whether there
        was somebody to wait for.
        """
        attempt = self.folder / f"{wanted}.attempt"
        make_folder(self.folder)
        lock = FileLock(self.folder / f"{wanted}.lock")
        seconds = 0
        while not _acquired(lock, min(1, seconds)):
            if seconds % REMIND_SECONDS == 0:
                holder = _read_attempt(attempt) or Attempt(0, "an unknown host", "an unknown folder")
                log.info(
                    "waiting for the %s that process %s on %s trains in %s",
                    *(what, holder.pid, holder.host, holder.folder),
                )
            seconds += 1
            while_waiting()
        try:
            before = _read_attempt(attempt)
            earlier = None if before is None else self.outputs / before.folder
            sweep_temps(self.folder, f"{wanted}.")
            make_way(attempt)
            write_json(attempt, asdict(Attempt(os.getpid(), socket.gethostname(), relative(folder, self.outputs))))
            yield earlier, seconds > 0
            attempt.unlink(missing_ok=True)  # not after an error: the next holder goes on from there
        finally:
            lock.release()

    def path_of(self, stage: FinishedStage) -> Path:
        """Where the stage's checkpoint lies."""
        return self.outputs / stage.checkpoint

    def entry_path(self, checkpoint: Path) -> str:
        """A checkpoint's path as an index entry keeps it."""
        return relative(checkpoint, self.outputs)

    def _read(self, path: Path) -> FinishedStage | None:
        """The entry, if its checkpoint is still there; one that is damaged is set aside under another name."""
        try:
            record = read_json(path)
            if not isinstance(record, dict) or record.pop(ENTRY_HASH, None) != _hash(ENTRY_FORMAT, record):
                raise DamagedError(f"{path}: damaged (its content does not have the hash that it states)")
            stage = as_record(record, FinishedStage, path)
            return stage if os.path.isfile(self.path_of(stage)) else None
        except DamagedError as error:
            set_aside(path, error)
        except KdxError as error:
            log.warning("%s; it is left out", error)
        return None


def _acquired(lock: FileLock, seconds: float) -> bool:
    """Take a lock unless it is held for so long; on a disk without flock filelock warns and uses a marker file."""
    make_way(Path(lock.lock_file))
    try:
        lock.acquire(timeout=seconds, poll_interval=POLL_SECONDS)
    except Timeout:
        return False
    except OSError as error:
        raise KdxError(f"cannot lock {lock.lock_file}: {error.strerror or error}; choose another output_dir") from error
    return True


def _read_attempt(path: Path) -> Attempt | None:
    """Who is, or was, at work on a stage; None where its holder has just finished, or the file is damaged."""
    if not path.exists():
        return None
    try:
        return as_record(read_json(path), Attempt, path)
    except KdxError as error:
        set_aside(path, error)
        return None
