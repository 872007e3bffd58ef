"""Checks every implementation against a float64 reference on a small input before it is timed.

The reference is plain autograd over the recursion and shares no code with any implementation. It
uses the neuron as defined by the library in question (`worker.task.Neuron`). Compared are the
spikes of a single neuron layer and the gradients of a whole network. A bfloat16 implementation is
first compared in float32, with a tight limit. In bfloat16, rounding flips single spikes in any
implementation, more so in deep networks and with narrow surrogates. There the error may be little
larger than that of the plain loop under torch's autocast, averaged over several draws of weights
and data. Fast convolutions, which small networks are too narrow for, are compared on the numbers of
a trained network (`operands.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from .operands import why_not_accurate
from .plan import Implementation
from .worker import networks
from .worker.libraries import plain
from .worker.task import Neuron, Settings, Workload
from .worker.training import Layer, Network
from .workers import Worker

# largest relative error of a parameter's gradient: a spike flipped by rounding changes it by about
# 0.01, a missing gradient through the reset or another surrogate by more than 0.1
CLOSE, EIGHT_BIT = 0.02, 0.06
# in bfloat16: the error of all gradients relative to that of the plain loop, the relative error of
# the loss, the factor by which the gradient norm may differ, and the number of draws to average
# over, since the number of spikes near the threshold varies
ROUNDING, LOSS, NORM, DRAWS = 1.5, 0.1, 2.0, 3


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    error: ||g - g64|| / ||g64||, in float32 of the worst parameter, in bfloat16 of all together.
    spikes: share of spikes that differ (single neuron layer only). reason: why it failed, or "".
    """

    error: float
    limit: float
    spikes: float | None
    neuron: Neuron
    version: str
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason


def judge(worker: Worker, implementation: Implementation, work: Workload, folder: Path) -> Verdict:
    """Checks one implementation on the small workload. Raises WorkerFailed if it cannot run it."""
    settings, small, file = implementation.settings, work.small(), folder / "computed.pt"
    verdict = _exact(worker, replace(settings, bfloat16=False), small, file)
    if settings.fast and verdict.passed:
        verdict = replace(verdict, reason=why_not_accurate())
    return (
        _rounded(worker, settings, small, file) if settings.bfloat16 and verdict.passed else verdict
    )


@dataclass(frozen=True)
class _Computed:
    """The result of a worker and the one expected of its neuron."""

    found: dict[str, Any]
    expected: dict[str, Any]
    neuron: Neuron
    version: str


def _compute(worker: Worker, settings: Settings, small: Workload, file: Path) -> _Computed:
    answer = worker.ask("gate", work=vars(small), settings=vars(settings), file=str(file))
    neuron = Neuron(**answer["neuron"])
    found = torch.load(file, weights_only=True)
    return _Computed(found, reference(small, neuron), neuron, answer["version"])


def _exact(worker: Worker, settings: Settings, small: Workload, file: Path) -> Verdict:
    """In float32: every gradient is close to the reference, spikes of a neuron layer are equal."""
    limit = EIGHT_BIT if settings.memory == "8bit" else CLOSE
    c = _compute(worker, settings, small, file)
    error, spikes, reason = _worst(c.found["gradients"], c.expected["gradients"]), None, ""
    if error is None:
        reason = "the parameters of the network differ from those of the others"
    elif not error <= limit:
        reason = (
            f"gradients differ from the float64 reference by {error:.1%}, more than {limit:.0%}"
        )
    elif "loss" in c.expected:
        reason = _off(c.found, c.expected)
    if "spikes" in c.expected:
        spikes = (c.found["spikes"].double() != c.expected["spikes"]).double().mean().item()
        reason = reason or (
            f"{spikes:.2%} of the spikes differ from the float64 reference" if spikes else ""
        )
    return Verdict(math.nan if error is None else error, limit, spikes, c.neuron, c.version, reason)


def _rounded(worker: Worker, settings: Settings, small: Workload, file: Path) -> Verdict:
    """In bfloat16: little further from the reference than the plain loop under autocast."""
    draws = [replace(small, seed=small.seed + i) for i in range(DRAWS)]
    computed = [_compute(worker, settings, draw, file) for draw in draws]
    error = fmean(_together(c.found["gradients"], c.expected["gradients"]) for c in computed)
    limit = ROUNDING * autocast_error(small, computed[0].neuron)
    reason = next(filter(None, (_off(c.found, c.expected) for c in computed)), "")
    if not error <= limit:
        reason = (
            f"bfloat16 gradients differ by {error:.1%}, more than {ROUNDING:g} times the error of "
            "the plain loop under autocast"
        )
    return Verdict(error, limit, None, computed[0].neuron, computed[0].version, reason)


