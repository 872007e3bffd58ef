"""Convolutions and linear layers for spikes: `convolution(x, layer)`, `linear(x, layer)`.

They equal `layer(x)` but save and compute less. Inputs that are spikes are saved for backward as
bits (`kernel/pack.py`), the weight is cast again in backward instead of being saved twice, and
gradients that nobody needs are not computed. On the CPU, linear layers and Conv2d can add the
weights selected by spikes instead of multiplying, and a linear layer can compute the gradient of
its input only where the preceding neuron needs it; a `SparsityPlan` decides, also whether a 3x3
convolution that may be fast is computed by a fast way (`fast_convolution.py`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernel.cpu import conv, conv_lookup, library, sparse, winograd
from ..kernel.cpu.conv import Geometry
from ..kernel.mask import draw_seed
from ..kernel.pack import Packed, count, pack
from ..neuron.hooks import has_hooks
from . import sparsity, weight_product
from .fast_convolution import Costs, costs
from .sparsity import SparsityPlan, plan_of, worth_it

# ------------------------------------------------------------------------------------ the functions


def convolution(x: Tensor, layer: nn.Module, bits: Tensor | None = None) -> Tensor:
    """`layer(x)` for a Conv1d, Conv2d or Conv3d and x `[N, C, ...]`, saving x as bits if possible.

    A Conv2d follows its sparsity plan; without gradients, it decides from this x alone and leaves
    the plan unchanged. The sparse and the fast way return a channels-last output.
    The layer is simply called if it is of another type, has hooks, pads with anything but zeros, is
    being compiled, or is not on the CPU and x comes without bits.
    bits: x as bits, if the kernel that computed x wrote them (`Result.bits`).
    Double backward raises RuntimeError.
    """
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if type(layer) not in kinds or not _plain(x, layer, bits):
        return layer(x)
    assert isinstance(layer, kinds)
    if not torch.is_grad_enabled():
        return infer(x, layer, layer.weight, layer.bias)
    padding = _padding(layer)
    if padding is None or layer.padding_mode != "zeros" or x.dim() != layer.weight.dim():
        return layer(x)
    geometry = layer.stride, padding, layer.dilation, False, (0,) * len(layer.stride), layer.groups
    dtype = _compute_dtype(x)
    window = _window(x, layer, dtype)
    return _Convolution.apply(
        x,
        layer.weight,
        layer.bias,
        bits,
        geometry,
        dtype,
        window,
        plan_of(layer) if window else None,
        _costs(x, layer, dtype, window),
    )


def infer(x: Tensor, layer: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of x, without gradients, with this weight and bias instead of its own."""
    dtype = _compute_dtype(x)
    if window := _window(x, layer, dtype):
        packed = pack(x)
        fast = _costs(x, layer, dtype, window)
        plan = SparsityPlan().decide_events(dtype, packed.bits == 1, packed.density, fast)
        packed = _last(packed, x) if plan.forward == "gather" else packed
        y = _convolved(plan, packed, x, weight, bias, dtype, window)
        if y is not None:
            return y
    dense: Tensor = layer._conv_forward(x, weight, bias)
    return dense


def _window(x: Tensor, layer: Any, dtype: torch.dtype) -> Geometry | None:
    """The geometry of the convolution if a sparse one could be faster, else None."""
    if (
        type(layer) is not nn.Conv2d
        or x.dim() != 4
        or layer.groups != 1
        or layer.padding_mode != "zeros"
    ):
        return None
    padding = _padding(layer)
    if (
        not x.numel()
        or padding is None
        or min(layer.in_channels, layer.out_channels) < sparsity.FEWEST_CHANNELS
        or x.shape[1] != layer.in_channels
    ):
        return None
    if (
        torch.compiler.is_compiling()
        or x.device.type != "cpu"
        or dtype not in sparse.DTYPES
        or not library.available()
    ):
        return None
    window = Geometry(layer.stride, padding, layer.dilation)  # type: ignore[arg-type]
    size = window.outputs(x.shape[2:], layer.kernel_size)
    large = math.prod(size) * len(x) * layer.weight.numel() >= sparsity.WORTH_IT
    return window if min(size) > 0 and large else None


def _costs(x: Tensor, layer: Any, dtype: torch.dtype, window: Geometry | None) -> Costs | None:
    """The costs of the fast ways, if the layer may use them."""
    return costs(layer, len(x), (x.shape[2], x.shape[3]), dtype, window) if window else None


