"""The networks of the bench, built from any library's layers, with the same weights and data.

The last layer does not spike; the outputs are `[T, B, K]`. The order of the parameters is the same
for all libraries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .task import Neuron, Workload


class Library(Protocol):
    """The layers that each file in `libraries/` provides."""

    layers: Any  # Conv2d, BatchNorm2d, MaxPool2d, ... with the names of torch.nn

    def facts(self, width: float | None) -> Neuron:
        """The neuron that `neuron(width)` computes."""

    def neuron(self, width: float | None) -> nn.Module:
        """A neuron layer on `[T, B, ...]`; surrogate: ATan(2), or a rectangle of this width."""

    def recurrent(self, n: int, width: float | None) -> nn.Module:
        """n neurons that get their own spikes of the last timestep through a linear layer."""

    def over_time(self, *layers: nn.Module) -> nn.Module:
        """Stateless layers on `[T, B, ...]`."""

    def chain(self, *layers: nn.Module) -> nn.Module:
        """The modules in sequence."""

    def residual(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        """A SEW-ResNet block with ADD: the library's own, or `Residual`."""

    def finish(self, model: nn.Module) -> nn.Module:
        """Finishes a built model as the library requires."""

    def reset(self, model: nn.Module) -> None:
        """Resets the state between two batches."""

    def repeat(self, x: Tensor, T: int) -> Tensor:
        """x `[B, ...]` repeated to `[T, B, ...]`."""

    def stepper(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """A function that runs the next timestep `[B, ...]` of a finished model, from rest on."""


class Residual(nn.Module):
    """A SEW-ResNet block with ADD (Fang et al. 2021), from the layers of a library."""

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
    """The network of a workload, with the weights of its seed."""
    kinds = {
        "fc": _fc,
        "vgg": _vgg,
        "resnet": _resnet,
        "recurrent": _recurrent,
        "stream": _stream,
    }
    parts = kinds[work.kind](work, lib)
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


def _recurrent(work: Workload, lib: Library) -> list[nn.Module]:
    inputs, hidden = (int(n) for n in work.layout)
    return [
        lib.over_time(lib.layers.Linear(inputs, hidden)),
        lib.recurrent(hidden, None),
        lib.over_time(lib.layers.Linear(hidden, work.classes)),
    ]


def _stream(work: Workload, lib: Library) -> list[nn.Module]:
    """Convolutions, average pools and a linear layer, or only linear layers; each with neurons."""
    layers, parts, width, size = lib.layers, [], work.channels, work.size
    for item in work.layout if size else ():
        if isinstance(item, int):
            parts += [lib.over_time(layers.Conv2d(width, item, 3, padding=1)), lib.neuron(None)]
            width = item
        else:
            parts.append(lib.over_time(layers.AvgPool2d(2)))
            size //= 2
    if size:
        linear = layers.Linear(width * size * size, work.classes)
        return [*parts, lib.over_time(layers.Flatten(), linear), lib.neuron(None)]
    for inputs, outputs in pairwise(work.layout):
        parts += [lib.over_time(layers.Linear(inputs, outputs)), lib.neuron(None)]
    return parts


def fill(model: nn.Module, work: Workload) -> None:
    """Sets normal weights of variance 2 / inputs, the same for every library.

    Biases are 0, or the shift of the workload.
    """
    generator = torch.Generator().manual_seed(work.seed)
    shifts = iter(work.shifts)
    with torch.no_grad():
        for p in weights(model):
            if p.dim() > 1:
                values = torch.randn(p.shape, generator=generator) * math.sqrt(2 / p[0].numel())
                p.copy_(values)
        for m in model.modules():
            # they produce the input currents of the hidden layers, in order; then the last layer
            if isinstance(m, nn.Linear | nn.BatchNorm2d | nn.Conv2d) and m.bias is not None:
                m.bias.fill_(next(shifts, 0.0))


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters."""
    return [p for p in model.parameters() if p.requires_grad]


def data(work: Workload) -> tuple[Tensor, Tensor]:
    """Input and labels, from the seed.

    x: `[T, B, ...]`, or `[B, ...]` if static; y: `[B]`. For a single neuron layer both are
    `[T, B]`, and y is the gradient of the spikes.
    """
    generator = torch.Generator().manual_seed(work.seed + 1)
    if work.kind == "neuron":
        x = torch.randn(work.T, work.B, generator=generator)
        return x, torch.randn(work.T, work.B, generator=generator)
    shape: Sequence[int] = (
        (work.channels, work.size, work.size) if work.size else (int(work.layout[0]),)
    )
    steps = () if work.static else (work.T,)
    x = torch.rand((*steps, work.B, *shape), generator=generator)
    x = (x < work.share).to(x) if work.share else x
    return x, torch.randint(work.classes, (work.B,), generator=generator)
