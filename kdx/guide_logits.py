"""What a guide says of the images, kept in files so that it is computed once an image and view, also in a sweep."""

import io
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdx.errors import KdxError
from kdx.files import hash_path, verify_hash, write_with_hash

log = logging.getLogger(__name__)


class LogitsCache:
    """float32 logits (N, C) of a split by image number, one file a view: `epoch_0001` and so on, or `still`.

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
            write_with_hash(self._path(view), buffer.getvalue())
        except KdxError as error:
            log.warning("kd.cache_logits: %s", error)

    def _path(self, view: str) -> Path:
        return self.folder / f"{view}.npy"
