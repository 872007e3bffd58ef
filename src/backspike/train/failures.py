"""Explains errors of a training and of the machine in one line."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..data.batches import reader_died, reader_ended
from ..errors import RunError, on_command_line, option
from ..recipes.recipe import Recipe
from ..system import distributed

logger = logging.getLogger("backspike")


def first_line(e: BaseException) -> str:
    """The first line of an error that is not empty; its type if there is none."""
    return next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)


def out_of_memory(e: BaseException) -> bool:
    """Whether this error, or its cause, means that memory ran out."""
    # oneDNN's "primitive descriptor" cannot be created for what it does not support
    text = r"allocate memory|could not create a primitive(?! descriptor)"
    if isinstance(e, torch.OutOfMemoryError | MemoryError) or re.search(text, str(e)):
        return True
    return e.__cause__ is not None and out_of_memory(e.__cause__)


@contextmanager
def step_errors(where: object) -> Iterator[None]:
    """Prefixes errors of a step with the text of `where` at that time, as a RunError."""
    try:
        yield
    except RunError:
        raise
    except (RuntimeError, ValueError, TypeError) as e:
        if out_of_memory(e) or reader_died(e) or distributed.is_peer_failure(e):
            raise
        raise RunError(f"{where}: {first_line(e)}") from e


@contextmanager
def explain_failures(recipe: Recipe) -> Iterator[None]:
    """Explains that memory ran out, or that a process that loads samples ended, as a RunError."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as e:
        if out_of_memory(e):
            parts = recipe.accumulate
            find = "--memory 4GB" if on_command_line() else 'bs.plan_memory(recipe, "4GB")'
            raise RunError(
                f"out of memory with {option('batch_size', recipe.batch_size)} "
                f"and {parts} part{'s' * (parts > 1)} per step; train again with "
                f"{option('accumulate', 2 * parts)} or a smaller {option('batch_size')}, "
                f"or find settings that fit with {find}"
            ) from e
        if reader_died(e):
            raise reader_ended(recipe.workers) from e
        raise
