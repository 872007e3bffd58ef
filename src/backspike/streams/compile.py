"""Turn a network and the shape of a timestep into steps: C programs, and modules that are called.

A buffer holds a timestep `[B, height, width, channels]`; torch sees it as `[B, channels, ...]`.
Weights and constants are copied, with BatchNorm folded in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..kernel import ops
from ..kernel.coefficients import rest
from ..kernel.cpu.stream import Program, Window
from ..layers.block import Block
from ..layers.dropout import Dropout
from ..layers.mpbn import MPBN
from ..layers.over_time import BATCH_NORMS, OverTime, fold_norm
from ..layers.sequential import Sequential
from ..models.plain import PlainNet
from ..models.residual import Basic, Bottleneck, MSBasic, ResNet, SEWBasic, SEWBottleneck
from ..neuron.cuba import CubaLIF
from ..neuron.hooks import has_hooks
from ..neuron.integrator import Integrator
from ..neuron.lif import IF, LIF, PLIF
from ..neuron.recurrent import Recurrent
from ..neuron.streaming import Streaming
from .trace import Step, trace

NEURONS = (LIF, IF, PLIF, CubaLIF, MPBN)
SYNAPSES = (nn.Linear, nn.Conv1d, nn.Conv2d)
AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
POOLS = (*AVERAGES, nn.MaxPool1d, nn.MaxPool2d)
RESIDUAL = (Basic, Bottleneck, SEWBasic, SEWBottleneck, MSBasic)
# in evaluation
SKIPPED = (nn.Identity, Dropout, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
IN_C, NO_C = "in C", "there is no C for it"


@dataclass(frozen=True)
class Value:
    """A buffer and what it holds.

    shape: of a sample, channels first. order: of a flattened value, where each element of a sample
    is in the buffer; None: in its own place.
    """

    data: Tensor
    shape: tuple[int, ...]
    order: Tensor | None = None

    @property
    def view(self) -> Tensor:
        """The buffer as torch's `[B, channels, ...]`."""
        if not self.shape:
            return self.data.view(-1)
        channels, *space = self.shape
        return self.data.view(len(self.data), *space, channels).movedim(-1, 1)


@dataclass(frozen=True)
class Called:
    """A module that is called as in `bs.streaming`, on an input with or without the time axis."""

    module: nn.Module
    x: Value
    y: Value
    over_time: bool

    def run(self) -> None:
        self.y.view.copy_(call(self.module, self.x.view, self.over_time))


def rest_layers(module: nn.Module) -> None:
    """Let spiking layers inside start from rest and then carry their state from call to call."""
    for m in module.modules():
        if isinstance(m, Streaming):
            m.streams, m.detaches, m.carried = True, True, None


def call(module: nn.Module, x: Tensor, over_time: bool) -> Tensor:
    """The module's output for one timestep x `[B, ...]`, without gradients."""
    x = x.contiguous()
    with torch.no_grad():
        y = module(x) if over_time else module(x[None])
    if not isinstance(y, Tensor):
        raise TypeError(f"a {type(module).__name__} must return a tensor, got {type(y).__name__}")
    return y if over_time else y[0]


class Whole:
    """A network that is called as a whole."""

    def __init__(self, model: nn.Module, why: str) -> None:
        self.model = model
        self.lines = [("(model)", type(model).__name__, f"called: {why}")]

    def run(self, x: Tensor) -> Tensor:
        return call(self.model, x, False)

    def reset(self) -> None:
        rest_layers(self.model)


