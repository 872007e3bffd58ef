"""backspike, as its README and its trainer use it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

import backspike as bs
from backspike.models.residual import SEWBasic

from ..task import Neuron, Settings


class Parts:
    layers: Any = nn

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def facts(self, width: float | None) -> Neuron:
        return Neuron() if width is None else Neuron(surrogate="rectangle", width=width)

    def neuron(self, width: float | None) -> nn.Module:
        surrogate = bs.ATan(alpha=2.0) if width is None else bs.Rectangle(width=width)
        return bs.LIF(tau=2.0, surrogate=surrogate, backend=self.settings.backend, memory=self.settings.memory)

    def over_time(self, *layers: nn.Module) -> nn.Module:
        return bs.OverTime(*layers)

    def chain(self, *layers: nn.Module) -> nn.Module:
        return bs.Sequential(*layers)

    def residual(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return SEWBasic(inputs, outputs, stride, lambda channels: self.neuron(None))

    def finish(self, model: nn.Module) -> nn.Module:
        return model

    def reset(self, model: nn.Module) -> None:
        """Every call starts from rest."""

    def repeat(self, x: Tensor, T: int) -> Tensor:
        return x.expand(T, *x.shape)
