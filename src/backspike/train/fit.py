"""`fit` runs a recipe into a run folder; `resume` continues it after any stop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import recipes
from ..errors import RunError, option
from ..recipes.recipe import Recipe
from ..run import Elsewhere, Run
from ..system import distributed
from ..system.distributed import Ranks
from ..system.events import Listener
from ..system.memory_limit import memory_limit
from .checkpoint import CHECKPOINTS
from .failures import explain_failures
from .learning_rate import OwnScheduler
from .network import check_own, check_size
from .progress import shown
from .setup import Setup, limited_on_gpu, set_up, with_loader
from .trainer import Result, Trainer


def fit(
    recipe: Recipe | str,
    out: str | Path,
    model: nn.Module | None = None,
    train: Any = None,
    test: Any = None,
    *,
    validation: Any = None,
    scheduler: OwnScheduler | None = None,
    force: bool = False,
    device: str | torch.device | None = None,
    listen: Listener | None = None,
    report: bool = True,
    watch: bool = False,
    progress: bool | None = None,
) -> Result:
    """Trains `recipe` into the folder `out`.

    recipe: a `bs.Recipe`, the name of one, or "mine.py:recipe", a function of your own file.
    model: your own module `[T, B, ...] -> [T, B, K]` instead of the recipe's.
    train, validation, test: your own data sets (`len(d)`, `d[i] -> (x, y)`) instead of the
        recipe's, or DataLoaders of them; without a validation set, the last epoch counts as the
        best. The recipe's augmentation applies to them as well: `recipe.replace({"augment": ()})`.
        A DataLoader for training also sets `batch_size` and `workers`; its sampler, collate
        function, `drop_last` and `worker_init_fn` apply.
    scheduler: your own function from the optimizer to a scheduler of torch, instead of the
        recipe's schedule and warm-up. It is stepped after every epoch, or after every batch if it
        is a OneCycleLR or CyclicLR, or if the function returns (scheduler, "batch"). A
        ReduceLROnPlateau gets the validation loss, or without a validation set the training loss.
    force: replace an existing run.
    listen: called with every event (a dict; see docs/run-folder.md), on rank 0.
    report: False leaves out report.html; `backspike report` can write it later.
    progress: show a progress bar, or a line per epoch where no bar can move; None: on a terminal
        and in a notebook, unless `listen` is given.
    watch: before training and after every epoch, add the measurements and findings of
        `bs.examine` to the log and the report. It changes no result, and `resume` continues it.

    A forward and backward pass of two samples is tried before the folder is touched. Sets torch's
    global seed. Under torchrun, call it in every process. Raises RunError, DataError or RecipeError
    with a one-line message, and KeyboardInterrupt after saving a checkpoint.
    """
    recipe = recipes.find(recipe) if isinstance(recipe, str) else recipe
    recipe = with_loader(recipe, train)
    with (
        distributed.process_group(device) as ranks,
        explain_failures(recipe),
        limited_on_gpu(recipe, device),
    ):
        run = open_folder(ranks, lambda: Run.free(out, force))
        # everything is built and tried before an old run is deleted
        setup = set_up(
            recipe, model, train, validation, test, device, scheduler=scheduler, try_step=True
        )
        with shown(listen, progress if ranks.first else False) as listen, limited(setup):
            trainer = Trainer(run, setup, listen, watch)
            with run.created(setup.recipe, setup.own, force, setup.sets.classes):
                return trainer.train(report)


def resume(
    run: str | Path,
    model: nn.Module | None = None,
    train: Any = None,
    test: Any = None,
    *,
    validation: Any = None,
    scheduler: OwnScheduler | None = None,
    device: str | torch.device | None = None,
    listen: Listener | None = None,
    recipe: Recipe | str | None = None,
    values: tuple[Any, ...] = (),
    report: bool = True,
    progress: bool | None = None,
) -> Result:
    """Continues a run from its last checkpoint. The arguments are those of `fit` and `load`.

    Returns the result at once if the run is complete. Raises RunError if the folder is damaged or
    in use, or if the run needs your own recipe, model or data and they were not given.
    """
    with distributed.process_group(device) as ranks:
        folder = open_folder(ranks, lambda: Run.open(run))
        stored = ranks.on_rank0(lambda: folder.recipe(values, recipe))
        if done := ranks.on_rank0(lambda: finished_result(folder, listen, report)):
            return done
        ranks.on_rank0(lambda: check_own(folder, model=model, data=train, scheduler=scheduler))
        with folder.locked(), explain_failures(stored), limited_on_gpu(stored, device):
            saved = ranks.on_rank0(lambda: [folder.path / c for c in CHECKPOINTS if folder.has(c)])
            if model is None and saved:
                ranks.on_rank0(lambda: check_size(stored, *saved))
            watch = ranks.on_rank0(lambda: any(e.get("event") == "watch" for e in folder.log()))
            setup = set_up(
                stored,
                model,
                train,
                validation,
                test,
                device,
                scheduler=scheduler,
                has_checkpoint=bool(saved),
            )
            with shown(listen, progress if ranks.first else False) as listen, limited(setup):
                trainer = Trainer(folder, setup, listen, watch)
                if saved:
                    trainer.restore()
                else:  # stopped before the first checkpoint
                    folder.put_back_log("")
                if (source := stored.source) is not None:
                    ranks.on_rank0(lambda: folder.accept(source))
                return trainer.train(report)


def limited(setup: Setup) -> AbstractContextManager[None]:
    """The recipe's memory limit for this process; for a GPU see `limited_on_gpu`."""
    return memory_limit(setup.recipe.memory_limit if setup.device.type == "cpu" else 0)


def open_folder(ranks: Ranks, open: Callable[[], Run]) -> Run:
    """Opens the folder on rank 0; the other ranks do not write to it."""
    run = ranks.on_rank0(open)
    return run if ranks.first else Elsewhere(run.path)


def finished_result(run: Run, listen: Listener | None, report: bool) -> Result | None:
    """The result of a complete run; None if it is not complete. Writes a missing report."""
    if not (found := run.done()):
        return None
    done = {k: v for k, v in found.items() if k == "event" or k in Result.__dataclass_fields__}
    numbers = [
        done.get(k)
        for k in ("epochs", "seconds", "best_epoch", "test_accuracy", "test_accuracy_last")
    ]
    if not all(n is None or type(n) in (int, float) for n in numbers) or None in numbers[:3]:
        raise RunError(
            f"{run.path / 'log.jsonl'} is damaged (its last line); "
            f"restore it, or train again with {option('force', True)}"
        )
    if report and not run.has("report.html"):
        from ..report import write

        write(run.path)
    if listen:
        listen(done)
    return Result(**{k: done.get(k) for k in Result.__dataclass_fields__})  # type: ignore[arg-type]
