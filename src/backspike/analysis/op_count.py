"""Counts what a network computes per sample while it runs: connections, spikes, numbers moved.

`count` runs a few samples in float32 and returns the arrays `op_*` of `evaluation.npz`, from which
`energy.py` estimates picojoules; `count_model` returns them for one batch of any model. A
connection is an input and an output joined by a weight; padding zeros have none. Norms (which can
be folded into weights), pools and additions of branches are not counted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC2701  (has no public name)

from ..data.batches import Batches
from ..layers.over_time import CONVOLUTIONS, SYNAPSES
from ..neuron.hooks import observe
from ..neuron.lif import LIF, Output
from ..neuron.own import Neuron

SAMPLES, AT_ONCE = 128, 32
# largest number of positions that average pools combine, so that inputs are multiples of 1 / this
MOST_PARTS = 1024
_MATMULS = {
    torch.matmul,
    torch.bmm,
    torch.Tensor.matmul,
    torch.Tensor.bmm,
    torch.Tensor.__matmul__,
    torch.Tensor.__rmatmul__,
}
_CONVOLVE: dict[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}


@dataclass
class _Tally:
    """Sums over all samples and timesteps for one synaptic layer or one layer of neurons."""

    kind: str
    # samples times computed timesteps
    rows: int = 0
    # connections
    dense: float = 0.0
    # one per incoming spike and output that it reaches; nan if the input is not made of spikes
    additions: float = 0.0
    # one per non-zero input and output that it reaches
    products: float = 0.0
    spikes: float = 0.0
    # bits per input
    bits: int = 1
    weights: int = 0
    # numbers per row
    inputs: int = 0
    outputs: int = 0


@torch.no_grad()
def count(network: Any, batches: Batches) -> dict[str, np.ndarray]:
    """The arrays `op_*` from the first samples of a data set; see docs/run-folder.md."""
    network.eval()
    counter, n, T = _Counter(), 0, batches.recipe.T
    for x, _ in batches.in_order(AT_ONCE):
        counter.watch(network.model, x.float())
        if (n := n + x.shape[1]) >= SAMPLES:
            break
    return {"op_samples": np.array(n), **_arrays(counter.tallies, n, T)}


@torch.no_grad()
def count_model(model: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    """The arrays `op_*` of a model in evaluation mode, from one batch x `[T, B, ...]`."""
    counter, (T, B) = _Counter(), x.shape[:2]
    counter.watch(model, x)
    return {"op_samples": np.array(B), **_arrays(counter.tallies, B, T)}


def _arrays(tallies: dict[str, _Tally], n: int, T: int) -> dict[str, np.ndarray]:
    rows = []
    for name, t in tallies.items():
        # an input that repeats over T is multiplied once
        steps = T if t.rows % (T * n) == 0 else 1
        row = {
            "name": name,
            "kind": t.kind,
            "steps": steps,
            "macs": t.dense / n / steps,
            "weights": t.weights,
            "bits": t.bits,
        }
        sums = {key: getattr(t, key) / n for key in ("additions", "products", "spikes")}
        rows.append({**row, **sums, "inputs": t.inputs, "outputs": t.outputs})
    return {f"op_{key}": np.array([row[key] for row in rows]) for key in (rows[0] if rows else ())}


class _Counter:
    def __init__(self) -> None:
        self.tallies: dict[str, _Tally] = {}
        # whether a spiking layer has run in this pass; layers before it read the network's input
        self.fired = False
        self.matmuls = 0
        self.T = 0
        self.B = 0

    def watch(self, model: nn.Module, x: Tensor) -> None:
        """Counts one forward pass of x `[T, B, ...]`."""
        self.T, self.B = x.shape[:2]
        self.fired, self.matmuls = False, 0
        with ExitStack() as stack:
            for name, m in model.named_modules():
                if isinstance(m, SYNAPSES):
                    hook = m.register_forward_hook(
                        lambda m, args, y, name=name: self.synapse(name, m, args, y)
                    )
                    stack.callback(hook.remove)
            stack.enter_context(observe(model, self.neurons))
            stack.enter_context(_Matmuls(self.matmul))
            model(x)

    def neurons(self, name: str, layer: LIF, out: Output) -> None:
        assert out.spikes is not None
        self.fired = True
        t = self.tallies.setdefault(name, _Tally("neurons"))
        t.rows += self.T * self.B
        if isinstance(layer, Neuron):
            states, each = len(layer.states), float(_multiplications(layer))
        else:
            states, each = layer.operations(self.T)
        t.dense += each * out.spikes.numel()
        t.products += each * out.spikes.numel()
        t.additions = math.nan
        t.spikes += float(out.spikes.sum(dtype=torch.float64))
        t.outputs = out.spikes[0, 0].numel()
        t.inputs = t.outputs * states

    def synapse(self, name: str, m: Any, args: tuple[Any, ...], y: Tensor) -> None:
        if not args:
            return
        x: Tensor = args[0]
        t = self.tallies.setdefault(
            name, _Tally("linear" if isinstance(m, nn.Linear) else "convolution")
        )
        rows = x.shape[0] * (
            x.shape[1] if isinstance(m, nn.Linear) and x.shape[:2] == (self.T, self.B) else 1
        )
        spikes = _spikes(x, self.fired)
        t.rows += rows
        t.dense += _connections(m, torch.ones_like(x))
        t.products += _connections(m, (x != 0).to(x))
        t.additions += math.nan if spikes is None else _connections(m, spikes)
        self._input(t, x, spikes)
        t.weights = m.weight.numel()
        t.inputs, t.outputs = x.numel() // rows, y.numel() // rows

    def matmul(self, a: Tensor, b: Tensor, y: Tensor) -> None:
        """Counts a product of two activations; if one is binary, the other is only summed."""
        self.matmuls += 1
        t = self.tallies.setdefault(f"matmul {self.matmuls}", _Tally("matmul"))
        t.rows += self.T * self.B
        t.dense += y.numel() * a.shape[-1]
        pairs = float(((a != 0).double() @ (b != 0).double()).sum())
        t.products += pairs
        binary = [
            s
            for s in (_spikes(a, self.fired), _spikes(b, self.fired))
            if s is not None and s.max() <= 1
        ]
        t.additions += pairs if binary else math.nan
        self._input(t, a, _spikes(a, self.fired))
        self._input(t, b, _spikes(b, self.fired))
        t.inputs, t.outputs = (
            (a.numel() + b.numel()) // (self.T * self.B),
            y.numel() // (self.T * self.B),
        )

    def _input(self, t: _Tally, x: Tensor, spikes: Tensor | None) -> None:
        t.spikes += math.nan if spikes is None else float(spikes.sum(dtype=torch.float64))
        t.bits = max(
            t.bits, 32 if spikes is None else max(1, math.ceil(math.log2(float(spikes.max()) + 1)))
        )


def _spikes(x: Tensor, hidden: bool) -> Tensor | None:
    """The number of spikes that each value stands for; None for real numbers.

    It is 0 or 1, more where spikes were summed, and the number summed where they were averaged.
    hidden: whether x is an activation. The network's input counts as spikes (events) only if its
    values are whole numbers.
    """
    values = x.unique()
    if len(values) > 4 * MOST_PARTS or float(values[0]) < 0:
        return None
    for parts in range(1, MOST_PARTS + 1 if hidden else 2):
        scaled = values.double() * parts
        if bool(((scaled - scaled.round()).abs() < 1e-3).all()):
            return (x * parts).round()
    return None


def _connections(m: Any, counts: Tensor) -> float:
    """The sum over all inputs of count times the number of outputs that the input reaches."""
    if not isinstance(m, CONVOLUTIONS):
        return float(counts.sum(dtype=torch.float64)) * m.out_features
    counts = counts if counts.dim() == m.weight.dim() else counts[None]
    window = torch.ones((1, 1, *m.kernel_size), device=counts.device)
    summed = counts.float().sum(1, keepdim=True)
    reached = _CONVOLVE[counts.dim()](summed, window, None, m.stride, m.padding, m.dilation)
    return float(reached.sum(dtype=torch.float64)) * (m.out_channels // m.groups)


# what costs less than a multiplication; and the beginnings of what costs nothing
_CHEAP = (
    *("add", "sub", "rsub", "neg", "abs", "gt", "ge", "lt", "le", "where"),
    *("clamp", "clamp_min", "clamp_max", "max", "min", "maximum", "minimum"),
)
_FREE = ("_to_copy", "view", "detach", "clone", "zeros", "empty", "fill", "select", "slice")


def _multiplications(layer: Neuron) -> int:
    """Multiplications, divisions and functions such as exp in one timestep of one neuron."""
    count = 0

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal count
            out = func(*args, **(kwargs or {}))
            # constants have a number for each channel at most
            large = isinstance(out, Tensor) and out.numel() > (layer.channels or 1)
            name = func.__name__.partition(".")[0].rstrip("_")
            count += large and name not in _CHEAP and not name.startswith(_FREE)
            return out

    layer = copy.deepcopy(layer).cpu()
    with Counting():
        layer.try_step()
    return count


class _Matmuls(TorchFunctionMode):
    """A context in which `see(a, b, y)` is called for every matrix product."""

    def __init__(self, see: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = func(*args, **(kwargs or {}))
        if func in _MATMULS and len(args) == 2 and min(args[0].dim(), args[1].dim()) >= 2:
            a, b = args[::-1] if func is torch.Tensor.__rmatmul__ else args
            self.see(a, b, y)
        return y
