"""What all verbs share: the parser, recipe fields among the options, and torchrun's variables."""

import argparse
import os
import re
from collections.abc import Sequence
from typing import NoReturn

from ..errors import UsageError

# the help of verbs that only read a run
RUN = "a run folder, hf://user/name[@revision] on the hub, or a network of the package (digits)"


class Parser(argparse.ArgumentParser):
    """The parser of a verb. Errors raise UsageError instead of exiting.

    takes_fields: whether options that the parser does not know are fields of a recipe.
    """

    takes_fields = False

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: {self.prog} --help")

    def add_device(self, *, several: bool = False) -> None:
        """Adds the option --device; several: it takes a list, separated by commas."""
        self.add_argument(
            "--device",
            type=_devices if several else _device,
            help="cpu, cuda or cuda:1 (default: a GPU if there is one)"
            + ("; cuda:0,cuda:1 divides the runs among both" * several),
        )

    def add_own_recipe(self) -> None:
        """Adds the options for runs whose recipe a Python file of the user's makes."""
        self.add_argument(
            "--recipe",
            metavar="FILE.py:FUNCTION",
            help="the Python file that made the run's recipe and the function in it; imports the "
            "file",
        )
        self.add_argument(
            "--trust",
            action="store_true",
            help="import the Python file that the run folder names: its code runs",
        )
        self.add_argument(
            "--accept-change",
            action="store_true",
            help="use the Python file although it has changed since the run was started",
        )

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parses the verb's options; the attribute `fields` holds the recipe fields."""
        own, fields = self.split_fields(words) if self.takes_fields else (words, {})
        return self.parse_args(own, argparse.Namespace(fields=fields))

    def split_fields(self, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Splits words into those for this parser and the recipe's `--field value` pairs.

        This happens before argparse sees the words because argparse takes an unknown option that
        contains a space for a positional argument.
        """
        own: list[str] = []
        fields: dict[str, str] = {}
        rest = iter(words)
        for word in rest:
            option, equals, value = word.partition("=")
            action = self._option_string_actions.get(option)
            if action or not word.startswith("--"):
                own.append(word)
                if action and action.nargs != 0 and not equals:
                    own += [v for v in [next(rest, None)] if v is not None]
                continue
            name = option[2:].replace("-", "_")
            if not equals:
                value = next(rest, "--")
                if value.startswith("--"):
                    raise UsageError(
                        f"--{name} needs a value; if it begins with --, write --{name}=VALUE "
                        f"(options without a value: {self.prog} --help)"
                    )
            if name in fields:
                raise UsageError(f"--{name} is given twice; leave one out")
            fields[name] = value
        return own, fields


def at_least_1(text: str) -> int:
    """The type of options that count something."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def _device(text: str) -> str:
    if not re.fullmatch(r"(cpu|cuda|mps|xpu)(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"must be cpu, cuda or cuda:1, got {text!r}")
    return text


def _devices(text: str) -> str:
    return ",".join(_device(name) for name in text.split(","))


def from_torchrun(name: str) -> int:
    """A number that torchrun sets in the environment of its processes; 0 without torchrun."""
    return int(os.environ.get(name, "0"))
