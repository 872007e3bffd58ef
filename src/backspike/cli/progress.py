"""How the command line shows a run: a bar on a terminal, plain lines elsewhere, JSON lines for machines.

Each is a function that takes the events of `bs.fit`; docs/run-folder.md lists them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..system.events import Listener, printable


@contextmanager
def listener(as_json: bool) -> Iterator[Listener]:
    """The way of showing that fits where standard output goes."""
    if as_json:
        yield _json
    elif sys.stdout.isatty():
        with _bar() as listen:
            yield listen
    else:
        yield _plain


def _json(event: dict[str, Any]) -> None:
    if event["event"] != "batch":
        print(json.dumps(event), flush=True)


def _plain(event: dict[str, Any]) -> None:
    if text := _text(event):
        print(text, flush=True)


def _text(event: dict[str, Any]) -> str | None:
    """The line that shows an event; None for those that only move the bar."""
    match event["event"]:
        case "start":
            return _opening(event)
        case "scaling":
            return _scaling(event)
        case "rehearsal" | "memory":
            return f"memory: {event['text']}"
        case "cuda_graph":
            return f"CUDA graph: {event['text']}"
        case "epoch":
            return _line(event)
        case "watch":
            return _health(event)
    return None


def _opening(event: dict[str, Any]) -> str:
    fields = event["recipe"]["fields"]
    again = f", from epoch {event['epoch']}" if event["epoch"] else ""
    why = event["chosen"].get("precision")
    together = f", {event['ranks']} ranks" if event["ranks"] > 1 else ""
    precision = (
        fields["precision"]
        + (f" ({why})" if why else "")
        + (", channels last" if fields["channels_last"] else "")
    )
    return printable(
        f"{event['recipe']['name']}: {fields['model']} on {fields['data']}, T = {fields['T']}, "
        f"{event['epochs']} epochs{again}, {precision}{together}, into {event['run']}"
    )


def _scaling(event: dict[str, Any]) -> str:
    scaled = [f"{name} (with {post})" for name, post in event["scaled"].items()]
    others = [f"{name} ({why})" for name, why in event["not_scaled"].items()]
    return f"gradients scaled: {', '.join(scaled)}; not scaled: {', '.join(others) or 'none'}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _line(event: dict[str, Any]) -> str:
    rates = event["firing_rate"].values()
    validation = (
        ""
        if event["validation_accuracy"] is None
        else f"  validation {_percent(event['validation_accuracy'])}"
    )
    masked = "" if event["masked_share"] is None else f"  masked {_percent(event['masked_share'])}"
    return (
        f"epoch {event['epoch']:3d}  loss {event['loss']:.4f}  train {_percent(event['train_accuracy'])}{validation}"
        f"  firing {_percent(sum(rates) / max(len(rates), 1))}{masked}  {event['samples_per_second']:,.0f} samples/s"
    )


def _health(event: dict[str, Any]) -> str:
    vitals = event["vitals"]
    layers, weights = vitals["layers"].values(), vitals["weights"].values()
    support = [sum(layer["support_share"]) / len(layer["support_share"]) for layer in layers]
    steps = [w["update_ratio"] for w in weights if w["update_ratio"] is not None]
    said = (
        [f"under the surrogate {_percent(min(support))}-{_percent(max(support))}"]
        if support
        else []
    )
    said += [f"steps {min(steps):.1g}-{max(steps):.1g} of the weights"] if steps else []
    ill = [
        str(f.get("problem", f.get("illness")))
        + (f" ({', '.join(f['where'])})" if f["where"] else "")
        for f in event["findings"]
        if not f["note"]
    ]
    return f"    health  {'  '.join(said)}  {'; '.join(ill) or 'nothing found'}"


@contextmanager
def _bar() -> Iterator[Listener]:
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f}%  {task.fields[numbers]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=None, numbers="")
        epochs = 0

        def listen(event: dict[str, Any]) -> None:
            nonlocal epochs
            if event["event"] == "start":
                epochs = event["epochs"]
                progress.update(task, total=epochs, completed=event["epoch"])
            elif event["event"] == "batch":
                progress.update(
                    task,
                    completed=event["epoch"] + event["batch"] / event["batches"],
                    numbers=f"loss {event['loss']:.4f}  {event['samples_per_second']:,.0f} samples/s",
                    description=f"epoch {event['epoch'] + 1}/{epochs}",
                )
            if text := _text(event):
                progress.console.print(text, highlight=False, markup=False)

        yield listen
