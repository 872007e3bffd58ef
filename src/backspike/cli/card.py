"""`backspike card`: the model card of a run, `README.md`, as the Hugging Face hub wants it."""

import argparse
import json

from .parser import RUN, Parser

HELP = "write the model card of a run (README.md), from its own files"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "folders",
        metavar="RUN",
        nargs="+",
        help=f"{RUN}; more runs of its recipe, with other seeds, add the spread of the accuracy",
    )
    parser.add_argument(
        "--licence",
        metavar="ID",
        help="of the weights, such as apache-2.0 or cc-by-4.0 (default: unknown)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace a README.md that you wrote or edited"
    )


def run(options: argparse.Namespace) -> int:
    from ..report import card
    from ..run import CARD, SHOWN, Run

    runs = [Run.find(folder, SHOWN) for folder in options.folders]
    written = card.write(
        [run.path for run in runs], runs[0].output(CARD), options.licence, options.force
    )
    if options.json:
        print(json.dumps({"event": "done", "card": str(written)}))
    else:
        print(f"card: {written}")
    return 0
