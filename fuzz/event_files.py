"""The fuzzing targets of recordings of event cameras."""

from __future__ import annotations

import functools
import io
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from backspike.data import Events
from backspike.data.folder import list_folder, split_by_file
from backspike.data.formats import aedat2, aedat3, aedat4, atis, columns, dat, evt2, evt3, hdf5

RNG = np.random.default_rng(0)
EVENTS = Events(
    RNG.integers(0, 34, 40),
    RNG.integers(0, 34, 40),
    np.sort(RNG.integers(0, 9999, 40)),
    RNG.integers(0, 2, 40),
)


def most_events(per_byte: float) -> Callable[[Events, bytes], None]:
    """A check of events: valid, and at most so many from each byte."""

    def fit(out: Events, data: bytes) -> None:
        assert len({len(axis) for axis in (out.x, out.y, out.t, out.p)}) == 1
        assert len(out) <= per_byte * len(data)
        assert not len(out) or (out.p.max() <= 1 and out.t.min() >= 0)

    return fit


events_fit = most_events(1 / 5)


def _vectors() -> bytes:
    """Words of EVT 3.0: a base, vectors of 12 and 8, and triggers."""
    return struct.pack("<5H", 0x3805, 0x4801, 0x50FF, 0xA001, 0x4FFF)


def _columns() -> dict[str, np.ndarray]:
    return {"x": EVENTS.x, "y": EVENTS.y, "t": EVENTS.t, "p": EVENTS.p}


def _event_csv() -> bytes:
    lines = ["x,y,t,p", *(",".join(map(str, row)) for row in zip(*_columns().values()))]
    return "\n".join(lines).encode()


def _event_arrays(save: Callable[..., None]) -> bytes:
    out = io.BytesIO()
    if save is np.save:
        dtype = [("x", "<u2"), ("y", "<u2"), ("t", "<i8"), ("p", "i1")]
        save(out, np.array(list(zip(*_columns().values())), dtype))
    else:
        save(out, **_columns())
    return out.getvalue()


READERS: dict[str, tuple[Callable[..., Events], bytes, Callable[[Events, bytes], None]]] = {
    "nmnist": (atis.decode, atis.encode(EVENTS), events_fit),
    "aedat2": (aedat2.decode, aedat2.encode(EVENTS), events_fit),
    "aedat3": (aedat3.decode, aedat3.encode(EVENTS, packet=15), events_fit),
    "aedat4": (aedat4.decode, aedat4.encode(EVENTS, packet=15), events_fit),
    "dat": (dat.decode, dat.encode(EVENTS), events_fit),
    "evt2": (evt2.decode, evt2.encode(EVENTS), events_fit),
    # a word of two bytes holds up to twelve events
    "evt3": (evt3.decode, evt3.encode(EVENTS) + _vectors(), most_events(6)),
    "event csv": (columns.decode_csv, _event_csv(), most_events(1 / 3)),
    "event npy": (columns.decode_npy, _event_arrays(np.save), most_events(1)),
    "event npz": (columns.decode_npz, _event_arrays(np.savez_compressed), most_events(100)),
}


@functools.cache
def folder() -> Path:
    """A folder that is deleted with the process."""
    folder.kept = tempfile.TemporaryDirectory()  # type: ignore[attr-defined]
    return Path(folder.kept.name)  # type: ignore[attr-defined]


def hdf5_files() -> list[bytes]:
    import h5py

    out = []
    for group in ("", "events/"):
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            for axis, column in _columns().items():
                file.create_dataset(group + axis, data=column, compression="gzip", chunks=(16,))
        out.append(content.getvalue())
    return out


def read_hdf5(data: bytes) -> None:
    """An endless loop in HDF5 is refused, here after fewer seconds than by default."""
    hdf5.SECONDS = 4
    path = folder() / "f.h5"
    path.write_bytes(data)
    assert len(hdf5.decode_columns(path)) <= 1100 * len(data)


def lists() -> list[bytes]:
    files = "a.dat,0,500,walk a.dat,500,900,run b.dat,,,walk c.dat,,,walk d.dat,,,run e.dat,,,run"
    return [
        "\n".join(["file,start,end,label", *files.split()]).encode(),
        b'part,label,file\r\ntrain,"1",a.dat\r\nval,1,b.dat\r\ntest,1,c.dat\r\n',
    ]


def read_list(data: bytes) -> None:
    for name in "abcde":
        (folder() / f"{name}.dat").touch()
    path = folder() / "recordings.csv"
    path.write_bytes(data)
    found = list_folder(path, lambda name: True)
    parts, classes = split_by_file(found)
    assert sum(map(len, parts)) == len(found)
    assert {f.category for f in found} == set(classes)
