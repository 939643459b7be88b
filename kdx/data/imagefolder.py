"""A user's own pictures: path/{train,val,test}/<class>/*."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_all_start_methods
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader

from kdx.data.dataset import Dataset, FileImages, Split, check_every_class
from kdx.data.sources import carve
from kdx.errors import KdxError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
VAL_SHARE = 0.1
WORKER_GONE = (ConnectionError, EOFError, FileNotFoundError)  # a batch is fetched from one that dies just then
WORKER_TIMEOUT = 600  # seconds without an image: a worker that hangs becomes an error


class DecodedFiles:
    """RGB images decoded one by one: uint8 (3, H, W), resized and centre-cropped where `size` differs."""

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], crop: bool) -> None:
        self.paths = list(paths)
        self.shape = (3, *size)
        self.crop = crop

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = _open(self.paths[index])
        height, width = self.shape[1:]
        if image.size != (width, height):
            if not self.crop:
                raise KdxError(
                    f"{self.paths[index]}: {image.size[0]}x{image.size[1]} pixels, the first image has "
                    f"{width}x{height}: set dataset.size"
                )
            image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def load_imagefolder(path: str, size: int | None, in_memory_gb: float, num_workers: int) -> Dataset:
    """A checked data set from a folder; the images are decoded into memory when they fit in `in_memory_gb`.

    `size=None` takes the size of the first image and asks the others to have it.
    Raises `KdxError` for a missing folder, an empty class or the first unreadable file.
    """
    root = Path(path)
    for needed in ("train", "test"):
        if not (root / needed).is_dir():
            raise KdxError(
                f"dataset=imagefolder: {root / needed} is missing; dataset.path={path} must hold train/<class>/*, "
                "test/<class>/* and, if you have it, val/<class>/*"
            )
    class_names = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
    if len(class_names) < 2:
        raise KdxError(
            f"dataset=imagefolder: {root / 'train'} holds {len(class_names)} class folders, at least 2 are needed"
        )
    files = {split: _list_split(root / split, class_names) for split in ("train", "test")}
    if (root / "val").is_dir():
        files["val"] = _list_split(root / "val", class_names)
    else:
        paths, labels = files["train"]
        kept, carved = carve(labels, VAL_SHARE)
        files["val"] = ([paths[i] for i in carved], labels[carved])
        files["train"] = ([paths[i] for i in kept], labels[kept])
    width, height = (size, size) if size else _open(files["train"][0][0]).size
    total = sum(len(paths) for paths, _ in files.values())
    in_memory = total * 3 * height * width <= in_memory_gb * 2**30
    splits = {}
    decode = _decode_all if in_memory else _try_all
    with worker_errors(num_workers):
        for split, (paths, labels) in files.items():
            images = DecodedFiles(paths, (height, width), crop=size is not None)
            splits[split] = Split(decode(images, num_workers), torch.from_numpy(labels))
    check_every_class("imagefolder", splits["train"].labels, "multi-class", class_names)
    digest = _digest(files, class_names, size)
    task = "binary-class" if len(class_names) == 2 else "multi-class"
    train, val, test = (splits[split] for split in ("train", "val", "test"))
    return Dataset("imagefolder", task, tuple(class_names), train, val, test, digest)


def decoded_batches(images: FileImages, order: Sequence[Sequence[int]], num_workers: int) -> Iterator[Tensor]:
    """uint8 batches (B, C, H, W) of the given indices in the given order, whatever the number of workers.

    More workers than processors only get in each other's way: the number is capped.
    """
    workers = min(num_workers, os.cpu_count() or 1)
    loader: DataLoader[Tensor] = DataLoader(
        images,  # type: ignore[arg-type]
        batch_sampler=order,  # type: ignore[arg-type]
        num_workers=workers,
        # fork: a worker of a worker cannot be spawned, and jobs of a parallel sweep are workers themselves
        multiprocessing_context="fork" if workers and "fork" in get_all_start_methods() else None,
        generator=torch.Generator().manual_seed(0),  # else every pass draws from the global generator
        worker_init_fn=_let_locks_go if workers else None,
        timeout=WORKER_TIMEOUT if workers else 0,
    )
    try:
        with worker_errors(num_workers, WORKER_GONE if workers else ()):
            try:
                yield from loader
            except WORKER_GONE:
                time.sleep(1)  # torch's signal, a moment later, says why; after this it would end something else
                raise
    except KdxError as error:  # a worker's error arrives with its traceback as text
        raise KdxError(str(error).strip().splitlines()[-1].removeprefix("kdx.errors.KdxError: ")) from error.__cause__


@contextmanager
def worker_errors(num_workers: int, gone: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Make torch's error about a decoding worker a `KdxError`; for whatever runs while there are workers.

    torch raises it from a signal handler: when a worker is killed, it comes up wherever this process is just then.
    Errors of the types `gone` mean a dead worker, too.
    """
    try:
        yield
    except gone as error:
        raise _stopped(num_workers, f"a worker is gone: {type(error).__name__}") from error
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise _stopped(num_workers, str(error).splitlines()[0]) from error


def _stopped(num_workers: int, reason: str) -> KdxError:
    return KdxError(f"num_workers={num_workers}: decoding stopped ({reason}); set num_workers=0 to see why")


def _let_locks_go(worker: int) -> None:
    """Close the lock files that a fork inherits: a worker that outlives its killed parent must not hold its locks."""
    descriptors = Path("/proc/self/fd")
    for link in list(descriptors.iterdir()) if descriptors.is_dir() else []:
        if os.path.realpath(link).endswith(".lock"):
            os.close(int(link.name))


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise KdxError(f"{path}: not a readable image ({error})") from error


def _list_split(folder: Path, class_names: list[str]) -> tuple[list[Path], np.ndarray]:
    unknown = sorted(f.name for f in folder.iterdir() if f.is_dir() and f.name not in class_names)
    if unknown:
        raise KdxError(f"{folder / unknown[0]}: this class has no folder in train")
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        found = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
        found = [file for file in found if file.suffix.lower() in SUFFIXES]
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise KdxError(f"{folder}: no image in any class folder")
    return paths, np.asarray(labels, dtype=np.int64)


def _decode_all(images: FileImages, num_workers: int) -> Tensor:
    """All images in one uint8 tensor (N, C, H, W), decoded once by the workers."""
    result = torch.empty((len(images), *images.shape), dtype=torch.uint8)
    order = [range(start, min(start + 256, len(images))) for start in range(0, len(images), 256)]
    for indices, batch in zip(order, decoded_batches(images, order, num_workers), strict=True):
        result[indices.start : indices.stop] = batch
    return result


def _try_all(images: DecodedFiles, num_workers: int) -> DecodedFiles:
    """The same images, once each was decoded: costs an epoch's decoding, and no broken file ends a long training."""
    order = [range(start, min(start + 64, len(images))) for start in range(0, len(images), 64)]
    for _ in decoded_batches(images, order, num_workers):
        pass
    return images


def _digest(files: dict[str, tuple[list[Path], np.ndarray]], class_names: list[str], size: int | None) -> str:
    """Hash of every file's bytes, in order: one read of the data, which training needs anyway."""
    digest = hashlib.sha256(repr((class_names, size)).encode())
    for split in ("train", "val", "test"):
        for path, label in zip(*files[split], strict=True):
            content = path.read_bytes()
            digest.update(f"{split}/{label}/{len(content)}:".encode())
            digest.update(content)
    return digest.hexdigest()
