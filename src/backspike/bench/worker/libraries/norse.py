"""Norse: `LIFBoxCell`, a neuron without synapse, lifted over time.

Its surrogate is SuperSpike with alpha = 1 whatever the setting.
"""

from __future__ import annotations

import norse.torch as norse
import torch
from norse.torch.module.lif_box import LIFBoxCell
from torch import nn

from ..task import Neuron
from . import plain


class Parts(plain.Parts):
    def facts(self, width: float | None) -> Neuron:
        return Neuron(surrogate="superspike")

    def neuron(self, width: float | None) -> nn.Module:
        # dt tau_mem_inv = 1/2
        return _Spikes(
            norse.Lift(
                LIFBoxCell(norse.LIFBoxParameters(tau_mem_inv=torch.as_tensor(500.0)), dt=0.001)
            )
        )


class _Spikes(nn.Module):
    def __init__(self, lifted: nn.Module) -> None:
        super().__init__()
        self.lifted = lifted

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lifted(x)[0]
