"""Compressed pictures (JPEG, PNG, ...), decoded by Pillow to one size.

A part of the picture is scaled bilinearly. By default it is the centre, 7/8 of the shorter side
(224 of 256): the usual crop for testing.
"""

import io
import warnings
from collections.abc import Callable

import numpy as np

from ...errors import DataError
from . import one_line

# Pillow supports more than forty formats, and starts other programs for some of them
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# left, top, right, bottom, as fractions of the sides
Box = tuple[float, float, float, float]


def middle(width: int, height: int) -> Box:
    """The centred square, 7/8 of the shorter side."""
    x, y = (7 / 16 * min(width, height) / side for side in (width, height))
    return 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y


def square(width: int, height: int) -> Box:
    """The largest centred square."""
    return centred(width, height, 1.0)


def centred(width: int, height: int, aspect: float) -> Box:
    """The largest centred part whose width is `aspect` times its height."""
    x, y = min(1.0, aspect * height / width) / 2, min(1.0, width / (aspect * height)) / 2
    return 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y


def decode(
    data: bytes,
    name: str = "<bytes>",
    size: int | tuple[int, int] = 224,
    part: Callable[[int, int], Box] = middle,
    channels: int = 3,
) -> np.ndarray:
    """RGB or (one channel) grey, uint8 [channels, H, W], of the part that `part` returns.

    size: (H, W), or both as one number. A part of that size is not changed.

    Raises DataError for a damaged file, for one that would unpack to a huge picture, and without
    Pillow.
    """
    try:
        from PIL import Image
    except Exception as error:  # a broken installation raises more than ImportError
        raise DataError(
            f"{name}: reading pictures needs Pillow: pip install pillow ({one_line(error)})"
        ) from error
    H, W = (size, size) if isinstance(size, int) else size
    mode = "L" if channels == 1 else "RGB"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                left, top, right, bottom = part(*picture.size)
                # JPEG: decode at a half, a quarter or an eighth, if the part is then still as large
                # as the output
                picture.draft(mode, (int(W / (right - left)), int(H / (bottom - top))))
                width, height = picture.size
                # crop before scaling: 1 x 10^6 pixels must not become 256 x 256 * 10^6
                box = (left * width, top * height, right * width, bottom * height)
                scaled = picture.convert(mode).resize((W, H), Image.Resampling.BILINEAR, box=box)
    except Image.UnidentifiedImageError as error:  # its text holds an address in memory
        known = ", ".join(FORMATS)
        raise DataError.at(name, 0, f"truncated or damaged picture, or none of {known}") from error
    except Exception as error:  # a damaged picture may raise nearly anything
        raise DataError.at(name, 0, f"truncated or damaged picture ({one_line(error)})") from error
    return np.ascontiguousarray(np.asarray(scaled).reshape(H, W, channels).transpose(2, 0, 1))
