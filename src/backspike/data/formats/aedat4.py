"""AEDAT 4.0 recordings of iniVation's software DV.

After the line `#!AER-DAT4.0` comes a header, a FlatBuffer with its size: the compression, and where
the table at the end of the file begins. Then come packets, each with the number of its stream and
its size: FlatBuffers that are compressed as a whole. Those named EVTS hold events of 16 bytes: time
in microseconds (int64), x and y (int16), and whether the polarity is ON. Packets of other streams
(frames, motion sensors, triggers) are skipped. LZ4 needs the package lz4 and Zstandard the package
zstandard (the extra `events`). Format: iniVation's description of AEDAT 4.0 and its schemas.
"""

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from ...errors import DataError
from . import Events, fitting, one_line

VERSION = b"#!AER-DAT4.0\r\n"
NAMES = ("none", "lz4", "lz4", "zstd", "zstd")
EVENT = np.dtype(
    {
        "names": ["t", "x", "y", "on"],
        "formats": ["<i8", "<i2", "<i2", "u1"],
        "offsets": [0, 8, 10, 12],
        "itemsize": 16,
    }
)
# a packet that unpacks to more than so many times its size holds no events
UNPACKED_RATIO = 256


def decode(data: bytes, name: str = "<bytes>") -> Events:
    """The events of one `.aedat4` file, in file order.

    Raises DataError for damage, for events of more than one camera, and for a compression whose
    package is missing.
    """
    if not data.startswith(VERSION):
        raise DataError.at(name, 0, f"not an AEDAT 4.0 file: it begins with {data[:14]!r}")
    at, end, unpack = _header(data, name)
    streams, parts = set(), [np.zeros(0, EVENT)]
    while at < end:
        stream, size = _read(data, "<ii", at, name, at)
        body = at + 8
        at = body + size
        if size < 0 or at > end:
            raise DataError.at(name, body, f"truncated: a packet of {size} bytes")
        packet = unpack(data[body:at], body)
        if packet[8:12] == b"EVTS":
            streams.add(stream)
            parts.append(_events(packet, name, body))
    if len(streams) > 1:
        raise DataError.at(
            name, 0, f"events of {len(streams)} cameras: save those of each in a file of its own"
        )
    events = np.concatenate(parts)
    if len(events) and min(events["t"].min(), events["x"].min(), events["y"].min()) < 0:
        raise DataError.at(name, 0, "an event with a negative time, x or y: damaged")
    x, y = events["x"].astype(np.uint16), events["y"].astype(np.uint16)
    return Events(x, y, events["t"].copy(), (events["on"] != 0).astype(np.uint8))


def _header(data: bytes, name: str) -> tuple[int, int, Callable[[bytes, int], bytes]]:
    """Where the packets begin and end, and the function that unpacks one, at an offset."""
    start = len(VERSION)
    (size,) = _read(data, "<I", start, name, start)
    table = _table(data, start + 4, name, start)
    kind = _field(data, table, 0, "<b", 0, name, start)
    end = _field(data, table, 1, "<q", -1, name, start)
    if not 0 <= kind < len(NAMES):
        raise DataError.at(name, start, f"compression {kind} is unknown")
    if end < 0:  # the writer was interrupted
        end = len(data)
    at = start + 4 + size
    if not at <= end <= len(data):
        raise DataError.at(name, start, "truncated: the table of packets is outside the file")
    return at, end, _unpacker(NAMES[kind], name)


def _unpacker(kind: str, name: str) -> Callable[[bytes, int], bytes]:
    if kind == "none":
        return lambda packed, _at: packed
    package = {"lz4": "lz4", "zstd": "zstandard"}[kind]
    try:
        if kind == "lz4":
            from lz4.frame import LZ4FrameDecompressor

            def start(packed: bytes, limit: int) -> Any:
                return LZ4FrameDecompressor().decompress(packed, max_length=limit)

        else:
            from zstandard import ZstdDecompressor

            def start(packed: bytes, limit: int) -> Any:
                return ZstdDecompressor().stream_reader(io.BytesIO(packed)).read(limit)

    except Exception as error:  # a broken installation raises more than ImportError
        raise DataError.at(
            name,
            len(VERSION),
            f"its compression needs {package}: pip install 'backspike[events]' ({one_line(error)})",
        ) from error

    def unpack(packed: bytes, at: int) -> bytes:
        limit = UNPACKED_RATIO * len(packed) + 1
        try:
            unpacked = start(packed, limit)
        except Exception as error:  # other libraries raise nearly anything for damage
            raise DataError.at(name, at, f"damaged packet ({one_line(error)})") from error
        if len(unpacked) == limit:
            raise DataError.at(name, at, f"a packet unpacks to more than {limit} bytes: damaged")
        return bytes(unpacked)

    return unpack


