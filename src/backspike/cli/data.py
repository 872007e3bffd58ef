"""`backspike data`: lists the data sets and which of their files are present."""

import argparse
import json

from ..errors import DataError, UsageError
from .parser import Parser

HELP = "list the data sets, which files are present, and where to put the others"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="show one data set in detail, or your own: recordings:FOLDER or pictures:FOLDER",
    )
    parser.add_argument("--root", help="data folder (default: BACKSPIKE_DATA, or else ./data)")


def run(options: argparse.Namespace) -> int:
    from .. import data
    from ..data.own import OwnSource

    try:
        sources = [data.source(options.name)] if options.name else data.catalogue()
    except DataError as e:
        raise UsageError(e) from None
    for s in (s.counted() if isinstance(s, OwnSource) else s for s in sources):
        files = [
            {"path": str(path), "state": state} for path, state in data.check(s.name, options.root)
        ]
        damaged = any(f["state"].startswith("damaged") for f in files)
        state = "damaged" if damaged else s.presence(options.root)
        if options.json:
            line = {
                "event": "data",
                "name": s.name,
                "here": state == "complete",
                "state": state,
                "samples": s.samples,
                "files": files,
                "credit": s.credit,
            }
            print(json.dumps(line))
            continue
        train, validation, test = s.samples
        counts = f"{train:,} training, {validation:,} validation and {test:,} test {s.unit}"
        print(f"{s.name:22s}{state} ({counts}; {s.num_classes} classes)")
        for f in files if options.name or state != "complete" else ():
            print(f"{'':22s}{f['path']}: {f['state']}")
        print(f"{'':22s}{'; '.join(t for t in (s.note, s.credit, s.home) if t)}")
    return 0
