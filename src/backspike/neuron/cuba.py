"""The current-based LIF neuron with a synaptic time constant."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import kernel
from .integrator import integrate
from .lif import LIF, Output
from .prepare import check_constants, check_input


class CubaLIF(LIF):
    """A layer of current-based LIF neurons: a first-order synapse filters the input before the membrane does.

        i[t] = lam_s i[t-1] + gain_s x[t]        lam_s = 1 - 1/tau_synapse, gain_s = 1/tau_synapse or 1 (decay_input=False)

    and i is the current x of `LIF`. learn may hold "tau_synapse" as well, the parameter `log_tau_synapse_minus_1`. The state is
    v and i, `[2, B, ...]`. memory is that of the membrane; i is kept beside it. decay_input=False is the neuron of Lava (Davies
    et al. 2018) and the `Synaptic` of snnTorch; Cramer et al. 2022 have gain_s = 1 alone, which scales the weights.
    """

    def __init__(
        self,
        tau: float = 2.0,
        *,
        tau_synapse: float = 2.0,
        learn: tuple[str, ...] | str = (),
        **options: Any,
    ) -> None:
        learn = (learn,) if isinstance(learn, str) else tuple(learn)
        super().__init__(
            tau, learn=tuple(name for name in learn if name != "tau_synapse"), **options
        )
        check_constants(tau_synapse, 1.0, 0.0, self.decay_input, 0.0)
        if "tau_synapse" in learn and math.isinf(tau_synapse):
            raise ValueError("learn='tau_synapse' needs a finite tau_synapse to start from")
        start = torch.tensor(math.log(tau_synapse - 1)) if "tau_synapse" in learn else None
        self.tau_synapse, self.learn = tau_synapse, learn
        self.log_tau_synapse_minus_1 = None if start is None else nn.Parameter(start)

    def compute(
        self, x: Tensor, v0: Tensor | None, repeats: int = 1, want_state: bool = True
    ) -> tuple[Output, kernel.Moments | None]:
        check_input(x, v0, repeats, states=2)
        x = x.expand(repeats, *x.shape[1:]) if repeats > 1 else x
        v0, i0 = (None, None) if v0 is None else v0
        learned = self.log_tau_synapse_minus_1
        tau = self.tau_synapse if learned is None else 1 + learned.exp()
        current = integrate(x, i0, tau, self.decay_input, self.backend)
        assert current.membrane is not None
        out, moments = super().compute(current.membrane.to(x.dtype), v0, want_state=want_state)
        return out._replace(
            state=torch.stack((out.state, current.state)) if want_state else out.state
        ), moments

    def extra_repr(self) -> str:
        return f"tau_synapse={self.tau_synapse}, {super().extra_repr()}"
