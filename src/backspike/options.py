"""What a user can set on a neuron: one frozen dataclass per kind of neuron whose options differ.

These are the arguments of the functions and layers in `neuron/`, what a recipe holds, and what the
kernels read. A new option is a field here. This file imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .surrogate import ATan, Masked, Rectangle, Surrogate, unwrap


@dataclass(frozen=True)
class LIF:
    """Options of the leaky integrate-and-fire neuron, which `bs.lif` explains."""

    tau: float = 2.0
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    decay_input: bool = True
    surrogate: Surrogate = field(default=ATan())
    reset_gradient: float = 1.0
    temporal_gradient: bool = True
    learn: tuple[str, ...] = ()
    backend: str = "auto"
    memory: str = "exact"  # what is saved for backward; see `kernel/saved.py`

    @property
    def soft(self) -> bool:
        return self.v_reset is None

    @property
    def mask(self) -> Masked | None:
        return unwrap(self.surrogate)[0]

    @property
    def base(self) -> Surrogate:
        """The surrogate without `Masked` and `Parametric`."""
        return unwrap(self.surrogate)[2]

    @property
    def replace(self) -> Surrogate | None:
        """The surrogate that stands in where the mask drops the base."""
        return self.mask.replace if self.mask else None

    @property
    def rescale(self) -> bool:
        return self.mask is not None and self.mask.rescale

    @property
    def saves(self) -> str:
        """What the kernels save for backward; a neuron alone treats "checkpoint" as "recompute"."""
        return "recompute" if self.memory == "checkpoint" else self.memory


@dataclass(frozen=True)
class CubaLIF(LIF):
    """Options of the current-based neuron."""

    tau_synapse: float = 2.0


@dataclass(frozen=True)
class CLIF(LIF):
    """Options of the complementary neuron, with its paper's defaults; it has a soft reset alone."""

    v_reset: None = None
    decay_input: bool = False
    surrogate: Surrogate = field(default=Rectangle())
