"""Run the network of a run on an endless input, and measure how long its answers take."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, UsageError
from ..readout import TWO
from ..recipes.recipe import Recipe
from ..run import Run
from ..train.failures import first_line
from ..train.network import Network, trained
from .plan import Stream, stream
from .read import read


class Latency:
    """The distribution of durations, in memory that does not grow: quantiles to 1 %."""

    STEP = math.log(1.01)

    def __init__(self) -> None:
        self.counts = np.zeros(3000, np.int64)  # from 1 ns to 2.5 hours
        self.worst = 0.0

    def add(self, seconds: float) -> None:
        self.worst = max(self.worst, seconds)
        place = int(math.log(max(seconds, 1e-9) * 1e9) / self.STEP)
        self.counts[min(place, len(self.counts) - 1)] += 1

    def quantile(self, q: float) -> float:
        """In seconds; NaN without any duration."""
        total = int(self.counts.sum())
        if not total:
            return math.nan
        place = int(np.searchsorted(self.counts.cumsum(), max(q * total, 1)))
        return min(math.exp((place + 0.5) * self.STEP) / 1e9, self.worst)

    def summary(self) -> dict[str, Any]:
        """The number of durations; median, 99th percentile and worst in microseconds."""
        us = {"median": self.quantile(0.5), "p99": self.quantile(0.99), "worst": self.worst}
        return {
            "timesteps": int(self.counts.sum()),
            **{name: round(1e6 * seconds, 1) for name, seconds in us.items()},
        }


class Recent:
    """The outputs of the last T timesteps, and the class that the readout sees in them."""

    def __init__(self, network: Network, T: int) -> None:
        self.readout, self.T, self.n = network.readout, T, 0
        self.outputs: Tensor | None = None

    def add(self, y: Tensor) -> int:
        """The class after the output y `[1, K]`; the mean decides until a `TWO` has T outputs."""
        if self.outputs is None:
            self.outputs = y.new_zeros(self.T, *y.shape)
        self.outputs[self.n % self.T] = y
        self.n += 1
        if self.n < self.T:
            seen = self.outputs[: self.n]
            logits = seen.mean(0) if isinstance(self.readout, TWO) else self.readout(seen)
        else:
            logits = self.readout(self.outputs.roll(-(self.n % self.T), 0))
        return int(logits.argmax())


def live(
    run: str,
    events: str,
    answer: Callable[[dict[str, Any]], None],
    latency: Latency,
    *,
    window: int | None = None,
    realtime: bool = False,
    recipe: Recipe | str | None = None,
    stdin: BinaryIO = sys.stdin.buffer if sys.stdin else None,  # type: ignore[assignment]
) -> None:
    """Call `answer` for each timestep in `events`, as `read` finds them.

    An answer has the timestep, the class and the outputs. realtime: a timestep begins `window`
    microseconds after the one before. Durations, from a timestep to the end of its answer, go into
    `latency`. Raises RunError, DataError and UsageError.
    """
    if realtime and window is None:
        raise UsageError("--realtime needs --window, the microseconds of a timestep")
    _, made, network = trained(Run.find(run), recipe=recipe)
    plan: Stream | None = None
    recent = Recent(network, made.T)
    frames = read(events, stdin, made, window)
    with torch.inference_mode():
        for t, frame in enumerate(_paced(frames, window) if realtime and window else frames):
            x = torch.from_numpy(frame)[None]
            try:
                if plan is None:
                    plan = stream(network, x)  # compiled before the clock runs
                start = time.perf_counter()
                y = plan.step(x)
            except (RuntimeError, ValueError, TypeError) as e:
                raise DataError(
                    f"timestep {t}: the network does not take a frame of shape "
                    f"{list(frame.shape)}: {first_line(e)}"
                ) from e
            answer({"timestep": t, "class": recent.add(y), "output": y[0].tolist()})
            latency.add(time.perf_counter() - start)


def _paced(frames: Iterator[np.ndarray], window: int) -> Iterator[np.ndarray]:
    """The frames, each once its window has passed."""
    start = time.perf_counter()
    for t, frame in enumerate(frames):
        time.sleep(max(0.0, start + (t + 1) * window / 1e6 - time.perf_counter()))
        yield frame
