"""`backspike report`: the report of a run, or the comparison of several."""

import argparse
import json
from pathlib import Path

from .parser import Parser

HELP = "make the report of a run, or compare several, from the run folders alone"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folders", metavar="RUN", nargs="+")
    parser.add_argument("--out", help="where a comparison goes (default: comparison.html)")


def run(options: argparse.Namespace) -> int:
    from .. import report

    runs = [Path(f) for f in options.folders]
    made = (
        report.write(runs[0])
        if len(runs) == 1
        else report.compare(runs, Path(options.out or "comparison.html"))
    )
    print(json.dumps({"event": "done", "report": str(made)}) if options.json else f"report: {made}")
    return 0
