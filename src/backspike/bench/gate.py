"""The gate before any figure: what an implementation computes on a small input is compared with a statement in float64.

The statement is plain autograd over the recursion, sharing no code with any implementation; it takes the neuron as the library
in question has it (`worker.task.Neuron`). What is held to it: the spikes of a neuron layer, and the gradients of the whole
network. A run with 16-bit products is first held to it without them, closely. As it is timed, its rounding turns single spikes
round, and in a deep network the gradients of the small example then have little in common with exact ones, whoever computes
them; so the loss and the size of the gradients are held to the statement there, and the gradients only where no BatchNorm is.
How far they may be off there is what torch's own autocast does to the statement's recursion, and half as much again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .crew import Worker
from .plan import Implementation
from .worker import libraries, networks
from .worker.libraries import plain
from .worker.task import Neuron, Settings, Workload
from .worker.training import Layer, Network

# largest relative error of the gradient of a parameter: a spike that falls the other way by rounding moves it by some 0.01,
# the gradient of the reset left out or another surrogate by more than 0.1
CLOSE, EIGHT_BIT, BFLOAT16 = 0.02, 0.06, 0.25
ROUNDED = 1.5  # in 16 bits: part of the error of the statement's own recursion under autocast, where that is more
LOSS, NORM = 0.1, 2.0  # in 16 bits: relative error of the loss, and the factor within which the norm of the gradients stays


@dataclass(frozen=True)
class Verdict:
    """error: ||g - g64|| / ||g64|| of the worst gradient, as timed; spikes: share that differ (neurons alone)."""

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
    settings, small = implementation.settings, work.small()
    verdict = _compare(worker, replace(settings, bfloat16=False), small, folder)
    return _compare(worker, settings, small, folder) if settings.bfloat16 and verdict.passed else verdict


def _compare(worker: Worker, settings: Settings, small: Workload, folder: Path) -> Verdict:
    file = folder / "computed.pt"
    said = worker.ask("gate", work=vars(small), settings=vars(settings), file=str(file))
    neuron = Neuron(**said["neuron"])
    found, expected = torch.load(file, weights_only=True), statement(small, neuron)
    error, spikes, reason = _error(found["gradients"], expected["gradients"]), None, ""
    limit = _limit(settings, small, neuron, expected["gradients"])
    if error is None:
        reason = "the network has other parameters than the others"
    elif not error <= limit:
        reason = f"gradients differ from the float64 statement by {error:.1%}, more than {limit:.0%}"
    elif "loss" in expected:
        reason = _off(found, expected)
    if "spikes" in expected:
        spikes = (found["spikes"].double() != expected["spikes"]).double().mean().item()
        reason = reason or (f"{spikes:.2%} of the spikes differ from the float64 statement" if spikes else "")
    return Verdict(math.nan if error is None else error, limit, spikes, neuron, said["version"], reason)


def _limit(settings: Settings, work: Workload, neuron: Neuron, expected: list[Tensor]) -> float:
    if settings.bfloat16:
        return max(BFLOAT16, ROUNDED * _rounding(work, neuron, expected)) if work.kind == "fc" else math.inf
    return EIGHT_BIT if settings.memory == "8bit" else CLOSE


def _rounding(work: Workload, neuron: Neuron, expected: list[Tensor]) -> float:
    """What autocast to bfloat16 does to the gradients of the same recursion: a narrow surrogate amplifies it."""
    rounded = Network(work, _Statement(neuron), Settings("plain", bfloat16=True), networks.data(work)).computed()
    return _error(rounded["gradients"], expected) or 0.0


def _off(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Why loss and gradients are not of the size that they should be."""
    loss = found["loss"].item() / expected["loss"].item()
    if not abs(loss - 1) <= LOSS:
        return f"the loss is {loss:.2f} of that of the float64 statement"
    norm = _norm(found["gradients"]) / _norm(expected["gradients"])
    return "" if 1 / NORM <= norm <= NORM else f"the gradients are {norm:.2f} as large as those of the float64 statement"


def _error(found: list[Tensor | None], expected: list[Tensor]) -> float | None:
    """The largest ||found - expected|| / ||expected|| of all parameters; None where they are not the same parameters."""
    if [None if f is None else f.shape for f in found] != [e.shape for e in expected]:
        return None
    return max(_norm([f.double() - e]) / max(_norm([e]), 1e-300) for f, e in zip(found, expected) if f is not None)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum((t.double() ** 2).sum().item() for t in tensors))


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


def calibrate(work: Workload) -> Workload:
    """The shifts of the currents that make each hidden layer fire at the wanted rate, and the widths that make the wanted share
    of surrogate derivatives not zero."""
    if not work.spikes:
        return work
    shifts: list[float] = []
    widths: list[float] = []
    for current in _currents(work, shifts):
        shift = _bisect(lambda c, current=current: (_potentials(current + c) >= 1).double().mean().item() < work.spikes)
        shifts.append(shift)
        distance = (_potentials(current + shift) - 1).abs().flatten()
        if work.window:
            widths.append(2 * distance.kthvalue(round(work.window * distance.numel())).values.item())
    return replace(work, shifts=tuple(shifts), widths=tuple(widths))


def densities(work: Workload) -> list[float]:
    """The share of surrogate derivatives that are not zero in each hidden layer of a calibrated workload."""
    if not work.widths:
        return []
    distances = [(_potentials(current + shift) - 1).abs() for current, shift in zip(_currents(work, work.shifts), work.shifts)]
    return [(d < width / 2).double().mean().item() for d, width in zip(distances, work.widths)]


@torch.no_grad()
def _currents(work: Workload, shifts: Sequence[float]) -> Iterator[Tensor]:
    """The current `[T, B, K]` of each hidden layer without its shift; the shift is looked up after the layer was yielded."""
    lib = libraries.load(Settings("plain"))
    x, _ = networks.data(work)
    s = lib.repeat(x, work.T)
    layers = [m for m in networks.build(replace(work, shifts=()), lib).modules() if isinstance(m, nn.Linear)]
    for i, layer in enumerate(layers[:-1]):
        current = layer(s)
        yield current
        s = (_potentials(current + shifts[i]) >= 1).to(x)


def _potentials(x: Tensor) -> Tensor:
    v, potentials = torch.zeros_like(x[0]), []
    for x_t in x:
        u = (v + x_t) / 2
        v = u * (u < 1)
        potentials.append(u)
    return torch.stack(potentials)


def _bisect(too_low: Any, low: float = -8.0, high: float = 8.0) -> float:
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return (low + high) / 2
