"""snnTorch: `Leaky` in a loop over time; other layers have T folded into the batch.

Its input is not divided by tau, and no gradient flows through its reset.
"""

from __future__ import annotations

from typing import Any

import snntorch
import torch
from snntorch import surrogate
from torch import Tensor, nn

from ..task import Neuron
from . import plain


def _leaky() -> Any:
    return snntorch.Leaky(
        beta=0.5, threshold=1.0, reset_mechanism="zero", spike_grad=surrogate.atan(alpha=2.0)
    )


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaky: Any = _leaky()

    def forward(self, x: Tensor) -> Tensor:
        membrane = self.leaky.reset_mem()
        spikes = []
        for x_t in x:
            s, membrane = self.leaky(x_t, membrane)
            spikes.append(s)
        return torch.stack(spikes)


class Recurrent(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.back = nn.Linear(n, n)
        self.leaky: Any = _leaky()

    def forward(self, x: Tensor) -> Tensor:
        membrane = self.leaky.reset_mem()
        s, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            s, membrane = self.leaky(x_t + self.back(s), membrane)
            spikes.append(s)
        return torch.stack(spikes)


class Parts(plain.Parts):
    def facts(self, width: float | None) -> Neuron:
        return Neuron(gain=1.0, detached=True)

    def neuron(self, width: float | None) -> nn.Module:
        return Loop()

    def recurrent(self, n: int, width: float | None) -> nn.Module:
        return Recurrent(n)

    def step(self, neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        s, membrane = neuron.leaky(x, neuron.leaky.reset_mem() if state is None else state)
        return s, membrane
