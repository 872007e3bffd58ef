"""Numbers, times and groups of timesteps as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

MAX_STEPS = 12  # columns of a table over time


def as_percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\u202f%" if math.isfinite(value) else "–"


def tenths(value: float) -> str:
    return count(value) if not abs(value) < 1000 else f"{value:.1f}"


def plain_number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def three_digits(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


def count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if math.isfinite(value) else "–"


def seconds(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value < 60:
        return f"{value:.1f}\u202fs"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours}\u202fh {minutes:02d}\u202fmin"
        if hours
        else f"{minutes}\u202fmin {seconds:02d}\u202fs"
    )


def joules(pico: float) -> str:
    if not math.isfinite(pico):
        return "–"
    for unit, size in (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3)):
        if pico >= size:
            return f"{pico / size:.3g}\u202f{unit}"
    return f"{pico:.3g}\u202fpJ"


def time_groups(steps: int, most: int) -> list[np.ndarray]:
    """Timesteps 0..steps-1 in at most `most` consecutive groups of equal size (the last may be
    smaller)."""
    size = math.ceil(steps / most)
    return [np.arange(start, min(start + size, steps)) for start in range(0, steps, size or 1)]


def group_names(groups: Sequence[np.ndarray]) -> list[str]:
    return [f"{g[0] + 1}" if len(g) == 1 else f"{g[0] + 1}–{g[-1] + 1}" for g in groups]
