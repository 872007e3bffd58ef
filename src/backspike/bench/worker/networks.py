"""The networks of the bench, built from any library's parts, and their weights and data, equal for all from one seed.

The last layer of each does not spike: outputs `[T, B, K]`. Parameters come in one order, whichever library is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .task import Neuron, Workload


class Library(Protocol):
    """The parts that a file in `libraries/` gives."""

    layers: Any  # Conv2d, BatchNorm2d, MaxPool2d, ... under torch.nn's names

    def facts(self, width: float | None) -> Neuron:
        """The neuron that `neuron(width)` computes."""

    def neuron(self, width: float | None) -> nn.Module:
        """A layer of neurons `[T, B, ...]`, ATan of alpha 2 or a rectangle of that width as surrogate, if the library can."""

    def over_time(self, *layers: nn.Module) -> nn.Module:
        """Stateless layers on `[T, B, ...]`."""

    def chain(self, *layers: nn.Module) -> nn.Module:
        """One after the other."""

    def residual(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        """The block of SEW-ResNet with ADD: the library's own, or `Residual` of its parts."""

    def finish(self, model: nn.Module) -> nn.Module:
        """Whatever the library wants done to a built model."""

    def reset(self, model: nn.Module) -> None:
        """What its users call between two batches."""

    def repeat(self, x: Tensor, T: int) -> Tensor:
        """x `[B, ...]` at every timestep, as its users write it."""


class Residual(nn.Module):
    """The block of SEW-ResNet (Fang et al. 2021) with ADD, from the parts of a library."""

    def __init__(self, lib: Library, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = lib.chain(
            *spiking(lib, inputs, outputs, stride), *spiking(lib, outputs, outputs)
        )
        shortcut = (
            spiking(lib, inputs, outputs, stride, kernel=1)
            if stride > 1 or inputs != outputs
            else []
        )
        self.shortcut = lib.chain(*shortcut) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + (x if self.shortcut is None else self.shortcut(x))


def spiking(
    lib: Library, inputs: int, outputs: int, stride: int = 1, kernel: int = 3
) -> list[nn.Module]:
    """Convolution, BatchNorm, neuron."""
    convolution = lib.layers.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
    )
    return [lib.over_time(convolution, lib.layers.BatchNorm2d(outputs)), lib.neuron(None)]


def build(work: Workload, lib: Library) -> nn.Module:
    """The network of a workload with the weights of its seed."""
    parts = {"fc": _fc, "vgg": _vgg, "resnet": _resnet}[work.kind](work, lib)
    model = lib.finish(lib.chain(*parts))
    fill(model, work)
    return model


def _fc(work: Workload, lib: Library) -> list[nn.Module]:
    parts: list[nn.Module] = []
    hidden = len(work.layout) - 2
    for i, (inputs, outputs) in enumerate(pairwise(work.layout)):
        parts.append(lib.over_time(lib.layers.Linear(inputs, outputs)))
        if i < hidden:
            parts.append(lib.neuron(work.widths[i] if work.widths else None))
    return parts


def _vgg(work: Workload, lib: Library) -> list[nn.Module]:
    parts: list[nn.Module] = []
    width, size = work.channels, work.size
    for item in work.layout:
        if isinstance(item, int):
            parts += spiking(lib, width, item)
            width = item
        else:
            parts.append(lib.over_time(lib.layers.MaxPool2d(2)))
            size //= 2
    return [
        *parts,
        lib.over_time(lib.layers.Flatten(), lib.layers.Linear(width * size * size, work.classes)),
    ]


def _resnet(work: Workload, lib: Library) -> list[nn.Module]:
    widths = [int(n) for n in work.layout]
    parts = spiking(lib, work.channels, widths[0])
    if work.stem == "imagenet":
        parts = spiking(lib, work.channels, widths[0], stride=2, kernel=7)
        parts.append(lib.over_time(lib.layers.MaxPool2d(3, stride=2, padding=1)))
    for i, (inputs, outputs) in enumerate(pairwise([widths[0], *widths])):
        parts += [lib.residual(inputs, outputs, 2 if i else 1), lib.residual(outputs, outputs, 1)]
    head = (
        lib.layers.AdaptiveAvgPool2d(1),
        lib.layers.Flatten(),
        lib.layers.Linear(widths[-1], work.classes),
    )
    return [*parts, lib.over_time(*head)]


def fill(model: nn.Module, work: Workload) -> None:
    """Normal weights of variance 2/inputs, the same numbers for every library; biases at 0, or at the shift of a current."""
    generator = torch.Generator().manual_seed(work.seed)
    shifts = iter(work.shifts)
    with torch.no_grad():
        for p in weights(model):
            if p.dim() > 1:
                values = torch.randn(p.shape, generator=generator) * math.sqrt(2 / p[0].numel())
                p.copy_(values)
        for m in model.modules():
            if isinstance(
                m, nn.Linear | nn.BatchNorm2d
            ):  # what gives the current of a hidden layer, in their order; then the last
                m.bias.fill_(next(shifts, 0.0))


def weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def data(work: Workload) -> tuple[Tensor, Tensor]:
    """(x, y). x: `[T, B, ...]`, or `[B, ...]` where it is static; for a neuron alone y is the gradient that comes in."""
    generator = torch.Generator().manual_seed(work.seed + 1)
    if work.kind == "neuron":
        return tuple(torch.randn(work.T, work.B, generator=generator) for _ in range(2))  # type: ignore[return-value]
    shape: Sequence[int] = (
        (work.channels, work.size, work.size) if work.size else (int(work.layout[0]),)
    )
    steps = () if work.static else (work.T,)
    x = torch.rand((*steps, work.B, *shape), generator=generator)
    return x, torch.randint(work.classes, (work.B,), generator=generator)
