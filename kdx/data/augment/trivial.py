"""TrivialAugmentWide (2103.10158): one operation an image at one strength, all images of an operation at once.

Each operation gives what torchvision's gives on uint8, bit for bit, on images in the place of one.
"""

import torch
from torch import Tensor

from kdx.augmentations import Trivial
from kdx.data.augment import colour
from kdx.data.augment.frame import Frame, Rows
from kdx.data.augment.geometry import affine, rotation

OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "colour", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
)
STRENGTHS = 31
MOST = {"shear": 0.99, "rotate": 135.0, "blend": 0.99, "bits": 6}  # as published; translate is an option
AFFINE = slice(1, 6)  # of OPERATIONS


def draw_trivial(count: int, frame: Frame, options: Trivial, draw: torch.Generator) -> Tensor:
    """Numbers (count, 7): the operation, and up to six that it needs. Drawn are operation, strength and sign."""
    operation = torch.randint(len(OPERATIONS), (count,), generator=draw)
    strength = torch.randint(STRENGTHS, (count,), generator=draw)
    sign = 1 - 2 * torch.randint(2, (count,), generator=draw)
    return numbers_of(operation, strength, sign, min(options.translate, *frame.size), frame.size)


def numbers_of(operation: Tensor, strength: Tensor, sign: Tensor, translate: float, size: tuple[int, int]) -> Tensor:
    """What `trivial` takes, float64 (N, 7), of operations (N,), strengths (N,) from 0 to 30, signs (N,) of 1 and -1."""
    numbers = torch.zeros(len(operation), 7, dtype=torch.float64)
    numbers[:, 0] = operation
    numbers[:, 1:] = _maps(operation, strength, sign, translate, size)
    blend = 1 + sign * _up_to(MOST["blend"], strength)
    bits = (strength.double() * MOST["bits"] / (STRENGTHS - 1)).round()
    for name, values in (
        *((name, (blend, 1 - blend)) for name in ("brightness", "colour", "contrast", "sharpness")),
        ("posterize", (256 - 2**bits,)),  # the bits that stay, as a mask
        ("solarize", (_up_to(255.0, STRENGTHS - 1 - strength),)),
    ):
        chosen = operation == OPERATIONS.index(name)
        for column, value in enumerate(values, 1):
            numbers[chosen, column] = value[chosen]
    return numbers


def trivial(images: Tensor, numbers: Rows, options: Trivial, frame: Frame) -> Tensor:
    """uint8 images after the operation of each; the groups are formed on the host, one small copy a batch."""
    operations = numbers.here[:, 0].long()
    counts = torch.bincount(operations, minlength=len(OPERATIONS))
    order = operations.argsort(stable=True).to(images.device, non_blocking=True)
    result = images.clone()
    groups = [int(counts[0]), int(counts[AFFINE].sum()), *counts[AFFINE.stop :].tolist()]
    names = ("identity", "affine", *OPERATIONS[AFFINE.stop :])
    for name, places in zip(names, order.split(groups), strict=True):
        if name != "identity" and len(places):
            result[places] = changed(images[places], name, numbers.there[places, 1:])
    return result


def changed(images: Tensor, name: str, numbers: Tensor) -> Tensor:
    """uint8 images after one operation with the numbers (B, 6) of each."""
    first, second = (numbers[:, column].view(-1, 1, 1, 1) for column in (0, 1))
    match name:
        case "affine":
            return affine(images, numbers, "nearest")
        case "brightness":
            return colour.blend(images, torch.zeros_like(images), first, second)
        case "colour":
            return images if images.shape[1] == 1 else colour.blend(images, colour.grey(images), first, second)
        case "contrast":
            mean = colour.grey(images).float().mean(dim=(1, 2, 3), keepdim=True)
            return colour.blend(images, mean, first, second)
        case "sharpness":
            return images if min(images.shape[2:]) <= 2 else colour.blend(images, colour.blurred(images), first, second)
        case "posterize":
            return images & first.to(torch.uint8)
        case "solarize":
            return torch.where(images >= first, 255 - images, images)
        case "autocontrast":
            return colour.stretched(images)
        case "equalize":
            return colour.equalized(images)
    raise ValueError(name)


def _up_to(most: float, strength: Tensor) -> Tensor:
    """Evenly spaced values from 0 to `most`, in float32 as torchvision's, then float64."""
    return torch.linspace(0, most, STRENGTHS)[strength].double()


def _maps(operation: Tensor, strength: Tensor, sign: Tensor, translate: float, size: tuple[int, int]) -> Tensor:
    """Affine maps (N, 6) of shears about the upper left corner, shifts and rotations; the identity of all others."""
    maps = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=torch.float64).repeat(len(operation), 1)
    height, width = size
    shear, turn = sign * _up_to(MOST["shear"], strength), sign * _up_to(MOST["rotate"], strength)
    shift = sign * _up_to(translate, strength).trunc()
    for name, columns in (
        ("shear_x", {1: shear, 2: shear * height / 2}),
        ("shear_y", {3: shear, 5: shear * width / 2}),
        ("translate_x", {2: -shift}),
        ("translate_y", {5: -shift}),
        ("rotate", dict(enumerate(rotation(turn).unbind(1)))),
    ):
        chosen = operation == OPERATIONS.index(name)
        for column, value in columns.items():
            maps[chosen, column] = value[chosen]
    return maps
