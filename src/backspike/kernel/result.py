"""What a backend returns, and which elements of the surrogate are active."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

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
