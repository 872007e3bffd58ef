"""`backspike train`: trains a recipe into a run folder. `show_training` serves `resume` too."""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecipeError, RunError, UsageError
from .parser import Parser, from_torchrun
from .progress import listener

if TYPE_CHECKING:
    from ..recipes.recipe import Recipe

HELP = "train a recipe (default: digits) into a run folder"


def add_arguments(parser: Parser) -> None:
    parser.takes_fields = True
    parser.set_defaults(parser=parser)
    parser.usage = (
        "backspike train [RECIPE] [--out DIR] [--force] [--device DEVICE] [--memory SIZE] "
        "[--watch] [--json] [--FIELD VALUE ...]"
    )
    parser.add_argument(
        "-h", "--help", action="store_true", help="this, with every field of the recipe"
    )
    parser.add_argument(
        "recipe", nargs="?", default="digits", metavar="RECIPE", help="see: backspike recipes"
    )
    parser.add_argument("--out", help="run folder (default: runs/RECIPE-1, or the next number)")
    parser.add_argument("--force", action="store_true", help="replace a run that is already there")
    parser.add_device()
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="choose settings with which it fits, such as 6GB, and say what they cost",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="after every epoch, what `backspike doctor` measures; same result",
    )


def run(options: argparse.Namespace) -> int:
    from .. import recipes

    try:
        recipe = recipes.get(options.recipe)
        if options.help:
            options.parser.print_help()
            print("\n" + _field_help(recipe))
            return 0
        recipe = recipe.replace(options.fields)
        from ..train.memory_budget import parse_size, plan_memory

        budget = parse_size(options.memory) if options.memory is not None else None
    except RecipeError as e:
        raise UsageError(e) from None
    if options.memory and from_torchrun("WORLD_SIZE") > 1:
        raise UsageError(
            "--memory is for one process: run it without torchrun, and give what it finds as fields"
        )
    if options.watch and from_torchrun("WORLD_SIZE") > 1:
        raise UsageError(
            "--watch is for one process: run it without torchrun, or ask `backspike doctor RUN` "
            "afterwards"
        )
    if not options.out and from_torchrun("TORCHELASTIC_MAX_RESTARTS"):
        raise UsageError(
            "what torchrun starts again has to find its run: name the folder with --out DIR"
        )
    from ..run import Run, next_free
    from ..system import distributed

    def work(train: Any, listen: Any, out: Path) -> Any:
        if distributed.current().on_rank0(lambda: _started_before(out, recipe)):
            return train.resume(out, device=options.device, listen=listen)
        if budget:
            Run.free(out, options.force)  # before it takes time to find out what fits
        fitting = (
            plan_memory(recipe, budget, device=options.device, listen=listen).recipe
            if budget
            else recipe
        )
        return train.fit(
            fitting,
            out,
            force=options.force,
            device=options.device,
            listen=listen,
            watch=options.watch,
        )

    with distributed.process_group(options.device) as together:
        out = together.on_rank0(
            lambda: Path(options.out) if options.out else next_free(Path("runs"), recipe.name)
        )
        return show_training(options, out, work)


def _started_before(out: Path, recipe: Recipe) -> bool:
    """Whether torchrun has started this training before: its folder is there."""
    from ..recipes.recipe import OPEN
    from ..run import Run

    if not from_torchrun("TORCHELASTIC_RESTART_COUNT") or not (out / "recipe.json").is_file():
        return False
    left_open = {name: getattr(recipe, name) for name in OPEN}
    return dataclasses.replace(Run.open(out).recipe(), **left_open) == recipe


def show_training(options: argparse.Namespace, out: Path, work: Any) -> int:
    """Runs `work`, which trains, and shows its progress and result."""
    from .. import train
    from ..system import distributed

    first = distributed.current().first
    try:
        with listener(options.json) if first else nullcontext() as listen:
            result = work(train, listen, out)
    except KeyboardInterrupt:
        if (out / "last.ckpt").exists() or not first:
            again = distributed.command("resume", out)
            raise RunError(f"stopped; a checkpoint is saved, go on with: {again}") from None
        raise
    if first and not options.json:
        if result.test_accuracy is not None:
            print(f"test accuracy {100 * result.test_accuracy:.2f} % ", end="")
        best = f"best epoch {result.best_epoch} of {result.epochs}"
        print(f"({best}), trained {result.seconds:.1f} s")
        print(f"report: {out / 'report.html'}")
    return 0


def _field_help(recipe: Recipe) -> str:
    """Every field of the recipe with its value there and what it means."""
    flat = recipe.to_dict()["fields"]
    helps = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(recipe)}
    lines = [
        f"fields of the recipe {recipe.name}, and their values; "
        "fields of objects by dots, --optimizer.lr 0.01:"
    ]
    for name, value in flat.items():
        lines.append(f"  --{name} {value!r}" if value == "" else f"  --{name} {value}")
        if text := helps.get(name):
            lines.append(f"        {text}")
    return "\n".join(lines)
