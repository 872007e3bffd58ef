"""The surrogates of snnTorch, SpikingJelly and Norse as ours, their gradients compared.

Ours is found by the name and the constants of theirs, then both are evaluated on a grid: what
differs is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import surrogate as ours
from ..errors import ExchangeError

# ours, or several of which one may be equal
Found = ours.Surrogate | tuple[ours.Surrogate, ...]
Table = dict[str, Callable[..., Found]]
# by class: from its constants
SPIKINGJELLY: Table = {
    "ATan": lambda alpha: ours.ATan(alpha=alpha),
    "Erf": lambda alpha: ours.Erf(alpha=alpha),
    "PiecewiseExp": lambda alpha: ours.PiecewiseExponential(alpha=alpha),
    # equal only with c = 0; twice as high before 2.0
    "PiecewiseLeakyReLU": lambda w, c: (
        ours.Rectangle(width=2 * w),
        ours.Rectangle(width=2 * w, scale=2.0),
    ),
    "PiecewiseQuadratic": lambda alpha: ours.Triangle(alpha=alpha),
    "QPseudoSpike": lambda alpha: ours.SuperSpike(alpha=2.0),  # equal only with alpha = 2
    "Rect": lambda alpha: ours.Rectangle(width=1 / alpha),
    "Sigmoid": lambda alpha: ours.Sigmoid(alpha=alpha),
    "SoftSign": lambda alpha: ours.SuperSpike(alpha=alpha, scale=alpha / 2),
    "SuperSpike": lambda alpha: ours.SuperSpike(alpha=1.0, scale=alpha),
}
# by factory: from the variables that the function it returns encloses
SNNTORCH: Table = {
    "atan": lambda alpha: ours.ATan(alpha=alpha),
    "fast_sigmoid": lambda slope: ours.SuperSpike(alpha=slope),
    "sigmoid": lambda slope: ours.Sigmoid(alpha=slope),
}
# by `method`: from alpha
NORSE: Table = {
    "heavi_erfc": lambda alpha: ours.Erf(alpha=alpha, scale=2 / alpha),
    "super": lambda alpha: ours.SuperSpike(alpha=1.0),  # norse 1.1.0 ignores alpha here
    "tanh": lambda alpha: ours.Sigmoid(alpha=2 * alpha, scale=2 / alpha),
    "triangle": lambda alpha: ours.Triangle(alpha=1.0, scale=alpha),
}


def of_spikingjelly(f: Any) -> ours.Surrogate:
    name = type(f).__name__
    if not getattr(f, "spiking", True):
        raise ExchangeError("its surrogate_function has spiking=False, so it never spikes")
    constants = {c: float(getattr(f, c)) for c in ("alpha", "w", "c", "beta") if hasattr(f, c)}
    return _find(SPIKINGJELLY, name, constants, f)


def of_snntorch(f: Any) -> ours.Surrogate:
    name = getattr(f, "__qualname__", type(f).__name__).partition(".")[0]
    cells = getattr(f, "__closure__", None) or ()
    names = f.__code__.co_freevars if cells else ()
    constants = {n: cell.cell_contents for n, cell in zip(names, cells)}
    return _find(SNNTORCH, name, constants, f)


def of_norse(method: str, alpha: Any, threshold: Callable[..., Tensor]) -> ours.Surrogate:
    constants = {"alpha": float(alpha)}
    return _find(NORSE, method, constants, lambda z: threshold(z, method, alpha))


def _find(
    table: Table,
    name: str,
    constants: dict[str, Any],
    theirs: Callable[[Tensor], Tensor],
) -> ours.Surrogate:
    why = f"its surrogate {name} has no equal here; give surrogate=, such as bs.ATan()"
    if name not in table:
        raise ExchangeError(why)
    try:
        found = table[name](**constants)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ExchangeError(f"its surrogate {name} has the constants {constants}") from error
    candidates = found if isinstance(found, tuple) else (found,)
    errors = [_difference(candidate, theirs) for candidate in candidates]
    if min(errors) > 1e-6:
        raise ExchangeError(f"{why} ({candidates[0]} differs by up to {errors[0]:.2g})")
    return candidates[errors.index(min(errors))]


def _difference(found: ours.Surrogate, theirs: Callable[[Tensor], Tensor]) -> float:
    """The largest difference of the derivatives, relative to the peak. The grid avoids edges."""
    z = (torch.linspace(-3, 3, 1201, dtype=torch.float64) + 1e-3 / 3).requires_grad_()
    with torch.enable_grad():
        (h,) = torch.autograd.grad(theirs(z).sum(), z)
    want = found.derivative(z.detach())
    return float((h - want).abs().max() / want.abs().max().clamp(min=1e-300))
