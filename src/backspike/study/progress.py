"""The progress of a study: `Clock` combines the events of its runs, `listener` shows the result."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..system.bar import open_bar
from ..system.events import Listener
from .spec import Job
from .statistics import percent


class Clock:
    """Turns the events of runs into events of the study.

    failed: the reason for each run that failed.
    """

    def __init__(self, jobs: Sequence[Job], tell: Listener) -> None:
        self.tell = tell
        self.runs = len(jobs)
        self.finished = 0
        self.total = {job: float(job.recipe.epochs) for job in jobs}
        self.at: dict[Job, float] = {}
        self.first: dict[Job, float] = {}
        self.started = 0.0
        self.failed: dict[Job, str] = {}

    def hear(self, job: Job, event: dict[str, Any]) -> None:
        """Takes an event of a run."""
        if event["event"] == "start":
            # time counts from here, without the imports of the processes
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

    def over(self, job: Job, error: str | None) -> None:
        """Called when a run has ended; error: why it failed, or None."""
        self.at[job] = self.total[job]
        if error is None:
            return
        self.failed[job] = error
        self.finished += 1
        where = {"arm": job.arm, "seed": job.seed, "number": self.finished, "of": self.runs}
        self.tell({"event": "failed", **where, "error": error})

    def _left(self) -> float | None:
        """Remaining seconds, estimated from the epochs done since the start."""
        done = sum(at - self.first.get(job, 0.0) for job, at in self.at.items())
        left = sum(self.total.values()) - sum(self.at.values())
        return round((time.monotonic() - self.started) / done * left, 1) if done > 0 else None

    def _progress(self) -> None:
        share = sum(self.at.values()) / sum(self.total.values())
        counts = {"finished": self.finished, "of": self.runs}
        self.tell({"event": "progress", "share": share, **counts, "seconds_left": self._left()})


@contextmanager
def listener(as_json: bool) -> Iterator[Listener]:
    """Shows a study on the command line.

    It is a bar on a terminal, a line per finished run elsewhere, or JSON.
    """
    if as_json:

        def print_json(event: dict[str, Any]) -> None:
            if event["event"] != "progress":
                print(json.dumps(event), flush=True)

        yield print_json
    elif sys.stdout.isatty():
        with open_bar(total=1.0) as bar:

            def listen(event: dict[str, Any]) -> None:
                if event["event"] == "progress":
                    runs = f"{event['finished']}/{event['of']} runs"
                    bar.move(completed=event["share"], description=runs, text=_time_left(event))
                elif line := _line(event):
                    bar.print(line)

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
    if seconds < 100:
        return f"about {seconds:.0f} s left"
    if seconds < 6000:
        return f"about {seconds / 60:.0f} min left"
    return f"about {seconds / 3600:.1f} h left"


def _line(event: dict[str, Any]) -> str:
    match event["event"]:
        case "study":
            done = event["runs"] - event["left"]
            already = f", {done} of them already finished" if done else ""
            return f"{event['study']}: {event['runs']} runs into {event['out']}{already}"
        case "run":
            best, last = percent(event["test_accuracy"]), percent(event["test_accuracy_last"])
            tested = f"test {best} %, last epoch {last} %"
            place = f"{event['number']}/{event['of']}  {event['arm']}, seed {event['seed']}"
            return f"{place}: {tested}, {event['seconds']:.1f} s; {_time_left(event)}"
        case "failed":
            return f"{event['number']}/{event['of']}  FAILED  {event['error']}"
        case "rule":
            size = f"{event['problems']} problems, {event['learning_rates']} rates"
            return f"{event['rule']}: {size}, {event['seconds']:.1f} s"
    return ""
