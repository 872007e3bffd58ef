"""idx files, plain or gzipped.

A file has a magic number (two zero bytes, the element type, the number of dimensions), the sizes as
big-endian 32-bit integers, and the elements in C order, big-endian. The header is read first: the
size that it announces is checked against the file before memory is allocated, and a gzip stream is
never unpacked beyond it.
"""

import math
import struct
import zlib

import numpy as np

from ...errors import DataError

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
# the most bytes that one byte of a deflate stream can expand to
DEFLATE_RATIO = 1032
GZIP = b"\x1f\x8b"


def decode(data: bytes, name: str = "<bytes>") -> np.ndarray:
    """The array of one idx file, in native byte order.

    Raises DataError for a wrong magic number, a length other than the header announces, and a
    damaged gzip stream. Offsets count from the start of the file; inside gzip, in compressed bytes.
    """
    packed = data[:2] == GZIP
    take = _Unzip(data, name).take if packed else _Plain(data, name).take
    zeros, kind, ndim = struct.unpack(">HBB", take(4))
    if zeros or kind not in TYPES:
        raise DataError.at(
            name, 0, f"not an idx file: magic number {zeros:04x}{kind:02x}{ndim:02x}"
        )
    shape = struct.unpack(f">{ndim}I", take(4 * ndim))
    dtype = np.dtype(TYPES[kind])
    size = math.prod(shape) * dtype.itemsize
    available = len(data) * DEFLATE_RATIO if packed else len(data) - 4 - 4 * ndim
    if size > available:
        raise DataError.at(
            name,
            4,
            f"truncated: the header announces {size} bytes, the file has at most {available}",
        )
    flat = np.frombuffer(take(size, last=True), dtype)
    try:
        return flat.reshape(shape).astype(dtype.newbyteorder("="))
    except ValueError as error:  # if one size is zero, the others may be anything
        raise DataError.at(name, 4, f"{ndim} sizes that no array can have ({error})") from error


class _Plain:
    """Reads successive bytes of a plain file."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        self.offset = 0

    def take(self, size: int, last: bool = False) -> bytes:
        start, self.offset = self.offset, self.offset + size
        if self.offset > len(self.data):
            raise DataError.at(
                self.name, len(self.data), f"truncated: {self.offset} bytes expected"
            )
        if last and self.offset < len(self.data):
            raise DataError.at(
                self.name, self.offset, f"{len(self.data) - self.offset} bytes too many"
            )
        return self.data[start : self.offset]


class _Unzip:
    """Reads successive bytes of a gzip stream, unpacking no more than requested."""

    def __init__(self, data: bytes, name: str) -> None:
        self.rest = data
        self.size = len(data)
        self.name = name
        self.stream = zlib.decompressobj(wbits=31)

    def take(self, size: int, last: bool = False) -> bytes:
        out = self._unpack(size)
        if len(out) < size:
            raise DataError.at(
                self.name,
                self.size - len(self.rest),
                f"truncated: {size - len(out)} more bytes expected",
            )
        if last and (self._unpack(1) or self.stream.unused_data):
            raise DataError.at(
                self.name, self.size - len(self.rest), "more bytes than the header announces"
            )
        if last and not self.stream.eof:
            raise DataError.at(self.name, self.size, "truncated: the checksum is missing")
        return out

    def _unpack(self, size: int) -> bytes:
        if not size:  # to zlib, 0 means "no limit"
            return b""
        try:
            out = self.stream.decompress(self.rest, size)
        except zlib.error as error:
            raise DataError.at(
                self.name, self.size - len(self.rest), f"damaged gzip stream ({error})"
            ) from error
        self.rest = self.stream.unconsumed_tail
        return out
