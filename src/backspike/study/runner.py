"""Runs a study: every arm with every seed is a run folder `runs/ARM/SEED`, in parallel processes.

`run` continues an interrupted study, and writes the study's page at its end. Arms with the same
seed share initial weights, sample order and augmentation, so they can be compared in pairs.
"""

from __future__ import annotations

import copy
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import DataError
from ..errors import RecipeError, RunError, StudyError, option
from ..run import Run
from ..system import heap, workers
from ..system.events import Listener
from ..system.files import read_json, read_regular, to_json, write_atomic
from ..system.machine import processors
from .included import read as read_included
from .page import write
from .progress import Clock
from .spec import Job, Study, accept_option, finished, same_recipe

if TYPE_CHECKING:
    from torch import nn


def run(
    study: Study,
    out: str | Path,
    *,
    seeds: int | None = None,
    jobs: int | None = None,
    force: bool = False,
    device: str | None = None,
    listen: Listener | None = None,
    model: nn.Module | Callable[..., nn.Module] | None = None,
    train: Any = None,
    test: Any = None,
    validation: Any = None,
    accept_change: bool = False,
    include: str | Path | None = None,
) -> Path:
    """Trains the missing runs of a study, writes its files and returns the path of `study.html`.

    A repeated call continues. Results are bit-identical only for the same number of threads, so
    keep `jobs`. A run that fails does not stop the others.

    Args:
        study: what to run.
        out: the study's folder.
        seeds: runs per arm; by default the study's own number.
        jobs: parallel processes, which share the cores; by default as many as cores, or one for
            each GPU. With 1 everything runs in this process.
        force: replace another study in the folder.
        device: as for `fit`, or several separated by commas ("cuda:0,cuda:1"), among which the
            processes are divided.
        listen: called with the events of `progress`.
        model: your own network instead of the recipes': a function that makes it, as in
            `bs.Recipe(model=...)`, or a module, a copy of which every run trains, so that all seeds
            begin with the same weights.
        train, test, validation: your own data sets, as for `bs.fit`. With several processes they
            and a module are copied to each, so their classes must be in a file that can be
            imported.
        accept_change: continue with the Python file that makes the recipe although it has changed.
        include: a study.json of the same arms from elsewhere, whose runs count and are not trained
            again (`accept_change` as well if your Python file has changed); figures over epochs
            and layers need their folders.

    Raises:
        StudyError: the folder or `include` cannot be used, a run failed, your own model or data
            cannot be copied to other processes, or the Python file has changed.
        KeyboardInterrupt: Ctrl-C, after a checkpoint of every active run; the files show the runs
            that have finished.
    """
    seeds = study.seeds if seeds is None else seeds
    out, tell = Path(out), listen or (lambda e: None)
    if seeds < 1:
        raise StudyError(f"a study needs at least 1 seed, got {seeds}")
    if model is not None and not isinstance(model, _modules()):
        study = replace(study, base=replace(study.base, model=model))
        model = None
    given = {"model": model, "train": train, "validation": validation, "test": test}
    own = {name: value for name, value in given.items() if value is not None}
    if train is not None:
        from ..train.setup import with_loader

        study = replace(study, base=with_loader(study.base, train))
    if accept_change:
        _accept_change(study, out, seeds)
    included = read_included(include, study, accept_change) if include else {}
    with folder(out, study.settings(), force):
        wanted = [study.job(arm, seed, out) for seed in range(seeds) for arm in study.arms]
        left = [j for j in wanted if not finished(j) and (j.arm, j.seed) not in included]
        tell(
            {
                "event": "study",
                "study": study.name,
                "out": str(out),
                "runs": len(wanted),
                "left": len(left),
            }
        )
        clock = Clock(left, tell)
        failed = clock.failed
        try:
            if left:
                _train_all(left, own, jobs, device, clock)
        except KeyboardInterrupt:
            # StudyError: no run has finished yet, or one is damaged, which the next call reports
            with suppress(StudyError, OSError):
                write(study, out, seeds, failed, included, stopped=True)
            raise
        page = write(study, out, seeds, failed, included)
        tell({"event": "done", "report": str(page), "failed": len(failed)})
        if failed:
            first = next(iter(failed.values()))
            raise StudyError(
                f"{len(failed)} of {len(wanted)} runs failed, the first: {first}; "
                f"the rest is in {page}"
            )
        return page


