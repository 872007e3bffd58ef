"""Compressed pictures (JPEG, PNG, ...), decoded by Pillow to one size.

A part of the picture is scaled bilinearly. Unless another is asked for it is the middle, 7/8 of the shorter side (224 of 256):
the usual way to test.
"""

import io
import warnings
from collections.abc import Callable

import numpy as np

from ...errors import DataError
from . import one_line

# Pillow knows more than forty formats, and starts other programs for some of them
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of the sides


def middle(width: int, height: int) -> Box:
    x, y = (7 / 16 * min(width, height) / side for side in (width, height))
    return 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y


def decode(
    data: bytes, name: str = "<bytes>", size: int = 224, part: Callable[[int, int], Box] = middle
) -> np.ndarray:
    """RGB, uint8 [3, size, size], of the part that `part(width, height)` says.

    Raises DataError for a damaged file, and for one that would unpack to a huge picture.
    """
    try:
        from PIL import Image
    except Exception as error:  # a broken installation raises more than ImportError
        raise DataError(
            f"{name} is a picture, which Pillow reads: pip install pillow ({one_line(error)})"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                left, top, right, bottom = part(*picture.size)
                # JPEG: decoded at the nearest half, quarter or eighth at which the part is not smaller than the size wanted
                picture.draft("RGB", (int(size / (right - left)), int(size / (bottom - top))))
                W, H = picture.size
                # the cut before the scaling: a picture of 1 x 10^6 pixels must not become one of 256 x 256 * 10^6
                box = (left * W, top * H, right * W, bottom * H)
                scaled = picture.convert("RGB").resize(
                    (size, size), Image.Resampling.BILINEAR, box=box
                )
    except Exception as error:  # a damaged picture may raise nearly anything
        raise DataError.at(name, 0, f"truncated or damaged picture ({one_line(error)})") from error
    return np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1))