class Compiled:
    """A network compiled for timesteps of the shape and type of x `[B, ...]`.

    lines: name, kind and way of each layer. rests: the states, each with its value at rest.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.names = {m: name or "(model)" for name, m in model.named_modules()}
        self.batch, self.dtype = len(x), x.dtype
        self.steps: list[Program | Called] = [Program(x.dtype)]
        self.lines: list[tuple[str, str, str]] = []
        self.rests: list[tuple[Tensor, float]] = []
        first = self.buffer(tuple(x.shape[1:]))
        self.program.add("pick", None, first.data, pick=_channels_last(first.shape))
        self.output = self.in_place(self.chain([(model, False)], first)).view
        for step in self.steps:
            if isinstance(step, Program):
                step.prepare()

    def run(self, x: Tensor) -> Tensor:
        """The output `[B, ...]` for the next timestep x."""
        first, *others = self.steps
        assert isinstance(first, Program)
        first.run(x.contiguous())
        for step in others:
            step.run()
        return self.output.clone()

    def reset(self) -> None:
        for state, value in self.rests:
            state.fill_(value)
        for step in self.steps:
            if isinstance(step, Called):
                rest_layers(step.module)

    # ---- buffers and programs --------------------------------------------------------------------

    @property
    def program(self) -> Program:
        """The program that the next operation goes to."""
        if not isinstance(self.steps[-1], Program):
            self.steps.append(Program(self.dtype))
        last = self.steps[-1]
        assert isinstance(last, Program)
        return last

    def buffer(self, shape: tuple[int, ...]) -> Value:
        channels, *space = shape or (1,)
        size = math.prod(space[:-1]), math.prod(space[-1:]), channels
        return Value(torch.zeros(self.batch, *size, dtype=self.dtype), shape)

    def state(self, like: Tensor, value: float) -> Tensor:
        state = torch.empty_like(like)
        self.rests.append((state, value))
        return state

    def note(self, m: nn.Module, way: str) -> None:
        self.lines.append((self.names.get(m, ""), type(m).__name__, way))

    # ---- the walk --------------------------------------------------------------------------------

    def chain(self, layers: Iterable[tuple[nn.Module | None, bool]], value: Value) -> Value:
        """Run layers in turn. With each: whether it takes a timestep without the time axis."""
        parts = [part for m, over_time in layers for part in _parts(m, over_time)]
        for m, over_time, norm in _with_norms(parts):
            value = self.walk(m, over_time, norm, value)
        return value

    def walk(self, m: nn.Module, over_time: bool, norm: nn.Module | None, value: Value) -> Value:
        """Run a module. norm: the BatchNorm behind a synaptic layer."""
        kind: Any = type(m)
        if kind in SKIPPED and not has_hooks(m):
            return value
        why = self.why_called(m, over_time, value)
        if why == NO_C and not over_time and (found := _trace(m)):
            return self.own_forward(m, *found, value)
        if why:
            value = self.call(m, over_time, value, why)
            return value if norm is None else self.norm(norm, value)
        if kind in SYNAPSES:
            return self.synapse(m, norm, value)
        if kind in BATCH_NORMS:
            return self.norm(m, value)
        if kind in POOLS:
            return self.pool(m, value)
        if kind is nn.Flatten:
            self.note(m, "nothing to do")
            return _flat(value)
        if kind is Recurrent:
            return self.recurrent(m, value)
        if kind is ResNet:
            return self.resnet(m, value)
        return self.residual(m, value) if kind in RESIDUAL else self.neuron(m, value)

    def why_called(self, m: Any, over_time: bool, value: Value) -> str:
        """Why a module is called; "" if it runs in C."""
        kind = type(m)
        if has_hooks(m):
            return "it has hooks"
        if kind in RESIDUAL or kind is ResNet:
            return ""
        if kind in (*NEURONS, Integrator, Recurrent):
            return self.why_no_neuron(m, value)
        if kind in SYNAPSES and (over_time or kind is nn.Linear):
            return self.why_no_synapse(m, value)
        if kind in POOLS and over_time:
            return why_no_pool(m, value)
        if kind is nn.Flatten and over_time and (m.start_dim, m.end_dim) == (1, -1):
            return ""
        return "" if over_time and _folds(m) else NO_C

    def resnet(self, m: Any, value: Value) -> Value:
        stem, *head = m.spiking_blocks()
        stages = [(m.get_submodule(f"layer{i + 1}"), False) for i in range(m.stages)]
        return self.chain([*_layers([stem]), *stages, *_layers(head)], value)

    def residual(self, m: Any, value: Value) -> Value:
        blocks = list(m.spiking_blocks())
        # where currents are added before a last neuron, that one runs after the addition
        after = [blocks.pop()] if isinstance(m, Basic | Bottleneck) else []
        shortcut = [] if m.downsample is None else m.downsample.spiking_blocks()
        around = self.chain(_layers(shortcut), value)
        inside = self.chain(_layers(blocks), value)
        return self.chain(_layers(after), self.sum(m, inside, around))

    def own_forward(self, m: nn.Module, steps: Sequence[Step], last: int, value: Value) -> Value:
        """Run what `trace` found in a module."""
        values = [value]
        for layer, inputs in steps:
            a, b = values[inputs[0]], values[inputs[-1]]
            values.append(self.sum(m, a, b) if layer is None else self.chain([(layer, False)], a))
        return values[last]

    def sum(self, m: nn.Module, a: Value, b: Value) -> Value:
        """a + b, an addition in m."""
        a, b = self.in_place(a), self.in_place(b)
        if a.shape != b.shape:
            raise ValueError(
                f"{self.names.get(m, '')} ({type(m).__name__}) adds timesteps of the shapes "
                f"{list(a.shape)} and {list(b.shape)}; bs.stream adds equal shapes only"
            )
        y = self.buffer(a.shape)
        self.program.add("add", a.data, y.data, other=b.data)
        self.note(m, f"{IN_C}: an addition")
        return y

    def call(self, m: nn.Module, over_time: bool, value: Value, why: str) -> Value:
        value = self.in_place(value)
        rest_layers(m)
        y = self.buffer(tuple(call(m, value.view, over_time).shape[1:]))
        self.steps.append(Called(m, value, y, over_time))
        self.note(m, f"called: {why}")
        return y

    def in_place(self, value: Value) -> Value:
        """The value with every element in its own place."""
        if value.order is None:
            return value
        y = self.buffer(value.shape)
        self.program.add("pick", value.data, y.data, pick=value.order)
        return y

    # ---- layers in C -----------------------------------------------------------------------------

    def why_no_synapse(self, m: Any, value: Value) -> str:
        """Why a convolution or linear layer is called; "" if it is not."""
        if type(m.weight) not in (Tensor, nn.Parameter) or m.weight.dtype != self.dtype:
            return "its weight is not a plain tensor of the type of the input"
        if not m.weight.isfinite().all():
            return "a weight is not finite"
        if len(value.shape) != {nn.Linear: 1, nn.Conv1d: 2, nn.Conv2d: 3}[type(m)]:
            return f"a timestep of a sample has the shape {list(value.shape)}"
        if isinstance(m, nn.Linear):
            return "" if m.in_features == value.shape[0] else "its input has another size"
        if m.padding_mode != "zeros" or isinstance(m.padding, str):
            return "it pads with something else than a number of zeros"
        return ""

    def synapse(self, m: Any, norm: Any, value: Value, other: Tensor | None = None) -> Value:
        value = value if isinstance(m, nn.Linear) else self.in_place(value)
        weight = m.weight.detach().double()
        bias = None if m.bias is None else m.bias.detach().double()
        if norm is not None:
            weight, bias = fold_norm(weight, bias, copy.deepcopy(norm).double())
        if value.order is not None:
            weight = torch.empty_like(weight).index_copy_(1, value.order.long(), weight)
        weight = weight.view(*weight.shape[:2], *[1] * (4 - weight.dim()), *weight.shape[2:])
        y = self.buffer(self.shape_after(m, value))
        self.program.add_synapse(
            value.data,
            y.data,
            _weight(weight, getattr(m, "groups", 1)).to(self.dtype),
            None if bias is None else bias.to(self.dtype),
            _window(m),
            getattr(m, "groups", 1),
            other,
        )
        self.note(m, f"{IN_C}, from nonzero inputs")
        if norm is not None:
            self.note(norm, f"folded into {self.names.get(m, type(m).__name__)}")
        return y

    def norm(self, m: Any, value: Value) -> Value:
        value = self.in_place(value)
        ones = torch.ones(value.shape[0], 1, dtype=torch.float64)
        a, b = fold_norm(ones, None, copy.deepcopy(m).double())
        y = self.buffer(value.shape)
        a, b = (p.detach().flatten().to(self.dtype) for p in (a, b))
        self.program.add("scale", value.data, y.data, weight=a, bias=b)
        self.note(m, IN_C)
        return y

    def pool(self, m: Any, value: Value) -> Value:
        value = self.in_place(value)
        y = self.buffer(self.shape_after(m, value))
        average, adaptive = type(m) in AVERAGES, hasattr(m, "output_size")
        _, height, width, _ = value.data.shape
        window = Window((height, width)) if adaptive else _window(m)
        inside = adaptive or not average or not m.count_include_pad
        self.program.add(
            "average" if average else "maximum",
            value.data,
            y.data,
            window,
            divisor=getattr(m, "divisor_override", None)
            or (0 if inside else math.prod(window.kernel)),
        )
        self.note(m, IN_C)
        return y

    def shape_after(self, m: nn.Module, value: Value) -> tuple[int, ...]:
        """The shape of a sample after a layer. Raises torch's error for an input that is wrong."""
        return tuple(m(torch.zeros(1, *value.shape, dtype=self.dtype)).shape[1:])

    # ---- neurons in C ----------------------------------------------------------------------------

    def why_no_neuron(self, m: Any, value: Value) -> str:
        """Why a neuron, an integrator or a recurrent layer is called; "" if it is not."""
        if isinstance(m, Recurrent):
            if type(m.neuron) not in NEURONS or type(m.layer) not in SYNAPSES:
                return f"no C for a {type(m.neuron).__name__} behind a {type(m.layer).__name__}"
            if has_hooks(m.layer) or has_hooks(m.neuron):
                return "it has hooks"
            return self.why_no_synapse(m.layer, value) or self.why_no_neuron(m.neuron, value)
        if m.backend not in ("auto", "cpu"):
            return f"backend {m.backend!r} was requested"
        if len(getattr(m, "shape", ())) > 1:
            return "its constants differ from neuron to neuron"
        if isinstance(m, MPBN) and not m.folds():
            return "its norm cannot be folded into the threshold"
        return ""

    def neuron(self, m: Any, value: Value, spikes: Value | None = None) -> Value:
        """Run a neuron or an integrator. spikes: the buffer for them; None: a new one."""
        value = self.in_place(value)
        x = value.view[None]
        if isinstance(m, Integrator):
            y = self.integrate(ops.constants(m.prepare(x, None)), value)
        else:
            if isinstance(m, CubaLIF):
                lam, gain, _ = m.synapse(x, None)
                table = ops.constants_table((lam, 0.0, gain, math.inf, 1.0), self.dtype, x.device)
                value = self.integrate(table, value)
            c = m.constants()
            if isinstance(m, MPBN):
                c = c._replace(v_threshold=m.folded_threshold())
            table = ops.constants(m.prepare(x, None, constants=c))
            y = spikes or self.buffer(value.shape)
            v = self.state(y.data, rest(m.options.v_reset))
            self.program.add_neuron("neuron", value.data, y.data, v, table, m.options.v_reset)
        self.note(m, IN_C)
        return y

    def integrate(self, table: Tensor, value: Value) -> Value:
        y = self.buffer(value.shape)
        v = self.state(y.data, 0.0)
        self.program.add_neuron("integrator", value.data, y.data, v, table, None)
        return y

    def recurrent(self, m: Any, value: Value) -> Value:
        value = self.in_place(value)
        spikes = self.buffer(value.shape)
        self.rests.append((spikes.data, 0.0))  # of the last timestep, until the neurons run
        current = self.synapse(m.layer, None, spikes, other=value.data)
        if current.shape != value.shape:
            raise ValueError(
                f"Recurrent: layer must keep the shape of a timestep {list(value.shape)}, "
                f"got {list(current.shape)}"
            )
        return self.neuron(m.neuron, current, spikes)


