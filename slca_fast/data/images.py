"""One image file: what its header says, and its pixels as 8-bit RGB, by the rules of the bad-input table."""

from __future__ import annotations

import io
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from slca_fast.data.kinds import why_no_image

EXIF_ORIENTATION_TAG = 0x0112
SWAPPING_ORIENTATIONS = (5, 6, 7, 8)
JPEG_END = b"\xff\xd9"
_PNG_END = b"IEND\xaeB`\x82"
_TAIL_BYTES = 16
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, struct.error)
_DEEP_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_EXTENSIONS_OF = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
FORMATS = tuple(name for name in _EXTENSIONS_OF if name != "MPO")  # Pillow opens MPO as JPEG
Image.init()  # registers TIFF and WebP here, not in several threads at once


class BadImage(ValueError):
    """A file that cannot become an RGB image; the message says why, without the path."""


@dataclass(frozen=True)
class Header:
    """What the preflight keeps of one file. Sizes in pixels, as stored (before any EXIF rotation)."""

    height: int
    width: int
    num_bytes: int
    format: str
    orientation: int
    plain: bool
    """Grey or RGB JPEG: every decoder agrees about it."""
    notes: tuple[str, ...]
    """Conversions that decoding will make, e.g. ("palette", "animated")."""


def read_header(path: Path, max_megapixels: float) -> Header:
    """Header of one image; pixels are decoded only where the end of the file is not as its format wants it.

    Raises BadImage with one short reason.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise BadImage("dangling symlink" if path.is_symlink() else "no such file") from None
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a regular file")
    if status.st_size == 0:
        raise BadImage("zero bytes")
    try:
        with open(path, "rb") as file:
            return _header_of(file, path.suffix.lower(), status.st_size, max_megapixels)
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from None


def allow_megapixels(max_megapixels: float) -> None:
    """Lifts Pillow's own limit, of this process, to ``data.max_megapixels``; images above that are refused by us."""
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, int(max_megapixels * 1e6))


def check_megapixels(width: int, height: int, max_megapixels: float) -> None:
    """BadImage for an image over the cap, before any of its pixels is decoded."""
    if width * height > max_megapixels * 1e6:
        raise BadImage(
            f"{width} x {height} pixels exceed the cap of {max_megapixels:g} megapixels (--data.max_megapixels)"
        )


def _header_of(file: io.BufferedReader, suffix: str, num_bytes: int, max_megapixels: float) -> Header:
    with _open(file) as image:
        width, height = image.size
        check_megapixels(width, height, max_megapixels)
        notes = _conversions(image)
        # Of an opened file it is known.
        assert image.format is not None
        if suffix not in _EXTENSIONS_OF[image.format]:
            notes += ("wrong extension",)
        orientation = _orientation(image)
        if orientation != 1:
            notes += ("EXIF rotated",)
        plain = image.format == "JPEG" and image.mode in ("RGB", "L")
        header = Header(height, width, num_bytes, image.format, orientation, plain, notes)
        if not _ends_well(file, image.format, num_bytes):
            _to_rgb(image)
    return header


def decode_rgb(source: str | Path | bytes, exif_orientation: bool = False) -> Image.Image:
    """The image as 8-bit RGB: first frame, alpha dropped, 16 bits scaled to 8, else as torchvision's loader.

    Raises BadImage.
    """
    try:
        if isinstance(source, bytes):
            return _decode(io.BytesIO(source), exif_orientation)
        with open(source, "rb") as file:
            return _decode(file, exif_orientation)
    except OSError as error:
        raise BadImage(error.strerror or str(error)) from None


def _decode(file: IO[bytes], exif_orientation: bool) -> Image.Image:
    with _open(file) as image:
        orientation = _orientation(image) if exif_orientation else 1
        rgb = _to_rgb(image)
    if orientation != 1:
        rgb.getexif()[EXIF_ORIENTATION_TAG] = orientation
        rgb = ImageOps.exif_transpose(rgb)
    return rgb


def _open(file: IO[bytes]) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise BadImage(_what_it_is(file)) from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"decompression bomb: {error}") from None
    except _PILLOW_ERRORS as error:
        raise BadImage(f"header cannot be read ({error})") from None
    if min(image.size) < 1:
        raise BadImage(f"{image.size[0]} x {image.size[1]} pixels")
    return image


def _what_it_is(file: IO[bytes]) -> str:
    file.seek(0)
    return why_no_image(file.read(512)) or "not an image of a known format, or its header is damaged"


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info and image.format != "TIFF":
        return 1
    try:
        value = image.getexif().get(EXIF_ORIENTATION_TAG, 1)
    except (OSError, ValueError, SyntaxError, KeyError, TypeError):
        return 1
    return value if value in range(1, 9) else 1


def _conversions(image: Image.Image) -> tuple[str, ...]:
    notes = []
    if image.mode in ("L", "1", *_DEEP_GREY_MODES, "I", "LA"):
        notes.append("grey")
    if image.mode == "CMYK":
        notes.append("CMYK")
    if image.mode in ("P", "PA"):
        notes.append("palette")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        notes.append("alpha dropped")
    if image.mode in (*_DEEP_GREY_MODES, "I"):
        notes.append("16 bits")
    if getattr(image, "is_animated", False) and image.format != "MPO":
        notes.append("first frame")
    return tuple(notes)


def _ends_well(file: io.BufferedReader, image_format: str, num_bytes: int) -> bool:
    """Whether the file ends as its format wants; False means: decode it to know whether it is truncated."""
    if image_format not in ("JPEG", "PNG"):
        return False
    file.seek(max(0, num_bytes - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    return tail.endswith(JPEG_END) if image_format == "JPEG" else tail.endswith(_PNG_END)


def _to_rgb(image: Image.Image) -> Image.Image:
    try:
        if image.mode in _DEEP_GREY_MODES or (image.mode == "I" and image.format in ("PNG", "PPM")):
            # Pillow's own conversion clips at 255; the high byte is what it takes from 16-bit colour PNGs.
            deep = np.asarray(image).astype(np.int64)
            return Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise BadImage(f"{image.mode} pixels of unknown range; convert it to 8 bits")
        image.load()
        # Alpha is dropped, as documented; with the key still there Pillow would warn that RGBA were better.
        image.info.pop("transparency", None)
        return image if image.mode == "RGB" else image.convert("RGB")
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(f"decompression bomb: {error}") from None
    except (*_PILLOW_ERRORS, MemoryError) as error:
        raise BadImage(f"cannot be decoded ({error})") from None
