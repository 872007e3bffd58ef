"""`Recurrent`: a spiking layer that receives its own spikes one timestep later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import options
from ..kernel import Moments, recurrent
from ..kernel.call import SpikeInfo
from .cuba import CubaLIF
from .hooks import has_hooks
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

    An `nn.Linear` around a LIF, IF, PLIF, CubaLIF or (on the CPU) AdaptiveLIF runs over all T in
    one kernel; `memory="recompute"` then saves as much as "exact". On the CPU the kernel adds the
    rows of the weight at the spikes. On a GPU it takes up to 362 neurons in float32 and 512 in
    16 bits. Everything else takes T calls of `layer` and of the neuron, one after the other;
    `bs.explain` says which way is taken, and why.

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
        return self.run(x)[0]

    def run(self, x: Tensor) -> tuple[Tensor, SpikeInfo | None]:
        """The spikes, and what the kernel returned about them, if one ran."""
        check_input(x, None)
        if self.why_step_by_step(x) is None:
            return self._run_kernel(x)
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
        return self._end(
            Output(torch.cat(spikes), v, torch.cat(membranes) if membranes else None),
            Moments(torch.cat([m.mean for m in moments]), torch.cat([m.square for m in moments]))
            if moments
            else None,
        ), None

    def why_step_by_step(self, x: Tensor) -> str | None:
        """Why this input runs one timestep after the other; None if one kernel runs all of them."""
        layer, neuron = self.layer, self.neuron
        computes = {kind for kind in type(neuron).__mro__ if "compute" in vars(kind)}
        if computes - {LIF, CubaLIF} or isinstance(neuron.options, options.CLIF):
            return f"a {type(neuron).__name__} has no such kernel"
        if type(layer) is not nn.Linear or type(layer.weight) not in (Tensor, nn.Parameter):
            return f"the layer is a {type(layer).__name__}, not a plain nn.Linear"
        if len(neuron.shape) > 1:
            return "the constants differ from neuron to neuron in space"
        if isinstance(neuron, CubaLIF) and torch.as_tensor(neuron.tau_synapse_in_use()).dim():
            return "tau_synapse differs from neuron to neuron"
        if has_hooks(layer):
            return "the layer has hooks"
        if x.dtype != layer.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            return "input and weight have different types"
        return recurrent.refuses(x, layer.weight, neuron.options)

    def _run_kernel(self, x: Tensor) -> tuple[Tensor, SpikeInfo]:
        neuron, layer = self.neuron, self.layer
        seeds = neuron.begin(x.device, len(x))
        s, state = self.initial_state(None, x) or (None, None)
        v, i = (state, None) if not isinstance(neuron, CubaLIF) or state is None else state
        if s is not None and s.requires_grad:  # the kernel gives no gradient to the first spikes
            x, s = torch.cat((x[:1] + functional.linear(s, layer.weight), x[1:])), None  # type: ignore[arg-type]
        call = neuron.prepare(x, v, record=neuron.record())
        synapse = neuron.synapse(x, i) if isinstance(neuron, CubaLIF) else None
        result, i = recurrent.run(
            replace(call, seed=None if call.seed is None else seeds),
            recurrent.Loop(layer.weight, layer.bias, s, synapse),  # type: ignore[arg-type]
        )
        v = result.state if i is None else torch.stack((result.state, i))
        spikes = self._end(Output(result.spikes, v, result.membrane), result.moments)
        return spikes, SpikeInfo.from_result(result)

    def _end(self, out: Output, moments: Moments | None) -> Tensor:
        self.neuron.see(out, moments)
        assert out.spikes is not None
        self.carry(out.spikes[-1], out.state)
        return out.spikes

    def _current(self, x: Tensor, s: Tensor) -> Tensor:
        feedback = self.layer(s)
        if feedback.shape != x.shape:
            raise ValueError(
                f"Recurrent: layer must keep the shape of a timestep {list(x.shape)}, "
                f"got {list(feedback.shape)}"
            )
        return x + feedback
