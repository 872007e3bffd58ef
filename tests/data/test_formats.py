"""The readers of official formats, on hand-made bytes: values, round trips and damage."""

import gzip
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backspike.data import DataError, Events
from backspike.data.formats import atis, idx, image_batch


def idx_bytes(array, kind=0x08):
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def cifar_batch(n=3, labels=b"labels"):
    rng = np.random.default_rng(0)
    return {
        b"data": rng.integers(0, 256, (n, 3072), np.uint8),
        labels: [int(i) % 10 for i in range(n)],
    }


# N-MNIST


def test_nmnist_reads_hand_made_events():
    """Two events written bit by bit: x, y, polarity, 23 bits of microseconds."""
    bits = f"{3:08b}{33:08b}1{0x7FFFFF:023b}" + f"{255:08b}{0:08b}0{70000:023b}"
    data = int(bits, 2).to_bytes(10, "big")
    events = atis.decode(data)
    assert [events.x.tolist(), events.y.tolist(), events.t.tolist(), events.p.tolist()] == [
        [3, 255],
        [33, 0],
        [8388607, 70000],
        [1, 0],
    ]
    assert (events.x.dtype, events.y.dtype, events.t.dtype, events.p.dtype) == (
        np.uint16,
        np.uint16,
        np.int64,
        np.uint8,
    )
    assert atis.encode(events) == data


def test_nmnist_overflow_marks_are_dropped_and_shift_later_times():
    rows = [(1, 1, 100), (0, 240, 0), (2, 2, 5), (0, 240, 0), (3, 3, 6)]
    events = atis.decode(
        b"".join(bytes([x, y, t >> 16, t >> 8 & 255, t & 255]) for x, y, t in rows)
    )
    assert events.x.tolist() == [1, 2, 3]
    assert events.t.tolist() == [100, 5 + 8192, 6 + 2 * 8192]


events_strategy = st.lists(
    st.tuples(
        st.integers(0, 255),
        st.integers(0, 255).filter(lambda y: y != 240),
        st.integers(0, 2**23 - 1),
        st.integers(0, 1),
    )
)


@given(events_strategy)
def test_nmnist_round_trip(rows):
    x, y, t, p = np.array(rows, np.int64).reshape(-1, 4).T
    back = atis.decode(atis.encode(Events(x, y, t, p)))
    for got, wanted in zip((back.x, back.y, back.t, back.p), (x, y, t, p)):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    "bad",
    [(256, 0, 0, 0), (0, 240, 0, 0), (0, 0, 2**23, 0), (0, 0, -1, 0), (0, 0, 0, 2), (-1, 0, 0, 0)],
)
def test_nmnist_encoder_refuses_events_that_do_not_fit(bad):
    x, y, t, p = np.array([(1, 1, 1, 1), bad]).T
    with pytest.raises(DataError, match="event 1 "):
        atis.encode(Events(x, y, t, p))


def test_error_for_truncated_nmnist_gives_file_and_offset():
    data = bytes(range(20))
    for size in range(20):
        if size % 5:
            with pytest.raises(DataError, match=rf"7/00001\.bin: byte {size // 5 * 5}: truncated"):
                atis.decode(data[:size], "7/00001.bin")
        else:
            assert len(atis.decode(data[:size])) == size // 5


def test_nmnist_decodes_millions_of_events_per_second():
    data = np.random.default_rng(0).integers(0, 240, 5_000_000, np.uint8).tobytes()
    start = time.perf_counter()
    atis.decode(data)
    assert time.perf_counter() - start < 0.5


# idx


