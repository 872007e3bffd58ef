"""The options of a neuron: one frozen dataclass for each kind of neuron with its own options.

The functions and layers in `neuron/` take these as arguments, recipes store them and the kernels
read them. To add an option, add a field here. This file does not import torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from ..surrogate import ATan, Masked, Parametric, Rectangle, Surrogate, unwrap
from .distribution import Distribution

PER = ("layer", "channel", "neuron")
VARYING = ("tau", "tau_synapse", "v_threshold")  # options that may hold a value per neuron


@dataclass(frozen=True)
class LIF:
    """Options of the leaky integrate-and-fire neuron; `bs.lif` explains them.

    The defaults are those with which networks without norms learn; docs/methods.md has the study.
    """

    tau: float | Distribution = 2.0
    v_threshold: float | Distribution = 1.0
    v_reset: float | None = None
    decay_input: bool = False
    surrogate: Surrogate = field(default=ATan())
    reset_gradient: float = 0.0
    temporal_gradient: bool = True
    learn: tuple[str, ...] = ()
    per: str | None = None  # what learned and drawn values differ between: one of PER
    backend: str = "auto"
    memory: str = "exact"  # what is saved for backward; see `kernel/saved.py`
    # no field: mask, width and base of the surrogate, found once, as every forward pass needs them
    wrappers: ClassVar[tuple[Masked | None, Parametric | None, Surrogate]]
    states: ClassVar[int] = 1  # rows of a state; with more, v is the first of them

    @property
    def soft(self) -> bool:
        """Whether the reset subtracts the threshold instead of setting the membrane to v_reset."""
        return self.v_reset is None

    def __post_init__(self) -> None:
        object.__setattr__(self, "wrappers", unwrap(self.surrogate))

    @property
    def mask(self) -> Masked | None:
        """The `Masked` wrapper of the surrogate, if it has one."""
        return self.wrappers[0]

    @property
    def base(self) -> Surrogate:
        """The surrogate without `Masked` and `Parametric`."""
        return self.wrappers[2]

    @property
    def replace(self) -> Surrogate | None:
        """The surrogate used where the mask drops an element, if any."""
        return self.mask.replace if self.mask else None

    @property
    def rescale(self) -> bool:
        """Whether elements that the mask does not drop are divided by 1 - p."""
        return self.mask is not None and self.mask.rescale

    @property
    def saves(self) -> str:
        """What the kernels save for backward: for them "checkpoint" means "recompute"."""
        return "recompute" if self.memory == "checkpoint" else self.memory


@dataclass(frozen=True)
class PLIF(LIF):
    """Options of the parametric LIF neuron, with the reset and the input of its paper."""

    v_reset: float | None = 0.0
    decay_input: bool = True


@dataclass(frozen=True)
class MPBN(LIF):
    """Options of the LIF neuron with a normalised membrane, which needs a hard reset."""

    v_reset: float | None = 0.0


@dataclass(frozen=True)
class CubaLIF(LIF):
    """Options of the current-based LIF neuron."""

    tau_synapse: float | Distribution = 2.0


@dataclass(frozen=True)
class CLIF(LIF):
    """Options of the complementary LIF neuron, with the defaults of its paper; soft reset only."""

    states: ClassVar[int] = 2
    v_reset: None = None
    decay_input: bool = False
    surrogate: Surrogate = field(default=Rectangle())
    reset_gradient: float = 1.0


@dataclass(frozen=True)
class AdaptiveLIF(LIF):
    """Options of the adaptive LIF neuron."""

    states: ClassVar[int] = 2
    tau_adaptation: float = 20.0
    a: float = 1.0
    b: float = 5.0


@dataclass(frozen=True)
class Own(LIF):
    """Options that every neuron with equations of its own has; its constants are more fields.

    The class variables stand for options of the LIF neuron that it does not have.
    """

    tau: ClassVar[float] = math.inf  # type: ignore[misc]
    v_reset: ClassVar[None] = None  # type: ignore[misc]
    decay_input: ClassVar[bool] = False  # type: ignore[misc]
    per: ClassVar[None] = None  # type: ignore[misc]


@dataclass(frozen=True)
class QIF(Own):
    """Constants of the quadratic integrate-and-fire neuron."""

    tau: float = 10.0  # type: ignore[misc]
    v_rest: float = 0.0
    v_critical: float = 0.5
    v_reset: float = 0.0  # type: ignore[misc]
    gain: float = 1.0


@dataclass(frozen=True)
class EIF(Own):
    """Constants of the exponential integrate-and-fire neuron."""

    tau: float = 10.0  # type: ignore[misc]
    v_rest: float = 0.0
    v_t: float = 0.7
    delta: float = 0.1
    v_reset: float = 0.0  # type: ignore[misc]
    gain: float = 1.0


@dataclass(frozen=True)
class AdEx(Own):
    """Constants of the adaptive exponential neuron: mV, ms, pF, nS and pA."""

    C: float = 281.0
    g_leak: float = 30.0
    v_rest: float = -70.6
    v_t: float = -50.4
    delta: float = 2.0
    tau_w: float = 144.0
    a: float = 4.0
    b: float = 80.5
    v_reset: float = -70.6  # type: ignore[misc]
    v_peak: float = -40.4
    current: float = 1000.0
    dt: float = 1.0


@dataclass(frozen=True)
class Izhikevich(Own):
    """Constants of the Izhikevich neuron: mV and ms."""

    a: float = 0.02
    b: float = 0.2
    c: float = -65.0
    d: float = 8.0
    v_rest: float = -70.0
    w_rest: float = -14.0
    v_peak: float = 30.0
    current: float = 10.0
    dt: float = 0.5


@dataclass(frozen=True)
class BRF(Own):
    """Constants of the balanced resonate-and-fire neuron."""

    omega: float = 10.0
    damping: float = 1.0
    gamma: float = 0.9
    dt: float = 0.01


@dataclass(frozen=True)
class RefractoryLIF(Own):
    """Constants of the LIF neuron with refractory periods, in timesteps."""

    tau: float = 10.0  # type: ignore[misc]
    v_reset: float = 0.0  # type: ignore[misc]
    refractory: float = 2.0
    threshold_rise: float = 0.0
    tau_rise: float = 10.0
    gain: float = 1.0


@dataclass(frozen=True)
class RefractoryCubaLIF(RefractoryLIF):
    """Constants of the current-based LIF neuron with refractory periods, in timesteps."""

    tau_synapse: float = 5.0
