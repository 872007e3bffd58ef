"""`backspike study`: compares the arms of a study over several seeds."""

import argparse
import json
from functools import partial
from pathlib import Path

from ..errors import RecipeError, StudyError, UsageError
from .fields import change_fields
from .parser import Parser, at_least_1

HELP = "compare the arms of a study over several seeds; without NAME: list the studies"


def add_arguments(parser: Parser) -> None:
    parser.takes_fields = True
    parser.usage = (
        "backspike study [NAME] [--data NAME] [--seeds N] [--jobs N] [--out DIR] "
        "[--include FILE] [--device DEVICE] [--force] [--json] [--FIELD VALUE ...]"
    )
    parser.epilog = "FIELD is a field of a recipe, for example --epochs 5 or --limit 500."
    parser.add_argument(
        "name",
        nargs="?",
        metavar="NAME",
        help="a study, or a function in a Python file of yours that returns a bs.study.Study, "
        "mine.py:arms; without it, all studies are listed",
    )
    parser.add_argument(
        "--data",
        default="digits",
        metavar="NAME",
        help="digits (default), digits-dvs, mnist, cifar10, or a function in a Python file that "
        "returns a bs.Recipe, mine.py:recipe",
    )
    parser.add_argument(
        "--seeds",
        type=at_least_1,
        metavar="N",
        help="number of runs per arm (default: depends on the study)",
    )
    parser.add_argument(
        "--out",
        help="folder of the study (default: studies/NAME-DATA); "
        "to continue a study, repeat its command",
    )
    parser.add_argument(
        "--jobs",
        type=at_least_1,
        metavar="N",
        help="number of parallel processes (default: one per core, or per GPU of --device)",
    )
    parser.add_argument(
        "--include",
        metavar="FILE",
        help="a study.json of the same arms from elsewhere, whose runs count and are not trained "
        "again",
    )
    parser.add_device(several=True)
    parser.add_argument("--force", action="store_true", help="replace an existing study")
    parser.add_argument(
        "--accept-change",
        action="store_true",
        help="continue, or include runs, although your Python file has changed since",
    )


def run(options: argparse.Namespace) -> int:
    from ..recipes import is_file
    from ..study import runner, shipped
    from ..study.progress import listener
    from ..study.spec import Study

    if options.name is None:
        for name in shipped.NAMES:
            line = {"event": "study", "name": name, "about": shipped.about(name)}
            print(json.dumps(line) if options.json else f"{name:17s} {line['about']}")
        return 0
    try:
        own = is_file(options.name)
        get = shipped.from_file if own else partial(shipped.get, data=options.data)
        study = get(options.name)
        if isinstance(study, Study):
            change_fields(study.base, options.fields)  # names similar fields
            study = study.replace(options.fields)
        elif options.include:
            raise UsageError(f"{options.name} has no arms and seeds; leave --include out")
        elif options.fields:
            raise UsageError(
                f"{options.name} trains no recipe; leave --{next(iter(options.fields))} out"
            )
    except (StudyError, RecipeError) as e:
        raise UsageError(e) from None
    name = options.name
    if own:
        name = study.name
    elif isinstance(study, Study):
        name += f"-{study.base.name if is_file(options.data) else options.data}"
    out = Path(options.out or Path("studies") / name)
    common = {"seeds": options.seeds, "force": options.force}
    try:
        with listener(options.json) as listen:
            if isinstance(study, Study):
                page = runner.run(
                    study,
                    out,
                    **common,
                    jobs=options.jobs,
                    device=options.device,
                    listen=listen,
                    accept_change=options.accept_change,
                    include=options.include,
                )
            else:
                from ..study import single_neuron

                page = single_neuron.run(study, out, **common, listen=listen)
    except KeyboardInterrupt:
        raise StudyError(
            f"stopped; finished runs are in {out}; to continue, repeat the command without --force"
        ) from None
    if not options.json:
        print((out / "table.md").read_text("utf-8"), end="")
        print(f"study: {page}")
    return 0
