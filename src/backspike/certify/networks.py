"""Small networks: do gradients depend on memory layout, static input or recording?

Each case runs a network through one backend and compares it with its definition in float64: the
same weights, plain torch operations, BatchNorm written out, `backend="reference"`, and a contiguous
input with a copy per timestep.
"""

from __future__ import annotations

import itertools
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
from ..surrogate import ATan, Surrogate, Triangle

T = 3
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A case.

    shape: that of one timestep, `[B, C, H, W]` or `[B, N]`. channels_last: the memory layout of
    input and weights. static: one timestep in memory stands for all. learns: the input requires a
    gradient. recorded: the network runs within `bs.record`, with sampled gradients, and the
    gradient at the recorded spikes is compared too.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    channels_last: bool = False
    static: bool = False
    learns: bool = False
    recorded: bool = False


NETWORKS = {
    "one-sample": Network((1, 2, 4, 4)),
    "one-sample-channels-last": Network((1, 2, 4, 4), channels_last=True),
    "one-row-channels-last": Network((2, 2, 1, 4), channels_last=True),
    "one-column-channels-last": Network((2, 2, 4, 1), channels_last=True),
    "one-sample-static-channels-last": Network((1, 2, 4, 4), channels_last=True, static=True),
    "static": Network((2, 2, 4, 4), static=True),
    "static-with-gradient": Network((2, 2, 4, 4), static=True, learns=True),
    "recorded": Network((128, 64), dtype=torch.float32, recorded=True),
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
    if case.recorded:
        # so narrow that few neurons want a gradient, which is then computed for them alone
        narrow = Triangle(alpha=40.0)
        sizes = (case.shape[-1], 1024, 1024)
        synapses = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
        first, second = _neuron(backend, 1.0, narrow), _neuron(backend, 1.0, ATan())
        model = Sequential(OverTime(synapses[0]), first, OverTime(synapses[1]), second)
    else:
        channels = (case.shape[1], 3, 3)
        blocks: list[nn.Module] = []
        for a, b in itertools.pairwise(channels):
            # a bias before a norm would have no gradient
            convolution = nn.Conv2d(a, b, 3, padding=1, bias=False)
            blocks += [
                OverTime(convolution, nn.BatchNorm2d(b)),
                _neuron(backend, 0.5, ATan()),
            ]
        model = Sequential(*blocks)
    with torch.no_grad():
        for p in model.parameters():
            # on a grid, so that float32 computes spikes exactly
            p.copy_(torch.randint(-16, 17, p.shape, generator=draw) / 64 + (p.dim() == 1))
    return model


def _neuron(backend: str, v_threshold: float, surrogate: Surrogate) -> LIF:
    return LIF(
        tau=2.0,
        v_threshold=v_threshold,
        v_reset=0.0,
        decay_input=True,
        surrogate=surrogate,
        reset_gradient=1.0,
        backend=backend,
    )


def _input(case: Network) -> Tensor:
    """The input `[T, ...]`, or `[1, ...]` if it is static."""
    draw = torch.Generator().manual_seed(1)
    shape = (1 if case.static else T, *case.shape)
    if case.recorded:
        return torch.randint(-8, 9, shape, generator=draw) / 8
    return torch.randn(shape, generator=draw, dtype=torch.float64)
