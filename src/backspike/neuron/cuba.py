"""The current-based LIF neuron with a synaptic time constant."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import kernel
from ..options import CubaLIF as Options
from .arguments import has
from .integrator import integrate
from .lif import LIF, Output
from .prepare import check_input, check_tau


@has(Options)
class CubaLIF(LIF):
    """A layer of current-based LIF neurons: a first-order synapse filters the input before the membrane does.

        i[t] = lam_s i[t-1] + gain_s x[t]        lam_s = 1 - 1/tau_synapse, gain_s = 1/tau_synapse or 1 (decay_input=False)

    and i is the current x of `LIF`. learn may hold "tau_synapse" as well, the parameter `log_tau_synapse_minus_1`. The state is
    v and i, `[2, B, ...]`. memory is that of the membrane; i is kept beside it. decay_input=False is the neuron of Lava (Davies
    et al. 2018) and the `Synaptic` of snnTorch; Cramer et al. 2022 have gain_s = 1 alone, which scales the weights.
    """

    learnable = (*LIF.learnable, "tau_synapse")
    options: Options

    def __init__(
        self, tau: float = Options.tau, *, channels: int | None = None, **rest: Any
    ) -> None:
        super().__init__(tau, channels=channels, **rest)
        start, learned = self.options.tau_synapse, "tau_synapse" in self.options.learn
        check_tau(start, self.options.decay_input)
        if learned and math.isinf(start):
            raise ValueError("learn='tau_synapse' needs a finite tau_synapse to start from")
        self.log_tau_synapse_minus_1 = (
            nn.Parameter(torch.tensor(math.log(start - 1))) if learned else None
        )

    def compute(
        self, x: Tensor, v0: Tensor | None, repeats: int = 1, want_state: bool = True
    ) -> tuple[Output, kernel.Moments | None]:
        check_input(x, v0, repeats, states=2)
        x = x.expand(repeats, *x.shape[1:]) if repeats > 1 else x
        v0, i0 = (None, None) if v0 is None else v0
        learned = self.log_tau_synapse_minus_1
        tau = self.options.tau_synapse if learned is None else 1 + learned.exp()
        current = integrate(x, i0, tau, self.options.decay_input, self.options.backend)
        assert current.membrane is not None
        out, moments = super().compute(current.membrane.to(x.dtype), v0, want_state=want_state)
        return out._replace(
            state=torch.stack((out.state, current.state)) if want_state else out.state
        ), moments

    def extra_repr(self) -> str:
        return f"tau_synapse={self.options.tau_synapse}, {super().extra_repr()}"
