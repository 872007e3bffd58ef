"""The single-neuron experiment of TSBP (paper B, Yang 2020): which gradient rule finds a spike train, at which learning rate.

One neuron with 100 inputs learns to fire one random train over 100 steps, by plain gradient descent on the squared distance of
the filtered trains; all problems and learning rates of a rule run as one batch through `bs.lif`. A problem counts as solved if,
after the last update, the neuron's spike train equals the target exactly, which is where the loss is zero.
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
class Toy:
    """The study `tsbp-toy`: `sets` times `problems` random problems, each tried with every rule and learning rate.

    float32 is the default: float64 takes other trajectories late in training, but its shares are the same to 1.1 points.
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
        return {**asdict(self), "learning_rates": list(self.learning_rates)}


class Problems(NamedTuple):
    """P problems; the synapse's filter is `kernel`, a[t] = (1 - 1/tau_s) a[t-1] + s[t] / tau_s."""

    a: Tensor  # [P, T, N] filtered input spikes
    target: Tensor  # [T, P] spikes to be learned
    w: Tensor  # [P, N] weights at the start
    kernel: Tensor  # [T, T], a = kernel @ s


def problems(count: int, seed: int, dtype: torch.dtype = torch.float32) -> Problems:
    """Input spikes Bernoulli(0.1), targets Bernoulli(0.05), weights U[0, 0.05]."""
    draw = torch.Generator().manual_seed(seed)
    s = torch.rand(count, STEPS, INPUTS, generator=draw) < 0.1
    target = torch.rand(count, STEPS, generator=draw) < 0.05
    w = torch.rand(count, INPUTS, generator=draw) * 0.05
    t = torch.arange(STEPS)
    kernel = torch.tril((1 - 1 / TAU_S) ** (t[:, None] - t).clamp(min=0) / TAU_S).to(dtype)
    return Problems(kernel @ s.to(dtype), target.T.to(dtype), w.to(dtype), kernel)


def joined(parts: list[Problems]) -> Problems:
    a, target, w = (torch.cat([p[i] for p in parts], dim) for i, dim in ((0, 0), (1, 1), (2, 0)))
    return Problems(a, target, w, parts[0].kernel)


def spikes(given: Problems, w: Tensor, rule: str, backend: str | None = None) -> Tensor:
    """The neuron's output `[T, P, L]` for weights `[P, N, L]`, L variants of each problem."""
    x = torch.bmm(given.a, w).transpose(0, 1).contiguous()
    out = lif(
        x, tau=5.0, decay_input=False, surrogate=Sigmoid(alpha=5.0), backend=backend, **RULES[rule]
    )
    assert out.spikes is not None
    return out.spikes


def losses(given: Problems, s: Tensor) -> Tensor:
    """(1/2) sum_t (a - a*)^2 of the filtered trains, `[P, L]`."""
    return 0.5 * (torch.tensordot(given.kernel, s - given.target[:, :, None], 1) ** 2).sum(0)


def gradient(given: Problems, w: Tensor, rule: str, backend: str | None = None) -> Tensor:
    """dL/dw `[P, N, L]` of every problem and variant by itself."""
    w = w.detach().requires_grad_()
    return torch.autograd.grad(losses(given, spikes(given, w, rule, backend)).sum(), w)[0]


class Trained(NamedTuple):
    """What became of P problems at L learning rates, `[P, L]`."""

    solved: Tensor
    silent: Tensor  # the neuron fires no more although it should
    loss: Tensor


def train(given: Problems, learning_rates: tuple[float, ...], rule: str, updates: int) -> Trained:
    """Plain gradient descent, every problem at every learning rate."""
    rates = torch.tensor(learning_rates, dtype=given.w.dtype)
    w = given.w[:, :, None].repeat(1, 1, len(rates))
    for _ in range(updates):
        w -= rates * gradient(given, w, rule)
    with torch.no_grad():
        s = spikes(given, w, rule)
        target = given.target[:, :, None]
        silent = (s.sum(0) == 0) & (target.sum(0) > 0)
        return Trained((s == target).all(0), silent, losses(given, s))


def results(
    toy: Toy, tell: Callable[[str], None] = lambda rule: None
) -> dict[str, dict[str, np.ndarray]]:
    """Rule -> solved and silent `[set, problem, learning rate]` and the final loss; the same problems for every rule."""
    given = joined(
        [problems(toy.problems, seed, getattr(torch, toy.dtype)) for seed in range(toy.sets)]
    )
    out = {}
    for rule in RULES:
        trained = train(given, toy.learning_rates, rule, toy.updates)
        out[rule] = {
            k: v.numpy().reshape(toy.sets, toy.problems, -1) for k, v in trained._asdict().items()
        }
        tell(rule)
    return out


