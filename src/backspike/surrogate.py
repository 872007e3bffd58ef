"""Surrogate derivatives: what the backward pass uses in place of the derivative of a spike.

A surrogate is a value, a frozen dataclass with two methods of `z = u - theta`: `derivative(z)`,
the h of the equations, and `primitive(z)`, the smooth step that has this derivative. `Masked` (MSG)
and `Parametric` (PSG) wrap any other surrogate, and any dataclass of a user's with these two
methods is a surrogate too. Only methods of tensors are used, so this file imports no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch import Tensor


@runtime_checkable
class Surrogate(Protocol):
    """Anything with `derivative(z)` and `primitive(z)`; both keep the shape and the dtype of z."""

    def derivative(self, z: Tensor) -> Tensor: ...

    def primitive(self, z: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Family(Surrogate):
    """The surrogates of this file that wrap no other: a formula with a shape and a `scale`.

    A class says here whatever the rest of the library has to know about it. All its fields are
    positive numbers. `alpha` is inversely proportional to the width, `width` proportional to it.
    """

    code: ClassVar[int] = 0  # of its case in kernel/csrc/surrogate.h; 0: it has none
    binary: ClassVar[bool] = False  # h is 0 or one single value, so that memory="1bit" is exact

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a positive number, got {value}"
                )

    @property
    def support(self) -> float:
        """h is zero wherever abs(z) is at least this; infinite if it is zero nowhere."""
        return math.inf

    def constants(self) -> tuple[float, ...]:
        """The numbers in its formula, at most three, in float64: C and Triton get them from here.

        They are a, b and c there. A binary surrogate has its value in b.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Triangle(Family):
    """Triangle of peak alpha over abs(z) < 1/alpha, area 1: h = max(0, alpha - alpha^2 abs(z)).

    Called PiecewiseLinear in the code of paper A (Li et al. 2024), which uses alpha = 2.
    """

    code: ClassVar[int] = 1
    alpha: float = 2.0
    scale: float = 1.0

    @property
    def support(self) -> float:
        return 1 / self.alpha

    def constants(self) -> tuple[float, ...]:
        return self.alpha * self.alpha, self.scale, self.alpha

    def derivative(self, z: Tensor) -> Tensor:
        a, b, c = self.constants()
        return (c - a * z.abs()).clamp(min=0) * b

    def primitive(self, z: Tensor) -> Tensor:
        y = z.clamp(-1 / self.alpha, 1 / self.alpha) * self.alpha
        return (0.5 + y - 0.5 * y * y.abs()) * self.scale


@dataclass(frozen=True)
class ATan(Family):
    """Derivative of an arc tangent, area 1: h = (alpha/2) / (1 + (pi/2 alpha z)^2).

    Fang et al. 2021.
    """

    code: ClassVar[int] = 2
    alpha: float = 2.0
    scale: float = 1.0

    def constants(self) -> tuple[float, ...]:
        return math.pi / 2 * self.alpha, self.scale * self.alpha / 2

    def derivative(self, z: Tensor) -> Tensor:
        a, b = self.constants()
        return b / (1 + (z * a) ** 2)

    def primitive(self, z: Tensor) -> Tensor:
        return ((z * (math.pi / 2 * self.alpha)).atan() / math.pi + 0.5) * self.scale


@dataclass(frozen=True)
class Rectangle(Family):
    """Rectangle of area 1: h = 1/width on abs(z) < width/2, the edge excluded (Wu et al. 2018)."""

    code: ClassVar[int] = 3
    binary: ClassVar[bool] = True
    width: float = 1.0
    scale: float = 1.0

    @property
    def support(self) -> float:
        return self.width / 2

    def constants(self) -> tuple[float, ...]:
        return self.width / 2, self.scale / self.width

    def derivative(self, z: Tensor) -> Tensor:
        a, b = self.constants()
        return (z.abs() < a).to(z.dtype) * b

    def primitive(self, z: Tensor) -> Tensor:
        return (z / self.width + 0.5).clamp(0, 1) * self.scale


@dataclass(frozen=True)
class Sigmoid(Family):
    """Derivative of the logistic function, area 1: h = alpha sig(alpha z) (1 - sig(alpha z))."""

    code: ClassVar[int] = 4
    alpha: float = 4.0
    scale: float = 1.0

    def constants(self) -> tuple[float, ...]:
        return -self.alpha, self.alpha * self.scale

    def derivative(self, z: Tensor) -> Tensor:
        # sig(y) sig(-y) rather than sig(y) (1 - sig(y)): no cancellation far above the threshold
        a, b = self.constants()
        return (z * -a).sigmoid() * (z * a).sigmoid() * b

    def primitive(self, z: Tensor) -> Tensor:
        return (z * self.alpha).sigmoid() * self.scale


