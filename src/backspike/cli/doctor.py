"""`backspike doctor`: why a recipe or a run does not learn."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..errors import RecipeError, UsageError
from .parser import Parser

HELP = "why does it not learn? a few batches through a recipe or a run, and what is wrong"


def add_arguments(parser: Parser) -> None:
    parser.takes_fields = True
    parser.usage = (
        "backspike doctor RUN|RECIPE [--out PAGE] [--device DEVICE] [--json] [--FIELD VALUE ...]"
    )
    parser.epilog = (
        "Fields are those of the recipe, to try a change. "
        "Exit code 0: no problem found, or only notes; 1: problems found."
    )
    parser.add_argument(
        "subject",
        metavar="RUN|RECIPE",
        help="a folder that `train` made, or a name of: backspike recipes",
    )
    parser.add_argument(
        "--out",
        metavar="PAGE",
        help="also write a page with charts (default for a run without --FIELD: RUN/doctor.html)",
    )
    parser.add_device()


def run(options: argparse.Namespace) -> int:
    from .. import recipes
    from ..run import Run

    subject: Any = Path(options.subject)
    try:
        if not (Path(options.subject) / "recipe.json").is_file():
            subject = recipes.get(options.subject).replace(options.fields)
        else:
            Run.open(options.subject).recipe().replace(options.fields)
    except RecipeError as e:
        raise UsageError(
            f"{e}; nor is there a run folder of that name" if "unknown recipe" in str(e) else e
        ) from None
    from ..doctor import examine, page

    found = examine.examine(
        subject, changes=options.fields if isinstance(subject, Path) else {}, device=options.device
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