def linear(
    x: Tensor, layer: nn.Module, active: Tensor | None = None, bits: Tensor | None = None
) -> Tensor:
    """`layer(x)` for a Linear and x `[..., K]`, saving x as bits if possible, by its sparsity plan.

    active: where the surrogate derivative h of the neurons that emitted x is nonzero, as bits
    (uint8; bit i of byte k is element 8 k + i of x in C order). The gradient of x may be 0
    elsewhere, so pass it only if nothing else reads that gradient.
    bits: as for `convolution`, and so are the fallbacks and the behaviour without gradients.
    Raises ValueError if `active` does not have one bit per element of x.
    """
    if type(layer) is not nn.Linear or x.dim() < 2 or not _plain(x, layer, bits):
        return layer(x)
    assert isinstance(layer, nn.Linear)
    if not x.is_contiguous():
        bits = None  # they follow the memory layout of x, but the layer reads a contiguous copy
        if x.device.type != "cpu":
            return layer(x)
    if active is not None and (
        active.dtype != torch.uint8 or active.numel() != (x.numel() + 7) // 8
    ):
        raise ValueError(
            f"active must be uint8 with one bit for each of {x.numel()} inputs, "
            f"got {tuple(active.shape)} {active.dtype}"
        )
    dtype = _compute_dtype(x)
    learns = torch.is_grad_enabled() and (
        x.requires_grad or any(p.requires_grad for p in layer.parameters())
    )
    if not learns:
        return _infer(x, layer, dtype)
    return _Linear.apply(x, layer.weight, layer.bias, active, bits, plan_of(layer), dtype)


def _plain(x: Tensor, layer: nn.Module, bits: Tensor | None = None) -> bool:
    """Whether calling this torch layer only runs its forward, on tensors that are handled here."""
    weight: Any = layer.weight
    return (
        not torch.compiler.is_compiling()
        and not has_hooks(layer)
        and type(x) is Tensor
        and type(weight) is nn.Parameter
        and x.device == weight.device
        and (x.device.type == "cpu" or bits is not None)
        and x.is_floating_point()
        and (x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type))
        and not torch._C._are_functorch_transforms_active()
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which torch.autocast computes with x; it leaves float64 alone."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...] | None:
    """The padding of each dimension; None if its two sides differ."""
    if not isinstance(layer.padding, str):
        return layer.padding
    sides = layer._reversed_padding_repeated_twice
    return tuple(sides[-2::-2]) if sides[::2] == sides[1::2] else None


def _infer(x: Tensor, layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    x2 = x.reshape(-1, x.shape[-1]).contiguous()
    if not worth_it(dtype, len(x2), layer.in_features, layer.out_features):
        return layer(x)
    packed, plan = pack(x2), SparsityPlan()
    plan.decide(dtype, len(x2), layer.in_features, layer.out_features, _spikes(packed), None)
    if not _adds(plan.forward, layer.weight):
        return layer(x)
    return _added(packed, layer.weight.to(dtype), layer.bias, plan.forward, x.shape)


def _adds(way: str, weight: Tensor) -> bool:
    """Whether to add the weights that spikes select.

    Not if a weight is NaN or infinite: it makes an output NaN even where no spike selects it.
    """
    return way in ("gather", "lookup") and bool(weight.detach().sum().isfinite())


def _added(
    packed: Packed, weight: Tensor, bias: Tensor | None, way: str, shape: torch.Size
) -> Tensor:
    return _in_shape(_as_spikes(packed).times(weight, bias, way), shape)  # type: ignore[arg-type]


def _in_shape(y: Tensor, shape: torch.Size) -> Tensor:
    """The output y `[M, N]` for an input of this shape."""
    return torch.ops.aten._unsafe_view(y, (*shape[:-1], y.shape[1]))


def _convolved(
    plan: SparsityPlan,
    packed: Packed,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    window: Geometry,
) -> Tensor | None:
    """The convolution of x, sparse or fast; None if the plan is dense or the numbers do not suit.

    packed: x, in channels-last order if the plan is sparse.
    """
    if _adds(plan.forward, weight):
        return _as_events(packed).convolved(weight.to(dtype), bias, window)
    if plan.forward != "winograd":
        return None
    y = winograd.convolve(x.to(dtype), weight, bias)
    if y is None:
        plan.refuse("forward")
    return y


def _spikes(packed: Packed) -> float | None:
    return packed.density if packed.bits == 1 else None


def _last(packed: Packed, x: Tensor) -> Packed:
    """x packed in channels-last order, `[N, H, W, C]`."""
    last = torch.channels_last
    return packed if x.is_contiguous(memory_format=last) else pack(x.contiguous(memory_format=last))


def _as_events(packed: Packed) -> conv.Events:
    return conv.Events(packed.codes, packed.bits, packed.shape)


def _as_spikes(packed: Packed) -> sparse.Spikes:
    assert packed.nonzero is not None
    M, K = packed.shape
    return sparse.Spikes(packed.codes, M, K, packed.nonzero)


# ----------------------------------------------------------------------------- forward and backward


def _save(ctx: Any, packed: Packed | None, *others: Tensor | None) -> None:
    """Save for backward; autograd then detects in-place changes of the tensors."""
    ctx.save_for_backward(None if packed is None else packed.codes, *others)
    ctx.packed = None if packed is None else replace(packed, codes=None)  # type: ignore[arg-type]
    ctx.set_materialize_grads(False)


def _saved(ctx: Any) -> tuple[Packed | None, tuple[Tensor, ...]]:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "backspike: double backward through a layer with packed input is not defined; "
            "use create_graph=False"
        )
    codes, *others = ctx.saved_tensors
    return None if ctx.packed is None else replace(ctx.packed, codes=codes), tuple(others)


