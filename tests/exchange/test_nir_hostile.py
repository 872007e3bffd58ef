"""Hostile NIR files: one line, little memory, little time."""

import struct
import time
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from backspike.errors import BackspikeError
from backspike.exchange import nir_file
from backspike.exchange.nir_read import load

h5py = pytest.importorskip("h5py")


def valid(path):
    with h5py.File(path, "w") as f:
        node = f.create_group("node")
        node["type"] = "NIRGraph"
        node["edges"] = np.array([["input", "w"], ["w", "output"]], dtype=object)
        for name, shape in (("input", 3), ("output", 3)):
            node[f"nodes/{name}/type"] = name.capitalize()
            node[f"nodes/{name}/shape"] = np.array([shape])
        node["nodes/w/type"] = "Linear"
        node["nodes/w/weight"] = np.eye(3)
    return path


@pytest.fixture
def path(tmp_path):
    return valid(tmp_path / "f.nir")


def refusal(path):
    """What reading in this process says; it takes few seconds and 50 MB."""
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(BackspikeError) as error:
            load(path, trusted=True)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 10
    assert str(error.value).isprintable()
    return str(error.value)


def test_the_file_that_these_tests_damage_is_valid(path):
    assert load(path, trusted=True).names == ["input", "output", "w"]


def bomb(path, shape, **options):
    with h5py.File(path, "a") as f:
        del f["node/nodes/w/weight"]
        options = {"chunks": (1 << 20,), "compression": "gzip", "compression_opts": 9} | options
        f["node/nodes/w"].create_dataset("weight", shape, **options)
        return f["node/nodes/w/weight"]


def test_zeros_that_compress_a_thousandfold(path):
    """400 MB in 400 kB: what deflate can do, and so no lie about the size."""
    with h5py.File(path, "a") as f:
        del f["node/nodes/w/weight"]
        options = {"chunks": (1 << 24,), "compression": "gzip", "compression_opts": 9}
        data = f["node/nodes/w"].create_dataset("weight", (50 << 20,), "u1", **options)
        data[...] = 0
    assert path.stat().st_size < 200_000
    assert "expand to too much for a file of" in refusal(path)


def test_filters_upon_filters_expand_further(path):
    """Deflate twice: a chunk claims more than one pass can give."""
    with h5py.File(path, "a") as f:
        del f["node/nodes/w/weight"]
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((16 << 20,))
        plist.set_deflate(9)
        plist.set_filter(h5py.h5z.FILTER_DEFLATE, 0, (9,))
        space = h5py.h5s.create_simple((16 << 20,))
        group = f["node/nodes/w"].id
        data = h5py.h5d.create(group, b"weight", h5py.h5t.NATIVE_UINT8, space, plist)
        h5py.Dataset(data)[...] = np.zeros(16 << 20, np.uint8)
    assert "claims a shape of (16777216,)" in refusal(path)


def test_many_references_to_one_long_text(path):
    """Variable-length text is stored as references; these all lead to the same 100 kB."""
    with h5py.File(path, "a") as f:
        del f["node/edges"]
        texts = ["x" * 100_000] + ["y"] * 49_999
        f["node"].create_dataset("edges", data=np.array(texts, dtype=object))
        offset, size = f["node/edges"].id.get_offset(), f["node/edges"].id.get_storage_size()
    data = bytearray(path.read_bytes())
    first = data[offset : offset + 16]
    assert struct.unpack("<I", first[:4]) == (100_000,)
    data[offset : offset + size] = first * 50_000
    path.write_bytes(data)
    assert "expand to too much" in refusal(path)


def test_shapes_of_a_thousand_million(path):
    bomb(path, (10**9,), dtype="f8")
    assert "claims a shape of (1000000000,)" in refusal(path)
    valid(path)
    bomb(path, (10**5, 10**5), dtype="f4", chunks=(10**3, 10**3))
    assert "claims a shape of (100000, 100000)" in refusal(path)


def test_links_to_elsewhere_and_in_circles(path):
    for link in (
        h5py.ExternalLink("/etc/hostname", "x"),
        h5py.SoftLink("/node/nodes/self"),
        h5py.SoftLink("/node"),
        h5py.SoftLink("/nowhere"),
    ):
        with h5py.File(path, "a") as f:
            f["node/nodes/self"] = link
        assert "'self' is a link to another place" in refusal(path)
        valid(path)
    with h5py.File(path, "a") as f:
        f["node/nodes/round"] = f["node/nodes"]
    assert "stands in two places" in refusal(path)


