"""One call of a neuron, and what comes back: a `Rule` and a `Call` go to a backend, which returns a `Result`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ..surrogate import Surrogate
from .layout import dense


class Moments(NamedTuple):
    """Moments of u over batch and space, `[T, C]` in float64; C is dimension 2 of x, or 1 when x is `[T, B]`.

    A loss on membrane potentials needs these and not u itself. They are taken one timestep at a time, and their gradient
    comes back as gu = a + b u, with one a and b per timestep and channel, so neither u nor its gradient is saved over T.
    """

    mean: Tensor  # E(u)
    square: Tensor  # E(u^2)


class Result(NamedTuple):
    """Of one call; what the rule does not ask for is None."""

    spikes: Tensor  # [T, B, ...] in the dtype of x
    state: Tensor  # [B, ...], v[T-1]
    membrane: Tensor | None = None  # [T, B, ...], u
    moments: Moments | None = None
    # uint8: bit i of byte k is whether the backward pass multiplies element 8 k + i of [T, B, ...], in C order, by an h that is
    # not 0, so that a gradient of that spike is needed; None where spikes are not contiguous
    active: Tensor | None = None
    # uint8: bit i of byte k is the spike at place 8 k + i of their memory; None where the backend does not write them
    bits: Tensor | None = None


class Sent(NamedTuple):
    """What a kernel said of the spikes that go on to the next layer, as in `Result`."""

    active: Tensor | None
    bits: Tensor | None
    at: int  # where the spikes lie

    @classmethod
    def of(cls, result: Result) -> Sent:
        return cls(result.active, result.bits, result.spikes.data_ptr())

    def bits_of(self, x: Tensor) -> Tensor | None:
        """The bits, if x is these very spikes in the order in which they lie: a view of them is, a copy is not."""
        bits = self.bits
        same = (
            bits is not None
            and x.data_ptr() == self.at
            and x.numel() == 8 * bits.numel()
            and dense(x)
        )
        return bits if same else None


@dataclass(frozen=True)
class Rule:
    """What does not change from step to step and is no tensor: the form of the equations of `bs.lif`."""

    v_reset: float | None
    decay_input: bool
    surrogate: Surrogate  # the base: neither Masked nor Parametric
    replace: Surrogate | None
    rescale: bool
    reset_gradient: float
    temporal_gradient: bool
    record_membrane: bool
    record_moments: bool = False
    record_active: bool = False
    record_bits: bool = False  # spikes as bits too, by backends that can
    record_state: bool = True  # False: nobody asks for the state, which may come out empty
    memory: str = "exact"  # see saved.py; "checkpoint" has become "recompute"
    complementary: bool = False  # the neuron of clif.py, with a soft reset


@dataclass
class Call:
    """One call of `bs.lif`, checked and normalised. Learned quantities are 0-dim or `[C]` tensors."""

    x: Tensor  # [T, B, ...], or [1, B, ...] that stands for `repeats` equal timesteps
    v0: Tensor | None  # [B, ...] in the state's dtype; of a complementary neuron [2, B, ...]
    tau: float | Tensor
    theta: float | Tensor
    width: Tensor | None
    seed: Tensor | None  # None: no mask
    p: Tensor | None
    rule: Rule
    repeats: int = 1
