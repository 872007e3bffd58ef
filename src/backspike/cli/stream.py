"""`backspike stream`: a trained network on an endless input, timestep by timestep."""

import argparse
import json
import sys

from .fields import own_recipe
from .parser import RUN, Parser, at_least_1

HELP = "run the trained network of a run on a stream of events or frames"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help=RUN)
    parser.add_argument(
        "--events",
        required=True,
        metavar="FILE",
        help="a recording (.bin, .aedat, .raw, .h5, ...), frames (.npy) or text; - reads text from "
        "standard input. A line of text is an event `t x y p` or a frame, a JSON array",
    )
    parser.add_argument(
        "--window",
        type=at_least_1,
        metavar="US",
        help="microseconds of a timestep (default: a recording is cut into the T timesteps of the "
        "recipe)",
    )
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="start a timestep every --window microseconds (default: as fast as it goes)",
    )
    parser.add_own_recipe()


def run(options: argparse.Namespace) -> int:
    from ..streams.live import Latency, live

    latency = Latency()
    try:
        live(
            options.folder,
            options.events,
            lambda answer: print(json.dumps(answer), flush=True),
            latency,
            window=options.window,
            realtime=options.realtime,
            recipe=own_recipe(options, options.folder),
        )
    finally:
        us = latency.summary()
        if us["timesteps"]:
            print(
                f"{us['timesteps']} timesteps; latency in microseconds: median {us['median']:g}, "
                f"99th percentile {us['p99']:g}, worst {us['worst']:g}",
                file=sys.stderr,
            )
    if options.json:
        print(json.dumps({"event": "done", **us}))
    return 0
