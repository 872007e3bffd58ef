"""The backward pass of one timestep, as more nodes, and what the forward pass saves for it.

It is that of `kernel/equations.py`: with c the gradients of the states after the timestep, those of
the spike in `reset` and `adapt` and of the states before the reset follow from the first two
methods, then

    G = g + (of adapt's spike) + rho (of reset's spike)        du = G h + gu

and the gradients of x, of the states and of the coefficients from `step`. Of the spike variable and
the states before the reset, the forward pass saves only those from which the rest of what the
backward pass needs can be computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from .graph import Graph
from .rules import differentiate
from .trace import Trace

THRESHOLD = 0  # its place among the coefficients


class Options(NamedTuple):
    """What the backward pass must provide."""

    learned: tuple[int, ...] = ()  # coefficients with gradients
    width: int = -1  # the coefficient that is the width of the surrogate, or -1
    attached: bool = False  # whether gradient flows through the spike in `reset`
    direct: bool = False  # whether the membrane has a gradient of its own
    base: int = 0  # the codes of the surrogates
    replacement: int = 0
    masked: bool = False


class Backward(NamedTuple):
    """The nodes of the results, None for those that are 0, and what they need."""

    graph: Graph
    gx: int | None
    states: list[int | None]  # the gradients of the states before
    terms: list[int | None]  # of the gradients of the learned coefficients
    rows: list[int]  # that the forward pass computes: u, and the states before the reset
    saved: list[bool]  # which of them it saves
    needs_x: bool
    before: tuple[int, ...]  # which of the states before the timestep are needed
    own: int | None  # with a mask: the base surrogate's derivative
    full: int | None  # and that of its replacement


def rows(trace: Trace) -> list[int]:
    """The spike variable and the states before the reset, each once."""
    return list(dict.fromkeys((trace.u, *trace.middle)))


def inputs(graph: Graph, trace: Trace, i: int) -> tuple[int, ...]:
    """The nodes from which a node is computed in the backward pass."""
    op, *of = graph.nodes[i]
    if op == "middle":
        return (trace.middle[of[0]],)
    if op == "spike":
        return trace.u, graph("coefficient", THRESHOLD)
    return graph.inputs(i)


def needed(graph: Graph, trace: Trace, targets: Iterable[int], known: Iterable[int]) -> set[int]:
    """The nodes from which the targets are computed if some are known."""
    known, found, open_ = set(known), set(), list(targets)
    while open_:
        i = open_.pop()
        if i not in found:
            found.add(i)
            open_ += [] if i in known else inputs(graph, trace, i)
    return found


@lru_cache(maxsize=256)
def uses_only_arguments(trace: Trace) -> bool:
    """Whether reset and adapt use nothing that `step` computed but their arguments."""
    graph = Graph(trace.nodes)
    known = {trace.u, *(graph("middle", i) for i in range(len(trace.middle)))}
    found = needed(graph, trace, trace.after, known) - known
    return not any(graph.nodes[i][0] in ("x", "state") for i in found)


def differentiated(trace: Trace, options: Options) -> Backward:
    """The backward pass of a timestep."""
    n, u = Graph(trace.nodes), trace.u
    ends = _summed(n, [(a, n("c", i)) for i, a in enumerate(trace.after)])
    theta = n("coefficient", THRESHOLD)
    z = n("sub", u, theta)
    width = n("coefficient", options.width) if options.width >= 0 else None
    own = n("base", z) if width is None else n("div", n("base", n("div", z, width)), width)
    full = n("replacement", z) if options.replacement else None
    h, h_base = (n("h"), n("own")) if options.masked else (own, own)
    found = differentiate(n, ends)
    total = n("g")
    if (of_adapt := found.get(n("spike", 1))) is not None:
        total = n("add", total, of_adapt)
    if options.attached and (of_reset := found.get(n("spike", 0))) is not None:
        total = n("add", total, n("mul", n("rho"), of_reset))
    du = n("mul", total, h)
    seeds = [(u, du)] + ([(u, n("gu"))] if options.direct else [])
    for i, m in enumerate(trace.middle):
        if (g := found.get(n("middle", i))) is not None:
            seeds.append((m, g))
    leaves = differentiate(n, _summed(n, seeds))
    terms = [
        _sum(n, [a for a in (found.get(k), leaves.get(k)) if a is not None])
        for k in (n("coefficient", i) for i in options.learned)
    ]
    for place, i in enumerate(options.learned):
        if i == THRESHOLD:
            terms[place] = _sum(n, [a for a in (terms[place], n("neg", du)) if a is not None])
        if i == options.width:
            terms[place] = n(
                "mul", n("neg", n("mul", n("div", z, n("coefficient", i)), total)), h_base
            )
    states = [leaves.get(n("state", i)) for i in range(len(trace.middle))]
    gx = leaves.get(n("x"))
    saved = _saved(n, trace, [gx, *states, *terms])
    slopes = (own, full) if options.masked else (None, None)
    return Backward(n, gx, states, terms, rows(trace), *saved, *slopes)


def _sum(n: Graph, parts: Sequence[int]) -> int | None:
    if not parts:
        return None
    total, *rest = parts
    for part in rest:
        total = n("add", total, part)
    return total


def _summed(n: Graph, pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    out: dict[int, int] = {}
    for i, g in pairs:
        out[i] = n("add", out[i], g) if i in out else g
    return out


def _saved(
    n: Graph, trace: Trace, results: Sequence[int | None]
) -> tuple[list[bool], bool, tuple[int, ...]]:
    """Which rows are saved, and whether x and the states before the timestep are needed."""
    all_rows, targets = rows(trace), [i for i in results if i is not None]
    known = set(all_rows)
    for row in all_rows:
        rest = known - {row}
        if not {n.nodes[i][0] for i in needed(n, trace, [row], rest) - rest} & {"x", "state"}:
            known = rest  # it can be computed from the others
    found = needed(n, trace, [trace.u, *targets], known)
    raw = {n.nodes[i] for i in found - known}
    before = tuple(i for i in range(len(trace.after)) if ("state", i) in raw)
    found |= needed(n, trace, [trace.after[i] for i in before], known)
    saved = [row in known & found for row in all_rows]
    return saved if any(saved) else [True, *saved[1:]], ("x",) in raw, before
