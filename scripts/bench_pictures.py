"""Pictures of 500x375 at 224 px: decoded every epoch, by torchvision's ImageFolder too, or once into a mapped file."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from measure import PIXELS, Row
from PIL import Image
from torch.utils.data import DataLoader

PART = "pipelines, JPEG files of 500x375 at 224 px, 2 workers"
COUNTS = (5_000, 20_000)  # by how the peak of memory grows between them
DISTINCT = 16  # the others are hard links to them: decoding costs the same, the disk is spared
SIZE, BATCH = 224, 64


def picture_rows(in_own_process: Callable[..., list[float]]) -> Iterator[Row]:
    """Images/s of an epoch, once each; ratio: times as fast as ImageFolder. Takes 3 GB of the temporary folder."""
    base = None
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as folder:
            make_pictures(Path(folder), count)
            if base is None:
                (seconds,) = in_own_process(torchvision_epoch, folder)
                base = count / seconds
                yield Row(PART, f"ImageFolder, DataLoader, {count:,} images", base, "images/s", 1.0)
            decoding, epoch, peak = in_own_process(cached_epoch, folder)
            for name, time_taken in (("decoded once into the file", decoding), ("an epoch from the file", epoch)):
                rate = count / time_taken
                yield Row(PART, f"kdx: {name}, {count:,} images", rate, "images/s", rate / base)
            yield Row(PART, f"kdx: memory that this epoch adds, {count:,} images", peak, "MB", None)


def make_pictures(folder: Path, count: int) -> None:
    """train, val and test of two classes; train has `count` pictures."""
    draw, distinct = torch.Generator().manual_seed(0), []
    (folder / "distinct").mkdir()
    for number in range(DISTINCT):
        coarse = torch.rand((1, 3, 12, 16), generator=draw)
        smooth = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic")[0]
        pixels = (255 * (smooth + 0.05 * torch.randn(smooth.shape, generator=draw))).clamp(0, 255).byte()
        distinct.append(folder / "distinct" / f"{number}.jpg")
        Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(distinct[-1], quality=90)
    for split, images in (("train", count), ("val", 2), ("test", 2)):
        for number in range(images):
            path = folder / "pictures" / split / "ab"[number % 2] / f"{number:06}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(distinct[number % DISTINCT], path)


def torchvision_epoch(folder: str) -> list[float]:
    """Seconds of an epoch, every picture decoded, resized, cropped and normalised for itself."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    from kdx.memory import keep_freed_memory

    keep_freed_memory()  # the same for both
    steps = [v2.Resize(SIZE), v2.CenterCrop(SIZE), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    images = ImageFolder(f"{folder}/pictures/train", v2.Compose([*steps, v2.Normalize(PIXELS.mean, PIXELS.std)]))
    return [_seconds(DataLoader(images, BATCH, shuffle=True, num_workers=2))]


def cached_epoch(folder: str) -> list[float]:
    """Seconds of decoding once, seconds of an epoch after it, and the MB that the epoch adds to the process.

    Pages of the mapped file are not counted: the system drops them when it needs their room.
    """
    from kdx.data.batches import Batches
    from kdx.data.imagefolder import load_imagefolder
    from kdx.memory import keep_freed_memory

    keep_freed_memory()  # as a run does
    start = time.perf_counter()
    data = load_imagefolder(f"{folder}/pictures", SIZE, 0.0, 2, cache="disk", cache_dir=f"{folder}/cache")
    decoding = time.perf_counter() - start
    batches = Batches(data.train, PIXELS, batch_size=BATCH, device=torch.device("cpu"), shuffle=True)
    before, peaks = _own_memory_mb(), []
    start = time.perf_counter()
    for _ in batches.epoch(1):
        peaks.append(_own_memory_mb())
    return [decoding, time.perf_counter() - start, max(peaks) - before]


def _seconds(batches: Iterable[object]) -> float:
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def _own_memory_mb() -> float:
    """Memory of this process without mapped files, of Linux."""
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024
