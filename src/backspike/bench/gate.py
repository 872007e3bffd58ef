"""The gate before any figure: what an implementation computes on a small input is compared with a statement in float64.

The statement is plain autograd over the recursion, sharing no code with any implementation; it takes the neuron as the library
in question has it (`worker.task.Neuron`). What is held to it: the spikes of a neuron layer, and the gradients of the whole
network. A run with 16-bit products is first held to it without them, closely. As it is timed, rounding turns single spikes
round, the more the deeper the network and the narrower the surrogate, whoever computes; so there it may be as far from float64
as torch's own autocast takes the plain loop, and little more, over several draws of weights and data.
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

from .plan import Implementation
from .worker import networks
from .worker.libraries import plain
from .worker.task import Neuron, Settings, Workload
from .worker.training import Layer, Network
from .workers import Worker

# largest relative error of the gradient of a parameter: a spike that falls the other way by rounding moves it by some 0.01,
# the gradient of the reset left out or another surrogate by more than 0.1
CLOSE, EIGHT_BIT = 0.02, 0.06
# in 16 bits: the error of all gradients against that of the plain loop, the relative error of the loss, and the factor within
# which the norm of the gradients stays; means over draws, as a single draw may have few spikes near the threshold, or many
ROUNDING, LOSS, NORM, DRAWS = 1.5, 0.1, 2.0, 3


@dataclass(frozen=True)
class Verdict:
    """error: ||g - g64|| / ||g64|| of the worst gradient, in 16 bits of all; spikes: share that differ (neurons alone)."""

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
    """Has the worker compute the small workload and compares. Raises WorkerFailed when it cannot."""
    settings, small, file = implementation.settings, work.small(), folder / "computed.pt"
    verdict = _exact(worker, replace(settings, bfloat16=False), small, file)
    return (
        _rounded(worker, settings, small, file) if settings.bfloat16 and verdict.passed else verdict
    )


@dataclass(frozen=True)
class _Computed:
    """What a worker computed, beside what its neuron should have given."""

    found: dict[str, Any]
    expected: dict[str, Any]
    neuron: Neuron
    version: str


def _compute(worker: Worker, settings: Settings, small: Workload, file: Path) -> _Computed:
    said = worker.ask("gate", work=vars(small), settings=vars(settings), file=str(file))
    neuron = Neuron(**said["neuron"])
    return _Computed(
        torch.load(file, weights_only=True), statement(small, neuron), neuron, said["version"]
    )


def _exact(worker: Worker, settings: Settings, small: Workload, file: Path) -> Verdict:
    """Without 16-bit products: each gradient close to the statement, and the spikes of neurons alone equal to its spikes."""
    limit = EIGHT_BIT if settings.memory == "8bit" else CLOSE
    c = _compute(worker, settings, small, file)
    error, spikes, reason = _worst(c.found["gradients"], c.expected["gradients"]), None, ""
    if error is None:
        reason = "the network has other parameters than the others"
    elif not error <= limit:
        reason = (
            f"gradients differ from the float64 statement by {error:.1%}, more than {limit:.0%}"
        )
    elif "loss" in c.expected:
        reason = _off(c.found, c.expected)
    if "spikes" in c.expected:
        spikes = (c.found["spikes"].double() != c.expected["spikes"]).double().mean().item()
        reason = reason or (
            f"{spikes:.2%} of the spikes differ from the float64 statement" if spikes else ""
        )
    return Verdict(math.nan if error is None else error, limit, spikes, c.neuron, c.version, reason)


def _rounded(worker: Worker, settings: Settings, small: Workload, file: Path) -> Verdict:
    """As it is timed: no further from the statement than the plain loop under autocast, but for a margin."""
    draws = [replace(small, seed=small.seed + i) for i in range(DRAWS)]
    computed = [_compute(worker, settings, draw, file) for draw in draws]
    error = fmean(_together(c.found["gradients"], c.expected["gradients"]) for c in computed)
    limit = ROUNDING * autocast_error(small, computed[0].neuron)
    reason = next(filter(None, (_off(c.found, c.expected) for c in computed)), "")
    if not error <= limit:
        reason = f"in bfloat16 gradients are {error:.1%} off, more than {ROUNDING:g} times what autocast makes of the plain loop"
    return Verdict(error, limit, None, computed[0].neuron, computed[0].version, reason)


@cache
def autocast_error(small: Workload, neuron: Neuron) -> float:
    """How far torch's autocast takes the gradients of a plain loop from the statement, mean over the draws."""
    errors = []
    for i in range(DRAWS):
        draw = replace(small, seed=small.seed + i)
        loop = Network(
            draw, _Statement(neuron), Settings("plain", bfloat16=True), networks.data(draw)
        )
        errors.append(_together(loop.computed()["gradients"], statement(draw, neuron)["gradients"]))
    return fmean(errors)


