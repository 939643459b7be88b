"""From uint8 images to the float batches that networks see; everything is a batched tensor operation on the device."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.augmentations import Augmentation, read_augment
from kdx.data.augment.frame import Frame
from kdx.data.augment.views import Views
from kdx.data.balance import balanced_order, balanced_size
from kdx.data.dataset import FileImages, Split
from kdx.data.decoding import decoded_batches
from kdx.data.mixing import Mixing
from kdx.data.picture_cache import CachedPictures, Joined
from kdx.errors import KdxError
from kdx.reproducibility import generator

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
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

    @property
    def plain(self) -> dict[str, Any]:
        """Its numbers as records and fingerprints hold them."""
        return {"mean": list(self.mean), "std": list(self.std), "resize": self.resize}

    def seen_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that networks see of images of a size."""
        return (self.resize, self.resize) if self.resize else size

    def on(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """`normalise` with these numbers on `device`, so that no batch waits for them to be moved there."""
        offset = 255 * torch.tensor(self.mean, device=device).view(1, -1, 1, 1)
        scale = 255 * torch.tensor(self.std, device=device).view(1, -1, 1, 1)
        return partial(normalise, offset=offset, scale=scale, resize=self.resize)


def normalise(images: Tensor, offset: Tensor, scale: Tensor, resize: int | None) -> Tensor:
    """uint8 or float images (B, C, H, W) as float32 (images - offset) / scale, scaled to `resize` pixels first."""
    images = resized(images.float(), resize)
    return (images - offset).div_(scale)  # a grey image spreads over three means by broadcasting


def resized(images: Tensor, size: int | None) -> Tensor:
    """Float images (B, C, H, W) scaled to `size` pixels, smoothed first where they shrink; None leaves them."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=max(images.shape[-2:]) > size)


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
    workers, nor the batch size, nor what ran before changes how an image looks in an epoch. Where images may come
    several times, their place in the epoch stands for the image.
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
        augment: Sequence[str | Augmentation] = (),
        shuffle: bool = False,
        balance: bool = False,
        num_workers: int = 0,
        num_classes: int = 0,
        known: Tensor | None = None,
        known_only: bool = False,
    ) -> None:
        """`balance` shows every class equally often in a shuffled epoch, rare images several times.

        `num_classes` is needed where mixed images have shares of classes as targets. `known` (N,) is False for images
        whose labels must not be used; `known_only` leaves those images out, and a balanced epoch shows each once.
        """
        self.preprocessing = preprocessing
        self.prepare = preprocessing.on(device)
        self.batch_size = batch_size
        self.device = device
        self.seed, self.name = seed, name
        self.augment = read_augment(augment)
        self.views = Views(self.augment, self._frame(split.images), seed, name)
        self.mixing = Mixing(self.augment, self.views.size, num_classes, seed, name)
        self.shuffle, self.balanced = shuffle, balance and shuffle
        self.num_workers = num_workers
        self.images = split.images
        self.on_device = isinstance(split.images, Tensor) and fits(split.images, device)
        if isinstance(split.images, Tensor) and self.on_device:
            self.images = split.images.to(device)
        self.labels = split.labels.to(device)
        self.known = None if known is None or known_only else known.to(device)
        self.used, self.once = torch.arange(len(split)), torch.arange(0)
        if known is not None and (known_only or self.balanced):
            self.used = known.nonzero().flatten()
            self.once = self.once if known_only else (~known).nonzero().flatten()  # of no class: nothing to balance
        self.count = images_an_epoch(split.labels[self.used], self.balanced) + len(self.once)
        if shuffle and len(self.used) < 2:
            raise KdxError("a training split of one image: batch normalisation needs at least two")

    def __len__(self) -> int:
        return batches_an_epoch(self.count, self.batch_size, self.shuffle)

    def unshuffled(self) -> "Batches":
        """The same images in their own order, as they are."""
        twin = copy.copy(self)
        twin.shuffle, twin.balanced, twin.augment, twin.count = False, False, (), len(self.labels)
        twin.used, twin.known = torch.arange(len(self.labels)), None
        twin.views, twin.mixing = self.views.without(), self.mixing.without()
        return twin

    @property
    def still(self) -> bool:
        """Whether an image looks the same in every epoch."""
        return not self.augment

    def epoch(self, number: int, start: int = 0, every: int = 1) -> Iterator[Batch]:
        """The batches of epoch `number`, from batch `start` on, in steps of `every`.

        Order and augmentation go to the device once an epoch; the loop itself moves nothing there.
        """
        order = self._order(number)
        rows = torch.arange(self.count) if self.balanced else order  # an image that comes twice has two views
        drawn = self.count if self.balanced else len(self.labels)  # a row of numbers an image, or a place
        view = self.views.of_epoch(number, drawn, self.device)
        mix = self.mixing.of_epoch(number, drawn, len(self), self.device)
        pieces, here, there, rows_there = (
            numbers.split(self.batch_size)[start : len(self) : every]
            for numbers in (order, rows, order.to(self.device), rows.to(self.device))
        )
        steps = range(start, len(self), every)
        batches = zip(steps, self._raw_batches(pieces, there), there, rows_there, here, strict=True)
        for step, raw, indices, row, row_here in batches:
            labels = self.labels[indices]
            known = None if self.known is None else self.known[indices]
            images, targets, known = mix(view(raw, row, row_here), labels, known, row, step)
            yield Batch(self.prepare(images), labels, indices, targets, known)

    def _order(self, epoch: int) -> Tensor:
        """The images of an epoch by number, on the host."""
        draw = generator(self.seed, self.name, "order", epoch)
        if self.balanced:
            order = self.used[balanced_order(self.labels.cpu()[self.used], draw)]
            if not len(self.once):
                return order
            order = torch.cat([order, self.once])
            return order[torch.randperm(len(order), generator=draw)]
        return self.used[torch.randperm(len(self.used), generator=draw)] if self.shuffle else self.used

    def _raw_batches(self, pieces: Sequence[Tensor], there: Sequence[Tensor]) -> Iterator[Tensor]:
        """uint8 batches on the device of the images whose numbers are `pieces` on the host, `there` on the device."""
        if isinstance(self.images, Tensor) and self.on_device:
            for indices in there:
                yield self.images[indices]
            return
        if isinstance(self.images, Tensor):
            raw: Iterable[Tensor] = (self.images[indices] for indices in pieces)
        elif isinstance(self.images, CachedPictures) or (isinstance(self.images, Joined) and self.images.gathers):
            raw = map(self.images.batch, pieces)
        else:
            raw = decoded_batches(self.images, [piece.tolist() for piece in pieces], self.num_workers)
        pinned = self.device.type == "cuda"  # else the copy waits for the step before, and the card for the next batch
        for batch in raw:
            yield (batch.pin_memory() if pinned else batch).to(self.device, non_blocking=True)

    def _frame(self, images: Tensor | FileImages) -> Frame:
        """The size of the images as they lie there and as networks see them, and their mean colour."""
        height, width = images.shape[-2:]
        mean = 255 * torch.tensor(self.preprocessing.mean, device=self.device).view(-1, 1, 1)
        channels = images.shape[-3]
        colour = mean if len(mean) == channels else mean.mean(dim=0, keepdim=True)  # grey images have three means
        return Frame((height, width), self.preprocessing.seen_size((height, width)), colour)


def images_an_epoch(labels: Tensor, balance: bool) -> int:
    """Of the images with these labels, those that an epoch shows."""
    return balanced_size(labels) if balance else len(labels)


def batches_an_epoch(images: int, batch_size: int, shuffle: bool) -> int:
    """A shuffled epoch drops a last batch of one image, which batch-norm cannot take."""
    full, rest = divmod(images, batch_size)
    return full + (rest > (1 if shuffle and batch_size > 1 else 0))


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether images may live on the device; where it is not the host, they must leave room for the networks."""
    return device.type != "cuda" or images.nbytes <= IMAGES_SHARE * torch.cuda.mem_get_info(device)[0]
