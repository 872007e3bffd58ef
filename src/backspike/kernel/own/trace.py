"""Recording what the methods of a neuron do with one timestep, by proxies of torch.fx.

The constants are tensors while this happens, with their graph of autograd. What the methods compute
from constants alone is therefore computed by torch, once per call; only operations on rows, the
input and the states, are recorded. Whatever tensor meets a row is a coefficient of the recording.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.nn import functional

from ...errors import Unsupported
from .graph import Graph, Node
from .rules import is_condition

LONGEST = 1000  # operations of a timestep, whose values are on the stack
SMALL = 1 << 20  # integers below are written into the code, others are coefficients


class Trace(NamedTuple):
    """One timestep: its nodes, and the numbers of those that it returns."""

    nodes: tuple[Node, ...]
    u: int  # the spike variable
    middle: tuple[int, ...]  # the states before the reset
    after: tuple[int, ...]  # and after it


class Row(fx.Proxy):
    """A value for each element of a timestep, in the dtype of the states."""

    tracer: Tracer

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the states."""
        return self.tracer.dtype

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        args, kwargs = args or (), kwargs or {}
        tracer = next(a.tracer for a in (*args, *kwargs.values()) if isinstance(a, fx.Proxy))
        method = torch.overrides.is_tensor_method_or_property(function)
        kind, target = ("call_method", function.__name__) if method else ("call_function", function)
        return tracer.create_proxy(kind, target, args, kwargs)


class Tracer(fx.proxy.TracerBase):
    """Makes a node of each operation on a `Row`. coefficients: tensors and numbers, in order."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.nodes = dtype, Graph()
        self.coefficients: list[float | Tensor] = []
        self.found: dict[int, int] = {}  # of the tensors by their id
        self.gradients = torch.is_grad_enabled()

    def row(self, *node: Any) -> Row:
        """The row that this node computes."""
        return self.proxy_of(self.nodes(*node))

    def proxy_of(self, i: int) -> Row:
        """A node as a row."""
        return Row(i, self)  # type: ignore[arg-type]  # fx has nodes of its own

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *_: Any,
        **__: Any,
    ) -> Row:
        table: dict[Any, Callable[..., Row]] = METHODS if kind == "call_method" else FUNCTIONS
        rule = table.get(target)
        if rule is None:
            raise Unsupported(f"there is no rule for {getattr(target, '__name__', target)}")
        if torch.is_grad_enabled() != self.gradients:
            raise Unsupported("it switches gradients on or off")
        if len(self.nodes.nodes) > LONGEST:
            raise Unsupported(f"a timestep has more than {LONGEST} operations")
        try:
            return rule(self, *args, **kwargs)
        except TypeError as error:
            raise Unsupported(f"there is no rule for these arguments: {error}") from error

    def node(self, a: Any) -> int:
        """The node of an argument: a row, a tensor that is the same for all samples, a number."""
        if isinstance(a, Row):
            return int(a.node)  # type: ignore[call-overload]
        if isinstance(a, int) and abs(a) < SMALL:
            return self.nodes("number", int(a))
        if isinstance(a, int | float | Tensor):
            return self.nodes("coefficient", self.coefficient(a))
        raise Unsupported(f"there is no rule for an argument such as {type(a).__name__}")

    def coefficient(self, a: float | Tensor) -> int:
        """The place of a number or a tensor among the coefficients."""
        if not isinstance(a, Tensor):
            self.coefficients.append(float(a))
            return len(self.coefficients) - 1
        if not a.is_floating_point() or (a.dim() and a.dtype != self.dtype):
            raise Unsupported(f"a tensor of {a.dtype} is used")
        if id(a) not in self.found:
            self.found[id(a)] = len(self.coefficients)
            self.coefficients.append(a)  # which keeps its id
        return self.found[id(a)]

    def real(self, a: Any) -> int:
        """The node of an argument as a real number: 1 and 0 for a condition."""
        i = self.node(a)
        return self.nodes("real", i) if is_condition(self.nodes, i) else i

    def truth(self, a: Any) -> int:
        """The node of a condition."""
        if isinstance(a, Row) and is_condition(self.nodes, i := self.node(a)):
            return i
        raise Unsupported("a condition is no comparison of a row")

    def is_real(self, a: Any) -> bool:
        """Whether this is a row of real numbers, which gives the result its dtype."""
        return isinstance(a, Row) and not is_condition(self.nodes, self.node(a))


# ------------------------------------------------------------------ what a call of torch stands for


def _elementwise(op: str) -> Callable[..., Row]:
    def rule(t: Tracer, *args: Any) -> Row:
        if not any(map(t.is_real, args)):
            raise Unsupported(f"{op} has no row of real numbers among its arguments")
        return t.row(op, *map(t.real, args))

    return rule


def _one(op: str) -> Callable[..., Row]:
    apply = _elementwise(op)
    return lambda t, input: apply(t, input)


def _two(op: str) -> Callable[..., Row]:
    apply = _elementwise(op)
    return lambda t, input, other: apply(t, input, other)


def _reversed(op: str) -> Callable[..., Row]:
    apply = _elementwise(op)
    return lambda t, input, other: apply(t, other, input)


def _conditions(op: str) -> Callable[..., Row]:
    return lambda t, *args: t.row(op, *map(t.truth, args))


def _pow(t: Tracer, input: Any, exponent: Any) -> Row:
    """As torch, which multiplies for small exponents."""
    number = isinstance(exponent, int | float)
    if not (number and t.is_real(input)) or exponent not in (0.5, 1, 2, 3, -0.5, -1, -2):
        return _elementwise("pow")(t, input, exponent)
    a, one = t.node(input), t.nodes("number", 1)
    square = t.nodes("mul", a, a) if abs(exponent) in (2, 3) else a
    nodes: dict[float, tuple[Any, ...]] = {
        0.5: ("sqrt", a),
        2: ("mul", a, a),
        3: ("mul", square, a),
        -0.5: ("rsqrt", a),
        -1: ("div", one, a),
        -2: ("div", one, square),
    }
    return t.row(*nodes[exponent]) if exponent != 1 else input


def _clamp(t: Tracer, input: Any, min: Any = None, max: Any = None) -> Row:
    """With the gradient of torch's clamp, which is not that of maximum at the bounds."""
    y, graph = t.real(input), t.nodes
    for bound, beyond in ((min, "lt"), (max, "gt")):
        if bound is not None:
            b = t.real(bound)
            y = graph("where", graph(beyond, y, b), b, y)
    return t.proxy_of(y)


