"""The one reader of picture files, for training and for predict: any depth becomes 8 bits, as viewers show it."""

import stat
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kdx.errors import KdxError

READER = 2  # raise it when the same file comes to mean other pixels: it is part of the data's digest
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of more than 8 bits; it would clip them
FULL_16 = 65535
BITS, PHOTOMETRIC, SAMPLE_MAX, S_SAMPLE_MAX, SAMPLE_FORMAT = 258, 262, 281, 341, 339  # TIFF tags


def read_picture(path: Path, channels: int = 3, white: float | None = None) -> Image.Image:
    """The first frame of a picture file as 8-bit grey (1 channel) or RGB (3), turned as its EXIF orientation says.

    Transparent parts show white. Grey levels of more than 8 bits are scaled so that `white` becomes 255; where it is
    None, white is what the file states, else the largest value of 16 bits, else 1.0 for floats.
    Raises `KdxError` with the file for whatever is no regular file, not readable, or of unknown range.
    """
    check_regular(path)
    try:
        with warnings.catch_warnings(), open(path, "rb") as file:  # by its name, Pillow maps turned TIFF files wrongly
            warnings.simplefilter("ignore")  # Pillow's on odd metadata, a line a picture
            with Image.open(file) as image:
                return _eight_bits(image, white).convert("L" if channels == 1 else "RGB")
    except MemoryError:
        raise
    except KdxError as error:
        raise KdxError(f"{path}: {error}") from error
    except UnidentifiedImageError as error:
        raise KdxError(f"{path}: not a readable image (of no format that Pillow knows)") from error
    except Exception as error:  # damaged files raise many classes, each format its own
        reason = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
        raise KdxError(f"{path}: not a readable image ({(reason or type(error).__name__)[:200]})") from error


def fitted(picture: Image.Image, height: int, width: int) -> Tensor:
    """A picture as uint8 (C, H, W), resized and centre-cropped where it has another size."""
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture).reshape(height, width, -1)).permute(2, 0, 1)


def check_regular(path: Path) -> None:
    """`KdxError` unless the path leads to a regular file: to open a FIFO or a device may wait for ever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise KdxError(f"{path}: {reason}") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        raise KdxError(f"{path}: {kinds.get(stat.S_IFMT(mode), 'a device')}, a regular file is needed")


def _eight_bits(image: Image.Image, white: float | None) -> Image.Image:
    layout = str(getattr(image, "tile", ""))  # e.g. `RGB;16B`; known only until the pixels are read
    image.load()
    upright = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        return _scaled(upright, image, white)
    if white not in (None, FULL_16) and ";16" in layout:
        raise KdxError(f"dataset.white={white:g}: of 16-bit colour only the upper 8 bits are read; leave it out")
    return _on_white(upright)


def _on_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _scaled(image: Image.Image, opened: Image.Image, white: float | None) -> Image.Image:
    """A deep grey picture in 8 bits; `opened` is the image that still knows its file's format."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise KdxError("holds nan or inf")
    if values.min() < 0:
        raise KdxError(f"holds values below 0 ({values.min():g}): convert it to 8 or 16 bits without sign")
    white = white or _stated_white(opened) or _usual_white(opened, values)
    grey = np.rint(values.clip(max=white) * (255 / white)).astype(np.uint8)
    if _tag(opened, PHOTOMETRIC) == 0:  # white is zero
        grey = 255 - grey
    return Image.fromarray(grey)


def _stated_white(image: Image.Image) -> float | None:
    """The white that a TIFF states: its bits, or a tag of the largest value where that is a depth, no statistic."""
    bits, signed = _tag(image, BITS), _tag(image, SAMPLE_FORMAT) == 2
    if isinstance(bits, int) and 8 < bits < 16:
        return 2**bits - 1
    for tag in (S_SAMPLE_MAX, SAMPLE_MAX):
        stated = _tag(image, tag)
        if stated == 1 and image.mode == "F":
            return 1.0
        if isinstance(stated, int | float) and stated in {2**depth - 1 for depth in range(8, 33)}:
            return float(stated)
    return 2**15 - 1 if signed and bits == 16 else None


def _usual_white(image: Image.Image, values: np.ndarray) -> float:
    """White where neither the user nor the file says it."""
    largest = float(values.max())
    if image.mode == "F" and largest <= 1:
        return 1.0
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):  # Pillow scales deep PGM files to 16 bits
        return FULL_16
    kind = "float" if image.mode == "F" else "32-bit"
    raise KdxError(f"{kind} values up to {largest:g} whose white the file does not state: set dataset.white")


def _tag(image: Image.Image, number: int) -> int | float | None:
    tags = getattr(image, "tag_v2", None)
    value = None if tags is None else tags.get(number)
    if isinstance(value, tuple):
        value = value[0] if value else None
    return float(value) if value is not None and not isinstance(value, int) else value
