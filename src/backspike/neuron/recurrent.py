"""`Recurrent`: a spiking layer whose spikes come back to it a timestep later, as networks for spoken words (SHD) have them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernel import Moments
from .lif import LIF, Output
from .prepare import check_input
from .streaming import Streaming


class Recurrent(Streaming):
    """`neuron` on x[t] + layer(s[t-1]), with s[-1] = 0: `[T, B, ...] -> [T, B, ...]`, gradients exact through both paths.

    layer: any stateless layer that keeps the shape of a timestep `[B, ...]`, such as `nn.Linear(n, n)` or a convolution.
    neuron: `bs.LIF` or one of its kin; watchers (`bs.record`, PDA) see all T of it at once. `bs.streaming` carries spikes and
    state. A masked surrogate draws a seed for each timestep.

    Cost: what comes back is not known beforehand, so T kernels and T products run one after the other, where a layer without
    recurrence has one of each: forward and backward of 128 neurons, 128 samples, T = 100 take 52 ms instead of 6 (two cores).
    SGS leaves `layer`, and what feeds the neuron, as they are.
    """

    def __init__(self, layer: nn.Module, neuron: nn.Module) -> None:
        super().__init__()
        if not isinstance(neuron, LIF):
            raise TypeError(
                f"Recurrent: neuron must be a spiking layer such as bs.LIF(), got {type(neuron).__name__}"
            )
        if any(isinstance(m, Streaming) for m in layer.modules()):
            raise TypeError(
                "Recurrent: layer sees one timestep at a time, so no spiking layer may stand inside it"
            )
        self.layer, self.neuron = layer, neuron

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, None)
        neuron = self.neuron
        start: tuple[Tensor, Any] = self.initial_state(None, x) or (torch.zeros_like(x[0]), None)
        s, v = start
        spikes, membranes, moments = [], [], []
        for x_t in x:
            neuron.begin(x.device)
            out, seen = neuron.compute(self._current(x_t, s)[None], v)
            assert out.spikes is not None
            s, v = out.spikes[0], out.state
            spikes.append(out.spikes)
            membranes += [] if out.membrane is None else [out.membrane]
            moments += [] if seen is None else [seen]
        whole = torch.cat(spikes)
        neuron.see(
            Output(whole, v, torch.cat(membranes) if membranes else None),
            Moments(*map(torch.cat, zip(*moments))) if moments else None,
        )
        if self.streams:
            self.carried = s.detach(), v.detach()
        return whole

    def _current(self, x: Tensor, s: Tensor) -> Tensor:
        back = self.layer(s)
        if back.shape != x.shape:
            raise ValueError(
                f"Recurrent: layer must keep the shape of a timestep {list(x.shape)}, got {list(back.shape)}"
            )
        return x + back
