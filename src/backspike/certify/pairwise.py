"""A covering set: few combinations of options in which every pair of values that may stand together does so at least once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence

Case = dict[str, str]
Pair = tuple[tuple[str, str], tuple[str, str]]


def pairwise(axes: Mapping[str, Sequence[str]], allowed: Callable[[Case], bool]) -> list[Case]:
    """Cases, each a value for every axis, that `allowed` accepts and that hold every pair of values of two axes.

    The first value of an axis is its plain one: a pair that is not allowed beside the plain values of the others is taken to be
    impossible. Greedy: each case starts from a pair that is missing and gives the other axes, in random order, the value that
    adds most pairs. The same arguments give the same cases.
    """
    plain = {axis: values[0] for axis, values in axes.items()}
    if not allowed(plain):
        return []
    draw = random.Random(0)
    missing = dict.fromkeys(
        p for p in possible_pairs(axes) if allowed({**plain, **dict(p)})
    )  # in order, as a set is not
    cases = []
    while missing:
        first = next(iter(missing))
        case, given = {**plain, **dict(first)}, dict(first)
        others = [axis for axis in axes if axis not in given]
        draw.shuffle(others)
        for axis in others:
            values = [v for v in axes[axis] if allowed({**case, axis: v})]
            case[axis] = given[axis] = max(
                values, key=lambda v: sum(p in missing for p in _pairs_with(given, axis, v, axes))
            )
        for pair in itertools.combinations([(axis, case[axis]) for axis in axes], 2):
            missing.pop(pair, None)
        cases.append(case)
    return cases or [plain]


def possible_pairs(axes: Mapping[str, Sequence[str]]) -> list[Pair]:
    """All pairs of values of two axes, the axes in their order."""
    return [
        ((a, v), (b, w))
        for a, b in itertools.combinations(axes, 2)
        for v, w in itertools.product(axes[a], axes[b])
    ]  # fmt: skip


def _pairs_with(
    given: Case, axis: str, value: str, axes: Mapping[str, Sequence[str]]
) -> list[Pair]:
    order = {a: i for i, a in enumerate(axes)}
    here = (axis, value)
    return [(here, g) if order[axis] < order[g[0]] else (g, here) for g in given.items()]
