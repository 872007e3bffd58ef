"""`backspike export`: a trained network as a file for other tools and chips."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .fields import own_recipe
from .parser import RUN, Parser

HELP = "write the trained network of a run as a file for other tools, proven by running it"
NIR_OPTIONS = ("dialect", "pool", "gain", "dt")


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help=RUN)
    parser.add_argument(
        "--to", required=True, choices=("nir", "onnx"), help="the format of the file"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="default: network.nir, network.onnx or step.onnx in the run folder",
    )
    parser.add_own_recipe()
    parser.add_argument(
        "--step",
        action="store_true",
        help="onnx: one timestep, with the states as inputs and outputs and without the readout, "
        "for streams; default: the whole sequence with its readout",
    )
    parser.add_argument(
        "--dialect",
        choices=("1.0.8", "1.0.4"),
        help="nir: 1.0.4 leaves out the field v_reset, for tools that use nir 1.0.4, such as "
        "sinabs (default: 1.0.8)",
    )
    parser.add_argument(
        "--pool",
        choices=("average", "sum"),
        help="nir: sum writes pools as SumPool2d, for tools that know no AvgPool2d, such as Norse "
        "and sinabs (default: average)",
    )
    parser.add_argument(
        "--gain",
        choices=("trained", "unit", "decayed"),
        help="nir: with unit no neuron scales its input, for chips and snn-mlir; with decayed all "
        "divide by tau (default: trained)",
    )
    parser.add_argument(
        "--dt",
        type=float,
        metavar="SECONDS",
        help="nir: what a timestep stands for (default: 1e-4)",
    )


def run(options: argparse.Namespace) -> int:
    from ..run import Run

    given = {n: v for n in NIR_OPTIONS if (v := getattr(options, n)) is not None}
    if options.to == "onnx" and given:
        raise UsageError(f"--{next(iter(given))} is an option of --to nir; leave it out")
    if options.to == "nir" and options.step:
        raise UsageError("--step is an option of --to onnx; leave it out")
    found = Run.find(options.folder)
    name = "step.onnx" if options.step else f"network.{options.to}"
    path = Path(options.out or found.output(name))
    given |= {"recipe": own_recipe(options, options.folder)}
    if options.to == "onnx":
        made, lines = _onnx(found.path, path, {**given, "step": options.step})
    else:
        made, lines = _nir(found.path, path, given)
    if options.json:
        print(json.dumps({"event": "done", **asdict(made), "path": str(path)}))
    else:
        print(*lines, sep="\n")
    return 0


def _nir(run: Path, path: Path, given: dict[str, Any]) -> tuple[Any, list[str]]:
    from ..exchange import nir

    made = nir.write(run, path, **given)
    return made, [
        f"{path}: {made.spikes} spikes of {made.layers} layers are the same as the network's, "
        f"at every neuron and timestep ({made.samples} samples, T = {made.T})",
        f"one timestep stands for {made.dt:g} s; to read it: backspike.nir.read({str(path)!r})",
    ]


def _onnx(run: Path, path: Path, given: dict[str, Any]) -> tuple[Any, list[str]]:
    from ..exchange import onnx

    made = onnx.write(run, path, **given)
    ties = f", {made.ties} others at the threshold differ by rounding" if made.ties else ""
    inputs = ", ".join(["input", *made.states])
    return made, [
        f"{path}: run by onnxruntime, {made.spikes} spikes of {made.layers} layers are the "
        f"network's{ties} ({made.samples} samples); outputs within {made.difference:.1g}",
        f"inputs: {inputs}" + (" (states start at zero)" if made.states else ""),
    ]