def _events(packet: bytes, name: str, at: int) -> np.ndarray:
    """The events of a FlatBuffer; at: its offset in the file, for messages."""
    table = _table(packet, 4, name, at)
    where = _place(packet, table, 0, name, at)
    if where is None:
        return np.zeros(0, EVENT)
    vector = where + _read(packet, "<I", where, name, at)[0]
    (count,) = _read(packet, "<I", vector, name, at)
    if vector + 4 + count * EVENT.itemsize > len(packet):
        raise DataError.at(name, at, f"damaged packet: it has no {count} events")
    return np.frombuffer(packet, EVENT, count, vector + 4)


# FlatBuffers: a table begins with the distance back to its list of fields, which holds its size,
# the size of the table, and the distance of each field from the table (0: the default)


def _table(data: bytes, start: int, name: str, at: int) -> int:
    return start + _read(data, "<I", start, name, at)[0]


def _place(data: bytes, table: int, index: int, name: str, at: int) -> int | None:
    fields = table - _read(data, "<i", table, name, at)[0]
    (size,) = _read(data, "<H", fields, name, at)
    if size < 6 + 2 * index:
        return None
    (distance,) = _read(data, "<H", fields + 4 + 2 * index, name, at)
    return table + distance if distance else None


def _field(data: bytes, table: int, index: int, kind: str, default: int, name: str, at: int) -> int:
    where = _place(data, table, index, name, at)
    return default if where is None else int(_read(data, kind, where, name, at)[0])


def _read(data: bytes, kind: str, where: int, name: str, at: int) -> tuple[int, ...]:
    if where < 0 or where + struct.calcsize(kind) > len(data):
        raise DataError.at(name, min(at, len(data)), "truncated or damaged")
    return struct.unpack_from(kind, data, where)


def encode(events: Events, packet: int = 4096) -> bytes:
    """The bytes of an uncompressed file of one camera, `packet` events per packet.

    `decode` inverts it. Raises DataError for the first event that does not fit: x or y of 2^15 or
    more, a polarity other than 0 and 1, a time outside [0, 2^62) us.
    """
    x, y, t, p = fitting(events, "AEDAT 4.0", 1 << 15, 1 << 62)
    rows = np.zeros(len(t), EVENT)
    rows["x"], rows["y"], rows["t"], rows["on"] = x, y, t, p
    info = (
        b'<dv version="2.0"><node name="outInfo" path="/mainloop/Recorder/outInfo/">'
        b'<node name="0" path="/mainloop/Recorder/outInfo/0/">'
        b'<attr key="compression" type="string">NONE</attr>'
        b'<attr key="originalOutputName" type="string">events</attr>'
        b'<attr key="typeDescription" type="string">Array of events (polarity ON/OFF).</attr>'
        b'<attr key="typeIdentifier" type="string">EVTS</attr>'
        b'<node name="info" path="/mainloop/Recorder/outInfo/0/info/">'
        b'<attr key="sizeX" type="int">1280</attr><attr key="sizeY" type="int">720</attr>'
        b'<attr key="source" type="string">camera</attr></node></node></node></dv>'
    )
    # fields: compression at 20, the table's place (none) at 8, the text at 16
    fields = struct.pack("<5H2x", 10, 24, 20, 8, 16)
    table = struct.pack("<i4xqIi", len(fields), -1, 8, 0) + struct.pack("<I", len(info)) + info
    out = [VERSION, _sized(b"IOHE", fields, table + b"\0")]
    for first in range(0, len(rows), packet):
        part = rows[first : first + packet]
        fields = struct.pack("<3H2x", 6, 8, 4)
        table = struct.pack("<iII", len(fields), 4, len(part)) + part.tobytes()
        body = _sized(b"EVTS", fields, table)
        out += [struct.pack("<ii", 0, len(body)), body]
    return b"".join(out)


def _sized(kind: bytes, fields: bytes, table: bytes) -> bytes:
    """A FlatBuffer with its size, the place of its table and its name in front."""
    body = struct.pack("<I4s", 8 + len(fields), kind) + fields + table
    return struct.pack("<I", len(body)) + body
