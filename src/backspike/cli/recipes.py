"""`backspike recipes`: lists the recipes that come with the package."""

import argparse
import dataclasses
import json

from .parser import Parser

HELP = "list the recipes"


def add_arguments(parser: Parser) -> None:
    """Adds nothing: this verb has no options of its own."""


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
        reported = shipped.reported or "unknown"
        print(f"    accuracy in the paper: {reported}; ours: {shipped.here or 'not run'}")
    return 0