@cache
def autocast_error(small: Workload, neuron: Neuron) -> float:
    """The error of the plain loop's gradients under torch's autocast, averaged over the draws."""
    errors = []
    for i in range(DRAWS):
        draw = replace(small, seed=small.seed + i)
        loop = Network(
            draw, _Reference(neuron), Settings("plain", bfloat16=True), networks.data(draw)
        )
        expected = reference(draw, neuron)["gradients"]
        errors.append(_together(loop.computed()["gradients"], expected))
    return fmean(errors)


def _off(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Why the size of the loss or of the gradients is wrong, or ""."""
    loss = found["loss"].item() / expected["loss"].item()
    if not abs(loss - 1) <= LOSS:
        return f"the loss is {loss:.2f} times that of the float64 reference"
    norm = _norm(found["gradients"]) / _norm(expected["gradients"])
    if 1 / NORM <= norm <= NORM:
        return ""
    return f"the gradients are {norm:.2f} times as large as those of the float64 reference"


def _worst(found: list[Tensor | None], expected: list[Tensor]) -> float | None:
    """The largest ||found - expected|| / ||expected|| of a parameter; None if the shapes differ."""
    if [None if f is None else f.shape for f in found] != [e.shape for e in expected]:
        return None
    errors = (
        _norm([f.double() - e]) / max(_norm([e]), 1e-300)
        for f, e in zip(found, expected)
        if f is not None
    )
    return max(errors, default=0.0)


def _together(found: list[Tensor], expected: list[Tensor]) -> float:
    """||found - expected|| / ||expected|| over all parameters."""
    return _norm(f.double() - e for f, e in zip(found, expected, strict=True)) / _norm(expected)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum((t.double() ** 2).sum().item() for t in tensors))


@cache
def reference(work: Workload, neuron: Neuron) -> dict[str, Any]:
    """The result of the workload in float64, with this neuron."""
    lib = _Reference(neuron)
    x, y = networks.data(work)
    settings = Settings("plain")
    if work.kind == "neuron":
        return Layer(work, lib, settings, (x.double(), y.double())).computed()
    if work.kind == "stream":
        with torch.no_grad():
            spikes = networks.build(work, lib).double()(x.double())
        return {"spikes": spikes, "gradients": []}
    network = Network(work, lib, settings, (x.double() if x.is_floating_point() else x, y))
    network.model.double()
    return network.computed()


class _Reference(plain.Parts):
    def __init__(self, neuron: Neuron) -> None:
        self.fields = neuron

    def neuron(self, width: float | None) -> _Recursion:
        return _Recursion(replace(self.fields, width=width or self.fields.width))

    def recurrent(self, n: int, width: float | None) -> nn.Module:
        return _Recurrent(n, self.neuron(width))


class _Recursion(nn.Module):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.fields = neuron

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        spikes = []
        for x_t in x:
            s, v = self.step(x_t, v)
            spikes.append(s)
        return torch.stack(spikes)

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        u = 0.5 * v + self.fields.gain * x
        z = u - 1
        s = (z >= 0).to(u) + (z - z.detach()) * derivative(self.fields, z.detach())
        return s, u * (1 - (s.detach() if self.fields.detached else s))


class _Recurrent(nn.Module):
    def __init__(self, n: int, neuron: _Recursion) -> None:
        super().__init__()
        self.back = nn.Linear(n, n)
        self.cell = neuron

    def forward(self, x: Tensor) -> Tensor:
        s = v = torch.zeros_like(x[0])
        spikes = []
        for x_t in x:
            s, v = self.cell.step(x_t + self.back(s), v)
            spikes.append(s)
        return torch.stack(spikes)


def derivative(neuron: Neuron, z: Tensor) -> Tensor:
    """The surrogate derivative h(z) of a library. Raises ValueError for an unknown name."""
    match neuron.surrogate:
        case "atan":
            return 1 / (1 + (math.pi * z) ** 2)
        case "rectangle":
            return (z.abs() < neuron.width / 2).to(z) / neuron.width
        case "superspike":
            return 1 / (1 + z.abs()) ** 2
        case "exponential":
            return 2 * torch.exp(-2 * z.abs())
    raise ValueError(f"no reference for the surrogate {neuron.surrogate!r}")
