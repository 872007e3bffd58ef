"""Progress of a bench: a bar on a terminal, plain lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..system.events import Listener
from ..system.files import plain


@contextmanager
def listener(as_json: bool) -> Iterator[Listener]:
    """A listener suited to standard output."""
    if as_json:
        yield (
            lambda event: (
                None
                if event["event"] in ("ready", "round")
                else print(json.dumps(plain(event)), flush=True)
            )
        )
    elif sys.stdout.isatty():
        with _bar() as listen:
            yield listen
    else:
        yield _lines


def _lines(event: dict[str, Any]) -> None:
    if line := _line(event):
        print(line, flush=True)


def _line(event: dict[str, Any]) -> str:
    match event["event"]:
        case "start":
            return (
                f"{event['workload']}: {event['implementations']} processes taking turns, "
                f"{event['rounds']} rounds"
            )
        case "failed":
            return f"{event['workload']}: {event['name']} failed: {event['error']}"
    return ""


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
        TextColumn("{task.percentage:3.0f}%  {task.fields[at]}"),
    )
    left = (
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, *left, transient=True) as progress:
        task = progress.add_task("bench", total=1.0, at="")

        def listen(event: dict[str, Any]) -> None:
            match event["event"]:
                case "start":
                    progress.reset(task, description=event["workload"], at="")
                case "ready":
                    progress.update(task, completed=event["share"], at=event["name"])
                case "round":
                    progress.update(task, completed=event["share"], at=f"round {event['round']}")
                case "failed":
                    progress.console.print(_line(event), highlight=False, markup=False)

        yield listen
