"""Errors of a training and of the machine, explained in one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..data.batches import reader_died, reader_ended
from ..errors import RunError
from ..recipes.recipe import Recipe
from ..system import distributed

logger = logging.getLogger("backspike")


def first_line(e: BaseException) -> str:
    return str(e).splitlines()[0] if str(e) else type(e).__name__


def out_of_memory(e: BaseException) -> bool:
    """Whether this error, or its cause, says that memory ran out."""
    if isinstance(e, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(e):
        return True
    return e.__cause__ is not None and out_of_memory(e.__cause__)


@contextmanager
def step_errors(where: object) -> Iterator[None]:
    """Errors of a step, after the text of `where` at that time."""
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
    """Explains what the machine could not provide: memory, or a process that reads samples."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as e:
        if out_of_memory(e):
            parts = recipe.accumulate
            raise RunError(
                f"out of memory with --batch_size {recipe.batch_size}, "
                f"a step in {parts} part{'s' * (parts > 1)}; "
                "start anew with --memory SIZE (such as 4GB), which chooses what is kept and "
                "how large the parts of a step are, "
                f"with --accumulate {2 * parts}, or with a smaller --batch_size"
            ) from e
        if reader_died(e):
            raise reader_ended(recipe.workers) from e
        raise
