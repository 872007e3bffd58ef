"""`backspike data`: lists the data sets and which of their files are present; downloads them."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from ..errors import DataError, UsageError
from .parser import Parser

if TYPE_CHECKING:
    from ..data.source import Source

HELP = "list the data sets and which files are present; --get downloads the others"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="show one data set in detail, or your own: recordings:FOLDER or pictures:FOLDER",
    )
    parser.add_argument("--root", help="data folder (default: BACKSPIKE_DATA, or else ./data)")
    parser.add_argument(
        "--get",
        action="store_true",
        help="download the missing files of NAME into the data folder; shows licence and size "
        "first, and continues an interrupted download",
    )


def run(options: argparse.Namespace) -> int:
    from .. import data
    from ..data.own import OwnSource

    try:
        sources = [data.source(options.name)] if options.name else data.catalogue()
    except DataError as e:
        raise UsageError(e) from None
    if options.get:
        if not options.name:
            raise UsageError("--get needs the name of a data set: backspike data NAME --get")
        _get(sources[0], options)
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
                "licence": s.licence,
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


def _get(source: "Source", options: argparse.Namespace) -> None:
    from ..data import fetch

    if not options.json:
        licence = source.licence or f"none known here; read {source.home}"
        print(f"{source.name}: {source.credit}; licence: {licence}")

    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event) if options.json else _text(event), flush=True)

    if not fetch.get(source, options.root, tell) and not options.json:
        print("nothing to download")


def _text(event: dict[str, Any]) -> str:
    if event["event"] == "got":
        return f"{event['file']}: complete, in {event['path']}"
    size = "unknown size" if event["bytes"] is None else f"{event['bytes']:,} bytes"
    present = f", {event['present']:,} of them present" if event["present"] else ""
    return f"{event['file']}: {size}{present}, from {event['url']} ({event['note']})"