def why_no_pool(m: Any, value: Value) -> str:
    """Why a pool is called; "" if it is not."""
    if len(value.shape) != (2 if type(m).__name__.endswith("1d") else 3):
        return f"a timestep of a sample has the shape {list(value.shape)}"
    if hasattr(m, "output_size"):
        return "" if m.output_size in (1, (1,), (1, 1)) else "it pools to more than one pixel"
    if m.ceil_mode:
        return "ceil_mode"
    return "it returns indices" if getattr(m, "return_indices", False) else ""


# ---- shapes --------------------------------------------------------------------------------------


def _parts(m: nn.Module | None, over_time: bool) -> list[tuple[nn.Module, bool]]:
    """The layers of a module that runs them one after the other, or the module itself."""
    if m is None:
        return []
    if has_hooks(m):
        return [(m, over_time)]
    if type(m) in (nn.Sequential, Sequential, OverTime) and isinstance(m, nn.Sequential):
        inside = over_time or type(m) is OverTime
        return [part for child in m for part in _parts(child, inside)]
    if type(m) is PlainNet:
        return [*_parts(m.features, False), *_parts(m.classifier, False)]
    return [(m, over_time)]


def _layers(blocks: Sequence[Block]) -> list[tuple[nn.Module | None, bool]]:
    """The layers of blocks, which run without the time axis, and their neurons."""
    return [
        (m, m is not block.neuron)
        for block in blocks
        for m in (block.product, block.norm, block.neuron, block.pool)
    ]


