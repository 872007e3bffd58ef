"""`backspike report`: writes the report of a run, or compares several runs."""

import argparse
import json
from pathlib import Path

from .parser import RUN, Parser

HELP = "write the report of a run, or compare several runs"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folders", metavar="RUN", nargs="+", help=RUN)
    parser.add_argument(
        "--out",
        metavar="PAGE",
        help="page to write (default: RUN/report.html, or comparison.html for several runs)",
    )


def run(options: argparse.Namespace) -> int:
    from .. import report
    from ..run import SHOWN, Run

    runs = [Run.find(folder, SHOWN) for folder in options.folders]
    if len(runs) == 1:
        written = report.write(runs[0].path, Path(options.out or runs[0].output("report.html")))
    else:
        written = report.compare([r.path for r in runs], Path(options.out or "comparison.html"))
    if options.json:
        print(json.dumps({"event": "done", "report": str(written)}))
    else:
        print(f"report: {written}")
    return 0
