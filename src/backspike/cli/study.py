"""`backspike study`: compares the arms of a study over several seeds."""

import argparse
import json
from pathlib import Path

from ..errors import RecipeError, StudyError, UsageError
from .parser import Parser

HELP = "compare the arms of a study over several seeds; without NAME: list the studies"


def add_arguments(parser: Parser) -> None:
    parser.takes_fields = True
    parser.usage = (
        "backspike study [NAME] [--data NAME] [--seeds N] [--jobs N] [--out DIR] [--json] "
        "[--FIELD VALUE ...]"
    )
    parser.epilog = "Fields are those of a recipe, such as --epochs 5 or --limit 500."
    parser.add_argument("name", nargs="?", metavar="NAME")
    parser.add_argument(
        "--data", default="digits", metavar="NAME", help="digits (default), digits-dvs, mnist"
    )
    parser.add_argument(
        "--seeds", type=int, metavar="N", help="runs per arm (default: the study's own number)"
    )
    parser.add_argument(
        "--out",
        help="folder of the study (default: studies/NAME-DATA); the same command again goes on",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="processes at once (default: as many as cores)"
    )
    parser.add_device()
    parser.add_argument(
        "--force", action="store_true", help="replace a study that is already there"
    )


def run(options: argparse.Namespace) -> int:
    from ..study import runner, shipped
    from ..study.progress import listener
    from ..study.spec import Study

    if options.name is None:
        for name in shipped.NAMES:
            line = {"event": "study", "name": name, "about": shipped.about(name)}
            print(json.dumps(line) if options.json else f"{name:17s} {line['about']}")
        return 0
    try:
        wanted = shipped.get(options.name, options.data)
        if isinstance(wanted, Study):
            wanted = wanted.replace(options.fields)
        elif options.fields:
            raise UsageError(
                f"{options.name} trains no recipe; leave --{next(iter(options.fields))} out"
            )
    except (StudyError, RecipeError) as e:
        raise UsageError(e) from None
    named = f"{options.name}-{options.data}" if isinstance(wanted, Study) else options.name
    out = Path(options.out or Path("studies") / named)
    work = {"seeds": options.seeds, "force": options.force}
    try:
        with listener(options.json) as listen:
            if isinstance(wanted, Study):
                page = runner.run(
                    wanted, out, **work, jobs=options.jobs, device=options.device, listen=listen
                )
            else:
                from ..study import single_neuron

                page = single_neuron.run(wanted, out, **work, listen=listen)
    except KeyboardInterrupt:
        raise StudyError(
            f"stopped; what is done so far is in {out}, the same command without --force goes on"
        ) from None
    if not options.json:
        print((out / "table.md").read_text("utf-8"), end="")
        print(f"study: {page}")
    return 0
