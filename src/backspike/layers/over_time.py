"""`OverTime`: run stateless layers on `[T, B, ...]` by folding T into the batch.

An input that repeats over T (stride 0) is computed once, and in evaluation BatchNorm is folded into
the preceding convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernel.call import SpikeInfo
from ..kernel.cpu.pool import avg_pool, max_pool
from ..kernel.layout import usual_strides
from ..neuron.prepare import check_tensor
from ..neuron.streaming import Streaming
from . import synapse
from .norm import TDBN, TEBN, SyncNorm, gain
from .synapse import has_hooks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SYNAPSES = (*CONVOLUTIONS, nn.Linear)
POOLS = (nn.AvgPool2d, nn.MaxPool2d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SyncNorm, TDBN)
# what a layer needs as input, for a clear error, and the least number of dimensions
_INPUTS: dict[type, tuple[str, int]] = {
    nn.Conv1d: ("[T, B, C, L]", 4),
    nn.Conv2d: ("[T, B, C, H, W]", 5),
    nn.Conv3d: ("[T, B, C, D, H, W]", 6),
    nn.BatchNorm2d: ("[T, B, C, H, W]", 5),
    nn.BatchNorm3d: ("[T, B, C, D, H, W]", 6),
    nn.Linear: ("[T, B, ..., C]", 3),
}
# With these layers, one copy of an input that repeats over T gives the same result as all T copies.
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
    """Stateless layers applied to every timestep, `[T, B, ...] -> [T, B, ...]`.

    T is folded into the batch, so BatchNorm takes its statistics over time, batch and space. An
    input that repeats over T (from `x.expand(T, ...)`, stride 0) is computed once where the layers
    allow it. In evaluation, without gradients, BatchNorm is folded into the weights of the
    preceding convolution.

    Raises TypeError if a spiking layer is inside, which would mistake time for batch; when called,
    TypeError or ValueError for an input that is not a tensor `[T, B, ...]`.
    """

    def __init__(self, *layers: Any) -> None:
        super().__init__(*layers)
        if any(isinstance(m, Streaming) for m in self.modules()):
            raise TypeError(
                "OverTime folds T into the batch; put spiking layers next to it, not inside it, "
                "and bs.Dropout too"
            )
        if {m for m in self.modules() if isinstance(m, TEBN)} - set(flatten_layers(self)):
            raise TypeError(
                "TEBN needs the time dimension: make it a direct layer of OverTime, not nested in "
                "another module"
            )

    def forward(self, x: Tensor) -> Tensor:
        return over_time(x, flatten_layers(self))


def over_time(x: Tensor, layers: Sequence[nn.Module], info: SpikeInfo | None = None) -> Tensor:
    """Run stateless layers in turn on `[T, B, ...]`; a result that repeats over T has stride 0."""
    check_input(x, layers)
    if not layers:
        return x
    y, repeats = apply_once(x, layers, info)
    return y.expand(repeats, *y.shape[1:]) if repeats > 1 else y


def apply_once(
    x: Tensor, layers: Sequence[nn.Module], info: SpikeInfo | None = None
) -> tuple[Tensor, int]:
    """Run stateless layers; return (y, repeats).

    y is `[T, B, ...]` with repeats = 1; or, if the result repeats over T, one copy `[1, B, ...]`
    with repeats = T. info: information about x from the neuron that emitted it.
    """
    check_input(x, layers)
    T = x.shape[0]  # len(x) would be a number where torch.export has a symbol
    repeats = T if repeats_over_time(x) else 1
    x = x[:1] if repeats > 1 else x
    if not layers:
        return x, repeats
    # linear layers take [T, B, ...], where a gradient can be seen to repeat over T
    folds = not all(is_plain(layer, (nn.Linear,)) for layer in layers)
    B, x = x.shape[1], usual_strides(x.flatten(0, 1)) if folds else x
    first = first_linear(layers)
    for layer, norm in _with_norms(layers):
        if repeats > 1 and not _same_at_every_timestep(layer, x):
            x, repeats = x.expand(T, *x.shape).flatten(0, 1), 1
        if norm is not None:
            x = convolve_with_norm(layer, norm, x)
        elif isinstance(layer, TEBN):
            x = layer(x.unflatten(0, (T, B))).flatten(0, 1)
        elif layer is first and info is not None:
            x = synapse.linear(x, first, info.active, info.bits_of(x))
        elif layer is layers[0] and info is not None and isinstance(layer, CONVOLUTIONS):
            x = synapse.convolution(x, layer, info.bits_of(x))
        else:
            x = _apply(layer, x, repeats)
    return (usual_strides(x).unflatten(0, (T // repeats, B)) if folds else x), repeats


def check_input(x: Tensor, layers: Sequence[nn.Module]) -> None:
    """Catch a missing time axis before torch reports the shape `[T B, ...]`."""
    check_tensor(x)
    layer = next(iter(layers), None)
    shape, dimensions = _INPUTS.get(type(layer), ("[T, B, ...]", 2))
    if layer is not None and x.dim() < dimensions:
        raise ValueError(
            f"{type(layer).__name__} needs {shape}, got shape {list(x.shape)}; "
            "add time with x.expand(T, *x.shape)"
        )


def repeats_over_time(x: Tensor) -> bool:
    """Whether x `[T, B, ...]` holds one timestep in memory and needs no gradient per timestep."""
    needs_each = x.requires_grad and (x.is_leaf or x.retains_grad)
    return x.shape[0] > 1 and x.stride(0) == 0 and not needs_each


def first_linear(layers: Sequence[nn.Module | None]) -> nn.Linear | None:
    """The linear layer that reads the input of these layers directly, flattened or not."""
    first = next((layer for layer in layers if not is_plain(layer, (nn.Flatten,))), None)
    return first if isinstance(first, nn.Linear) and is_plain(first, (nn.Linear,)) else None


def flatten_layers(layers: nn.Sequential) -> list[nn.Module]:
    """The layers, with nested Sequentials replaced by their layers unless they have hooks."""
    out: list[nn.Module] = []
    for layer in layers:
        out += (
            flatten_layers(layer)
            if type(layer) is nn.Sequential and not has_hooks(layer)
            else [layer]
        )
    return out


def is_plain(m: nn.Module | None, kinds: tuple[type, ...]) -> bool:
    """Whether m is exactly of one of these classes, without hooks, so that it need not be called.

    A subclass does not count, since its forward may do anything.
    """
    return type(m) in kinds and m is not None and not has_hooks(m)


def pool_kind(pool: Any) -> str | None:
    """ "avg" or "max" for torch's 2x2 pools with stride 2, no padding and floor mode; else None."""
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
    """BatchNorm of one copy of an input that repeats over T.

    The running variance is corrected to that of all T n samples instead of n.
    """
    assert norm.running_var is not None
    before = norm.running_var.clone()
    y = norm(x)
    n = x.numel() // x.shape[1]
    tracked: Any = norm.num_batches_tracked
    share = 1 / float(tracked) if norm.momentum is None else norm.momentum
    running_var = norm.running_var.data  # .data: it is saved for backward, though never read there
    new = running_var - (1 - share) * before  # share * sum of squares / (n - 1)
    running_var += new * (T * (n - 1) / (T * n - 1) - 1)
    return y


