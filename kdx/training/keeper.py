"""What a training leaves on disk: checkpoints, the epoch log; and how a later run resumes from it."""

import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from kdx.checkpoint import (
    BEST_PATTERN,
    LATEST,
    check_snapshot,
    load_checkpoint,
    remove_checkpoint,
    save_checkpoint,
    serialised,
    write_checkpoint,
)
from kdx.epoch_log import EpochLogger
from kdx.errors import DamagedError, KdxError
from kdx.files import set_aside
from kdx.training.background import Background
from kdx.training.progress import Best, Progress
from kdx.training.stopping import StopRequest

log = logging.getLogger(__name__)

Item = TypeVar("Item")

BEST = "best_checkpoint"  # the best epoch's content within a snapshot, which so can be resumed from by itself
SNAPSHOTS = "epoch_*.pth"


class Stateful(Protocol):
    """torch.distributed.checkpoint's protocol."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


State = Mapping[str, Stateful]


def is_due(number: int, interval: int) -> bool:
    """Whether something that happens every `interval` times happens now; 0 is never."""
    return interval > 0 and number % interval == 0


class Keeper:
    """Saves, resumes, logs and stops one stage's training, whose `state` is all that its next step depends on."""

    def __init__(
        self,
        folder: Path,
        meta: dict[str, Any],
        state: State,
        progress: Progress,
        logger: EpochLogger,
        *,
        save_interval: int = 0,
        checkpoint_every_steps: int = 0,
        stop: StopRequest | None = None,
    ) -> None:
        self.folder, self.meta, self.state, self.progress, self.logger = folder, meta, state, progress, logger
        self.save_interval, self.checkpoint_every_steps = save_interval, checkpoint_every_steps
        self.stop = stop or StopRequest()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Write checkpoints beside the training within this context; all are written when it is left."""
        with Background() as self.saving:
            yield

    def wants_step(self, step: int, steps: int) -> bool:
        """Whether the state within an epoch is to be saved now; after an epoch's last step `after_epoch` does."""
        return step < steps and (self.stop.number is not None or is_due(step, self.checkpoint_every_steps))

    def after_step(self) -> None:
        """Save the state within an epoch, and stop where that was asked for."""
        self.saving.wait()  # so that no earlier copy is in memory beside the new one
        self._save({LATEST: serialised(self._content())})
        self.stop.raise_if_asked()

    def after_epoch(self, row: dict[str, Any], network: nn.Module) -> None:
        """Save an epoch: the best checkpoint first, of `network`, then latest.pth, which says which best one counts."""
        best, epoch = self.progress.best, row["epoch"]
        assert best is not None
        self.saving.wait()
        copies = {}
        if best.epoch == epoch:
            copies[best.file] = serialised(self._head(row) | {"model": network.state_dict()})
        copies[LATEST] = serialised(self._content())
        if is_due(epoch, self.save_interval):
            copies[f"epoch_{epoch:04d}.pth"] = serialised(self._content() | {BEST: self._best_content(copies)})
        self._save(copies)
        self.logger.write(self.progress.history)
        self.logger.announce(row, best.epoch == epoch)

    def _best_content(self, copies: Mapping[str, io.BytesIO]) -> dict[str, Any]:
        """The content of the best checkpoint: as it is about to be written, or as it was."""
        assert self.progress.best is not None
        file = self.progress.best.file
        if file in copies:
            return load_checkpoint_bytes(copies[file])
        return load_checkpoint(self.folder / file)

    def _head(self, row: dict[str, Any]) -> dict[str, Any]:
        validation = {key.removeprefix("val_"): value for key, value in row.items() if key.startswith("val_")}
        return {"epoch": row["epoch"], "validation": validation, "meta": self.meta}

    def _content(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        row = self.progress.history[-1] if self.progress.history else {"epoch": 0}
        return self._head(row) | {name: part.state_dict() for name, part in self.state.items()}

    def _save(self, copies: dict[str, io.BytesIO]) -> None:
        best = self.progress.best
        self.saving.start(lambda: self._write(copies, best))

    def _write(self, copies: dict[str, io.BytesIO], best: Best | None) -> None:
        for name, copy in copies.items():
            write_checkpoint(self.folder / name, copy)
        self._drop_bests_but(best)

    def _drop_bests_but(self, best: Best | None) -> None:
        for path in self.folder.glob(BEST_PATTERN):
            if best is None or path.name != best.file:
                remove_checkpoint(path)

    def resume(self, source: Path) -> bool:
        """Load the newest sound state in `source`; whether there was one.

        A damaged file is set aside under another name. What lies in another folder than the stage's own is copied, so
        that this one is complete by itself. Raises `KdxError` where it belongs to another stage, or cannot be read now.
        """
        found = self._newest_sound(source)
        if found is None:
            return False
        content, best = found
        for name, part in self.state.items():
            part.load_state_dict(content[name])
        kept = content["progress"]["best"]
        if best is not None:
            save_checkpoint(self.folder / kept["file"], best)
        if source != self.folder:
            save_checkpoint(self.folder / LATEST, {k: v for k, v in content.items() if k not in ("format", BEST)})
        self._drop_bests_but(self.progress.best)
        if self.progress.history:
            self.logger.write(self.progress.history)
        return True

    def _newest_sound(self, source: Path) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        """The newest state that can be resumed from, and its best checkpoint where that must be written."""
        for path in (source / LATEST, *sorted(source.glob(SNAPSHOTS), reverse=True)):
            if not path.is_file():
                continue
            try:
                content = load_checkpoint(path)
                self._check(path, content)
            except DamagedError as error:
                set_aside(path, error)
                continue
            try:
                return content, self._best_of(source, content)
            except DamagedError as error:
                log.warning("%s: without it %s cannot be resumed from", error, path.name)
        return None

    def _best_of(self, source: Path, content: dict[str, Any]) -> dict[str, Any] | None:
        """What must be written as the best checkpoint: nothing where it lies in the folder already."""
        best = content["progress"]["best"]
        if best is None:
            return None
        try:
            kept = load_checkpoint(source / best["file"])
            return None if source == self.folder else kept
        except DamagedError:
            if BEST not in content:
                raise
            return content[BEST]

    def _check(self, path: Path, content: dict[str, Any]) -> None:
        missing = [name for name in self.state if name not in content]
        if missing:
            raise DamagedError(f"{path}: holds no state of a training ({', '.join(missing)} missing)")
        check_snapshot(path, content)
        if content["meta"].get("fingerprint") != self.meta.get("fingerprint"):
            raise KdxError(f"{path}: belongs to another stage than the one configured; choose another run folder")


class Bystander:
    """The keeper of a rank that leaves nothing on disk: rank 0 saves, logs, and is asked to stop."""

    def __init__(self) -> None:
        self.logger, self.stop = self, StopRequest()

    def writing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def bar(self, steps: Iterable[Item], epoch: int, total: int, initial: int = 0) -> Iterator[Item]:
        return iter(steps)

    def wants_step(self, step: int, steps: int) -> bool:
        return False

    def after_step(self) -> None:
        """Nothing."""

    def after_epoch(self, row: dict[str, Any], network: nn.Module) -> None:
        """Nothing."""


def load_checkpoint_bytes(buffer: io.BytesIO) -> dict[str, Any]:
    """The content of a serialised checkpoint that is still in memory."""
    buffer.seek(0)
    return torch.load(buffer, map_location="cpu", weights_only=True)
