"""Prophesee's raw recordings in the format EVT 2.0.

Little-endian 32-bit words after the text header; bits 28-31 are the type. Types 0 (OFF) and 1 (ON)
are events: x in bits 11-21, y in bits 0-10, the low 6 bits of the time in bits 22-27. Type 8 sets
the higher 28 bits of the time, in microseconds; they wrap after 2^34 us (4.8 hours). Types 10, 14
and 15 (triggers, monitoring) are skipped; so are events before the first word of type 8, whose time
is unknown. Format: Prophesee's description of EVT 2.0.
"""

import numpy as np

from ...errors import DataError
from . import Events, fitting
from .prophesee import encoding, split_header, unwrapped

HEADER = b"% evt 2.0\n% format EVT2;height=720;width=1280\n% end\n"
TIME_HIGH = 8
SKIPPED = (10, 14, 15)
LOW_BITS = 6


def decode(data: bytes, name: str = "<bytes>") -> Events:
    """The events of one file, in file order.

    Raises DataError for another format, an unknown type, and an incomplete last word.
    """
    words, start = raw_words(data, name, "EVT2", np.dtype("<u4"))
    kind = (words >> 28).astype(np.uint8)
    known = np.isin(kind, (0, 1, TIME_HIGH, *SKIPPED))
    if not known.all():
        i = int(np.argmin(known))
        raise DataError.at(name, start + 4 * i, f"a word of unknown type {kind[i]}: damaged")
    (at_high,) = np.nonzero(kind == TIME_HIGH)
    high = unwrapped(words[at_high] & 0x0FFFFFFF, 28)
    (at,) = np.nonzero(kind <= 1)
    # the number of the last word of type 8 before each event; -1: there is none
    last = np.cumsum(kind == TIME_HIGH)[at] - 1
    at, last = at[last >= 0], last[last >= 0]
    event = words[at]
    t = (high[last] << LOW_BITS) | (event >> 22 & 0x3F)
    x, y = (event >> 11 & 0x7FF).astype(np.uint16), (event & 0x7FF).astype(np.uint16)
    return Events(x, y, t, kind[at])


def raw_words(data: bytes, name: str, wanted: str, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """The words after the header of a file in the format `wanted`, and where they begin."""
    header, start = split_header(data)
    if (found := encoding(header)) != wanted:
        what = f"it is {found[:20]!r}" if found else f"it begins with {data[:14]!r}"
        raise DataError.at(name, 0, f"not a file of format {wanted}: {what}")
    count, rest = divmod(len(data) - start, dtype.itemsize)
    if rest:
        at = start + count * dtype.itemsize
        raise DataError.at(name, at, f"truncated: {rest} of the {dtype.itemsize} bytes of a word")
    return np.frombuffer(data, dtype, offset=start), start


def encode(events: Events) -> bytes:
    """The bytes of a file; `decode` inverts it. Times must not decrease.

    Raises DataError for the first event that does not fit: x or y of 2^11 or more, a polarity other
    than 0 and 1, a time outside [0, 2^34) us.
    """
    x, y, t, p = fitting(events, "EVT 2.0", 1 << 11, 1 << 34)
    high = t >> LOW_BITS
    new = np.diff(high, prepend=-1) != 0
    event = p << 28 | (t & 0x3F) << 22 | x << 11 | y
    pairs = np.stack([TIME_HIGH << 28 | high, event], axis=1)
    kept = np.stack([new, np.ones_like(new)], axis=1)
    return HEADER + pairs[kept].astype("<u4").tobytes()
