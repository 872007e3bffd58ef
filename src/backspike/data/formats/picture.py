"""Compressed pictures (JPEG, PNG, ...), decoded by Pillow to one size: the files of ImageNet.

The picture is scaled bilinearly so that its shorter side has 8/7 of the size wanted (256 for 224), and the middle is cut out:
the usual way to test on ImageNet.
"""

import io
import warnings

import numpy as np

from . import DataError, one_line

# Pillow knows more than forty formats, and starts other programs for some of them
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def decode(data: bytes, name: str = "<bytes>", size: int = 224) -> np.ndarray:
    """RGB, uint8 [3, size, size]. Raises DataError for a damaged file, and for one that would unpack to a huge picture."""
    try:
        from PIL import Image
    except Exception as error:  # a broken installation raises more than ImportError
        raise DataError(f"{name} is a picture, which Pillow reads: pip install pillow ({one_line(error)})") from error
    side = -(-size * 8 // 7)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                picture.draft("RGB", (side, side))  # JPEG: decoded at the nearest half, quarter or eighth, not smaller
                half = min(picture.size) * size / side / 2
                left, top = picture.width / 2 - half, picture.height / 2 - half
                middle = (left, top, left + 2 * half, top + 2 * half)
                # the cut before the scaling: a picture of 1 x 10^6 pixels must not become one of 256 x 256 * 10^6
                scaled = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, box=middle)
    except Exception as error:  # a damaged picture may raise nearly anything
        raise DataError.at(name, 0, f"truncated or damaged picture ({one_line(error)})") from error
    return np.ascontiguousarray(np.asarray(scaled).transpose(2, 0, 1))
