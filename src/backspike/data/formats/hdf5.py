"""Spikes of numbered channels in HDF5 files.

`spikes/times` and `spikes/units` hold one array of variable length for each sample, seconds and channel numbers; `labels` the
classes. Cramer, Stradmann, Schemmel, Zenke 2020, doi:10.1109/TNNLS.2020.3044364. Read through h5py (the extra `events`), by
path and sample by sample: the files reach gigabytes. A file that refers to others, or claims more than it holds, is refused.
HDF5 is a large C library, in which damage can loop for ever or end the process: it runs in a process of its own, which may
take SECONDS for each answer.
"""

import json
import math
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import DataError
from . import Events, one_line
from .idx import DEFLATE_RATIO

SECONDS = 60
_HEAD = struct.Struct("<cQ")  # what an answer is, and its bytes


def labels(path: Path, num_classes: int) -> np.ndarray:
    """The classes of all samples, int64 [N]. Raises DataError for a file that is damaged or no file of spikes."""
    (found,) = _elsewhere(path, num_classes)
    return np.frombuffer(found, np.int64)


def _labels(path: Path, num_classes: int) -> np.ndarray:
    with _opened(path) as file:
        times, units, y = (
            _member(file, path, key) for key in ("spikes/times", "spikes/units", "labels")
        )
        if len({len(times), len(units), len(y)}) != 1:
            raise DataError(
                f"{path}: {len(times)} times, {len(units)} units and {len(y)} labels do not belong together"
            )
        out = _read(path, y, slice(None))
    if (
        out.dtype.kind not in "iu"
        or out.ndim != 1
        or (len(out) and not 0 <= out.min() <= out.max() < num_classes)
    ):
        raise DataError(
            f"{path}: labels of type {out.dtype} {out.shape}: expected whole numbers below {num_classes}"
        )
    return out.astype(np.int64)


