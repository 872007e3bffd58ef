"""Convolutions and linear layers as spiking networks need them: `convolution(x, layer)` and `linear(x, layer)` are `layer(x)`.

What differs is what is kept and what is computed. The input is kept for the weight's gradient as bits where it holds spikes
(`kernel/pack.py`), the weight is cast again for the backward pass instead of being kept twice, and a gradient nobody asked for
is not computed. On the CPU a linear layer or a Conv2d also adds the weights that spikes name instead of multiplying, and a
linear layer computes the gradient of its input only where the neuron in front can use it; a `Choice` says which way each of its
products takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as _module

from .kernel import conv, cpu, sparse
from .kernel.conv import Geometry
from .kernel.pack import Packed, count, pack

# Densities below which a way is the fastest. Measured on a Zen 4 core (avx512_bf16) with 2048 samples, 1024 inputs and 1024
# outputs, in ms for float32 / bfloat16: dense 47 / 20; gathered 11 / 10.5 at 10 % and 20 / 19 at 20 %; looked up 13 / 13 at any
# density; sampled 14 / 8 at 10 %, 31 / 16 at 30 %, 62 / 26 at 50 %. A dot product costs START multiplications beside its own.
GATHER_BELOW = 0.13
SAMPLE_BELOW, START = 0.40, 130
LOOKUP_ROWS = 256  # fewer do not pay for the tables
# What remains of these densities for bfloat16 on a processor that multiplies tiles (AMX), where looking up never pays: by
# arithmetic, not measured.
TILED = 0.25
MARGIN = 0.1  # a way is left when its limit is passed by this part of it
WORTH_IT = 1 << 22  # multiplications of the dense product; below, calls cost more than they save
FEWEST = 64  # rows and columns; narrower matrices leave lanes empty
# The same for convolutions: forward, weight gradient. Measured on two Zen 4 cores that others used too, so that only
# ratios count: 3x3, 64 images of 64 channels at 32x32, in ms, bfloat16: dense 19.0, 25.7; of what is not zero 2.5, 3 at 3
# %; 6.2, 9.1 at 10 %; 10.4, 16.6 at 20 %; 18.7, 25 at 30 %. float32: dense 37, 48; 7.3, 6.1 at 10 %; 21, 22 at 30 %; 32,
# 32 at 50 %. Other sizes with 32 to 512 channels, 1x1 and stride 2 break even at 20 to 38 % and from 40 % on; values
# other than 1 at 3/4 of that.
EVENTS_BELOW = {torch.float32: (0.4, 0.5), torch.bfloat16: (0.25, 0.2)}
VALUED = 0.75
FEWEST_CHANNELS = 16


_WAYS = {"forward": ("dense", "gather", "lookup"), "weight": ("dense", "gather", "lookup"), "input": ("dense", "sample")}


@dataclass
class Choice:
    """Which way the three products of a linear layer or a convolution take, and the densities they were chosen by.

    It has a memory, so that a density near a limit does not change the way at every step: a run is resumed exactly only with
    `load(state())`.
    """

    forward: str = "dense"  # of _WAYS, as the next two
    weight: str = "dense"
    input: str = "dense"
    spikes: float | None = None  # part of the inputs that spiked, or that are not zero; None: they were no spikes
    h: float | None = None  # part of the neurons in front whose surrogate derivative is not zero; None: unknown

    def state(self) -> dict[str, str | float | None]:
        return asdict(self)

    def load(self, state: dict[str, Any]) -> None:
        for field in fields(self):
            value = state[field.name]
            if value not in _WAYS[field.name] if field.name in _WAYS else not isinstance(value, float | None):
                raise ValueError(f"{field.name} of a product is {value!r}")
            setattr(self, field.name, value)

    def __str__(self) -> str:
        words = {"dense": "dense", "gather": "sparse", "lookup": "by lookup", "sample": "sampled"}
        spikes = "no spikes" if self.spikes is None else f"spikes {_percent(self.spikes)}"
        h = "" if self.h is None else f" (h {_percent(self.h)})"
        products = f"forward {words[self.forward]} ({spikes}), weight gradient {words[self.weight]}"
        return f"{products}, input gradient {words[self.input]}{h}"

    def decide(self, dtype: torch.dtype, M: int, K: int, N: int, spikes: float | None, h: float | None) -> Choice:
        """The ways for `[M, K]` inputs and N outputs, from now on."""
        if not worth_it(dtype, M, K, N):
            self.forward = self.weight = self.input = "dense"
        else:
            tiled = dtype == torch.bfloat16 and _multiplies_tiles()
            part = TILED if tiled else 1.0
            gather, lookup = ("gather", GATHER_BELOW * part), ("lookup", 2.0)
            self.forward = _way(self.forward, [gather] + [lookup] * (M >= LOOKUP_ROWS and not tiled), spikes)
            self.weight = _way(self.weight, [gather] + [lookup] * (K >= LOOKUP_ROWS and not tiled), spikes)
            self.input = _way(self.input, [("sample", SAMPLE_BELOW * part * N / (N + START))], h)
        self.spikes, self.h = spikes, h
        return self

    def decide_events(self, dtype: torch.dtype, binary: bool, spikes: float | None) -> Choice:
        """The ways of a convolution, from now on, if it is worth it at all (see `_window`)."""
        part = TILED if dtype == torch.bfloat16 and _multiplies_tiles() else 1.0
        part *= 1.0 if binary else VALUED
        forward, weight = EVENTS_BELOW[dtype]
        self.forward = _way(self.forward, [("gather", forward * part)], spikes)
        self.weight = _way(self.weight, [("gather", weight * part)], spikes)
        self.spikes = spikes
        return self


def worth_it(dtype: torch.dtype, M: int, K: int, N: int) -> bool:
    """Whether a product of this size can be faster than a dense one at all."""
    return min(M, K, N) >= FEWEST and M * K * N >= WORTH_IT and dtype in sparse.DTYPES and sparse.available()


def _multiplies_tiles() -> bool:
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


def _way(now: str, limits: list[tuple[str, float]], density: float | None) -> str:
    """The first way whose limit lies above the density; limits are moved a little in favour of the present way."""
    if density is None:
        return "dense"
    ways = [way for way, _ in limits] + ["dense"]
    for i, (way, limit) in enumerate(limits):
        if density < limit * (1 + MARGIN if ways.index(now) <= i else 1 - MARGIN):
            return way
    return "dense"


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %"


def choice(layer: nn.Module) -> Choice:
    """The choice that belongs to the layer; it is copied with it."""
    if not isinstance(layer.__dict__.get("choice"), Choice):
        layer.__dict__["choice"] = Choice()
    return layer.__dict__["choice"]


def choices(model: nn.Module) -> Iterator[tuple[str, Choice]]:
    """Names of the layers that have chosen, with their choices."""
    for name, m in model.named_modules():
        if isinstance(m.__dict__.get("choice"), Choice):
            yield name, m.__dict__["choice"]


def state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """All choices of a model as plain values, for a checkpoint."""
    return {name: made.state() for name, made in choices(model)}


def load(model: nn.Module, state: dict[str, dict[str, Any]]) -> None:
    """Restores what `state` returned, also into a model that has not run yet."""
    for name, values in state.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        choice(layer).load(values)


# --------------------------------------------------------------------------------------------------- the functions


def convolution(x: Tensor, layer: nn.Module, bits: Tensor | None = None) -> Tensor:
    """`layer(x)` for a Conv1d, Conv2d or Conv3d and x `[N, C, ...]`, keeping x as bits where it can.

    A Conv2d goes by the products that its `choice` names; without gradients they are chosen by this x alone, and the layer's
    choice stays as it is. Where only what is not zero is added, the output lies channels last. Any other layer, or one that is
    watched by hooks, pads otherwise than with zeros, or is being compiled, is simply called; so is one on another device,
    without bits. bits: of x, where the kernel that made it wrote them (`Result.bits`). A double backward through what this
    computed raises RuntimeError.
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
    return _Convolution.apply(x, layer.weight, layer.bias, bits, geometry, dtype, window, choice(layer) if window else None)


