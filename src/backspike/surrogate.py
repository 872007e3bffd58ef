"""Surrogate derivatives: what the backward pass uses in place of the derivative of a spike.

A surrogate is a value: a frozen dataclass with two methods that take `z = u - theta`.
`derivative(z)` is the h of the equations, and `primitive(z)` is the smooth step with that
derivative. `Masked` (MSG) and `Parametric` (PSG) wrap any other surrogate. Any dataclass of your
own with these two methods is a surrogate too. This file calls only tensor methods and does not
import torch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing import TypeGuard

    from torch import Tensor


@runtime_checkable
class Surrogate(Protocol):
    """Anything with `derivative(z)` and `primitive(z)`; both preserve the shape and dtype of z."""

    def derivative(self, z: Tensor) -> Tensor:
        """The surrogate derivative h(z), element by element."""
        ...

    def primitive(self, z: Tensor) -> Tensor:
        """The smooth step whose derivative is h, element by element."""
        ...


@dataclass(frozen=True)
class Family(Surrogate):
    """Base class of the surrogates in this file that wrap no other: a formula and a `scale`.

    Each class declares here everything that the rest of the library needs to know about it. All
    fields are positive numbers; anything else raises ValueError. The width of the curve is
    inversely proportional to `alpha` and proportional to `width`.
    """

    code: ClassVar[int] = 0  # its case in kernel/csrc/surrogate.h; 0: no case there
    binary: ClassVar[bool] = False  # h is either 0 or one fixed value, so memory="1bit" is exact

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"{type(self).__name__}: {name} must be a positive number, got {value}"
                )

    @property
    def support(self) -> float:
        """The bound beyond which h is zero: abs(z) >= support. Infinite if h is never zero."""
        return math.inf

    @abstractmethod
    def constants(self) -> tuple[float, ...]:
        """The constants of the formula, at most three float64 numbers, as C and Triton use them.

        They are called a, b and c there. A binary surrogate has its nonzero value in b.
        """


@dataclass(frozen=True)
class Triangle(Family):
    """Triangle with peak alpha on abs(z) < 1/alpha, area 1: h = max(0, alpha - alpha^2 abs(z)).

    Named PiecewiseLinear in the code of paper A (Li et al. 2024), which uses alpha = 2.
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
    """Rectangle of area 1: h = 1/width on abs(z) < width/2, edges excluded (Wu et al. 2018)."""

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
    """Derivative of the logistic function, area 1: h = alpha sig(alpha z) (1 - sig(alpha z)).

    Wu et al. 2018, their h3.
    """

    code: ClassVar[int] = 4
    alpha: float = 4.0
    scale: float = 1.0

    def constants(self) -> tuple[float, ...]:
        return -self.alpha, self.alpha * self.scale

    def derivative(self, z: Tensor) -> Tensor:
        # sig(y) sig(-y) instead of sig(y) (1 - sig(y)) avoids cancellation far above the threshold
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
    """Gaussian of area 1: h = (alpha/sqrt(pi)) exp(-(alpha z)^2) (Wu et al. 2018, their h4)."""

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
    """Whether this is one of `FAMILIES` itself; a subclass may have a different formula."""
    return type(surrogate) in FAMILIES


@dataclass(frozen=True)
class Parametric:
    """PSG (paper C, Wang et al. 2023): any base surrogate with a learned width w.

    h(z; w) = base.derivative(z/w) / w. The gradient of w is that of the primitive,
    dP/dw = -(z/w) h(z; w), which is our choice (see docs/methods.md). The width is not stored
    here: it is the parameter `LIF.log_width`, one per layer or, with `per_channel`, one per
    channel. The methods of this class use width 1. `Parametric(Masked(base))` becomes
    `Masked(Parametric(base))`, the canonical order.

    Raises TypeError if base is no surrogate, and ValueError if it is `Parametric` already.
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
            raise ValueError("Parametric: the base is already Parametric; one width is enough")

    def derivative(self, z: Tensor) -> Tensor:
        """h(z) of the base, which is h for width 1."""
        return self.base.derivative(z)

    def primitive(self, z: Tensor) -> Tensor:
        """The primitive of the base, for width 1."""
        return self.base.primitive(z)


@dataclass(frozen=True)
class Masked:
    """MSG (paper A, Li et al. 2024): drop each element of h with probability p.

    Every forward pass draws a new mask. Only the backward pass changes: a dropped element passes
    no gradient through its spike and its reset, but still passes it through the leak. `replace`
    is a second, narrow surrogate that dropped elements use instead of zero. `rescale` divides the
    remaining elements by 1 - p. The mask is applied by `lif` (`bs.dropped` shows it), so
    `derivative` is the one of the base.

    Raises TypeError if base or replace is no surrogate. Raises ValueError if one of them is masked
    already, for a p outside [0, 1], and for a rescale with p=1 or replace.
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
                "Masked: choose rescale or replace; with replace there is no lost gradient for"
                " rescale to compensate"
            )

    def derivative(self, z: Tensor) -> Tensor:
        """h(z) of the base, without the mask."""
        return self.base.derivative(z)

    def primitive(self, z: Tensor) -> Tensor:
        """The primitive of the base."""
        return self.base.primitive(z)


def _check_base(owner: object, base: object) -> None:
    if isinstance(base, type) or not isinstance(base, Surrogate):
        raise TypeError(
            f"{type(owner).__name__}: needs a surrogate such as Triangle(alpha=2), got {base!r}"
        )


def unwrap(surrogate: Surrogate) -> tuple[Masked | None, Parametric | None, Surrogate]:
    """Split a surrogate into its `Masked` and `Parametric` wrappers, if any, and its base."""
    mask = surrogate if isinstance(surrogate, Masked) else None
    inner = mask.base if mask else surrogate
    parametric = inner if isinstance(inner, Parametric) else None
    return mask, parametric, parametric.base if parametric else inner
