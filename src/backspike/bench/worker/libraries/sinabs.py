"""sinabs: `LIF` on `[B, T, ...]`; no gradient through the reset, an exponential surrogate."""

from __future__ import annotations

import math

from sinabs import activation
from sinabs import layers as sinabs
from torch import Tensor, nn

from ..task import Neuron
from . import plain


class BatchFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lif = sinabs.LIF(
            tau_mem=1 / math.log(2),
            spike_fn=activation.SingleSpike,
            reset_fn=activation.MembraneReset(),
            surrogate_grad_fn=activation.SingleExponential(grad_width=0.5),
        )
        self.lif.requires_grad_(False)  # its time constant; the other libraries do not learn theirs

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(x.transpose(0, 1)).transpose(0, 1)


class Parts(plain.Parts):
    def facts(self, width: float | None) -> Neuron:
        return Neuron(detached=True, surrogate="exponential")

    def neuron(self, width: float | None) -> nn.Module:
        return BatchFirst()

    def reset(self, model: nn.Module) -> None:
        for m in model.modules():
            if isinstance(m, sinabs.LIF):
                m.reset_states()
