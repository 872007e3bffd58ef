"""Errors with one-line messages that say what to do; the command line catches `BackspikeError`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from pathlib import Path


class BackspikeError(Exception):
    """Base of all errors that this package raises on purpose, with a one-line message."""


class UsageError(BackspikeError):
    """A command line is wrong; exit code 2."""


class RunError(BackspikeError, RuntimeError):
    """A run folder cannot be used, or a run cannot continue."""


class RecipeError(BackspikeError, ValueError):
    """A recipe has an unknown field or a wrong value."""


class DataError(BackspikeError, ValueError):
    """Data is missing or damaged; the message names the file."""

    @classmethod
    def at(cls, name: str, offset: int, what: str) -> DataError:
        """The error for damage in the file `name` at byte `offset`."""
        return cls(f"{name}: byte {offset}: {what}")


class ReportError(BackspikeError):
    """A report cannot be made from a run folder."""


class StudyError(BackspikeError, RuntimeError):
    """A study cannot be run as requested, or its folder belongs to another study."""


class BenchError(BackspikeError):
    """A benchmark cannot be run as requested."""


class RanksError(BackspikeError, RuntimeError):
    """The ranks of a distributed training cannot connect."""


class CertifyError(BackspikeError, ValueError):
    """`certify` has no such case."""


class ExchangeError(BackspikeError, ValueError):
    """A network cannot be exported or imported; the message names the layer or the node."""


class Unsupported(RuntimeError):
    """A backend lacks a feature; the message names the feature and a backend that has it."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message: "; did you mean a or b?", or a list of all known words."""
    known = list(known)
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=0.5)
    close = [by_lower[name] for name in close]
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are: {', '.join(known)}"


def on_command_line() -> bool:
    """Whether this process runs the `backspike` program, rather than a user's Python."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = Path(sys.argv[0]).stem if sys.argv else ""
    return program == "backspike" or getattr(spec, "name", "") == "backspike.__main__"


def option(name: str, value: object = None) -> str:
    """How to set an option here: `--force` on the command line, `force=True` in Python."""
    if not on_command_line():
        return name if value is None else f"{name}={value!r}"
    return f"--{name}" if value is None or value is True else f"--{name} {value}"
