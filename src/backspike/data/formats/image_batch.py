"""Batches of labelled colour images of 32 x 32 pixels: Python pickles, and a binary version.

A pickle can name any function, run it, and claim any size. Here, the names in an official batch
become inert records, any other name is refused, and arrays are built from the recorded bytes: no
file, official or not, can run code. Sizes and memo indices are checked against the file before the
pickle is read.
An image has 3,072 bytes: red, green and blue planes in row order; Krizhevsky 2009.
"""

import io
import pickle
import pickletools
from typing import Any

import numpy as np

from ...errors import DataError
from . import one_line

SHAPE = (3, 32, 32)
IMAGE_BYTES = 3072
NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
# the size of the argument of each pickle instruction, or how that size is encoded
ARGUMENTS = {
    op.code.encode("latin1"): op.arg.n if op.arg else 0
    for op in pickletools.opcodes
    if op.code not in "ip"
}
PREFIX = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
LINES = {pickle.GLOBAL: 2}


def decode_pickle(data: bytes, name: str = "<bytes>") -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of a pickled batch.

    Fine labels are preferred to coarse ones. Raises DataError for a truncated or damaged pickle,
    for any name outside `NAMES`, and for content that is not a batch.
    """
    _scan(data, name)
    stream = io.BytesIO(data)
    try:
        batch = _Unpickler(stream, encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise nearly anything
        raise DataError.at(
            name, stream.tell(), f"truncated or damaged pickle ({one_line(error)})"
        ) from error
    if stream.tell() < len(data):
        raise DataError.at(name, stream.tell(), f"{len(data) - stream.tell()} bytes too many")
    try:
        raw, shape = _array(batch[b"data"])
        listed = batch.get(b"labels", batch.get(b"fine_labels"))
        if not isinstance(listed, list) or any(type(label) is not int for label in listed):
            raise ValueError("the labels are not a list of whole numbers")
        labels = np.array(listed)
        if shape != (len(labels), IMAGE_BYTES) or labels.dtype.kind not in "iu":
            raise ValueError(f"data {shape} with labels {labels.dtype} {labels.shape}")
        images = np.frombuffer(raw, np.uint8).reshape(-1, *SHAPE)
    except Exception as error:
        raise DataError.at(name, 0, f"not a batch of images ({one_line(error)})") from error
    return images, labels.astype(np.int64)


def decode_binary(
    data: bytes, name: str = "<bytes>", label_bytes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N] of a `.bin` batch.

    A record has `label_bytes` labels (1, or 2: coarse, then fine; the last one is returned) and the
    image. Raises DataError if the last record is incomplete.
    """
    record = label_bytes + IMAGE_BYTES
    count, rest = divmod(len(data), record)
    if rest or not count:
        raise DataError.at(
            name, count * record, f"truncated: {rest} of the {record} bytes of a record"
        )
    table = np.frombuffer(data, np.uint8).reshape(count, record)
    return table[:, label_bytes:].reshape(-1, *SHAPE), table[:, label_bytes - 1].astype(np.int64)


def _scan(data: bytes, name: str) -> None:
    """Checks that no argument extends beyond the file, and no memo index beyond its position."""
    at = 0
    while at < len(data):
        start, code = at, data[at : at + 1]
        if code not in ARGUMENTS:
            raise DataError.at(name, at, f"truncated or damaged pickle (no instruction {code!r})")
        if code == pickle.STOP:
            return
        kind = ARGUMENTS[code]
        at += 1 + PREFIX.get(kind, max(kind, 0))
        if kind in PREFIX:
            at += int.from_bytes(data[start + 1 : at], "little")
        for _ in range(LINES.get(code, 1 if kind == pickletools.UP_TO_NEWLINE else 0)):
            at = data.find(b"\n", at) + 1 or len(data) + 1
        if at > len(data):
            raise DataError.at(
                name, start, f"truncated or damaged pickle ({at - len(data)} bytes are missing)"
            )
        if code == pickle.LONG_BINPUT and int.from_bytes(data[start + 1 : at], "little") > start:
            raise DataError.at(
                name, start, "truncated or damaged pickle (a memo index that no batch needs)"
            )


class _Inert:
    """Replaces a name in a pickle: records how it was called and does nothing."""

    __slots__ = ("args", "state")

    def __init__(self, *args: Any) -> None:
        self.args: tuple[Any, ...] = args
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_Inert]:
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(
                f"names {module}.{name}, which no batch of images contains"
            )
        return _Inert


def _array(record: _Inert) -> tuple[bytes, tuple[int, ...]]:
    """Bytes and shape of a pickled uint8 array, from the state documented by ndarray.__reduce__."""
    _, shape, dtype, fortran, raw = record.state
    if dtype.args[0] not in ("u1", b"u1") or fortran:
        raise ValueError("the images are not a uint8 array in C order")
    return raw, shape
