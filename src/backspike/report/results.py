"""Report sections on results: header, curves, readout, early exit and confusion matrix."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..system.table import Column, Table, left, right
from .chart import Line, colour, draw_chart, image, ramp
from .format import as_percent, count, plain_number, seconds
from .page import Cell, Figure, Mark, Part, Section, Text, bold, code, grid, heat, strong
from .run_data import Array, RunData, as_dict, class_names, is_curve, number, numbers

MAX_CLASSES = 20  # shown as numbers; above, the confusion matrix is an image
ARRAYS = {
    "confusion": Array("K K", "iu"),
    "accuracy_over_time": Array("T"),
    "readout_weights": Array("T"),
}


def tiles(run: RunData) -> list[tuple[str, str, str]]:
    def last(key: str) -> float:
        known = run.series(key)[np.isfinite(run.series(key))]
        return float(known[-1]) if len(known) else math.nan

    done, planned = run.done, number(run.fields.get("epochs"))
    validation = run.series("validation_accuracy")
    best = (
        float(np.nanmax(validation))
        if np.isfinite(validation).any()
        else number(done.get("validation_accuracy"))
    )
    device = f" on {run.env['device']}" if run.env.get("device") else ""
    accuracy, accuracy_last = (
        as_percent(number(done.get(key))) for key in ("test_accuracy", "test_accuracy_last")
    )
    weights = "best validation epoch" if run.has_validation else "last epoch"
    test = ("Test accuracy", accuracy, f"weights of the {weights}")
    so_far = as_percent(last("train_accuracy"))
    running = ("Training accuracy", so_far, "so far; the test follows at the end")
    speed = f"{count(last('samples_per_second'))} samples per second{device}"
    complete = not math.isfinite(planned) or planned == len(run.epochs)
    of = "all planned epochs" if complete else f"of {planned:.0f} planned"
    best_epoch = f"in epoch {run.best_epoch:.0f}" if math.isfinite(run.best_epoch) else ""
    tiles = [
        test if done else running,
        # without a validation set the two test accuracies are the same
        ("Test, last epoch", accuracy_last if run.has_validation else "–", "final weights"),
        ("Best validation", as_percent(best), best_epoch),
        ("Epochs", f"{len(run.epochs)}", of if math.isfinite(planned) else ""),
        ("Time", seconds(run.seconds), speed),
        ("Parameters", count(number(run.env.get("parameters"))), "learned numbers"),
    ]
    return [tile for tile in tiles if tile[1] != "–"]


def subtitle(run: RunData) -> Text:
    text: list[Any] = []
    fields = run.used_fields
    for key in ("model", "neuron.surrogate", "readout"):
        if fields.get(key) is not None:
            value = fields[key] if key in run.own else code(fields[key])
            text += [" · " * bool(text), value]
    if "data" in fields:
        text += [" on ", bold(fields["data"]), " (simulated)" * run.simulated]
    if "T" in fields:
        text.append(f", {fields['T']}\u00a0timesteps")
    return text


def notices(run: RunData) -> list[Text]:
    notices: list[Text] = []
    note = str(run.env.get("data_note") or "")
    if run.simulated:
        notices.append([strong("Simulated data."), f" {note[:1].upper()}{note[1:]}."])
    if not run.done:
        unfinished = strong("This run has not finished.")
        file = f" --recipe {shlex.quote(run.file)}" if run.file else ""
        command = code(f"backspike resume {shlex.quote(str(run.path))}{file}")
        so_far = " This page shows what it has logged so far. "
        notices.append([unfinished, so_far, command, " continues it and adds the test accuracy."])
    if not run.arrays:
        left_out = ", so figures that need the trained network are left out."
        notices.append(["There is no ", code("evaluation.npz"), left_out])
    if run.resumed:
        notices.append(
            f"Interrupted and resumed {run.resumed} time{'s' if run.resumed > 1 else ''}."
        )
    return notices


def curves(run: RunData) -> Section:
    def pair(key: str) -> list[Line]:
        names = (f"train_{key}" if key == "accuracy" else key, f"validation_{key}")
        return [
            Line(n, run.x, run.series(s), colour(c))
            for n, s, c in zip(_PAIR, names, ("train", "valid"))
        ]

    charts = grid(
        draw_chart(
            "accuracy", "Accuracy", pair("accuracy"), "epoch", percent=True, mark=run.best_epoch
        ),
        draw_chart("loss", "Loss", pair("loss"), "epoch", mark=run.best_epoch),
    )
    text = (
        "A widening gap between the curves indicates overfitting. Training samples are scored "
        "during the epoch and may be augmented, so their accuracy can also be the lower one."
    )
    return Section("curves", "Accuracy and loss", text, charts and [*charts, epoch_table(run)])


_PAIR = ("training", "validation")


def epoch_table(run: RunData) -> Part:
    quantities: dict[str, tuple[str, Callable[[float], str]]] = {
        "loss": ("training loss", plain_number),
        "train_accuracy": ("training accuracy", as_percent),
        "validation_loss": ("validation loss", plain_number),
        "validation_accuracy": ("validation accuracy", as_percent),
        "lr": ("learning rate", plain_number),
        "seconds": ("seconds", plain_number),
    }
    rows = [[1 + e["epoch"], *(number(e.get(key)) for key in quantities)] for e in run.epochs]
    columns = [Column("epoch"), *(Column(head, True, how) for head, how in quantities.values())]
    return Part("details", ("Values of every epoch", Table(columns, rows, "Every epoch")))


def readout(run: RunData) -> Section:
    weights = [
        w if isinstance(w := epoch.get("readout_weights"), list) else [] for epoch in run.epochs
    ]
    T = max(map(len, weights), default=0)
    lines = [
        Line(f"step {t + 1}", run.x, y, ramp(t, T))
        for t, y in enumerate(
            np.array([number(w[t]) if t < len(w) else math.nan for w in weights]) for t in range(T)
        )
    ]
    text = (
        "Temporally weighted output: the prediction is the weighted mean of the outputs of all "
        "timesteps. After each epoch a weight moves towards the training accuracy of its timestep "
        "relative to the average, so a weight above 1 marks a timestep with better predictions "
        "than the others. The mean of the weights stays 1. Compare figure 3 of Li et al. 2024 "
        "(arXiv 2406.19645)."
    )
    chart = draw_chart("readout-weights", "Weight", lines, "epoch")
    return Section("readout", "Weights of the timesteps", text, grid(chart))


def over_time(run: RunData) -> Section:
    accuracy = run.arrays.get("accuracy_over_time", np.array([]))
    steps = np.arange(1, len(accuracy) + 1)
    line = Line("accuracy after each timestep", steps, accuracy, colour("train"))
    chart = draw_chart("over-time", "Test accuracy", [line], "timesteps", percent=True)
    text = (
        "The test accuracy after each number of timesteps. Where the curve is flat, fewer "
        "timesteps suffice and save time and spikes in proportion."
    )
    return Section("over-time", "Accuracy over time", text, grid(chart))


def early_exit(run: RunData) -> Section:
    accuracy, validation = (
        numbers(run.anytime.get(key)) for key in ("accuracy", "validation_accuracy")
    )
    curves = {name: c for name, c in as_dict(run.anytime.get("exit")).items() if is_curve(c)}
    if not accuracy or not validation or not curves:
        return Section("early-exit", "")
    steps = np.arange(1.0, len(accuracy) + 1)
    same = "same number of timesteps for all samples"
    lines = [Line(same, steps, np.array(accuracy), colour("soft"), dashed=True)]
    rows = []
    for i, (name, c) in enumerate(curves.items()):
        order = np.argsort(c["steps"], kind="stable")
        x, y = (np.array(c[key], float)[order] for key in ("steps", "accuracy"))
        lines.append(Line(f"exit by {name}", x, y, colour(f"run{i % 8}")))
        at = c["chosen"]
        values = [as_percent(c[key][at], 2) for key in ("validation_accuracy", "accuracy")]
        steps_taken = f"{c['steps'][at]:.2f} of {len(accuracy)}"
        rows.append([name, plain_number(c["threshold"][at]), *values, steps_taken])
    last = [as_percent(values[-1], 2) for values in (validation, accuracy)]
    rows.append(["all timesteps", "", *last, f"{len(accuracy)}"])
    chart = draw_chart("early-exit", "Test accuracy", lines, "mean timesteps", percent=True)
    heads = ("threshold", "validation accuracy", "test accuracy", "mean timesteps (test)")
    table = Table([*left("exit by"), *right(*heads)], rows, "Early exit")
    text = (
        "Each sample stops at the first timestep at which the network is confident enough, at the "
        "latest at the last one. Confidence is the largest class probability so far, margin its "
        "distance to the second largest. The threshold is the earliest one that makes no "
        f"additional mistakes on the {count(number(run.anytime.get('validation_samples')))} "
        "validation samples. The test set plays no part in choosing it; the curve shows the result "
        "for other thresholds."
    )
    return Section("early-exit", "Early exit", text, [*grid(chart), table])


def confusion(run: RunData) -> Section:
    counts = run.arrays.get("confusion", np.zeros((0, 0)))
    if not counts.sum():
        return Section("confusion", "")
    names = class_names(run)
    right, total = int(np.trace(counts)), int(counts.sum())
    low, high = wilson(right, total)
    text = [
        "Rows are true classes and columns predictions; numbers off the diagonal are mistakes. "
        f"{right} of {total} test samples are correct: {as_percent(right / total)}, 95\u202f% "
        f"confidence interval {as_percent(low)} to {as_percent(high)}. ",
        *worst(counts, names),
    ]
    body = (
        [_confusion_table(counts, names)]
        if len(counts) <= MAX_CLASSES
        else _confusion_image(counts, names)
    )
    return Section("confusion", "Confusion matrix", text, body)


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a proportion; z = 1.96 gives 95 % (Wilson 1927, JASA 22:209).

    Returns its lower and upper end.
    """
    p, n = right / total, total
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def worst(counts: np.ndarray, names: Sequence[str]) -> list[str | Mark]:
    wrong = counts - np.diag(np.diag(counts))
    if not wrong.any():
        return ["There are no mistakes."]
    if wrong.max() == 1:
        return ["No mistake occurs twice."]
    true, answer = np.unravel_index(wrong.argmax(), wrong.shape)
    times, of = int(wrong[true, answer]), int(counts[true].sum())
    often = f", {times} of {of} times ({as_percent(times / of)})."
    first = "The most frequent mistake is "
    return [first, bold(names[true]), " predicted as ", bold(names[answer]), often]


