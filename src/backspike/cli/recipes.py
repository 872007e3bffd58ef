"""`backspike recipes`: the shipped recipes."""

import argparse
import dataclasses
import json

from .parser import Parser

HELP = "list the recipes"


def add_arguments(parser: Parser) -> None:
    """No options of its own."""


def run(options: argparse.Namespace) -> int:
    from .. import recipes

    for name, shipped in recipes.NAMES.items():
        recipe = shipped.make()
        if options.json:
            line = {
                "event": "recipe",
                **recipe.to_dict(),
                "about": shipped.about,
                "reported": shipped.reported and dataclasses.asdict(shipped.reported),
                "here": shipped.here,
            }
            print(json.dumps(line))
            continue
        print(f"{name}: {shipped.about}")
        print(f"    data {recipe.data}, T = {recipe.T}, network {recipe.model}")
        reported = shipped.reported or "no accuracy known"
        print(f"    reported: {reported}; here: {shipped.here or 'not run'}")
    return 0
