"""The constants of the recursion: computed in float64 and rounded once to the dtype of the state.

All backends use these, so that they agree bit for bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

# a float, or a tensor that broadcasts against one timestep `[B, C, ...]`
Coefficient: TypeAlias = Any


class Leak(NamedTuple):
    """The coefficients of u = (lam * v + offset) + gain * x."""

    lam: Coefficient
    offset: Coefficient
    gain: Coefficient


def state_dtype(x: Tensor) -> torch.dtype:
    """The dtype of the state for input x: float64 for float64, float32 for all narrower dtypes."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def over_channels(p: float | Tensor | None, x: Tensor) -> Coefficient:
    """p, reshaped if it is a `[C]` tensor so that it broadcasts against `x[t]`, `[B, C, ...]`.

    A tensor of more dimensions has one value for each neuron and broadcasts as it is.
    """
    return p.view(-1, *[1] * (x.dim() - 3)) if isinstance(p, Tensor) and p.dim() == 1 else p


def rest(v_reset: float | None) -> float:
    """The resting potential: v_reset, or 0 for the soft reset."""
    return 0.0 if v_reset is None else v_reset


def leak(tau: float | Tensor, x: Tensor, v_reset: float | None, decay_input: bool) -> Leak:
    """lam = 1 - 1/tau, offset = rest/tau, gain = 1/tau, or 1 if the input does not decay.

    Differentiable with respect to tau if it is a tensor.
    """
    if isinstance(tau, Tensor):
        dtype = state_dtype(x)
        t = over_channels(tau.double(), x)
        return Leak(
            (1 - 1 / t).to(dtype),
            (rest(v_reset) / t).to(dtype),
            (1 / t).to(dtype) if decay_input else 1.0,
        )
    return Leak(1 - 1 / tau, rest(v_reset) / tau, 1 / tau if decay_input else 1.0)
