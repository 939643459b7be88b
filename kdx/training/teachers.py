"""What a guide says of the images, kept in files so that it is computed once an image and view, also in a sweep."""

import io
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kdx.data.batches import Batches
from kdx.errors import KdxError
from kdx.files import hash_path, verify_hash, write_with_hash
from kdx.training.evaluation import logits_of
from kdx.training.runtime import Precision

log = logging.getLogger(__name__)


class LogitsCache:
    """float32 logits (N, C) of a split by image number, a file a view: `epoch_0001` and so on, `still`, `val`, `test`.

    `folder` must stand for all that determines their bits: guide, data, preprocessing, augmentation, seed, batch size,
    precision, device and threads. Whoever finds no file computes the logits and leaves them for the next.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, view: str) -> Tensor | None:
        """The logits of a view, mapped from their file, or None. A damaged file is removed: it can be made again."""
        path = self._path(view)
        if not path.exists():
            return None
        try:
            verify_hash(path)
            return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        except (KdxError, ValueError, OSError) as error:
            log.warning("%s; the guide is asked again", error)
            path.unlink(missing_ok=True)
            hash_path(path).unlink(missing_ok=True)
            return None

    def save(self, view: str, logits: Tensor) -> None:
        """Keep the logits of a view; where that fails, training goes on and asks the guide."""
        buffer = io.BytesIO()
        np.save(buffer, logits.cpu().numpy(), allow_pickle=False)
        try:
            with buffer.getbuffer() as content:
                write_with_hash(self._path(view), content)
        except KdxError as error:
            log.warning("kd.cache_logits: %s", error)

    def _path(self, view: str) -> Path:
        return self.folder / f"{view}.npy"


class GuideLogits:
    """A frozen guide, asked for its logits; with a `cache`, once an image and view."""

    def __init__(self, network: nn.Module, precision: Precision, cache: LogitsCache | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        self.precision, self.cache = precision, cache
        self.still: Tensor | None = None

    def ask(self, images: Tensor) -> Tensor:
        """float32 logits (N, C) of images (N, C, H, W) on the device."""
        with self.precision.no_gradient(), self.precision.autocast():
            logits = self.network(images).float()
        return logits.clone()  # as a plain tensor: one of inference mode cannot enter a loss

    def of_split(self, view: str, batches: Batches) -> Tensor:
        """Logits of a whole split in its own order, from the cache where they are there; `view` is their name there."""
        known = None if self.cache is None else self.cache.load(view)
        if known is None:
            known = logits_of(self.network, batches, self.precision)
            if self.cache is not None:
                self.cache.save(view, known)
        return known.to(self.precision.device)

    def of_epoch(self, train: Batches, epoch: int) -> Tensor | None:
        """Logits of an epoch's views of the training split, by image number; None where they are not known yet."""
        if self.cache is None:
            return None
        if train.still:  # every epoch sees the same
            if self.still is None:
                self.still = self.of_split("still", train.unshuffled())
            return self.still
        known = self.cache.load(_view(epoch))
        return None if known is None else known.to(self.precision.device)

    def keep(self, epoch: int, logits: Tensor) -> None:
        """Leave an epoch's logits to later runs."""
        if self.cache is not None:
            self.cache.save(_view(epoch), logits)


def _view(epoch: int) -> str:
    return f"epoch_{epoch:04d}"
