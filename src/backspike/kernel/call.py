"""One call of a neuron, and what comes back: a backend turns a `Call` into a `Result`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..options import LIF
from .layout import dense


class Moments(NamedTuple):
    """Moments of u over batch and space, `[T, C]` in float64; C is dimension 2 of x, or 1 when x is `[T, B]`.

    A loss on membrane potentials needs these and not u itself. They are taken one timestep at a time, and their gradient
    comes back as gu = a + b u, with one a and b per timestep and channel, so neither u nor its gradient is saved over T.
    """

    mean: Tensor  # E(u)
    square: Tensor  # E(u^2)


class Result(NamedTuple):
    """Of one call; what is not recorded is None."""

    spikes: Tensor  # [T, B, ...] in the dtype of x
    state: Tensor  # [B, ...], v[T-1]
    membrane: Tensor | None = None  # [T, B, ...], u
    moments: Moments | None = None
    # uint8: bit i of byte k is whether the backward pass multiplies element 8 k + i of [T, B, ...], in C order, by an h that is
    # not 0, so that a gradient of that spike is needed; None where spikes are not contiguous
    active: Tensor | None = None
    # uint8: bit i of byte k is the spike at place 8 k + i of their memory; None where the backend does not write them
    bits: Tensor | None = None


class SpikeInfo(NamedTuple):
    """What a kernel said of the spikes that go on to the next layer, as in `Result`."""

    active: Tensor | None
    bits: Tensor | None
    at: int  # where the spikes lie

    @classmethod
    def from_result(cls, result: Result) -> SpikeInfo:
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


def as_tensor(p: float | Tensor | None) -> Tensor | None:
    """None for a number."""
    return p if isinstance(p, Tensor) else None


class Constants(NamedTuple):
    """What may learn: numbers, or tensors, 0-dim or `[C]`."""

    tau: float | Tensor
    v_threshold: float | Tensor
    width: Tensor | None = None


class Record(NamedTuple):
    """What a call returns besides the spikes."""

    membrane: bool = False
    moments: bool = False
    active: bool = False
    bits: bool = False  # the spikes as bits too, by backends that can
    state: bool = True  # False: nobody asks for the state, which may come out empty


@dataclass
class Call:
    """One call of `bs.lif`, checked and normalised."""

    x: Tensor  # [T, B, ...], or [1, B, ...] that stands for `repeats` equal timesteps
    v0: Tensor | None  # [B, ...] in the state's dtype; of a complementary neuron [2, B, ...]
    neuron: LIF  # its kind chooses the equations
    tau: float | Tensor  # as used, like theta: not those of `neuron` where they are learned
    theta: float | Tensor
    width: Tensor | None
    seed: Tensor | None  # None: no mask
    p: Tensor | None
    repeats: int = 1
    record: Record = Record()

    @property
    def inputs(self) -> tuple[Tensor, Tensor | None, float | Tensor, float | Tensor, Tensor | None]:
        """What may get a gradient."""
        return self.x, self.v0, self.tau, self.theta, self.width

    @property
    def needs_gradient(self) -> bool:
        return torch.is_grad_enabled() and any(
            isinstance(p, Tensor) and p.requires_grad for p in self.inputs
        )
