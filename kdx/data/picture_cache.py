"""Pictures decoded once into one file of uint8 pixels, which every run maps: an epoch then costs a copy, no decoding.

The file is written in chunks whose hashes lie beside it: what a run that died left is checked and gone on with. Runs at
the same time share it: one decodes, the others wait. Reading maps pages that the system may drop, so that the memory of
a run does not grow with the set.
"""

import hashlib
import logging
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from kdx.data.dataset import FileImages
from kdx.data.waiting import only_one
from kdx.errors import KdxError
from kdx.files import free_bytes, make_folder, set_aside, write_atomic

log = logging.getLogger(__name__)

CHUNK = 256  # images
KEY = "dataset.cache_dir"
Shape = tuple[int, int, int]
Decoder = Callable[[FileImages, Sequence[Sequence[int]], int], Iterator[Tensor]]  # images, numbers of batches, workers


class CachedPictures:
    """Images `first` to `first + count` of a file of pixels: uint8 (C, H, W) each, or a batch of them at once."""

    def __init__(self, path: Path, first: int, count: int, shape: Shape) -> None:
        whole = np.memmap(path, np.uint8, "c", first * math.prod(shape), (count, *shape))  # torch warns of "r"
        self.pixels, self.shape = torch.from_numpy(whole), shape

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.pixels[index].clone()

    def batch(self, numbers: Tensor) -> Tensor:
        """The images (B, C, H, W) of these numbers."""
        return self.pixels[numbers]


class Joined:
    """The images of several parts, one after the other; all have the last one's shape."""

    def __init__(self, parts: Sequence[Tensor | FileImages]) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(map(len, self.parts)))
        channels, height, width = self.parts[-1].shape[-3:]
        self.shape = (channels, height, width)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = bisect_right(self.ends, index)
        return self.parts[place][index - self.ends[place] + len(self.parts[place])]

    @property
    def gathers(self) -> bool:
        """Whether all parts are decoded, so that `batch` gives several images at once."""
        return all(isinstance(part, Tensor | CachedPictures) for part in self.parts)

    def batch(self, numbers: Tensor) -> Tensor:
        """The images (B, C, H, W) of these numbers, of parts that are decoded."""
        images = torch.empty((len(numbers), *self.shape), dtype=torch.uint8)
        for part, end in zip(self.parts, self.ends, strict=True):
            own = (numbers >= end - len(part)) & (numbers < end)
            if isinstance(part, Tensor | CachedPictures):
                chosen = numbers[own] - (end - len(part))
                images[own] = part[chosen] if isinstance(part, Tensor) else part.batch(chosen)
        return images


def cached(
    splits: Mapping[str, FileImages], folder: Path, digest: str, decode: Decoder, num_workers: int
) -> dict[str, CachedPictures]:
    """The splits' images from the file that stands for `digest`, which is written first where it is not there.

    `KdxError` where the folder cannot be written or has no room.
    """
    images = Joined(list(splits.values()))
    path = folder / f"{digest[:32]}_{images.shape[1]}x{images.shape[2]}.u8"
    part = path.with_name(f"{path.name}.part")
    make_folder(folder, KEY)
    with only_one(path.with_name(f"{path.name}.lock"), part, "decodes", KEY):
        if not _is_whole(path, images):
            _write(path, part, images, decode, num_workers)
    found, first = {}, 0
    for split, its in splits.items():
        found[split] = CachedPictures(path, first, len(its), images.shape)
        first += len(its)
    return found


def bytes_of(images: FileImages) -> int:
    """What decoded images take."""
    return len(images) * math.prod(images.shape)


def _write(path: Path, part: Path, images: Joined, decode: Decoder, num_workers: int) -> None:
    """Decode what the part lacks, and give it its name when all is there."""
    with open(part, "a+b") as file:
        hashes = _sound_chunks(file, part, images.shape)
        file.truncate(len(hashes) * CHUNK * math.prod(images.shape))
        missing = bytes_of(images) - file.seek(0, os.SEEK_END)
        if missing > free_bytes(path.parent):
            needed = f"{missing / 1e9:.2f} GB are needed and {free_bytes(path.parent) / 1e9:.2f} GB free"
            raise KdxError(f"{KEY}={path.parent}: {needed}; choose another folder, or dataset.cache=none")
        rest = f", of which {len(hashes) * CHUNK} are there" if hashes else ""
        log.info("decoding %d pictures once%s: %.2f GB into %s", len(images), rest, missing / 1e9, path)
        starts = range(len(hashes) * CHUNK, len(images), CHUNK)
        for batch in decode(images, [range(at, min(at + CHUNK, len(images))) for at in starts], num_workers):
            pixels = batch.numpy().tobytes()
            file.write(pixels)
            file.flush()
            hashes.append(_hash(pixels))
            write_atomic(_hashes_of(part), "\n".join(hashes).encode())
        os.fsync(file.fileno())
    write_atomic(_hashes_of(path), "\n".join(hashes).encode())
    part.replace(path)
    _hashes_of(part).unlink(missing_ok=True)


def _is_whole(path: Path, images: Joined) -> bool:
    """Whether the file is there and sound; a damaged one is set aside, since other runs may have it mapped."""
    if not path.exists():
        return False
    with open(path, "rb") as file:
        sound = _sound_chunks(file, path, images.shape)
        if len(sound) * CHUNK >= len(images) and file.seek(0, os.SEEK_END) == bytes_of(images):
            return True
    set_aside(path, f"{path}: damaged")
    return False


def _sound_chunks(file: BinaryIO, path: Path, shape: Shape) -> list[str]:
    """The hashes of the leading chunks of an open file that are as they were written; reads them all."""
    beside, sound = _hashes_of(path), []
    file.seek(0)
    for line in beside.read_text(errors="replace").split() if beside.is_file() else ():
        if _hash(file.read(CHUNK * math.prod(shape))) != line:
            break
        sound.append(line)
    return sound


def _hashes_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.blake2b")


def _hash(pixels: bytes) -> str:
    return hashlib.blake2b(pixels, digest_size=32).hexdigest()
