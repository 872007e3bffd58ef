"""`backspike certify`: checks that all backends agree on this machine."""

import argparse
import json
import shlex
import sys
from pathlib import Path

from ..errors import CertifyError, UsageError
from .parser import Parser

HELP = "check all backends on this machine against float64"


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--only",
        metavar="NAME=VALUE,...",
        help="check only these options, for example backend=cpu,dtype=bfloat16",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="check every combination of options instead of every pair; takes hours",
    )
    parser.add_argument(
        "--out", metavar="FILE.md", help="write the certificate to FILE.md and FILE.json"
    )


def run(options: argparse.Namespace) -> int:
    words = [word.partition("=") for word in (options.only or "").split(",") if word]
    if bad := next((name for name, equals, _ in words if not equals), None):
        raise UsageError(
            "--only takes NAME=VALUE pairs separated by commas, such as "
            f"backend=cpu,dtype=bfloat16; got {bad!r}"
        )
    if options.out and not options.out.endswith(".md"):
        raise UsageError(
            "--out takes the name of a Markdown file, such as certificate.md "
            f"(the JSON file is written next to it); got {options.out}"
        )
    from .. import certify
    from ..certify import page

    try:
        with page.listener(options.json) as listen:
            made = certify.run(
                {name: value for name, _, value in words}, all=options.all, listen=listen
            )
    except CertifyError as e:
        raise UsageError(e) from None
    if options.out:
        page.write(made, Path(options.out), shlex.join(["backspike", *sys.argv[1:]]))
    if options.json:
        failed = [page.failure(finding) for finding in made.failed]
        done = {"event": "done", "passed": made.passed, "cases": made.cases, "failed": failed}
        print(json.dumps(done))
        return int(not made.passed)
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(page.terminal(made))
    for line in page.failures(made):
        print(line)
    print(page.summary(made))
    return int(not made.passed)