def infer(x: Tensor, layer: Any, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the convolution gives for x without gradients, with this weight and bias for its own."""
    dtype = _compute_dtype(x)
    if window := _window(x, layer, dtype):
        packed = pack(x)
        if Choice().decide_events(dtype, packed.bits == 1, packed.density).forward != "dense":
            return _as_events(_last(packed, x)).convolved(weight.to(dtype), bias, window)
    y: Tensor = layer._conv_forward(x, weight, bias)
    return y


def _window(x: Tensor, layer: Any, dtype: torch.dtype) -> Geometry | None:
    """How the layer's window moves, if adding what is not zero can be faster than a dense convolution at all."""
    if type(layer) is not nn.Conv2d or x.dim() != 4 or layer.groups != 1 or layer.padding_mode != "zeros":
        return None
    padding = _padding(layer)
    if (
        not x.numel()
        or padding is None
        or min(layer.in_channels, layer.out_channels) < FEWEST_CHANNELS
        or x.shape[1] != layer.in_channels
    ):
        return None
    if torch.compiler.is_compiling() or x.device.type != "cpu" or dtype not in sparse.DTYPES or not cpu.available():
        return None
    window = Geometry(layer.stride, padding, layer.dilation)  # type: ignore[arg-type]
    size = window.outputs(x.shape[2:], layer.kernel_size)
    return window if min(size) > 0 and math.prod(size) * len(x) * layer.weight.numel() >= WORTH_IT else None


def linear(x: Tensor, layer: nn.Module, active: Tensor | None = None, bits: Tensor | None = None) -> Tensor:
    """`layer(x)` for a Linear and x `[..., K]`, keeping x as bits where it can, by the products that its `choice` names.

    active: where the derivative h of the neuron that sent x is not zero, as bits (uint8, bit i of byte k is element 8 k + i of
    x in C order). The gradient of x may then be 0 elsewhere: give it only where nothing but that neuron reads this gradient.
    bits: as for `convolution`.
    Without gradients the way is chosen by this x alone, and the layer's choice stays as it is. Falls back and raises as
    `convolution` does; ValueError if active has not one bit for each element of x.
    """
    if type(layer) is not nn.Linear or x.dim() < 2 or not _plain(x, layer, bits):
        return layer(x)
    assert isinstance(layer, nn.Linear)
    if not x.is_contiguous():
        bits = None  # they are of x as it lies, and a copy of it in C order is what is multiplied
        if x.device.type != "cpu":
            return layer(x)
    if active is not None and (active.dtype != torch.uint8 or active.numel() != (x.numel() + 7) // 8):
        raise ValueError(
            f"active: got {tuple(active.shape)} {active.dtype}, want uint8 with one bit for each of {x.numel()} inputs"
        )
    dtype = _compute_dtype(x)
    learns = torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in layer.parameters()))
    if not learns:
        return _infer(x, layer, dtype)
    return _Linear.apply(x, layer.weight, layer.bias, active, bits, choice(layer), dtype)


