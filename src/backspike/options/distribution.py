"""Distributions from which constants of a layer are drawn, and time constants in milliseconds.

`bs.LIF(tau=bs.Gamma(20, 3))`, `bs.LIF(tau=bs.ms(20))`. They are values, so they print, compare and
stand in recipes. This file does not import torch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_ROUNDS = 1000  # of drawing again what a constant does not allow


class Distribution(ABC):
    """A distribution of numbers, one for each channel or neuron of a layer."""

    @property
    def support(self) -> tuple[float, float]:
        """The smallest and the largest value; learned values stay between them."""
        return -math.inf, math.inf

    @property
    @abstractmethod
    def center(self) -> float:
        """The mean of the distribution."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n independent values, in float64."""

    def draw(self, n: int, above: float, seed: int) -> np.ndarray:
        """n values above a limit. Values that are not are drawn again.

        Raises ValueError if so few values lie above it that this does not end.
        """
        import numpy as np

        rng = np.random.default_rng(seed)
        values = self.sample(rng, n)
        for _ in range(_ROUNDS):
            low = ~(values > above)
            if not low.any():
                return values
            values[low] = self.sample(rng, int(low.sum()))
        raise ValueError(f"{self!r} has hardly any values above {above:g}; raise them")


@dataclass(frozen=True)
class Gamma(Distribution):
    """The gamma distribution with this mean; its standard deviation is mean / sqrt(shape).

    Perez-Nieves et al. 2021 (doi:10.1038/s41467-021-26022-3) draw time constants from it, with
    shape 3. seed: None draws a seed from torch's generator, so that `torch.manual_seed` decides.

    Raises ValueError if mean or shape is not positive.
    """

    mean: float
    shape: float = 3.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "mean", "shape")

    @property
    def support(self) -> tuple[float, float]:
        return 0.0, math.inf

    @property
    def center(self) -> float:
        return self.mean

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.gamma(self.shape, self.mean / self.shape, n)


@dataclass(frozen=True)
class Normal(Distribution):
    """The normal distribution. seed: as of `Gamma`. Raises ValueError if std is not positive."""

    mean: float
    std: float
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "std")

    @property
    def center(self) -> float:
        return self.mean

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.normal(self.mean, self.std, n)


@dataclass(frozen=True)
class Uniform(Distribution):
    """All values between low and high are equally likely. seed: as of `Gamma`.

    Learned values are kept between low and high. Raises ValueError if low is not below high.
    """

    low: float
    high: float
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.low < self.high < math.inf:
            raise ValueError(
                f"{type(self).__name__}: low must be below high, got {self.low} and {self.high}"
            )

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    @property
    def center(self) -> float:
        return (self.low + self.high) / 2

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return rng.uniform(self.low, self.high, n)


@dataclass(frozen=True)
class UniformDecay(Uniform):
    """Time constants tau between low and high whose factor lam = 1 - 1/tau is uniform.

    Bittar & Garner 2022 (doi:10.3389/fnins.2022.865897) draw lam so. Learned values are kept
    between low and high. Raises ValueError if low is not positive or not below high.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_positive(self, "low")

    @property
    def center(self) -> float:
        """The mean of tau, from the integral of tau over a uniform 1/tau."""
        return math.log(self.high / self.low) / (1 / self.low - 1 / self.high)

    def sample(self, rng: np.random.Generator, n: int) -> np.ndarray:
        return 1 / rng.uniform(1 / self.high, 1 / self.low, n)


class ms(float):
    """A time constant in milliseconds, as the number of timesteps that the neurons take.

    exact=True: the membrane decays by lam = exp(-dt/tau) in a timestep, the solution of
    dv/dt = -v/tau. exact=False: lam = 1 - dt/tau, the step of Euler's method. Both are
    lam = 1 - 1/steps, so this is the number steps = 1 / (1 - exp(-dt/tau)), or tau/dt.
    tau, dt: milliseconds.

    Raises ValueError if tau or dt is not positive, and with exact=False unless tau is above dt.
    """

    tau: float
    dt: float
    exact: bool

    def __new__(cls, tau: float, dt: float = 1.0, exact: bool = True) -> ms:
        if not (0 < tau < math.inf and 0 < dt < math.inf):
            raise ValueError(f"ms: tau and dt must be positive, got {tau} and {dt}")
        if not exact and tau <= dt:
            raise ValueError(f"ms: with exact=False tau must be above dt={dt:g}, got {tau:g}")
        own = super().__new__(cls, -1 / math.expm1(-dt / tau) if exact else tau / dt)
        own.tau, own.dt, own.exact = tau, dt, exact
        return own

    def __getnewargs__(self) -> tuple[float, float, bool]:  # type: ignore[override]
        return self.tau, self.dt, self.exact

    def __repr__(self) -> str:
        return f"ms(tau={self.tau!r}, dt={self.dt!r}, exact={self.exact!r})"


FAMILIES = (Gamma, Normal, Uniform, UniformDecay)


class Given(tuple[int, ...]):
    """The shape of a tensor, in place of it in the options of a layer, which holds the tensor."""

    def __repr__(self) -> str:
        return f"<tensor {list(self)}>"


def center(value: float | Distribution) -> float:
    """The number itself, or the mean of the distribution."""
    return value.center if isinstance(value, Distribution) else value


def _check_positive(owner: Distribution, *names: str) -> None:
    for name in names:
        if not 0 < getattr(owner, name) < math.inf:
            value = getattr(owner, name)
            raise ValueError(f"{type(owner).__name__}: {name} must be positive, got {value}")
