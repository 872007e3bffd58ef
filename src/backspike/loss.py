"""Losses on outputs over time: `loss(y_seq, target)` with y_seq `[T, B, K]`.

target: classes `[B]`, or class probabilities `[B, K]`.
`cross_entropy` and `tet` are for real outputs, `spike_count_cross_entropy` and `spike_count_mse`
for spikes of the last layer. `firing_rate_penalty` is added to any of them and has no target.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(
    y_seq: Tensor, target: Tensor, label_smoothing: float = 0.0, weight: Sequence[float] = ()
) -> Tensor:
    """Cross-entropy of the mean over time. weight: of each class, as in `of_logits`.

    With another readout, apply `of_logits` to its logits.

    y_seq: `[T, B, K]`, outputs of the last layer. target: classes `[B]`, or probabilities `[B, K]`.
    Raises ValueError for other shapes.
    """
    _check(y_seq, target)
    return of_logits(y_seq.mean(0), target, label_smoothing, weight)


def of_logits(
    logits: Tensor, target: Tensor, label_smoothing: float = 0.0, weight: Sequence[float] = ()
) -> Tensor:
    """torch's cross-entropy of logits `[B, K]`, with a weight for each class; (): all 1.

    The mean over the samples. torch divides by the sum of the weights of the labels in a batch
    instead, so that the gradient would depend on how a step is split into parts and ranks.
    """
    if not len(weight):
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing)
    weights = _on_device(tuple(weight), logits.dtype, logits.device)
    each = F.cross_entropy(
        logits, target, weights, reduction="none", label_smoothing=label_smoothing
    )
    return each.mean()


@lru_cache(maxsize=64)
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Copied once, as a recorded CUDA graph cannot copy from the host."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def tet(
    y_seq: Tensor,
    target: Tensor,
    lam: float = 0.05,
    phi: float = 1.0,
    label_smoothing: float = 0.0,
    weight: Sequence[float] = (),
) -> Tensor:
    """Temporal efficient training (Deng, Li, Zhang, Gu 2022, eq. 10-12).

    The loss of each timestep, averaged: (1 - lam) mean_t CE(o[t], y) + lam mean_t MSE(o[t], phi).
    The second term suppresses outliers. weight: of each class, as in `of_logits`.

    y_seq: `[T, B, K]`, outputs of the last layer. target: classes `[B]`, or probabilities `[B, K]`.
    Raises ValueError for other shapes.
    """
    _check(y_seq, target)
    each = of_logits(y_seq.flatten(0, 1), torch.cat([target] * len(y_seq)), label_smoothing, weight)
    return (1 - lam) * each + lam * F.mse_loss(y_seq, torch.full_like(y_seq, phi))


def spike_count_cross_entropy(
    y_seq: Tensor, target: Tensor, label_smoothing: float = 0.0, weight: Sequence[float] = ()
) -> Tensor:
    """Cross-entropy with the number of spikes of each neuron as its logit, sum_t s[t].

    The target's neuron learns to spike most. weight: of each class, as in `of_logits`.

    y_seq: `[T, B, K]`, spikes of the last layer. target: classes `[B]`, or probabilities `[B, K]`.
    Raises ValueError for other shapes.
    """
    _check(y_seq, target)
    return of_logits(y_seq.sum(0), target, label_smoothing, weight)


def spike_count_mse(
    y_seq: Tensor, target: Tensor, correct: float = 0.8, wrong: float = 0.1
) -> Tensor:
    """Mean squared error of the firing rates.

    The desired rates are `correct` for the target class and `wrong` for the others, in spikes per
    timestep.

    y_seq: `[T, B, K]`, spikes of the last layer. target: classes `[B]`, or probabilities `[B, K]`.
    Raises ValueError for other shapes.
    """
    _check(y_seq, target)
    rate = y_seq.mean(0)
    probability = target if target.dim() == 2 else F.one_hot(target, rate.shape[1])
    return F.mse_loss(rate, wrong + (correct - wrong) * probability.to(rate.dtype))


def firing_rate_penalty(spikes: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Mean squared distance of the neurons' firing rates from the range [low, high]; a scalar.

    spikes: `[T, B, ...]` of one layer. The rate of a neuron is its mean over time and batch, in
    spikes per timestep. With `low` above 0 silent neurons are woken, where the surrogate lets their
    gradient through; with `high` below 1 there are fewer spikes, and so fewer operations.

    Raises ValueError unless 0 <= low <= high <= 1 and spikes has at least two dimensions.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"expected rates 0 <= low <= high <= 1, got low={low}, high={high}")
    if spikes.dim() < 2:
        raise ValueError(f"expected spikes [T, B, ...], got {list(spikes.shape)}")
    rate = spikes.mean((0, 1))
    return ((rate - rate.detach().clamp(low, high)) ** 2).mean()


def _check(y_seq: Tensor, target: Tensor) -> None:
    if y_seq.dim() != 3 or target.shape not in (y_seq.shape[1:2], y_seq.shape[1:]):
        raise ValueError(
            "expected y_seq [T, B, K] and target [B] or [B, K], "
            f"got {list(y_seq.shape)} and {list(target.shape)}"
        )
