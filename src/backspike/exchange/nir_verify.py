"""Whether a graph that was read back computes what the network does: every spike, every output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExchangeError
from ..neuron.hooks import observe
from .nir_graph import Graph

TOLERANCE = 1e-9  # of the outputs in float64, relative to the largest
AT_ONCE = 4  # samples, as the values of all nodes are held


def compare(model: nn.Module, graph: Graph, spiking: dict[str, str], sample: Tensor) -> int:
    """Run both on `sample` `[T, B, ...]` in float64 and return how many spikes they share.

    spiking: the graph's node for each spiking layer of the model, by name, in the order in which
    they run. Raises ExchangeError naming the first layer and timestep with another spike.
    """
    return sum(_compare(model, graph, spiking, x) for x in sample.split(AT_ONCE, dim=1))


def _compare(model: nn.Module, graph: Graph, spiking: dict[str, str], x: Tensor) -> int:
    ours: dict[str, Any] = {}
    with observe(model, lambda name, _, out: ours.__setitem__(name, out.spikes)):
        expected = model(x)
    values = graph.trace(x)
    total = 0
    for layer, node in spiking.items():
        a, b = ours[layer], values[node]
        if a.shape != b.shape:
            raise ExchangeError(
                f"not written: {layer} gives {list(a.shape)}, the file read back {list(b.shape)}"
            )
        different = (a != b).flatten(1)
        if different.any():
            t = int(different.any(1).nonzero()[0])
            raise ExchangeError(
                f"not written: the file read back differs first at {layer}, timestep {t}: "
                f"{int(different[t].sum())} of {different.shape[1]} spikes; please report this"
            )
        total += int(a.sum())
    found = values[graph.outputs[0]]
    bound = TOLERANCE * max(1.0, float(expected.abs().max()))
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=0, atol=bound):
        raise ExchangeError(
            "not written: all spikes are equal, but the outputs of the file read back are not; "
            "please report this"
        )
    return total
