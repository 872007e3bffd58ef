"""Readers on damaged and made-up bytes: a DataError or arrays that fit the bytes, at once, and nothing else.

The quick tests run always; `-m slow` runs the same for minutes.
"""

import importlib.util
import io
import multiprocessing
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backspike.data import DataError, Events
from backspike.data.formats import aedat2, aedat3, cifar, gesture, idx, nmnist, picture, shd

RNG = np.random.default_rng(0)
EVENTS = Events(RNG.integers(0, 34, 40), RNG.integers(0, 34, 40), np.sort(RNG.integers(0, 9999, 40)), RNG.integers(0, 2, 40))


def _picture(kind):
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (20, 24, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def _events_fit(out, data):
    assert len({len(axis) for axis in (out.x, out.y, out.t, out.p)}) == 1
    assert len(out) <= len(data) / 5
    assert not len(out) or (out.p.max() <= 1 and out.t.min() >= 0)


def _arrays_fit(out, data):
    for array in out if isinstance(out, tuple) else (out,):
        assert array.nbytes <= 1100 * len(data)


READERS = {
    "nmnist": (nmnist.decode, nmnist.encode(EVENTS), _events_fit),
    "aedat2": (aedat2.decode, aedat2.encode(EVENTS), _events_fit),
    "aedat3": (aedat3.decode, aedat3.encode(EVENTS, packet=15), _events_fit),
    "labels": (gesture.labels, b"class,startTime_usec,endTime_usec\r\n1,5,9\r\n11,10,12\r\n", lambda out, data: None),
    "trials": (gesture.trials, b"user01_led.aedat\nuser29_natural.aedat\n", lambda out, data: None),
    "idx": (idx.decode, struct.pack(">HBB2I", 0, 8, 2, 4, 5) + bytes(20), _arrays_fit),
    "cifar binary": (cifar.decode_binary, bytes(3073), _arrays_fit),
    "cifar python": (
        cifar.decode_python,
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [3]}, 4),
        lambda out, data: None,
    ),
    "jpeg": (picture.decode, _picture("JPEG"), lambda out, data: None),
    "png": (picture.decode, _picture("PNG"), lambda out, data: None),
}
changes = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["flip", "set", "cut", "drop", "repeat", "insert", "word"]), st.integers(0, 2**32 - 1)
    ),
    max_size=6,
)


def changed(data, where, kind, value):
    at = int(where * len(data))
    head, tail = data[:at], data[at:]
    match kind:
        case "flip":
            return head + bytes([tail[0] ^ 1 << value % 8]) + tail[1:] if tail else data
        case "set":
            return head + bytes([value % 256]) + tail[1:]
        case "cut":
            return head
        case "drop":
            return head + tail[1 + value % 16 :]
        case "repeat":
            return head + tail[: value % 64] + tail
        case "insert":
            return head + value.to_bytes(4, "little") + tail
        case "word":
            return head + value.to_bytes(4, "big") + tail[4:]


def damaged(data, steps):
    """The bytes after some changes at places given as a share of the length."""
    for step in steps:
        data = changed(data, *step)
    return data


def check(name, data):
    decode, _, fits = READERS[name]
    refusal = None
    start = time.monotonic()
    tracemalloc.start()
    try:
        fits(decode(data, "f"), data)
    except DataError as error:
        refusal = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 5_000_000 + 1200 * len(data)
    assert time.monotonic() - start < 5
    if refusal:
        assert refusal.startswith("f: byte ")
        assert "\n" not in refusal
        assert int(refusal.split("byte ")[1].split(":")[0]) <= len(data)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(steps=changes)
def test_damaged_bytes(name, steps):
    check(name, damaged(READERS[name][1], steps))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(noise=st.binary(max_size=300), keep=st.integers(0, 200))
def test_noise_behind_a_good_beginning(name, noise, keep):
    check(name, READERS[name][1][:keep] + noise)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=8_000, suppress_health_check=list(HealthCheck), deadline=None)
@given(steps=changes, noise=st.binary(max_size=60))
def test_damaged_bytes_for_minutes(name, steps, noise):
    check(name, damaged(READERS[name][1] + noise, steps))


@pytest.mark.parametrize("name", READERS)
def test_the_bytes_that_are_damaged_are_good(name):
    decode, data, fits = READERS[name]
    fits(decode(data), data)


# HDF5 is read by a C library: it is tried in a process of its own, which must not crash


def _read_spoken(path, queue):
    try:
        queue.put(sum(len(events) for events in shd.decode(path, range(len(shd.labels(path, 20))))))
    except DataError as error:
        queue.put(str(error))


def _spoken(path):
    import h5py

    with h5py.File(path, "w") as file:
        for key, kind in (("times", "float16"), ("units", "uint16")):
            member = file.create_dataset(f"spikes/{key}", (6,), dtype=h5py.vlen_dtype(np.dtype(kind)))
            for i in range(6):
                member[i] = np.arange(i + 1).astype(kind) / (1 if key == "units" else 16)
        file["labels"] = np.arange(6, dtype=np.uint8)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="no h5py: pip install 'backspike[events]'")
def test_damaged_hdf5(tmp_path):
    good = _spoken(tmp_path / "good.h5")
    context = multiprocessing.get_context("spawn")
    rng = np.random.default_rng(0)
    for trial in range(60):
        data = bytearray(good)
        for at in rng.integers(0, len(good), 1 + trial % 4):
            data[at] ^= 1 << int(rng.integers(8))
        path = tmp_path / "bad.h5"
        path.write_bytes(bytes(data[: len(data) if trial % 3 else int(rng.integers(len(data)))]))
        queue = context.Queue()
        child = context.Process(target=_read_spoken, args=(path, queue))
        child.start()
        answer = queue.get(timeout=60)
        child.join(60)
        assert child.exitcode == 0
        assert isinstance(answer, int) or "bad.h5" in answer
