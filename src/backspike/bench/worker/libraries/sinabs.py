"""sinabs: `LIF` on `[B, T, ...]`; no gradient through the reset, an exponential surrogate."""

from __future__ import annotations

import math
from typing import Any

import torch
from sinabs import activation
from sinabs import layers as sinabs
from torch import Tensor, nn

from ..task import Neuron
from . import plain


def _neuron() -> Any:
    return {
        "tau_mem": 1 / math.log(2),
        "spike_fn": activation.SingleSpike,
        "reset_fn": activation.MembraneReset(),
        "surrogate_grad_fn": activation.SingleExponential(grad_width=0.5),
    }


class BatchFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif = sinabs.LIF(**_neuron())
        self.lif.requires_grad_(False)  # its time constant; the other libraries do not learn theirs

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(x.transpose(0, 1)).transpose(0, 1)


class Recurrent(nn.Module):
    """Its own layer, which gives no bias to the first timestep."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.back = nn.Linear(n, n)
        self.lif = sinabs.LIFRecurrent(**_neuron(), rec_connect=self.back)
        for name, p in self.lif.named_parameters():
            p.requires_grad_(name.startswith("rec_connect"))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((x[:1] + self.back.bias, x[1:]))
        return self.lif(x.transpose(0, 1)).transpose(0, 1)


class Parts(plain.Parts):
    def facts(self, width: float | None) -> Neuron:
        return Neuron(detached=True, surrogate="exponential")

    def neuron(self, width: float | None) -> nn.Module:
        return BatchFirst()

    def recurrent(self, n: int, width: float | None) -> nn.Module:
        return Recurrent(n)

    def step(self, neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        # it carries its state itself, in buffers
        return neuron.lif(x.unsqueeze(1)).squeeze(1), None

    def reset(self, model: nn.Module) -> None:
        for m in model.modules():
            if isinstance(m, sinabs.LIF | sinabs.LIFRecurrent):
                m.reset_states()
