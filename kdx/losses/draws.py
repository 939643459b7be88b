"""Random draws that are a function of where a training is: a resumed run draws the same, and nothing is to be saved."""

import struct

import torch
from torch import Tensor

MASK = 2**32 - 1


def draw_others(images: Tensor, count: int, size: int, progress: float, salt: Tensor) -> Tensor:
    """For each image number (B,) `count` numbers (B, count) below `size`, uniform, with repetition, never its own.

    Computed on the images' device without waiting for it. `salt` is a whole number below 2^31 that tells runs apart.
    """
    low, high = struct.unpack("<II", struct.pack("<d", progress))
    start = _mixed(_mixed(salt ^ low) ^ high)
    slots = torch.arange(count, device=images.device)
    drawn = _mixed(_mixed(start + images)[:, None] + slots)
    return (images[:, None] + 1 + drawn % (size - 1)) % size


def _mixed(numbers: Tensor) -> Tensor:
    """A hash of 32 bits: every bit of the result depends on all bits of the number."""
    for _ in range(2):
        numbers = (((numbers & MASK) ^ ((numbers & MASK) >> 16)) * 0x45D9F3B) & MASK
    return numbers ^ (numbers >> 16)
