"""Norms through time: BatchNorm that knows the threshold, or the timestep, of the neurons that follow it.

Over n timesteps, samples and places, mean m and variance s2 of a channel are taken together; with what is learned, weight w and
bias b of a channel and p of a timestep, and for a neuron of threshold theta that n branches lead to,

    BatchNorm   y[t] = w (x[t] - m) / sqrt(s2 + eps) + b                        in OverTime, which folds T into the batch
    TDBN        y[t] = w (theta / sqrt(n)) (x[t] - m) / sqrt(s2 + eps) + b      Zheng et al. 2021, arXiv 2011.05280, eq. 7
    TEBN        y[t] = p[t] (w (x[t] - m) / sqrt(s2 + eps) + b)                 Duan et al. 2022, NeurIPS

In evaluation the running statistics stand for m and s2. The names of the parameters are those of BatchNorm. Over several ranks
m and s2 are of a rank's own samples, or after `synced(model)` of all of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701  (the base of all BatchNorms)

from ..kernel.norm import Norm, track_statistics
from ..system import distributed


def batch_norm(channels: int, branches: int = 1) -> nn.Module:
    """torch's BatchNorm, for networks of images that may be given another norm."""
    return nn.BatchNorm2d(channels)


class AnyBatchNorm(_BatchNorm):
    """torch's BatchNorm for inputs of any number of dimensions, `[N, C, ...] -> [N, C, ...]`.

    synced: in training the statistics are of the inputs of all ranks, whose sums meet in every forward and backward pass.
    """

    synced = False

    def forward(self, x: Tensor) -> Tensor:
        return (
            _over_ranks(batch_norm_arguments(self, x), x)
            if self.synced and self.training
            else super().forward(x)
        )

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(
                f"{type(self).__name__} needs an input [N, C, ...], got shape {list(x.shape)}"
            )


class SyncNorm(AnyBatchNorm):
    """What torch's BatchNorm becomes in `synced(model)`."""


class TDBN(AnyBatchNorm):
    """Threshold-dependent BatchNorm: what enters a neuron has the deviation of its threshold. `[N, C, ...] -> [N, C, ...]`.

    Stands where BatchNorm does, in `bs.OverTime` or `bs.block`, of any number of dimensions, and runs in the same kernels.
    v_threshold: of the neuron that follows; branches: currents that are added before it, 2 at the end of a residual block.
    Some libraries start `weight` at theta / sqrt(n) instead, which learns at another speed; such weights are divided by that.
    """

    def __init__(
        self,
        channels: int,
        branches: int = 1,
        *,
        v_threshold: float = 1.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(channels, eps, momentum)
        if not (v_threshold > 0 and branches >= 1):
            raise ValueError(
                f"v_threshold must be positive and branches at least 1, got {v_threshold} and {branches}"
            )
        self.branches, self.v_threshold = branches, v_threshold
        self.factor = v_threshold / math.sqrt(branches)

    def forward(self, x: Tensor) -> Tensor:
        n = batch_norm_arguments(self, x)
        if self.synced and self.training:
            return _over_ranks(n, x)
        return torch.batch_norm(
            x,
            n.weight,
            n.bias,
            n.running_mean,
            n.running_var,
            n.training,
            n.momentum,
            n.eps,
            torch.backends.cudnn.enabled,
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
            raise ValueError(
                f"TEBN has factors for T={len(self.scale)} timesteps, got an input of {len(x)}: {list(x.shape)}"
            )
        y: Tensor = super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return y * self.scale.to(y.dtype).view(-1, *[1] * (y.dim() - 1))

    def extra_repr(self) -> str:
        return f"{self.num_features}, T={len(self.scale)}, eps={self.eps}"


def gain(norm: Any) -> Tensor | None:
    """What normalised values are multiplied by, `[C]`; None for 1."""
    return norm.weight * norm.factor if isinstance(norm, TDBN) else norm.weight


def batch_norm_arguments(norm: Any, x: Tensor) -> Norm:
    """What torch's BatchNorm or TDBN does in a forward pass on x `[N, C, ...]`, which is counted as the module would."""
    norm._check_input_dim(x)
    share = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else share
    tracks = norm.running_mean is not None and (norm.track_running_stats or not norm.training)
    mean, variance = (norm.running_mean, norm.running_var) if tracks else (None, None)
    return Norm(gain(norm), norm.bias, mean, variance, norm.training or not tracks, share, norm.eps)


# ---- over ranks ----------------------------------------------------------------------------------------------------------


def sync_batch_norm(model: nn.Module) -> None:
    """From now on every BatchNorm in the model takes its statistics, in training, from the inputs of all ranks.

    In place; parameters, buffers and their names stay. Such a norm does not run as one op with its neuron while it trains.
    Raises ValueError for a BatchNorm of a class of the user's own, of which nobody knows what else it does.
    """
    for name, m in list(model.named_modules()):
        if isinstance(m, AnyBatchNorm):
            m.synced = True
        elif type(m) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            twin = SyncNorm(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats)
            twin._parameters, twin._buffers, twin.training, twin.synced = (
                m._parameters,
                m._buffers,
                m.training,
                True,
            )
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, twin)
        elif isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm):
            raise ValueError(
                f"{name} is a {type(m).__name__}, which cannot be told to sum over ranks; set --sync_norm False"
            )


def _over_ranks(n: Norm, x: Tensor) -> Tensor:
    """BatchNorm with the mean and the variance of all ranks' x `[N, C, ...]`."""
    wide = x.float() if x.dtype.itemsize == 2 else x
    y, samples, mean, variance = _OverRanks.apply(wide, n.eps)
    track_statistics(n, int(samples), mean, variance)
    shape = (1, -1, *[1] * (x.dim() - 2))
    if n.weight is not None:
        y = y * n.weight.to(y.dtype).view(shape)
    if n.bias is not None:
        y = y + n.bias.to(y.dtype).view(shape)
    return y.to(x.dtype)


class _OverRanks(torch.autograd.Function):
    """y = (x - m) r with r = 1 / sqrt(s2 + eps), m and s2 over the n samples of all ranks; and n, m, s2 themselves.

    dL/dx = r (g - sum g / n - y sum(g y) / n), the sums over all ranks
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Any:
        dims = [d for d in range(x.dim()) if d != 1]
        own = torch.tensor([x.numel() // x.shape[1]], dtype=torch.float64, device=x.device)
        variance, mean = (s.double() for s in torch.var_mean(x, dims, correction=0))
        sums = distributed.all_reduce_sum(torch.cat([own, own * mean, own * (variance + mean**2)]))
        samples, total, square = sums.split([1, len(mean), len(mean)])
        mean = total / samples
        variance = (square / samples - mean**2).clamp(min=0)
        r, shape = (variance + eps).rsqrt(), (1, -1, *[1] * (x.dim() - 2))
        y = (x - mean.to(x.dtype).view(shape)) * r.to(x.dtype).view(shape)
        ctx.save_for_backward(y, r, samples)
        ctx.mark_non_differentiable(samples, mean, variance)
        return y, samples, mean, variance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor, *_: Any) -> Any:
        y, r, samples = ctx.saved_tensors
        dims, shape = [d for d in range(y.dim()) if d != 1], (1, -1, *[1] * (y.dim() - 2))
        sums = torch.stack(
            [g.sum(dims, dtype=torch.float64), (g * y).sum(dims, dtype=torch.float64)]
        )
        mean, along = (distributed.all_reduce_sum(sums) / samples).to(y.dtype)
        gx = r.to(y.dtype).view(shape) * (g - mean.view(shape) - y * along.view(shape))
        return gx, None