def _trace(m: nn.Module) -> tuple[list[Step], int] | None:
    """What a module with layers in it does; None for a layer of torch, or one with a state."""
    known = type(m).__module__.startswith("torch.") or isinstance(m, Streaming)
    return None if known or not any(m.children()) else trace(m)


def _with_norms(
    parts: Sequence[tuple[nn.Module, bool]],
) -> list[tuple[nn.Module, bool, nn.Module | None]]:
    """Each layer with the BatchNorm that is to be folded into it, or None."""
    out: list[tuple[nn.Module, bool, nn.Module | None]] = []
    for m, over_time in parts:
        if out and over_time and _folds(m) and out[-1][2] is None and type(out[-1][0]) in SYNAPSES:
            out[-1] = (*out[-1][:2], m)
        else:
            out.append((m, over_time, None))
    return out


def _folds(norm: Any) -> bool:
    """Whether this is a BatchNorm that is the same function of every input."""
    return type(norm) in BATCH_NORMS and not has_hooks(norm) and norm.running_mean is not None


def _channels_last(shape: tuple[int, ...]) -> Tensor | None:
    """Where a contiguous sample of this shape has each element of a buffer; None: in its place."""
    where = torch.arange(math.prod(shape), dtype=torch.int32)
    moved = where.view(shape).movedim(0, -1).flatten()
    return None if torch.equal(moved, where) else moved


