"""Dropout with one mask for all timesteps of a sample."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..neuron.prepare import check_tensor
from ..neuron.streaming import Streaming
from .over_time import repeats_over_time


class Dropout(Streaming):
    """Dropout on `[T, B, ...]`: what is dropped from a sample is dropped at all its timesteps.

    In training each element of a timestep `[B, ...]` is zero with probability p, and the others are
    divided by 1 - p; in evaluation the input is returned. A neuron is thus absent for the whole
    sequence (Lee, Sarwar, Panda, Srinivasan, Roy 2020, doi:10.3389/fnins.2020.00119, section
    2.3), while `OverTime(nn.Dropout(p))` draws a mask at each timestep, which averages out over
    time. The mask comes from torch's generator; inside `bs.streaming`, and for the chunks of
    `bs.backward_in_chunks`, it stays the same from call to call.

    Raises ValueError for a p outside [0, 1].
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p is a probability and must lie in [0, 1], got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        check_tensor(x)
        if not self.training or self.p == 0:
            return x
        mask = self.initial_state(None, x)
        if mask is None:
            mask = F.dropout(x.new_ones(x.shape[1:]), self.p)
        mask = mask.detach()
        self.carry(mask)
        # a static input stays static: one timestep, repeated
        return (x[:1] * mask).expand(x.shape) if repeats_over_time(x) else x * mask

    def extra_repr(self) -> str:
        return f"p={self.p}"
