"""Small networks: what single calls of a neuron do not show.

Do gradients depend on memory layout, static input or recording? With 8 bits, are those of a quiet
layer near the exact ones? Does one weight that is not finite show at the output? Each case runs a
network through one backend and compares it with its definition in float64: the same weights, plain
torch operations, BatchNorm written out, `backend="reference"`, and a contiguous input with a copy
per timestep.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.over_time import OverTime
from ..layers.sequential import Sequential
from ..neuron.hooks import record
from ..neuron.lif import LIF
from ..surrogate import ATan, SuperSpike, Surrogate, Triangle
from .axes import TOLERANCE

T = 3
NEURON: dict[str, Any] = {
    "tau": 2.0,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "decay_input": True,
    "surrogate": ATan(),
    "reset_gradient": 1.0,
}
# largest error of a gradient through two quiet layers with 8 bits, of which each is 3 to 6 % off
QUIET = 0.2
QUIET_COLUMN = "8bit, quiet"
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A case.

    shape: that of one timestep, `[B, C, H, W]` or `[B, N]`. channels_last: the memory layout of
    input and weights. static: one timestep in memory stands for all. learns: the input requires a
    gradient. recorded: the network runs within `bs.record`, with sampled gradients, and the
    gradient at the recorded spikes is compared too. quiet: the surrogate of neurons that save 8
    bits and whose membranes stay near 0, far below the threshold of 3. bad: the value of one
    weight, whose input is always 0; only outputs are compared.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    channels_last: bool = False
    static: bool = False
    learns: bool = False
    recorded: bool = False
    quiet: Surrogate | None = None
    bad: float | None = None

    @property
    def limit(self) -> float:
        """The largest error of a gradient."""
        return TOLERANCE[self.dtype] if self.quiet is None else QUIET

    @property
    def column(self) -> str:
        """The column of the certificate that shows its errors."""
        return str(self.dtype).removeprefix("torch.") if self.quiet is None else QUIET_COLUMN


NETWORKS = {
    "one-sample": Network((1, 2, 4, 4)),
    "one-sample-channels-last": Network((1, 2, 4, 4), channels_last=True),
    "one-row-channels-last": Network((2, 2, 1, 4), channels_last=True),
    "one-column-channels-last": Network((2, 2, 4, 1), channels_last=True),
    "one-sample-static-channels-last": Network((1, 2, 4, 4), channels_last=True, static=True),
    "static": Network((2, 2, 4, 4), static=True),
    "static-with-gradient": Network((2, 2, 4, 4), static=True, learns=True),
    "recorded": Network((128, 64), dtype=torch.float32, recorded=True),
    **{
        f"quiet-8bit-{type(surrogate).__name__}": Network((8, 16), quiet=surrogate)
        for surrogate in (ATan(), SuperSpike(25.0))
    },
    "nan-weight": Network((128, 512), dtype=torch.float32, bad=math.nan),
    "infinite-weight": Network((128, 512), dtype=torch.float32, bad=math.inf),
    "nan-weight-convolution": Network((2, 2, 4, 4), bad=math.nan),
}


def run(name: str, backend: str, device: str) -> Results:
    """The spikes and gradients of a case, in float64 on the CPU."""
    case = NETWORKS[name]
    model, x = _model(case, backend).to(device, case.dtype), _input(case).to(device, case.dtype)
    if case.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    x = x.expand(T, *case.shape).detach().requires_grad_(case.learns)
    if case.recorded:
        with record(model) as layers:
            y = model(x)
        return _gradients(case, model, x, y, layers["1"].spikes)
    return _gradients(case, model, x, model(x), None)


@cache
def definition(name: str) -> Results:
    """What `run` should return."""
    case = NETWORKS[name]
    model, x = _model(case, "reference").double(), _input(case).double()
    x = x.repeat(T // len(x), *[1] * len(case.shape)).requires_grad_(case.learns)
    y, hidden = x, []
    for layer in model:
        if isinstance(layer, LIF):
            y = layer(y)
            hidden.append(y)
        else:
            y = _stateless(layer, y)
    return _gradients(case, model, x, y, hidden[0] if case.recorded else None)


def _stateless(layers: Any, x: Tensor) -> Tensor:
    """A convolution with BatchNorm, or a linear layer, in plain torch operations."""
    synapse, *norm = layers
    y = x.flatten(0, 1)
    if isinstance(synapse, nn.Linear):
        y = F.linear(y, synapse.weight)
    elif isinstance(synapse, nn.Conv2d):
        y = F.conv2d(y, synapse.weight, padding=1)
    for m in norm:
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), correction=0)
        scale = m.weight / (var + m.eps).sqrt()
        y = (y - mean[:, None, None]) * scale[:, None, None] + m.bias[:, None, None]
    return y.unflatten(0, x.shape[:2])


def _gradients(
    case: Network, model: nn.Module, x: Tensor, y: Tensor, recorded: Tensor | None
) -> Results:
    """The spikes and the gradients of their weighted sum."""
    if case.bad is not None:
        return {"spikes": y.detach().double().cpu()}
    inputs: dict[str, Tensor] = dict(model.named_parameters())
    if case.learns:
        inputs["x"] = x
    if recorded is not None:
        inputs["recorded spikes"] = recorded
    weights = torch.linspace(0, 1, y.numel(), dtype=torch.float64).view(y.shape).to(y)
    found = torch.autograd.grad((y * weights).sum(), list(inputs.values()))
    results = {"spikes": y.detach(), **dict(zip(inputs, found))}
    return {name: a.double().cpu() for name, a in results.items()}


def _model(case: Network, backend: str) -> nn.Sequential:
    """The network of a case, in float32 on the CPU."""
    draw = torch.Generator().manual_seed(0)
    model = Sequential(*(_linear if len(case.shape) == 2 else _convolutions)(case, backend))
    with torch.no_grad():
        for p in model.parameters():
            # on a grid, so that float32 computes spikes exactly
            p.copy_(torch.randint(-16, 17, p.shape, generator=draw) / 64 + (p.dim() == 1))
            if case.quiet:
                p.div_(16)
        if case.bad is not None:
            next(model.parameters()).view(-1)[0] = case.bad
    return model


def _linear(case: Network, backend: str) -> Iterator[nn.Module]:
    width = 1024 if case.recorded else 256
    options: dict[str, Any] = {}
    if case.quiet:
        options = {"surrogate": case.quiet, "memory": "8bit", "v_threshold": 3.0}
    # if recorded, so narrow that few neurons want a gradient, which is then computed for them alone
    first = {"surrogate": Triangle(alpha=40.0)} if case.recorded else options
    for inputs, given in ((case.shape[1], first), (width, options)):
        yield OverTime(nn.Linear(inputs, width, bias=False))
        yield LIF(backend=backend, **(NEURON | given))


def _convolutions(case: Network, backend: str) -> Iterator[nn.Module]:
    for a, b in itertools.pairwise((case.shape[1], 3, 3)):
        # a bias before a norm would have no gradient
        yield OverTime(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b))
        yield LIF(backend=backend, **(NEURON | {"v_threshold": 0.5}))


def _input(case: Network) -> Tensor:
    """The input `[T, ...]`, or `[1, ...]` if it is static."""
    draw = torch.Generator().manual_seed(1)
    shape = (1 if case.static else T, *case.shape)
    if case.bad is not None:
        x = (torch.rand(shape, generator=draw) < 0.2).double()
        x[:, :, 0] = 0
        return x
    if len(case.shape) == 2:
        return torch.randint(-8, 9, shape, generator=draw) / 8
    return torch.randn(shape, generator=draw, dtype=torch.float64)