def _same_at_every_timestep(layer: nn.Module, x: Tensor) -> bool:
    if not type(layer).__module__.startswith("torch.") and type(layer) not in (SyncNorm, TDBN):
        return False  # a user's subclass may do anything, for example add noise
    if isinstance(layer, nn.SyncBatchNorm | nn.Dropout) or getattr(layer, "synced", False):
        return not layer.training
    if isinstance(layer, BATCH_NORMS):
        # a single sample has no variance, but T copies of it do
        return not layer.training or x.numel() > math.prod(x.shape[1:2])
    if isinstance(layer, nn.Sequential):
        return all(_same_at_every_timestep(m, x) for m in layer)
    return isinstance(layer, _SAME_AT_EVERY_TIMESTEP)


def _with_norms(layers: Sequence[nn.Module]) -> list[tuple[nn.Module, nn.Module | None]]:
    """Each layer with the BatchNorm to be folded into it, or None."""
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
    """norm(convolution(x)) with running statistics, as one convolution with adjusted weights."""
    weight, bias = fold_norm(convolution.weight, convolution.bias, norm)
    y = synapse.infer(x, convolution, weight, bias)
    norm._check_input_dim(y)
    return y


def fold_norm(weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer into which the BatchNorm behind it is folded.

    scale = gamma / sqrt(var + eps);   W' = scale W,   b' = beta + scale (b - mean)
    """
    scale = (norm.running_var + norm.eps).rsqrt()
    shift = -norm.running_mean if bias is None else bias - norm.running_mean
    if norm.affine:
        scale = scale * gain(norm)
    bias = norm.bias + shift * scale if norm.affine else shift * scale
    return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias
