"""Progress of a bench: a bar on a terminal, plain lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..system.bar import open_bar
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
                f"{event['rounds']} round{'s' * (event['rounds'] != 1)}"
            )
        case "failed":
            return f"{event['workload']}: {event['name']} failed: {event['error']}"
    return ""


@contextmanager
def _bar() -> Iterator[Listener]:
    with open_bar(total=1.0, remaining=True, transient=True) as bar:

        def listen(event: dict[str, Any]) -> None:
            match event["event"]:
                case "start":
                    bar.move(completed=0, description=event["workload"], text="")
                case "ready":
                    bar.move(completed=event["share"], text=event["name"])
                case "round":
                    bar.move(completed=event["share"], text=f"round {event['round']}")
                case "failed":
                    bar.print(_line(event))

        yield listen
