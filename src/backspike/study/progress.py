"""How far a study is: `Clock` makes events of the whole from what its runs say; `listener` shows them on the command line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..system.events import Listener
from .spec import Job
from .statistics import percent


class Clock:
    """Turns what runs say into the progress of the study."""

    def __init__(self, jobs: Sequence[Job], tell: Listener) -> None:
        self.tell, self.runs, self.finished = tell, len(jobs), 0
        self.total = {job: float(job.recipe.epochs) for job in jobs}
        self.at: dict[Job, float] = {}
        self.first: dict[Job, float] = {}
        self.started = 0.0

    def hear(self, job: Job, event: dict[str, Any]) -> None:
        if event["event"] == "start":
            # from here on, so that the imports of the processes do not count
            self.started = self.started or time.monotonic()
            self.first[job] = self.at[job] = event["epoch"]
        elif event["event"] == "batch":
            self.at[job] = event["epoch"] + event["batch"] / event["batches"]
            self._progress()
        elif event["event"] == "done":
            share = {k: event[k] for k in ("test_accuracy", "test_accuracy_last", "seconds")}
            self.finished += 1
            self.at[job] = self.total[job]
            seconds = self._left()
            where = {
                "arm": job.arm,
                "seed": job.seed,
                "number": self.finished,
                "of": self.runs,
                "seconds_left": seconds,
            }
            self.tell({"event": "run", **where, **share})
            self._progress()

    def over(self, job: Job, error: str | None) -> dict[Job, str]:
        """Called when a run has ended, well or not."""
        self.at[job] = self.total[job]
        if error is None:
            return {}
        self.finished += 1
        where = {"arm": job.arm, "seed": job.seed, "number": self.finished, "of": self.runs}
        self.tell({"event": "failed", **where, "error": error})
        return {job: error}

    def _left(self) -> float | None:
        """Seconds to go, from the epochs done since the start."""
        done = sum(at - self.first.get(job, 0.0) for job, at in self.at.items())
        left = sum(self.total.values()) - sum(self.at.values())
        return round((time.monotonic() - self.started) / done * left, 1) if done > 0 else None

    def _progress(self) -> None:
        share = sum(self.at.values()) / sum(self.total.values())
        counts = {"finished": self.finished, "of": self.runs}
        self.tell({"event": "progress", "share": share, **counts, "seconds_left": self._left()})


@contextmanager
def listener(as_json: bool) -> Iterator[Listener]:
    """How the command line shows a study: a bar on a terminal, a line for each finished run elsewhere, JSON for machines."""
    if as_json:
        yield (
            lambda event: (
                None if event["event"] == "progress" else print(json.dumps(event), flush=True)
            )
        )
    elif sys.stdout.isatty():
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        left = TextColumn("{task.fields[left]}")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%"),
        )
        with Progress(*columns, TimeElapsedColumn(), left) as bar:
            task = bar.add_task("study", total=1.0, left="")

            def listen(event: dict[str, Any]) -> None:
                if event["event"] == "progress":
                    shown = f"{event['finished']}/{event['of']} runs"
                    bar.update(
                        task, completed=event["share"], description=shown, left=_time_left(event)
                    )
                elif line := _line(event):
                    bar.console.print(line, highlight=False, markup=False)

            yield listen
    else:

        def plain(event: dict[str, Any]) -> None:
            if line := _line(event):
                print(line, flush=True)

        yield plain


def _time_left(event: dict[str, Any]) -> str:
    seconds = event.get("seconds_left")
    if seconds is None:
        return ""
    number, unit = (
        (seconds, "s")
        if seconds < 100
        else (seconds / 60, "min")
        if seconds < 6000
        else (seconds / 3600, "h")
    )
    return f"about {number:.{int(unit == 'h')}f} {unit} left"


def _line(event: dict[str, Any]) -> str:
    match event["event"]:
        case "study":
            done = event["runs"] - event["left"]
            return f"{event['study']}: {event['runs']} runs into {event['out']}" + (
                f", {done} of them finished before" if done else ""
            )
        case "run":
            tested = f"test {percent(event['test_accuracy'])} %, last epoch {percent(event['test_accuracy_last'])} %"
            place = f"{event['number']}/{event['of']}  {event['arm']}, seed {event['seed']}"
            return f"{place}: {tested}, {event['seconds']:.1f} s; {_time_left(event)}"
        case "failed":
            return f"{event['number']}/{event['of']}  FAILED  {event['error']}"
        case "rule":
            return f"{event['rule']}: {event['problems']} problems, {event['learning_rates']} rates, {event['seconds']:.1f} s"
    return ""