def _confusion_table(counts: np.ndarray, names: Sequence[str]) -> Table:
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    long = max(map(len, names)) > 3
    heads = [Mark("span", name) for name in names]
    rows = [
        [
            name,
            *(_confusion_cell(i == j, share[i, j], int(counts[i, j])) for j in range(len(names))),
            as_percent(share[i, i]),
        ]
        for i, name in enumerate(names)
    ]
    style = "confusion tall" if long else "confusion"
    columns = right("true", *heads, "correct")
    return Table(columns, rows, "Confusion matrix", name="confusion", style=style)


def _confusion_cell(right: bool, share: float, count: int) -> Cell:
    if not count:
        return Cell("0", "none")
    if right:
        return heat(share, f"{count}")
    return heat(2 * math.sqrt(share), f"{count}", "heat mistake")


def _confusion_image(counts: np.ndarray, names: Sequence[str]) -> list[Part | Table]:
    share = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    pixels = np.zeros((*share.shape, 4), np.uint8)
    pixels[..., 3] = 255 * share
    wrong = counts - np.diag(np.diag(counts))
    pairs = [np.unravel_index(index, wrong.shape) for index in np.argsort(wrong, None)[::-1][:10]]
    rows = [[names[i], names[j], int(wrong[i, j])] for i, j in pairs if wrong[i, j]]
    alt = (
        f"Confusion matrix of {len(names)} classes, true classes from top to bottom, predictions "
        "from left to right"
    )
    title = "The darker a point, the larger its share of the row"
    columns = [*left("true"), *right("predicted", "times")]
    return grid(
        Figure("confusion", title, image(pixels, alt, "ink matrix")),
        Table(columns, rows, "Most frequent mistakes"),
    )
