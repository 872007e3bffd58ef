"""Differences paired by seed: their mean, its t interval, an exact sign-flip test, and their text.

The quantiles of Student's t come from the exact finite series. `sign_flip` only assumes that the
differences are symmetric about 0 if the arms do not differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# seeds; with more, 2^n sign patterns are too many to list
EXACT_UP_TO = 20
# random sign patterns of the Monte Carlo test
DRAWS = 200_000


def t_quantile(p: float, df: int) -> float:
    """The p-quantile of Student's t distribution for whole df, p in (0, 1).

    It inverts the exact finite series by bisection. Raises ValueError for p or df out of range.
    """
    if not 0 < p < 1 or df < 1:
        raise ValueError(f"t_quantile needs p in (0, 1) and df >= 1, got {p}, {df}")
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_central(middle, df) < abs(2 * p - 1) else (low, middle)
    return math.copysign(math.sqrt(df) * math.tan(low), p - 0.5) if p != 0.5 else 0.0


def _t_central(angle: float, df: int) -> float:
    """P(abs(t) <= sqrt(df) tan(angle)), Abramowitz & Stegun 26.7.3 and 26.7.4."""
    term, total = (math.cos(angle), 0.0) if df % 2 else (1.0, 0.0)
    for k in range(2 + df % 2, df + 1, 2):
        total += term
        term *= (k - 1) / k * math.cos(angle) ** 2
    return 2 / math.pi * (angle + math.sin(angle) * total) if df % 2 else math.sin(angle) * total


def sign_flip(differences: Sequence[float]) -> tuple[float, bool]:
    """Two-sided p of "the differences are symmetric about 0", and whether it is exact.

    p is the share of sign patterns whose sum is at least as far from 0 as the observed one. Up to
    n = 20 it counts all 2^n patterns, beyond that DRAWS random ones with a fixed seed and the
    observed one.
    """
    d = np.abs(np.asarray(differences, float))
    observed = abs(math.fsum(differences)) - 1e-9 * d.sum()
    if exact := len(d) <= EXACT_UP_TO:
        sums = np.zeros(1)
        for value in d:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= observed).mean()), exact
    draw, reached = np.random.default_rng(0), 0
    for part in range(0, DRAWS, 10_000):
        signs = draw.integers(0, 2, (min(10_000, DRAWS - part), len(d)), dtype=np.int8) * 2.0 - 1
        reached += int((np.abs(signs @ d) >= observed).sum())
    return (reached + 1) / (DRAWS + 1), exact


def smallest_p(n: int) -> float:
    """The smallest p that `sign_flip` can give for n pairs, 2 / 2^n."""
    return 2 / 2**n if n <= EXACT_UP_TO else 1 / (DRAWS + 1)


class Paired(NamedTuple):
    """A paired comparison: mean difference, 95 % confidence interval (nan for one pair), p of
    `sign_flip`."""

    n: int
    mean: float
    low: float
    high: float
    p: float
    exact: bool

    @property
    def noise(self) -> bool:
        """Whether the interval includes zero."""
        return not (self.low > 0 or self.high < 0)


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compares pairs of values, one pair per seed. Raises ValueError for different lengths."""
    d = [a - b for a, b in zip(values, baseline, strict=True)]
    mean = statistics.fmean(d)
    half = math.nan
    if len(d) > 1:
        half = t_quantile(0.975, len(d) - 1) * statistics.stdev(d) / math.sqrt(len(d))
    return Paired(len(d), mean, mean - half, mean + half, *sign_flip(d))


# ---- as text ---------------------------------------------------------------------------------


def percent(share: float | None, digits: int = 2) -> str:
    """A share in percent; a dash if there is none."""
    return "–" if share is None or not math.isfinite(share) else f"{100 * share:.{digits}f}"


def signed(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", "−")


def p_value(p: float) -> str:
    """p with two significant digits."""
    return f"{p:.2g}" if p >= 0.001 else "< 0.001"


def difference_cell(d: dict[str, Any] | None) -> str:
    """A `Paired`, as a dict, as "mean [low, high]" in percentage points; a dash for None."""
    if d is None:
        return "–"
    interval = f" [{signed(d['low'])}, {signed(d['high'])}]" if math.isfinite(d["low"]) else ""
    return signed(d["mean"]) + interval


def verdict(d: Paired) -> str:
    """What a comparison supports, as a sentence."""
    size = f"{signed(d.mean)} points"
    if d.n == 1:
        return f"{size} in a single pair of runs, which proves nothing."
    size += f", 95 % interval {signed(d.low)} to {signed(d.high)}, p = {p_value(d.p)}"
    if d.noise:
        return f"{size}: within the noise."
    word = "better" if d.mean > 0 else "worse"
    if d.p > 0.05:
        limit = " (p cannot be smaller with so few seeds)" if d.p <= smallest_p(d.n) else ""
        return (
            f"{size}: {word} by the interval, which assumes normal differences; the exact test "
            f"does not confirm it{limit}."
        )
    return f"{size}: {word}."
