"""AEDAT 2.0 recordings of a DVS128 camera.

Header lines begin with `#`, the first one with `#!AER-DAT2.0`. Then follow 8 bytes per event,
big-endian: a 32-bit address and a time in microseconds. In the address, bit 0 is the polarity, bits
1-7 are x, 8-14 are y, and bit 15 marks an event that comes from no pixel and is dropped; the bits
above are zero. Format: iniVation's description of AEDAT 2.0 and its DVS128 addresses.
"""

import numpy as np

from ...errors import DataError
from . import Events

VERSION = b"#!AER-DAT2."
EVENT_BYTES = 8
SIDE = 128


def decode(data: bytes, name: str = "<bytes>", upright: bool = True) -> Events:
    """The events of one `.aedat` file, in file order.

    Times are unsigned, so the order is right beyond 2^31 us. upright: x = 127 - y, y = 127 - x and
    polarity 1 - p of the address bits; otherwise x, y and polarity are the bits themselves.
    Raises DataError for another header, an incomplete last event, and an address that does not
    belong to a DVS128.
    """
    start = _events_start(data, name)
    count, rest = divmod(len(data) - start, EVENT_BYTES)
    if rest:
        raise DataError.at(
            name,
            start + count * EVENT_BYTES,
            f"truncated: {rest} of the {EVENT_BYTES} bytes of an event",
        )
    halves = np.frombuffer(data, ">u2", offset=start)
    if halves[0::4].any():
        i = int(np.argmax(halves[0::4] != 0))
        where = halves[4 * i : 4 * i + 2].tobytes().hex()
        raise DataError.at(
            name,
            start + i * EVENT_BYTES,
            f"address {where} is no pixel of a DVS128; the file is damaged or from another camera",
        )
    address = halves[1::4].astype(np.uint16)
    t = np.frombuffer(data, ">u4", offset=start)[1::2].astype(np.int64)
    if address.max(initial=0) >= 1 << 15:
        pixel = address < 1 << 15
        address, t = address[pixel], t[pixel]
    x, y, p = address >> 1 & 127, address >> 8, (address & 1).astype(np.uint8)
    if upright:
        x, y, p = SIDE - 1 - y, SIDE - 1 - x, 1 - p
    return Events(x, y, t, p)


def encode(events: Events, upright: bool = True) -> bytes:
    """The bytes of an `.aedat` file, such that `decode` with the same `upright` returns `events`.

    Raises DataError for the first event that does not fit: a pixel outside 128 x 128, a polarity
    other than 0 and 1, a time outside [0, 2^32) us.
    """
    x, y, t, p = (
        np.asarray(field).astype(np.int64) for field in (events.x, events.y, events.t, events.p)
    )
    limits = ((x, SIDE), (y, SIDE), (p, 2), (t, 1 << 32))
    fits = np.logical_and.reduce([(axis >= 0) & (axis < end) for axis, end in limits])
    if not fits.all():
        i = int(np.argmin(fits))
        raise DataError(
            f"event {i} does not fit AEDAT 2.0 of a DVS128: x={x[i]} y={y[i]} t={t[i]} p={p[i]}"
        )
    if upright:
        x, y, p = SIDE - 1 - y, SIDE - 1 - x, 1 - p
    header = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"
    return header + np.stack([y << 8 | x << 1 | p, t], axis=1).astype(">u4").tobytes()


def _events_start(data: bytes, name: str) -> int:
    """The end of the header: events never begin with `#`, because their first byte is zero."""
    if not data.startswith(VERSION):
        raise DataError.at(name, 0, f"not an AEDAT 2.0 file: it begins with {data[:14]!r}")
    start = 0
    while data[start : start + 1] == b"#":
        end = data.find(b"\n", start)
        if end < 0:
            raise DataError.at(name, len(data), "truncated: a header line does not end")
        start = end + 1
    return start
