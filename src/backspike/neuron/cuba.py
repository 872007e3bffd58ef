"""The current-based LIF neuron with a synaptic time constant."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import kernel
from ..kernel.coefficients import leak, state_dtype
from ..kernel.recurrent import Synapse
from ..options import CubaLIF as Options
from .arguments import has
from .integrator import integrate
from .lif import LIF, Output
from .prepare import check_input, check_tau

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .arguments import CubaArguments
    from .constants import Value


@has(Options)
class CubaLIF(LIF):
    """A layer of current-based LIF neurons: a first-order synapse filters the input.

        i[t] = lam_s i[t-1] + gain_s x[t]
        lam_s = 1 - 1/tau_synapse,  gain_s = 1/tau_synapse, or 1 with decay_input=False

    The membrane is that of `LIF` with i as its input current. `learn` may also contain
    "tau_synapse"; its parameter is `log_tau_synapse_minus_1`, its buffer `tau_synapse_values`. The
    state holds v and i, `[2, B, ...]`. `memory` applies to the membrane; i is always saved for
    backward.
    With decay_input=False this is the neuron of Lava (Davies et al. 2018) and `Synaptic` of
    snnTorch. Cramer et al. 2022 set only gain_s to 1, which amounts to scaling the weights.

    Raises ValueError as `LIF` does, and for a tau_synapse that is not above 1.
    """

    learnable = (*LIF.learnable, "tau_synapse")
    options: Options

    def __init__(
        self,
        tau: Value = Options.tau,
        *,
        channels: int | tuple[int, ...] | None = None,
        **rest: Unpack[CubaArguments],
    ) -> None:
        super().__init__(tau, channels=channels, **rest)  # type: ignore[misc]  # tau_synapse
        start = self.held("tau_synapse")
        if not isinstance(start, Tensor):
            check_tau(start, self.options.decay_input)
        self.log_tau_synapse_minus_1 = self.learned_constant(
            "tau_synapse", "log_tau_synapse_minus_1"
        )

    def compute(
        self, x: Tensor, v0: Tensor | None, repeats: int = 1, want_state: bool = True
    ) -> tuple[Output, kernel.Moments | None]:
        check_input(x, v0, repeats, states=2)
        x = x.expand(repeats, *x.shape[1:]) if repeats > 1 else x
        v0, i0 = (None, None) if v0 is None else v0
        tau, decays = self.tau_synapse_in_use(), self.options.decay_input
        current = integrate(x, i0, tau, decays, self.options.backend)
        assert current.membrane is not None
        out, moments = super().compute(current.membrane.to(x.dtype), v0, want_state=want_state)
        return out._replace(
            state=torch.stack((out.state, current.state)) if want_state else out.state
        ), moments

    def synapse(self, x: Tensor, i0: Tensor | None) -> Synapse:
        """The filter of the input x, which starts from the current i0."""
        lam, _, gain = leak(self.tau_synapse_in_use(), x, None, self.options.decay_input)
        return Synapse(lam, gain, None if i0 is None else i0.to(state_dtype(x)))

    def tau_synapse_in_use(self) -> float | Tensor:
        """A number, a buffer, or a tensor with a graph where it is learned."""
        return self.tau_in_use("tau_synapse", "log_tau_synapse_minus_1")
