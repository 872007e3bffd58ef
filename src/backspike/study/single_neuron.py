"""The single-neuron experiment of TSBP (paper B, Yang 2020): gradient rules over learning rates.

One neuron with 100 inputs learns to emit a random spike train over 100 steps, by plain gradient
descent on the squared distance of the filtered trains. All problems and learning rates of a rule
run as one batch through `bs.lif`. A problem counts as solved if the neuron's spike train equals the
target exactly after the last update; the loss is then zero.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import StudyError
from ..neuron.lif import lif
from ..report.chart import Picture, axes, ink
from ..surrogate import Sigmoid, Triangle
from ..system.events import Listener
from ..version import __version__
from . import statistics
from .page import changes, publish, results_table
from .runner import folder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULES: dict[str, dict[str, Any]] = {
    "spatial only": {"temporal_gradient": False},
    "STBP": {"reset_gradient": 0.0},
    "TSBP": {"reset_gradient": 1.0},
}
INPUTS, STEPS, TAU_S = 100, 100, 2.0


@dataclass(frozen=True)
class Experiment:
    """The study `tsbp-toy`: `sets` times `problems` random problems per rule and learning rate.

    The default is float32. float64 takes other trajectories late in training, but its shares agree
    to 1.1 points. Raises StudyError for less than one set.
    """

    name: str = "tsbp-toy"
    about: str = ""
    learning_rates: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
    sets: int = 3
    problems: int = 64
    updates: int = 200
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.sets < 1:
            raise StudyError(f"a study needs at least 1 seed, got {self.sets}")

    def settings(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "learning_rates": list(self.learning_rates)}


class Problems(NamedTuple):
    """P problems. The synapse's filter is a[t] = (1 - 1/tau_s) a[t-1] + s[t] / tau_s."""

    # [P, T, N]: filtered input spikes
    a: Tensor
    # [T, P]: spikes to learn
    target: Tensor
    # [P, N]: initial weights
    w: Tensor
    # [T, T]: the filter, a = kernel @ s
    kernel: Tensor


