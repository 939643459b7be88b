"""From uint8 images to the float batches that networks see; everything is a batched tensor operation on the device."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.data import FileImages, Split
from kdx.errors import KdxError
from kdx.imagefolder import decoded_batches
from kdx.reproducibility import generator

AUGMENTATIONS = ("crop", "flip", "jitter", "none")
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
JITTER = 0.2  # brightness and contrast change by at most this share


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every image, also at test time. mean and std are of pixels scaled to 0-1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None

    @property
    def channels(self) -> int:
        return len(self.mean)

    def apply(self, images: Tensor) -> Tensor:
        """uint8 or float images (B, C, H, W) of 0-255 as normalised float32 (B, channels, resize, resize)."""
        images = images.float()
        if self.resize is not None and images.shape[-2:] != (self.resize, self.resize):
            shrinks = images.shape[-1] > self.resize
            images = F.interpolate(images, (self.resize, self.resize), mode="bilinear", antialias=shrinks)
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return (images - 255 * mean) / (255 * std)  # a grey image spreads over three means by broadcasting


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
        self.batch_size = batch_size
        self.device = device
        self.seed, self.name = seed, name
        self.augment = tuple(a for a in augment if a != "none")
        self.shuffle = shuffle
        self.num_workers = num_workers
        self.images = split.images.to(device) if isinstance(split.images, Tensor) else split.images
        self.labels = split.labels.to(device)
        if shuffle and len(split) < 2:
            raise KdxError("a training split of one image: batch normalisation needs at least two")

    def __len__(self) -> int:
        """Batches an epoch. A shuffled epoch drops a last batch of one image, which batch-norm cannot take."""
        full, rest = divmod(len(self.labels), self.batch_size)
        return full + (rest > (1 if self.shuffle and self.batch_size > 1 else 0))

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised float32 images (B, C, H, W) and labels of epoch `number`, from batch `start` on."""
        count = len(self.labels)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=generator(self.seed, self.name, "order", number))
        views = self._draw_views(number)
        pieces = list(order.split(self.batch_size))[start : len(self)]
        for indices, raw in zip(pieces, self._raw_batches(pieces), strict=True):
            on_device = indices.to(self.device, non_blocking=True)
            images = augment(raw, {name: view[indices].to(self.device) for name, view in views.items()})
            yield self.preprocessing.apply(images), self.labels[on_device]

    def _raw_batches(self, pieces: list[Tensor]) -> Iterator[Tensor]:
        if isinstance(self.images, Tensor):
            for indices in pieces:
                yield self.images[indices.to(self.device, non_blocking=True)]
        else:
            for batch in decoded_batches(self.images, [p.tolist() for p in pieces], self.num_workers):
                yield batch.to(self.device, non_blocking=True)

    def _draw_views(self, number: int) -> dict[str, Tensor]:
        """The random numbers of a whole epoch, one row an image: a single small draw, no generator in the loop."""
        count = len(self.labels)
        draw = generator(self.seed, self.name, "augment", number)
        views = {}
        for name in sorted(self.augment):
            width = {"crop": 2, "flip": 1, "jitter": 2}[name]
            views[name] = torch.rand(count, width, generator=draw)
        return views


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
