"""`backspike eval`: tests the trained network of a run."""

import argparse
import json
import shlex
from pathlib import Path

from .fields import own_recipe
from .parser import RUN, Parser

HELP = "test the trained network of a run on the test set"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN", help=RUN)
    parser.add_device()
    parser.add_own_recipe()
    parser.add_argument(
        "--anytime",
        action="store_true",
        help="also measure early exit; its threshold is chosen on the validation split",
    )


def run(options: argparse.Namespace) -> int:
    from ..train.evaluate import evaluate

    result = evaluate(
        options.folder,
        device=options.device,
        anytime=options.anytime,
        recipe=own_recipe(options, options.folder),
    )
    if options.json:
        print(json.dumps({"event": "done", **result}))
        return 0
    accuracy = f"test accuracy {100 * result['test_accuracy']:.2f} %"
    print(f"{accuracy} of {result['n']} samples, loss {result['test_loss']:.4f}")
    first, *later = (f"{100 * a:.2f} %" for a in result["accuracy_over_time"])
    steps = [f"accuracy after 1 timestep: {first}"]
    steps += [f"after {t}: {accuracy}" for t, accuracy in enumerate(later, 2)]
    print(", ".join(steps))
    if options.anytime:
        for name, curve in result["anytime"]["exit"].items():
            i = curve["chosen"]
            print(
                f"early exit once {name} reaches {curve['threshold'][i]:.3f} "
                f"(chosen on the validation split): {100 * curve['accuracy'][i]:.2f} % "
                f"after {curve['steps'][i]:.2f} timesteps on average"
            )
        if Path(options.folder).is_dir():  # only there it was stored
            print(f"for a figure, run: backspike report {shlex.quote(options.folder)}")
    return 0
