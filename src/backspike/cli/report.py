"""`backspike report`: writes the report of a run, or compares several runs."""

import argparse
import json
from pathlib import Path

from .parser import Parser

HELP = "write the report of a run, or compare several runs"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folders", metavar="RUN", nargs="+", help="run folders")
    parser.add_argument(
        "--out",
        metavar="PAGE",
        help="page to write (default: RUN/report.html, or comparison.html for several runs)",
    )


def run(options: argparse.Namespace) -> int:
    from .. import report

    runs = [Path(folder) for folder in options.folders]
    out = Path(options.out) if options.out else None
    if len(runs) == 1:
        written = report.write(runs[0], out)
    else:
        written = report.compare(runs, out or Path("comparison.html"))
    if options.json:
        print(json.dumps({"event": "done", "report": str(written)}))
    else:
        print(f"report: {written}")
    return 0
