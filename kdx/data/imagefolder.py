"""A user's own pictures: path/{train,val,test}/<class>/*."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from kdx.data.dataset import SPLITS, Dataset, Split
from kdx.data.decoding import DecodedFiles, kept
from kdx.data.folders import Listing, find_classes, find_splits, folders_beside, list_split, listing_notes, suffixes
from kdx.data.pictures import READER, check_regular, read_picture
from kdx.data.sources import carve
from kdx.errors import KdxError

Files = tuple[list[Path], np.ndarray]  # pictures and their labels
VAL_SHARE = 0.1


def load_imagefolder(
    path: str,
    size: int | None,
    in_memory_gb: float,
    num_workers: int,
    white: float | None = None,
    cache: str = "auto",
    cache_dir: str | None = None,
) -> Dataset:
    """A checked data set from a folder, whose images are decoded once into `memory` or a file on `disk`, or by `none`.

    `auto` is memory where they fit in `in_memory_gb`, else a file in `cache_dir`, if there is one, that leaves as much
    room there as it takes.
    `size=None` takes the size of the first image and asks the others to have it. `white` is the grey level that
    becomes 255 in pictures of more than 8 bits (None: what the file states, see `read_picture`).
    Raises `KdxError` for a missing folder, an empty class or the first unreadable file.
    """
    white = None if white is None else float(white)
    class_names, files, listings = list_files(path)
    width, height = (size, size) if size else read_picture(files["train"][0][0], white=white).size
    bytes_digest, repeated = hash_files(files, class_names, size)
    digest = hashlib.sha256(repr((READER, white, bytes_digest)).encode()).hexdigest()
    pictures: dict[str, DecodedFiles] = {
        split: DecodedFiles(paths, (height, width), size is not None, white) for split, (paths, _) in files.items()
    }
    found = kept(pictures, digest, cache, in_memory_gb, cache_dir, num_workers)
    train, val, test = (Split(found[split], torch.from_numpy(labels)) for split, (_, labels) in files.items())
    return Dataset(
        "imagefolder",
        "binary-class" if len(class_names) == 2 else "multi-class",
        tuple(class_names),
        train,
        val,
        test,
        digest=digest,
        bytes_digest=bytes_digest,
        white=white,
        notes=(*listing_notes(listings, Path(path)), *repeated),
        split_folders=tuple(find_splits(path).values()),
        beside=folders_beside(path),
    )


def list_files(path: str) -> tuple[list[str], dict[str, Files], dict[str, Listing]]:
    """The classes of a folder, the pictures and labels of each split, and what was found where there is a folder.

    Where val has none, a tenth of train is carved off. Nothing is decoded.
    """
    folders = find_splits(path)
    class_names = find_classes(folders["train"])
    listings = {split: list_split(folder, class_names) for split, folder in folders.items()}
    _check_every_class(listings["train"], class_names, folders["train"])
    files = {split: (listing.paths, listing.classes) for split, listing in listings.items()}
    if "val" not in files:
        files |= _carve_val(*files["train"], class_names)
    return class_names, {split: files[split] for split in SPLITS}, listings


def _check_every_class(train: Listing, class_names: Sequence[str], folder: Path) -> None:
    """A class without a training image cannot be learned."""
    empty = [name for label, name in enumerate(class_names) if label not in set(train.labels)]
    if empty:
        hint = f" (not read in the class folders: {suffixes(train.unread)})" if train.unread else ""
        raise KdxError(f"imagefolder/train: no image of class {', '.join(empty)} in {folder}{hint}")


def _carve_val(paths: list[Path], labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Files]:
    """train and val from the training pictures: a tenth, but an image a class at least where there are enough."""
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() < 2:
        rare = class_names[int(counts.argmin())]
        raise KdxError(
            f"dataset=imagefolder: train holds 1 image of class {rare}: there is no val folder, and to carve val off "
            "train at least 2 of each class are needed"
        )
    kept, carved = carve(labels, max(math.ceil(VAL_SHARE * len(labels)), len(class_names)))
    return {
        "train": ([paths[i] for i in kept], labels[kept]),
        "val": ([paths[i] for i in carved], labels[carved]),
    }


def _bytes_of(path: Path) -> bytes:
    check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise KdxError(f"{path}: not a readable image ({error.strerror or error})") from error


def hash_files(files: dict[str, Files], class_names: list[str], size: int | None) -> tuple[str, list[str]]:
    """Hash of every file's bytes, in order, and which splits share pictures, in words.

    One read of the data, which training needs anyway.
    """
    digest = hashlib.sha256(repr((class_names, size)).encode())
    seen: dict[bytes, str] = {}
    shared: dict[tuple[str, str], list[Path]] = {}
    for split, (paths, labels) in files.items():
        for path, label in zip(paths, labels, strict=True):
            content = _bytes_of(path)
            digest.update(f"{split}/{label}/{len(content)}:".encode())
            digest.update(content)
            first = seen.setdefault(hashlib.blake2b(content, digest_size=16).digest(), split)
            if first != split:
                shared.setdefault((first, split), []).append(path)
    told = [
        f"{len(found)} images of {split} are in {first}, too (the same bytes; the first is {found[0]})"
        for (first, split), found in shared.items()
    ]
    return digest.hexdigest(), told
