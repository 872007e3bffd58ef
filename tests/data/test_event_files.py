"""Readers of recordings of event cameras: each format by its specification, and damage."""

import importlib.util
import struct
import zipfile

import numpy as np
import pytest
from helpers.recordings import some_events

from backspike import data
from backspike.data import DataError, Events
from backspike.data.formats import (
    aedat2,
    aedat3,
    aedat4,
    atis,
    columns,
    dat,
    event_file,
    evt2,
    evt3,
    hdf5,
)
from backspike.system import workers

needs_h5py = pytest.mark.skipif(
    importlib.util.find_spec("h5py") is None, reason="no h5py: pip install 'backspike[events]'"
)


def equal(a, b):
    for axis in "xytp":
        np.testing.assert_array_equal(getattr(a, axis), getattr(b, axis), err_msg=axis)


def lists(events):
    return [getattr(events, axis).tolist() for axis in "xytp"]


ENCODERS = {
    "a.dat": dat.encode,
    "2.raw": evt2.encode,
    "3.raw": evt3.encode,
    "a.aedat4": aedat4.encode,
    "2.aedat": aedat2.encode,
    "3.aedat": aedat3.encode,
    "a.bin": atis.encode,
}


@pytest.mark.parametrize("name", ENCODERS)
def test_every_binary_format_is_recognised(tmp_path, name):
    events = some_events(3, n=500, height=128, width=128, duration=2_000_000)
    path = tmp_path / name
    path.write_bytes(ENCODERS[name](events))
    got = data.read_events(path)
    equal(got, events)
    assert [a.dtype for a in (got.x, got.y, got.t, got.p)] == ["u2", "u2", "i8", "u1"]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_recording_without_events_is_empty(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(ENCODERS[name](some_events(0, n=0)))
    assert len(data.read_events(path)) == 0


# ---- Prophesee: words written by hand, after the tables of the description ----


def test_dat_words_have_the_places_of_the_description():
    """x in bits 0-13, y in 14-27, polarity in 28-31; times beyond 2^32 us are wraps."""
    words = [5, 1 << 28 | 9 << 14 | 1279, 0xFFFFFFF0, 719 << 14, 7, 1 << 28 | 16383]
    head = b"% Data file containing CD events.\n% Version 2\n"
    events = dat.decode(head + bytes([12, 8]) + struct.pack("<6I", *words))
    x, y, t, p = [1279, 0, 16383], [9, 719, 0], [5, 0xFFFFFFF0, (1 << 32) + 7], [1, 0, 1]
    assert lists(events) == [x, y, t, p]


def test_evt2_words_have_the_places_of_the_description():
    """Type 8 sets bits 6-33 of the time; 28 bits of it wrap; triggers are skipped."""
    words = [
        0 << 28 | 1 << 22 | 3 << 11 | 4,  # before the first time: dropped
        8 << 28 | 2,
        1 << 28 | 63 << 22 | 2047 << 11 | 5,
        0xA << 28 | 1,
        0 << 28 | 0 << 22 | 6 << 11 | 2047,
        8 << 28 | 0x0FFFFFFF,
        1 << 28 | 1 << 22,
        8 << 28 | 1,
        1 << 28 | 2 << 22,
    ]
    events = evt2.decode(b"% evt 2.0\n" + struct.pack("<9I", *words))
    t = [2 * 64 + 63, 2 * 64, 0x0FFFFFFF * 64 + 1, (1 << 34) + 64 + 2]
    assert lists(events) == [[2047, 6, 0, 0], [5, 2047, 0, 0], t, [1, 0, 1, 1]]


def test_evt3_vectors_and_times_follow_the_description():
    words = [
        2 << 12 | 9,  # an event before the first row and time: dropped
        8 << 12 | 1,
        0 << 12 | 100,
        6 << 12 | 7,
        2 << 12 | 1 << 11 | 300,
        3 << 12 | 1 << 11 | 640,
        4 << 12 | 0b1000_0000_0001,
        5 << 12 | 0b1111_1000_0001,  # bits 8-11 of a vector of 8 mean nothing
        4 << 12 | 0b10,
        3 << 12 | 8,
        5 << 12 | 0b100,
        8 << 12 | 2,  # sets the lower part to 0
        2 << 12 | 10,
        8 << 12 | 2,  # repeated: keeps the lower part
        6 << 12 | 4095,
        8 << 12 | 2,
        2 << 12 | 11,
        8 << 12 | 0,  # wraps after 2^24 us? a step back by 2 of 4096 does not
        0xA << 12 | 5,
        0 << 12 | 1 << 11 | 101,  # bit 11: the slave camera
        2 << 12 | 12,
    ]
    events = evt3.decode(b"% format EVT3;height=720;width=1280\n" + struct.pack("<21H", *words))
    x = [300, 640, 651, 652, 659, 661, 10, 10, 11, 12]
    p = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
    t = [4096 + 7] * 7 + [8192, 8192 + 4095, 0]
    assert lists(events) == [x, [100] * 9 + [101], t, p]


def test_the_time_of_evt3_wraps_after_24_bits():
    words = [8 << 12 | 4095, 0, 6 << 12 | 9, 2 << 12, 8 << 12 | 0, 2 << 12, 8 << 12 | 3, 2 << 12]
    events = evt3.decode(b"% evt 3.0\n% end\n" + struct.pack("<8H", *words))
    assert events.t.tolist() == [(4095 << 12) + 9, 1 << 24, (1 << 24) + (3 << 12)]


def test_a_vector_beyond_2048_columns_is_damage():
    words = [8 << 12, 0, 3 << 12 | 2047, 4 << 12 | 0b10]
    with pytest.raises(DataError, match=r"^f: byte 16: an event at x=2048: damaged"):
        evt3.decode(b"% evt 3.0\n" + struct.pack("<4H", *words), "f")


@pytest.mark.parametrize(
    ("decode", "content", "message"),
    [
        (dat.decode, b"% Version 1\n\x0c\x08", "byte 0: DAT of version '1'"),
        (dat.decode, b"% Version 2\n\x0e\x08", "byte 12: events of kind 14 with 8 bytes"),
        (dat.decode, b"% Version 2\n\x0c", "byte 13: truncated"),
        (dat.decode, b"% Version 2\n\x0c\x08" + bytes(9), "byte 22: truncated: 1 of the 8 bytes"),
        (dat.decode, b"% Version 2\n\x0c\x08" + bytes(7) + b"\x70", "byte 14: polarity 7"),
        (dat.decode, b"\0\0", r"byte 0: not a DAT file"),
        (evt2.decode, b"% evt 3.0\n", "byte 0: not a file of format EVT2: it is 'EVT3'"),
        (evt2.decode, b"% evt 2.0\n\0\0\0\x20", "byte 10: a word of unknown type 2"),
        (evt2.decode, b"% evt 2.0\n" + bytes(6), "byte 14: truncated: 2 of the 4 bytes"),
        (evt3.decode, b"% evt 3.0\n\0\x10", "byte 10: a word of unknown type 1"),
        (evt3.decode, b"% evt 3.0\n\0", "byte 10: truncated: 1 of the 2 bytes"),
        (event_file.decode, b"% evt 2.1\n", "byte 0: events coded as 'EVT21'"),
        (event_file.decode, b"RIFF", "byte 0: no recording in a known format"),
        (aedat4.decode, b"#!AER-DAT4.0\r\n", "byte 14: truncated or damaged"),
    ],
)
def test_damage_is_one_line_with_the_offset(decode, content, message):
    with pytest.raises(DataError) as refusal:
        decode(content, "f")
    assert str(refusal.value).startswith(f"f: {message}")


@pytest.mark.parametrize("end", [-1, -5, 40, 700])
def test_a_truncated_aedat4_file_is_refused(end):
    content = aedat4.encode(some_events(1, n=100))
    with pytest.raises(DataError, match=r"^f: byte [0-9]+: truncated"):
        aedat4.decode(content[:end], "f")


def test_a_packet_that_unpacks_without_end_is_refused():
    packed = pytest.importorskip("zstandard").ZstdCompressor().compress(bytes(1 << 22))
    content = bytearray(aedat4.encode(some_events(1, n=0)))
    content[58] = 3  # the compression, in the header's FlatBuffer
    bomb = bytes(content) + struct.pack("<ii", 0, len(packed)) + packed
    with pytest.raises(DataError, match=r"^f: byte [0-9]+: a packet unpacks to more than"):
        aedat4.decode(bomb, "f")


@pytest.mark.parametrize(("kind", "package"), [(1, "lz4"), (3, "zstandard"), (7, "")])
def test_a_missing_package_for_a_compression_is_named(kind, package, monkeypatch):
    for name in ("lz4", "lz4.frame", "zstandard"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    content = bytearray(aedat4.encode(some_events(1, n=0)))
    content[58] = kind
    message = rf"needs {package}: pip install 'backspike\[events\]'"
    with pytest.raises(
        DataError, match=message if package else "byte 14: compression 7 is unknown"
    ):
        aedat4.decode(bytes(content), "f")


def test_events_of_two_cameras_are_refused():
    one = aedat4.encode(some_events(1, n=10), packet=5)
    second = one.rindex(struct.pack("<i4sH", 16, b"EVTS", 6)) - 12
    two = one[:second] + struct.pack("<i", 4) + one[second + 4 :]
    with pytest.raises(DataError, match="f: byte 0: events of 2 cameras"):
        aedat4.decode(two, "f")


# ---- columns ----

X, Y, T, P = [1, 639, 3], [4, 5, 479], [7, 8, 2**40], [0, 1, 1]
WANTED = [X, Y, T, P]


def saved(path, array):
    np.save(path, array)
    return path


@pytest.mark.parametrize("p", [P, [-1, 1, 1], [False, True, True], [0.0, 1.0, 1.0]])
@pytest.mark.parametrize("names", ["xytp", ("x", "y", "timestamp", "polarity")])
def test_structured_arrays(tmp_path, names, p):
    kinds = ["u2", "i4", "f8", np.array(p).dtype]
    order = (2, 3, 0, 1)  # fields in any order
    array = np.zeros(3, [(names[i], kinds[i]) for i in order])
    for name, column in zip(names, (X, Y, T, p)):
        array[name] = column
    assert lists(data.read_events(saved(tmp_path / "a.npy", array))) == WANTED
    np.savez_compressed(tmp_path / "a.npz", events=array)
    assert lists(data.read_events(tmp_path / "a.npz")) == WANTED


def test_columns_without_names_are_x_y_t_p(tmp_path):
    array = np.array(WANTED).T
    assert lists(data.read_events(saved(tmp_path / "a.npy", array))) == WANTED
    np.savez(tmp_path / "a.npz", x=X, y=Y, ts=T, pol=P, comment=np.zeros(5))
    assert lists(data.read_events(tmp_path / "a.npz")) == WANTED


@pytest.mark.parametrize(
    "text",
    [
        "1,4,7,0\n639,5,8,1\n3,479,1099511627776,1\n",
        "# a comment\n% another\nt,x,y,p\n7,1,4,-1\r\n8,639,5,1\r\n1099511627776,3,479,1",
        "timestamp; x; y; polarity\n7;1;4;0\n\n8;639;5;1\n1099511627776;3;479;1\n",
        "x y t p\n1 4 7.0 0\n639 5 8e0 1\n3 479 1099511627776 1\n",
    ],
)
def test_text_files(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode())
    assert lists(data.read_events(tmp_path / "a.csv")) == WANTED


def test_channels_need_no_row_and_no_polarity(tmp_path):
    (tmp_path / "a.csv").write_text("t,x\n1,700\n")
    assert lists(data.read_events(tmp_path / "a.csv")) == [[700], [0], [1], [0]]


@pytest.mark.parametrize("text", ["", "x,y,t,p\n", "# nothing\n"])
def test_text_files_without_events(text):
    assert len(columns.decode_csv(text.encode())) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3,1\n1,2,x,1\n", "f: byte 8: a line that is not 4 numbers"),
        ("1,2,3,1\n1,2,3\n", "f: byte 8: a line that is not 4 numbers"),
        ("1,2,3\n", "f: byte 0: '1,2,3': expected the columns x, y, t, p"),
        ("x,x,t,p\n", "f: byte 0: 'x,x,t,p': expected the columns"),
        ("a,y,t,p\n1,2,3,0\n", "f: byte 0: no column x: columns are x, y, t, p; it has a, y, t, p"),
        ("1,2,0.5,0\n", "f: byte 0: column t holds fractions: expected whole microseconds"),
        ("1,2,nan,0\n", "f: byte 0: column t holds fractions"),
        ("1,2,-3,0\n", "f: byte 0: column t reaches from -3"),
        ("70000,2,3,0\n", "f: byte 0: column x reaches from 70000"),
        ("1,2,3,2\n", "f: byte 0: column p reaches from 2"),
        ("1,2,3,-1\n1,2,3,0\n", "f: byte 0: polarities -1 and 0 together"),
        ("1,2,3,\xe9\n", "f: byte 6: not ASCII text"),
    ],
)
def test_wrong_text_is_one_line(text, message):
    with pytest.raises(DataError) as refusal:
        columns.decode_csv(text.encode("latin1"), "f")
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


