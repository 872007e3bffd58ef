"""One page that compares several runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import ReportError
from .chart import Line, colour, draw_chart
from .html import Section, as_percent, escape, grid, html_table, render_page, seconds, write_page
from .read import RunData, load_run, number


def compare(runs: list[Path], out: Path) -> Path:
    """Writes a page `out` that shows several runs side by side, and returns its path. Raises `ReportError`."""
    if not runs:
        raise ReportError(
            "no run folder to compare; give at least one that `backspike train` wrote"
        )
    loaded = [load_run(run) for run in runs]
    names = run_names([run.path for run in loaded])
    simulated = any("simulated" in str(run.env.get("data_note")).lower() for run in loaded)
    notice = (
        '<p class="notice" role="note"><strong>Simulated data</strong> in at least one of these runs.</p>'
        if simulated
        else ""
    )
    head = f"<header><p>backspike · comparison</p><h1>{len(runs)} runs</h1>{notice}</header>"
    sections = [comparison(loaded, names), overlay(loaded, names)]
    body = "".join(section.html() for section in sections if section.body)
    return write_page(
        Path(out), render_page(f"{len(runs)} runs · backspike comparison", head + body)
    )


def run_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = next((d for d in range(1, 9) if len({p[-d:] for p in parts}) == len(set(parts))), 9)
    return ["/".join(p[-depth:]) for p in parts]


def comparison(runs: Sequence[RunData], names: Sequence[str]) -> Section:
    fields = dict.fromkeys(key for run in runs for key in run.fields)
    differing = [
        key
        for key in fields
        if len({json.dumps(run.fields.get(key, ...), default=str) for run in runs}) > 1
    ]
    head = [
        "run",
        "test accuracy, best by validation",
        "test accuracy, last epoch",
        "best validation",
        "epochs",
        "time",
    ]
    rows = []
    for i, (run, name) in enumerate(zip(runs, names)):
        numbers = [
            as_percent(number(run.done.get(key)))
            for key in ("test_accuracy", "test_accuracy_last", "validation_accuracy")
        ]
        epochs = f"{len(run.epochs)}" + ("" if run.done else " (not finished)")
        swatch = f'<i class="{"dashed" if i >= 8 else ""}" style="color:var(--run{i % 8})"></i>'
        settings = [
            f"<code>{escape(run.fields[key])}</code>" if key in run.fields else "–"
            for key in differing
        ]
        rows.append([f"{swatch}{escape(name)}", *numbers, epochs, seconds(run.seconds), *settings])
    table = html_table(
        [*head, *(f"<code>{escape(key)}</code>" for key in differing)],
        rows,
        "Runs",
        "numbers compare",
    )
    text = "A run a row, with the fields of the recipe in which the runs differ. One seed proves little."
    return Section("runs", "Results", text, table)


def overlay(runs: Sequence[RunData], names: Sequence[str]) -> Section:
    def lines(key: str) -> list[Line]:
        return [
            Line(name, run.x, run.series(key), colour(f"run{i % 8}"), i >= 8)
            for i, (run, name) in enumerate(zip(runs, names))
        ]

    charts = grid(
        draw_chart(
            "validation-accuracy",
            "Validation accuracy",
            lines("validation_accuracy"),
            "epoch",
            True,
        ),
        draw_chart("train-accuracy", "Training accuracy", lines("train_accuracy"), "epoch", True),
        draw_chart("validation-loss", "Validation loss", lines("validation_loss"), "epoch"),
        draw_chart("train-loss", "Training loss", lines("loss"), "epoch"),
    )
    return Section("curves", "Accuracy and loss", "Colours as in the table above.", charts)
