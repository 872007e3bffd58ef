"""Running a study: every arm with every seed as an ordinary run folder `runs/ARM/SEED`, in parallel processes.

`run` goes on where a kill left it, and then has `study_page` write what the run folders say. Arms of one seed share weights,
order and augmentation, so that they can be compared in pairs.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from ..data import DataError
from ..errors import RecipeError, RunError, StudyError
from ..run import Run
from ..system import heap, workers
from ..system.events import Listener
from ..system.files import read_json, to_json, write_atomic
from ..system.machine import processors
from .page import write
from .progress import Clock
from .spec import Job, Study, finished, same_recipe


def run(
    study: Study,
    out: str | Path,
    *,
    seeds: int | None = None,
    jobs: int | None = None,
    force: bool = False,
    device: str | None = None,
    listen: Listener | None = None,
) -> Path:
    """Trains what is missing of a study into the folder `out`, writes its outputs and returns the path of `study.html`.

    seeds: runs per arm (the study's own number). jobs: processes at once, sharing the cores (as many as cores, one on a GPU);
    with 1 everything runs in this process. Repeated calls go on; the number of threads is part of what makes results equal to
    the last bit, so keep `jobs`. force: replace another study. listen: called with the events of `progress`.
    Raises StudyError; KeyboardInterrupt after checkpoints of all running runs. Runs that fail do not stop the others.
    """
    seeds, out, tell = (
        study.seeds if seeds is None else seeds,
        Path(out),
        listen or (lambda e: None),
    )
    if seeds < 1:
        raise StudyError(f"a study needs at least 1 seed, got {seeds}")
    with folder(out, study.settings(), force):
        wanted = [study.job(arm, seed, out) for seed in range(seeds) for arm in study.arms]
        left = [job for job in wanted if not finished(job)]
        tell(
            {
                "event": "study",
                "study": study.name,
                "out": str(out),
                "runs": len(wanted),
                "left": len(left),
            }
        )
        failed = _train_all(left, jobs, device, tell) if left else {}
        page = write(study, out, seeds, failed)
        tell({"event": "done", "report": str(page), "failed": len(failed)})
        if failed:
            raise StudyError(
                f"{len(failed)} of {len(wanted)} runs failed, the first: {next(iter(failed.values()))}; the rest is in {page}"
            )
        return page


@contextmanager
def folder(out: Path, settings: dict[str, Any], force: bool) -> Iterator[None]:
    """The folder of this study and of no other, held against a second process."""
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out} is a file; choose another folder with --out")
    there = out / "study.json"
    if (
        out.is_dir()
        and not there.exists()
        and any(not p.name.startswith(".") for p in out.iterdir())
    ):
        raise StudyError(f"{out} holds other files; choose another folder with --out")
    known = _settings(there) if there.exists() and not force else settings
    if known != settings:
        difference = _difference(known, settings)
        raise StudyError(
            f"{out} holds {difference}; choose another folder with --out, or replace it with --force"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StudyError(
            f"cannot make {out}: {e.strerror}; choose another folder with --out"
        ) from e
    if not there.exists():
        write_atomic(there, to_json({"settings": settings}))
    with Run(out).locked():
        if force:
            shutil.rmtree(out / "runs", ignore_errors=True)
            write_atomic(there, to_json({"settings": settings}))
        yield


def _settings(path: Path) -> Any:
    try:
        return read_json(path.read_bytes())["settings"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StudyError(f"{path} is damaged ({e}); choose another folder with --out") from e


def _difference(known: Any, wanted: dict[str, Any]) -> str:
    """In words, how the study in a folder differs from the one wanted."""
    if not isinstance(known, dict) or known.get("name") != wanted["name"]:
        return f"another study, {known.get('name') if isinstance(known, dict) else known}"
    old, new = known.get("base"), wanted.get("base", {})
    old = old if isinstance(old, dict) else {}
    fields = [k for k in {**old, **new} if old.get(k, ...) != new.get(k, ...)]
    what = (
        f"{fields[0]} was {old.get(fields[0])!r} and is {new.get(fields[0])!r}"
        if fields
        else "its arms are different"
    )
    return f"this study with other settings ({what})"


def _train(job: Job, device: str | None, listen: Listener) -> None:
    """Trains one run, from its last checkpoint if it has one."""
    from .. import train

    if (job.folder / "recipe.json").is_file() and same_recipe(job):
        if (job.folder / "last.ckpt").is_file():
            train.resume(job.folder, device=device, listen=listen, report=False)
            return
    elif job.folder.exists():
        # a kill came before the run had its recipe
        shutil.rmtree(job.folder)
    train.fit(job.recipe, job.folder, force=True, device=device, listen=listen, report=False)


def _attempt(job: Job, device: str | None, listen: Listener) -> str | None:
    """Trains one run; in one line what went wrong, or None."""
    try:
        _train(job, device, listen)
    except (RunError, StudyError, DataError, RecipeError) as e:
        return f"{job.arm} seed {job.seed}: {e}"
    except Exception as e:
        traceback.print_exc()
        return f"{job.arm} seed {job.seed}: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
    return None


def _train_all(
    jobs: list[Job], at_once: int | None, device: str | None, tell: Listener
) -> dict[Job, str]:
    """Trains the runs and returns those that failed with the reason."""
    import torch

    from ..train import setup

    # once, before the processes: a missing data set is said here, and recordings are cached for all
    setup.load_data(jobs[0].recipe)
    cores = processors()
    on_gpu = torch.cuda.is_available() and device != "cpu"
    n = at_once or (1 if on_gpu else cores)
    clock = Clock(jobs, tell)
    with _on_signal(signal.SIGTERM, signal.default_int_handler):
        if n > 1:
            # threads by the number asked for, not by what is left to do: a resumed run gives the same bits
            return _in_processes(jobs, min(n, len(jobs)), max(1, cores // n), device, clock)
        failed: dict[Job, str] = {}
        for job in jobs:
            error = _attempt(job, device, partial(clock.hear, job))
            failed |= clock.over(job, error)
        return failed


def _in_processes(
    jobs: list[Job], n: int, threads: int, device: str | None, clock: Clock
) -> dict[Job, str]:
    failed: dict[Job, str] = {}
    work = [(job, device, threads, heap.mode()) for job in jobs]
    for (job, *_), kind, value in workers.run(_in_worker, work, n, patience=60):
        if kind == "event":
            clock.hear(job, value)
            continue
        if kind == "failed":
            reason = f"its process ended with code {value.code}; if memory ran out, use --jobs {max(1, n - 1)}"
            value = f"{job.arm} seed {job.seed}: {reason}"
        failed |= clock.over(job, value)
    return failed


@contextmanager
def _on_signal(number: int, handler: Any) -> Iterator[None]:
    """Another handler of a signal meanwhile; only the main thread may set one, in others nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _in_worker(job: Job, device: str | None, threads: int, mode: str) -> str | None:
    """`_attempt` in a worker, which passes the events on."""
    import torch

    heap.use(mode)
    torch.set_num_threads(threads)
    last = 0.0

    def listen(event: dict[str, Any]) -> None:
        nonlocal last
        if event["event"] == "batch":
            if workers.stop_wanted():  # as by Ctrl-C: a checkpoint and the end
                signal.raise_signal(signal.SIGTERM)
            if time.monotonic() - last < 0.5:
                return
            last = time.monotonic()
        workers.emit(event)

    return _attempt(job, device, listen)
