"""Two images of a batch become one, and so do their labels: mixup (1710.09412) and cutmix (1905.04899).

An image's partner is the one before it in the batch, which a shuffled epoch makes a random one; how much of it comes
in is drawn for every pair. Where both are asked for, one of the two is drawn for every batch.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdx.augmentations import MIXING, Augmentation, Cutmix, Mixup
from kdx.data.augment.boxes import within
from kdx.reproducibility import derive_seed, generator


class Mixture(NamedTuple):
    """Images (B, C, H, W), what losses compare with, shares where they were mixed, and whose label is known."""

    images: Tensor
    targets: Tensor
    known: Tensor | None


class Mixing:
    """What mixes the images of a training split; every draw is a function of (seed, name, epoch) and image or batch.

    So a resumed epoch has the same batches, and so has every process that trains on a share of each.
    """

    def __init__(
        self, augment: Iterable[Augmentation], size: tuple[int, int], num_classes: int, seed: int, name: str
    ) -> None:
        self.kinds: list[Mixup | Cutmix] = [options for options in augment if isinstance(options, MIXING)]
        self.size, self.num_classes, self.seed, self.name = size, num_classes, seed, name

    def without(self) -> "Mixing":
        """What mixes nothing."""
        return Mixing((), self.size, self.num_classes, self.seed, self.name)

    def of_epoch(self, epoch: int, count: int, batches: int, device: torch.device) -> Callable[..., Mixture]:
        """What mixes (images, labels, known, rows, step): a batch, which of `count` rows it has, and its own number.

        Without a kind it gives images, labels and known as they are.
        """
        if not self.kinds:
            return lambda images, labels, known, rows, step: Mixture(images, labels, known)
        drawn = [self._draw_one(options, epoch, count).to(device) for options in self.kinds]
        choice = torch.randint(
            len(drawn), (batches,), generator=generator(self.seed, self.name, "mixing", epoch)
        ).tolist()

        def mix(images: Tensor, labels: Tensor, known: Tensor | None, rows: Tensor, step: int) -> Mixture:
            combine = blended if isinstance(self.kinds[choice[step]], Mixup) else patched
            images, share = combine(images, drawn[choice[step]][rows])
            return Mixture(images, mixed(shares_of(labels, self.num_classes), share), _both(known))

        return mix

    def _draw_one(self, options: Mixup | Cutmix, epoch: int, count: int) -> Tensor:
        draw = np.random.default_rng(derive_seed(self.seed, self.name, "augment", epoch, options.name))
        share = draw.beta(options.alpha, options.alpha, count)
        if isinstance(options, Mixup):
            return torch.from_numpy(np.maximum(share, 1 - share)).float().unsqueeze(1)
        return torch.from_numpy(patches(share, draw.random((count, 2)), self.size))


def mixed(shares: Tensor, share: Tensor) -> Tensor:
    """Targets (B, C): `share` (B, 1) of each image's own, the rest of its partner's."""
    return share * shares + (1 - share) * shares.roll(1, 0)


def _both(known: Tensor | None) -> Tensor | None:
    """A mixed image's label may be used where both partners' may."""
    return None if known is None else known & known.roll(1)


def shares_of(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as shares: 1 of its class for class numbers (B,) as (B, C); 0 and 1 of a multi-label set as they are."""
    if labels.ndim == 1:
        return (labels.unsqueeze(1) == torch.arange(num_classes, device=labels.device)).float()
    return labels.float()


def blended(images: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Float images: `share` (B, 1) of each and the rest of its partner; the share of each that counts, (B, 1).

    At least half is the image's own, as if its partner had drawn it: the same pairs, and a label that is the main one.
    """
    part, images = share.view(-1, 1, 1, 1), images.float()
    return part * images + (1 - part) * images.roll(1, 0), share


def patched(images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Images with the boxes (B, 4) of their partners, and the share (B, 1) of each that is left."""
    height, width = images.shape[2:]
    share = 1 - (boxes[:, 2] * boxes[:, 3]).float() / (height * width)
    return torch.where(within(boxes, (height, width)), images.roll(1, 0), images), share.unsqueeze(1)


def patches(share: np.ndarray, centre: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (N, 4) int64 of top, left, height, width: 1 - share of the area, cut off at the image's edge."""
    length = (np.array(size) * np.sqrt(1 - share)[:, None]).astype(np.int64)
    middle = (centre * size).astype(np.int64)
    first, last = (middle - length // 2).clip(0, size), (middle + length // 2).clip(0, size)
    return np.concatenate([first, last - first], axis=1)
