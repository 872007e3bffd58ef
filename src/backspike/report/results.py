"""Report sections: headline, training curves, readout, early exit and confusion."""

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

MAX_CLASSES = 20  # of a confusion matrix in numbers
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
    test = ("Test accuracy", accuracy, "weights of the best epoch by validation")
    so_far = as_percent(last("train_accuracy"))
    running = ("Training accuracy", so_far, "so far; the test comes at the end")
    speed = f"{count(last('samples_per_second'))} samples per second{device}"
    of = (
        f"of {planned:.0f} planned"
        if math.isfinite(planned) and planned != len(run.epochs)
        else "all that were planned"
    )
    tiles = [
        test if done else running,
        ("Test, last epoch", accuracy_last, "weights as training left them"),
        ("Best validation", as_percent(best), f"in epoch {run.best_epoch:.0f} (from 0)"),
        ("Epochs", f"{len(run.epochs)}", of if math.isfinite(planned) else ""),
        ("Time", seconds(run.seconds), speed),
        ("Parameters", count(number(run.env.get("parameters"))), "numbers that are learned"),
    ]
    return [tile for tile in tiles if tile[1] != "–"]


def subtitle(run: RunData) -> Text:
    said: list[Any] = []
    for key in ("model", "neuron.surrogate", "readout"):
        if run.fields.get(key) is not None:
            said += [" · " * bool(said), code(run.fields[key])]
    if "data" in run.fields:
        said += [" on ", bold(run.fields["data"]), " (simulated)" * run.simulated]
    if "T" in run.fields:
        said.append(f", {run.fields['T']}\u00a0timesteps")
    return said


def notices(run: RunData) -> list[Text]:
    notices: list[Text] = []
    note = str(run.env.get("data_note") or "")
    if run.simulated:
        notices.append([strong("Simulated data."), f" {note[:1].upper()}{note[1:]}."])
    if not run.done:
        unfinished = strong("This run has not finished.")
        command = code(f"backspike resume {shlex.quote(str(run.path))}")
        shown = " Shown is what it logged up to here. "
        notices.append([unfinished, shown, command, " continues it, and adds the test accuracy."])
    if not run.arrays:
        left_out = ": figures that need the trained network are left out."
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
        "A widening gap between the curves means that the network learns its training samples by heart; they are scored while "
        "they are being learned, and may be augmented, so they can also lag behind."
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
    rows = [[e["epoch"], *(number(e.get(key)) for key in quantities)] for e in run.epochs]
    columns = [Column("epoch"), *(Column(head, True, how) for head, how in quantities.values())]
    return Part("details", ("The numbers, epoch by epoch", Table(columns, rows, "Every epoch")))


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
        "Temporally weighted output: the answer is the mean of the outputs of all timesteps, each times its weight. After an "
        "epoch a weight moves towards that timestep's own training accuracy relative to the average one, so above 1 means that "
        "the network answers better at this step than at others. The mean of all weights stays 1. This is the counterpart of "
        "figure 3 of Li et al. 2024 (arXiv 2406.19645)."
    )
    chart = draw_chart("readout-weights", "Weight", lines, "epoch")
    return Section("readout", "Weights of the timesteps", text, grid(chart))


def over_time(run: RunData) -> Section:
    accuracy = run.arrays.get("accuracy_over_time", np.array([]))
    steps = np.arange(1, len(accuracy) + 1)
    line = Line("answer after so many steps", steps, accuracy, colour("train"))
    chart = draw_chart("over-time", "Test accuracy", [line], "timesteps", percent=True)
    text = (
        "The test accuracy if the network were stopped early: where the line is already flat, fewer timesteps would do, "
        "at a proportional saving of time and spikes."
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
    all_alike = "the same number of steps for all"
    lines = [Line(all_alike, steps, np.array(accuracy), colour("soft"), dashed=True)]
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
    heads = ("threshold", "validation accuracy", "test accuracy", "mean timesteps on the test set")
    table = Table([*left("exit by"), *right(*heads)], rows, "Early exit")
    text = (
        "Each sample stops at the first timestep at which the network is sure enough, the last at the latest. Confidence is "
        "the largest probability of the answer so far, margin its lead over the second. The threshold in the table is the one "
        "that stops soonest without one more mistake on the "
        f"{count(number(run.anytime.get('validation_samples')))} validation samples than after all timesteps. The test "
        "samples choose nothing; the curve shows what other thresholds would give."
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
        f"Rows are the true classes, columns the answers, so every number off the diagonal is a kind of mistake. {right} of "
        f"{total} test samples are right: {as_percent(right / total)}, with a 95\u202f% interval from {as_percent(low)} to "
        f"{as_percent(high)} for the luck of the sample. ",
        *worst(counts, names),
    ]
    body = (
        [_confusion_table(counts, names)]
        if len(counts) <= MAX_CLASSES
        else _confusion_image(counts, names)
    )
    return Section("confusion", "Confusion matrix", text, body)


def wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927)."""
    p, n = right / total, total
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def worst(counts: np.ndarray, names: Sequence[str]) -> list[str | Mark]:
    wrong = counts - np.diag(np.diag(counts))
    if not wrong.any():
        return ["There is no mistake."]
    if wrong.max() == 1:
        return ["No confusion occurs twice."]
    true, answer = np.unravel_index(wrong.argmax(), wrong.shape)
    times, of = int(wrong[true, answer]), int(counts[true].sum())
    often = f", {times} times in {of} ({as_percent(times / of)})."
    first = "The most frequent confusion: "
    return [first, bold(names[true]), " taken for ", bold(names[answer]), often]


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
    columns = right("true", *heads, "right")
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
    alt = f"Confusion matrix of {len(names)} classes, true classes from top to bottom, answers from left to right"
    title = "The stronger a point, the larger its share of the row"
    columns = [*left("true"), *right("answer", "times")]
    return grid(
        Figure("confusion", title, image(pixels, alt, "ink matrix")),
        Table(columns, rows, "Most frequent confusions"),
    )
