"""LIF and current-based LIF neurons with absolute and relative refractory periods."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import options
from .own import Neuron


class RefractoryLIF(Neuron, constants=options.RefractoryLIF):
    """A layer of LIF neurons with refractory periods (Gerstner et al. 2014, sections 1.3, 6.2).

        u[t] = v[t-1] + (v_reset - v[t-1]) / tau + gain x[t]    s[t] = 1 if
                                                                u[t] - rise[t-1] >= v_threshold
        u[t] = v[t-1]                                           s[t] = 0    in the absolute period
        v[t] = v_reset where s[t] = 1, else u[t]
        rise[t] = (1 - 1/tau_rise) rise[t-1] + threshold_rise s[t]

    refractory: the absolute period; so many timesteps after a spike ignore their input. Brian2
    counts one more: its refractory=3*dt is refractory=2 here.
    threshold_rise, tau_rise: the relative period; a spike raises the threshold by threshold_rise,
    and the rise decays with tau_rise.
    Times are in timesteps. The reset is hard. No gradient flows through a spike that could not
    happen, nor through the end of the absolute period. The spike variable is u - rise, and v_reset
    in the absolute period. The state holds v, the timesteps left of that period, and rise.

    Raises ValueError for a v_reset that is not below v_threshold, and for negative values of
    refractory and threshold_rise.
    """

    states: ClassVar[dict[str, float | str]] = {"v": "v_reset", "left": 0.0, "rise": 0.0}
    fixed: ClassVar = ("refractory",)  # no gradient reaches it
    bounds: ClassVar = {"tau": (1.0, 1e6), "tau_rise": (1.0, 1e6), "threshold_rise": (0.0, 1e6)}

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        kind = type(self).__name__
        low, high = self.numbers["v_reset"], self.options.v_threshold
        assert isinstance(high, float | int)  # bs.Neuron takes no distribution
        if not low < high:
            raise ValueError(f"{kind}: v_reset must be below v_threshold, got {low:g} and {high:g}")
        for name in ("refractory", "threshold_rise"):
            if self.numbers[name] < 0:
                raise ValueError(f"{kind}: {name} must be at least 0, got {self.numbers[name]:g}")

    def step(  # type: ignore[override]
        self, x: Tensor, v: Tensor, left: Tensor, rise: Tensor
    ) -> tuple[Tensor, ...]:
        return self._integrate(self.gain * x, v, left, rise)

    def _integrate(
        self, current: Tensor, v: Tensor, left: Tensor, rise: Tensor
    ) -> tuple[Tensor, ...]:
        held = left > 0
        u = torch.where(held, v, v + (self.v_reset - v) / self.tau + current)
        seen = torch.where(held, self.v_reset, u - rise)
        return seen, u, (left - 1).clamp(min=0), rise - rise / self.tau_rise

    def reset(  # type: ignore[override]
        self, s: Tensor, v: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        return (1 - s) * v + s * self.v_reset, *others

    def adapt(  # type: ignore[override]
        self, s: Tensor, v: Tensor, left: Tensor, rise: Tensor, *others: Tensor
    ) -> tuple[Tensor, ...]:
        return v, left + self.refractory * s, rise + self.threshold_rise * s, *others


class RefractoryCubaLIF(RefractoryLIF, constants=options.RefractoryCubaLIF):
    """`bs.RefractoryLIF` whose input passes a first-order synapse, as in `bs.CubaLIF`.

        i[t] = (1 - 1/tau_synapse) i[t-1] + gain x[t]       u integrates i[t] instead of x[t]

    The synapse also filters in the absolute period. The state is that of `RefractoryLIF`, and i.

    Raises ValueError as `RefractoryLIF` does.
    """

    states: ClassVar[dict[str, float | str]] = {**RefractoryLIF.states, "i": 0.0}
    bounds: ClassVar = {**RefractoryLIF.bounds, "tau_synapse": (1.0, 1e6)}

    def step(  # type: ignore[override]
        self, x: Tensor, v: Tensor, left: Tensor, rise: Tensor, i: Tensor
    ) -> tuple[Tensor, ...]:
        i = i - i / self.tau_synapse + self.gain * x
        return *self._integrate(i, v, left, rise), i
