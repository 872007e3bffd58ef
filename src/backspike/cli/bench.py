"""`backspike bench`: time and memory of training, compared with other libraries."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from ..errors import BenchError, UsageError
from .parser import Parser, at_least_1

HELP = "measure time and memory of training, compared with other libraries and hardware limits"


def add_arguments(parser: Parser) -> None:
    names = (
        "comma-separated list of neuron, fc, fc-10%%, vgg, vgg-10%%, vgg-20%%, resnet, "
        "resnet-10%%, resnet-20%%, recurrent, recurrent-512, recurrent-1024, stream, "
        "stream-linear; on a GPU neuron-gpu, resnet-32px, vggsnn, resnet-224px; "
        "or all (default)"
    )
    parser.add_argument("name", nargs="?", default="all", metavar="WORKLOAD", help=names)
    parser.add_argument(
        "--peer-python",
        metavar="PATH",
        help="Python of an environment that has SpikingJelly, snnTorch, Norse or sinabs",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--rounds",
        type=at_least_1,
        default=9,
        metavar="N",
        help="number of measurements per implementation (default: 9)",
    )
    parser.add_argument(
        "--threads",
        type=at_least_1,
        metavar="N",
        help="threads per implementation (default: PyTorch's default)",
    )
    parser.add_argument(
        "--precision", default="both", metavar="P", help="float32, bfloat16 or both (default)"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help="comma-separated parts of names: measure only implementations that match one",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="use tiny sizes to check that everything runs; the numbers mean nothing",
    )
    parser.add_argument(
        "--out",
        default="bench",
        help="output folder for bench.json, bench.md, bench.html and figures/ (default: bench)",
    )


def run(options: argparse.Namespace) -> int:
    from .. import bench
    from ..bench import page
    from ..bench.progress import listener

    only = [part for part in options.only.split(",") if part]
    settings = {
        name: getattr(options, name)
        for name in ("rounds", "threads", "peer_python", "precision", "device", "quick")
    }
    try:
        with listener(options.json) as listen:
            measured = bench.run(options.name, only=only, **settings, listen=listen)
    except BenchError as e:
        raise UsageError(e) from None
    written = page.write(measured, Path(options.out), shlex.join(["backspike", *sys.argv[1:]]))
    if options.json:
        print(json.dumps({"event": "done", "report": str(written)}))
        return 0
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for table in page.terminal(measured):
        console.print(table)
    print(f"bench: {written}")
    return int(not any(row.measured for outcome in measured.outcomes for row in outcome.ranked()))
