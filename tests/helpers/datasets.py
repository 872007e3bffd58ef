"""Shared by the tests: parts of what was in test_data.py."""

import gzip
import struct

import numpy as np

from backspike import data
from backspike.data import Events
from backspike.data.formats import atis
from backspike.data.sets.digits import DIGITS


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def few_digits(monkeypatch, counts=(24, 24, 24)):
    """Cuts `digits` to a few samples, because simulating all takes seconds; returns its parts."""
    whole = data.load("digits")
    parts = (whole.train, whole.validation, whole.test)
    few = tuple(part.take(np.arange(n)) for part, n in zip(parts, counts))
    monkeypatch.setitem(vars(DIGITS), "read", lambda source, place: few)
    return few


def fake_mnist(folder, n=120, n_test=30, pack=gzip.compress, suffix=".gz", labels=lambda i: i % 10):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", n), ("t10k", n_test)):
        x = rng.integers(0, 256, (count, 28, 28), np.uint8)
        y = np.array([labels(i) for i in range(count)], np.uint8)
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            write(folder / f"{part}-{kind}-ubyte{suffix}", pack(header + array.tobytes()))
        arrays[part] = x, y
    return arrays


def fake_nmnist(folder, n=24, n_test=6, events=50):
    rng = np.random.default_rng(0)
    for part, count in (("Train", n), ("Test", n_test)):
        for i in range(count):
            t = np.sort(rng.integers(0, 300000, events))
            x, y, p = (
                rng.integers(0, 34, events),
                rng.integers(0, 34, events),
                rng.integers(0, 2, events),
            )
            write(folder / part / str(i % 10) / f"{i + 1:05d}.bin", atis.encode(Events(x, y, t, p)))
