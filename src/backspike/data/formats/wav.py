"""WAV files with one channel of 16-bit samples."""

import io
import wave

import numpy as np

from ...errors import DataError
from . import one_line


def decode(data: bytes, name: str = "<bytes>") -> tuple[np.ndarray, int]:
    """Samples int16 [N], and their number per second.

    Raises DataError for a damaged or truncated file, and for other kinds of samples.
    """
    stream = io.BytesIO(data)
    try:
        with wave.open(stream) as file:
            channels, width, rate, n, *_ = file.getparams()
            samples = file.readframes(n)
    except Exception as error:  # a damaged chunk may raise nearly anything
        at = min(stream.tell(), len(data))
        raise DataError.at(
            name, at, f"truncated or damaged WAV file ({one_line(error)})"
        ) from error
    if (channels, width) != (1, 2) or rate < 1:
        raise DataError.at(
            name,
            0,
            f"{channels} channels of {8 * width} bits, {rate} times a second: "
            "expected 1 channel of 16 bits",
        )
    if len(samples) != 2 * n:
        raise DataError.at(
            name, len(data), f"truncated: {2 * n - len(samples)} more bytes expected"
        )
    return np.frombuffer(samples, "<i2").astype(np.int16), rate
