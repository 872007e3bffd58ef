"""Pairwise testing: few combinations of options that contain every possible pair of values."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

Case = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]


def pairwise(axes: Mapping[str, Sequence[str]], allowed: Callable[[Case], bool]) -> list[Case]:
    """Cases that `allowed` accepts, a value for every axis, which contain all pairs of values.

    The first value of an axis is its plain one. A pair that is not allowed with the plain values of
    all other axes is considered impossible. The algorithm is greedy: each case starts from a
    missing pair and gives the other axes, in random order, the value that adds most pairs. The same
    arguments give the same cases.
    """
    plain = {axis: values[0] for axis, values in axes.items()}
    if not allowed(plain):
        return []
    draw = random.Random(0)
    # a dict, because a set has no order
    missing = dict.fromkeys(p for p in possible_pairs(axes) if allowed({**plain, **dict(p)}))
    cases = []
    while missing:
        first = next(iter(missing))
        case, chosen = {**plain, **dict(first)}, dict(first)
        others = [axis for axis in axes if axis not in chosen]
        draw.shuffle(others)
        for axis in others:
            values = [v for v in axes[axis] if allowed({**case, axis: v})]
            case[axis] = chosen[axis] = max(
                values, key=lambda v: sum(p in missing for p in _pairs_with(chosen, axis, v, axes))
            )
        for pair in itertools.combinations([(axis, case[axis]) for axis in axes], 2):
            missing.pop(pair, None)
        cases.append(case)
    return cases or [plain]


def possible_pairs(axes: Mapping[str, Sequence[str]]) -> list[Pair]:
    """All pairs of values of two axes, in the order of the axes."""
    return [
        ((a, v), (b, w))
        for a, b in itertools.combinations(axes, 2)
        for v, w in itertools.product(axes[a], axes[b])
    ]  # fmt: skip


def _pairs_with(
    chosen: Case, axis: str, value: str, axes: Mapping[str, Sequence[str]]
) -> list[Pair]:
    order = {a: i for i, a in enumerate(axes)}
    new = (axis, value)
    return [(new, g) if order[axis] < order[g[0]] else (g, new) for g in chosen.items()]
