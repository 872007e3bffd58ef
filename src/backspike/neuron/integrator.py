"""The readout neuron without spikes: a leaky or perfect integrator."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from ..surrogate import Rectangle
from .lif import Output, lif
from .prepare import check_constants
from .streaming import Streaming


def integrate(
    x: Tensor, v0: Tensor | None, tau: float | Tensor, decay_input: bool, backend: str
) -> Output:
    """`lif` without spikes, its membrane recorded."""
    return lif(x, v0, tau=tau, decay_input=decay_input, backend=backend, **_SPIKELESS)


# an infinite threshold is never reached, and a rectangle is zero there: no spikes and no surrogate
_SPIKELESS: dict[str, Any] = {
    "v_threshold": math.inf,
    "surrogate": Rectangle(),
    "reset_gradient": 0.0,
    "record_membrane": True,
}


class Integrator(Streaming):
    """A readout layer of neurons that never spike: `layer(x) -> membrane`, both `[T, B, ...]`; `layer(x, v0) -> bs.Output`.

    tau=None: u[t] = u[t-1] + x[t]. With tau: the leak of `LIF`.
    """

    def __init__(
        self, tau: float | None = None, *, decay_input: bool = True, backend: str = "auto"
    ) -> None:
        super().__init__()
        self.tau, self.decay_input, self.backend = tau, decay_input, backend
        check_constants(
            math.inf if tau is None else tau, 1.0, 0.0, decay_input and tau is not None, 0.0
        )

    def forward(self, x: Tensor, v0: Tensor | None = None) -> Any:
        out = lif(x, self.initial_state(v0, x), backend=self.backend, **self.options())
        self._finish(out.state)
        assert out.membrane is not None
        membrane = out.membrane.to(x.dtype)
        return membrane if v0 is None else Output(None, out.state, membrane)

    def options(self) -> dict[str, Any]:
        tau = math.inf if self.tau is None else self.tau
        rest = {"v_reset": 0.0, "temporal_gradient": True}
        return {
            "tau": tau,
            "decay_input": self.decay_input and self.tau is not None,
            **rest,
            **_SPIKELESS,
        }

    def extra_repr(self) -> str:
        return f"tau={self.tau}, decay_input={self.decay_input}"
