"""Every kind of picture file becomes the 8 bits that a viewer shows, or one line with the file."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdx.data.pictures import read_picture
from kdx.errors import KdxError

LEVELS = (np.arange(48).reshape(6, 8) * 1000).astype(np.uint16)
FULL = np.rint(LEVELS / 65535 * 255).astype(np.uint8)
TWELVE = np.rint((LEVELS // 16).astype(float) / 4095 * 255).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
RGB = Image.fromarray(COLOUR)


def png(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    """A PNG file made by hand: Pillow cannot write 16-bit colour, nor a header that lies."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def deep_colour(samples: int, kind: int) -> bytes:
    values = np.repeat(LEVELS[:, :, None], samples, axis=2).astype(">u2")
    if kind in (4, 6):
        values[:, :, -1] = 65535
    return png(8, 6, 16, kind, b"".join(b"\0" + row.tobytes() for row in values))


def saved(image: Image.Image | np.ndarray, **options: object) -> Callable[[Path], object]:
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    return lambda path: picture.save(path, **options)


def pgm(levels: np.ndarray, white: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(b"P5 8 6 %d\n" % white + levels.astype(">u2").tobytes())


DEEP = {
    "16.png": (saved(LEVELS), None, FULL),
    "16.tif": (saved(LEVELS), None, FULL),
    "16_lzw.tif": (saved(LEVELS, compression="tiff_lzw"), None, FULL),
    "16_big_endian.tif": (saved(Image.frombytes("I;16B", (8, 6), LEVELS.astype(">u2").tobytes())), None, FULL),
    "16_white_is_zero.tif": (saved(LEVELS, tiffinfo={262: 0}), None, 255 - FULL),
    "16.pgm": (pgm(LEVELS, 65535), None, FULL),
    "16_colour.png": (lambda path: path.write_bytes(deep_colour(3, 2)), None, FULL),
    "16_colour_alpha.png": (lambda path: path.write_bytes(deep_colour(4, 6)), None, FULL),
    "16_grey_alpha.png": (lambda path: path.write_bytes(deep_colour(2, 4)), None, FULL),
    "12.pgm": (pgm(LEVELS // 16, 4095), None, TWELVE),
    "12_stated.tif": (saved(LEVELS // 16, tiffinfo={281: 4095}), None, TWELVE),
    "12_told.png": (saved(LEVELS // 16), 4095, TWELVE),
    "a_statistic_is_no_depth.tif": (saved(LEVELS // 16, tiffinfo={281: 2937}), None, np.rint(FULL / 16)),
    "float.tif": (saved((LEVELS / 65535).astype(np.float32)), None, FULL),
    "float_told.tif": (saved((LEVELS // 16).astype(np.float32)), 4095, TWELVE),
    "float.pfm": (lambda path: path.write_bytes(b"Pf\n8 6\n-1.0\n" + (LEVELS[::-1] / 65535).astype("<f4").tobytes()), None, FULL),
    "int.tif": (saved(LEVELS.astype(np.int32)), 65535, FULL),
    "above_white.png": (saved(LEVELS), 20000, np.rint(LEVELS.astype(float).clip(max=20000) / 20000 * 255)),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
@pytest.mark.parametrize("channels", [1, 3])
def test_deep_pictures_are_scaled_not_clipped(name: str, channels: int, tmp_path: Path) -> None:
    write, white, expected = DEEP[name]
    write(tmp_path / name)
    found = np.array(read_picture(tmp_path / name, channels, white)).astype(int)
    assert found.shape == ((6, 8) if channels == 1 else (6, 8, 3))
    difference = np.abs(found.reshape(6, 8, -1) - np.asarray(expected, dtype=int)[:, :, None])
    assert difference.max() <= 1  # of 16-bit colour the upper byte is read


UNKNOWN = {
    "float values up to 255 whose white": saved((FULL / FULL.max() * 255).astype(np.float32)),
    "32-bit values up to 47000 whose white": saved(LEVELS.astype(np.int32)),
    "holds values below 0 [(]-5[)]": saved(LEVELS.astype(np.int32) - 5),
    "holds nan or inf": saved((LEVELS * np.nan).astype(np.float32)),
}


@pytest.mark.parametrize("message", UNKNOWN)
def test_range_that_nobody_states_is_one_line(message: str, tmp_path: Path) -> None:
    UNKNOWN[message](tmp_path / "deep.tif")
    with pytest.raises(KdxError, match=f"deep.tif: {message}"):
        read_picture(tmp_path / "deep.tif")


def test_white_cannot_be_told_of_deep_colour(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(deep_colour(3, 2))
    with pytest.raises(KdxError, match="a.png: dataset.white=4095: of 16-bit colour only the upper 8 bits"):
        read_picture(tmp_path / "a.png", white=4095)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_colours_are_those_of_the_file(mode: str, tmp_path: Path) -> None:
    picture = RGB.convert(mode)
    picture.save(tmp_path / "a.tif")
    difference = np.array(read_picture(tmp_path / "a.tif")).astype(int) - np.array(picture.convert("RGB"))
    assert np.abs(difference).max() <= 8  # CMYK and YCbCr round


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.gif", "a.tif", "palette.png", "grey.png"])
def test_transparent_parts_are_white(name: str, tmp_path: Path) -> None:
    picture = RGB.convert("RGBA")
    picture.paste((9, 9, 9, 0), (0, 0, 4, 6))
    if name == "palette.png":
        image = Image.new("P", (8, 6), 1)
        image.putpalette([9, 9, 9, 40, 50, 60])
        image.paste(0, (0, 0, 4, 6))
        image.save(tmp_path / name, transparency=0)
    else:
        (picture.convert("LA") if name == "grey.png" else picture).save(tmp_path / name)
    pixels = np.array(read_picture(tmp_path / name))
    assert (pixels[:, :4] == 255).all() and (pixels[:, 4:] < 255).any()


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(name: str, orientation: int, tmp_path: Path) -> None:
    """The upper left quarter of the scene is red, wherever the camera put it in the file."""
    scene = Image.new("RGB", (32, 16), "blue")
    scene.paste("red", (0, 0, 16, 8))
    camera = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transposition that the viewer undoes
    lying = scene if orientation == 1 else scene.transpose(Image.Transpose(camera[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    lying.save(tmp_path / name, exif=exif)
    picture = read_picture(tmp_path / name)
    assert picture.size == (32, 16)
    pixels = np.array(picture).astype(int)
    assert pixels[2, 4, 0] > 200 > pixels[12, 4, 0] and pixels[2, 28, 2] > 200 and pixels[12, 28, 2] > 200


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "grey.tif"])
def test_grey_pictures_stand_upright_too(name: str, tmp_path: Path) -> None:
    """Pillow, given a file's name, maps an uncompressed TIFF into memory with its sides exchanged."""
    exif = Image.Exif()
    exif[274] = 6
    options = {"exif": exif} if name.endswith("png") else {"tiffinfo": {274: 6}}
    Image.fromarray(FULL if name == "grey.tif" else LEVELS).save(tmp_path / name, **options)
    assert np.array_equal(np.array(read_picture(tmp_path / name, 1)), np.rot90(FULL, -1))


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_first_frame_counts(name: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
    first.save(tmp_path / name, save_all=True, append_images=[second])
    assert np.array(read_picture(tmp_path / name))[3, 4].tolist()[0] > 200


def test_damaged_exif_is_no_damaged_picture(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    assert read_picture(tmp_path / "a.jpg").size == (8, 6)


def truncated(path: Path) -> None:
    RGB.resize((99, 99)).save(path, "jpeg")
    path.write_bytes(path.read_bytes()[:900])


NO_PICTURES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "of no format that Pillow knows"),
    "html": (lambda path: path.write_text("<html>"), "of no format that Pillow knows"),
    "truncated": (truncated, "truncated"),
    "bomb": (lambda path: path.write_bytes(png(60000, 60000, 8, 2, b"0")), "exceeds limit"),
    "fifo": (os.mkfifo, "a FIFO, a regular file is needed"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device, a regular file is needed"),
    "folder": (Path.mkdir, "a folder, a regular file is needed"),
    "broken link": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "nothing": (lambda path: None, "no such file"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", NO_PICTURES)
def test_what_is_no_picture_is_one_line(kind: str, tmp_path: Path) -> None:
    write, message = NO_PICTURES[kind]
    write(tmp_path / "a.png")
    with pytest.raises(KdxError, match=f"a.png: .*{message}") as error:
        read_picture(tmp_path / "a.png")
    assert "\n" not in str(error.value)


def test_a_picture_of_one_pixel_is_one(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "a.png")
    assert np.array(read_picture(tmp_path / "a.png")).tolist() == [[[255, 0, 0]]]