def _pack(x: Tensor, dtype: torch.dtype, bits: Tensor | None) -> Packed:
    """x packed, or its given bits; otherwise x in the dtype of the computation, as torch saves it.

    Packed codes represent x exactly in any dtype.
    """
    if bits is not None:
        nonzero = count(bits) if bits.device.type == "cpu" else None
        return Packed(bits, 1, x.shape, x.stride(), x.dtype, nonzero)
    packed = pack(x)
    if packed.bits or packed.dtype == dtype:
        return packed
    x = x.to(dtype)
    return Packed(x, 0, x.shape, x.stride(), dtype, None)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        bits: Tensor | None,
        geometry: Any,
        dtype: torch.dtype,
        window: Geometry | None,
        plan: SparsityPlan | None,
        costs: Costs | None,
    ) -> Tensor:
        packed = _pack(x, dtype, bits) if weight.requires_grad or plan else None
        if packed and plan:
            product = window is not None and weight_product.pays(x, weight, dtype, window)
            plan.decide_events(dtype, packed.bits == 1, packed.density, costs, product)
            packed = _last(packed, x) if plan.reads_events() else packed
        _save(ctx, packed if weight.requires_grad else None, weight)
        ctx.geometry = geometry
        ctx.window = window
        ctx.dtype = dtype
        ctx.x_layout = x.shape, x.stride()
        ctx.plan = plan
        ctx.ways = (plan.weight, plan.input) if plan else ("dense", "dense")
        rounds = weight.requires_grad and ctx.ways[0] == "lookup"
        ctx.seed = int(draw_seed(x.device)) if rounds else 0
        ctx.bias_sizes = None if bias is None else bias.shape
        with torch.autocast(x.device.type, enabled=False):
            if packed and plan and window:
                y = _convolved(plan, packed, x, weight, bias, dtype, window)
                if y is not None:
                    return y
            bias = None if bias is None else bias.to(dtype)
            return torch.ops.aten.convolution(x.to(dtype), weight.to(dtype), bias, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        packed, (weight,) = _saved(ctx)
        if g is None:
            return (None,) * 9
        needs, ours, fast = list(ctx.needs_input_grad[:3]), None, None
        if needs[0] and ctx.ways[1] == "winograd":
            fast = winograd.input_gradient(g, weight)
            needs[0] = fast is None
            if fast is None:
                ctx.plan.refuse("input")
        if packed and needs[1] and ctx.ways[0] != "dense":
            if ctx.ways[0] == "product":
                x = packed.unpack(ctx.dtype)
                ours = weight_product.weight_gradient(x, g, weight, ctx.window)
            elif ctx.ways[0] == "winograd":
                ours = winograd.weight_gradient(packed.unpack(ctx.dtype), g)
            elif ctx.ways[0] == "gather":
                last = g.contiguous(memory_format=torch.channels_last)
                ours = _as_events(packed).weight_gradient(last, weight, ctx.window)
            else:
                ours = conv_lookup.weight_gradient(_as_events(packed), g, weight, ctx.seed)
            needs[1] = ours is None
            if ours is None:
                ctx.plan.refuse("weight")
        # without the gradient of the weight only shape and strides of x are read
        x = (
            packed.unpack(ctx.dtype)
            if packed and needs[1]
            else torch.empty_strided(*ctx.x_layout, dtype=ctx.dtype, device=g.device)
        )
        with torch.autocast(g.device.type, enabled=False):
            args = g, x, weight.to(ctx.dtype), ctx.bias_sizes, *ctx.geometry, needs
            gx, gw, gb = torch.ops.aten.convolution_backward(*args) if any(needs) else (None,) * 3
        # autograd casts the gradients to the dtypes of their tensors
        gx, gw = (gx if fast is None else fast), (gw if ours is None else ours)
        return gx, gw, gb, *(None,) * 6


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        active: Tensor | None,
        bits: Tensor | None,
        plan: SparsityPlan,
        dtype: torch.dtype,
    ) -> Tensor:
        x2 = x.reshape(-1, x.shape[-1]).contiguous()
        packed = _pack(x2, dtype, bits)
        active = active if x.requires_grad and sparse.available() else None
        h = None if active is None else count(active) / max(x.numel(), 1)
        plan.decide(dtype, len(x2), weight.shape[1], weight.shape[0], _spikes(packed), h)
        spikes = _as_spikes(packed) if _adds(plan.forward, weight) else None
        saved, lists = packed if weight.requires_grad else None, None
        if saved and spikes and plan.forward == plan.weight == "gather" and spikes.few:
            spikes = spikes.listed()
            saved, lists = replace(packed, codes=None), spikes.lists  # type: ignore[arg-type]
        active = active if plan.input == "sample" else None
        _save(ctx, saved, weight, active, *(lists or (None, None)))
        ctx.ways = plan.weight, plan.input
        ctx.dtype = dtype
        ctx.shape = x.shape
        with torch.autocast(x.device.type, enabled=False):
            if spikes:
                return _in_shape(spikes.times(weight.to(dtype), bias, plan.forward), x.shape)  # type: ignore[arg-type]
            return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        packed, (weight, active, *lists) = _saved(ctx)
        if g is None:
            return (None,) * 7
        (way, input), needs = ctx.ways, ctx.needs_input_grad
        gx = gw = gb = None
        with torch.autocast(g.device.type, enabled=False):
            w = weight.to(ctx.dtype)
            if lists[0] is None and _repeats(g):
                T, g = len(g), g[0].reshape(-1, g.shape[-1])
                gx = (g @ w).view(ctx.shape[1:]).expand(ctx.shape) if needs[0] else None
                if needs[1] and packed is not None:
                    total = packed.total(T).view(len(g), weight.shape[1])
                    gw = g.t().to(total) @ total
                return gx, gw, T * g.sum(0) if needs[2] else None, *(None,) * 4
            g = g.reshape(-1, g.shape[-1])
            if needs[0]:
                gx = (sparse.sampled(g, w, active) if input == "sample" else g @ w).view(ctx.shape)
            if needs[1] and packed is not None:
                if way == "dense":
                    gw = g.t() @ packed.unpack(ctx.dtype)
                else:
                    known: Any = None if lists[0] is None else tuple(lists)
                    spikes, g = replace(_as_spikes(packed), lists=known), g.contiguous()
                    if needs[2]:
                        gw, gb = spikes.gradients(g, way)
                    else:
                        gw = spikes.weight_gradient(g, way)
            if needs[2] and gb is None:
                gb = g.sum(0)
        return gx, gw, gb, *(None,) * 4


def _repeats(g: Tensor) -> bool:
    """Whether the gradient g `[T, B, ..., N]` is the same at all timesteps.

    This is so if the loss depends on the mean of the outputs over T. The products then need only
    one timestep of g, and the sum of the inputs over T. On a GPU, comparing would wait.
    """
    if g.device.type != "cpu" or g.dim() < 3 or len(g) == 1:
        return False
    return torch.equal(g[0], g[-1]) and torch.equal(g[1:], g[:-1])
