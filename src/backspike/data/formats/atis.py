"""Recordings of an ATIS camera: five bytes per event, without a header.

Big-endian: x (8 bits), y (8), polarity (1), time in microseconds (23); Orchard, Jayawant, Cohen,
Thakor 2015, doi:10.3389/fnins.2015.00437. An event with y = 240, one row below the sensor, marks an
overflow of the clock: as in the authors' reader, it is dropped and adds 2^13 us to all later times.
"""

import numpy as np

from ...errors import DataError
from . import Events

EVENT_BYTES = 5
OVERFLOW_ROW = 240
OVERFLOW_US = 1 << 13
TIME_LIMIT_US = 1 << 23


def decode(data: bytes, name: str = "<bytes>") -> Events:
    """The events of one `.bin` file, in file order.

    Raises DataError if the last event is incomplete. The format stores no length, so a file cut
    between two events looks like a shorter recording.
    """
    count, rest = divmod(len(data), EVENT_BYTES)
    if rest:
        raise DataError.at(
            name, count * EVENT_BYTES, f"truncated: {rest} of the {EVENT_BYTES} bytes of an event"
        )
    xy = np.ndarray(count, ">u2", data, strides=(EVENT_BYTES,)).astype(np.uint16)
    # the five bytes are the low end of eight; three zeros make room before the first event
    t = np.ndarray(count, ">u8", b"\0\0\0" + data, strides=(EVENT_BYTES,)).astype(np.int64)
    x, y, p = xy >> 8, xy & 255, (t >> 23).astype(np.uint8) & 1
    t &= TIME_LIMIT_US - 1
    mark = y == OVERFLOW_ROW
    if mark.any():
        t += OVERFLOW_US * np.cumsum(mark)
        x, y, t, p = x[~mark], y[~mark], t[~mark], p[~mark]
    return Events(x, y, t, p)


def encode(events: Events) -> bytes:
    """The bytes of a `.bin` file; `decode` inverts it.

    Raises DataError for the first event that five bytes cannot hold: x or y above 255, y = 240, a
    polarity other than 0 and 1, a time outside [0, 2^23) us.
    """
    x, y, t, p = (
        np.asarray(field).astype(np.int64) for field in (events.x, events.y, events.t, events.p)
    )
    fits = (x >= 0) & (x < 256) & (y >= 0) & (y < 256) & (y != OVERFLOW_ROW) & (p >= 0) & (p < 2)
    fits &= (t >= 0) & (t < TIME_LIMIT_US)
    if not fits.all():
        i = int(np.argmin(fits))
        event = f"x={x[i]} y={y[i]} t={t[i]} p={p[i]}"
        raise DataError(f"event {i} does not fit into five bytes: {event}")
    columns = (x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255)
    return np.stack(columns, axis=1).astype(np.uint8).tobytes()
