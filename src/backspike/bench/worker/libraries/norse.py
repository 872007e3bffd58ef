"""Norse: `LIFBoxCell`, a neuron without synapse, lifted over time.

Its surrogate is SuperSpike with alpha = 1 whatever the setting.
"""

from __future__ import annotations

from typing import Any

import norse.torch as norse
import torch
from norse.torch.module.lif_box import LIFBoxCell
from torch import nn

from ..task import Neuron
from . import plain


class Parts(plain.Parts):
    def facts(self, width: float | None) -> Neuron:
        return Neuron(surrogate="superspike")

    def recurrent(self, n: int, width: float | None) -> nn.Module:
        return Recurrent(n)

    def neuron(self, width: float | None) -> nn.Module:
        return _Spikes(norse.Lift(_cell()))

    def step(self, neuron: Any, x: torch.Tensor, state: Any) -> tuple[torch.Tensor, Any]:
        s, state = neuron.lifted.lifted_module(x, state)
        return s, state


def _cell() -> nn.Module:
    # dt tau_mem_inv = 1/2
    return LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0)), dt=0.001)


class Recurrent(nn.Module):
    """Its own recurrent cells have a synapse, so this is a loop over the cell above."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.back = nn.Linear(n, n)
        self.cell = _cell()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s, state, spikes = torch.zeros_like(x[0]), None, []
        for x_t in x:
            s, state = self.cell(x_t + self.back(s), state)
            spikes.append(s)
        return torch.stack(spikes)


class _Spikes(nn.Module):
    def __init__(self, lifted: nn.Module) -> None:
        super().__init__()
        self.lifted = lifted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lifted(x)[0]
