"""The command line `backspike VERB ...`; each verb is a file in this folder.

A verb's file has HELP (its line in `backspike --help`), `add_arguments(parser)` and `run(options)`,
which returns the exit code. Only `run` may import torch, so that help appears immediately.

Exit codes: 0, success; 1, failure; 2, wrong usage. After a failure or wrong usage, one line on
standard error gives the reason and what to do.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import BackspikeError, UsageError
from ..system import heap
from ..system.machine import QUIET_THREADS
from ..version import __version__
from .parser import Parser, from_torchrun

VERBS = (
    "train",
    "doctor",
    "resume",
    "eval",
    "stream",
    "predict",
    "report",
    "export",
    "card",
    "study",
    "bench",
    "certify",
    "recipes",
    "data",
    "course",
)
ON_RANKS = ("train", "resume")  # verbs that run under torchrun


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. argv: the words after `backspike`."""
    os.environ |= QUIET_THREADS | os.environ
    if from_torchrun("WORLD_SIZE") > 1:  # otherwise every rank prints torch's C++ warnings
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    heap.use({"0": "", "lean": "lean"}.get(os.environ.get("BACKSPIKE_HEAP", ""), "kept"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths may contain non-text bytes
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UsageError as e:
        return 2 if from_torchrun("RANK") else _fail(e, 2)
    except BackspikeError as e:
        return _fail(e, 1)
    except KeyboardInterrupt:
        return _fail("stopped", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as e:
        if isinstance(e, OSError) and e.filename is not None:
            return _fail(f"{e.filename}: {e.strerror}; check this path", 1)
        if os.environ.get("BACKSPIKE_TRACEBACK"):
            raise
        line = (str(e).splitlines() or [""])[0]
        hint = "for a traceback, set BACKSPIKE_TRACEBACK=1"
        return _fail(f"unexpected {type(e).__name__}: {line}; {hint}", 1)


def _run(words: list[str]) -> int:
    verb = words[0] if words else ""
    if verb not in VERBS:
        parser = _overview()
        parser.parse_args(words)
        parser.print_help()
        return 0
    options = verb_parser(verb).parse(words[1:])
    if verb not in ON_RANKS and from_torchrun("WORLD_SIZE") > 1:
        raise UsageError(
            f"torchrun is for {' and '.join(ON_RANKS)}; run backspike {verb} without it"
        )
    return options.run(options)


def verb_parser(verb: str) -> Parser:
    """The parser of a verb, built from its file."""
    module = import_module(f".{verb}", __name__)
    parser = Parser(
        prog=f"backspike {verb}",
        description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
        allow_abbrev=False,
        conflict_handler="resolve",
    )
    parser.set_defaults(run=module.run)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per line, for programs"
    )
    module.add_arguments(parser)
    return parser


def _overview() -> Parser:
    """The parser of `backspike` without a verb: help, version and the error for unknown verbs."""
    parser = Parser(
        prog="backspike",
        description="Trains spiking neural networks by backpropagation through spikes.",
        epilog="Environment variables: BACKSPIKE_DATA is the data folder. BACKSPIKE_HEAP=0 or lean "
        "returns freed memory to the system instead of keeping it for the next step (slower). "
        "BACKSPIKE_TRACEBACK=1 shows the traceback of unexpected errors.",
    )
    parser.add_argument("--version", action="version", version=f"backspike {__version__}")
    verbs = parser.add_subparsers(metavar="VERB")
    for verb in VERBS:
        verbs.add_parser(verb, help=import_module(f".{verb}", __name__).HELP)
    return parser


def _fail(message: object, code: int) -> int:
    """Prints an error as one line on standard error and returns the exit code."""
    from ..system.events import printable

    text = printable(str(message))
    if len(text) > 4000:  # keep the end, which says what to do
        text = f"{text[:3500]} ... {text[-400:]}"
    print(f"backspike: {text}", file=sys.stderr)
    return code
