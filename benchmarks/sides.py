"""The sides of a race, each a process of its own that is asked in turn, so that they train on the same quiet machine.

A side is the script itself, started with `--side NAME` in the environment of its library: it answers one JSON line by another.
Used by mnist_race.py and cifar_race.py; nothing here needs backspike, which the other environment has not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = {
    "backspike": "backspike",
    "spikingjelly": "SpikingJelly",
    "spikingjelly-bf16": "SpikingJelly, bf16",
}


def pythons(peer_python: str | None) -> dict[str, str]:
    """The sides that can run, with the python of each."""
    found = {side: sys.executable if side == "backspike" else peer_python for side in SIDES}
    return {side: python for side, python in found.items() if python}


def data_root() -> str | None:
    """Where the files of a data set are looked for: BACKSPIKE_DATA (None), else ../shared/data if it is there."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return None if os.environ.get("BACKSPIKE_DATA") or not beside.exists() else str(beside)


class Worker:
    """A side in its own process."""

    def __init__(self, script: str, side: str, python: str) -> None:
        command = [python, "-W", "ignore", script, "--side", side]
        # as the command line of backspike does: threads do not wait by spinning
        env = {"GOMP_SPINCOUNT": "1000", **os.environ} if side == "backspike" else None
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        time.sleep(0.05)  # threads of the side before, waiting by spinning, come to rest
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(
                f"a side of the race ended with exit code {self.process.wait()}; what it said stands above"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def serve(
    start: Callable[
        [dict[str, Any]], tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]
    ],
) -> None:
    """The loop of a side: `start` takes the first request and gives an answer and what answers the others."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints goes to standard error
    answer, proceed = start(json.loads(sys.stdin.readline()))
    print(json.dumps(answer), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(proceed(json.loads(line))), file=answers, flush=True)
