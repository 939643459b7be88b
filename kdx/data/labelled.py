"""Which training images' labels may be used where that is a part of them."""

import torch
from torch import Tensor

from kdx.errors import KdxError
from kdx.reproducibility import generator
from kdx.tasks import MULTI_LABEL


def labelled_images(labels: Tensor, wanted: float, task: str, seed: int) -> Tensor | None:
    """True for the images (N,) whose labels may be used: a share (at most 1) or number `wanted` of them; None for all.

    Each class keeps its part, and at least one image. A function of the seed alone, so that all stages of a run
    know the same labels, and a larger `wanted` only adds to a smaller one's. Raises `KdxError` where it is less than
    the number of classes, or more than there are.
    """
    count = len(labels)
    number = round(wanted * count) if wanted <= 1 else int(wanted)
    if number > count:
        raise KdxError(f"labelled={number}: the training split has {count} images")
    if number == count:
        return None
    classes = 2 if task == MULTI_LABEL else int(labels.max()) + 1
    if number < classes:
        raise KdxError(f"labelled={wanted:g}: {number} of {count} images for {classes} classes; a larger one is needed")
    drawn = torch.randperm(count, generator=generator(seed, "", "labelled", 0))
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[drawn[_in_turn(labels[drawn], task)][:number]] = True
    return chosen


def _in_turn(labels: Tensor, task: str) -> Tensor:
    """An order of images in which every class has its share of each beginning: one of each comes first."""
    place = torch.zeros(len(labels), dtype=torch.float64)
    if task == MULTI_LABEL:  # an image has several: as they were drawn
        return torch.arange(len(labels))
    for number in labels.unique().tolist():
        of_class = (labels == number).nonzero().flatten()
        place[of_class] = torch.arange(len(of_class), dtype=torch.float64) / len(of_class)
    return place.argsort(stable=True)
