"""Sets the firing rate and the share of nonzero surrogate derivatives of a workload.

Trained networks spike more than untrained ones, and the speed of sparse methods depends on it. A
workload may therefore name its firing rate, which a constant added to the input currents of each
layer produces (the bias of its linear layer or BatchNorm), and its share of nonzero derivatives,
which the surrogate width produces.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from .worker import networks
from .worker.libraries import plain
from .worker.task import Settings, Workload

SAMPLE = 2**16  # neurons per layer that determine its shift


def calibrate(work: Workload) -> Workload:
    """The workload with the shifts and surrogate widths that produce the densities it names."""
    if not work.spikes:
        return work
    tuned = _Tuned(work)
    _forward(replace(work, shifts=(), widths=()), tuned)
    return replace(work, shifts=tuple(tuned.shifts), widths=tuple(tuned.widths))


def derivatives(work: Workload) -> list[float]:
    """The share of nonzero surrogate derivatives in each hidden layer of a calibrated workload."""
    if not work.widths:
        return []
    watched = _Watched()
    _forward(work, watched)
    return watched.shares


@torch.no_grad()
def _forward(work: Workload, lib: plain.Parts) -> None:
    x, _ = networks.data(work)
    networks.build(work, lib)(lib.repeat(x, work.T) if work.static else x)


class _Tuned(plain.Parts):
    """Its neurons determine their shift and surrogate width from their first input."""

    def __init__(self, work: Workload) -> None:
        super().__init__(Settings("plain"))
        self.work = work
        self.shifts: list[float] = []
        self.widths: list[float] = []

    def neuron(self, width: float | None) -> nn.Module:
        return _Layer(self._tune)

    def _tune(self, x: Tensor) -> Tensor:
        some = x.flatten(1)
        some = some[:, :: -(-some.shape[1] // SAMPLE) | 1]  # an odd stride reaches every channel
        shift = _bisect(lambda c: _share(_potentials(some + c) >= 1) < self.work.spikes)
        u = _potentials(x + shift)
        self.shifts.append(shift)
        if self.work.window:
            distance = (u - 1).abs().flatten()
            self.widths.append(
                2 * distance.kthvalue(round(self.work.window * distance.numel())).values.item()
            )
        return u


class _Watched(plain.Parts):
    """Its neurons record their share of nonzero surrogate derivatives."""

    def __init__(self) -> None:
        super().__init__(Settings("plain"))
        self.shares: list[float] = []

    def neuron(self, width: float | None) -> nn.Module:
        assert width is not None

        def watch(x: Tensor) -> Tensor:
            u = _potentials(x)
            self.shares.append(_share((u - 1).abs() < width / 2))
            return u

        return _Layer(watch)


class _Layer(nn.Module):
    """Spikes of the membrane potentials that a function computes from the input currents."""

    def __init__(self, potentials: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.potentials = potentials

    def forward(self, x: Tensor) -> Tensor:
        return (self.potentials(x) >= 1).to(x)


def _potentials(x: Tensor) -> Tensor:
    v, potentials = torch.zeros_like(x[0]), []
    for x_t in x:
        u = (v + x_t) / 2
        v = u * (u < 1)
        potentials.append(u)
    return torch.stack(potentials)


def _share(true: Tensor) -> float:
    return true.double().mean().item()


def _bisect(too_low: Callable[[float], bool], low: float = -8.0, high: float = 8.0) -> float:
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if too_low(middle) else (low, middle)
    return (low + high) / 2
