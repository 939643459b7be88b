"""Epochs that show every class equally often, for sets in which some are rare."""

import torch
from torch import Tensor


def balanced_size(labels: Tensor) -> int:
    """Images of such an epoch: as many of each class that there is, about as many as there are images in all."""
    classes = len(labels.unique())
    return len(labels) // classes * classes


def balanced_order(labels: Tensor, draw: torch.Generator) -> Tensor:
    """The images of an epoch by number: class numbers (N,) give `balanced_size` of them, shuffled.

    Of a class with too few images each comes equally often or once more, of one with too many each at most once; who
    is left out, or comes once more, is drawn anew for every epoch.
    """
    classes = labels.unique()
    quota = len(labels) // len(classes)
    chosen = []
    for label in classes:
        images = torch.nonzero(labels == label).flatten()
        shuffled = images[torch.randperm(len(images), generator=draw)]
        chosen.append(shuffled.repeat(quota // len(images) + 1)[:quota])
    order = torch.cat(chosen)
    return order[torch.randperm(len(order), generator=draw)]