def test_values_in_other_files(path):
    with h5py.File(path, "a") as f:
        f["node/nodes/w"].create_dataset("bias", (3,), "f8", external=[("/etc/hostname", 0, 24)])
    assert "lies in another file" in refusal(path)
    valid(path)
    layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape=(3,))
    with h5py.File(path, "a") as f:
        f["node/nodes/w"].create_virtual_dataset("bias", layout)
    assert "lies in another file" in refusal(path)


def test_graphs_in_graphs_without_end(path):
    with h5py.File(path, "a") as f:
        place = f["node/nodes"]
        for _ in range(3000):
            place = place.create_group("g").create_group("nodes")
    assert "groups lie more than 16 deep" in refusal(path)


def test_more_entries_than_any_network(path, monkeypatch):
    monkeypatch.setattr(nir_file, "MOST_ENTRIES", 2000)
    with h5py.File(path, "a") as f:
        for i in range(2001):
            f[f"node/metadata/{i}"] = i
    assert "one entry of too many" in refusal(path)


def test_metadata_may_be_long_but_not_endless(path):
    with h5py.File(path, "a") as f:
        f["node/metadata/note"] = "n" * 5_000_000
        f["node/metadata/numbers"] = np.zeros(10_000)
    assert load(path, trusted=True).names
    with h5py.File(path, "a") as f:
        f["node/metadata"].create_dataset("bytes", (1,), dtype="S2000000000", compression="gzip")
    assert "claims a shape of (1,)" in refusal(path)


def test_types_that_nir_does_not_have(path):
    for dtype in (
        np.dtype([("a", "f4"), ("b", "i4")]),
        np.dtype("c16"),
        h5py.vlen_dtype(np.float64),
        h5py.ref_dtype,
    ):
        with h5py.File(path, "a") as f:
            f["node/nodes/w"].create_dataset("extra", (1,), dtype=dtype)
        assert "neither numbers nor text" in refusal(path)
        valid(path)


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\rb", "\u202e", "é\u0301" * 300])
def test_names_with_escapes(path, name):
    with h5py.File(path, "a") as f:
        f[f"node/nodes/{name}/type"] = f"Quantum{name}"
    assert "has the type" in refusal(path)


def test_a_long_line_of_nodes_needs_no_recursion(path):
    n = 3_000
    with h5py.File(path, "a") as f:
        del f["node/edges"]
        names = ["input", *(f"n{i}" for i in range(n)), "output"]
        for name in names[1:-1]:
            f[f"node/nodes/{name}/type"] = "Output"
        f["node/edges"] = np.array([*pairwise(names)], dtype=object)
    started = time.process_time()
    graph = load(path, trusted=True)
    assert len(graph.parts) == n + 3
    assert time.process_time() - started < 60


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("Conv2d", {"padding": [10**9] * 2}, "padding is out of bounds"),
        ("Conv2d", {"dilation": [10**9] * 2}, "dilation is out of bounds"),
        ("Conv2d", {"stride": [0, 1]}, "stride is out of bounds"),
        ("Conv2d", {"groups": -1}, "groups is out of bounds"),
        ("Conv2d", {"padding": [60_000] * 2}, "wider than the kernel"),
        ("AvgPool2d", {"kernel_size": [10**12] * 2}, "kernel_size is out of bounds"),
        ("Flatten", {"start_dim": 1 << 62}, "start_dim is out of bounds"),
        ("Delay", {"delay": [1e300] * 3}, "a delay of more than"),
    ],
)
def test_numbers_that_would_take_all_memory(path, kind, values, message):
    complete = {
        "Conv2d": {
            **{"weight": np.ones((1, 1, 3, 3)), "bias": np.zeros(1), "groups": 1},
            **{"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1]},
        },
        "AvgPool2d": {"kernel_size": [2, 2], "stride": [2, 2], "padding": [0, 0]},
        "Flatten": {"start_dim": 0, "end_dim": -1},
        "Delay": {"delay": [0.0]},
    }[kind] | values
    with h5py.File(path, "a") as f:
        del f["node/nodes/w"]
        f["node/nodes/w/type"] = kind
        f["node/metadata/dt"] = 1e-4
        for key, value in complete.items():
            f[f"node/nodes/w/{key}"] = value
    assert message in refusal(path)