@dataclass(frozen=True)
class SuperSpike(Family):
    """Derivative of the fast sigmoid, peak 1, area 2/alpha: h = 1 / (1 + alpha abs(z))^2.

    Zenke & Ganguli 2018.
    """

    code: ClassVar[int] = 5
    alpha: float = 1.0
    scale: float = 1.0

    def constants(self) -> tuple[float, ...]:
        return self.alpha, self.scale

    def derivative(self, z: Tensor) -> Tensor:
        a, b = self.constants()
        return b / (1 + a * z.abs()) ** 2

    def primitive(self, z: Tensor) -> Tensor:
        return (z / (1 + self.alpha * z.abs()) + 1 / self.alpha) * self.scale


@dataclass(frozen=True)
class PiecewiseExponential(Family):
    """Two-sided exponential of area 1: h = (alpha/2) exp(-alpha abs(z)).

    Shrestha & Orchard 2018.
    """

    code: ClassVar[int] = 6
    alpha: float = 1.0
    scale: float = 1.0

    def constants(self) -> tuple[float, ...]:
        return -self.alpha, self.alpha / 2 * self.scale

    def derivative(self, z: Tensor) -> Tensor:
        a, b = self.constants()
        return (z.abs() * a).exp() * b

    def primitive(self, z: Tensor) -> Tensor:
        return (1 + z.sign() * (1 - (z.abs() * -self.alpha).exp())) * (self.scale / 2)


@dataclass(frozen=True)
class Erf(Family):
    """Gaussian of area 1: h = (alpha/sqrt(pi)) exp(-(alpha z)^2)."""

    code: ClassVar[int] = 7
    alpha: float = 2.0
    scale: float = 1.0

    def constants(self) -> tuple[float, ...]:
        return self.alpha, self.alpha / math.sqrt(math.pi) * self.scale

    def derivative(self, z: Tensor) -> Tensor:
        a, b = self.constants()
        return (-((z * a) ** 2)).exp() * b

    def primitive(self, z: Tensor) -> Tensor:
        return (1 + (z * self.alpha).erf()) * (self.scale / 2)


@dataclass(frozen=True)
class Dspike(Family):
    """Truncated squared hyperbolic secant, area 1 (Li et al. 2021, Dspike).

    h = t sech^2(t z) / (2 tanh(t/2)) on abs(z) < 1/2, with t the temperature.
    """

    code: ClassVar[int] = 8
    temperature: float = 3.0
    scale: float = 1.0

    @property
    def support(self) -> float:
        return 0.5

    def constants(self) -> tuple[float, ...]:
        # sech^2 y = 4 sig(2y) sig(-2y)
        t = self.temperature
        return -2 * t, 2 * t / math.tanh(t / 2) * self.scale

    def derivative(self, z: Tensor) -> Tensor:
        t = self.temperature
        sech2 = 1 - (z * t).tanh() ** 2
        return sech2 * (z.abs() < 0.5).to(z.dtype) * (t / (2 * math.tanh(t / 2)) * self.scale)

    def primitive(self, z: Tensor) -> Tensor:
        t = self.temperature
        return ((z.clamp(-0.5, 0.5) * t).tanh() / (2 * math.tanh(t / 2)) + 0.5) * self.scale


FAMILIES = tuple(Family.__subclasses__())


def is_family(surrogate: object) -> TypeGuard[Family]:
    """Whether it is one of `FAMILIES`; a class derived from one may have another formula."""
    return type(surrogate) in FAMILIES


@dataclass(frozen=True)
class Parametric:
    """PSG (paper C, Wang et al. 2023): any base with a learned width w.

    h(z; w) = base.derivative(z/w) / w. The gradient of w is that of the primitive,
    dP/dw = -(z/w) h(z; w), which is our choice (see docs/methods.md). The width itself is not part
    of this value: it is `LIF.log_width`, one per layer or, with `per_channel`, one per channel, and
    the methods here are those of width 1. `Parametric(Masked(base))` becomes
    `Masked(Parametric(base))`, the canonical order.
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
    """MSG (paper A, Li et al. 2024): each element of h is dropped with probability p.

    Every forward pass draws a new mask. Only the backward pass changes: a dropped element has no
    gradient through its spike and its reset, and keeps the one through the leak. `replace`: a
    second, narrow surrogate that is used where an element is dropped, instead of zero. `rescale`:
    the elements that are not dropped are divided by 1 - p. `lif` applies the mask (`bs.dropped`
    shows it), so `derivative` is that of the base.
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
                "Masked: choose rescale or replace; with replace nothing is lost that rescale could"
                " make up"
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
