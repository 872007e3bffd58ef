"""BatchNorm variants that take account of the threshold or of the timestep.

Mean m and variance s2 of a channel are taken over timesteps, samples and positions together. w and
b are learned per channel and p per timestep; theta is the threshold of the neuron that follows and
n the number of branches that are added in front of it.

    BatchNorm   y[t] = w (x[t] - m) / sqrt(s2 + eps) + b          in OverTime
    TDBN        y[t] = w (theta / sqrt(n)) (x[t] - m) / sqrt(s2 + eps) + b
    TEBN        y[t] = p[t] (w (x[t] - m) / sqrt(s2 + eps) + b)

TDBN: Zheng et al. 2021, arXiv 2011.05280, eq. 7. TEBN: Duan et al. 2022, NeurIPS.
In evaluation m and s2 are the running statistics. Parameters are named as in BatchNorm. In
distributed training each rank uses the statistics of its own samples, or, after
`sync_batch_norm(model)`, those of all ranks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701  (the base of all BatchNorms)

from ..errors import option
from ..kernel.norm import Norm, track_statistics
from ..system import distributed


def batch_norm(channels: int, branches: int = 1) -> nn.Module:
    """torch's BatchNorm: the default `norm` of the image networks."""
    return nn.BatchNorm2d(channels)


class AnyBatchNorm(_BatchNorm):
    """torch's BatchNorm for any number of dimensions, `[N, C, ...] -> [N, C, ...]`.

    synced: in training, use the statistics of all ranks; costs one all-reduce per forward pass and
    one per backward pass.
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
    """The replacement of torch's BatchNorm in `sync_batch_norm`."""


class TDBN(AnyBatchNorm):
    """Threshold-dependent BatchNorm (Zheng et al. 2021, eq. 7), `[N, C, ...] -> [N, C, ...]`.

        y = w (theta / sqrt(n)) (x - m) / sqrt(s2 + eps) + b

    The input of the neuron starts with a standard deviation of theta / sqrt(n). Use it wherever
    BatchNorm goes, in `bs.OverTime` or `bs.block`; it runs in the same kernels.
    v_threshold: theta, the threshold of the neuron that follows.
    branches: n, the number of currents added in front of the neuron; 2 at the end of a residual
    block.
    Some libraries instead initialise `weight` with theta / sqrt(n), which changes its effective
    learning rate; divide such weights by that factor.

    Raises ValueError if v_threshold is not positive or branches is below 1.
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
                "TDBN: v_threshold must be positive and branches at least 1, "
                f"got {v_threshold} and {branches}"
            )
        self.branches = branches
        self.v_threshold = v_threshold
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
        branches = f", branches={self.branches}" if self.branches != 1 else ""
        threshold = f", v_threshold={self.v_threshold}" if self.v_threshold != 1 else ""
        return f"{self.num_features}{branches}{threshold}" + _eps(self)


class TEBN(AnyBatchNorm):
    """Temporal effective BatchNorm (Duan et al. 2022), `[T, B, C, ...] -> [T, B, C, ...]`.

        y[t] = scale[t] (w (x[t] - m) / sqrt(s2 + eps) + b)

    BatchNorm with a learned factor per timestep, `scale` `[T]`. It may also be one of the layers of
    `bs.OverTime`.

    Raises ValueError for an input with another number of timesteps than T.
    """

    def __init__(self, channels: int, T: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(channels, eps, momentum)
        self.scale = nn.Parameter(torch.ones(T))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) != len(self.scale):
            raise ValueError(
                f"TEBN has factors for T={len(self.scale)} timesteps, "
                f"got {len(x)}: shape {list(x.shape)}"
            )
        y: Tensor = super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return y * self.scale.to(y.dtype).view(-1, *[1] * (y.dim() - 1))

    def extra_repr(self) -> str:
        return f"{self.num_features}, T={len(self.scale)}" + _eps(self)


def _eps(norm: AnyBatchNorm) -> str:
    return f", eps={norm.eps}" if norm.eps != 1e-5 else ""


def gain(norm: Any) -> Tensor | None:
    """The factor of the normalised values, `[C]`; None means 1."""
    return norm.weight * norm.factor if isinstance(norm, TDBN) else norm.weight


def batch_norm_arguments(norm: Any, x: Tensor) -> Norm:
    """What torch's BatchNorm or TDBN would compute in a forward pass on x `[N, C, ...]`.

    Counts the batch as the module itself would (`num_batches_tracked`).
    """
    norm._check_input_dim(x)
    share = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else share
    tracks = norm.running_mean is not None and (norm.track_running_stats or not norm.training)
    mean, variance = (norm.running_mean, norm.running_var) if tracks else (None, None)
    return Norm(gain(norm), norm.bias, mean, variance, norm.training or not tracks, share, norm.eps)


# ---- over ranks ----------------------------------------------------------------------------------


def sync_batch_norm(model: nn.Module) -> None:
    """In training, make every BatchNorm of the model use the statistics of all ranks.

    In-place; parameters, buffers and their names stay the same. In training such a norm is not
    fused with its neuron.
    Raises ValueError for a user-defined subclass of BatchNorm, whose forward pass is unknown.
    """
    for name, m in list(model.named_modules()):
        if isinstance(m, AnyBatchNorm):
            m.synced = True
        elif type(m) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            twin = SyncNorm(m.num_features, m.eps, m.momentum, m.affine, m.track_running_stats)
            twin._parameters = m._parameters
            twin._buffers = m._buffers
            twin.training = m.training
            twin.synced = True
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, twin)
        elif isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm):
            raise ValueError(
                f"{name} is a {type(m).__name__}, whose statistics cannot be shared between ranks; "
                f"set {option('sync_norm', False)}"
            )


def _over_ranks(n: Norm, x: Tensor) -> Tensor:
    """BatchNorm with mean and variance over the x `[N, C, ...]` of all ranks."""
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
    """y = (x - m) r with r = 1 / sqrt(s2 + eps), m and s2 over the n samples of all ranks.

    Returns y, n, m and s2. dL/dx = r (g - sum g / n - y sum(g y) / n), summed over all ranks.
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
