"""`backspike train`: trains a recipe into a run folder. `show_training` is shared with `resume`."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, RunError, UsageError
from .fields import change_fields, read_recipe
from .parser import Parser, from_torchrun

if TYPE_CHECKING:
    from ..recipes.recipe import Recipe

HELP = "train a recipe (default: digits) into a run folder"


def add_arguments(parser: Parser) -> None:
    parser.takes_fields = True
    parser.set_defaults(parser=parser)
    parser.usage = (
        "backspike train [RECIPE] [--out DIR] [--force] [--from RUN] [--device DEVICE] "
        "[--memory SIZE] [--watch] [--json] [--FIELD VALUE ...]"
    )
    parser.add_argument(
        "-h", "--help", action="store_true", help="show this help and every field of the recipe"
    )
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="a recipe name (see: backspike recipes), a recipe's JSON file, or a function in a "
        "Python file of yours that returns a bs.Recipe, mine.py:recipe (default: digits, or with "
        "--from the recipe of RUN)",
    )
    parser.add_argument(
        "--out", help="run folder (default: runs/RECIPE-1, or the next free number)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing run")
    parser.add_argument(
        "--from",
        dest="start_from",
        metavar="RUN",
        help="fine-tune: start with the weights of RUN, by name; --freeze LAYERS keeps them",
    )
    parser.add_device()
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory limit, e.g. 6GB; finds settings that fit and reports their cost",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="run the measurements of `backspike doctor` after every epoch; same result",
    )


def run(options: argparse.Namespace) -> int:
    try:
        recipe = _recipe(options)
        if options.help:
            options.parser.print_help()
            print("\n" + _describe_fields(recipe))
            return 0
        recipe = change_fields(recipe, options.fields)
        from ..train.memory_budget import parse_size, plan_memory

        budget = parse_size(options.memory) if options.memory is not None else None
    except RecipeError as e:
        raise UsageError(e) from None
    _check_torchrun(options)
    if not options.out and Path(recipe.name).parts != (recipe.name,):
        raise UsageError(f"the recipe's name {recipe.name!r} is not a folder name; use --out DIR")
    from ..run import Run, next_free
    from ..system import distributed

    def work(train: Any, listen: Any, out: Path) -> Any:
        if distributed.current().on_rank0(lambda: _is_restart(out, recipe)):
            own = options.recipe if recipe.source else None
            return train.resume(out, recipe=own, device=options.device, listen=listen)
        fitting = recipe
        if budget:
            Run.free(out, options.force)  # fail now rather than after the search
            plan = plan_memory(recipe, budget, device=options.device, listen=listen)
            fitting = plan.recipe
        return train.fit(
            fitting,
            out,
            force=options.force,
            device=options.device,
            listen=listen,
            watch=options.watch,
        )

    with distributed.process_group(options.device) as ranks:
        out = ranks.on_rank0(
            lambda: Path(options.out) if options.out else next_free(Path("runs"), recipe.name)
        )
        return show_training(options, out, work)


def _recipe(options: argparse.Namespace) -> Recipe:
    """The named recipe, or else that of the run to start from. Raises RecipeError or RunError."""
    if options.start_from is None:
        return read_recipe("digits" if options.recipe is None else options.recipe)
    if options.recipe is not None:
        recipe = read_recipe(options.recipe)
    else:
        from ..run import Run, source_name

        run = Run.find(options.start_from)
        again = f"backspike train RECIPE --from {options.start_from}"
        if own := run.own():
            raise UsageError(
                f"{run.path} was trained with your own {' and '.join(own)}; name a recipe: {again}"
            )
        if source := run.source():
            name = source_name(source)
            raise UsageError(
                f"the recipe of {run.path} comes from a Python file; name it: "
                f"{again.replace('RECIPE', name)}"
            )
        recipe = run.recipe()
    return recipe.replace({"start_from": options.start_from})


def _check_torchrun(options: argparse.Namespace) -> None:
    """Raises UsageError for options that do not work under torchrun."""
    if options.memory and from_torchrun("WORLD_SIZE") > 1:
        raise UsageError(
            "--memory is for one process: run it without torchrun, then pass the settings that "
            "it finds as fields"
        )
    if options.watch and from_torchrun("WORLD_SIZE") > 1:
        raise UsageError(
            "--watch is for one process: run without torchrun, or run `backspike doctor RUN` "
            "afterwards"
        )
    if not options.out and from_torchrun("TORCHELASTIC_MAX_RESTARTS"):
        raise UsageError("with restarts by torchrun, name the run folder: --out DIR")


def _is_restart(out: Path, recipe: Recipe) -> bool:
    """Whether torchrun has restarted this process and `out` holds its run."""
    from ..recipes.recipe import OPEN
    from ..run import Run

    if not from_torchrun("TORCHELASTIC_RESTART_COUNT") or not (out / "recipe.json").is_file():
        return False
    left_open = {name: getattr(recipe, name) for name in OPEN}
    stored = Run.open(out).recipe(own=recipe if recipe.source else None)
    return dataclasses.replace(stored, **left_open) == recipe


def show_training(options: argparse.Namespace, out: Path, work: Any) -> int:
    """Calls `work`, which trains, and shows its progress and result."""
    from .. import train
    from ..run import Run
    from ..system import distributed
    from ..train.progress import listener

    first = distributed.current().first
    try:
        with listener(options.json) if first else nullcontext() as listen:
            result = work(train, listen, out)
    except KeyboardInterrupt:
        if (out / "last.ckpt").exists() or not first:
            command = distributed.command(*Run(out).command("resume"))
            raise RunError(f"stopped; a checkpoint was saved; to continue: {command}") from None
        raise
    if first and not options.json:
        if result.test_accuracy is not None:
            print(f"test accuracy {100 * result.test_accuracy:.2f} % ", end="")
        # epochs count from 0 in files and from 1 on the screen
        best = f"best epoch {result.best_epoch + 1} of {result.epochs}"
        print(f"({best}), trained for {result.seconds:.1f} s")
        print(f"report: {out / 'report.html'}")
    return 0


def _describe_fields(recipe: Recipe) -> str:
    """Lists every field of the recipe with its value and help text."""
    flat = recipe.to_dict()["fields"]
    helps = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(recipe)}
    lines = [
        f"fields of the recipe {recipe.name} and their values; "
        "set a field of a nested value with a dot, e.g. --optimizer.lr 0.01:"
    ]
    for name, value in flat.items():
        lines.append(f"  --{name} {value!r}" if value == "" else f"  --{name} {value}")
        if text := helps.get(name):
            lines.append(f"        {text}")
    return "\n".join(lines)
