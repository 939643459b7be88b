"""How a training image looks in an epoch: numbers drawn for every image at once, then applied batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdx.augmentations import MIXING, SINCE_FIRST, Augmentation, Crop, Erase, Flip, Jitter, ResizedCrop, Rotate, Trivial
from kdx.data.augment.colour import jitter
from kdx.data.augment.erase import draw_erased, erase
from kdx.data.augment.frame import Frame, Rows
from kdx.data.augment.geometry import crop, draw_rotation, flip, rotate
from kdx.data.augment.resized_crop import draw_resized_crop, resized_crop
from kdx.data.augment.trivial import draw_trivial, trivial
from kdx.reproducibility import generator

Draw = Callable[[int, Frame, Any, torch.Generator], Tensor]


def _uniform(columns: int) -> Draw:
    """Draws numbers (count, columns) in 0-1."""
    return lambda count, frame, options, draw: torch.rand(count, columns, generator=draw)


class Step(NamedTuple):
    """One augmentation: the numbers (count, k) of images, drawn on the host; a batch to which they are applied."""

    draw: Draw
    apply: Callable[[Tensor, Rows, Any, Frame], Tensor]


STEPS: dict[type[Augmentation], Step] = {  # in this order, whatever that of the configuration
    ResizedCrop: Step(draw_resized_crop, resized_crop),
    Crop: Step(_uniform(2), crop),
    Flip: Step(_uniform(1), flip),
    Rotate: Step(draw_rotation, rotate),
    Trivial: Step(draw_trivial, trivial),
    Jitter: Step(_uniform(2), jitter),  # makes floats
    Erase: Step(draw_erased, erase),
}


class Views:
    """The augmentations of a training split, each image by itself; those that mix images are not among them.

    An image's numbers are a function of (seed, name, epoch, image): neither the batch it is in nor what ran before
    changes how it looks, nor does another augmentation, save that crop, flip and jitter draw one after the other.
    """

    def __init__(self, augment: Iterable[Augmentation], frame: Frame, seed: int, name: str) -> None:
        by_kind = {type(options): options for options in augment if not isinstance(options, MIXING)}
        self.augment = [by_kind[kind] for kind in STEPS if kind in by_kind]
        self.frame, self.seed, self.name = frame, seed, name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that `apply` gives."""
        return self.frame.seen if any(isinstance(options, ResizedCrop) for options in self.augment) else self.frame.size

    def without(self) -> "Views":
        """Those of images that stay as they are."""
        return Views((), self.frame, self.seed, self.name)

    def of_epoch(self, epoch: int, count: int, device: torch.device) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """What makes views of a batch (B, C, H, W), given the rows (of `count`) of its images, also on the host.

        The views are uint8, or float in 0-255. All numbers of the epoch's images go to the device at once.
        """
        numbers = self.draw(epoch, count)
        moved = [drawn.to(device) for drawn in numbers]

        def view(images: Tensor, there: Tensor, here: Tensor) -> Tensor:
            return self.apply(images, [Rows(t[there], h[here]) for t, h in zip(moved, numbers, strict=True)])

        return view

    def draw(self, epoch: int, count: int) -> list[Tensor]:
        """The numbers of `count` images in an epoch, a row an image, of each augmentation."""
        shared = generator(self.seed, self.name, "augment", epoch)
        numbers = []
        for options, frame in self._framed():
            since_first = isinstance(options, SINCE_FIRST)
            draw = shared if since_first else generator(self.seed, self.name, "augment", epoch, options.name)
            drawn = STEPS[type(options)].draw(count, frame, options, draw)
            numbers.append(drawn.float() if drawn.is_floating_point() else drawn)
        return numbers

    def apply(self, images: Tensor, numbers: Iterable[Rows]) -> Tensor:
        """A batch with its rows of each augmentation's numbers."""
        for (options, frame), rows in zip(self._framed(), numbers, strict=True):
            images = STEPS[type(options)].apply(images, rows, options, frame)
        return images

    def _framed(self) -> Iterator[tuple[Augmentation, Frame]]:
        frame = self.frame
        for options in self.augment:
            yield options, frame
            if isinstance(options, ResizedCrop):
                frame = replace(frame, size=frame.seen)