def test_wrong_arrays_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"expected events, a structured array with the fields"):
        data.read_events(saved(tmp_path / "a.npy", np.zeros((3, 5))))
    with pytest.raises(DataError, match="column x is of type complex128"):
        data.read_events(saved(tmp_path / "a.npy", np.zeros((3, 4), complex)))
    np.savez(tmp_path / "a.npz", x=[1], y=[1, 2], t=[1], p=[1])
    with pytest.raises(DataError, match=r"a\.npz: byte 0: columns of the shapes"):
        data.read_events(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"b\.npz: byte 0: truncated or damaged archive"):
        data.read_events(tmp_path / "b.npz")


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for axis in "xytp":
            archive.writestr(f"{axis}.npy", bytes(1 << 22))
    with pytest.raises(DataError, match="unpacks to"):
        data.read_events(tmp_path / "a.npz")


@needs_h5py
@pytest.mark.parametrize("group", ["", "events/", "CD/events/"])
def test_hdf5_columns(tmp_path, group):
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        for axis, column in zip(("x", "y", "ts", "p"), WANTED):
            file.create_dataset(group + axis, data=column, compression="gzip", chunks=(2,))
    assert lists(data.read_events(tmp_path / "a.h5")) == WANTED


@needs_h5py
def test_hdf5_fields_and_damage(tmp_path):
    import h5py

    array = np.zeros(3, [("x", "u2"), ("y", "u2"), ("p", "i2"), ("t", "i8")])
    for axis, column in zip("xytp", WANTED):
        array[axis] = column
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["CD/events"] = array
    assert lists(data.read_events(path)) == WANTED
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["a"] = [1]
    with pytest.raises(DataError, match=r"b\.h5: no events: expected data sets x, y, t, p"):
        data.read_events(tmp_path / "b.h5")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"a\.hdf5: truncated or damaged HDF5 file"):
        data.read_events(path)


