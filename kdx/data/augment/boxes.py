"""Random rectangles in an image: parts of a certain area and shape."""

import math

import torch
from torch import Tensor

TRIES = 10  # after which a shape that does not fit is given up


def draw_boxes(
    count: int, size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float], draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Boxes (count, 4) int64 of top, left, height, width in images of `size` (height, width), and which of them fit.

    The area is uniform in `scale` (shares of the image's), width : height log-uniform in `ratio`. Costs 320 bytes an
    image while it runs.
    """
    height, width = size
    numbers = torch.rand(count, 2 * TRIES, dtype=torch.float64, generator=draw)
    place = torch.rand(count, 2, dtype=torch.float64, generator=draw)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[:, :TRIES])
    low, high = map(math.log, ratio)
    shape = torch.exp(low + (high - low) * numbers[:, TRIES:])
    wide, high_ = (area * shape).sqrt().round().long(), (area / shape).sqrt().round().long()
    fits = (wide > 0) & (wide <= width) & (high_ > 0) & (high_ <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    tall, broad = high_.gather(1, first), wide.gather(1, first)
    room = torch.cat([height - tall, width - broad], dim=1) + 1
    corner = torch.minimum((place * room).long(), room - 1)
    return torch.cat([corner, tall, broad], dim=1), fits.any(dim=1)


def centred_box(size: tuple[int, int], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest box (top, left, height, width) about the centre whose width : height is in `ratio`."""
    height, width = size
    shape = min(max(width / height, ratio[0]), ratio[1])
    tall = height if width / height >= shape else round(width / shape)
    broad = width if width / height <= shape else round(height * shape)
    return (height - tall) // 2, (width - broad) // 2, tall, broad


def within(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels (B, 1, H, W) of images of `size` (height, width) lie in the boxes (B, 4)."""
    top, left, tall, broad = (part.view(-1, 1, 1, 1) for part in boxes.unbind(1))
    y = torch.arange(size[0], device=boxes.device).view(1, 1, -1, 1)
    x = torch.arange(size[1], device=boxes.device).view(1, 1, 1, -1)
    return (y >= top) & (y < top + tall) & (x >= left) & (x < left + broad)
