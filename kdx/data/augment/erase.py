"""A rectangle of each image takes one colour."""

import torch
from torch import Tensor

from kdx.augmentations import Erase
from kdx.data.augment.boxes import draw_boxes, within
from kdx.data.augment.frame import Frame, Rows


def draw_erased(count: int, frame: Frame, options: Erase, draw: torch.Generator) -> Tensor:
    """Boxes (count, 4): top, left, height, width; without height where nothing is erased."""
    boxes, fits = draw_boxes(count, frame.size, options.scale, options.ratio, draw)
    chosen = fits & (torch.rand(count, dtype=torch.float64, generator=draw) < options.chance)
    return boxes * chosen.unsqueeze(1)


def erase(images: Tensor, boxes: Rows, options: Erase, frame: Frame) -> Tensor:
    """The frame's colour in the boxes (B, 4)."""
    colour = frame.colour if images.is_floating_point() else frame.colour.round()
    return torch.where(within(boxes.there, frame.size), colour.to(images.dtype), images)
