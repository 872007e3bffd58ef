"""backspike, as in its README and its trainer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

import backspike as bs
from backspike.models.residual import SEWBasic
from backspike.train.cuda_graph import Replayed

from ..task import Neuron, Settings


class Parts:
    layers: Any = nn

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.for_good = ExitStack()

    def facts(self, width: float | None) -> Neuron:
        return Neuron() if width is None else Neuron(surrogate="rectangle", width=width)

    def neuron(self, width: float | None) -> nn.Module:
        surrogate = bs.ATan(alpha=2.0) if width is None else bs.Rectangle(width=width)
        return bs.LIF(
            tau=2.0,
            v_threshold=1.0,
            v_reset=0.0,
            decay_input=True,
            surrogate=surrogate,
            reset_gradient=1.0,
            backend=self.settings.backend,
            memory=self.settings.memory,
        )

    def recurrent(self, n: int, width: float | None) -> nn.Module:
        return bs.Recurrent(nn.Linear(n, n), self.neuron(width))

    def over_time(self, *layers: nn.Module) -> nn.Module:
        return bs.OverTime(*layers)

    def chain(self, *layers: nn.Module) -> nn.Module:
        return bs.Sequential(*layers)

    def residual(self, inputs: int, outputs: int, stride: int) -> nn.Module:
        return SEWBasic(inputs, outputs, stride, lambda channels: self.neuron(None))

    def finish(self, model: nn.Module) -> nn.Module:
        bs.set_convolution(model, "fast" if self.settings.fast else "exact")
        return model

    def reset(self, model: nn.Module) -> None:
        """There is no state between calls."""

    def repeat(self, x: Tensor, T: int) -> Tensor:
        return x.expand(T, *x.shape)

    def stepper(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        if not self.settings.streaming:
            return bs.stream(model).step
        self.for_good.enter_context(bs.streaming(model))

        def step(x: Tensor) -> Tensor:
            y: Tensor = model(x[None])[0]
            return y

        return step

    def recorded(self, iteration: Callable[[], None]) -> Callable[[], None]:
        """The iteration as a CUDA graph, as the trainer runs it."""

        def refused(why: str) -> None:
            raise RuntimeError(f"this iteration cannot be recorded: {why}")

        return Replayed(iteration, torch.device("cuda"), refused)
