"""Norms through time: BatchNorm that knows the threshold, or the timestep, of the neurons that follow it.

Over n timesteps, samples and places, mean m and variance s2 of a channel are taken together; with what is learned, weight w and
bias b of a channel and p of a timestep, and for a neuron of threshold theta that n branches lead to,

    BatchNorm   y[t] = w (x[t] - m) / sqrt(s2 + eps) + b                        in OverTime, which folds T into the batch
    TDBN        y[t] = w (theta / sqrt(n)) (x[t] - m) / sqrt(s2 + eps) + b      Zheng et al. 2021, arXiv 2011.05280, eq. 7
    TEBN        y[t] = p[t] (w (x[t] - m) / sqrt(s2 + eps) + b)                 Duan et al. 2022, NeurIPS

In evaluation the running statistics stand for m and s2. The names of the parameters are those of BatchNorm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .kernel.norm import Norm

# called as norm(channels), or norm(channels, branches=n) where n currents are added before a neuron
NormLayer = Callable[..., nn.Module]


def batch_norm(channels: int, branches: int = 1) -> nn.Module:
    """torch's BatchNorm, for networks of images that may be given another norm."""
    return nn.BatchNorm2d(channels)


class AnyBatchNorm(_BatchNorm):
    """torch's BatchNorm for inputs of any number of dimensions, `[N, C, ...] -> [N, C, ...]`."""

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"{type(self).__name__} needs an input [N, C, ...], got shape {list(x.shape)}")


class TDBN(AnyBatchNorm):
    """Threshold-dependent BatchNorm: what enters a neuron has the deviation of its threshold. `[N, C, ...] -> [N, C, ...]`.

    Stands where BatchNorm does, in `bs.OverTime` or `bs.block`, of any number of dimensions, and runs in the same kernels.
    v_threshold: of the neuron that follows; branches: currents that are added before it, 2 at the end of a residual block.
    Some libraries start `weight` at theta / sqrt(n) instead, which learns at another speed; such weights are divided by that.
    """

    def __init__(
        self, channels: int, branches: int = 1, *, v_threshold: float = 1.0, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__(channels, eps, momentum)
        if not (v_threshold > 0 and branches >= 1):
            raise ValueError(f"v_threshold must be positive and branches at least 1, got {v_threshold} and {branches}")
        self.branches, self.v_threshold = branches, v_threshold
        self.factor = v_threshold / math.sqrt(branches)

    def forward(self, x: Tensor) -> Tensor:
        n = applied(self, x)
        return torch.batch_norm(
            x, n.weight, n.bias, n.running_mean, n.running_var, n.training, n.momentum, n.eps, torch.backends.cudnn.enabled
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, branches={self.branches}, v_threshold={self.v_threshold}, eps={self.eps}"


class TEBN(AnyBatchNorm):
    """Temporal effective BatchNorm: BatchNorm over time with a learned factor `scale` `[T]` for each timestep.

    `[T, B, C, ...] -> [T, B, C, ...]`; may also stand among the layers of a `bs.OverTime`, which shows it the time. T is fixed:
    an input with another number of timesteps is an error.
    """

    def __init__(self, channels: int, T: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps, momentum)
        self.scale = nn.Parameter(torch.ones(T))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != len(self.scale):
            raise ValueError(f"TEBN has factors for T={len(self.scale)} timesteps, got an input of {len(x)}: {list(x.shape)}")
        y: Tensor = super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return y * self.scale.to(y.dtype).view(-1, *[1] * (y.dim() - 1))

    def extra_repr(self) -> str:
        return f"{self.num_features}, T={len(self.scale)}, eps={self.eps}"


def gain(norm: Any) -> Tensor | None:
    """What normalised values are multiplied by, `[C]`; None for 1."""
    return norm.weight * norm.factor if isinstance(norm, TDBN) else norm.weight


def applied(norm: Any, x: Tensor) -> Norm:
    """What torch's BatchNorm or TDBN does in a forward pass on x `[N, C, ...]`, which is counted as the module would."""
    norm._check_input_dim(x)
    share = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else share
    tracks = norm.running_mean is not None and (norm.track_running_stats or not norm.training)
    mean, variance = (norm.running_mean, norm.running_var) if tracks else (None, None)
    return Norm(gain(norm), norm.bias, mean, variance, norm.training or not tracks, share, norm.eps)
