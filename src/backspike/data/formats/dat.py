"""Prophesee's DAT recordings, version 2.

After the text header come two bytes, the kind of the events (0 or 12: of pixels) and their size,
8. An event is two little-endian 32-bit words: the time in microseconds; then x in bits 0-13, y in
bits 14-27 and the polarity (1 is ON) in bits 28-31. Times wrap after 2^32 us (71 minutes): a step
back by more than half of that counts as a wrap. Format: Prophesee's description of DAT files.
"""

import numpy as np

from ...errors import DataError
from . import Events, fitting
from .prophesee import split_header, unwrapped

EVENT_BYTES = 8
OF_PIXELS = (0, 12)
HEADER = b"% Data file containing CD events.\n% Version 2\n% end\n"


def decode(data: bytes, name: str = "<bytes>") -> Events:
    """The events of one `.dat` file, in file order.

    Raises DataError for another version or kind of events, and an incomplete last event.
    """
    header, start = split_header(data)
    if not header:
        raise DataError.at(name, 0, f"not a DAT file: it begins with {data[:14]!r}")
    if header.get("version", "2") != "2":
        version = header["version"]
        raise DataError.at(name, 0, f"DAT of version {version[:20]!r}: only 2 is supported")
    if len(data) < start + 2:
        raise DataError.at(name, len(data), "truncated: the file ends with its header")
    kind, size = data[start], data[start + 1]
    if kind not in OF_PIXELS or size != EVENT_BYTES:
        raise DataError.at(
            name, start, f"events of kind {kind} with {size} bytes: expected kind 0 or 12 with 8"
        )
    count, rest = divmod(len(data) - start - 2, EVENT_BYTES)
    if rest:
        raise DataError.at(
            name,
            start + 2 + count * EVENT_BYTES,
            f"truncated: {rest} of the {EVENT_BYTES} bytes of an event",
        )
    words = np.frombuffer(data, "<u4", offset=start + 2)
    t, pixel = unwrapped(words[0::2], 32), words[1::2]
    p = pixel >> 28
    if p.max(initial=0) > 1:
        at = start + 2 + EVENT_BYTES * int(np.argmax(p > 1))
        raise DataError.at(name, at, f"polarity {p.max()}: damaged, or not a DAT file of version 2")
    x, y = (pixel & 0x3FFF).astype(np.uint16), (pixel >> 14 & 0x3FFF).astype(np.uint16)
    return Events(x, y, t, p.astype(np.uint8))


def encode(events: Events) -> bytes:
    """The bytes of a `.dat` file; `decode` inverts it.

    Raises DataError for the first event that does not fit: x or y of 2^14 or more, a polarity other
    than 0 and 1, a time outside [0, 2^32) us.
    """
    x, y, t, p = fitting(events, "DAT", 1 << 14, 1 << 32)
    words = np.stack([t, p << 28 | y << 14 | x], axis=1).astype("<u4")
    return HEADER + bytes([OF_PIXELS[1], EVENT_BYTES]) + words.tobytes()
