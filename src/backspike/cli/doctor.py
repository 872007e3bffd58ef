"""`backspike doctor`: finds out why a recipe or a run does not learn."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import RecipeError, UsageError
from .fields import change_fields, own_recipe, read_recipe
from .parser import Parser

HELP = "find out why a recipe or a run does not learn, from a few batches"


def add_arguments(parser: Parser) -> None:
    parser.takes_fields = True
    parser.usage = (
        "backspike doctor RUN|RECIPE [--out PAGE] [--device DEVICE] [--json] [--FIELD VALUE ...]"
    )
    parser.epilog = (
        "FIELD is a field of the recipe, to try out a change. "
        "Exit code 0: no problem found (notes are not problems); 1: problems found."
    )
    parser.add_argument(
        "subject",
        metavar="RUN|RECIPE",
        help="a run folder, a recipe name (see: backspike recipes), a recipe's JSON file, or a "
        "function in a Python file of yours, mine.py:recipe",
    )
    parser.add_argument(
        "--out",
        metavar="PAGE",
        help="also write an HTML page with figures (default for a run without --FIELD: "
        "RUN/doctor.html)",
    )
    parser.add_device()
    parser.add_own_recipe()


def run(options: argparse.Namespace) -> int:
    from ..run import Run

    subject: Any = Path(options.subject)
    recipe = None
    try:
        if (subject / "recipe.json").is_file():
            recipe = own_recipe(options, options.subject)
            change_fields(Run.open(subject).recipe(own=recipe), options.fields)  # checks the fields
        elif options.recipe or options.trust or options.accept_change:
            raise UsageError(
                "--recipe, --trust and --accept-change are for a run folder, which "
                f"{options.subject} is not; leave them out"
            )
        else:
            subject = change_fields(read_recipe(options.subject), options.fields)
    except RecipeError as e:
        unknown = "unknown recipe" in str(e)
        raise UsageError(
            f"{e}; there is no run folder of that name either" if unknown else e
        ) from e
    from ..doctor import examine, page

    found = examine.examine(
        subject,
        changes=options.fields if isinstance(subject, Path) else {},
        device=options.device,
        recipe=recipe,
    )
    # the run's own page shows the run as it is, without changed fields
    of_run = isinstance(subject, Path) and not options.fields
    out = options.out or (subject / "doctor.html" if of_run else None)
    written = page.write(found, Path(out)) if out else None
    if options.json:
        print(json.dumps({"event": "done", **found.to_dict(), "report": written and str(written)}))
    else:
        print("\n".join(examine.lines(found)))
        if written:
            print(f"report: {written}")
    return int(not found.ok)
