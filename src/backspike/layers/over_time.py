"""Layers that know about time: `OverTime` runs stateless layers on `[T, B, ...]` by folding T into the batch.

An input that repeats over T (stride 0) is computed once, and in evaluation BatchNorm is folded into the convolution before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook  # noqa: PLC2701  (no public way to ask)

from ..kernel.call import SpikeInfo
from ..kernel.cpu.pool import avg_pool, max_pool
from ..kernel.layout import usual_strides
from ..neuron.streaming import Streaming
from . import synapse
from .norm import TDBN, TEBN, SyncNorm, gain

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SYNAPSES = (*CONVOLUTIONS, nn.Linear)
POOLS = (nn.AvgPool2d, nn.MaxPool2d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SyncNorm, TDBN)
# Running these on one copy of an input that repeats over T gives what running them on all T copies gives.
_SAME_AT_EVERY_TIMESTEP = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.Linear,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.ReLU,
    nn.Flatten,
    nn.Identity,
)


class OverTime(nn.Sequential):
    """Stateless layers, applied to every timestep: `[T, B, ...] -> [T, B, ...]` with T folded into the batch.

    BatchNorm so takes its statistics over time, batch and space. An input that repeats over T (made by
    `x.expand(T, ...)`, stride 0) is computed once as far as the layers allow it. Without gradients a BatchNorm in evaluation is
    folded into the weights of the convolution before it. A spiking layer inside is an error: it would see time as batch.
    """

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)
        if any(isinstance(m, Streaming) for m in self.modules()):
            raise TypeError(
                "OverTime folds T into the batch, so a spiking layer must stand beside it, not inside it"
            )
        if {m for m in self.modules() if isinstance(m, TEBN)} - set(flatten_layers(self)):
            raise TypeError(
                "TEBN must be one of the layers of OverTime, not within a module among them, to be shown the time"
            )

    def forward(self, x: Tensor) -> Tensor:
        return over_time(x, flatten_layers(self))


def over_time(x: Tensor, layers: Sequence[nn.Module], sent: SpikeInfo | None = None) -> Tensor:
    """Stateless layers one after the other on `[T, B, ...]`, as `once`; what repeats over T comes out with stride 0."""
    if not layers:
        return x
    y, repeats = apply_once(x, layers, sent)
    return y.expand(repeats, *y.shape[1:]) if repeats > 1 else y


def apply_once(
    x: Tensor, layers: Sequence[nn.Module], sent: SpikeInfo | None = None
) -> tuple[Tensor, int]:
    """(y, repeats): `[T, B, ...]` and 1; or, where input and layers repeat over T, one copy `[1, B, ...]` and T.

    sent: what the neuron that sent x says of it.
    """
    T = len(x)
    repeats = T if repeats_over_time(x) else 1
    x = x[:1] if repeats > 1 else x
    if not layers:
        return x, repeats
    B, x = x.shape[1], usual_strides(x.flatten(0, 1))
    first = first_linear(layers)
    for layer, norm in _with_norms(layers):
        if repeats > 1 and not _same_at_every_timestep(layer, x):
            x, repeats = x.expand(T, *x.shape).flatten(0, 1), 1
        if norm is not None:
            x = convolve_with_norm(layer, norm, x)
        elif isinstance(layer, TEBN):
            x = layer(x.unflatten(0, (T, B))).flatten(0, 1)
        elif layer is first and sent is not None:
            x = synapse.linear(x, first, sent.active, sent.bits_of(x))
        elif layer is layers[0] and sent is not None and isinstance(layer, CONVOLUTIONS):
            x = synapse.convolution(x, layer, sent.bits_of(x))
        else:
            x = _apply(layer, x, repeats)
    return usual_strides(x).unflatten(0, (T // repeats, B)), repeats


def repeats_over_time(x: Tensor) -> bool:
    """Whether x `[T, B, ...]` is one timestep in memory, and nobody asks for its gradient at each."""
    asked = x.requires_grad and (x.is_leaf or x.retains_grad)
    return len(x) > 1 and x.stride(0) == 0 and not asked


def first_linear(layers: Sequence[nn.Module | None]) -> nn.Linear | None:
    """The linear layer that reads the input of these layers as it is, flattened or not."""
    first = next((layer for layer in layers if not is_plain(layer, (nn.Flatten,))), None)
    return first if isinstance(first, nn.Linear) and is_plain(first, (nn.Linear,)) else None


def flatten_layers(layers: nn.Sequential) -> list[nn.Module]:
    """The layers, with those of a Sequential inside in its place unless someone watches it."""
    out: list[nn.Module] = []
    for layer in layers:
        out += (
            flatten_layers(layer)
            if type(layer) is nn.Sequential and not has_hooks(layer)
            else [layer]
        )
    return out


def has_hooks(m: nn.Module) -> bool:
    """Whether calling m runs more than its class says: hooks, or a forward of its own."""
    own = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return bool(own) or "forward" in m.__dict__ or _has_any_global_hook()


def is_plain(m: nn.Module | None, kinds: tuple[type, ...]) -> bool:
    """Whether m is exactly one of these classes (a subclass may do anything) and its call can be replaced by an equal one."""
    return type(m) in kinds and m is not None and not has_hooks(m)


def pool_kind(pool: Any) -> str | None:
    """ "avg" or "max" for torch's pool of 2x2 windows side by side, an odd last row or column left out; None for others."""
    if not is_plain(pool, POOLS):
        return None
    ours = (2, (2, 2))
    if (
        pool.kernel_size not in ours
        or pool.stride not in ours
        or pool.padding not in (0, (0, 0))
        or pool.ceil_mode
    ):
        return None
    if isinstance(pool, nn.AvgPool2d):
        return "avg" if pool.divisor_override is None else None
    return "max" if pool.dilation in (1, (1, 1)) and not pool.return_indices else None


