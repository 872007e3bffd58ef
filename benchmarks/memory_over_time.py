"""Peak memory of one training step against T, for each rule; and the time of checkpoints over time.

    python benchmarks/memory_over_time.py [--T N ...] [--rounds N] [--out FOLDER]

The network is 64-256-256-10 of LIF neurons, 64 samples, one thread, the processor. The rules are
plain back-propagation, checkpoints over time (`bs.backward_in_chunks`), and the online rules SLTT
and OTTT in one pass, with a loss at each timestep. What is measured is the peak of the memory that
a step adds to the process, in which the input and the gradients of the weights already lie; freed
memory is returned at once (`bs.lean_heap`). The times of plain steps and of checkpoints are CPU
seconds, taken in turn, the median of the rounds, with freed memory kept (`bs.keep_heap`).
Writes memory-over-time.svg and results/memory-over-time.json below FOLDER, by default docs/.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.ticker import NullLocator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import backspike as bs
from backspike.bench.worker.memory import Peak
from backspike.report.chart import Picture, axes, ink

LENGTHS = (10, 30, 100, 300, 1000, 3000, 10000)
SAMPLES, INPUTS, HIDDEN, CLASSES = 64, 64, 256, 10
TIMED = "plain", "checkpoints over time"


def network() -> nn.Module:
    torch.manual_seed(0)
    widths = (INPUTS, HIDDEN, HIDDEN)
    layers = [
        layer
        for inputs, outputs in itertools.pairwise(widths)
        for layer in (bs.OverTime(nn.Linear(inputs, outputs)), bs.LIF(v_threshold=0.3))
    ]
    return bs.Sequential(*layers, bs.OverTime(nn.Linear(HIDDEN, CLASSES)))


def plain(model: nn.Module, x: Tensor, y: Tensor) -> None:
    cross_entropy(model(x).mean(0), y).backward()


def checkpoints(model: nn.Module, x: Tensor, y: Tensor) -> None:
    bs.backward_in_chunks(model, x, lambda o: cross_entropy(o.mean(0), y))


def sltt(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with bs.streaming(model):
        for t in range(len(x)):  # `x.split(1)` would hold T tensors
            cross_entropy(model(x[t : t + 1])[0], y).backward()


def ottt(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with bs.ottt(model):
        sltt(model, x, y)


RULES: dict[str, Callable[[nn.Module, Tensor, Tensor], None]] = {
    "plain": plain,
    "checkpoints over time": checkpoints,
    "OTTT": ottt,
    "SLTT": sltt,
}


def batch(T: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    x = torch.rand(T, SAMPLES, INPUTS, generator=generator) < 0.2
    return x.float(), torch.arange(SAMPLES) % CLASSES


def peak(rule: str, T: int) -> int:
    """The bytes that a step adds at most."""
    model, (x, y) = network(), batch(T)
    for length in (10, T):
        model.zero_grad(set_to_none=False)
        found = Peak()
        RULES[rule](model, x[:length], y)
    return found.extra()


def seconds(T: int, rounds: int) -> dict[str, float]:
    """CPU seconds of a step of each rule in TIMED."""
    model, (x, y) = network(), batch(T)
    found: dict[str, list[float]] = {rule: [] for rule in TIMED}
    for _ in range(rounds + 1):
        for rule in TIMED:
            model.zero_grad(set_to_none=False)
            start = time.process_time()
            RULES[rule](model, x, y)
            found[rule].append(time.process_time() - start)
    return {rule: statistics.median(times[1:]) for rule, times in found.items()}


def picture(rows: list[dict[str, Any]]) -> bytes:
    """Memory against T, both logarithmic."""

    def plot(ax: Any) -> None:
        for number, rule in enumerate(RULES):
            found = [row for row in rows if row["rule"] == rule]
            megabytes = [row["bytes"] / 1e6 for row in found]
            look = {"color": ink(number), "marker": "o", "markersize": 3.5, "linewidth": 1.8}
            ax.plot([row["T"] for row in found], megabytes, **look)
        axes(ax, "timesteps T", log_x=True)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_locator(NullLocator())

    title = "Peak memory of a training step, MB"
    return Picture("memory-over-time", title, [(r, i) for i, r in enumerate(RULES)], plot).file()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--T", type=int, nargs="+", default=[*LENGTHS], metavar="N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bs.lean_heap()
    rows = []
    for T, rule in itertools.product(options.T, RULES):
        rows.append({"rule": rule, "T": T, "bytes": peak(rule, T)})
        print(json.dumps(rows[-1]), flush=True)
    (options.out / "results").mkdir(parents=True, exist_ok=True)
    (options.out / "memory-over-time.svg").write_bytes(picture(rows))
    file = options.out / "results" / "memory-over-time.json"
    file.write_text("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n")
    bs.keep_heap()
    for T in (T for T in options.T if 100 <= T <= 1000):
        plain, checkpoint = seconds(T, options.rounds).values()
        print(f"T = {T}: {plain:.3f} s plain, {checkpoint / plain:.2f} x that with checkpoints")


if __name__ == "__main__":
    main()