def _where(t: Tracer, condition: Any, input: Any, other: Any) -> Row:
    if not (t.is_real(input) or t.is_real(other)):
        raise Unsupported("where has no row of real numbers to choose from")
    return t.row("where", t.truth(condition), t.real(input), t.real(other))


def _relu(t: Tracer, input: Any) -> Row:
    zero = t.nodes("number", 0)
    return t.row("where", t.nodes("gt", t.real(input), zero), t.real(input), zero)


def _softplus(t: Tracer, input: Any, beta: float = 1, threshold: float = 20) -> Row:
    if beta != 1 or threshold != 20:
        raise Unsupported("there is no rule for softplus with another beta or threshold")
    return _one("softplus")(t, input)


def _to(t: Tracer, input: Any, dtype: Any) -> Row:
    if dtype != t.dtype:
        raise Unsupported(f"a row is converted to {dtype}")
    return t.proxy_of(t.real(input))


_ONE = "neg exp expm1 log log1p sqrt rsqrt sin cos tanh atan sigmoid abs sign floor detach"
_TWO = "add sub mul div maximum minimum lt le gt ge eq ne"
_ALSO = {  # torch's other names
    "negative": "neg",
    "arctan": "atan",
    "absolute": "abs",
    "subtract": "sub",
    "multiply": "mul",
    "truediv": "div",
    "divide": "div",
    "true_divide": "div",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
    "not_equal": "ne",
    "clip": "clamp",
}
_RULES: dict[str, Callable[..., Row]] = {
    **{op: _one(op) for op in _ONE.split()},
    **{op: _two(op) for op in _TWO.split()},
    "rsub": _reversed("sub"),
    "pow": _pow,
    "square": lambda t, input: _two("mul")(t, input, input),
    "reciprocal": lambda t, input: _two("div")(t, 1, input),
    "clamp": _clamp,
    "clamp_min": lambda t, input, min: _clamp(t, input, min),
    "clamp_max": lambda t, input, max: _clamp(t, input, None, max),
    "where": _where,
    "relu": _relu,
    "softplus": _softplus,
    "zeros_like": lambda t, input: t.row("number", 0),
    "ones_like": lambda t, input: t.row("number", 1),
    **{f"logical_{op}": _conditions(op) for op in ("and", "or", "xor", "not")},
}
_RULES |= {name: _RULES[op] for name, op in _ALSO.items()}
FUNCTIONS: dict[Any, Callable[..., Row]] = {
    getattr(module, name): rule
    for module in (operator, torch, functional, torch.special)
    for name, rule in _RULES.items()
    if hasattr(module, name)
}
FUNCTIONS |= {
    operator.and_: _RULES["logical_and"],
    operator.or_: _RULES["logical_or"],
    operator.xor: _RULES["logical_xor"],
    operator.invert: _RULES["logical_not"],
}
METHODS: dict[Any, Callable[..., Row]] = {
    **_RULES,
    "to": _to,
    "type_as": lambda t, input, other: _to(t, input, other.dtype),
    "float": lambda t, input: _to(t, input, torch.float32),
    "double": lambda t, input: _to(t, input, torch.float64),
    "clone": lambda t, input: input,
    "contiguous": lambda t, input: input,
    "__rsub__": _reversed("sub"),
}


def trace(
    step: Callable[..., Any],
    reset: Callable[..., Any],
    adapt: Callable[..., Any],
    states: int,
    tracer: Tracer,
) -> Trace:
    """One timestep of a neuron with so many states.

    Raises Unsupported, or whatever the methods raise when they are given proxies.
    """
    rows = [tracer.row("state", i) for i in range(states)]
    u, *middle = _rows(tracer, "step", step(tracer.row("x"), *rows), states + 1)
    after = [tracer.row("middle", i) for i in range(states)]
    for i, (name, method) in enumerate((("reset", reset), ("adapt", adapt))):
        after = _rows(tracer, name, method(tracer.row("spike", i), *after), states)
    nodes = (tuple(map(tracer.node, rows)) for rows in (middle, after))
    return Trace(tuple(tracer.nodes.nodes), tracer.node(u), *nodes)


def _rows(tracer: Tracer, method: str, value: Any, n: int) -> list[Row]:
    out = [value] if isinstance(value, Row) else value
    if not (isinstance(out, tuple | list) and len(out) == n and all(map(tracer.is_real, out))):
        raise Unsupported(
            f"{method} returns something else than {n} rows that depend on its arguments"
        )
    return list(out)