def _apply(layer: nn.Module, x: Tensor, repeats: int) -> Tensor:
    if isinstance(layer, CONVOLUTIONS):
        return synapse.convolution(x, layer)
    if isinstance(layer, nn.Linear):
        return synapse.linear(x, layer)
    if (kind := pool_kind(layer)) and not torch.compiler.is_compiling():
        return max_pool(x) if kind == "max" else avg_pool(x)
    if (
        repeats > 1
        and isinstance(layer, BATCH_NORMS)
        and layer.training
        and layer.track_running_stats
    ):
        return _norm_of_copies(layer, x, repeats)
    return layer(x)


def _norm_of_copies(norm: nn.modules.batchnorm._BatchNorm, x: Tensor, T: int) -> Tensor:
    """BatchNorm of one copy of what repeats over T, with the running variance of all T n samples instead of n."""
    assert norm.running_var is not None
    before = norm.running_var.clone()
    y = norm(x)
    n = x.numel() // x.shape[1]
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum  # type: ignore[arg-type]
    running_var = norm.running_var.data  # the graph holds it, though training does not read it
    new = running_var - (1 - share) * before  # share * sum of squares / (n - 1)
    running_var += new * (T * (n - 1) / (T * n - 1) - 1)
    return y


def _same_at_every_timestep(layer: nn.Module, x: Tensor) -> bool:
    if not type(layer).__module__.startswith("torch.") and type(layer) not in (SyncNorm, TDBN):
        return False  # a user's subclass may do anything, such as add noise
    if isinstance(layer, nn.SyncBatchNorm | nn.Dropout) or getattr(layer, "synced", False):
        return not layer.training
    if isinstance(layer, BATCH_NORMS):
        # one sample has no variance, T copies of it have
        return not layer.training or x.numel() > math.prod(x.shape[1:2])
    if isinstance(layer, nn.Sequential):
        return all(_same_at_every_timestep(m, x) for m in layer)
    return isinstance(layer, _SAME_AT_EVERY_TIMESTEP)


def _with_norms(layers: Sequence[nn.Module]) -> list[tuple[nn.Module, nn.Module | None]]:
    """Each layer, with the BatchNorm that is folded into it."""
    out: list[tuple[nn.Module, nn.Module | None]] = []
    for layer in layers:
        if out and out[-1][1] is None and _folds(out[-1][0], layer):
            out[-1] = out[-1][0], layer
        else:
            out.append((layer, None))
    return out


def _folds(convolution: nn.Module, norm: nn.Module) -> bool:
    return (
        isinstance(norm, BATCH_NORMS)
        and not norm.training
        and norm.running_mean is not None
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and is_plain(norm, BATCH_NORMS)
        and is_plain(convolution, CONVOLUTIONS)
        and convolution.weight.dtype in (torch.float32, torch.float64)
    )


def convolve_with_norm(convolution: Any, norm: Any, x: Tensor) -> Tensor:
    """norm(convolution(x)) with the running statistics, as a convolution with other weights:

    scale = gamma / sqrt(var + eps);   W' = scale W,   b' = beta + scale (b - mean)
    """
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
    if norm.affine:
        scale = scale * gain(norm)
    bias = norm.bias + shift * scale if norm.affine else shift * scale
    weight = convolution.weight * scale.view(-1, *[1] * (convolution.weight.dim() - 1))
    y = synapse.infer(x, convolution, weight, bias)
    norm._check_input_dim(y)
    return y