def _plain(x: Tensor, layer: nn.Module, bits: Tensor | None = None) -> bool:
    """Whether calling this layer of torch's own would do nothing but its forward, on tensors that the functions here know."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    everywhere = (
        _module._global_forward_hooks,
        _module._global_forward_pre_hooks,
        _module._global_backward_hooks,
        _module._global_backward_pre_hooks,
    )
    weight: Any = layer.weight
    return (
        not torch.compiler.is_compiling()
        and not any(hooks)
        and not any(everywhere)
        and "forward" not in layer.__dict__
        and type(x) is Tensor
        and type(weight) is nn.Parameter
        and x.device == weight.device
        and (x.device.type == "cpu" or bits is not None)
        and x.is_floating_point()
        and (x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type))
        and not torch._C._are_functorch_transforms_active()
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What torch.autocast makes of x: float64 it leaves alone."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...] | None:
    """Zeros on each side of every dimension; None where the sides differ."""
    if not isinstance(layer.padding, str):
        return layer.padding
    sides = layer._reversed_padding_repeated_twice
    return tuple(sides[-2::-2]) if sides[::2] == sides[1::2] else None


def _infer(x: Tensor, layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    x2 = x.reshape(-1, x.shape[-1]).contiguous()
    if not worth_it(dtype, len(x2), layer.in_features, layer.out_features):
        return layer(x)
    packed = pack(x2)
    way = Choice().decide(dtype, len(x2), layer.in_features, layer.out_features, _spikes(packed), None).forward
    return layer(x) if way == "dense" else _added(packed, layer.weight.to(dtype), layer.bias, way, x.shape)


def _added(packed: Packed, weight: Tensor, bias: Tensor | None, way: str, shape: torch.Size) -> Tensor:
    y = _as_spikes(packed).times(weight, bias, way)  # type: ignore[arg-type]
    return torch.ops.aten._unsafe_view(y, (*shape[:-1], weight.shape[0]))


def _spikes(packed: Packed) -> float | None:
    return packed.density if packed.bits == 1 else None


def _last(packed: Packed, x: Tensor) -> Packed:
    """x packed in the order `[N, H, W, C]`."""
    last = torch.channels_last
    return packed if x.is_contiguous(memory_format=last) else pack(x.contiguous(memory_format=last))


def _as_events(packed: Packed) -> conv.Events:
    return conv.Events(packed.codes, packed.bits, packed.shape)


def _as_spikes(packed: Packed) -> sparse.Spikes:
    assert packed.nonzero is not None
    M, K = packed.shape
    return sparse.Spikes(packed.codes, M, K, packed.nonzero)


# ----------------------------------------------------------------------------------------------- forward and backward


def _keep(ctx: Any, packed: Packed | None, *others: Tensor | None) -> None:
    """What a backward pass needs: tensors where autograd checks that nobody changes them."""
    ctx.save_for_backward(None if packed is None else packed.codes, *others)
    ctx.packed = None if packed is None else replace(packed, codes=None)  # type: ignore[arg-type]
    ctx.set_materialize_grads(False)


def _kept(ctx: Any) -> tuple[Packed | None, tuple[Tensor, ...]]:
    if torch.is_grad_enabled():
        raise RuntimeError("backspike: double backward through a layer's packed input is not defined; use create_graph=False")
    codes, *others = ctx.saved_tensors
    return None if ctx.packed is None else replace(ctx.packed, codes=codes), tuple(others)


def _pack(x: Tensor, dtype: torch.dtype, bits: Tensor | None) -> Packed:
    """x packed, unless it comes with bits; what does not fit is kept in the dtype that is computed in, as torch does. Codes fit
    any dtype exactly."""
    if bits is not None:
        return Packed(bits, 1, x.shape, x.stride(), x.dtype, None)
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
        choice: Choice | None,
    ) -> Tensor:
        packed = _pack(x, dtype, bits) if weight.requires_grad or choice else None
        ways = ("dense", "dense")
        if packed and choice:
            made = choice.decide_events(dtype, packed.bits == 1, packed.density)
            ways = made.forward, made.weight
            packed = _last(packed, x) if "gather" in ways else packed
        _keep(ctx, packed if weight.requires_grad else None, weight)
        ctx.geometry, ctx.window, ctx.dtype, ctx.x_form = geometry, window, dtype, (x.shape, x.stride())
        ctx.way, ctx.bias_sizes = ways[1], None if bias is None else bias.shape
        with torch.autocast(x.device.type, enabled=False):
            if packed and window and ways[0] == "gather":
                return _as_events(packed).convolved(weight.to(dtype), bias, window)
            bias = None if bias is None else bias.to(dtype)
            return torch.ops.aten.convolution(x.to(dtype), weight.to(dtype), bias, *geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        packed, (weight,) = _kept(ctx)
        if g is None:
            return (None,) * 8
        needs, gathered = list(ctx.needs_input_grad[:3]), None
        if packed and needs[1] and ctx.way == "gather":
            gathered = _as_events(packed).weight_gradient(g.contiguous(memory_format=torch.channels_last), weight, ctx.window)
            needs[1] = False
        # without the weight's gradient only the form of x is read
        form: Any = {"dtype": ctx.dtype, "device": g.device}
        x = packed.unpack(ctx.dtype) if packed and needs[1] else torch.empty_strided(*ctx.x_form, **form)
        with torch.autocast(g.device.type, enabled=False):
            given = g, x, weight.to(ctx.dtype), ctx.bias_sizes, *ctx.geometry, needs
            gx, gw, gb = torch.ops.aten.convolution_backward(*given) if any(needs) else (None,) * 3
        return gx, gw if gathered is None else gathered, gb, *(None,) * 5  # autograd casts them to their dtypes


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        active: Tensor | None,
        bits: Tensor | None,
        choice: Choice,
        dtype: torch.dtype,
    ) -> Tensor:
        x2 = x.reshape(-1, x.shape[-1]).contiguous()
        packed = _pack(x2, dtype, bits)
        active = active if x.requires_grad and sparse.available() else None
        h = None if active is None else count(active) / max(x.numel(), 1)
        choice.decide(dtype, len(x2), weight.shape[1], weight.shape[0], _spikes(packed), h)
        _keep(ctx, packed if weight.requires_grad else None, weight, active if choice.input == "sample" else None)
        ctx.ways, ctx.dtype, ctx.shape = (choice.weight, choice.input), dtype, x.shape
        with torch.autocast(x.device.type, enabled=False):
            if choice.forward != "dense":
                return _added(packed, weight.to(dtype), bias, choice.forward, x.shape)
            return F.linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Any:
        packed, (weight, active) = _kept(ctx)
        if g is None:
            return (None,) * 7
        g = g.reshape(-1, g.shape[-1])
        (how, input), needs = ctx.ways, ctx.needs_input_grad
        gx = gw = gb = None
        with torch.autocast(g.device.type, enabled=False):
            if needs[0]:
                w = weight.to(ctx.dtype)
                gx = (sparse.sampled(g, w, active) if input == "sample" else g @ w).view(ctx.shape)
            if needs[1] and packed is not None:
                gw = _weight_gradient(packed, g, ctx.dtype, how)
            if needs[2]:
                gb = g.sum(0)
        return gx, gw, gb, *(None,) * 4


def _weight_gradient(packed: Packed, g: Tensor, dtype: torch.dtype, how: str) -> Tensor:
    if how == "dense":
        return g.t() @ packed.unpack(dtype)
    return _as_spikes(packed).weight_gradient(g.contiguous(), how)  # type: ignore[arg-type]
