"""A part of each image scaled to one size, smoothed where it shrinks: two small matrices an image."""

import torch
from torch import Tensor

from kdx.augmentations import ResizedCrop
from kdx.data.augment.boxes import centred_box, draw_boxes
from kdx.data.augment.frame import Frame, Rows


def draw_resized_crop(count: int, frame: Frame, options: ResizedCrop, draw: torch.Generator) -> Tensor:
    """Boxes (count, 4): top, left, height, width; the largest about the centre where no drawn one fits."""
    boxes, fits = draw_boxes(count, frame.size, options.scale, options.ratio, draw)
    return torch.where(fits.unsqueeze(1), boxes, torch.tensor(centred_box(frame.size, options.ratio)))


def resized_crop(images: Tensor, boxes: Rows, options: ResizedCrop, frame: Frame) -> Tensor:
    """uint8 images (B, C, H, W) cut at boxes (B, 4) and scaled to what networks see, bilinear, antialiased.

    Rows, then columns, as one matrix an image: B C h (H W + W w) multiplications, and no loop over images.
    """
    top, left, tall, broad = boxes.there.unbind(1)
    rows = scaling(top, tall, images.shape[2], frame.seen[0]).unsqueeze(1)
    columns = scaling(left, broad, images.shape[3], frame.seen[1]).unsqueeze(1)
    scaled = rows @ images.float() @ columns.transpose(2, 3)
    return scaled.round().clamp(0, 255).to(images.dtype)


def scaling(start: Tensor, length: Tensor, source: int, target: int) -> Tensor:
    """Weights (B, target, source) that make `target` pixels of `length` ones from `start` on: triangles, each row 1.

    A triangle is one pixel wide to either side, of the pixels that are made where they are fewer.
    """
    start, length = start.float().view(-1, 1, 1), length.float().view(-1, 1, 1)
    step = length / target
    made = torch.arange(target, device=start.device, dtype=torch.float32).view(1, -1, 1)
    given = torch.arange(source, device=start.device, dtype=torch.float32).view(1, 1, -1)
    distance = (given + 0.5 - start - (made + 0.5) * step).abs() / step.clamp(min=1)
    inside = (given >= start) & (given < start + length)
    weights = (1 - distance).clamp(min=0) * inside
    return weights / weights.sum(dim=2, keepdim=True)
