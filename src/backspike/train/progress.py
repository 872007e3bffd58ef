"""Shows a training: a progress bar on a terminal, plain lines elsewhere, JSON lines for programs.

Each way is a function that takes the events of `bs.fit`, which docs/run-folder.md lists. Epochs
count from 0 in events and files, and from 1 on the screen.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..system.bar import open_bar
from ..system.events import Listener, printable


@contextmanager
def shown(listen: Listener | None, wanted: bool | None) -> Iterator[Listener | None]:
    """The listener given, and the progress on a terminal or in a notebook if it is wanted.

    wanted=None: if there is no other listener, and somebody can see it.
    """
    seen = sys.stdout.isatty() or _in_notebook()
    if not (wanted or (wanted is None and listen is None and seen)):
        yield listen
        return
    with listener(as_json=False) as show:

        def both(event: dict[str, Any]) -> None:
            show(event)
            if listen:
                listen(event)

        yield both


def _in_notebook() -> bool:
    return "ipykernel" in sys.modules


def _has_bar() -> bool:
    """Whether a bar can move here: on a terminal, and in a notebook with ipywidgets."""
    if not _in_notebook():
        return sys.stdout.isatty()
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def listener(as_json: bool) -> Iterator[Listener]:
    """The listener that suits standard output."""
    if as_json:
        yield _print_json
    elif _has_bar():
        with _bar() as listen:
            yield listen
    else:
        yield _print_line


def _print_json(event: dict[str, Any]) -> None:
    if event["event"] != "batch":
        print(json.dumps(event), flush=True)


def _print_line(event: dict[str, Any]) -> None:
    if text := _text(event):
        print(text, flush=True)


def _text(event: dict[str, Any]) -> str | None:
    """The line that shows an event; None for events that only move the bar."""
    match event["event"]:
        case "start":
            return _start(event)
        case "scaling":
            return _scaling(event)
        case "rehearsal" | "memory":
            return f"memory: {event['text']}"
        case "silent" | "diverged" | "one_step" | "weights":
            name = event["event"].replace("_", " ")
            return printable(f"{name}: {event['text']}")
        case "cuda_graph":
            return f"CUDA graph: {event['text']}"
        case "epoch":
            return _epoch(event)
        case "watch":
            return _health(event)
    return None


def _start(event: dict[str, Any]) -> str:
    fields = event["recipe"]["fields"]
    resumed = f", from epoch {event['epoch'] + 1}" if event["epoch"] else ""
    reason = event["chosen"].get("precision")
    precision = f"precision {fields['precision']}" + (f" ({reason})" if reason else "")
    layout = ", channels last" if fields["channels_last"] else ""
    ranks = f", {event['ranks']} ranks" if event["ranks"] > 1 else ""
    epochs = f"{event['epochs']} epoch{'s' * (event['epochs'] > 1)}"
    return printable(
        f"{event['recipe']['name']}: {fields['model']} on {fields['data']}, T = {fields['T']}, "
        f"{epochs}{resumed}, {precision}{layout}{ranks}, into {event['run']}"
    )


def _scaling(event: dict[str, Any]) -> str:
    scaled = [f"{name} (with {post})" for name, post in event["scaled"].items()]
    others = [f"{name} ({reason})" for name, reason in event["not_scaled"].items()]
    return f"gradients scaled: {', '.join(scaled)}; not scaled: {', '.join(others) or 'none'}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def _epoch(event: dict[str, Any]) -> str:
    rates = event["firing_rate"].values()
    shares = {
        "train": event["train_accuracy"],
        "validation": event["validation_accuracy"],
        "firing": sum(rates) / max(len(rates), 1),
        "masked": event["masked_share"],
    }
    shown = "  ".join(
        f"{name} {_percent(share)}"
        for name, share in shares.items()
        if share is not None or name == "train"
    )
    skipped = event.get("skipped_steps")
    overflow = f"  {skipped} steps skipped (overflow in float16)" if skipped else ""
    return (
        f"epoch {event['epoch'] + 1:3d}  loss {event['loss']:.4f}  {shown}"
        f"  {event['samples_per_second']:,.0f} samples/s{overflow}"
    )


def _health(event: dict[str, Any]) -> str:
    """One line of what `backspike doctor` measures; vitals that are missing are left out."""
    vitals = event["vitals"]
    layers, weights = vitals["layers"].values(), vitals["weights"].values()
    support = [sum(layer["support_share"]) / len(layer["support_share"]) for layer in layers]
    updates = [w["update_ratio"] for w in weights if w["update_ratio"] is not None]
    problems = [_problem(finding) for finding in event["findings"] if not finding["note"]]
    parts = [f"health: {'; '.join(problems)}" if problems else "health OK"]
    if support:
        low, high = 100 * min(support), 100 * max(support)
        parts.append(f"{low:.0f}-{high:.0f} % of neurons receive a gradient")
    if updates:
        parts.append(f"relative weight update {min(updates):.1g}-{max(updates):.1g}")
    return f"    {'; '.join(parts)}"


def _problem(finding: dict[str, Any]) -> str:
    name = finding.get("problem") or finding.get("illness")
    return f"{name} ({', '.join(finding['where'])})" if finding["where"] else str(name)


@contextmanager
def _bar() -> Iterator[Listener]:
    with open_bar(remaining=True) as bar:
        epochs = 0

        def listen(event: dict[str, Any]) -> None:
            nonlocal epochs
            if event["event"] == "start":
                epochs = event["epochs"]
                bar.move(total=epochs, completed=event["epoch"], description="training")
            elif event["event"] == "batch":
                speed = f"{event['samples_per_second']:,.0f} samples/s"
                bar.move(
                    completed=event["epoch"] + event["batch"] / event["batches"],
                    text=f"loss {event['loss']:.4f}  {speed}",
                    description=f"epoch {event['epoch'] + 1}/{epochs}",
                )
            if text := _text(event):
                bar.print(text)

        yield listen
