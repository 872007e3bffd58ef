"""Neurons with equations of their own in Triton: a backend of `kernel/own`, asked for by name.

A recording goes to the kernels of own_kernels.py as tuples of constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ...errors import Unsupported
from .. import ops
from ..call import Call
from ..coefficients import state_dtype
from ..own.backward import Backward, Options, inputs, needed, rows
from ..own.c import Layer
from ..own.graph import LEAVES, Graph
from ..own.plan import Gradients, Outputs, Plan, Saved
from ..own.trace import Trace
from . import step
from .lif import Grid, launch, on_device
from .own_kernels import own_backward, own_forward
from .step import INTERPRETED

BLOCK = 256
# operations without a function in Triton that its interpreter has as well
LACKS = {"tanh", "atan", "expm1", "log1p", "pow", "softplus"}


class Program(NamedTuple):
    """Operations on leaves, as own_kernels.py takes them."""

    leaves: tuple[tuple[Any, ...], ...]
    leaf_count: int
    operations: tuple[tuple[Any, ...], ...]
    length: int
    results: Any  # places of results among the values


class Programs(NamedTuple):
    """What the kernels of a layer compute."""

    forward: Program  # results: u, the spike, what is saved, the states after
    saved: int  # rows that the backward pass needs
    before: Program | None = None
    slopes: Program | None = None
    retreat: Program | None = None


class _Grid(Grid):
    """BLOCK adjacent elements of a timestep for each program."""

    def __init__(self, N: int) -> None:
        super().__init__((1, N), (1,), tiled=False)
        self.broken = []  # a failure says nothing of other equations
        self.rows, self.programs = BLOCK, triton.cdiv(N, BLOCK)


def check(call: Call) -> None:
    """Raise Unsupported for what no kernel can do."""
    kind = "cpu" if INTERPRETED.value else "cuda"
    if call.x.device.type != kind:
        raise Unsupported(f"it runs on {kind} here, but the input is on {call.x.device}")
    if torch.compiler.is_compiling():
        raise Unsupported("torch.compile compiles them")
    if (name := ops.without_formula(call.neuron, step.CASES)) is not None:
        raise Unsupported(f"there is no formula in Triton for {name}")


@lru_cache(maxsize=256)
def _forward_program(trace: Trace, saves: tuple[bool, ...]) -> Program:
    graph = Graph(trace.nodes)
    spike, kept = graph("spike", 0), [row for row, saved in zip(rows(trace), saves) if saved]
    targets = [trace.u, spike, *kept, *trace.after]
    program, at = _lowered(graph, trace, targets, {})
    results = at[trace.u], at[spike], _places(at, kept), _places(at, trace.after)
    return program._replace(results=results)


def functions(layer: Layer, options: Options, back: Backward | None) -> Programs:
    """The programs of both directions. Raises Unsupported for an operation that Triton lacks."""
    trace = layer.trace
    if back is None:
        return Programs(_forward_program(trace, (False,) * len(rows(trace))), 0)
    graph = back.graph
    kept = [row for row, saved in zip(back.rows, back.saved) if saved]
    slots = {row: slot for slot, row in enumerate(kept)}
    before = slopes = None
    if back.before:
        before, at = _lowered(graph, trace, [trace.after[i] for i in back.before], slots)
        places = [trace.after[i] if i in back.before else None for i in range(len(trace.after))]
        before = before._replace(results=_places(at, places))
    if back.own is not None:
        wanted = [back.own, *([] if back.full is None else [back.full])]
        slopes, at = _lowered(graph, trace, wanted, slots)
        slopes = slopes._replace(results=_places(at, wanted))
    wanted = [i for i in (back.gx, *back.terms, *back.states) if i is not None]
    retreat, at = _lowered(graph, trace, wanted, slots)
    (gx,) = _places(at, [back.gx])
    retreat = retreat._replace(results=(gx, _places(at, back.terms), _places(at, back.states)))
    forward = _forward_program(trace, tuple(back.saved))
    return Programs(forward, len(kept), before, slopes, retreat)


def _lowered(
    graph: Graph, trace: Trace, targets: Iterable[int], slots: Mapping[int, int]
) -> tuple[Program, dict[int, int]]:
    """The program that computes nodes from leaves and saved rows, and the place of each node."""
    order = sorted(needed(graph, trace, targets, slots))
    is_leaf = {i: i in slots or graph.nodes[i][0] in LEAVES - {"middle", "spike"} for i in order}
    leaves = [i for i in order if is_leaf[i]]
    at = {i: place for place, i in enumerate(leaves)}
    operations: list[tuple[Any, ...]] = []
    for i in order:
        if is_leaf[i]:
            continue
        op, of = graph.nodes[i][0], [at[a] for a in inputs(graph, trace, i)]
        if op == "middle":
            at[i] = of[0]
            continue
        if op in LACKS:
            raise Unsupported(f"there is no rule in Triton for {op}")
        at[i] = len(leaves) + len(operations)
        operations.append((op, *of, *[-1] * (3 - len(of))))
    specs = tuple(("kept", slots[i]) if i in slots else graph.nodes[i] for i in leaves)
    return Program(specs, len(specs), tuple(operations), len(operations), None), at


def _places(at: Mapping[int, int], nodes: Iterable[int | None]) -> tuple[int, ...]:
    return tuple(-1 if i is None else at[i] for i in nodes)


# ---------------------------------------------------------------------------------------- launching


def _common(plan: Plan, table: Tensor, shape: torch.Size, p: Tensor | None) -> dict[str, Any]:
    """The arguments of both kernels."""
    numbers = [plan.numbers[1], 1.0 if p is None else 1 - float(p)]
    for surrogate in ops.surrogates(tuple(plan.flags), tuple(plan.numbers)):
        numbers += [0.0] * 3 if surrogate is None else (*surrogate.constants(), 0.0, 0.0)[:3]
    return {
        "p_table": table.contiguous(),
        "p_numbers": on_device(tuple(numbers), table.dtype, table.device),
        "T": shape[0],
        "N": math.prod(shape[1:]),
        "C": shape[2] if len(shape) > 2 else 1,
        "area": math.prod(shape[3:]),
        "VARIES": plan.layer.varies,
        "COEFFICIENTS": len(plan.layer.varies),
        "STRIDE": table.shape[1] > 1,
        "REST": plan.layer.rest,
        "STATES": len(plan.layer.rest),
    }


def forward(plan: Plan, x: Tensor, v0: Tensor | None, table: Tensor, masked: bool) -> Outputs:
    """The outputs for x `[T, B, ...]` and the first states, or None at rest."""
    record, dtype, x = plan.record, state_dtype(x), x.contiguous()
    table = table.to(x.device)
    membrane, kept, state = None, None, x.new_empty(0, dtype=dtype)
    if record.membrane or record.moments:
        membrane = torch.empty_like(x, dtype=dtype)
    if record.state:
        state = x.new_empty((len(plan.layer.rest), *x.shape[1:]), dtype=dtype)
    if any(plan.saves):
        kept = x.new_empty((sum(plan.saves), x.numel()), dtype=dtype)
    out = Outputs(torch.empty_like(x), membrane, state, kept)
    _forward(plan, x, v0, table, out)
    return out


def _forward(plan: Plan, x: Tensor, v0: Tensor | None, table: Tensor, out: Outputs) -> None:
    launch(
        own_forward,
        _Grid(math.prod(x.shape[1:])),
        **_common(plan, table, x.shape, None),
        p_x=x,
        p_v0=None if v0 is None else v0.contiguous(),
        p_s=out.spikes,
        p_u=out.membrane,
        p_v=out.state if out.state.numel() else None,
        p_kept=out.kept,
        PROGRAM=tuple(plan.functions.forward),
        SLOTS=0 if out.kept is None else len(out.kept),
    )


def backward(
    plan: Plan, saved: Saved, g: Tensor | None, g_u: Tensor | None, g_state: Tensor | None
) -> Gradients:
    """The gradients of x, of the first states and of the learned coefficients."""
    x, v0, kept, table, seed, p, shape, *_ = saved
    programs, learned = plan.functions, plan.options.learned
    like = next(a for a in (g, g_u, g_state) if a is not None)
    table = table.to(like.device)
    if plan.recomputes:
        assert x is not None
        x = x.contiguous()
        kept = x.new_empty((programs.saved, x.numel()), dtype=table.dtype)
        again = Outputs(torch.empty_like(x), None, x.new_empty(0, dtype=table.dtype), kept)
        _forward(plan, x, v0, table, again)
    gx = torch.empty(shape, dtype=saved.dtype, device=like.device) if saved.needs_x else None
    states = len(plan.layer.rest), *shape[1:]
    g_v0 = torch.empty(states, dtype=table.dtype, device=like.device) if saved.needs_v0 else None
    N = math.prod(shape[1:])
    sums = torch.zeros(len(learned), N, dtype=torch.float64, device=like.device)
    base, other = ops.surrogates(tuple(plan.flags), tuple(plan.numbers))
    at_rest = tuple(
        learned.index(i) if saved.at_rest and i in learned else -1 for i in plan.layer.rest
    )
    launch(
        own_backward,
        _Grid(N),
        **_common(plan, table, shape, p),
        p_seed=seed,
        p_p=None if p is None else p.to(like.device),
        p_x=None if x is None else x.contiguous(),
        p_v0=None if v0 is None else v0.contiguous(),
        p_kept=kept,
        p_g=None if g is None else g.contiguous(),
        p_gu=None if g_u is None else g_u.contiguous(),
        p_gv=None if g_state is None else g_state.contiguous(),
        p_gx=gx,
        p_gv0=g_v0,
        p_sums=sums,
        AT_REST=at_rest,
        SLOTS=programs.saved,
        LEARNED=len(learned),
        BEFORE=_tuple(programs.before),
        SLOPES=_tuple(programs.slopes),
        RETREAT=_tuple(programs.retreat),
        TEMPORAL=bool(plan.flags[2]),
        RESCALE=bool(plan.flags[3]),
        FAMILY=type(base).__name__,
        OTHER=type(other).__name__ if plan.options.replacement else None,
    )
    sample = shape[2] if len(shape) > 2 else 1, math.prod(shape[3:])
    sums = sums.view(len(learned), shape[1], *sample).sum((1, 3))  # [learned, C]
    total = sums.sum(1, keepdim=True)
    if table.shape[1] == 1:
        return Gradients(gx, g_v0, total)
    varies = torch.tensor([[plan.layer.varies[i]] for i in learned], device=like.device)
    return Gradients(gx, g_v0, torch.where(varies, sums, total) if learned else sums)


def _tuple(program: Program | None) -> tuple[Any, ...] | None:
    return None if program is None else tuple(program)
