"""What kind of image a file is by its first bytes and by its name: one that is read, one that is not, or none."""

from __future__ import annotations

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".gif", ".bmp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp"),
)
NUM_BYTES = 32
"""As many bytes as ``image_kind`` wants to see of a file."""
_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JPEG XL",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS\0\x01": "Photoshop",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIF", b"heix": "HEIF", b"hevc": "HEIF", b"mif1": "HEIF"}
"""Of ISO base media files, most of which are films."""
_UNREAD_EXTENSIONS = {
    ".avif": "AVIF",
    ".avifs": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".jxl": "JPEG XL",
    ".jp2": "JPEG 2000",
    ".j2k": "JPEG 2000",
    ".psd": "Photoshop",
}
_UNREAD = frozenset(_UNREAD_EXTENSIONS.values())
_RIFF = {b"AVI ": "a film (AVI)", b"WAVE": "a sound (WAV)"}
_BMP_HEADER_SIZES = (12, 40, 52, 56, 64, 108, 124)


def image_kind(start: bytes) -> str | None:
    """Name of the image format that a file begins like, e.g. "JPEG"; None for anything else."""
    for magic, kind in _STARTS.items():
        if start.startswith(magic):
            return kind
    if start[:4] == b"RIFF":
        return "WEBP" if start[8:12] == b"WEBP" else None
    if start[4:8] == b"ftyp":
        return next((_BRANDS[brand] for brand in (start[8:12], start[16:20], start[20:24]) if brand in _BRANDS), None)
    if start[:2] == b"BM" and start[6:10] == bytes(4) and int.from_bytes(start[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    return None


def has_image_name(name: str) -> bool:
    """Whether a file's name ends as those of the images that are read."""
    return name.lower().endswith(EXTENSIONS)


def unread_by_name(name: str) -> str | None:
    """The image format that a file's name stands for, where it is one that is not read."""
    return next((kind for ending, kind in _UNREAD_EXTENSIONS.items() if name.lower().endswith(ending)), None)


def why_no_image(start: bytes) -> str | None:
    """What a file that cannot be read as an image is instead, in words; None where its first bytes do not tell."""
    kind = image_kind(start)
    if kind in _UNREAD:
        return not_read(kind)
    if start[:4] == b"RIFF" and start[8:12] in _RIFF:
        return f"{_RIFF[start[8:12]]}, not an image"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html", b"<?xml", b"<head", b"<body")):
        return "a web page, not an image"
    return None


def not_read(kind: str) -> str:
    """The reason that a file of an image format that is not read gets."""
    return f"{kind} images are not read; convert it to PNG or JPEG"


def is_unread(kind: str | None) -> bool:
    """Whether ``kind`` is an image format that is known and not read."""
    return kind in _UNREAD
