"""`backspike data`: the data sets, and which of their files are here."""

import argparse
import json

from .parser import Parser

HELP = "list the data sets: what is here, and what to put where"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="one data set in detail")
    parser.add_argument("--root", help="folder of the data (default: BACKSPIKE_DATA, then ./data)")


def run(options: argparse.Namespace) -> int:
    from .. import data

    sources = [data.source(options.name)] if options.name else data.catalogue()
    for s in sources:
        files = [
            {"path": str(path), "state": state} for path, state in data.check(s.name, options.root)
        ]
        here = all(f["state"].startswith("present") for f in files)
        if options.json:
            about = {
                "name": s.name,
                "here": here,
                "samples": s.samples,
                "files": files,
                "credit": s.credit,
            }
            print(json.dumps({"event": "data", **about}))
            continue
        train, validation, test = s.samples
        counts = f"{train:,} + {validation:,} + {test:,} {s.kind}"
        print(f"{s.name:14s} {'here' if here else 'not here':9s} {counts}, {s.num_classes} classes")
        for f in files if options.name or not here else ():
            print(f"{'':14s} {f['path']}: {f['state']}")
        print(f"{'':14s} {'; '.join(t for t in (s.note, s.credit, s.home) if t)}")
    return 0
