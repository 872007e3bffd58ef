"""The worker processes: one for each implementation, asked one at a time over its pipes, so that only one computes."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import BenchError
from .plan import PEERS, Implementation

PATIENCE = 600.0  # seconds for one answer

# loads the folder `worker` as a package of its own, so that a Python without backspike can run it and no name is hidden
_START = """
import importlib.util, sys
folder = {folder!r}
spec = importlib.util.spec_from_file_location("bench_worker", folder + "/__init__.py", submodule_search_locations=[folder])
sys.modules["bench_worker"] = package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from bench_worker.loop import main
main()
"""
_PROBE = """
import importlib.util, json, sys
from importlib.metadata import version
found = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
print(json.dumps({name: version(name) for name in found}))
"""


class WorkerFailed(Exception):
    """A worker ended, stayed silent or answered with an error; one line says why."""


class Worker:
    """A process for one implementation. `ask` sends a command and waits for its answer."""

    def __init__(self, implementation: Implementation, peer_python: str | None) -> None:
        python = peer_python if implementation.peer and peer_python else sys.executable
        start = _START.format(folder=str(Path(__file__).parent / "worker"))
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (closed by end)
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-c", start],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=_environment(implementation),
            text=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer of the worker. Raises WorkerFailed."""
        process = self._process
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            process.stdin.flush()
        except OSError:
            raise WorkerFailed(self._reason()) from None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        if not ready:
            self.end()
            raise WorkerFailed(f"no answer within {PATIENCE:.0f} s")
        line = process.stdout.readline()
        if not line:
            raise WorkerFailed(self._reason())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe and not pipe.closed:
                with suppress(OSError):  # what was still to be written to a process that is gone
                    pipe.close()

    def _reason(self) -> str:
        code = self._process.wait()
        if code < 0:
            return f"ended by signal {-code}" + (
                ", which an exhausted memory sends" if code == -9 else ""
            )
        self._said.seek(0)
        lines = self._said.read().strip().splitlines()
        return lines[-1][:300] if lines else f"ended with exit code {code}"


def _environment(implementation: Implementation) -> dict[str, str]:
    """Ours as the command line leaves it; a peer without what the command line of backspike sets for itself."""
    from ..system.machine import QUIET_THREADS

    if implementation.settings.library in ("ours", "limits"):
        return dict(os.environ)
    return {k: v for k, v in os.environ.items() if QUIET_THREADS.get(k) != v}


def installed(python: str) -> dict[str, str]:
    """The peers that a Python has, and their versions. Raises BenchError when it cannot be run or has no torch."""
    try:
        done = subprocess.run(
            [python, "-c", _PROBE, "torch", *PEERS],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as e:
        raise BenchError(
            f"--peer-python {python}: {_first(e)}; name the python of an environment, such as peers/bin/python"
        ) from e
    if "torch" not in found:
        raise BenchError(
            f"--peer-python {python} has no torch; docs/bench.md says how to install peers"
        )
    if len(found) == 1:
        raise BenchError(
            f"--peer-python {python} has none of {', '.join(PEERS.values())}; docs/bench.md says how to install them"
        )
    return found


def _first(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]
