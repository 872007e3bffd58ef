"""`backspike bench`: time and memory of training, beside other libraries."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from .parser import Parser

HELP = "time and memory of training, against other libraries and the limits of this machine"


def add_arguments(parser: Parser) -> None:
    names = (
        "some of neuron, fc, fc-10%%, vgg, vgg-10%%, vgg-20%%, resnet, resnet-10%%, resnet-20%%, "
        "by commas, or all (default); for a GPU neuron-gpu, resnet-32px, vggsnn, resnet-224px"
    )
    parser.add_argument("name", nargs="?", default="all", metavar="WORKLOAD", help=names)
    parser.add_argument(
        "--peer-python",
        metavar="PATH",
        help="the python of an environment with SpikingJelly, snnTorch, Norse, sinabs",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--rounds",
        type=int,
        default=9,
        metavar="N",
        help="turns of each implementation (default: 9)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of each (default: as many as torch takes)"
    )
    parser.add_argument(
        "--precision", default="both", metavar="P", help="float32, bfloat16 or both (default)"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help="implementations whose name has one of these parts, by commas",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small sizes, to see that everything runs; figures mean nothing",
    )
    parser.add_argument(
        "--out",
        default="bench",
        help="folder for bench.json, bench.md, bench.html, figures/ (default: bench)",
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
    with listener(options.json) as listen:
        measured = bench.run(options.name, only=only, **settings, listen=listen)
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
