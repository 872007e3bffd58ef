"""The timestep of a neuron and its backward pass as C functions, for the loops in loops.h.

The text consists of the names and signs in rules.py and of numbers of nodes; nothing that the user
wrote is copied into it. The sources are those of this folder and of kernel/csrc.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from .backward import THRESHOLD, Options, differentiated, inputs, needed, rows
from .graph import Graph
from .rules import RULES, is_condition
from .trace import Trace

TYPES = {
    torch.float64: ("double", "uint64_t", "double"),
    torch.float32: ("float", "uint32_t", "float"),
    torch.bfloat16: ("float", "uint32_t", "uint16_t"),
}
BLOCK = 128  # elements of a block
FOLDERS = (Path(__file__).parents[1] / "csrc", Path(__file__).parent)
HEADERS = ("lif.h", "surrogate.h", "step.h", "functions.h", "loops.h")


class Layer(NamedTuple):
    """What the functions of both directions depend on."""

    trace: Trace
    varies: tuple[bool, ...]  # which coefficients differ between channels
    rest: tuple[int, ...]  # for each state, its coefficient at rest
    dtype: torch.dtype  # of the input


@lru_cache(maxsize=256)
def forward_text(layer: Layer) -> str:
    """The C source of the forward pass."""
    return _text(layer, Options(), "#define FORWARD\n", "")


@lru_cache(maxsize=256)
def backward_text(layer: Layer, options: Options) -> str:
    """The C source of the backward pass."""
    trace, back = layer.trace, differentiated(layer.trace, options)
    graph = back.graph
    kept = {row: f"r{i}[i]" for i, row in enumerate(back.rows) if back.saved[i]}
    write = _Writer(layer, graph, kept, options)
    defines = f"#define BEFORE {int(bool(back.before))}\n#define NEEDS_X {int(back.needs_x)}\n"
    r = "const REAL *const *rows"
    before = write.function(
        "before",
        f"REAL (*k)[BLOCK], {r}, REAL (*before)[BLOCK], int n",
        {f"before[{i}][i]": trace.after[i] for i in back.before},
    )
    states = "REAL (*v)[BLOCK]"
    slopes = write.function(
        "slopes",
        f"const Job *j, REAL (*k)[BLOCK], {r}, {states}, const REAL *x, "
        "REAL *own, REAL *full, int n",
        {
            place: node
            for place, node in (("own[i]", back.own), ("full[i]", back.full))
            if node is not None
        },
    )
    retreat = write.function(
        "retreat",
        f"const Job *j, REAL (*k)[BLOCK], {r}, {states}, const REAL *x, const REAL *g, "
        "const REAL *gu, const REAL *h, const REAL *own, REAL (*d)[BLOCK], REAL *gx, "
        "REAL (*term)[BLOCK], int n",
        {
            "gx[i]": back.gx,
            **{f"term[{i}][i]": node for i, node in enumerate(back.terms)},
            **{f"d[{i}][i]": node for i, node in enumerate(back.states)},
        },
    )
    return _text(layer, options, defines, before + slopes + retreat)


def _text(layer: Layer, options: Options, defines: str, functions: str) -> str:
    trace, learned = layer.trace, options.learned
    real, bits, io = TYPES[layer.dtype]
    all_rows = rows(trace)
    advance = _Writer(layer, Graph(trace.nodes), {}, options).function(
        "advance",
        "REAL (*k)[BLOCK], const REAL *x, REAL (*v)[BLOCK], REAL *const *rows, IO *s, int n",
        {
            **{f"rows[{i}][i]": node for i, node in enumerate(all_rows)},
            "s[i]": Graph(trace.nodes)("spike", 0),
            **{f"v[{i}][i]": node for i, node in enumerate(trace.after)},
        },
    )
    at_rest = [learned.index(i) if i in learned else -1 for i in layer.rest]
    numbers = {
        "COEFFICIENTS": len(layer.varies),
        "STATES": len(trace.after),
        "ROWS": len(all_rows),
        "LEARNED": len(learned),
        "THRESHOLD": THRESHOLD,
        "BASE": options.base,
        "REPLACEMENT": options.replacement,
        "MASKED": int(options.masked),
    }
    return "".join(
        (
            f"#define BLOCK {BLOCK}\n",
            '#include "lif.h"\n',
            f"#define REAL {real}\n#define BITS {bits}\n#define IO {io}\n",
            f"#define NAME(f) f##_{layer.dtype}\n".replace("torch.", ""),
            *(f"#define {name} {value}\n" for name, value in numbers.items()),
            defines,
            '#include "step.h"\n#include "functions.h"\n\n',
            _array("varies", map(int, layer.varies)),
            _array("rest", layer.rest),
            _array("learned", [*learned, -1]),
            _array("at_rest", at_rest),
            advance,
            functions,
            '\n#include "loops.h"\n',
        )
    )


def _array(name: str, values: Iterable[int]) -> str:
    return (
        f"static const int {name}[] __attribute__((unused)) = {{{', '.join(map(str, values))}}};\n"
    )


class _Writer:
    """Writes functions that compute some nodes of a graph."""

    def __init__(
        self, layer: Layer, graph: Graph, kept: Mapping[int, str], options: Options
    ) -> None:
        self.layer, self.graph, self.kept, self.options = layer, graph, kept, options

    def function(self, name: str, arguments: str, results: Mapping[str, int | None]) -> str:
        """A loop over a block that stores nodes in places; 0 for those that are None."""
        trace, graph = self.layer.trace, self.graph
        targets = [i for i in results.values() if i is not None]
        order = sorted(needed(graph, trace, targets, self.kept))
        outside: list[str] = []
        inside: list[str] = []
        for i in order:
            line = f"{'int' if is_condition(graph, i) else 'REAL'} n{i} = {self._value(i)};"
            fixed = self._is_fixed(i)
            (outside if fixed else inside).append(f"    {'' if fixed else '    '}const {line}\n")
        used = {i: row for i, row in enumerate(rows(trace)) if row in order and row in self.kept}
        pointers = "".join(f"    const REAL *r{i} = rows[{i}];\n" for i in used)
        stores = "".join(
            f"        {place} = {self._stored(place, i)};\n" for place, i in results.items()
        )
        for op, field in (("base", "surrogate"), ("replacement", "replace")):
            if any(graph.nodes[i][0] == op for i in order):
                pointers += "".join(
                    f"    const REAL {op}_{letter} = (REAL)j->{field}.constants[{number}];\n"
                    for number, letter in enumerate("abc")
                )
        body = f"{pointers}{''.join(outside)}    SIMD EACH {{\n{''.join(inside)}{stores}    }}\n"
        return f"\nALWAYS void NAME({name})({arguments}) {{\n{body if results else ''}}}\n"

    def _stored(self, place: str, i: int | None) -> str:
        if i is None:
            return "0"
        return f"NAME(narrow)(n{i})" if place == "s[i]" else f"n{i}"

    def _is_fixed(self, i: int) -> bool:
        """Whether a node has one value for all elements."""
        op, *of = self.graph.nodes[i]
        return op in ("number", "rho") or (op == "coefficient" and not self.layer.varies[of[0]])

    def _value(self, i: int) -> str:
        op, *of = self.graph.nodes[i]
        if i in self.kept:
            return self.kept[i]
        arguments = [f"n{a}" for a in inputs(self.graph, self.layer.trace, i)]
        match op:
            case "x" | "g" | "gu" | "h" | "own":
                return f"{op}[i]"
            case "state":
                return f"v[{of[0]}][i]"
            case "c":
                return f"d[{of[0]}][i]"
            case "middle":
                return arguments[0]
            case "spike":
                u, theta = arguments
                return f"(REAL)({u} >= {theta}) + ({u} - {u})"
            case "coefficient":
                return f"k[{of[0]}][{'i' if self.layer.varies[of[0]] else '0'}]"
            case "number":
                return f"(REAL){of[0]}"
            case "rho":
                return "(REAL)j->rho"
        return RULES[op].c.format(*arguments)
