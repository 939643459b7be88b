"""What a data set is to the rest of kdx: three checked splits and what is known of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from kdx.errors import KdxError
from kdx.tasks import MULTI_LABEL, TASKS

SPLITS = ("train", "val", "test")


class FileImages(Protocol):
    """Images that are decoded when asked for: `images[i]` is uint8 (C, H, W)."""

    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


@dataclass(frozen=True)
class Split:
    """uint8 images (N, C, H, W), in memory or decoded on demand; labels int64 (N,), or uint8 (N, L) if multi-label."""

    images: Tensor | FileImages
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to `count` images from its beginning, where a split that is sorted has one class only."""
        return self._of(range(min(count, len(self))))

    def spread(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to `count` images from all over the split, classes as often as they are in it."""
        count = min(count, len(self))
        return self._of([number * len(self) // count for number in range(count)])

    def of_each_class(self, count: int) -> tuple[Tensor, Tensor]:
        """Up to `count` images: the first of each class in turn, then the second of each, and so on.

        A multi-label image counts as of its first label; one without labels comes after those.
        """
        classes = self.labels
        if classes.ndim > 1:
            classes = torch.where(classes.any(dim=1), classes.long().argmax(dim=1), classes.shape[1])
        by_class = classes.argsort(stable=True)
        sizes = classes.unique(return_counts=True)[1]
        turn = torch.cat([torch.arange(int(size)) for size in sizes])  # which one of its class an image is
        return self._of(by_class[turn.argsort(stable=True)][:count].tolist())

    def _of(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The images of these numbers (N, C, H, W), decoded where they lie in files, and their labels."""
        images, chosen = self.images, list(numbers)
        few = images[chosen] if isinstance(images, Tensor) else torch.stack([images[number] for number in chosen])
        return few, self.labels[chosen]


@dataclass(frozen=True)
class Unlabelled:
    """Pictures of a folder without labels: uint8 (M, C, H, W), in memory or decoded on demand.

    `digest` is a hash of the files' bytes in their order, and of what the pixels depend on beside them.
    """

    folder: str
    images: Tensor | FileImages
    digest: str

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Dataset:
    """train, val and test with the facts that networks, metrics and file names need.

    `digest` is a hash of all images, labels and class names; `mirrored` says that a flip would change the class.
    `notes` are what a user should know of where the images come from. Of picture files, `white` is the grey level that
    was made 255 where the user gave one, and `bytes_digest` the digest that kdx 0.1 gave them, whatever they mean.
    """

    name: str
    task: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    digest: str
    mirrored: bool = False
    notes: tuple[str, ...] = ()
    white: float | None = None
    bytes_digest: str | None = None
    split_folders: tuple[Path, ...] = ()  # of picture files
    beside: tuple[Path, ...] = ()  # folders next to those of the splits
    unlabelled: Unlabelled | None = None  # for distilled stages only; `digest` says nothing of it

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def splits(self) -> dict[str, Split]:
        """Its splits by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        images = self.train.images
        return tuple(images.shape[1:]) if isinstance(images, Tensor) else images.shape  # type: ignore[return-value]


def from_arrays(
    name: str,
    arrays: dict[str, tuple[np.ndarray, np.ndarray]],
    *,
    task: str,
    class_names: Sequence[str],
    mirrored: bool = False,
) -> Dataset:
    """A checked data set from {"train": (images, labels), "val": ..., "test": ...}.

    Images are uint8 (N, H, W) or (N, H, W, C), labels integers (N,) or (N, 1), or 0/1 (N, L) if multi-label.
    Raises `KdxError` that names the split, and the index of the first bad label.
    """
    missing = [split for split in SPLITS if split not in arrays]
    if missing:
        there = ", ".join(map(str, arrays)) or "nothing"
        raise KdxError(
            f"{name}: the splits {', '.join(SPLITS)} are needed: {', '.join(missing)} is missing, {there} given"
        )
    splits = {}
    digest = hashlib.sha256(repr((task, list(class_names))).encode())
    for split in SPLITS:
        images, labels = arrays[split]
        images = check_images(images, f"{name}/{split}")
        labels = check_labels(labels, len(images), task, len(class_names), f"{name}/{split}")
        digest.update(repr((split, images.shape, labels.shape)).encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(labels).data)
        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        splits[split] = Split(torch.from_numpy(channels_first), torch.from_numpy(labels))
    check_same_shape(name, splits)
    check_every_class(name, splits["train"].labels, task, class_names)
    train, val, test = (splits[split] for split in SPLITS)
    return Dataset(name, task, tuple(class_names), train, val, test, digest.hexdigest(), mirrored)


def check_images(images: np.ndarray, where: str) -> np.ndarray:
    """Images as uint8 (N, H, W, C)."""
    if images.dtype != np.uint8:
        raise KdxError(f"{where}: images are {images.dtype}, not uint8")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise KdxError(f"{where}: images have shape {images.shape}, not (N>0, H, W) or (N>0, H, W, 1 or 3)")
    return images


def check_labels(labels: np.ndarray, count: int, task: str, num_classes: int, where: str) -> np.ndarray:
    """Labels as int64 (N,), or uint8 (N, L) if multi-label; each in range."""
    if task not in TASKS:
        raise KdxError(f"{where}: task '{task}' is none of {', '.join(TASKS)}")
    if len(labels) != count:
        raise KdxError(f"{where}: {count} images but {len(labels)} labels")
    if labels.dtype.kind not in "iub":
        raise KdxError(f"{where}: labels are {labels.dtype}, not integers")
    if task == MULTI_LABEL:
        if labels.shape != (count, num_classes):
            raise KdxError(f"{where}: labels have shape {labels.shape}, not ({count}, {num_classes})")
        bad = np.flatnonzero(((labels != 0) & (labels != 1)).any(axis=1))
    else:
        if labels.shape not in ((count,), (count, 1)):
            raise KdxError(f"{where}: labels have shape {labels.shape}, not ({count},)")
        labels = labels.reshape(count)
        bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(bad):
        raise KdxError(f"{where}: label {labels[bad[0]]} of image {bad[0]} is out of range for {num_classes} classes")
    return labels.astype(np.uint8 if task == MULTI_LABEL else np.int64)


def check_same_shape(name: str, splits: dict[str, Split]) -> None:
    """All splits must have images of one shape."""
    shapes = {split: tuple(data.images.shape[-3:]) for split, data in splits.items()}
    if len(set(shapes.values())) > 1:
        raise KdxError(f"{name}: the splits' images differ in shape (C, H, W): {shapes}")


def check_every_class(name: str, labels: Tensor, task: str, class_names: Sequence[str]) -> None:
    """A class without a training image cannot be learned."""
    if task == MULTI_LABEL:
        return
    counts = torch.bincount(labels, minlength=len(class_names))
    empty = [class_names[i] for i in torch.nonzero(counts == 0).flatten().tolist()]
    if empty:
        raise KdxError(f"{name}/train: no image of class {', '.join(empty)}")
