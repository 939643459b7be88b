"""Pictures without labels, which a student sees beside the training images, taught by its teacher alone."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kdx.data.dataset import Dataset, Split, Unlabelled
from kdx.data.decoding import DecodedFiles, kept
from kdx.data.folders import class_folder_of, pictures_below, suffixes
from kdx.data.imagefolder import hash_files
from kdx.data.picture_cache import CachedPictures, Joined
from kdx.data.pictures import READER
from kdx.errors import KdxError

KEY = "dataset.unlabelled"


def add_unlabelled(
    data: Dataset, folder: str, *, in_memory_gb: float, num_workers: int, cache: str = "auto", cache_dir: str | None
) -> Dataset:
    """The data set with the pictures anywhere below a folder, read as `predict` would read them for it.

    They are resized and centre-cropped to the training images' shape, and kept as those of `load_imagefolder`.
    Raises `KdxError` for a folder without pictures, one whose pictures are labelled, or the first unreadable one.
    """
    labelled = class_folder_of(Path(folder), data.split_folders)
    if labelled is not None:
        where = f"its pictures are read as class {labelled.name}, because it lies in {labelled.parent}"
        raise KdxError(f"{KEY}={folder}: {where}; move it out")
    channels, height, width = data.image_shape
    if channels not in (1, 3):
        raise KdxError(f"{KEY}={folder}: pictures have 1 or 3 channels, and the images of {data.name} {channels}")
    paths, unread = pictures_below(Path(folder))
    passed_over = suffixes(unread)
    if not paths:
        raise KdxError(f"{KEY}={folder}: no picture in it or below" + (f"; not read: {passed_over}" if unread else ""))
    in_bytes, _ = hash_files({"unlabelled": (paths, np.zeros(len(paths), dtype=np.int64))}, [], None)
    digest = hashlib.sha256(repr((READER, data.white, data.image_shape, in_bytes)).encode()).hexdigest()
    pictures = DecodedFiles(paths, (height, width), True, data.white, channels)
    images = kept({"unlabelled": pictures}, digest, cache, in_memory_gb, cache_dir, num_workers)["unlabelled"]
    found = Unlabelled(folder, images, digest)
    notes = [f"{folder}: not read: {passed_over}"] if unread else []
    seen = {name: _repeated(found, split) for name, split in data.splits.items()}
    notes += [
        f"{again} of the {len(paths)} pictures in {folder} are in {name}, too (the same pixels)"
        for name, again in seen.items()
        if again
    ]
    if None in seen.values():  # it would take decoding all again; where they lie tells the plainest case
        notes += _inside(paths, folder, data.split_folders)
    return replace(data, unlabelled=found, notes=(*data.notes, *notes))


def with_unlabelled(train: Split, unlabelled: Unlabelled) -> Split:
    """The training images with the pictures behind them, whose labels are 0 and must not be used.

    Where both are in memory, they are copied next to each other.
    """
    first, second = train.images, unlabelled.images
    both = isinstance(first, Tensor) and isinstance(second, Tensor)
    images = torch.cat([first, second]) if both else Joined([first, second])  # type: ignore[list-item]
    blank = train.labels.new_zeros((len(unlabelled), *train.labels.shape[1:]))
    return Split(images, torch.cat([train.labels, blank]))


def _inside(paths: Sequence[Path], folder: str, split_folders: Sequence[Path]) -> Iterator[str]:
    """How many of the pictures are files of a split, in words, for each split that has some."""
    files = [path.resolve() for path in paths]
    for split in split_folders:
        again = sum(file.is_relative_to(split.resolve()) for file in files)
        if again:
            yield f"{again} of the {len(paths)} pictures in {folder} are in {split}, too (the same files)"


def _repeated(unlabelled: Unlabelled, split: Split) -> int | None:
    """How many of the pictures are images of a split; None where either would have to be decoded again."""
    both = (unlabelled.images, split.images)
    if not all(isinstance(images, Tensor | CachedPictures) for images in both):
        return None
    ours, theirs = (
        [hashlib.blake2b(images[number].numpy().tobytes(), digest_size=16).digest() for number in range(len(images))]
        for images in both
    )
    known = set(theirs)
    return sum(one in known for one in ours)
