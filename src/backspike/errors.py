"""What a user is told: one line that names the cure. The command line catches `BackspikeError` alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BackspikeError(Exception):
    """The base of all errors that this package raises on purpose; the message is one line that says what to do."""


class UsageError(BackspikeError):
    """The command is wrong; exit code 2."""


class RunError(BackspikeError, RuntimeError):
    """A run folder cannot be used, or a run cannot go on."""


class RecipeError(BackspikeError, ValueError):
    """A field or a value of a recipe is wrong."""


class DataError(BackspikeError, ValueError):
    """Data that is missing, damaged or not what it says; the message names the file."""

    @classmethod
    def at(cls, name: str, offset: int, what: str) -> DataError:
        """The error for damage found in file `name` at byte `offset`."""
        return cls(f"{name}: byte {offset}: {what}")


class ReportError(BackspikeError):
    """A run folder cannot be shown."""


class StudyError(BackspikeError, RuntimeError):
    """A study cannot be run as asked, or its folder belongs to another study."""


class BenchError(BackspikeError):
    """A benchmark cannot be run as asked."""


class RanksError(BackspikeError, RuntimeError):
    """The ranks cannot come together."""


class CertifyError(BackspikeError, ValueError):
    """A case of `certify` does not exist."""


class Unsupported(RuntimeError):
    """A backend cannot do what was asked; the message says what and which backend can."""


def nearest(word: str, known: Iterable[str]) -> str:
    """ "; did you mean a or b?", or else the whole list."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(close)}?" if close else f"; there are: {', '.join(known)}"
