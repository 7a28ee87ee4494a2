"""Raw pixels of one image: plain JPEGs without Python's lock while torchvision has a decoder, the rest by Pillow."""

from __future__ import annotations

import numpy as np
import torch
import torchvision  # noqa: F401  registers torch.ops.image

from slca_fast.data.images import JPEG_END, BadImage
from slca_fast.data.index import ImageIndex
from slca_fast.data.pillow import decode_expected, is_plain_jpeg, require_size

_RGB_MODE = 3
"""torchvision.io.ImageReadMode.RGB"""


def decoded_pixels(index: ImageIndex, sample_id: int, exif_orientation: bool) -> np.ndarray:
    """One image as RGB bytes, uint8 [height * width * 3]; BadImage if it cannot be had.

    torchvision's decoder is the library that Pillow uses, and gives the same pixels.
    """
    if is_plain_jpeg(index, sample_id, exif_orientation):
        try:
            content = np.fromfile(index.path_of(sample_id), dtype=np.uint8)
        except OSError as error:
            raise BadImage(error.strerror or str(error)) from None
        image_HWC = _by_torchvision(content)
        if image_HWC is not None:
            require_size(index, sample_id, image_HWC.shape[1], image_HWC.shape[0])
            return image_HWC.reshape(-1)
    return np.array(decode_expected(index, sample_id, exif_orientation)).reshape(-1)


def _by_torchvision(content: np.ndarray) -> np.ndarray | None:
    """uint8 [H, W, 3], or None where Pillow has to decide what is bad and say why."""
    # The operator itself, because its Python wrapper warns that torchvision means to drop it.
    decode = getattr(torch.ops.image, "decode_jpeg", None)
    if decode is None or content[-2:].tobytes() != JPEG_END:
        return None
    try:
        return decode(torch.from_numpy(content), _RGB_MODE, False).permute(1, 2, 0).numpy()
    except RuntimeError:
        return None
