"""Who teaches: a frozen network, asked for its logits and features; its logits may be kept in files for later runs."""

import io
import logging
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdx.data.batches import Batch, Batches
from kdx.errors import KdxError
from kdx.files import hash_path, verify_hash, write_with_hash
from kdx.models.features import Layers, Outputs, Watched
from kdx.training.distributed import Ranks
from kdx.training.evaluation import logits_of
from kdx.training.runtime import Precision

log = logging.getLogger(__name__)


class LogitsCache:
    """float32 logits (N, C) of a split by image number, a file a view: `epoch_0001` and so on, `still`, `val`, `test`.

    `folder` must stand for all that determines their bits: teacher, data, preprocessing, augmentation, seed, batch
    size, precision, device and threads. Whoever finds no file computes the logits and leaves them for the next.
    """

    def __init__(self, folder: Path, num_classes: int) -> None:
        self.folder, self.num_classes = folder, num_classes

    def load(self, view: str, images: int) -> Tensor | None:
        """The logits of a view of so many images, mapped from their file, or None.

        A damaged file, or one that holds anything else, is removed: it can be made again.
        """
        path = self._path(view)
        if not path.exists():
            return None
        try:
            verify_hash(path)
            found = np.load(path, mmap_mode="c", allow_pickle=False)
            shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
            if shape != (images, self.num_classes) or dtype != np.float32:
                raise KdxError(f"{path}: holds {dtype} {shape}, not float32 {(images, self.num_classes)}")
            return torch.from_numpy(found)
        except (KdxError, ValueError, OSError, SyntaxError) as error:  # numpy parses a header as Python's literals
            log.warning("%s; the teacher is asked again", error)
            path.unlink(missing_ok=True)
            hash_path(path).unlink(missing_ok=True)
            return None

    def save(self, view: str, logits: Tensor) -> None:
        """Keep the logits of a view; where that fails, training goes on and asks the teacher."""
        buffer = io.BytesIO()
        np.save(buffer, logits.cpu().numpy(), allow_pickle=False)
        try:
            with buffer.getbuffer() as content:
                write_with_hash(self._path(view), content)
        except KdxError as error:
            log.warning("kd.cache_logits: %s", error)

    def _path(self, view: str) -> Path:
        return self.folder / f"{view}.npy"


class Teacher:
    """A frozen network that answers for a batch; with a `cache`, each image and view is computed once.

    Nothing of it is trained or saved with a student, and no statistic of it moves.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: Precision,
        layers: Layers | None = None,
        cache: LogitsCache | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.watched = Watched(self.network, layers)
        self.precision, self.cache, self.ranks = precision, cache, ranks or Ranks()
        self._still: Tensor | None = None
        self._known: Tensor | None = None  # the logits of this epoch's views, by image number
        self._to_keep: Tensor | None = None  # room for them while they are computed

    def __call__(self, batch: Batch) -> Outputs:
        """Outputs for a batch of the epoch that `start_epoch` named."""
        if self._known is not None:
            return Outputs(self._known[batch.indices])
        outputs = self.ask(batch.images)
        if self._to_keep is not None:
            self._to_keep[self.ranks.gather(batch.indices)] = self.ranks.gather(outputs.logits)
        return outputs

    def ask(self, images: Tensor) -> Outputs:
        """Outputs for images (B, C, H, W) on the device, without gradient."""
        # what inference mode returns cannot enter a loss: logits are copied out of it, maps would cost too much
        looking = torch.no_grad() if self.watched.layers else self.precision.no_gradient()
        with looking, self.precision.autocast():
            outputs = self.watched(images)
        return outputs if self.watched.layers else Outputs(outputs.logits.clone())

    def of_split(self, view: str, batches: Batches) -> Tensor:
        """Logits (N, C) of a whole split in its own order, from the cache where they are there as `view`."""
        known = None if self.cache is None else self.cache.load(view, len(batches.labels))
        if known is None:
            known = logits_of(self.network, batches, self.precision)
            if self.cache is not None and self.ranks.rank == 0:
                self.cache.save(view, known)
        return known.to(self.precision.device)

    def start_epoch(self, train: Batches, epoch: int, whole: bool, num_classes: int) -> None:
        """Look up what is known of an epoch's views, or make room for it.

        Of an epoch that is resumed, not a `whole` one, the first part would be missing: it is not kept.
        """
        self._known = self._to_keep = None
        if self.cache is None:
            return
        if train.still:  # every epoch sees the same
            if self._still is None:
                self._still = self.of_split("still", train.unshuffled())
            self._known = self._still
            return
        known = self.cache.load(_view(epoch), len(train.labels))
        there = self.ranks.first_says(lambda: known is not None)  # what another run writes now, all see or none
        if there and known is not None:
            self._known = known.to(self.precision.device)
        elif whole and not there:
            self._to_keep = torch.full((len(train.labels), num_classes), math.nan, device=self.precision.device)

    def end_epoch(self, epoch: int) -> None:
        """Leave the epoch's logits to later runs."""
        if self.cache is not None and self._to_keep is not None and self.ranks.rank == 0:
            self.cache.save(_view(epoch), self._to_keep)
        self._known = self._to_keep = None


def _view(epoch: int) -> str:
    return f"epoch_{epoch:04d}"
