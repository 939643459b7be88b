"""What every augmentation is told beside its options."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Frame:
    """Height and width of the images that come (`size`) and of those that networks see (`seen`), and a colour.

    `colour` (C, 1, 1), or (1, 1, 1), in 0-255 on the device is the data's mean, which networks see as 0.
    """

    size: tuple[int, int]
    seen: tuple[int, int]
    colour: Tensor


class Rows(NamedTuple):
    """The numbers of a batch, a row an image (B, k): on the device, and on the host, where a look costs no wait."""

    there: Tensor
    here: Tensor