@needs_h5py
def test_one_process_reads_many_hdf5_files(tmp_path, monkeypatch):
    import h5py

    def save(name, first):
        with h5py.File(tmp_path / name, "w") as file:
            for axis, column in zip("xytp", WANTED):
                file[axis] = [first, *column[1:]] if axis == "x" else column

    started = []

    class Counted(workers.Worker):
        def __init__(self, **options):
            started.append(self)
            super().__init__(**options)

    monkeypatch.setattr(hdf5, "Worker", Counted)
    with hdf5.one_worker():
        for i in range(3):
            save("a.h5", i)  # the same name, with other content
            assert data.read_events(tmp_path / "a.h5").x[0] == i
        assert len(started) == 1
        (tmp_path / "b.h5").write_bytes(b"damaged")
        with pytest.raises(DataError, match=r"b\.h5"):
            data.read_events(tmp_path / "b.h5")
        assert data.read_events(tmp_path / "a.h5").x[0] == 2
    assert len(started) == 2
    assert all(worker.process.returncode is not None for worker in started)
    data.read_events(tmp_path / "a.h5")
    assert started[2].process.returncode is not None


def test_missing_files_and_folders_are_one_line(tmp_path):
    with pytest.raises(DataError, match=r"a\.dat cannot be read: No such file"):
        data.read_events(tmp_path / "a.dat")
    with pytest.raises(DataError, match="cannot be read: not a regular file"):
        data.read_events(tmp_path)


@pytest.mark.parametrize("encode", [dat.encode, evt2.encode, evt3.encode, aedat4.encode])
def test_what_a_format_cannot_hold_is_refused(encode):
    one = np.ones(1, int)
    for bad in (Events(one * 70000, one, one, one), Events(one, one, -one, one)):
        with pytest.raises(DataError, match="event 0 does not fit"):
            encode(bad)
