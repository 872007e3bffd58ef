"""The readout neuron without spikes: a leaky or perfect integrator."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from torch import Tensor

from .. import kernel
from ..options import LIF as Options
from ..surrogate import Rectangle
from .arguments import check_names
from .lif import Output, compute
from .prepare import check_tau, check_tensor, prepare
from .streaming import Streaming

# By decay_input. No potential reaches an infinite threshold, and a rectangle is zero there.
# Made here, because torch.compile of 2.12 and older cannot trace how they are made.
_NEURONS = {
    decay: Options(v_reset=0.0, decay_input=decay, surrogate=Rectangle(), reset_gradient=0.0)
    for decay in (True, False)
}


def integrate(
    x: Tensor, v0: Tensor | None, tau: float | Tensor, decay_input: bool, backend: str
) -> Output:
    """`lif` without spikes, its membrane recorded."""
    call = _prepare(x, v0, tau, decay_input)
    return compute(call, backend)[0]


def _prepare(x: Tensor, v0: Tensor | None, tau: float | Tensor, decay_input: bool) -> kernel.Call:
    constants = kernel.Constants(tau, math.inf)
    return prepare(x, v0, _NEURONS[decay_input], constants, record=kernel.Record(membrane=True))


class Integrator(Streaming):
    """A readout layer of neurons that never spike.

    `layer(x)` returns the membrane potentials, `[T, B, ...] -> [T, B, ...]`; `layer(x, v0)` returns
    a `bs.Output` without spikes.
    tau: in timesteps, with the leak of `LIF` (docs/methods.md, section 1). None: no leak,
    u[t] = u[t-1] + x[t].

    Raises TypeError for an unknown argument and for a tau that is no number, ValueError for one
    that is not above 1.
    """

    def __init__(
        self,
        tau: float | None = None,
        *,
        decay_input: bool = True,
        backend: str = "auto",
        **unknown: Any,
    ) -> None:
        super().__init__()
        check_names("Integrator", unknown, ("tau", "decay_input", "backend"))
        self.tau = tau
        self.decay_input = decay_input
        self.backend = backend
        if not (tau is None or isinstance(tau, Real)):
            raise TypeError(f"tau must be a number or None, got {tau!r}")
        if tau is not None:
            check_tau(tau, decay_input)

    def forward(self, x: Tensor, v0: Tensor | None = None) -> Any:
        check_tensor(x)
        out, _ = compute(self.prepare(x, self.initial_state(v0, x)), self.backend)
        self.carry(out.state)
        assert out.membrane is not None
        membrane = out.membrane.to(x.dtype)
        return membrane if v0 is None else Output(None, out.state, membrane)

    def prepare(self, x: Tensor, v0: Tensor | None) -> kernel.Call:
        tau = math.inf if self.tau is None else self.tau
        return _prepare(x, v0, tau, self.decay_input and self.tau is not None)

    def extra_repr(self) -> str:
        return f"tau={self.tau}" + ("" if self.decay_input else ", decay_input=False")
