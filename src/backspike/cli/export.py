"""`backspike export`: a trained network as a file for other tools and chips."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from .parser import RUN, Parser

HELP = "write the trained network of a run as a file for other tools, proven by running it"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help=RUN)
    parser.add_argument("--to", required=True, choices=("nir",), help="the format of the file")
    parser.add_argument("--out", metavar="FILE", help="default: network.nir in the run folder")
    parser.add_argument(
        "--dialect",
        choices=("1.0.8", "1.0.4"),
        default="1.0.8",
        help="1.0.4: without the field v_reset, for tools that use nir 1.0.4, such as sinabs",
    )
    parser.add_argument(
        "--pool",
        choices=("average", "sum"),
        default="average",
        help="sum: pools as SumPool2d, for tools that know no AvgPool2d, such as Norse and sinabs",
    )
    parser.add_argument(
        "--gain",
        choices=("trained", "unit", "decayed"),
        default="trained",
        help="unit: no neuron scales its input, for chips and snn-mlir; decayed: all divide by tau",
    )
    parser.add_argument(
        "--dt", type=float, default=1e-4, metavar="SECONDS", help="what a timestep stands for"
    )


def run(options: argparse.Namespace) -> int:
    from ..exchange import nir
    from ..run import Run

    found = Run.find(options.folder)
    path = Path(options.out or found.output("network.nir"))
    made = nir.write(
        found.path,
        path,
        dt=options.dt,
        dialect=options.dialect,
        pool=options.pool,
        gain=options.gain,
    )
    if options.json:
        print(json.dumps({"event": "done", **asdict(made), "path": str(path)}))
        return 0
    print(
        f"{path}: {made.spikes} spikes of {made.layers} layers are the same as the network's, "
        f"at every neuron and timestep ({made.samples} samples, T = {made.T})"
    )
    print(f"one timestep stands for {made.dt:g} s; to read it: backspike.nir.read({str(path)!r})")
    return 0