@pytest.mark.parametrize(
    ("kind", "dtype"), [(8, ">u1"), (9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")]
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_idx_types(kind, dtype, pack):
    array = (np.arange(24).reshape(2, 3, 4) - (0 if dtype == ">u1" else 9)).astype(dtype)
    got = idx.decode(pack(idx_bytes(array, kind)))
    assert got.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(got, array)


def test_idx_reads_hand_made_bytes():
    np.testing.assert_array_equal(
        idx.decode(b"\0\0\x08\x02" + b"\0\0\0\x02" + b"\0\0\0\x01" + b"\x07\xff"), [[7], [255]]
    )


@given(st.lists(st.integers(0, 5), max_size=4), st.booleans())
def test_idx_round_trip(shape, packed):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data = idx_bytes(np.asarray(array))
    np.testing.assert_array_equal(idx.decode(gzip.compress(data) if packed else data), array)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_file_cut_at_any_byte_or_extended_is_refused(pack):
    data = pack(idx_bytes(np.arange(30, dtype=np.uint8).reshape(5, 6)))
    for size in range(len(data)):
        with pytest.raises(DataError, match=r"^train-images: byte \d+: ") as error:
            idx.decode(data[:size], "train-images")
        assert int(str(error.value).split("byte ")[1].split(":")[0]) <= size
    with pytest.raises(DataError, match=rf"byte {len(data)}: .*(too many|more bytes)"):
        idx.decode(data + b"\0", "train-images")


@given(st.integers(0, 10**6), st.integers(0, 255))
def test_idx_damaged_gzip_is_refused_or_harmless(place, value):
    array = np.arange(200, dtype=np.uint8)
    data = bytearray(gzip.compress(idx_bytes(array), mtime=0))
    data[place % len(data)] = value
    try:
        got = idx.decode(bytes(data), "f")
    except DataError as error:
        assert str(error).startswith("f: byte ")  # noqa: PT017
    else:
        np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("magic", [b"\0\0\x07\x01", b"\0\1\x08\x01", b"PK\3\4"])
def test_idx_with_a_wrong_magic_number_is_refused(magic):
    with pytest.raises(DataError, match=r"f: byte 0: not an idx file"):
        idx.decode(magic + bytes(100), "f")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_idx_with_a_huge_size_is_refused_before_allocation(pack):
    data = pack(struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1))
    with pytest.raises(DataError, match="f: byte 4: truncated: the header announces"):
        idx.decode(data, "f")


def test_idx_gzip_bomb_is_not_unpacked_beyond_the_announced_size(monkeypatch):
    """A stream of 50 MB announces 10 bytes: it is refused, and zlib never unpacks more than 10."""
    asked = []
    original = zlib.decompressobj

    class Spy:
        def __init__(self, wbits):
            self.stream = original(wbits=wbits)

        def decompress(self, data, size):
            asked.append(size)
            return self.stream.decompress(data, size)

        def __getattr__(self, name):
            return getattr(self.stream, name)

    monkeypatch.setattr(idx.zlib, "decompressobj", Spy)
    bomb = gzip.compress(struct.pack(">HBBI", 0, 8, 1, 10) + bytes(50_000_000))
    with pytest.raises(DataError, match="more bytes than the header announces"):
        idx.decode(bomb, "bomb")
    assert max(asked) == 10
    assert 0 not in asked


# CIFAR


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("labels", [b"labels", b"fine_labels"])
def test_cifar_python(protocol, labels):
    batch = cifar_batch(labels=labels)
    x, y = image_batch.decode_pickle(pickle.dumps(batch, protocol))
    assert x.shape == (3, 3, 32, 32)
    assert x.dtype == np.uint8
    np.testing.assert_array_equal(x.reshape(3, -1), batch[b"data"])
    np.testing.assert_array_equal(y, batch[labels])
    assert y.dtype == np.int64


IMAGE = bytes(range(256)) * 12


def official_batch(n=b"K\x01"):
    """One image of class 7, with the opcodes of the official files.

    These have Python 2 strings, `numpy.core` names and protocol 2.
    """
    dtype = (
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    state = (
        b"(K\x01(" + n + b"M\x00\x0ct" + dtype + b"\x89T" + struct.pack("<I", 3072) + IMAGE + b"tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR" + state
    return b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eu."


def test_cifar_python_reads_what_python_2_wrote():
    x, y = image_batch.decode_pickle(official_batch())
    assert x.tobytes() == IMAGE
    assert y.tolist() == [7]


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_pickle_cannot_run_code(tmp_path, protocol):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    with pytest.raises(DataError, match=r"f: byte \d+: .*names (io|_io)\.open"):
        image_batch.decode_pickle(pickle.dumps({"x": Evil()}, protocol), "f")
    assert not (tmp_path / "ran").exists()


def test_cifar_python_cut_at_any_byte_is_refused():
    data = official_batch()
    for size in range(len(data)):
        with pytest.raises(DataError, match=r"^data_batch_1: byte \d+: "):
            image_batch.decode_pickle(data[:size], "data_batch_1")
    with pytest.raises(DataError, match=rf"byte {len(data)}: 1 bytes too many"):
        image_batch.decode_pickle(data + b"\0", "data_batch_1")


@given(st.binary(max_size=200))
def test_cifar_python_refuses_random_bytes(noise):
    with pytest.raises(DataError):
        image_batch.decode_pickle(noise)


def test_cifar_pickle_with_huge_sizes_is_refused_before_allocation():
    """Missing bytes, a memo of 4 GB, labels nested to 10^30 elements."""
    with pytest.raises(DataError, match=r"f: byte 2: .*\(2147483647 bytes are missing\)"):
        image_batch.decode_pickle(b"\x80\x03B\xff\xff\xff\x7f", "f")
    with pytest.raises(DataError, match=r"f: byte 3: .*a memo index"):
        image_batch.decode_pickle(b"\x80\x02}r\x00\x00\x00\x10.", "f")
    labels = [1] * 10
    for _ in range(30):
        labels = [labels] * 10
    with pytest.raises(DataError, match="the labels are not a list of whole numbers"):
        image_batch.decode_pickle(pickle.dumps({**cifar_batch(), b"labels": labels}, 4))


@pytest.mark.parametrize(
    "change",
    [
        {b"data": np.zeros((3, 3071), np.uint8)},
        {b"data": np.zeros((2, 3072), np.uint8)},
        {b"data": np.zeros((3, 3072), np.int8)},
        {b"data": np.asfortranarray(np.arange(3 * 3072).reshape(3, 3072).astype(np.uint8))},
        {b"data": [1, 2, 3]},
        {b"labels": None},
        {b"labels": [1, 2]},
        {b"labels": [1.5, 2.0, 3.0]},
        {b"labels": [[1], [2], [3]]},
    ],
)
def test_cifar_python_refuses_invalid_contents(change):
    with pytest.raises(DataError, match="f: byte 0: not a batch of images"):
        image_batch.decode_pickle(pickle.dumps({**cifar_batch(), **change}, 4), "f")


def test_cifar_python_refuses_an_array_shorter_than_its_shape():
    """A state claims 1,000,000 images and contains one."""
    with pytest.raises(DataError, match=r"not a batch of images .*1000000"):
        image_batch.decode_pickle(official_batch(n=b"J\x40\x42\x0f\x00"), "f")


@pytest.mark.parametrize("label_bytes", [1, 2])
def test_cifar_binary(label_bytes):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 3, 32, 32), np.uint8)
    data = b"".join(
        bytes([9, 50 + i][-label_bytes:]) + image.tobytes() for i, image in enumerate(images)
    )
    x, y = image_batch.decode_binary(data, label_bytes=label_bytes)
    np.testing.assert_array_equal(x, images)
    assert y.tolist() == [50, 51, 52, 53]
    record = 3072 + label_bytes
    for size in (0, 1, record - 1, record + 1, 4 * record - 1):
        with pytest.raises(
            DataError, match=rf"^train\.bin: byte {size // record * record}: truncated"
        ):
            image_batch.decode_binary(data[:size], "train.bin", label_bytes)
