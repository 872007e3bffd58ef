"""Worker processes, one per implementation; only one computes at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..errors import BenchError
from ..system import workers
from ..system.workers import WorkerFailed as WorkerFailed
from .plan import PEERS, Implementation

PATIENCE = 600  # seconds to wait for an answer

# loads the folder `worker` as a top-level package, so that a Python without backspike can run it
# and its modules hide no others
_START = """
import importlib.util, sys
folder = {folder!r}
spec = importlib.util.spec_from_file_location(
    "bench_worker", folder + "/__init__.py", submodule_search_locations=[folder]
)
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


class Worker(workers.Worker):
    """The process of one implementation."""

    def __init__(self, implementation: Implementation, peer_python: str | None) -> None:
        python = peer_python if implementation.peer and peer_python else sys.executable
        super().__init__(
            python=[python, "-W", "ignore"],
            start=_START.format(folder=str(Path(__file__).parent / "worker")),
            env=_environment(implementation),
            quiet=True,
        )

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request. Raises WorkerFailed if the worker died or reports an error."""
        answer = self.call(do, request, timeout=PATIENCE)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer


def _environment(implementation: Implementation) -> dict[str, str]:
    """The environment variables; other libraries do not get those that our CLI sets for itself."""
    from ..system.machine import QUIET_THREADS

    if implementation.settings.library in ("ours", "limits"):
        return dict(os.environ)
    return {k: v for k, v in os.environ.items() if QUIET_THREADS.get(k) != v}


def installed(python: str) -> dict[str, str]:
    """Versions of torch and the other libraries that a Python has.

    Raises BenchError if it cannot be run, or lacks torch or all of the libraries.
    """
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
            f"--peer-python {python}: {_first(e)}; "
            "give the python of an environment, such as peers/bin/python"
        ) from e
    if "torch" not in found:
        raise BenchError(
            f"--peer-python {python} has no torch; see docs/bench.md for how to install it"
        )
    if len(found) == 1:
        raise BenchError(
            f"--peer-python {python} has none of {', '.join(PEERS.values())}; "
            "see docs/bench.md for how to install them"
        )
    return found


def _first(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]
