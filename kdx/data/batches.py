"""From uint8 images to the float batches that networks see; everything is a batched tensor operation on the device."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.data.dataset import FileImages, Split
from kdx.data.imagefolder import decoded_batches
from kdx.errors import KdxError
from kdx.reproducibility import generator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
JITTER = 0.2  # brightness and contrast change by at most this share
IMAGES_SHARE = 0.25  # of the memory that is free on a card: a split that is larger stays on the host


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every image, also at test time. mean and std are of pixels scaled to 0-1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None

    @property
    def channels(self) -> int:
        return len(self.mean)

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """`normalise` with these numbers on `device`, so that no batch waits for them to be moved there."""
        offset = 255 * torch.tensor(self.mean, device=device).view(1, -1, 1, 1)
        scale = 255 * torch.tensor(self.std, device=device).view(1, -1, 1, 1)
        return partial(normalise, offset=offset, scale=scale, resize=self.resize)


def normalise(images: Tensor, offset: Tensor, scale: Tensor, resize: int | None) -> Tensor:
    """uint8 or float images (B, C, H, W) as float32 (images - offset) / scale, scaled to `resize` pixels first."""
    images = resized(images.float(), resize)
    return (images - offset) / scale  # a grey image spreads over three means by broadcasting


def resized(images: Tensor, size: int | None) -> Tensor:
    """Float images (B, C, H, W) scaled to `size` pixels, smoothed first where they shrink; None leaves them."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=images.shape[-1] > size)