def reset_cost(T: int = 8, elements: int = 1 << 18, repeats: int = 15) -> dict[str, Any]:
    """What the gradient through the reset costs: forward and backward of one layer with rho = 0 and rho = 1, interleaved.

    Median milliseconds and the bytes kept for the backward pass per neuron and timestep; `ratio` is of the times.
    """
    x = torch.randn(T, elements, generator=torch.Generator().manual_seed(0)).requires_grad_()
    g = torch.ones(T, elements)
    rules = {"rho = 0": 0.0, "rho = 1": 1.0}
    milliseconds: dict[str, list[float]] = {name: [] for name in rules}
    kept: dict[str, float] = {}
    for turn in range(repeats + 1):
        for name, rho in rules.items():
            saved: dict[int, int] = {}

            def pack(t: Tensor, saved: dict[int, int] = saved) -> Tensor:
                saved[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
                return t

            started = time.perf_counter()
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                out = lif(x, surrogate=Triangle(alpha=2.0), reset_gradient=rho)
            assert out.spikes is not None
            torch.autograd.grad(out.spikes, x, g)
            # the first turn warms up
            if turn:
                milliseconds[name].append(1e3 * (time.perf_counter() - started))
            kept[name] = sum(saved.values()) / (T * elements)
    medians = {name: median(values) for name, values in milliseconds.items()}
    return {
        "shape": [T, elements],
        "threads": torch.get_num_threads(),
        "median_ms": medians,
        "ratio": medians["rho = 1"] / medians["rho = 0"],
        "bytes_kept_per_element": kept,
    }


# ---- outputs -------------------------------------------------------------------------------------------------------------


def run(
    toy: Toy,
    out: str | Path,
    *,
    seeds: int | None = None,
    force: bool = False,
    listen: Listener | None = None,
) -> Path:
    """Runs it into a study's folder and returns the page. There are no run folders: it takes seconds, and is done anew.

    seeds: sets of problems (the toy's own number). Otherwise as `study.run`.
    """
    toy, out = toy if seeds is None else replace(toy, sets=seeds), Path(out)
    with folder(out, {"name": toy.name}, force):
        return _write(toy, out, listen or (lambda e: None))


def _write(toy: Toy, out: Path, tell: Listener) -> Path:
    started, total = time.monotonic(), toy.sets * toy.problems
    tell(
        {
            "event": "study",
            "study": toy.name,
            "out": str(out),
            "runs": len(RULES),
            "left": len(RULES),
        }
    )

    def told(rule: str) -> None:
        seconds = round(time.monotonic() - started, 1)
        tell(
            {
                "event": "rule",
                "rule": rule,
                "problems": total,
                "learning_rates": len(toy.learning_rates),
                "seconds": seconds,
            }
        )

    found, cost = results(toy, told), reset_cost()
    rates = [_at(found, k, rate) for k, rate in enumerate(toy.learning_rates)]
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
    notes = [
        f"Share of {total} problems solved, mean ± standard deviation over {toy.sets} sets of {toy.problems}; solved: after "
        f"{toy.updates} updates the spike train equals the target exactly. Differences are paired by problem, in percentage "
        "points, with their 95 % confidence interval (t) and p of the two-sided sign-flip test over "
        + ("all" if total <= statistics.EXACT_UP_TO else f"{statistics.DRAWS:,} random")
        + " sign patterns.",
        "One neuron, 100 inputs, 100 steps, tau 5, synapses tau 2, sigmoid surrogate of width 0.2 (docs/methods.md).",
        f"Command: backspike study {toy.name} --seeds {toy.sets}",
    ]
    pictures = [
        _picture(toy, "solved", "Share of problems solved", rates),
        _picture(toy, "silent", "Share of neurons that fell silent", rates),
    ]
    settings = [(rule, changes(options)) for rule, options in RULES.items()]
    complete = {
        "settings": {"name": toy.name},
        "toy": toy.settings(),
        "version": __version__,
        "rates": rates,
        "reset_cost": cost,
    }
    said = _sentences(rates, cost)
    table = results_table(head, rows, notes)
    page = publish(out, toy.name, toy.about, table, said, pictures, settings, complete)
    tell({"event": "done", "report": str(page), "failed": 0})
    return page


def _at(found: dict[str, dict[str, np.ndarray]], k: int, rate: float) -> dict[str, Any]:
    """All about one learning rate: shares by set and rule, and TSBP against the other rules, problem by problem."""
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


def _picture(toy: Toy, what: str, title: str, rates: list[dict[str, Any]]) -> Picture:
    def plot(ax: Axes) -> None:
        for i, rule in enumerate(RULES):
            y = [fmean(rate[what][rule]) for rate in rates]
            ax.plot(toy.learning_rates, y, "o-", color=ink(i), linewidth=1.8, markersize=3.5)
        axes(ax, "learning rate", log_x=True, percent=True)

    return Picture(what, title, [(rule, i) for i, rule in enumerate(RULES)], plot)


def _sentences(rates: list[dict[str, Any]], cost: dict[str, Any]) -> list[str]:
    """What the experiment shows, in the paper's favour or not."""
    said = []
    for rule in (rule for rule in RULES if rule != "TSBP"):
        clear = {
            r["learning_rate"]: d["mean"] for r in rates if (d := r["difference"][rule])["p"] < 0.05
        }
        more, fewer = (
            [f"{rate:g}" for rate, mean in clear.items() if sign * mean > 0] for sign in (1, -1)
        )
        parts = [f"more at {', '.join(more)}"] * bool(more) + [
            f"fewer at {', '.join(fewer)}"
        ] * bool(fewer)
        said.append(
            f"Problems that TSBP solves, against {rule}: {' and '.join(parts) or 'no difference'}; "
            "at other learning rates inside the noise (p >= 0.05)."
        )
    kept, ratio = cost["bytes_kept_per_element"], cost["ratio"]
    said.append(
        f"The gradient through the reset took {100 * (ratio - 1):+.0f} % time, forward and backward of a layer {cost['shape']} "
        f"on {cost['threads']} threads; {kept['rho = 1']:.1f} against {kept['rho = 0']:.1f} bytes per neuron and step are kept."
    )
    return said