def decode(path: Path, samples: Sequence[int], channels: int = 1 << 16) -> Iterator[Events]:
    """The events of the samples with these numbers: x the channel, y and p zero, t in microseconds.

    Raises DataError for a file that is damaged, for spikes outside so many channels or before time zero.
    """
    for found in _elsewhere(path, [int(i) for i in samples], channels):
        t, x = np.split(np.frombuffer(found, np.uint8), [len(found) // 10 * 8])
        zero = np.zeros(len(found) // 10, np.uint16)
        yield Events(x.view(np.uint16), zero, t.view(np.int64), zero.astype(np.uint8))


def _samples(path: Path, samples: Sequence[int], channels: int) -> Iterator[bytes]:
    """Of each sample the times, int64, and then the channels, uint16."""
    with _opened(path) as file:
        times, units = _member(file, path, "spikes/times"), _member(file, path, "spikes/units")
        for i in samples:
            yield _events(path, i, _read(path, times, i), _read(path, units, i), channels)


def _events(path: Path, i: int, times: Any, units: Any, channels: int) -> bytes:
    times, units = np.asarray(times), np.asarray(units)
    if (
        times.ndim != 1
        or times.shape != units.shape
        or times.dtype.kind != "f"
        or units.dtype.kind not in "iu"
    ):
        raise DataError(
            f"{path}: sample {i} has times {times.dtype} {times.shape} and units {units.dtype} {units.shape}"
        )
    seconds = times.astype(np.float64)
    if (
        not ((seconds >= 0) & (seconds < 1e6)).all()
        or not ((units >= 0) & (units < channels)).all()
    ):
        raise DataError(
            f"{path}: sample {i} has spikes before time 0 or outside channels 0 to {channels - 1}"
        )
    return np.rint(seconds * 1e6).astype(np.int64).tobytes() + units.astype(np.uint16).tobytes()


def _h5py(path: Path) -> Any:
    try:
        import h5py
    except Exception as error:  # a broken installation raises more than ImportError
        raise DataError(
            f"{path} is an HDF5 file, which h5py reads: pip install 'backspike[events]' ({one_line(error)})"
        ) from error
    return h5py


def _opened(path: Path) -> Any:
    try:
        return _h5py(path).File(path, "r")
    except DataError:
        raise
    except Exception as error:  # h5py raises OSError, RuntimeError, ValueError, ... for damage
        raise DataError(f"{path}: truncated or damaged HDF5 file ({one_line(error)})") from error


def _member(file: Any, path: Path, key: str) -> Any:
    """The data set `key`, lying in this file, and not larger than what is stored of it can be."""
    import h5py

    try:
        out = file[key]
        own = all(
            isinstance(file.get(part, getlink=True), h5py.HardLink)
            for part in {key, key.split("/")[0]}
        )
        if not own or out.file != file or out.external or out.is_virtual:
            raise ValueError("it lies in another file")
        chunk = math.prod(out.chunks or ()) * out.dtype.itemsize
        if len(out) and max(out.nbytes, chunk) > DEFLATE_RATIO * out.id.get_storage_size():
            raise ValueError(f"{out.shape} of {out.dtype} in {out.id.get_storage_size()} bytes")
        return out
    except Exception as error:
        raise DataError(
            f"{path}: no data set {key!r}: damaged, or no file of spikes ({one_line(error)})"
        ) from error


def _read(path: Path, member: Any, what: Any) -> Any:
    try:
        return member[what]
    except Exception as error:
        raise DataError(
            f"{path}: {member.name} {what} cannot be read: damaged HDF5 file ({one_line(error)})"
        ) from error


# ---- in a process of its own ---------------------------------------------------------------------------------------------


def _elsewhere(path: Path, wanted: int | list[int], channels: int = 0) -> Iterator[bytes]:
    """The bytes of the labels, below that number of classes, or of each of these samples, read by `_child`."""
    _h5py(path)
    places = {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    words = [sys.executable, "-c", "from backspike.data.formats.hdf5 import _child; _child()"]
    pipes: dict[str, Any] = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
    }
    with subprocess.Popen(words, env={**os.environ, **places}, **pipes) as process:
        try:
            with suppress(BrokenPipeError), process.stdin as request:  # type: ignore[union-attr]
                request.write(json.dumps([str(path), wanted, channels, SECONDS]).encode())
            for _ in wanted if isinstance(wanted, list) else [wanted]:
                yield _answer(process, path)
        finally:
            process.kill()


def _answer(process: subprocess.Popen[bytes], path: Path) -> bytes:
    """The next answer, or the end of the process as an error."""
    assert process.stdout is not None
    head = process.stdout.read(_HEAD.size)
    kind, size = _HEAD.unpack(head) if len(head) == _HEAD.size else (b"", 0)
    found: bytes = process.stdout.read(size)
    if not kind or len(found) < size:
        late = process.wait() == -getattr(signal, "SIGALRM", 0)
        why = (
            f"reading it took more than {SECONDS} s"
            if late
            else "reading it ended the process that did"
        )
        raise DataError(f"{path}: damaged HDF5 file ({why})")
    if kind == b"!":
        raise DataError(found.decode("utf-8", "replace"))
    return found


def _child() -> None:
    """Reads what is wanted from standard input, writes the answers to standard output; ends where one takes too long."""
    path, wanted, channels, seconds = json.loads(sys.stdin.buffer.read())
    out, alarm = (
        sys.stdout.buffer,
        getattr(signal, "alarm", int),
    )  # in no C code that loops for ever is it held up
    alarm(seconds)
    try:
        answers = (
            _samples(Path(path), wanted, channels)
            if isinstance(wanted, list)
            else iter([_labels(Path(path), wanted).tobytes()])
        )
        for answer in answers:
            alarm(0)  # writing may have to wait for who reads
            _send(out, b"=", answer)
            alarm(seconds)
    except DataError as error:
        _send(out, b"!", str(error).encode("utf-8", "replace"))


def _send(out: BinaryIO, kind: bytes, answer: bytes) -> None:
    out.write(_HEAD.pack(kind, len(answer)) + answer)
    out.flush()
