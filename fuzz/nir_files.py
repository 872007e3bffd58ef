"""The fuzzing targets of NIR files: damaged HDF5, and contents that HDF5 can hold but NIR cannot.

Reading runs in a worker, as HDF5 may crash or loop; what was read becomes a network in this
process, which also runs it.
"""

from __future__ import annotations

import functools
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from backspike.errors import ExchangeError


@functools.cache
def _folder() -> Path:
    _folder.kept = tempfile.TemporaryDirectory()  # type: ignore[attr-defined]
    return Path(_folder.kept.name)  # type: ignore[attr-defined]


def _graph() -> Any:
    """A node of every type, a branch, a cycle and a graph in a graph."""
    import nir

    one, rng = np.ones(4), np.random.default_rng(0)
    lif = {"r": one, "v_leak": 0 * one, "v_threshold": one / 2, "v_reset": 0 * one}
    inner = nir.NIRGraph(
        nodes={
            "input": nir.Input({"input": np.array([4])}),
            "scale": nir.Scale(3 * one),
            "output": nir.Output({"output": np.array([4])}),
        },
        edges=[("input", "scale"), ("scale", "output")],
    )
    pool = np.array([2, 2]), np.array([2, 2]), np.array([0, 0])
    nodes = {
        "input": nir.Input({"input": np.array([2, 8, 8])}),
        "conv": nir.Conv2d((8, 8), rng.random((3, 2, 3, 3)), 1, 1, 1, 1, np.zeros(3)),
        "if": nir.IF(r=np.full((3, 8, 8), 1e4), v_threshold=np.ones((3, 8, 8))),
        "average": nir.AvgPool2d(*pool),
        "sum": nir.SumPool2d(*pool),
        "flatten": nir.Flatten({"input": np.array([3, 2, 2])}, 0, -1),
        "linear": nir.Linear(rng.random((4, 12))),
        "lif": nir.LIF(tau=one * 3e-4, **lif),
        "back": nir.Affine(rng.random((4, 4)), np.zeros(4)),
        "graph": inner,
        "cuba": nir.CubaLIF(tau_mem=one * 3e-4, tau_syn=one * 2e-4, w_in=one, **lif),
        "delay": nir.Delay(one * 2e-4),
        "threshold": nir.Threshold(one / 2),
        "li": nir.LI(tau=one * 4e-4, r=one, v_leak=0 * one),
        "i": nir.I(r=one * 1e4),
        "output": nir.Output({"output": np.array([4])}),
    }
    row = ("input", "conv", "if", "average", "sum", "flatten", "linear", "lif", "graph", "cuba")
    row += ("delay", "threshold", "li", "i", "output")
    edges = [*pairwise(row), ("lif", "back"), ("back", "lif"), ("lif", "cuba")]
    metadata = {"dt": 1e-4, "readout": "TWO", "readout_weights": np.ones(3)}
    return nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata, type_check=False)


@functools.cache
def files() -> list[bytes]:
    import nir

    path = _folder() / "good.nir"
    nir.write(str(path), _graph())
    return [path.read_bytes()]


def read_file(data: bytes) -> None:
    """As `bs.nir.read` does; the worker gets fewer seconds than by default."""
    from backspike.exchange import nir_file

    nir_file.SECONDS = 4
    path = _folder() / "f.nir"
    path.write_bytes(data)
    _run(lambda load: load(path))


@functools.cache
def tree() -> dict[str, Any]:
    """The contents of the valid file."""
    from backspike.exchange import nir_file

    files()
    return nir_file.read_file(_folder() / "good.nir", trusted=True)


def read_tree(contents: Any) -> None:
    """Make and run the network of a file with these contents."""
    contents = contents if isinstance(contents, dict) else {}
    with mock.patch("backspike.exchange.nir_read.read_file", return_value=contents):
        _run(lambda load: load(Path("f.nir")))


def _run(make: Any) -> None:
    import torch

    from backspike.exchange.nir_read import load

    try:
        graph = make(load)
        with torch.no_grad():
            graph(torch.ones(3, 1, 2, 8, 8, dtype=torch.float64))
    except ExchangeError as error:
        if not str(error).isprintable():
            raise AssertionError(f"a refusal with control characters: {error!r}") from error
        raise
