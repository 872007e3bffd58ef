"""`backspike bench`: time and memory of training iterations.

It compares backspike with a plain loop, other libraries and the machine's limits. Each
implementation runs in its own process and they take turns, so if the machine slows down it does so
for all. Nothing is timed until its gradients have been compared with float64 (`gate.py`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import BenchError as BenchError
from ..system.events import Listener
from ..system.machine import machine
from .plan import PRECISIONS, Implementation, implementations, workloads
from .results import Bench, Outcome, Row
from .worker.task import Workload
from .workers import Worker, WorkerFailed, installed

# seconds between two workers, until spinning threads of the first have gone to sleep
PAUSE = 0.02
# seconds of iterations per turn (at least one iteration)
TURN, QUICK_TURN = 0.3, 0.02


def run(
    name: str = "all",
    *,
    rounds: int = 9,
    threads: int | None = None,
    peer_python: str | None = None,
    only: Sequence[str] = (),
    precision: str = "both",
    device: str = "cpu",
    quick: bool = False,
    listen: Listener | None = None,
) -> Bench:
    """Measures the workloads in `name`, such as "vgg", "fc,fc-10%" or "all".

    rounds: turns of each implementation, after one that is not counted.
    threads: torch threads per worker; None: torch's default.
    peer_python: the Python of an environment with other libraries.
    only: keep implementations whose names contain one of these strings.
    precision: "float32", "bfloat16" or "both". device: "cpu" or "cuda".
    quick: small sizes for tests; the figures mean nothing.
    listen: called with every event.

    Raises BenchError, with a one-line message, for arguments that cannot be used.
    """
    try:
        chosen = workloads(name, quick, device)
    except ValueError as e:
        raise BenchError(str(e)) from None
    if precision not in PRECISIONS:
        raise BenchError(f"unknown precision {precision!r}; choose from {', '.join(PRECISIONS)}")
    if rounds < 1:
        raise BenchError(f"--rounds must be at least 1, got {rounds}")
    import torch

    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise BenchError(
            f"--device {device} cannot be used here; "
            "use --device cpu, or cuda on a machine with a GPU"
        )
    tell = listen or (lambda event: None)
    peers = installed(peer_python) if peer_python else {}
    threads = threads or torch.get_num_threads()
    bench = Bench(machine(threads, device), peers, rounds, quick)
    for work in chosen:
        rows = implementations(work, precision, peers, only, device)
        if all(row.limit for row in rows):
            raise BenchError(
                f"--only {','.join(only)} matches no implementation; choose from: "
                f"{_names(work, precision, peers, device)}"
            )
        outcome = _measure(work, rows, bench, peer_python, tell)
        bench.outcomes.append(outcome)
        tell({"event": "workload", **outcome.summary()})
    return bench


def _names(work: Workload, precision: str, peers: dict[str, str], device: str) -> str:
    return "; ".join(
        row.name for row in implementations(work, precision, peers, device=device) if not row.limit
    )


def _measure(
    work: Workload,
    wanted: list[Implementation],
    bench: Bench,
    peer_python: str | None,
    tell: Listener,
) -> Outcome:
    from . import density

    work = density.calibrate(work)
    rounds = bench.rounds
    seconds = QUICK_TURN if bench.quick else TURN
    tell(
        {"event": "start", "workload": work.name, "implementations": len(wanted), "rounds": rounds}
    )
    rows = [Row(implementation) for implementation in wanted]
    with _workers() as workers, tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(rows):
            worker = workers[row.name] = Worker(row.implementation, peer_python)
            with _failing(row, tell, work):
                _set_up(worker, row, work, bench.machine["threads"], Path(folder))
            tell(
                {
                    "event": "ready",
                    "workload": work.name,
                    "name": row.name,
                    "share": (number + 1) / len(rows) / 2,
                }
            )
        for round in range(rounds + 1):
            for row in rows:
                if row.failed:
                    continue
                time.sleep(PAUSE)
                with _failing(row, tell, work):
                    times = workers[row.name].ask("run", seconds=seconds)["seconds"]
                    if round:  # the first round is a warm-up
                        row.rounds.append(times)
            tell(
                {
                    "event": "round",
                    "workload": work.name,
                    "round": round,
                    "share": (1 + round / rounds) / 2,
                }
            )
    return Outcome(work, rows, density.derivatives(work))


def _set_up(worker: Worker, row: Row, work: Workload, threads: int, folder: Path) -> None:
    from . import gate

    settings = row.implementation.settings
    answer = worker.ask("set_up", work=vars(work), settings=vars(settings), threads=threads)
    row.first = answer["seconds"]
    row.heap = answer["heap"]
    row.facts = answer["facts"]
    if row.implementation.limit:
        return
    row.memory = answer["memory"]
    row.torch = answer["torch"]
    row.verdict = gate.judge(worker, row.implementation, work, folder)
    row.failed = row.verdict.reason


@contextmanager
def _workers() -> Iterator[dict[str, Worker]]:
    workers: dict[str, Worker] = {}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.end()


@contextmanager
def _failing(row: Row, tell: Listener, work: Workload) -> Iterator[None]:
    """Records the failure of a worker in its row, so that the others continue."""
    try:
        yield
    except WorkerFailed as e:
        row.failed = str(e)
    if row.failed:
        tell({"event": "failed", "workload": work.name, "name": row.name, "error": row.failed})
