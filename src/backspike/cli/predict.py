"""`backspike predict`: the answers of a trained network to new pictures, arrays or recordings."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import DataError
from .fields import own_recipe
from .parser import RUN, Parser, at_least_1

HELP = "classify new pictures, arrays or recordings with the trained network of a run"
STDIN = "-"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help=RUN)
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="a file, a folder of files, or - for a path per line of standard input",
    )
    parser.add_argument("--csv", action="store_true", help="print comma-separated values")
    parser.add_argument(
        "--exit",
        type=_exit,
        metavar="MEASURE",
        help="answer early: confidence or margin, with the threshold that `backspike eval RUN "
        "--anytime` chose, or a number, the threshold of the confidence",
    )
    parser.add_argument("--spikes", action="store_true", help="also count the spikes")
    parser.add_argument(
        "--batch-size",
        type=at_least_1,
        metavar="N",
        help="inputs computed at once (default: as in training, at most 512)",
    )
    parser.add_device()
    parser.add_own_recipe()
    parser.epilog = (
        "An input that cannot be read is one line, and the others go on; the exit code is then 1. "
        "With --json it is an object with the keys input and error, with --csv a row, else a line "
        "on standard error."
    )


def _exit(text: str) -> str | float:
    if text in ("confidence", "margin"):
        return text
    try:
        threshold = float(text)
    except ValueError:
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise argparse.ArgumentTypeError(
            f"must be confidence, margin or a number from 0 to 1, got {text!r}"
        )
    return threshold


def run(options: argparse.Namespace) -> int:
    from ..train.predict import Predictor

    predictor = Predictor(
        options.folder,
        exit=options.exit,
        spikes=options.spikes,
        batch_size=options.batch_size,
        device=options.device,
        recipe=own_recipe(options, options.folder),
    )
    show = _json if options.json else _csv if options.csv else _table
    n = failed = 0
    for answer in show(predictor, predictor(_paths(options.inputs))):
        n += 1
        failed += "error" in answer
    if failed:
        raise DataError(f"{failed:,} of {n:,} inputs have no answer; exit code 1")
    return 0


def _paths(inputs: Iterable[str]) -> Iterator[str]:
    for word in inputs:
        if word != STDIN:
            yield word
            continue
        for line in sys.stdin:
            if path := line.rstrip("\r\n"):
                yield path


Answers = Iterator[dict[str, Any]]


def _json(predictor: Any, answers: Answers) -> Answers:
    for answer in answers:
        print(json.dumps(answer))
        yield answer


def _csv(predictor: Any, answers: Answers) -> Answers:
    writer = csv.DictWriter(sys.stdout, [*predictor.keys, "error"], lineterminator="\n")
    writer.writeheader()
    for answer in answers:
        writer.writerow(answer)
        yield answer


def _table(predictor: Any, answers: Answers) -> Answers:
    """Columns of fixed widths, so that rows appear as they are computed; the path is the last."""
    from ..system.events import printable

    _, *heads = predictor.keys
    widths = {head: len(head) for head in heads} | {"start": 12, "end": 12, "spikes": 9}
    widths["name"] = max(map(len, [*predictor.classes, "name"]))
    print("  ".join([*(f"{head:>{widths[head]}}" for head in heads), "input"]))
    for answer in answers:
        if "error" in answer:
            print(f"backspike: {printable(answer['error'])}", file=sys.stderr)
        else:
            cells = {**answer, "probability": f"{answer['probability']:.4f}"}
            row = [f"{printable(str(cells[head])):>{widths[head]}}" for head in heads]
            print("  ".join([*row, printable(str(answer["input"]))]))
        yield answer
