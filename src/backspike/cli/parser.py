"""What all verbs share: the parser, recipe fields among the options, and what torchrun sets."""

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn

from ..errors import UsageError


class Parser(argparse.ArgumentParser):
    """The parser of a verb. An error is a UsageError, not an exit.

    takes_fields: an option that the parser does not know is a field of a recipe.
    """

    takes_fields = False

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: {self.prog} --help")

    def add_device(self) -> None:
        self.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The options of the verb; `fields` holds those of the recipe."""
        own, fields = self.split_fields(words) if self.takes_fields else (words, {})
        return self.parse_args(own, argparse.Namespace(fields=fields))

    def split_fields(self, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The words for this parser, and the recipe's fields: `--field value` or `--field=value`.

        Done before argparse sees the words: it takes an unknown option that contains a space for a
        positional argument.
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
                        f"--{name} needs a value; for one that begins with -- write --{name}=VALUE"
                    )
            if name in fields:
                raise UsageError(f"--{name} is given twice")
            fields[name] = value
        return own, fields


def from_torchrun(name: str) -> int:
    """A number that torchrun sets in the environment of its processes; 0 without torchrun."""
    return int(os.environ.get(name, "0"))
