"""SpikingJelly as in its documentation: multi-step layers, `functional.reset_net` per batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from ..networks import Residual
from ..task import Neuron, Settings


class Recurrent(nn.Module):
    """A loop over single steps; its own container joins both weights in one wider layer."""

    def __init__(self, n: int, lif: Any) -> None:
        super().__init__()
        self.back = nn.Linear(n, n)
        self.lif = lif

    def forward(self, x: Tensor) -> Tensor:
        s, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s = self.lif.single_step_forward(x_t + self.back(s))
            spikes.append(s)
        return torch.stack(spikes)


class Parts:
    layers: Any = layer

    def __init__(self, settings: Settings) -> None:
        pass

    def facts(self, width: float | None) -> Neuron:
        return Neuron() if width is None else Neuron(surrogate="rectangle", width=width)

    def neuron(self, width: float | None) -> nn.Module:
        step = surrogate.ATan(alpha=2.0) if width is None else surrogate.Rect(alpha=1 / width)
        return neuron.LIFNode(tau=2.0, surrogate_function=step, step_mode="m")

    def recurrent(self, n: int, width: float | None) -> nn.Module:
        return Recurrent(n, self.neuron(width))

    def over_time(self, *layers: nn.Module) -> nn.Module:
        return nn.Sequential(*layers)

    def chain(self, *layers: nn.Module) -> nn.Module:
        return nn.Sequential(*layers)

    def residual(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return Residual(self, inputs, outputs, stride)

    def finish(self, model: nn.Module) -> nn.Module:
        functional.set_step_mode(model, step_mode="m")
        return model

    def reset(self, model: nn.Module) -> None:
        functional.reset_net(model)

    def repeat(self, x: Tensor, T: int) -> Tensor:
        return x.unsqueeze(0).repeat(T, *[1] * x.dim())

    def stepper(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        functional.set_step_mode(model, step_mode="s")
        return model
