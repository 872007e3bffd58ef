"""A page that compares several runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ReportError
from ..system.table import Table, left, right
from .chart import Line, colour, draw_chart
from .format import as_percent, seconds
from .page import Key, Page, Section, Text, code, grid, strong, write_page
from .read import load_run
from .run_data import RunData, number


def compare(runs: list[Path], out: Path) -> Path:
    """Writes a page that compares several runs to `out` and returns its path.

    Raises ReportError, with a one-line message, if a folder is missing or damaged.
    """
    if not runs:
        raise ReportError(
            "no run folder to compare; give at least one that `backspike train` wrote"
        )
    loaded = [load_run(run) for run in runs]
    names = run_names([run.path for run in loaded])
    heading = f"{len(runs)} runs"
    page = Page(
        kind="comparison",
        title=f"{heading} · backspike comparison",
        heading=heading,
        sections=[comparison(loaded, names), overlay(loaded, names)],
        notices=[[strong("Simulated data"), " in at least one of these runs."]]
        if any(run.simulated for run in loaded)
        else [],
    )
    return write_page(Path(out), page)


def run_names(paths: Sequence[Path]) -> list[str]:
    """The shortest path endings that are all different."""
    parts = [path.resolve().parts for path in paths]
    depth = next((d for d in range(1, 9) if len({p[-d:] for p in parts}) == len(set(parts))), 9)
    return ["/".join(p[-depth:]) for p in parts]


def comparison(runs: Sequence[RunData], names: Sequence[str]) -> Section:
    fields = dict.fromkeys(key for run in runs for key in run.used_fields)
    differing = [
        key
        for key in fields
        if len({json.dumps(run.used_fields.get(key, ...), default=str) for run in runs}) > 1
    ]
    heads = (
        "test accuracy, best epoch",
        "test accuracy, last epoch",
        "best validation accuracy",
        "epochs",
        "time",
    )
    rows = []
    for i, (run, name) in enumerate(zip(runs, names)):
        keys = ("test_accuracy", "test_accuracy_last", "validation_accuracy")
        best, last, validation = (as_percent(number(run.done.get(key))) for key in keys)
        # without a validation set there is no best epoch
        numbers = [best if run.has_validation else "–", last, validation]
        epochs = f"{len(run.epochs)}" + ("" if run.done else " (not finished)")
        swatch = Key(name, f"var(--run{i % 8})", "dashed" * (i >= 8))
        used = run.used_fields
        settings = [_setting(used, run.own, key) for key in differing]
        rows.append([swatch, *numbers, epochs, seconds(run.seconds), *settings])
    columns = [*left("run"), *right(*heads, *map(code, differing))]
    text = "One row per run, with the recipe fields in which they differ. One seed proves little."
    table = Table(columns, rows, "Runs", style="numbers compare")
    return Section("runs", "Results", text, [table])


def _setting(fields: dict[str, Any], own: Sequence[str], key: str) -> Text:
    if key not in fields:
        return "–"
    return str(fields[key]) if key in own else code(fields[key])


def overlay(runs: Sequence[RunData], names: Sequence[str]) -> Section:
    def lines(key: str) -> list[Line]:
        return [
            Line(name, run.x, run.series(key), colour(f"run{i % 8}"), i >= 8)
            for i, (run, name) in enumerate(zip(runs, names))
        ]

    shown = (
        ("validation-accuracy", "Validation accuracy", "validation_accuracy", True),
        ("train-accuracy", "Training accuracy", "train_accuracy", True),
        ("validation-loss", "Validation loss", "validation_loss", False),
        ("train-loss", "Training loss", "loss", False),
    )
    charts = [draw_chart(n, title, lines(key), "epoch", share) for n, title, key, share in shown]
    return Section(
        "curves", "Accuracy and loss", "The colours are those of the table above.", grid(*charts)
    )
