"""Neurons of neuroscience, each a `bs.Neuron`: quadratic, exponential, AdEx, Izhikevich, BRF.

All take forward Euler steps, as Brian2 does with method="euler". The spike variables are scaled so
that the default threshold is 1 and rest about 0, which is what surrogates and reports expect.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import options
from .own import Neuron


class QIF(Neuron, constants=options.QIF):
    """A layer of quadratic integrate-and-fire neurons (Latham et al. 2000, eq. 2).

        u[t] = v[t-1] + (v[t-1] - v_rest) (v[t-1] - v_critical) / tau + gain x[t]
        v[t] = v_reset where s[t] = 1, else u[t]

    Below v_critical the membrane returns to v_rest, above it runs away until it fires.
    tau: in timesteps, for potentials in units of the threshold.
    """

    states: ClassVar = {"v": "v_rest"}
    bounds: ClassVar = {"tau": (1.0, 1e6)}

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        u = v + (v - self.v_rest) * (v - self.v_critical) / self.tau + self.gain * x
        return u, u

    def reset(self, s: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        return (1 - s) * v + s * self.v_reset


class EIF(Neuron, constants=options.EIF):
    """A layer of exponential integrate-and-fire neurons (Fourcaud-Trocme et al. 2003, eq. 8).

        u[t] = v[t-1] + (v_rest - v[t-1] + delta exp((v[t-1] - v_t) / delta)) / tau + gain x[t]
        v[t] = v_reset where s[t] = 1, else u[t]

    A leak, and above v_t an upstroke of sharpness delta. tau: in timesteps.
    """

    states: ClassVar = {"v": "v_rest"}
    bounds: ClassVar = {"tau": (1.0, 1e6), "delta": (1e-3, 1e6)}

    def step(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        upstroke = self.delta * torch.exp((v - self.v_t) / self.delta)
        u = v + ((self.v_rest - v) + upstroke) / self.tau + self.gain * x
        return u, u

    def reset(self, s: Tensor, v: Tensor) -> Tensor:  # type: ignore[override]
        return (1 - s) * v + s * self.v_reset


class AdEx(Neuron, constants=options.AdEx):
    """A layer of adaptive exponential neurons (Brette & Gerstner 2005, eqs. 3 and 4).

        C dv/dt = -g_leak (v - v_rest) + g_leak delta exp((v - v_t) / delta) - w + current x
        tau_w dw/dt = a (v - v_rest) - w
        at a spike: v = v_reset, w = w + b

    In mV, ms, pF, nS and pA; one timestep is dt ms, and x = 1 is a current of `current` pA. The
    defaults are those of the paper, except for v_peak, which is v_t + 5 delta: from there on the
    upstroke takes less than one timestep. The spike variable is
    (v - v_rest) / (v_peak - v_rest), so that a neuron fires at v_peak with v_threshold=1.
    The state holds v and w.
    """

    states: ClassVar[dict[str, float | str]] = {"v": "v_rest", "w": 0.0}
    bounds: ClassVar = dict.fromkeys(("C", "g_leak", "delta", "tau_w", "dt"), (1e-3, 1e6))

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        rise = self.delta * torch.exp((v - self.v_t) / self.delta)
        charge = self.g_leak * (rise - (v - self.v_rest)) - w + self.current * x
        after = v + self.dt / self.C * charge
        w = w + self.dt / self.tau_w * (self.a * (v - self.v_rest) - w)
        return (after - self.v_rest) / (self.v_peak - self.v_rest), after, w

    def reset(self, s: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (1 - s) * v + s * self.v_reset, w

    def adapt(self, s: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return v, w + self.b * s


class Izhikevich(Neuron, constants=options.Izhikevich):
    """A layer of Izhikevich neurons (Izhikevich 2003, eqs. 1 to 3).

        dv/dt = 0.04 v^2 + 5 v + 140 - w + current x
        dw/dt = a (b v - w)
        at a spike: v = c, w = w + d

    v in mV (w is the paper's u), one timestep is dt ms. The defaults are those of a regular
    spiking neuron; (a, b, c, d) = (0.02, 0.2, -50, 2) chatters, (0.1, 0.2, -65, 2) is fast
    spiking. The spike variable is (v - v_rest) / (v_peak - v_rest), so that a neuron fires at
    v_peak with v_threshold=1. The state holds v and w.
    """

    states: ClassVar = {"v": "v_rest", "w": "w_rest"}

    def step(self, x: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        after = v + self.dt * (0.04 * v * v + 5 * v + 140 - w + self.current * x)
        w = w + self.dt * self.a * (self.b * v - w)
        return (after - self.v_rest) / (self.v_peak - self.v_rest), after, w

    def reset(self, s: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return (1 - s) * v + s * self.c, w

    def adapt(self, s: Tensor, v: Tensor, w: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return v, w + self.d * s


class BRF(Neuron, constants=options.BRF):
    """A layer of balanced resonate-and-fire neurons (Higuchi et al. 2024, ICML, arXiv 2402.14603).

        v[t] = v[t-1] + dt (k v[t-1] - omega w[t-1] + x[t])     k = p(omega) - damping - q[t-1]
        w[t] = w[t-1] + dt (omega v[t-1] + k w[t-1])
        s[t] = 1 if v[t] - q[t-1] >= v_threshold else 0         q[t] = gamma q[t-1] + s[t]
        p(omega) = (sqrt(1 - (dt omega)^2) - 1) / dt

    A neuron oscillates with omega radians per second and answers best to its own frequency. There
    is no reset: q, a refractory variable, raises the threshold and damps the oscillation. p is
    where the oscillation would neither grow nor decay. dt omega stays below 1.
    learn=("omega", "damping") with `channels` is the neuron of the paper, which draws omega from
    5 to 10 and damping from 0 to 1 or 3; set them with `layer.constant_omega.data.uniform_(5, 10)`.
    The spike variable is v - q. The state holds v, w and q.

    Raises ValueError if dt omega is not below 1.
    """

    states: ClassVar = {"v": 0.0, "w": 0.0, "q": 0.0}
    bounds: ClassVar = {"damping": (0.0, 1e6), "gamma": (0.0, 1.0)}

    def __init__(self, **rest: Any) -> None:
        super().__init__(**rest)
        if not abs(self.numbers["omega"]) * self.numbers["dt"] < 1:
            raise ValueError(f"BRF: dt omega must be below 1, got {self.numbers}")

    def step(  # type: ignore[override]
        self, x: Tensor, v: Tensor, w: Tensor, q: Tensor
    ) -> tuple[Tensor, ...]:
        turn = (self.dt * self.omega).clamp(-0.999, 0.999)  # a learned omega may go beyond
        boundary = (torch.sqrt(1 - turn**2) - 1) / self.dt
        k = (boundary - self.damping) - q
        after = v + self.dt * (k * v - self.omega * w + x)
        w = w + self.dt * (self.omega * v + k * w)
        return after - q, after, w, q

    def adapt(  # type: ignore[override]
        self, s: Tensor, v: Tensor, w: Tensor, q: Tensor
    ) -> tuple[Tensor, ...]:
        return v, w, self.gamma * q + s
