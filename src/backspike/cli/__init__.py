"""The command line: verbs, recipe names and `--field value`. Torch is imported only by the verbs that compute.

Exit codes: 0, 1 (failed, one line on standard error says why and what cures it), 2 (the command itself is wrong).
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import errors
from ..errors import BackspikeError, UsageError
from ..system import heap
from ..system.machine import QUIET_THREADS
from ..version import __version__

if TYPE_CHECKING:
    from ..recipes.recipe import Recipe


TAKE_FIELDS = ("train", "study", "doctor")  # verbs that take --FIELD VALUE beside their own options
OPTIONS_WITH_VALUE = ("out", "device", "seeds", "jobs", "memory")
OPTIONS = ("help", "json", "force", "watch", *OPTIONS_WITH_VALUE)
ON_RANKS = ("train", "resume")  # verbs that torchrun may start


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    os.environ |= QUIET_THREADS | os.environ
    if _from_torchrun("WORLD_SIZE") > 1:  # torch's warnings in C++ would come once a rank
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    heap.use({"0": "", "lean": "lean"}.get(os.environ.get("BACKSPIKE_HEAP", ""), "kept"))
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    try:
        arguments, fields = (
            split_off_fields(arguments)
            if arguments[:1] in ([v] for v in TAKE_FIELDS)
            else (arguments, {})
        )
        parser = _parser()
        options = parser.parse_args(arguments)
        if options.verb is None:
            parser.print_help()
            return 0
        options.fields = fields
        if options.verb not in ON_RANKS and _from_torchrun("WORLD_SIZE") > 1:
            raise UsageError(
                f"torchrun is for {' and '.join(ON_RANKS)}; run backspike {options.verb} without it"
            )
        return options.run(options)
    except UsageError as e:
        return 2 if _from_torchrun("RANK") else _fail(e, 2)
    except KeyboardInterrupt:
        return _fail("stopped", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:
        if isinstance(e, BackspikeError):
            return _fail(e, 1)
        if isinstance(e, OSError) and e.filename is not None:
            return _fail(f"{e.filename}: {e.strerror}; check this path", 1)
        if os.environ.get("BACKSPIKE_TRACEBACK"):
            raise
        line = (str(e).splitlines() or [""])[0]
        return _fail(f"unexpected {type(e).__name__}: {line}; BACKSPIKE_TRACEBACK=1 shows where", 1)


def split_off_fields(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words that are for the parser, and `--field value` or `--field=value` of a recipe as a dict.

    Before the parser sees them, as it takes a value with a space in it for no option at all.
    """
    own: list[str] = []
    fields: dict[str, str] = {}
    left = iter(words)
    for word in left:
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--") or name in OPTIONS:
            own.append(word)
            if name in OPTIONS_WITH_VALUE and word.startswith("--") and not equals:
                own += [v for v in [next(left, None)] if v is not None]
            continue
        name = name.replace("-", "_")
        if not equals:
            value = next(left, "--")
            if value.startswith("--"):
                raise UsageError(
                    f"--{name} needs a value; for one that begins with -- write --{name}=VALUE"
                )
        if name in fields:
            raise UsageError(f"--{name} is given twice")
        fields[name] = value
    return own, fields


def _fail(message: object, code: int) -> int:
    from ..system.events import printable

    text = printable(str(message))
    text = (
        text if len(text) <= 4000 else f"{text[:3500]} ... {text[-400:]}"
    )  # the cure stands at the end
    print(f"backspike: {text}", file=sys.stderr)
    return code


def _from_torchrun(name: str) -> int:
    """One of the numbers that torchrun tells a process in its environment; 0 without it."""
    return int(os.environ.get(name, "0"))


