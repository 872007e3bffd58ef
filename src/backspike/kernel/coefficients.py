"""The constants of the recursion, computed in float64 and rounded once to the state's dtype, for every backend alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Leak(NamedTuple):
    """u = (lam * v + offset) + gain * x; each a float or a tensor that broadcasts against one timestep `[B, C, ...]`."""

    lam: Any
    offset: Any
    gain: Any


def state_dtype(x: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def over_channels(p: float | Tensor | None, x: Tensor) -> Any:
    """A float or 0-dim tensor as it is; a `[C]` tensor shaped to broadcast against `x[t]`, `[B, C, ...]`."""
    return p.view(-1, *[1] * (x.dim() - 3)) if isinstance(p, Tensor) and p.dim() else p


def rest(v_reset: float | None) -> float:
    return 0.0 if v_reset is None else v_reset


def leak(tau: float | Tensor, x: Tensor, v_reset: float | None, decay_input: bool) -> Leak:
    """lam = 1 - 1/tau, offset = rest/tau, gain = 1/tau or 1. Differentiable in a tensor tau."""
    if isinstance(tau, Tensor):
        dtype = state_dtype(x)
        t = over_channels(tau.double(), x)
        return Leak(
            (1 - 1 / t).to(dtype),
            (rest(v_reset) / t).to(dtype),
            (1 / t).to(dtype) if decay_input else 1.0,
        )
    return Leak(1 - 1 / tau, rest(v_reset) / tau, 1 / tau if decay_input else 1.0)
