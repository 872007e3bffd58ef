"""Readouts: turn the outputs of the last layer over time, `[T, B, K]`, into logits `[B, K]`.

`TWO` is the temporally weighted output of paper A (Li, Zhao, Zhao, Zeng 2024), which gives
timesteps that classify better a larger weight.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .system import distributed


class Mean(nn.Module):
    """logits = (1/T) sum_t o[t], `[T, B, K] -> [B, K]`."""

    def forward(self, o: Tensor) -> Tensor:
        return o.mean(0)


class Last(nn.Module):
    """logits = o[T-1], `[T, B, K] -> [B, K]`."""

    def forward(self, o: Tensor) -> Tensor:
        return o[-1]


class TWO(nn.Module):
    """Temporally weighted output (paper A, after the authors' code), `[T, B, K] -> [B, K]`.

        logits = (1/T) sum_t w[t] o[t]

    The weights start at 1. During an epoch, `observe(o, y)` counts how often each timestep alone is
    correct. From epoch `start_epoch` on (the first is 0), `end_epoch()` updates the weights:

        w <- beta w + (1 - beta) acc / mean(acc)

    so mean(w) stays 1; if no timestep was ever correct, w is unchanged.
    Weights and counts are buffers: saved, restored in the middle of an epoch, and equal on all
    ranks (`observe` sums over ranks).
    cumulative=True scores the sum of o up to t, as older scripts of the authors do.

    Raises ValueError for arguments out of range, and for an o without T timesteps.
    """

    weights: Tensor
    correct: Tensor
    seen: Tensor
    epoch: Tensor

    def __init__(
        self, T: int, beta: float = 0.7, start_epoch: int = 5, cumulative: bool = False
    ) -> None:
        super().__init__()
        if T < 1:
            raise ValueError(f"TWO: T must be at least 1, got {T}")
        if not 0 <= beta <= 1:
            raise ValueError(f"TWO: beta must lie in [0, 1], got {beta}")
        if start_epoch < 0:
            raise ValueError(f"TWO: start_epoch must not be negative, got {start_epoch}")
        self.T = T
        self.beta = beta
        self.start_epoch = start_epoch
        self.cumulative = cumulative
        self.register_buffer("weights", torch.ones(T))
        self.register_buffer("correct", torch.zeros(T, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.int64))

    def forward(self, o: Tensor) -> Tensor:
        self._check(o)
        return (self.weights.to(o.dtype).view(-1, 1, 1) * o).mean(0)

    @torch.no_grad()
    def observe(self, o: Tensor, y: Tensor) -> None:
        """Count the correct answers of each timestep, with o `[T, B, K]` and y `[B]`.

        Call it for training batches only. Raises ValueError for other shapes.
        """
        self._check(o)
        if y.shape != o.shape[1:2]:
            raise ValueError(
                f"TWO: expected targets y [B] with B = {o.shape[1]}, got shape {list(y.shape)}"
            )
        score = o.cumsum(0) if self.cumulative else o
        correct = (score.argmax(-1) == y).sum(1)
        counts = distributed.all_reduce_sum(torch.cat([correct, correct.new_full((1,), len(y))]))
        self.correct += counts[:-1]
        self.seen += counts[-1]

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Update the weights from the counts of this epoch, and reset the counts."""
        accuracy = self.correct.double() / self.seen.clamp(min=1)
        if self.epoch >= self.start_epoch and accuracy.sum() > 0:
            target = accuracy / accuracy.mean()
            self.weights.copy_(self.beta * self.weights.double() + (1 - self.beta) * target)
        self.correct.zero_()
        self.seen.zero_()
        self.epoch += 1

    def _check(self, o: Tensor) -> None:
        if o.dim() != 3 or o.shape[0] != self.T:
            raise ValueError(
                f"TWO: expected outputs [T, B, K] with T = {self.T}, got shape {list(o.shape)}"
            )

    def extra_repr(self) -> str:
        cumulative = ", cumulative=True" if self.cumulative else ""
        return f"T={self.T}, beta={self.beta}, start_epoch={self.start_epoch}{cumulative}"
