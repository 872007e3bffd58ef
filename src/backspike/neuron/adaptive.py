"""The adaptive LIF neuron in its symplectic Euler form (SE-adLIF)."""

from __future__ import annotations

import math
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import kernel
from ..options import AdaptiveLIF as Options
from .arguments import has
from .constants import learned
from .lif import LIF
from .prepare import check_parameter, check_tau

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .arguments import AdaptiveArguments
    from .constants import Value

B_MAX = 240.0  # limit of a learned b; that of the paper
A_MAX = 120.0  # limit of a learned a, likewise, where the stable range does not end before


@has(Options)
class AdaptiveLIF(LIF):
    """A layer of adaptive LIF neurons: a current w grows with membrane and spikes and inhibits.

        u[t] = (lam v[t-1] + rest/tau) + gain (x[t] - w[t-1])      spike and reset as in `LIF`
        w[t] = lam_w w[t-1] + (a (v[t] - rest) + b s[t]) / tau_adaptation
        lam_w = 1 - 1/tau_adaptation

    This is SE-adLIF (Baronig et al. 2024, arXiv 2408.07517, eqs. 6a and 6b): w[t] already contains
    v[t] and s[t], so that the neuron is stable for a much wider range of a. a > 0 makes the
    membrane oscillate, b > 0 makes the neuron fire less the more it has fired. The neuron of the
    paper has v_reset=0.0 and decay_input=True; its time constants in milliseconds become
    1 / (1 - exp(-dt/tau)) timesteps.

    learn may also contain "tau_adaptation", "a" and "b"; the parameters are called
    `log_tau_adaptation_minus_1`, `adaptation_a` and `adaptation_b`, one of each per layer, channel
    or neuron as `per` says. Learned values are kept between 0 and 120 (a,
    which also stays within the stable range, `a_limit`) or 240 (b). A learned tau or tau_adaptation
    may leave the stable range of an a that is not learned. The state holds v and w,
    `[2, B, ...]`. The other arguments are those of `LIF`; reset_gradient does not scale the
    gradient through b s[t].

    Raises ValueError as `LIF` does, for a tau_adaptation that is not above 1, for an a outside the
    stable range, and for memory="8bit" or "1bit" with a learned tau_adaptation, a or b.
    """

    learnable = (*LIF.learnable, "tau_adaptation", "a", "b")
    options: Options

    def __init__(
        self,
        tau: Value = Options.tau,
        *,
        channels: int | tuple[int, ...] | None = None,
        **rest: Unpack[AdaptiveArguments],
    ) -> None:
        super().__init__(tau, channels=channels, **rest)  # type: ignore[misc]  # tau_adaptation
        neuron = self.options
        for name in ("tau_adaptation", "a", "b"):
            if not isinstance(getattr(neuron, name), Real):
                raise TypeError(f"{name} must be a number, got {getattr(neuron, name)!r}")
        check_tau(neuron.tau_adaptation, decay_input=True)
        self._check_a()
        if not math.isfinite(neuron.b):
            raise ValueError(f"b must be a finite number, got {neuron.b}")
        own = {"tau_adaptation", "a", "b"} & {*neuron.learn}
        if own and neuron.memory in ("8bit", "1bit"):
            raise ValueError(
                f"memory={neuron.memory!r} gives no gradient for {', '.join(sorted(own))}, which "
                "depend on membranes far from the threshold; choose 'bfloat16' or 'recompute'"
            )
        self.log_tau_adaptation_minus_1 = self._parameter("tau_adaptation", minus_1=True)
        self.adaptation_a = self._parameter("a")
        self.adaptation_b = self._parameter("b")
        self.limits["adaptation_b"] = 0.0, B_MAX

    def _parameter(self, name: str, minus_1: bool = False) -> nn.Parameter | None:
        if name not in self.options.learn:
            return None
        return learned(getattr(self.options, name), self.shape, minus_1)

    def _check_a(self) -> None:
        neuron, tau = self.options, torch.as_tensor(self.constants().tau).detach().double()
        if tau.is_meta:
            return
        smallest, largest = float(tau.min()), float(tau.max())
        lowest = -1.0 if neuron.decay_input else -1 / largest
        limit = float(a_limit(smallest, neuron.tau_adaptation, neuron.decay_input))
        if not lowest <= neuron.a < limit:
            raise ValueError(
                f"a must lie in [{lowest:.4g}, {limit:.4g}), where the membrane is stable with "
                f"tau={smallest:g} and tau_adaptation={neuron.tau_adaptation:g}; got {neuron.a}"
            )

    def adaptation(self) -> tuple[float | Tensor, ...]:
        """lam_w, a / tau_adaptation and b / tau_adaptation, in float64 where learned."""
        log_tau, a, b = (
            None if p is None else p.double()
            for p in (
                self.log_tau_adaptation_minus_1,
                self.adaptation_a,
                self.within_limits("adaptation_b"),
            )
        )
        tau: float | Tensor = self.options.tau_adaptation if log_tau is None else 1 + log_tau.exp()
        if not torch.is_grad_enabled():  # with gradients, `begin` has clamped the parameters
            a = None if a is None else self._bounded_a(a)
        return (
            1 - 1 / tau,
            (self.options.a if a is None else a) / tau,
            (self.options.b if b is None else b) / tau,
        )

    def operations(self, T: int) -> tuple[int, float]:
        return 2, 3.0  # of v with the leak, of w with its leak and with v

    def complete(self, call: kernel.Call) -> kernel.Call:
        adaptation = self.adaptation()
        for p in adaptation:
            check_parameter("a learned constant of the adaptation", p, call.x, self.per)
        return replace(call, adaptation=adaptation)

    def _bounded_a(self, a: Tensor) -> Tensor:
        tau, log_tau = self.constants().tau, self.log_tau_adaptation_minus_1
        slow = self.options.tau_adaptation if log_tau is None else 1 + log_tau.detach().exp()
        limit = 0.999 * a_limit(tau, slow, self.options.decay_input)
        limit = torch.as_tensor(limit, dtype=a.dtype, device=a.device).detach()
        return torch.minimum(a.clamp(0, A_MAX), limit)

    def _clamp_parameters(self) -> None:
        super()._clamp_parameters()
        if self.adaptation_a is not None:
            self.adaptation_a.data.copy_(self._bounded_a(self.adaptation_a.data))


def a_limit(
    tau: float | Tensor, tau_adaptation: float | Tensor, decay_input: bool
) -> float | Tensor:
    """The a from which on a membrane below the threshold grows without bounds.

    The pair (v, w) is multiplied by a matrix of determinant lam lam_w and trace
    lam + lam_w - gain a / tau_adaptation in every timestep; its eigenvalues lie within the unit
    circle while abs(trace) < 1 + determinant.
    """
    lam, lam_w, gain = 1 - 1 / tau, 1 - 1 / tau_adaptation, 1 / tau if decay_input else 1.0
    return (1 + lam) * (1 + lam_w) * tau_adaptation / gain
