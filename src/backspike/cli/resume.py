"""`backspike resume`: continues an interrupted run."""

import argparse
from pathlib import Path
from typing import Any

from .parser import Parser

HELP = "continue an interrupted run; the result is the same as without the interruption"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help="a run folder made by `backspike train`")
    parser.add_device()


def run(options: argparse.Namespace) -> int:
    from ..system import distributed
    from .train import show_training

    def work(train: Any, listen: Any, out: Path) -> Any:
        return train.resume(out, device=options.device, listen=listen)

    with distributed.process_group(options.device):
        return show_training(options, Path(options.folder), work)