def problems(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Problems:
    """Input spikes from Bernoulli(0.1), targets from Bernoulli(0.05), weights from U[0, 0.05]."""
    draw = torch.Generator().manual_seed(seed)
    s = torch.rand(count, STEPS, INPUTS, generator=draw) < 0.1
    target = torch.rand(count, STEPS, generator=draw) < 0.05
    w = torch.rand(count, INPUTS, generator=draw) * 0.05
    t = torch.arange(STEPS)
    kernel = torch.tril((1 - 1 / TAU_S) ** (t[:, None] - t).clamp(min=0) / TAU_S).to(dtype)
    return Problems(kernel @ s.to(dtype), target.T.to(dtype), w.to(dtype), kernel)


def concatenate(parts: list[Problems]) -> Problems:
    """All problems as one batch."""
    a, target, w = (torch.cat([p[i] for p in parts], dim) for i, dim in ((0, 0), (1, 1), (2, 0)))
    return Problems(a, target, w, parts[0].kernel)


def spikes(batch: Problems, w: Tensor, rule: str, backend: str | None = None) -> Tensor:
    """The neuron's spikes `[T, P, L]` for weights `[P, N, L]`, L variants of each problem."""
    x = torch.bmm(batch.a, w).transpose(0, 1).contiguous()
    out = lif(
        x,
        tau=5.0,
        v_threshold=1.0,
        v_reset=0.0,
        decay_input=False,
        surrogate=Sigmoid(alpha=5.0),
        backend=backend,
        **RULES[rule],
    )
    assert out.spikes is not None
    return out.spikes


def losses(batch: Problems, s: Tensor) -> Tensor:
    """(1/2) sum_t (a - a*)^2 of the filtered trains, `[P, L]`, for spikes s `[T, P, L]`."""
    return 0.5 * (torch.tensordot(batch.kernel, s - batch.target[:, :, None], 1) ** 2).sum(0)


def gradient(batch: Problems, w: Tensor, rule: str, backend: str | None = None) -> Tensor:
    """dL/dw `[P, N, L]` of each problem and variant on its own."""
    w = w.detach().requires_grad_()
    return torch.autograd.grad(losses(batch, spikes(batch, w, rule, backend)).sum(), w)[0]


class Trained(NamedTuple):
    """The results of P problems at L learning rates, each `[P, L]`."""

    solved: Tensor
    # the neuron no longer fires although it should
    silent: Tensor
    loss: Tensor


def train(batch: Problems, learning_rates: tuple[float, ...], rule: str, updates: int) -> Trained:
    """Plain gradient descent on every problem at every learning rate."""
    rates = torch.tensor(learning_rates, dtype=batch.w.dtype)
    w = batch.w[:, :, None].repeat(1, 1, len(rates))
    for _ in range(updates):
        w -= rates * gradient(batch, w, rule)
    with torch.no_grad():
        s = spikes(batch, w, rule)
        target = batch.target[:, :, None]
        silent = (s.sum(0) == 0) & (target.sum(0) > 0)
        return Trained((s == target).all(0), silent, losses(batch, s))


def results(
    experiment: Experiment, tell: Callable[[str], None] = lambda rule: None
) -> dict[str, dict[str, np.ndarray]]:
    """Per rule, on the same problems: solved, silent, final loss `[set, problem, learning rate]`.

    tell: called after each rule.
    """
    batch = concatenate(
        [
            problems(experiment.problems, seed, getattr(torch, experiment.dtype))
            for seed in range(experiment.sets)
        ]
    )
    out = {}
    for rule in RULES:
        trained = train(batch, experiment.learning_rates, rule, experiment.updates)
        out[rule] = {
            k: v.numpy().reshape(experiment.sets, experiment.problems, -1)
            for k, v in trained._asdict().items()
        }
        tell(rule)
    return out


def reset_cost(T: int = 8, elements: int = 1 << 18, repeats: int = 15) -> dict[str, Any]:
    """The cost of the gradient through the reset: one layer with rho = 0 and rho = 1, interleaved.

    Returns median milliseconds of forward and backward, the bytes saved for backward per neuron and
    timestep, and `ratio`, that of the times.
    """
    x = torch.randn(T, elements, generator=torch.Generator().manual_seed(0)).requires_grad_()
    g = torch.ones(T, elements)
    rules = {"rho = 0": 0.0, "rho = 1": 1.0}
    milliseconds: dict[str, list[float]] = {name: [] for name in rules}
    saved_bytes: dict[str, float] = {}
    for turn in range(repeats + 1):
        for name, rho in rules.items():
            saved: dict[int, int] = {}

            def pack(t: Tensor, saved: dict[int, int] = saved) -> Tensor:
                saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            started = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                out = lif(
                    x,
                    tau=2.0,
                    v_threshold=1.0,
                    v_reset=0.0,
                    decay_input=True,
                    surrogate=Triangle(alpha=2.0),
                    reset_gradient=rho,
                )
            assert out.spikes is not None
            torch.autograd.grad(out.spikes, x, g)
            # the first turn is a warm-up
            if turn:
                milliseconds[name].append(1e3 * (time.perf_counter() - started))
            saved_bytes[name] = sum(saved.values()) / (T * elements)
    medians = {name: median(values) for name, values in milliseconds.items()}
    return {
        "shape": [T, elements],
        "threads": torch.get_num_threads(),
        "median_ms": medians,
        "ratio": medians["rho = 1"] / medians["rho = 0"],
        "bytes_kept_per_element": saved_bytes,
    }


# ---- outputs ---------------------------------------------------------------------------------


def run(
    experiment: Experiment,
    out: str | Path,
    *,
    seeds: int | None = None,
    force: bool = False,
    listen: Listener | None = None,
) -> Path:
    """Runs the experiment into a study's folder and returns the page.

    There are no run folders: it takes seconds and is always run from the start.

    seeds: sets of problems; by default the experiment's own number. Otherwise as `runner.run`.
    """
    experiment, out = experiment if seeds is None else replace(experiment, sets=seeds), Path(out)
    with folder(out, {"name": experiment.name}, force):
        return _write(experiment, out, listen or (lambda e: None))


def _write(experiment: Experiment, out: Path, tell: Listener) -> Path:
    started, total = time.monotonic(), experiment.sets * experiment.problems
    tell(
        {
            "event": "study",
            "study": experiment.name,
            "out": str(out),
            "runs": len(RULES),
            "left": len(RULES),
        }
    )

    def tell_rule(rule: str) -> None:
        seconds = round(time.monotonic() - started, 1)
        tell(
            {
                "event": "rule",
                "rule": rule,
                "problems": total,
                "learning_rates": len(experiment.learning_rates),
                "seconds": seconds,
            }
        )

    found, cost = results(experiment, tell_rule), reset_cost()
    rates = [_at(found, k, rate) for k, rate in enumerate(experiment.learning_rates)]
    against = [rule for rule in RULES if rule != "TSBP"]
    head = ["learning rate", *(f"{rule}, %" for rule in RULES)]
    for rule in against:
        head += [f"TSBP - {rule} [95 % CI]", "p"]
    rows = []
    for rate in rates:
        row = [f"{rate['learning_rate']:g}", *(_share(rate["solved"][rule]) for rule in RULES)]
        for rule in against:
            d = rate["difference"][rule]
            row += [statistics.difference_cell(d), statistics.p_value(d["p"])]
        rows.append(row)
    exact = total <= statistics.EXACT_UP_TO
    patterns = "all" if exact else f"{statistics.DRAWS:,} random"
    notes = [
        f"Share of {total} problems solved, mean ± standard deviation over {experiment.sets} sets "
        f"of {experiment.problems}. A problem is solved if the spike train equals the target "
        f"exactly after {experiment.updates} updates. Differences are paired by problem, in "
        "percentage points, with their 95 % confidence interval (t) and p of the two-sided "
        f"sign-flip test over {patterns} sign patterns.",
        "One neuron, 100 inputs, 100 steps, tau 5, synapses with tau 2, sigmoid surrogate of width "
        "0.2 (docs/methods.md).",
        f"Command: backspike study {experiment.name} --seeds {experiment.sets}",
    ]
    pictures = [
        _picture(experiment, "solved", "Share of problems solved", rates),
        _picture(experiment, "silent", "Share of neurons that fell silent", rates),
    ]
    settings = [(rule, changes(options)) for rule, options in RULES.items()]
    complete = {
        "settings": {"name": experiment.name},
        "toy": experiment.settings(),
        "version": __version__,
        "rates": rates,
        "reset_cost": cost,
    }
    conclusions = _sentences(rates, cost)
    table = results_table(head, rows, notes)
    page = publish(
        out, experiment.name, experiment.about, table, conclusions, pictures, settings, complete
    )
    tell({"event": "done", "report": str(page), "failed": 0})
    return page


def _at(found: dict[str, dict[str, np.ndarray]], k: int, rate: float) -> dict[str, Any]:
    """Results at one learning rate: shares by rule and set, and TSBP paired with other rules."""
    solved = {rule: r["solved"][:, :, k].astype(float) for rule, r in found.items()}
    difference = {
        rule: statistics.paired(solved["TSBP"].ravel().tolist(), s.ravel().tolist())._asdict()
        for rule, s in solved.items()
        if rule != "TSBP"
    }
    shares = {rule: s.mean(1).tolist() for rule, s in solved.items()}
    silent = {rule: r["silent"][:, :, k].mean(1).tolist() for rule, r in found.items()}
    return {"learning_rate": rate, "solved": shares, "silent": silent, "difference": difference}


def _share(sets: list[float]) -> str:
    spread = f" ± {statistics.percent(stdev(sets), 1)}" if len(sets) > 1 else ""
    return statistics.percent(fmean(sets), 1) + spread


def _picture(experiment: Experiment, what: str, title: str, rates: list[dict[str, Any]]) -> Picture:
    def plot(ax: Axes) -> None:
        for i, rule in enumerate(RULES):
            y = [fmean(rate[what][rule]) for rate in rates]
            ax.plot(experiment.learning_rates, y, "o-", color=ink(i), linewidth=1.8, markersize=3.5)
        axes(ax, "learning rate", log_x=True, percent=True)

    return Picture(what, title, [(rule, i) for i, rule in enumerate(RULES)], plot)


def _sentences(rates: list[dict[str, Any]], cost: dict[str, Any]) -> list[str]:
    """What the experiment shows, whether or not it supports the paper."""
    lines = []
    for rule in (rule for rule in RULES if rule != "TSBP"):
        clear = {
            r["learning_rate"]: d["mean"] for r in rates if (d := r["difference"][rule])["p"] < 0.05
        }
        parts = []
        for word, sign in (("more", 1), ("fewer", -1)):
            if found := [f"{rate:g}" for rate, mean in clear.items() if sign * mean > 0]:
                parts.append(f"{word} at {', '.join(found)}")
        lines.append(
            f"Problems that TSBP solves compared with {rule}: "
            f"{' and '.join(parts) or 'no difference'}; at other learning rates within the noise "
            "(p >= 0.05)."
        )
    saved, ratio = cost["bytes_kept_per_element"], cost["ratio"]
    lines.append(
        f"The gradient through the reset changes the time of forward and backward of a layer "
        f"{cost['shape']} on {cost['threads']} threads by {100 * (ratio - 1):+.0f} %; it saves "
        f"{saved['rho = 1']:.1f} instead of {saved['rho = 0']:.1f} bytes per neuron and timestep "
        "for backward."
    )
    return lines
