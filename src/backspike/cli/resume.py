"""`backspike resume`: continues an interrupted run."""

import argparse
from pathlib import Path
from typing import Any

from .fields import own_recipe
from .parser import Parser

HELP = "continue an interrupted run; the result is the same as without the interruption"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder made by `backspike train`")
    parser.add_device()
    parser.add_own_recipe()


def run(options: argparse.Namespace) -> int:
    from ..system import distributed
    from .train import show_training

    def work(train: Any, listen: Any, out: Path) -> Any:
        recipe = own_recipe(options, options.folder)
        return train.resume(out, recipe=recipe, device=options.device, listen=listen)

    with distributed.process_group(options.device):
        return show_training(options, Path(options.folder), work)
