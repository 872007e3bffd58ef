"""The progress bar that verbs show on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """A bar of `rich` with a description, a percentage, a text and the time."""

    def __init__(self, progress: Any, total: float | None) -> None:
        self.progress = progress
        self.task = progress.add_task("", total=total, text="")

    def move(self, **fields: Any) -> None:
        """Changes any of description, completed, advance, total and text."""
        self.progress.update(self.task, **fields)

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        self.progress.console.print(line, highlight=False, markup=False)


@contextmanager
def open_bar(
    total: float | None = None, *, remaining: bool = False, transient: bool = False
) -> Iterator[Bar]:
    """remaining: show the estimated time that is left. transient: the bar vanishes at the end."""
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:3.0f}%  {task.fields[text]}"),
        TimeElapsedColumn(),
    ]
    if remaining:
        columns += [TextColumn("remaining"), TimeRemainingColumn(elapsed_when_finished=False)]
    with Progress(*columns, transient=transient) as progress:
        yield Bar(progress, total)
