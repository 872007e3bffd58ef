"""Our readers beside independent ones of PyPI, on files that either side wrote.

They are no dependencies: `pip install expelliarmus aedat faery` into the environment of the tests.
"""

import numpy as np
import pytest
from helpers.recordings import some_events

from backspike import data
from backspike.data.formats import aedat4, columns, dat, evt2, evt3

pytestmark = pytest.mark.slow
OURS = {"dat": dat, "evt2": evt2, "evt3": evt3, "aedat4": aedat4}
SUFFIX = {"dat": "dat", "evt2": "raw", "evt3": "raw", "aedat4": "aedat4"}
# 16 s, which is below the 24 bits of EVT 3.0
DURATION = 16_000_000


def recording(n=20_000, duration=DURATION):
    return some_events(7, n, 720, 1280, duration)


def structured(events, dtype):
    array = np.zeros(len(events), dtype)
    for field, axis in zip(array.dtype.names, "txyp"):
        array[field] = getattr(events, axis)
    return array


def differing(ours, theirs, axes="xytp"):
    """The axes in which two recordings differ."""
    fields = {a: "on" if a == "p" and "on" in theirs.dtype.names else a for a in axes}
    return [a for a in axes if not np.array_equal(getattr(ours, a), theirs[fields[a]])]


@pytest.mark.parametrize("name", OURS)
def test_faery_reads_what_we_write(tmp_path, name):
    faery = pytest.importorskip("faery")
    events = recording()
    path = tmp_path / f"a.{SUFFIX[name]}"
    path.write_bytes(OURS[name].encode(events))
    theirs = np.concatenate(list(faery.events_stream_from_file(path)))
    assert differing(events, theirs) == []
    assert differing(data.read_events(path), theirs) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("dat", {"version": "dat2"}),
        ("evt2", {"version": "evt2"}),
        ("evt3", {"version": "evt3"}),
        ("aedat4", {"compression": None}),
        ("aedat4", {"compression": ("lz4", 1)}),
        ("aedat4", {"compression": ("zstd", 3)}),
        ("csv", {}),
    ],
)
def test_we_read_what_faery_writes(tmp_path, name, options):
    faery = pytest.importorskip("faery")
    for kind, package in (("lz4", "lz4.frame"), ("zstd", "zstandard")):
        if kind in (options.get("compression") or ()):
            pytest.importorskip(package)
    events = recording()
    path = tmp_path / f"a.{SUFFIX.get(name, name)}"
    array = structured(events, faery.EVENTS_DTYPE)
    stream = faery.events_stream_from_array(array, (1280, 720))
    stream.to_file(
        path, **({"zero_t0": False} | options if name not in ("aedat4", "csv") else options)
    )
    assert differing(data.read_events(path), array) == []


@pytest.mark.parametrize("name", ["dat", "evt2"])
def test_expelliarmus_agrees_both_ways(tmp_path, name):
    wizard = pytest.importorskip("expelliarmus").Wizard
    events = recording()
    path = tmp_path / f"a.{SUFFIX[name]}"
    path.write_bytes(OURS[name].encode(events))
    read = wizard(encoding=name)
    read.set_file(path)
    array = read.read()
    assert differing(events, array) == []
    wizard(encoding=name).save(fpath=tmp_path / f"b.{SUFFIX[name]}", arr=array)
    assert differing(data.read_events(tmp_path / f"b.{SUFFIX[name]}"), array) == []


def test_expelliarmus_agrees_on_evt3_but_for_its_times(tmp_path):
    """Version 1.1.12 counts each step back of the lower 12 bits as 4096 us, also after a new higher
    part, and writes no higher parts, so that it does not read back the times that it wrote."""
    wizard = pytest.importorskip("expelliarmus").Wizard
    for duration, axes in ((4096, "xytp"), (DURATION, "xyp")):
        events = recording(duration=duration)
        path = tmp_path / "a.raw"
        path.write_bytes(evt3.encode(events))
        read = wizard(encoding="evt3")
        read.set_file(path)
        array = read.read()
        assert differing(events, array, axes) == []
        wizard(encoding="evt3").save(fpath=tmp_path / "b.raw", arr=structured(events, array.dtype))
        assert (
            differing(data.read_events(tmp_path / "b.raw"), structured(events, array.dtype), axes)
            == []
        )


def test_aedat_reads_what_we_write(tmp_path):
    aedat = pytest.importorskip("aedat")
    events = recording(duration=10**13)
    path = tmp_path / "a.aedat4"
    path.write_bytes(aedat4.encode(events))
    decoder = aedat.Decoder(str(path))
    assert decoder.id_to_stream()[0]["type"] == "events"
    assert differing(events, np.concatenate([packet["events"] for packet in decoder])) == []


def test_numpy_arrays_of_expelliarmus_are_read(tmp_path):
    """Its dtype is that of tonic and of the papers: fields t, x, y, p."""
    array = structured(recording(), [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")])
    assert differing(columns.from_array(array), array) == []
