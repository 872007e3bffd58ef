"""`Recurrent`: a spiking layer that receives its own spikes one timestep later."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernel import Moments
from .lif import LIF, Output
from .prepare import check_input
from .streaming import Streaming


class Recurrent(Streaming):
    """A recurrent spiking layer, `[T, B, ...] -> [T, B, ...]`.

    The input of `neuron` is x[t] + layer(s[t-1]), where s are its own spikes and s[-1] = 0;
    gradients are exact along both paths.

    layer: any stateless layer that keeps the shape of a timestep `[B, ...]`, such as
    `nn.Linear(n, n)` or a convolution. neuron: `bs.LIF` or a subclass of it.
    `bs.record` and PDA see all T timesteps at once; `bs.streaming` carries spikes and state; a
    masked surrogate draws a new seed at each timestep; SGS scales neither `layer` nor the layer
    that feeds `neuron`.

    Cost: T calls of `layer` and T kernels run one after the other, instead of one of each.
    Forward and backward of 128 neurons, 128 samples, T = 100 take 52 ms instead of 6 (two cores).

    Raises TypeError if `neuron` is no spiking layer or `layer` contains one.
    """

    def __init__(self, layer: nn.Module, neuron: nn.Module) -> None:
        super().__init__()
        if not isinstance(neuron, LIF):
            raise TypeError(
                "Recurrent: neuron must be a spiking layer such as bs.LIF(), "
                f"got {type(neuron).__name__}"
            )
        if any(isinstance(m, Streaming) for m in layer.modules()):
            raise TypeError(
                "Recurrent: layer runs on single timesteps, so it must not contain a spiking layer"
            )
        self.layer = layer
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, None)
        neuron = self.neuron
        initial: tuple[Tensor, Any] = self.initial_state(None, x) or (torch.zeros_like(x[0]), None)
        s, v = initial
        spikes, membranes, moments = [], [], []
        for x_t in x:
            neuron.begin(x.device)
            out, moments_t = neuron.compute(self._current(x_t, s)[None], v)
            assert out.spikes is not None
            s, v = out.spikes[0], out.state
            spikes.append(out.spikes)
            membranes += [] if out.membrane is None else [out.membrane]
            moments += [] if moments_t is None else [moments_t]
        all_spikes = torch.cat(spikes)
        neuron.see(
            Output(all_spikes, v, torch.cat(membranes) if membranes else None),
            Moments(*map(torch.cat, zip(*moments))) if moments else None,
        )
        if self.streams:
            self.carried = s.detach(), v.detach()
        return all_spikes

    def _current(self, x: Tensor, s: Tensor) -> Tensor:
        feedback = self.layer(s)
        if feedback.shape != x.shape:
            raise ValueError(
                f"Recurrent: layer must keep the shape of a timestep {list(x.shape)}, "
                f"got {list(feedback.shape)}"
            )
        return x + feedback