def _parser() -> _Parser:
    parser = _Parser(
        prog="backspike",
        description="Trains spiking neural networks by back-propagating through spikes.",
    )
    parser.add_argument("--version", action="version", version=f"backspike {__version__}")
    parser.epilog = (
        "Environment: BACKSPIKE_DATA, folder of the data; BACKSPIKE_HEAP=0, give freed memory back at once instead of "
        "keeping it for the next step (slower); BACKSPIKE_TRACEBACK=1, show where an unexpected error comes from."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)

    def verb(name: str, run: Any, help: str, **options: Any) -> _Parser:
        p = verbs.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            allow_abbrev=False,
            **options,
        )
        p.set_defaults(run=run)
        p.add_argument("--json", action="store_true", help="one JSON object a line")
        return p

    p = verb("train", _train, "train a recipe (default: digits) into a run folder", add_help=False)
    p.usage = "backspike train [RECIPE] [--out DIR] [--force] [--device DEVICE] [--memory SIZE] [--watch] [--json] "
    p.usage += "[--FIELD VALUE ...]"
    p.add_argument("-h", "--help", action="store_true", help="this, with every field of the recipe")
    p.add_argument(
        "recipe", nargs="?", default="digits", metavar="RECIPE", help="see: backspike recipes"
    )
    p.add_argument("--out", help="run folder (default: runs/RECIPE-1, or the next number)")
    p.add_argument("--force", action="store_true", help="replace a run that is already there")
    p.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    p.add_argument(
        "--memory",
        metavar="SIZE",
        help="choose settings with which it fits, such as 6GB, and say what they cost",
    )
    p.add_argument(
        "--watch",
        action="store_true",
        help="after every epoch, what `backspike doctor` measures; same result",
    )
    p.set_defaults(parser=p)

    p = verb(
        "doctor",
        _doctor,
        "why does it not learn? a few batches through a recipe or a run, and what is wrong",
    )
    p.usage = (
        "backspike doctor RUN|RECIPE [--out PAGE] [--device DEVICE] [--json] [--FIELD VALUE ...]"
    )
    p.epilog = "Fields are those of the recipe, to try a change. Exit code 0: nothing found, or notes only; 1: findings."
    p.add_argument(
        "subject",
        metavar="RUN|RECIPE",
        help="a folder that `train` made, or a name of: backspike recipes",
    )
    p.add_argument(
        "--out",
        metavar="PAGE",
        help="also write a page with the pictures (a run's by default: RUN/doctor.html)",
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")

    p = verb("resume", _resume, "go on with an interrupted run, to the same result")
    p.add_argument("folder", metavar="RUN")
    p.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")

    p = verb("eval", _eval, "run the test set through the trained network of a run")
    p.add_argument("folder", metavar="RUN")
    p.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    p.add_argument(
        "--anytime",
        action="store_true",
        help="measure early exit too; its threshold is chosen on the validation split",
    )

    p = verb(
        "report",
        _report,
        "make the report of a run, or compare several, from the run folders alone",
    )
    p.add_argument("folders", metavar="RUN", nargs="+")
    p.add_argument("--out", help="where a comparison goes (default: comparison.html)")

    p = verb(
        "study",
        _study,
        "compare the arms of a study over several seeds; without NAME: list the studies",
    )
    p.usage = "backspike study [NAME] [--data NAME] [--seeds N] [--jobs N] [--out DIR] [--json] [--FIELD VALUE ...]"
    p.epilog = "Fields are those of a recipe, such as --epochs 5 or --limit 500; --data: digits (default), digits-dvs, mnist."
    p.add_argument("name", nargs="?", metavar="NAME")
    p.add_argument(
        "--seeds", type=int, metavar="N", help="runs per arm (default: the study's own number)"
    )
    p.add_argument(
        "--out",
        help="folder of the study (default: studies/NAME-DATA); the same command again goes on",
    )
    p.add_argument(
        "--jobs", type=int, metavar="N", help="processes at once (default: as many as cores)"
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    p.add_argument("--force", action="store_true", help="replace a study that is already there")

    p = verb(
        "bench",
        _bench,
        "time and memory of training, against other libraries and the limits of this machine",
    )
    names = (
        "some of neuron, fc, fc-10%%, vgg, vgg-10%%, vgg-20%%, resnet, resnet-10%%, resnet-20%%, by commas, or all (default); "
        "for a GPU neuron-gpu, resnet-32px, vggsnn, resnet-224px"
    )
    p.add_argument("name", nargs="?", default="all", metavar="WORKLOAD", help=names)
    p.add_argument(
        "--peer-python",
        metavar="PATH",
        help="the python of an environment with SpikingJelly, snnTorch, Norse, sinabs",
    )
    p.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    p.add_argument(
        "--rounds",
        type=int,
        default=9,
        metavar="N",
        help="turns of each implementation (default: 9)",
    )
    p.add_argument(
        "--threads", type=int, metavar="N", help="threads of each (default: as many as torch takes)"
    )
    p.add_argument(
        "--precision", default="both", metavar="P", help="float32, bfloat16 or both (default)"
    )
    p.add_argument(
        "--only",
        default="",
        metavar="NAMES",
        help="implementations whose name has one of these parts, by commas",
    )
    p.add_argument(
        "--quick",
        action="store_true",
        help="small sizes, to see that everything runs; figures mean nothing",
    )
    p.add_argument(
        "--out",
        default="bench",
        help="folder for bench.json, bench.md, bench.html, figures/ (default: bench)",
    )

    p = verb(
        "certify",
        _certify,
        "check that all backends compute the same on this machine, against float64",
    )
    p.add_argument(
        "--only",
        metavar="NAME=VALUE,...",
        help="hold options to these values, such as backend=cpu,dtype=bfloat16",
    )
    p.add_argument(
        "--all",
        action="store_true",
        help="every combination instead of every pair of options; hours",
    )
    p.add_argument(
        "--out", metavar="FILE.md", help="write the certificate there, and beside it FILE.json"
    )

    verb("recipes", _recipes, "list the recipes")

    p = verb("data", _data, "list the data sets: what is here, and what to put where")
    p.add_argument("name", nargs="?", metavar="NAME", help="one data set in detail")
    p.add_argument("--root", help="folder of the data (default: BACKSPIKE_DATA, then ./data)")
    return parser


# ---- train, resume -------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    from .. import recipes
    from ..errors import RecipeError

    try:
        recipe = recipes.get(options.recipe)
        if options.help:
            options.parser.print_help()
            print("\n" + _field_help(recipe))
            return 0
        recipe = recipe.replace(options.fields)
        from ..train.memory_budget import parse_size, plan_memory

        budget = parse_size(options.memory) if options.memory is not None else None
    except RecipeError as e:
        raise UsageError(e) from None
    if options.memory and _from_torchrun("WORLD_SIZE") > 1:
        raise UsageError(
            "--memory is for one process: run it without torchrun, and give what it finds as fields"
        )
    if options.watch and _from_torchrun("WORLD_SIZE") > 1:
        raise UsageError(
            "--watch is for one process: run it without torchrun, or ask `backspike doctor RUN` afterwards"
        )
    if not options.out and _from_torchrun("TORCHELASTIC_MAX_RESTARTS"):
        raise UsageError(
            "what torchrun starts again has to find its run: name the folder with --out DIR"
        )
    from ..run import Run, next_free
    from ..system import distributed

    def work(train: Any, listen: Any, out: Path) -> Any:
        if distributed.here().of_first(lambda: _started_before(out, recipe)):
            return train.resume(out, device=options.device, listen=listen)
        if budget:
            Run.free(out, options.force)  # before it takes time to find out what fits
        fitting = (
            plan_memory(recipe, budget, device=options.device, listen=listen).recipe
            if budget
            else recipe
        )
        return train.fit(
            fitting,
            out,
            force=options.force,
            device=options.device,
            listen=listen,
            watch=options.watch,
        )

    with distributed.joined(options.device) as together:
        out = together.of_first(
            lambda: Path(options.out) if options.out else next_free(Path("runs"), recipe.name)
        )
        return _run(options, out, work)


def _started_before(out: Path, recipe: Recipe) -> bool:
    """Whether torchrun has started this training before: its folder is there."""
    from ..recipes.recipe import OPEN
    from ..run import Run

    if not _from_torchrun("TORCHELASTIC_RESTART_COUNT") or not (out / "recipe.json").is_file():
        return False
    left_open = {name: getattr(recipe, name) for name in OPEN}
    return dataclasses.replace(Run.open(out).recipe(), **left_open) == recipe


def _resume(options: argparse.Namespace) -> int:
    from ..system import distributed

    def work(train: Any, listen: Any, out: Path) -> Any:
        return train.resume(out, device=options.device, listen=listen)

    with distributed.joined(options.device):
        return _run(options, Path(options.folder), work)


def _run(options: argparse.Namespace, out: Path, work: Any) -> int:
    """Does the work of `train` or `resume` and says what came of it."""
    from .. import train
    from ..errors import RunError
    from ..system import distributed
    from .progress import listener

    first = distributed.here().first
    try:
        with listener(options.json) if first else nullcontext() as listen:
            result = work(train, listen, out)
    except KeyboardInterrupt:
        if (out / "last.ckpt").exists() or not first:
            again = distributed.command("resume", out)
            raise RunError(f"stopped; a checkpoint is saved, go on with: {again}") from None
        raise
    if first and not options.json:
        tested = (
            ""
            if result.test_accuracy is None
            else f"test accuracy {100 * result.test_accuracy:.2f} % "
        )
        print(
            f"{tested}(best epoch {result.best_epoch} of {result.epochs}), trained {result.seconds:.1f} s"
        )
        print(f"report: {out / 'report.html'}")
    return 0


def _field_help(recipe: Recipe) -> str:
    """Every field of the recipe with its value there and what it means."""
    flat = recipe.to_dict()["fields"]
    helps = {f.name: f.metadata.get("help", "") for f in dataclasses.fields(recipe)}
    lines = [
        f"fields of the recipe {recipe.name}, and their values; fields of objects by dots, --optimizer.lr 0.01:"
    ]
    for name, value in flat.items():
        lines.append(f"  --{name} {value!r}" if value == "" else f"  --{name} {value}")
        if text := helps.get(name):
            lines.append(f"        {text}")
    return "\n".join(lines)


# ---- the other verbs -----------------------------------------------------------------------------------------------------


def _eval(options: argparse.Namespace) -> int:
    from ..train.evaluate import evaluate

    result = evaluate(options.folder, device=options.device, anytime=options.anytime)
    if options.json:
        print(json.dumps({"event": "done", **result}))
    else:
        print(
            f"test accuracy {100 * result['test_accuracy']:.2f} % of {result['n']} samples, loss {result['test_loss']:.4f}"
        )
        steps = "  ".join(
            f"{t + 1}: {100 * a:.2f} %" for t, a in enumerate(result["accuracy_over_time"])
        )
        print(f"stopped after so many timesteps: {steps}")
    if options.anytime and not options.json:
        for name, curve in result["anytime"]["exit"].items():
            i = curve["chosen"]
            print(
                f"early exit by {name} of at least {curve['threshold'][i]:.3f} (chosen on the validation split): "
                f"{100 * curve['accuracy'][i]:.2f} % after {curve['steps'][i]:.2f} timesteps on average"
            )
        print(f"with a figure of it: backspike report {shlex.quote(options.folder)}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from .. import recipes
    from ..errors import RecipeError
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
    out = (
        Path(options.out)
        if options.out
        else subject / "doctor.html"
        if isinstance(subject, Path)
        else None
    )
    written = page.write(found, out) if out else None
    if options.json:
        print(json.dumps({"event": "done", **found.to_dict(), "report": written and str(written)}))
    else:
        print("\n".join(examine.lines(found)))
        if written:
            print(f"report: {written}")
    return int(not found.healthy)


def _report(options: argparse.Namespace) -> int:
    from .. import report

    runs = [Path(f) for f in options.folders]
    made = (
        report.write(runs[0])
        if len(runs) == 1
        else report.compare(runs, Path(options.out or "comparison.html"))
    )
    print(json.dumps({"event": "done", "report": str(made)}) if options.json else f"report: {made}")
    return 0


def _study(options: argparse.Namespace) -> int:
    from ..errors import RecipeError, StudyError
    from ..study import runner, shipped
    from ..study.progress import listener
    from ..study.spec import Study

    if options.name is None:
        for name in shipped.NAMES:
            line = {"event": "study", "name": name, "about": shipped.about(name)}
            print(json.dumps(line) if options.json else f"{name:17s} {line['about']}")
        return 0
    data = options.fields.pop("data", "digits")
    try:
        wanted = shipped.get(options.name, data)
        if isinstance(wanted, Study):
            wanted = wanted.replace(options.fields)
        elif options.fields:
            raise UsageError(
                f"{options.name} trains no recipe; leave --{next(iter(options.fields))} out"
            )
    except (StudyError, RecipeError) as e:
        raise UsageError(e) from None
    named = f"{options.name}-{data}" if isinstance(wanted, Study) else options.name
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
        return _fail(
            f"stopped; what is done so far is in {out}, the same command without --force goes on", 1
        )
    if not options.json:
        print((out / "table.md").read_text("utf-8"), end="")
        print(f"study: {page}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from .. import bench
    from ..bench import page
    from ..bench.progress import listener

    only = [part for part in options.only.split(",") if part]
    settings = {
        name: getattr(options, name)
        for name in ("rounds", "threads", "peer_python", "precision", "device", "quick")
    }
    with listener(options.json) as listen:
        measured = bench.run(options.name, only=only, **settings, listen=listen)
    written = page.write(measured, Path(options.out), shlex.join(["backspike", *sys.argv[1:]]))
    if options.json:
        print(json.dumps({"event": "done", "report": str(written)}))
        return 0
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for table in page.terminal(measured):
        console.print(table)
    print(f"bench: {written}")
    return int(not any(row.measured for outcome in measured.outcomes for row in outcome.ranked()))


def _certify(options: argparse.Namespace) -> int:
    words = [word.partition("=") for word in (options.only or "").split(",") if word]
    if bad := next((name for name, equals, _ in words if not equals), None):
        raise UsageError(
            f"--only takes NAME=VALUE pairs joined by commas, such as backend=cpu,dtype=bfloat16; got {bad!r}"
        )
    if options.out and not options.out.endswith(".md"):
        raise UsageError(
            f"--out names a Markdown file, such as certificate.md (the JSON is put beside it), got {options.out}"
        )
    from .. import certify
    from ..certify import page

    try:
        with page.listener(options.json) as listen:
            made = certify.run(
                {name: value for name, _, value in words}, all=options.all, listen=listen
            )
    except errors.CertifyError as e:
        raise UsageError(e) from None
    if options.out:
        page.write(made, Path(options.out), shlex.join(["backspike", *sys.argv[1:]]))
    if options.json:
        failed = [page.failure(finding) for finding in made.failed]
        print(
            json.dumps(
                {"event": "done", "passed": made.passed, "cases": made.cases, "failed": failed}
            )
        )
        return int(not made.passed)
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(page.terminal(made))
    for line in page.failures(made):
        print(line)
    print(page.summary(made))
    return int(not made.passed)


def _recipes(options: argparse.Namespace) -> int:
    from .. import recipes

    for name, shipped in recipes.NAMES.items():
        recipe = shipped.make()
        if options.json:
            reported = shipped.reported and dataclasses.asdict(shipped.reported)
            line = {
                "event": "recipe",
                **recipe.to_dict(),
                "about": shipped.about,
                "reported": reported,
                "here": shipped.here,
            }
            print(json.dumps(line))
            continue
        print(f"{name}: {shipped.about}")
        print(f"    data {recipe.data}, T = {recipe.T}, network {recipe.model}")
        print(
            f"    reported: {shipped.reported or 'no accuracy known'}; here: {shipped.here or 'not run'}"
        )
    return 0


def _data(options: argparse.Namespace) -> int:
    from .. import data

    sources = [data.source(options.name)] if options.name else data.catalogue()
    for s in sources:
        files = [
            {"path": str(path), "state": state} for path, state in data.check(s.name, options.root)
        ]
        here = all(f["state"].startswith("present") for f in files)
        if options.json:
            about = {
                "name": s.name,
                "here": here,
                "samples": s.samples,
                "files": files,
                "credit": s.credit,
            }
            print(json.dumps({"event": "data", **about}))
            continue
        train, validation, test = s.samples
        counts = f"{train:,} + {validation:,} + {test:,} {s.kind}"
        print(f"{s.name:14s} {'here' if here else 'not here':9s} {counts}, {s.num_classes} classes")
        for f in files if options.name or not here else ():
            print(f"{'':14s} {f['path']}: {f['state']}")
        print(f"{'':14s} {'; '.join(t for t in (s.note, s.credit, s.home) if t)}")
    return 0
