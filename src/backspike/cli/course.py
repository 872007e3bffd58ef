"""`backspike course`: writes the chapters of the course as Jupyter notebooks."""

import argparse
import json
from pathlib import Path

from .parser import Parser

HELP = "write the course, six Jupyter notebooks, into a folder"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="is made if it does not exist")
    parser.add_argument(
        "--solutions", action="store_true", help="with the solutions of the exercises, folded"
    )
    parser.add_argument(
        "--force", action="store_true", help="replace notebooks that are there, with your changes"
    )


def run(options: argparse.Namespace) -> int:
    from .. import course

    folder = Path(options.folder)
    there = set(folder.glob("*.ipynb"))
    paths = course.write(folder, options.solutions, options.force)
    if options.json:
        print(json.dumps({"event": "done", "notebooks": [str(path) for path in paths]}))
        return 0
    for path in paths:
        left = path in there and not options.force
        print(f"{path}: left as it is; --force replaces it" if left else path)
    print(f"to open them: pip install jupyterlab, then: jupyter lab {folder}")
    return 0