def mean_and_std(images: Tensor | FileImages, sample: int = 5000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of pixels scaled to 0-1.

    Counted exactly for images in memory; of `sample` evenly spaced ones where each must be decoded.
    """
    if isinstance(images, Tensor):
        channels = images.shape[1]
        chunks: Iterable[Tensor] = images.split(4096)  # bincount makes int64: a whole set would be eight times its size
    else:
        channels = images.shape[0]
        chunks = (images[i][None] for i in range(0, len(images), math.ceil(len(images) / sample)))
    histograms = [torch.zeros(256, dtype=torch.float64) for _ in range(channels)]
    for chunk in chunks:
        for channel, histogram in enumerate(histograms):
            histogram += torch.bincount(chunk[:, channel].flatten(), minlength=256)
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for histogram in histograms:
        weights = histogram / histogram.sum()
        mean = float((weights * values).sum())
        means.append(round(mean, 6))
        stds.append(round(max(math.sqrt(float((weights * (values - mean) ** 2).sum())), 1e-3), 6))
    return tuple(means), tuple(stds)


class Batch(NamedTuple):
    """Normalised float32 images (B, C, H, W), their labels, and their numbers (B,) in the split, on the device.

    Metrics count `labels`; losses compare with `targets`: the labels, or shares float (B, C) where images were mixed.
    `known` (B,) is False where an image's label must not be used; None where all may be.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    targets: Tensor
    known: Tensor | None = None


class Batches:
    """An endless supply of epochs over one split.

    Order and augmentation of an epoch are functions of (seed, name, epoch, image) alone: neither the number of
    workers, nor the batch size, nor what ran before changes how an image looks in an epoch.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing,
        *,
        batch_size: int,
        device: torch.device,
        seed: int = 0,
        name: str = "",
        augment: Sequence[str] = (),
        shuffle: bool = False,
        num_workers: int = 0,
    ) -> None:
        self.preprocessing = preprocessing
        self.prepare = preprocessing.on(device)
        self.batch_size = batch_size
        self.device = device
        self.seed, self.name = seed, name
        self.augment = tuple(augment)
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.images = split.images
        self.on_device = isinstance(split.images, Tensor) and fits(split.images, device)
        if isinstance(split.images, Tensor) and self.on_device:
            self.images = split.images.to(device)
        self.labels = split.labels.to(device)
        if shuffle and len(split) < 2:
            raise KdxError("a training split of one image: batch normalisation needs at least two")

    def __len__(self) -> int:
        """Batches an epoch. A shuffled epoch drops a last batch of one image, which batch-norm cannot take."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > (1 if self.shuffle and self.batch_size > 1 else 0))

    def unshuffled(self) -> "Batches":
        """The same images in their own order, as they are."""
        twin = copy.copy(self)
        twin.shuffle, twin.augment = False, ()
        return twin

    @property
    def still(self) -> bool:
        """Whether an image looks the same in every epoch."""
        return not self.augment

    def epoch(self, number: int, start: int = 0) -> Iterator[Batch]:
        """The batches of epoch `number`, from batch `start` on.

        Order and augmentation go to the device once an epoch; the loop itself moves nothing there.
        """
        count = len(self.labels)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=generator(self.seed, self.name, "order", number))
        views = {name: view.to(self.device) for name, view in self._draw_views(number).items()}
        pieces = order.split(self.batch_size)[start : len(self)]
        there = order.to(self.device).split(self.batch_size)[start : len(self)]
        for indices, raw in zip(there, self._raw_batches(pieces, there), strict=True):
            images = augment(raw, {name: view[indices] for name, view in views.items()})
            labels = self.labels[indices]
            yield Batch(self.prepare(images), labels, indices, labels)

    def _raw_batches(self, pieces: Sequence[Tensor], there: Sequence[Tensor]) -> Iterator[Tensor]:
        """uint8 batches on the device of the images whose numbers are `pieces` on the host, `there` on the device."""
        if isinstance(self.images, Tensor) and self.on_device:
            for indices in there:
                yield self.images[indices]
            return
        if isinstance(self.images, Tensor):
            raw: Iterable[Tensor] = (self.images[indices] for indices in pieces)
        else:
            raw = decoded_batches(self.images, [piece.tolist() for piece in pieces], self.num_workers)
        pinned = self.device.type == "cuda"  # else the copy waits for the step before, and the card for the next batch
        for batch in raw:
            yield (batch.pin_memory() if pinned else batch).to(self.device, non_blocking=True)

    def _draw_views(self, number: int) -> dict[str, Tensor]:
        """The random numbers of a whole epoch, one row an image: a single small draw, no generator in the loop."""
        count = len(self.labels)
        draw = generator(self.seed, self.name, "augment", number)
        views = {}
        for name in sorted(self.augment):
            width = {"crop": 2, "flip": 1, "jitter": 2}[name]
            views[name] = torch.rand(count, width, generator=draw)
        return views


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether images may live on the device; where it is not the host, they must leave room for the networks."""
    return device.type != "cuda" or images.nbytes <= IMAGES_SHARE * torch.cuda.mem_get_info(device)[0]


def augment(images: Tensor, views: dict[str, Tensor]) -> Tensor:
    """Apply each view's numbers (B, k) in 0-1 to images (B, C, H, W): crop, flip, then jitter (makes floats)."""
    if "crop" in views:
        images = _shifted(images, views["crop"])
    if "flip" in views:
        images = torch.where(views["flip"].view(-1, 1, 1, 1) < 0.5, images.flip(-1), images)
    if "jitter" in views:
        change = 1 + JITTER * (2 * views["jitter"] - 1)
        brightness, contrast = change[:, 0].view(-1, 1, 1, 1), change[:, 1].view(-1, 1, 1, 1)
        images = images.float() * brightness
        centre = images.mean(dim=(1, 2, 3), keepdim=True)
        images = ((images - centre) * contrast + centre).clamp(0, 255)
    return images


def _shifted(images: Tensor, view: Tensor) -> Tensor:
    """Zero-pad by an eighth of the size (4 px at 32) and cut the original size out at a random place."""
    height, width = images.shape[-2:]
    pad = max(1, height // 8)
    padded = F.pad(images, (pad, pad, pad, pad))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    offset = (view * (2 * pad + 1)).long().clamp(max=2 * pad)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, offset[:, 0], offset[:, 1]]
