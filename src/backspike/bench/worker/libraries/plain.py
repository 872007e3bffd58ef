"""The plain loop of tutorials: an autograd function for the spike and a Python loop over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import Residual
from ..task import Neuron, Settings


class OverTime(nn.Sequential):
    """Stateless layers with T folded into the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Parts:
    """Plain torch; also the base class for libraries that use torch's layers."""

    layers: Any = nn

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def facts(self, width: float | None) -> Neuron:
        return Neuron() if width is None else Neuron(surrogate="rectangle", width=width)

    def neuron(self, width: float | None) -> nn.Module:
        return LIF(width)

    def recurrent(self, n: int, width: float | None) -> nn.Module:
        return Recurrent(n, width)

    def over_time(self, *layers: nn.Module) -> nn.Module:
        return OverTime(*layers)

    def chain(self, *layers: nn.Module) -> nn.Module:
        return nn.Sequential(*layers)

    def residual(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return Residual(self, inputs, outputs, stride)

    def finish(self, model: nn.Module) -> nn.Module:
        return model

    def reset(self, model: nn.Module) -> None:
        """There is no state between calls."""

    def repeat(self, x: Tensor, T: int) -> Tensor:
        return x.unsqueeze(0).repeat(T, *[1] * x.dim())

    def stepper(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        states: dict[nn.Module, Any] = {}
        kind = type(self.neuron(None))

        def step(x: Tensor) -> Tensor:
            for m in model.children():
                if isinstance(m, kind):
                    x, states[m] = self.step(m, x, states.get(m))
                else:
                    for layer in m.children():
                        x = layer(x)
            return x

        return step

    def step(self, neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Spikes `[B, ...]` and the next state of a neuron layer; state: None at rest."""
        s, v = neuron.step(x, torch.zeros_like(x) if state is None else state)
        return s, v


class _ATan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        return g / (1 + (math.pi * z) ** 2)


class _Rectangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.width = width
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (z,) = ctx.saved_tensors
        return g * (z.abs() < ctx.width / 2) / ctx.width, None


class LIF(nn.Module):
    def __init__(self, width: float | None) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        spikes = []
        for x_t in x:
            s, v = self.step(x_t, v)
            spikes.append(s)
        return torch.stack(spikes)

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        u = v + (x - v) / 2
        s = _ATan.apply(u - 1) if self.width is None else _Rectangle.apply(u - 1, self.width)
        return s, u * (1 - s)


class Recurrent(nn.Module):
    def __init__(self, n: int, width: float | None) -> None:
        super().__init__()
        self.back = nn.Linear(n, n)
        self.lif = LIF(width)

    def forward(self, x: Tensor) -> Tensor:
        s = v = torch.zeros_like(x[0])
        spikes = []
        for x_t in x:
            s, v = self.lif.step(x_t + self.back(s), v)
            spikes.append(s)
        return torch.stack(spikes)
