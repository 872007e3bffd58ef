"""What a backend returns, and what it says of the spikes."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .layout import dense
from .moments import Moments


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
        same = bits is not None and x.data_ptr() == self.at and x.numel() == 8 * bits.numel() and dense(x)
        return bits if same else None
