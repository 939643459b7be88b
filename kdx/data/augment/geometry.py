"""Where pixels go: shifts, mirrors, rotations and other affine maps of images (B, C, H, W)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kdx.augmentations import Crop, Flip, Rotate
from kdx.data.augment.frame import Frame, Rows


def crop(images: Tensor, places: Rows, options: Crop, frame: Frame) -> Tensor:
    """A frame of zeros around the images, and their own size cut out of it at places of 0-1, down and to the right."""
    height, width = images.shape[-2:]
    pad = max(1, int(height * options.padding))
    padded = F.pad(images, (pad, pad, pad, pad))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2p+1, 2p+1, H, W), a view
    offset = (places.there * (2 * pad + 1)).long().clamp(max=2 * pad)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, :, offset[:, 0], offset[:, 1]]


def flip(images: Tensor, numbers: Rows, options: Flip, frame: Frame) -> Tensor:
    """Mirrored where the number is below the chance."""
    return torch.where(numbers.there.view(-1, 1, 1, 1) < options.chance, images.flip(-1), images)


def draw_rotation(count: int, frame: Frame, options: Rotate, draw: torch.Generator) -> Tensor:
    """Maps (count, 6) of rotations by a uniform angle."""
    return rotation(options.degrees * (2 * torch.rand(count, dtype=torch.float64, generator=draw) - 1))


def rotate(images: Tensor, maps: Rows, options: Rotate, frame: Frame) -> Tensor:
    """Turned by `maps`, bilinear."""
    return affine(images, maps.there, "bilinear")


def rotation(degrees: Tensor) -> Tensor:
    """Maps (N, 6) from the place of a pixel to where it comes from, of rotations to the left."""
    angle = torch.deg2rad(degrees.double())
    nothing = torch.zeros_like(angle)
    return torch.stack([angle.cos(), -angle.sin(), nothing, angle.sin(), angle.cos(), nothing], dim=1)


def affine(images: Tensor, maps: Tensor, mode: str) -> Tensor:
    """uint8 images whose pixel at (x, y) is what was at (a x + b y + c, d x + e y + f), `maps` (B, 6) row by row.

    Places are pixels from the centre. `mode` is nearest or bilinear; from outside come zeros.
    """
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    y = torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2
    ones = torch.ones(height, width, device=images.device)
    places = torch.stack([x.expand(height, width), y.unsqueeze(1).expand(height, width), ones], dim=-1)
    half = torch.tensor([width / 2, height / 2], device=images.device)
    scaled = maps.view(-1, 2, 3).transpose(1, 2) / half
    grid = places.view(1, -1, 3) @ scaled
    moved = F.grid_sample(
        images.float(), grid.view(-1, height, width, 2), mode=mode, padding_mode="zeros", align_corners=False
    )
    return moved.round().to(images.dtype)
