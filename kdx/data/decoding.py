"""Picture files decoded: by workers beside the training, and once for all into memory or a file of pixels."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_all_start_methods
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdx.data.dataset import FileImages
from kdx.data.picture_cache import bytes_of, cached
from kdx.data.pictures import fitted, read_picture
from kdx.errors import KdxError
from kdx.files import free_bytes

WORKER_GONE = (ConnectionError, EOFError, FileNotFoundError)  # a batch is fetched from one that dies just then
WORKER_TIMEOUT = 600  # seconds without an image: a worker that hangs becomes an error


class DecodedFiles:
    """Images decoded one by one: uint8 (C, H, W), resized and centre-cropped where `size` differs."""

    def __init__(
        self, paths: Sequence[Path], size: tuple[int, int], crop: bool, white: float | None = None, channels: int = 3
    ) -> None:
        self.paths = list(paths)
        self.shape = (channels, *size)
        self.crop = crop
        self.white = white

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        channels, height, width = self.shape
        image = read_picture(self.paths[index], channels, self.white)
        if image.size != (width, height) and not self.crop:
            raise KdxError(
                f"{self.paths[index]}: {image.size[0]}x{image.size[1]} pixels, the first image has "
                f"{width}x{height}: set dataset.size"
            )
        return fitted(image, height, width)


def kept(
    pictures: Mapping[str, DecodedFiles],
    digest: str,
    cache: str,
    in_memory_gb: float,
    cache_dir: str | None,
    num_workers: int,
) -> Mapping[str, Tensor | FileImages]:
    """Pictures where `cache` wants them kept, each decoded at least once: `KdxError` for the first unreadable one."""
    where = _place(cache, sum(map(bytes_of, pictures.values())), in_memory_gb, cache_dir)
    with worker_errors(num_workers):
        if where == "disk":
            return cached(pictures, Path(cache_dir or "."), digest, decoded_batches, num_workers)
        decode = _decode_all if where == "memory" else _try_all
        return {split: decode(images, num_workers) for split, images in pictures.items()}


def _place(cache: str, size: int, in_memory_gb: float, cache_dir: str | None) -> str:
    """Where decoded images of so many bytes are kept: memory, disk or none."""
    if cache == "disk" and cache_dir is None:
        raise KdxError("dataset.cache=disk: dataset.cache_dir=null: a folder is needed")
    if cache != "auto":
        return cache
    if size <= in_memory_gb * 2**30:
        return "memory"
    return "disk" if cache_dir is not None and 2 * size <= free_bytes(Path(cache_dir)) else "none"


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
