"""Surrogate derivatives: what the backward pass uses in place of the derivative of a spike.

A surrogate is a value, a frozen dataclass with two methods on `z = u - theta`: `derivative(z)`, the h of the equations,
and `primitive(z)`, the smooth step whose derivative it is. `Masked` (MSG) and `Parametric` (PSG) wrap any of them, and any
dataclass with these two methods is a surrogate too. Only tensor methods are used, so that this file imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Surrogate(Protocol):
    """Anything with `derivative(z)` and `primitive(z)`; both keep the shape and the dtype of z."""

    def derivative(self, z: Tensor) -> Tensor: ...

    def primitive(self, z: Tensor) -> Tensor: ...


def _positive(owner: object, **values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"{type(owner).__name__}: {name} must be a positive number, got {value}"
            )


@dataclass(frozen=True)
class Triangle:
    """Triangle of peak alpha over abs(z) < 1/alpha, area 1: h = max(0, alpha - alpha^2 abs(z)).

    Called PiecewiseLinear in the code of paper A (Li et al. 2024), which uses alpha = 2.
    """

    alpha: float = 2.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, alpha=self.alpha, scale=self.scale)

    def derivative(self, z: Tensor) -> Tensor:
        return (self.alpha - self.alpha**2 * z.abs()).clamp(min=0) * self.scale

    def primitive(self, z: Tensor) -> Tensor:
        y = z.clamp(-1 / self.alpha, 1 / self.alpha) * self.alpha
        return (0.5 + y - 0.5 * y * y.abs()) * self.scale


@dataclass(frozen=True)
class ATan:
    """Derivative of an arc tangent, area 1: h = (alpha/2) / (1 + (pi/2 alpha z)^2) (Fang et al. 2021)."""

    alpha: float = 2.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, alpha=self.alpha, scale=self.scale)

    def derivative(self, z: Tensor) -> Tensor:
        return (self.scale * self.alpha / 2) / (1 + (z * (math.pi / 2 * self.alpha)) ** 2)

    def primitive(self, z: Tensor) -> Tensor:
        return ((z * (math.pi / 2 * self.alpha)).atan() / math.pi + 0.5) * self.scale


@dataclass(frozen=True)
class Rectangle:
    """Rectangle of area 1: h = 1/width on abs(z) < width/2, the edge excluded (Wu et al. 2018)."""

    width: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, width=self.width, scale=self.scale)

    def derivative(self, z: Tensor) -> Tensor:
        return (z.abs() < self.width / 2).to(z.dtype) * (self.scale / self.width)

    def primitive(self, z: Tensor) -> Tensor:
        return (z / self.width + 0.5).clamp(0, 1) * self.scale


@dataclass(frozen=True)
class Sigmoid:
    """Derivative of the logistic function, area 1: h = alpha sig(alpha z) (1 - sig(alpha z))."""

    alpha: float = 4.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, alpha=self.alpha, scale=self.scale)

    def derivative(self, z: Tensor) -> Tensor:
        # sig(y) sig(-y) rather than sig(y) (1 - sig(y)): no cancellation far above the threshold
        return (z * self.alpha).sigmoid() * (z * -self.alpha).sigmoid() * (self.alpha * self.scale)

    def primitive(self, z: Tensor) -> Tensor:
        return (z * self.alpha).sigmoid() * self.scale


@dataclass(frozen=True)
class SuperSpike:
    """Derivative of the fast sigmoid, peak 1, area 2/alpha: h = 1 / (1 + alpha abs(z))^2 (Zenke & Ganguli 2018)."""

    alpha: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, alpha=self.alpha, scale=self.scale)

    def derivative(self, z: Tensor) -> Tensor:
        return self.scale / (1 + self.alpha * z.abs()) ** 2

    def primitive(self, z: Tensor) -> Tensor:
        return (z / (1 + self.alpha * z.abs()) + 1 / self.alpha) * self.scale


@dataclass(frozen=True)
class PiecewiseExponential:
    """Two-sided exponential of area 1: h = (alpha/2) exp(-alpha abs(z)) (Shrestha & Orchard 2018)."""

    alpha: float = 1.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, alpha=self.alpha, scale=self.scale)

    def derivative(self, z: Tensor) -> Tensor:
        return (z.abs() * -self.alpha).exp() * (self.alpha / 2 * self.scale)

    def primitive(self, z: Tensor) -> Tensor:
        return (1 + z.sign() * (1 - (z.abs() * -self.alpha).exp())) * (self.scale / 2)


@dataclass(frozen=True)
class Erf:
    """Gaussian of area 1: h = (alpha/sqrt(pi)) exp(-(alpha z)^2)."""

    alpha: float = 2.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, alpha=self.alpha, scale=self.scale)

    def derivative(self, z: Tensor) -> Tensor:
        return (-((z * self.alpha) ** 2)).exp() * (self.alpha / math.sqrt(math.pi) * self.scale)

    def primitive(self, z: Tensor) -> Tensor:
        return (1 + (z * self.alpha).erf()) * (self.scale / 2)


@dataclass(frozen=True)
class Dspike:
    """Truncated squared hyperbolic secant, area 1 (Li et al. 2021, Dspike).

    h = t sech^2(t z) / (2 tanh(t/2)) on abs(z) < 1/2, with t the temperature.
    """

    temperature: float = 3.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, temperature=self.temperature, scale=self.scale)

    def derivative(self, z: Tensor) -> Tensor:
        t = self.temperature
        sech2 = 1 - (z * t).tanh() ** 2
        return sech2 * (z.abs() < 0.5).to(z.dtype) * (t / (2 * math.tanh(t / 2)) * self.scale)

    def primitive(self, z: Tensor) -> Tensor:
        t = self.temperature
        return ((z.clamp(-0.5, 0.5) * t).tanh() / (2 * math.tanh(t / 2)) + 0.5) * self.scale


@dataclass(frozen=True)
class Parametric:
    """PSG (paper C, Wang et al. 2023): any base with a width w that the layer learns: h(z; w) = base.derivative(z/w) / w.

    The gradient of w follows the primitive path, dP/dw = -(z/w) h(z; w); that choice is ours (see docs/methods.md). Alone,
    as here, the value describes width 1; the width itself is `LIF.log_width`, one per layer or `per_channel`.
    `Parametric(Masked(base))` becomes `Masked(Parametric(base))`, the canonical order.
    """

    base: Surrogate
    per_channel: bool = False

    def __new__(cls, base: Any = None, per_channel: bool = False) -> Any:
        if isinstance(base, Masked):
            return Masked(cls(base.base, per_channel), base.p, base.replace, base.rescale)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        _check_base(self, self.base)
        if isinstance(self.base, Parametric):
            raise ValueError("Parametric: the base is Parametric already; one width is enough")

    def derivative(self, z: Tensor) -> Tensor:
        return self.base.derivative(z)

    def primitive(self, z: Tensor) -> Tensor:
        return self.base.primitive(z)


@dataclass(frozen=True)
class Masked:
    """MSG (paper A, Li et al. 2024): each element of h is dropped with probability p, afresh in every forward pass.

    Only the backward pass changes; a dropped element loses its output path and its reset path and keeps the leak path.
    `replace`: a second, narrow surrogate that stands in where an element is dropped, instead of zero. `rescale`: what is
    kept is divided by 1 - p. The mask itself is applied by `lif` (`bs.dropped` shows it), so `derivative` is the base's.
    """

    base: Surrogate
    p: float = 0.5
    replace: Surrogate | None = None
    rescale: bool = False

    def __post_init__(self) -> None:
        _check_base(self, self.base)
        if isinstance(self.base, Masked) or isinstance(self.replace, Masked | Parametric):
            raise ValueError("Masked: base and replace must not be Masked, nor replace Parametric")
        if self.replace is not None:
            _check_base(self, self.replace)
        if not 0 <= self.p <= 1:
            raise ValueError(f"Masked: p is a probability and must lie in [0, 1], got {self.p}")
        if self.rescale and self.p == 1:
            raise ValueError("Masked: rescale divides by 1 - p, so p must be below 1")
        if self.rescale and self.replace is not None:
            raise ValueError(
                "Masked: choose rescale or replace; with replace nothing is lost that rescale could make up"
            )

    def derivative(self, z: Tensor) -> Tensor:
        return self.base.derivative(z)

    def primitive(self, z: Tensor) -> Tensor:
        return self.base.primitive(z)


def _check_base(owner: object, base: object) -> None:
    if isinstance(base, type) or not isinstance(base, Surrogate):
        raise TypeError(
            f"{type(owner).__name__}: needs a surrogate such as Triangle(alpha=2), got {base!r}"
        )


def unwrap(surrogate: Surrogate) -> tuple[Masked | None, Parametric | None, Surrogate]:
    mask = surrogate if isinstance(surrogate, Masked) else None
    inner = mask.base if mask else surrogate
    parametric = inner if isinstance(inner, Parametric) else None
    return mask, parametric, parametric.base if parametric else inner
