"""`backspike eval`: the test set through a trained network."""

import argparse
import json
import shlex

from .parser import Parser

HELP = "run the test set through the trained network of a run"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("folder", metavar="RUN")
    parser.add_device()
    parser.add_argument(
        "--anytime",
        action="store_true",
        help="measure early exit too; its threshold is chosen on the validation split",
    )


def run(options: argparse.Namespace) -> int:
    from ..train.evaluate import evaluate

    result = evaluate(options.folder, device=options.device, anytime=options.anytime)
    if options.json:
        print(json.dumps({"event": "done", **result}))
    else:
        accuracy = f"test accuracy {100 * result['test_accuracy']:.2f} %"
        print(f"{accuracy} of {result['n']} samples, loss {result['test_loss']:.4f}")
        steps = "  ".join(
            f"{t + 1}: {100 * a:.2f} %" for t, a in enumerate(result["accuracy_over_time"])
        )
        print(f"stopped after so many timesteps: {steps}")
    if options.anytime and not options.json:
        for name, curve in result["anytime"]["exit"].items():
            i = curve["chosen"]
            print(
                f"early exit by {name} of at least {curve['threshold'][i]:.3f} "
                f"(chosen on the validation split): {100 * curve['accuracy'][i]:.2f} % "
                f"after {curve['steps'][i]:.2f} timesteps on average"
            )
        print(f"with a figure of it: backspike report {shlex.quote(options.folder)}")
    return 0