def _off(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Why loss and gradients are not of the size that they should be."""
    loss = found["loss"].item() / expected["loss"].item()
    if not abs(loss - 1) <= LOSS:
        return f"the loss is {loss:.2f} of that of the float64 statement"
    norm = _norm(found["gradients"]) / _norm(expected["gradients"])
    return (
        ""
        if 1 / NORM <= norm <= NORM
        else f"the gradients are {norm:.2f} as large as those of the float64 statement"
    )


def _worst(found: list[Tensor | None], expected: list[Tensor]) -> float | None:
    """The largest ||found - expected|| / ||expected|| of all parameters; None where they are not the same parameters."""
    if [None if f is None else f.shape for f in found] != [e.shape for e in expected]:
        return None
    return max(
        _norm([f.double() - e]) / max(_norm([e]), 1e-300)
        for f, e in zip(found, expected)
        if f is not None
    )


def _together(found: list[Tensor], expected: list[Tensor]) -> float:
    """||found - expected|| / ||expected|| over all parameters."""
    return _norm(f.double() - e for f, e in zip(found, expected, strict=True)) / _norm(expected)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum((t.double() ** 2).sum().item() for t in tensors))


@cache
def statement(work: Workload, neuron: Neuron) -> dict[str, Any]:
    """What a float64 network of this neuron computes."""
    lib = _Statement(neuron)
    x, y = networks.data(work)
    settings = Settings("plain")
    if work.kind == "neuron":
        return Layer(work, lib, settings, (x.double(), y.double())).computed()
    network = Network(work, lib, settings, (x.double() if x.is_floating_point() else x, y))
    network.model.double()
    return network.computed()


class _Statement(plain.Parts):
    def __init__(self, neuron: Neuron) -> None:
        self.fields = neuron

    def neuron(self, width: float | None) -> nn.Module:
        return _Recursion(replace(self.fields, width=width or self.fields.width))


class _Recursion(nn.Module):
    def __init__(self, neuron: Neuron) -> None:
        super().__init__()
        self.fields = neuron

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        spikes = []
        for x_t in x:
            u = 0.5 * v + self.fields.gain * x_t
            z = u - 1
            s = (z >= 0).to(u) + (z - z.detach()) * derivative(self.fields, z.detach())
            v = u * (1 - (s.detach() if self.fields.detached else s))
            spikes.append(s)
        return torch.stack(spikes)


def derivative(neuron: Neuron, z: Tensor) -> Tensor:
    """The surrogate derivative h(z) that a library has."""
    match neuron.surrogate:
        case "atan":
            return 1 / (1 + (math.pi * z) ** 2)
        case "rectangle":
            return (z.abs() < neuron.width / 2).to(z) / neuron.width
        case "superspike":
            return 1 / (1 + z.abs()) ** 2
        case "exponential":
            return 2 * torch.exp(-2 * z.abs())
    raise ValueError(f"no statement for the surrogate {neuron.surrogate!r}")
