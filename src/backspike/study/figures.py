"""The figures of a study: `FIGURES` maps names to functions that return pictures of its outcomes.

A `Picture` is drawn twice, for the page and as a separate file; `ink` and `axes` give all of them
the same look.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import numpy as np

from ..report.chart import Picture, axes, ink, math_free, percent_axis
from .results import KINDS, Outcome
from .spec import Study
from .statistics import percent, t_quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ---- what can be drawn -----------------------------------------------------------------------


def _dots(study: Study, rows: list[dict[str, Any]], outcomes: Sequence[Outcome]) -> list[Picture]:
    """A dot per run, and each arm's mean with its 95 % interval; best by validation."""

    def plot(ax: Axes) -> None:
        for i, row in enumerate(rows):
            values = np.array(row["best"]["values"])
            if not len(values):
                continue
            pale: dict[str, Any] = {"alpha": 0.45, "markersize": 4, "markeredgewidth": 0}
            ax.plot(values, np.full(len(values), i), "o", color=ink(i), **pale)
            half = (
                t_quantile(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
                if len(values) > 1
                else 0.0
            )
            look: dict[str, Any] = {"markersize": 13, "markeredgewidth": 2, "linewidth": 1.6}
            ax.errorbar(values.mean(), i, xerr=half, fmt="|", color=ink(i), **look)
        ax.set_yticks(range(len(rows)), [math_free(row["arm"]) for row in rows])
        ax.invert_yaxis()
        ax.grid(axis="x")
        percent_axis(ax.xaxis)
        ax.set_xlabel("test accuracy")

    text = "; ".join(f"{row['arm']} {percent(row['best']['mean'])} %" for row in rows)
    title = "Test accuracy, best epoch by validation: runs, means and their 95 % intervals"
    return [Picture("dots", title, [], plot, text)]


def _sweep(study: Study, rows: list[dict[str, Any]], outcomes: Sequence[Outcome]) -> list[Picture]:
    """Accuracy against x, a line per `Arm.line` with a band of one standard deviation."""
    known = [row for row in rows if row["x"] is not None and row["n"]]
    names = list(dict.fromkeys(row["line"] for row in known))
    pictures = []
    for kind, meaning in KINDS.items():

        def plot(ax: Axes, kind: str = kind) -> None:
            for i, name in enumerate(names):
                line = sorted((r for r in known if r["line"] == name), key=lambda r: r["x"])
                x = np.array([r["x"] for r in line])
                mean = np.array([r[kind]["mean"] for r in line])
                sd = np.array([r[kind]["sd"] or 0.0 for r in line])
                ax.fill_between(x, mean - sd, mean + sd, color=ink(i), alpha=0.15, linewidth=0)
                ax.plot(x, mean, "o-", color=ink(i), linewidth=1.8, markersize=3.5)
            axes(ax, study.xlabel, log_x=study.log_x, percent=True)

        title = f"Test accuracy, {meaning}, with one standard deviation"
        pictures.append(
            Picture(f"sweep-{kind}", title, [(n, i) for i, n in enumerate(names)], plot)
        )
    return pictures


def _curves(study: Study, rows: list[dict[str, Any]], outcomes: Sequence[Outcome]) -> list[Picture]:
    """Accuracies, loss and time per epoch; of those that the logs have."""
    shown = (
        ("training", "Training accuracy", "train_accuracy", True),
        ("validation", "Validation accuracy", "validation_accuracy", True),
        ("loss", "Training loss", "loss", False),
        ("seconds", "Seconds per epoch", "seconds", False),
    )
    return [
        _by_arm(study, outcomes, name, title, "epoch", methodcaller("series", key), share)
        for name, title, key, share in shown
        if any(np.isfinite(outcome.series(key)).any() for outcome in outcomes)
    ]


def _firing(study: Study, rows: list[dict[str, Any]], outcomes: Sequence[Outcome]) -> list[Picture]:
    """Firing rate of every layer."""

    def rates(outcome: Outcome) -> np.ndarray:
        return outcome.arrays["firing_rate"].mean(1)

    title = "Firing rate per layer, test set"
    return [_by_arm(study, outcomes, "firing", title, "spiking layer", rates, True)]


def _by_arm(
    study: Study,
    outcomes: Sequence[Outcome],
    name: str,
    title: str,
    xlabel: str,
    series: Callable[[Outcome], np.ndarray],
    percent: bool = False,
) -> Picture:
    """A line per arm: `series` of its runs, mean over seeds."""

    def plot(ax: Axes) -> None:
        for i, arm in enumerate(study.arms):
            if runs := [series(o) for o in outcomes if o.arm == arm.name]:
                _line_over(ax, _mean_of(runs), i)
        axes(ax, xlabel, percent=percent, whole=True)

    return Picture(name, f"{title}, mean over seeds", _legend(study), plot)


def _weights(
    study: Study, rows: list[dict[str, Any]], outcomes: Sequence[Outcome]
) -> list[Picture]:
    """TWO: the weight of every timestep per epoch."""

    def weights(epoch: dict[str, Any]) -> dict[str, float]:
        return {f"step {t}": w for t, w in enumerate(epoch.get("readout_weights") or (), 1)}

    return _within_arms(study, outcomes, "weights", "weight of each timestep", weights)


def _widths(study: Study, rows: list[dict[str, Any]], outcomes: Sequence[Outcome]) -> list[Picture]:
    """PSG: the learned width of every layer per epoch."""
    return _within_arms(study, outcomes, "widths", "learned width", lambda e: e.get("widths") or {})


def _within_arms(
    study: Study,
    outcomes: Sequence[Outcome],
    name: str,
    title: str,
    values: Callable[[dict[str, Any]], dict[str, float]],
) -> list[Picture]:
    """A picture per arm that has such values: a line per value over the epochs, mean over seeds."""
    pictures = []
    for arm in study.arms:
        runs = [[values(e) for e in o.epochs] for o in outcomes if o.arm == arm.name]
        if runs and runs[0][0]:
            labels = list(runs[0][0])

            series = [
                _mean_of([np.array([epoch[label] for epoch in r]) for r in runs])
                for label in labels
            ]

            def plot(ax: Axes, series: list[np.ndarray] = series) -> None:
                for i, y in enumerate(series):
                    _line_over(ax, y, i)
                axes(ax, "epoch", whole=True)

            legend = [(label, i) for i, label in enumerate(labels)]
            caption = f"{arm.name}: {title}, mean over seeds"
            pictures.append(Picture(f"{name}-{_slug(arm.name)}", caption, legend, plot))
    return pictures


def _mean_of(series: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several series, cut to the shortest."""
    length = min(map(len, series))
    return np.mean([y[:length] for y in series], axis=0)


def _line_over(ax: Axes, y: np.ndarray, number: int) -> None:
    dots = "o" if len(y) <= 20 else ""
    dashes = ("-", "--")[number // 8 % 2]
    look: dict[str, Any] = {"color": ink(number), "linestyle": dashes, "marker": dots}
    ax.plot(np.arange(1, len(y) + 1), y, **look, linewidth=1.6, markersize=3)


def _legend(study: Study) -> list[tuple[str, int]]:
    return [(arm.name, i) for i, arm in enumerate(study.arms)]


def _membranes(
    study: Study, rows: list[dict[str, Any]], outcomes: Sequence[Outcome]
) -> list[Picture]:
    """Distribution of the membrane on the test set: a picture per layer, a line per arm."""
    first = outcomes[0].arrays
    layers = first["layer_names"].tolist()
    same = [o for o in outcomes if o.arrays["layer_names"].tolist() == layers]
    found = {arm.name: [o.arrays for o in same if o.arm == arm.name] for arm in study.arms}
    pictures = []
    for k, layer in enumerate(layers):

        def plot(ax: Axes, k: int = k) -> None:
            for i, arm in enumerate(study.arms):
                if found[arm.name]:
                    counts = np.sum([a["membrane_counts"][k] for a in found[arm.name]], axis=0)
                    ax.stairs(
                        counts / counts.sum(), first["membrane_edges"], color=ink(i), linewidth=1.4
                    )
            ax.axvline(0, color=ink(7), linewidth=1, linestyle=(0, (2, 3)))
            axes(ax, "membrane minus threshold")

        title = f"Membranes of layer {layer}, test set"
        pictures.append(Picture(f"membranes-{k}", title, _legend(study), plot))
    return pictures


def _spikes(study: Study, rows: list[dict[str, Any]], outcomes: Sequence[Outcome]) -> list[Picture]:
    """Accuracy against spikes per image, a dot per run."""

    def plot(ax: Axes) -> None:
        for i, arm in enumerate(study.arms):
            numbers = [o.numbers() for o in outcomes if o.arm == arm.name]
            if numbers:
                x, y = np.array([[n["spikes_per_image"], n["best"]] for n in numbers]).T
                ax.plot(x, y, "o", color=ink(i), alpha=0.4, markersize=4, markeredgewidth=0)
                ax.plot(x.mean(), y.mean(), "D", color=ink(i), markersize=7)
        axes(ax, "spikes per image, hidden layers", percent=True)

    return [
        Picture("spikes", "Test accuracy against spikes; diamonds are means", _legend(study), plot)
    ]


FIGURES: dict[str, Callable[[Study, list[dict[str, Any]], Sequence[Outcome]], list[Picture]]] = {
    "dots": _dots,
    "sweep": _sweep,
    "curves": _curves,
    "firing": _firing,
    "weights": _weights,
    "widths": _widths,
    "membranes": _membranes,
    "spikes": _spikes,
}


def gradient_pictures(study: Study, shares: list[dict[str, Any]]) -> list[Picture]:
    """Figure 1: the share that receives a gradient, and the sizes of the derivatives, at the same
    potentials."""
    shares = [row for row in shares if row["x"] is not None]
    plain = sorted((r for r in shares if r["line"] == shares[0]["line"]), key=lambda r: r["x"])
    kinds = {
        "neurons": "neurons",
        "weights": "weights, one sample",
        "weights_batch": "weights, 16 samples",
    }

    def plot(ax: Axes) -> None:
        for i, kind in enumerate(kinds):
            x, y = [r["x"] for r in plain], [r[kind] for r in plain]
            ax.plot(x, y, "o-", color=ink(i), linewidth=1.8, markersize=3.5)
        axes(ax, study.xlabel, log_x=study.log_x, percent=True)

    some = [plain[0], plain[len(plain) // 2], plain[-1]]

    def histogram(ax: Axes) -> None:
        edges = np.concatenate([[-1 / 19], np.linspace(0, 1, 20)])
        for i, row in enumerate(some):
            ax.stairs(row["histogram"], edges, color=ink(i), linewidth=1.6)
        axes(ax, "derivative relative to its peak; leftmost: zero", percent=True)

    names = [(text, i) for i, text in enumerate(kinds.values())]
    arms = [(row["arm"], i) for i, row in enumerate(some)]
    return [
        Picture("gradients", "Share that receives a gradient", names, plot),
        Picture("derivatives", "Surrogate derivatives over all neurons", arms, histogram),
    ]
