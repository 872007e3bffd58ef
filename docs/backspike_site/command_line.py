"""The command line, from its parsers."""

import argparse
from pathlib import Path
from textwrap import fill

from backspike.cli import VERBS, verb_parser

from .markdown import code_block, table


def verbs(folder: Path) -> str:
    """A section for each verb."""
    return "\n\n".join(_verb(name) for name in VERBS)


def _verb(name: str) -> str:
    parser = verb_parser(name)
    rows = [
        [_call(action), (action.help or "") % {**vars(action), "prog": parser.prog}]
        for action in parser._actions  # noqa: SLF001  argparse has no public list of them
        if action.help != argparse.SUPPRESS
    ]
    usage = parser.format_usage().removeprefix("usage: ")
    usage = fill(" ".join(usage.split()), 76, subsequent_indent="    ", break_on_hyphens=False)
    parts = [f"## {name}", parser.description or "", code_block(usage, "console")]
    if parser.takes_fields:
        parts.append("Every [field of a recipe](recipes.md#fields-of-a-recipe) is an option, too.")
    return "\n\n".join([*parts, table(["argument", "meaning"], rows, "ll"), parser.epilog or ""])


def _call(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    if not action.option_strings:
        return f"`{value.strip()}`"
    return f"`{', '.join(action.option_strings)}{value}`"
