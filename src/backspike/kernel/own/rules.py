"""Each operation that can be compiled: its C expression, and how a gradient goes back through it.

A gradient is the function (graph, g, y, *inputs) -> the gradients of the inputs, as nodes, where g
is the gradient of the result y. None: no gradient. They are those of torch's autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .graph import LEAVES, Graph

Gradient = Callable[..., tuple[int | None, ...]]


class Rule(NamedTuple):
    """An operation. condition: its result is true or false, and has no gradient."""

    c: str
    gradient: Gradient | None = None
    condition: bool = False


def _mul(n: Graph, g: int, y: int, a: int, b: int) -> tuple[int, int]:
    return n("mul", g, b), n("mul", g, a)


def _div(n: Graph, g: int, y: int, a: int, b: int) -> tuple[int, int]:
    by_a = n("div", g, b)
    return by_a, n("neg", n("mul", by_a, y))


def _pow(n: Graph, g: int, y: int, a: int, b: int) -> tuple[int, int]:
    one = n("number", 1)
    by_a = n("mul", g, n("mul", b, n("pow", a, n("sub", b, one))))
    return by_a, n("mul", g, n("mul", y, n("log", a)))


def _select(n: Graph, g: int, y: int, condition: int, *_: int) -> tuple[int | None, ...]:
    zero = n("number", 0)
    return None, n("where", condition, g, zero), n("where", condition, zero, g)


def _sharing(larger: str) -> Gradient:
    """Of maximum or minimum: equal inputs share the gradient."""

    def gradient(n: Graph, g: int, y: int, a: int, b: int) -> tuple[int, int]:
        zero, half = n("number", 0), n("div", g, n("number", 2))
        shared = n("where", n("eq", a, b), half, zero)
        return (
            n("where", n(larger, a, b), g, shared),
            n("where", n(larger, b, a), g, shared),
        )

    return gradient


def _factor(factor: Callable[[Graph, int, int], int]) -> Gradient:
    """Of an operation with one input: g times factor(graph, y, a)."""
    return lambda n, g, y, a: (n("mul", g, factor(n, y, a)),)


def _one_minus(n: Graph, a: int) -> int:
    return n("sub", n("number", 1), a)


def _of_tanh(n: Graph, y: int, a: int) -> int:
    return _one_minus(n, n("mul", y, y))


def _of_sigmoid(n: Graph, y: int, a: int) -> int:
    return n("mul", _one_minus(n, y), y)


def _of_rsqrt(n: Graph, y: int, a: int) -> int:
    return n("div", n("neg", n("mul", y, n("mul", y, y))), n("number", 2))


def _of_sqrt(n: Graph, g: int, y: int, a: int) -> tuple[int]:
    return (n("div", g, n("mul", n("number", 2), y)),)


def _of_atan(n: Graph, g: int, y: int, a: int) -> tuple[int]:
    return (n("div", g, n("add", n("mul", a, a), n("number", 1))),)


def _of_softplus(n: Graph, g: int, y: int, a: int) -> tuple[int]:
    return (n("where", n("gt", a, n("number", 20)), g, n("mul", g, n("sigmoid", a))),)


RULES = {
    "add": Rule("{0} + {1}", lambda n, g, y, a, b: (g, g)),
    "sub": Rule("{0} - {1}", lambda n, g, y, a, b: (g, n("neg", g))),
    "mul": Rule("{0} * {1}", _mul),
    "div": Rule("{0} / {1}", _div),
    "neg": Rule("-{0}", lambda n, g, y, a: (n("neg", g),)),
    "pow": Rule("NAME(pow)({0}, {1})", _pow),
    "exp": Rule("NAME(exp)({0})", _factor(lambda n, y, a: y)),
    "expm1": Rule("NAME(expm1)({0})", _factor(lambda n, y, a: n("add", y, n("number", 1)))),
    "log": Rule("NAME(log)({0})", lambda n, g, y, a: (n("div", g, a),)),
    "log1p": Rule(
        "NAME(log1p)({0})", lambda n, g, y, a: (n("div", g, n("add", a, n("number", 1))),)
    ),
    "sqrt": Rule("NAME(sqrt)({0})", _of_sqrt),
    "rsqrt": Rule("1 / NAME(sqrt)({0})", _factor(_of_rsqrt)),
    "sin": Rule("NAME(sin)({0})", _factor(lambda n, y, a: n("cos", a))),
    "cos": Rule("NAME(cos)({0})", _factor(lambda n, y, a: n("neg", n("sin", a)))),
    "tanh": Rule("NAME(tanh)({0})", _factor(_of_tanh)),
    "atan": Rule("NAME(atan)({0})", _of_atan),
    "sigmoid": Rule("NAME(sigmoid)({0})", _factor(_of_sigmoid)),
    "softplus": Rule("NAME(softplus)({0})", _of_softplus),
    "abs": Rule("NAME(abs)({0})", _factor(lambda n, y, a: n("sign", a))),
    "sign": Rule("(REAL)(({0} > 0) - ({0} < 0))", lambda n, g, y, a: (None,)),
    "floor": Rule("NAME(floor)({0})", lambda n, g, y, a: (None,)),
    "maximum": Rule("NAME(maximum)({0}, {1})", _sharing("gt")),
    "minimum": Rule("NAME(minimum)({0}, {1})", _sharing("lt")),
    "where": Rule("{0} ? {1} : {2}", _select),
    "detach": Rule("{0}", lambda n, g, y, a: (None,)),
    "real": Rule("(REAL){0}", lambda n, g, y, a: (None,)),
    **{
        name: Rule(f"{{0}} {sign} {{1}}", None, condition=True)
        for name, sign in (
            *(("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">=")),
            *(("eq", "=="), ("ne", "!="), ("and", "&"), ("or", "|"), ("xor", "^")),
        )
    },
    "not": Rule("!{0}", None, condition=True),
    # the surrogate derivatives, which only backward passes contain
    "base": Rule("NAME(h)(BASE, base_a, base_b, base_c, {0})"),
    "replacement": Rule("NAME(h)(REPLACEMENT, replacement_a, replacement_b, replacement_c, {0})"),
}


def is_condition(graph: Graph, i: int) -> bool:
    """Whether a node is true or false for each element."""
    op = graph.nodes[i][0]
    return op not in LEAVES and RULES[op].condition


def differentiate(graph: Graph, seeds: dict[int, int]) -> dict[int, int]:
    """The gradients of the leaves on which nodes depend. seeds: the gradients of those nodes."""
    total: dict[int, int] = dict(seeds)
    leaves: dict[int, int] = {}
    for i in range(max(seeds, default=-1), -1, -1):
        g = total.pop(i, None)
        if g is None:
            continue
        op: Any = graph.nodes[i][0]
        if op in LEAVES:
            leaves[i] = g
        elif (gradient := RULES[op].gradient) is not None:
            inputs = graph.inputs(i)
            for a, g_a in zip(inputs, gradient(graph, g, i, *inputs)):
                if g_a is not None and not is_condition(graph, a):
                    total[a] = graph("add", total[a], g_a) if a in total else g_a
    return leaves