def _flat(value: Value) -> Value:
    """nn.Flatten: the same buffer, whose elements are then in another order."""
    if len(value.shape) == 1:
        return value
    channels, *space = value.shape
    where = torch.arange(math.prod(value.shape), dtype=torch.int32)
    order = where.view(*space, channels).movedim(-1, 0).flatten()
    data = value.data.view(len(value.data), 1, 1, -1)
    return Value(data, (len(where),), None if torch.equal(order, where) else order)


def _weight(weight: Tensor, groups: int) -> Tensor:
    """torch's `[outputs, channels / groups, kernel_h, kernel_w]` as the C program reads it."""
    by_group = weight.unflatten(0, (groups, -1))  # [groups, each, inputs, kernel_h, kernel_w]
    return by_group.permute(3, 4, 0, 2, 1).flatten(2, 3)


def _window(m: nn.Module) -> Window:
    """The window of a layer; that of a linear layer is one pixel."""
    pad = _pair(m, "padding", 0)
    return Window(_pair(m, "kernel_size"), _pair(m, "stride"), pad, _pair(m, "dilation"))


def _pair(m: nn.Module, option: str, default: int = 1) -> tuple[int, int]:
    """An option of a layer for height and width; with one dimension, the default for height."""
    value: Any = getattr(m, option, default)
    pair = tuple(value) if isinstance(value, tuple) else (value, value)
    return (default, pair[0]) if type(m).__name__.endswith("1d") else (pair[0], pair[1])
