"""AEDAT 3.1 recordings.

Header lines go from `#!AER-DAT3.1` to `#!END-HEADER`. Then follow packets, little-endian: a header
of 28 bytes (type, source, bytes per event, offset of its time, overflows of the clock, capacity,
number of events, number of valid events), then `capacity` events. Only packets of type 1 are read,
polarity events of 8 bytes: bit 0 tells whether the event is valid, bit 1 is the polarity, bits 2-16
are y, 17-31 are x; then the time in microseconds, to which each overflow adds 2^31. Format:
iniVation's description of AEDAT 3.1.
"""

import struct

import numpy as np

from ...errors import DataError
from . import Events

VERSION = b"#!AER-DAT3.1"
END = b"#!END-HEADER"
PACKET = struct.Struct("<hhiiiiii")
POLARITY = 1
POLARITY_BYTES = 8
TIME_AT = 4


def decode(data: bytes, name: str = "<bytes>") -> Events:
    """The valid polarity events of one `.aedat` file, in file order; other packets are skipped.

    Raises DataError for another header, a coding other than RAW, a packet that violates the format
    or claims more than the file contains, and a valid event with a negative time.
    """
    blocks, bodies, overflows = [np.zeros(0, np.uint64)], [0], [0]
    at = _packets_start(data, name)
    while at < len(data):
        if len(data) - at < PACKET.size:
            left = len(data) - at
            raise DataError.at(
                name, at, f"truncated: {left} of the {PACKET.size} bytes of a packet's header"
            )
        kind, _, size, time_at, overflow, capacity, number, _ = PACKET.unpack_from(data, at)
        if size < 1 or overflow < 0 or not 0 <= number <= capacity:
            packet = f"{number} of {capacity} events of {size} bytes, overflow {overflow}"
            raise DataError.at(name, at, f"damaged packet: {packet}")
        body = at + PACKET.size
        at = body + size * capacity
        if at > len(data):
            left = len(data) - body
            raise DataError.at(
                name,
                body,
                f"truncated: a packet of {size * capacity} bytes, the file has {left} more",
            )
        if kind != POLARITY:
            continue
        if (size, time_at) != (POLARITY_BYTES, TIME_AT):
            raise DataError.at(
                name,
                body - PACKET.size,
                f"polarity events of {size} bytes, time at {time_at}: expected 8 and 4",
            )
        blocks.append(np.frombuffer(data, "<u8", number, body))
        bodies.append(body)
        overflows.append(overflow)
    words = np.concatenate(blocks)
    if len(words) and (before := (words >> 63).astype(bool) & (words & 1).astype(bool)).any():
        ends = np.cumsum([len(block) for block in blocks])
        i = int(np.argmax(before))
        k = int(np.searchsorted(ends, i, side="right"))
        at = bodies[k] + POLARITY_BYTES * (i - int(ends[k]) + len(blocks[k]))
        raise DataError.at(name, at, "an event before the start of the clock: damaged")
    pixel, t = words.astype(np.uint32), words.view(np.int64)
    # in-place, because new memory costs more than arithmetic
    t >>= 32
    if any(overflows):
        t |= np.repeat(np.array(overflows, np.int64) << 31, [len(block) for block in blocks])
    valid = (pixel & 1).astype(bool)
    if not valid.all():
        pixel, t = pixel[valid], t[valid]
    x = (pixel >> 17).astype(np.uint16)
    y = (pixel >> 2).astype(np.uint16) & 0x7FFF
    p = (pixel >> 1).astype(np.uint8) & 1
    return Events(x, y, t, p)


def encode(events: Events, packet: int = 4096) -> bytes:
    """The bytes of an `.aedat` file with up to `packet` events per packet; `decode` inverts it.

    Raises DataError for the first event that does not fit: x or y of 2^15 or more, a polarity other
    than 0 and 1, a time outside [0, 2^62) us.
    """
    x, y, t, p = (
        np.asarray(field).astype(np.int64) for field in (events.x, events.y, events.t, events.p)
    )
    limits = ((x, 1 << 15), (y, 1 << 15), (p, 2), (t, 1 << 62))
    fits = np.logical_and.reduce([(axis >= 0) & (axis < end) for axis, end in limits])
    if not fits.all():
        i = int(np.argmin(fits))
        raise DataError(f"event {i} does not fit AEDAT 3.1: x={x[i]} y={y[i]} t={t[i]} p={p[i]}")
    words = np.stack([x << 17 | y << 2 | p << 1 | 1, t & 0x7FFFFFFF], axis=1).astype("<u4")
    out = [
        b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 0: DVS128\r\n"
        b"#Start-Time: 2016-10-17 12:00:00 (TZ+0000)\r\n#!END-HEADER\r\n"
    ]
    # all events of a packet share one overflow count
    cuts = np.flatnonzero(np.diff(t >> 31)) + 1
    for run in np.split(np.arange(len(t)), cuts):
        for part in (run[first : first + packet] for first in range(0, len(run), packet)):
            n = len(part)
            out += [
                PACKET.pack(POLARITY, 0, POLARITY_BYTES, TIME_AT, int(t[part[0]] >> 31), n, n, n),
                words[part].tobytes(),
            ]
    return b"".join(out)


def _packets_start(data: bytes, name: str) -> int:
    if not data.startswith(VERSION):
        raise DataError.at(name, 0, f"not an AEDAT 3.1 file: it begins with {data[:14]!r}")
    start = 0
    while True:
        end = data.find(b"\n", start)
        if end < 0 or data[start : start + 1] != b"#":
            raise DataError.at(name, start, "truncated or damaged header: no line #!END-HEADER")
        line = data[start:end].rstrip(b"\r")
        if line.startswith(b"#Format:") and line[8:].strip() != b"RAW":
            coding = line[8:].strip().decode(errors="replace")
            raise DataError.at(name, start, f"events coded as {coding!r}: only RAW is supported")
        start = end + 1
        if line == END:
            return start