@contextmanager
def folder(out: Path, settings: dict[str, Any], force: bool) -> Iterator[None]:
    """Makes and locks the study's folder. Raises StudyError if it is in use for something else."""
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out} is a file; choose another folder ({option('out')})")
    file = out / "study.json"
    if (
        out.is_dir()
        and not file.exists()
        and any(not p.name.startswith(".") for p in out.iterdir())
    ):
        raise StudyError(f"{out} holds other files; choose another folder ({option('out')})")
    known = _settings(file) if file.exists() and not force else settings
    if known != settings:
        difference = _difference(known, settings)
        raise StudyError(
            f"{out} holds {difference}; choose another folder ({option('out')}), "
            f"or replace it with {option('force', True)}"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StudyError(
            f"cannot make {out}: {e.strerror}; choose another folder ({option('out')})"
        ) from e
    if not file.exists():
        write_atomic(file, to_json({"settings": settings}))
    with Run(out).locked():
        if force:
            shutil.rmtree(out / "runs", ignore_errors=True)
            write_atomic(file, to_json({"settings": settings}))
        yield


def _modules() -> type:
    from torch import nn

    return nn.Module


def _accept_change(study: Study, out: Path, seeds: int) -> None:
    """Notes in the study and its runs that they go on with the file as it is now."""
    file = out / "study.json"
    if study.base.source is None or not file.exists():
        return
    with Run(out).locked():
        known, settings = _settings(file), study.settings()
        if not isinstance(known, dict) or {**known, "sha256": settings["sha256"]} != settings:
            return  # `folder` says what differs
        write_atomic(file, to_json({"settings": settings}))
        for arm in study.arms:
            for seed in range(seeds):
                run = Run(study.job(arm, seed, out).folder)
                if run.has("recipe.json"):
                    run.accept(study.base.source)


def _settings(path: Path) -> Any:
    try:
        return read_json(read_regular(path))["settings"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StudyError(f"{path} is damaged ({e}); choose another folder ({option('out')})") from e


def _difference(known: Any, wanted: dict[str, Any]) -> str:
    """Describes how the study in a folder differs from the wanted one."""
    if not isinstance(known, dict) or known.get("name") != wanted["name"]:
        return f"another study, {known.get('name') if isinstance(known, dict) else known}"
    if known.get("sha256") != wanted.get("sha256"):
        return (
            "this study with other settings (its Python file has changed; to continue "
            f"all the same: {accept_option()})"
        )
    old, new = known.get("base"), wanted.get("base", {})
    old = old if isinstance(old, dict) else {}
    fields = [k for k in {**old, **new} if old.get(k, ...) != new.get(k, ...)]
    if not fields:
        return "this study with other settings (its arms are different)"
    name = fields[0]
    was, now = old.get(name), new.get(name)
    return f"this study with other settings ({name} was {was!r} and is {now!r})"


def _train(job: Job, own: Mapping[str, Any], device: str | None, listen: Listener) -> None:
    """Trains one run, continuing from its last checkpoint if there is one."""
    from .. import train

    own = {**own, "report": False, "device": device, "listen": listen}
    if "model" in own:
        own["model"] = copy.deepcopy(own["model"])  # all seeds begin with the same weights
    if (job.folder / "recipe.json").is_file() and same_recipe(job):
        if (job.folder / "last.ckpt").is_file():
            train.resume(job.folder, recipe=job.recipe, **own)
            return
    elif job.folder.exists():
        # it was killed before its recipe was written
        shutil.rmtree(job.folder)
    train.fit(job.recipe, job.folder, force=True, **own)


def _attempt(job: Job, own: Mapping[str, Any], device: str | None, listen: Listener) -> str | None:
    """Trains one run; returns what went wrong in one line, or None."""
    try:
        _train(job, own, device, listen)
    except (RunError, StudyError, DataError, RecipeError) as e:
        return f"{job.arm} seed {job.seed}: {e}"
    except Exception as e:
        traceback.print_exc()
        message = str(e).splitlines()[0] if str(e) else ""
        return f"{job.arm} seed {job.seed}: {type(e).__name__}: {message}"
    return None


def _train_all(
    jobs: list[Job],
    own: Mapping[str, Any],
    at_once: int | None,
    device: str | None,
    clock: Clock,
) -> None:
    import torch

    from ..train import setup

    # once, before the processes: raises here if data is missing, and caches recordings for all
    if "train" not in own:
        setup.load_data(jobs[0].recipe)
    devices: list[str | None] = [*device.split(",")] if device else [None]
    for name in devices:
        setup.choose_device(name)  # raises for one that is missing
    cores = processors()
    on_gpu = torch.cuda.is_available() and any(d is None or d.startswith("cuda") for d in devices)
    n = at_once or (len(devices) if on_gpu else cores)
    with _on_signal(signal.SIGTERM, signal.default_int_handler):
        if n > 1:
            # threads do not depend on how many runs are left, so resumed runs are bit-identical
            threads = max(1, cores // n)
            _in_processes(jobs, _packed(own), min(n, len(jobs)), threads, devices, clock)
            return
        for job in jobs:
            error = _attempt(job, own, devices[0], partial(clock.hear, job))
            clock.over(job, error)


def _packed(own: Mapping[str, Any]) -> bytes:
    """The user's model and data for other processes. Raises StudyError if they cannot be sent."""
    try:
        return workers.pack(own, "cannot be used in several processes")
    except ValueError as e:
        raise StudyError(f"{e}, or run one after another with {option('jobs', 1)}") from e


def _in_processes(
    jobs: list[Job],
    own: bytes,
    n: int,
    threads: int,
    devices: list[str | None],
    clock: Clock,
) -> None:
    work = [(job, own, threads, heap.mode()) for job in jobs]
    places = [(device,) for device in devices]
    for (job, *_), kind, value in workers.run(_in_worker, work, n, places=places, patience=60):
        if kind == "event":
            clock.hear(job, value)
            continue
        if kind == "failed":
            value = (
                f"{job.arm} seed {job.seed}: its process ended with code {value.code}; "
                f"if memory ran out, use {option('jobs', max(1, n - 1))}"
            )
        clock.over(job, value)


@contextmanager
def _on_signal(number: int, handler: Any) -> Iterator[None]:
    """Sets a signal handler within the context; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _in_worker(job: Job, own: bytes, threads: int, mode: str, device: str | None) -> str | None:
    """Calls `_attempt` in a worker process and emits its events."""
    import torch

    heap.use(mode)
    torch.set_num_threads(threads)
    last = 0.0

    def listen(event: dict[str, Any]) -> None:
        nonlocal last
        if event["event"] == "batch":
            # as with Ctrl-C: write a checkpoint and end
            if workers.stop_wanted():
                signal.raise_signal(signal.SIGTERM)
            if time.monotonic() - last < 0.5:
                return
            last = time.monotonic()
        workers.emit(event)

    return _attempt(job, workers.unpack(own), device, listen)
