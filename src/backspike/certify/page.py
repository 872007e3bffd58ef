"""Shows a certificate: a table on a terminal, a Markdown page with JSON, and a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..system.bar import open_bar
from ..system.events import Listener
from ..system.files import plain, to_json, write_atomic
from ..system.table import Table, left, right
from .axes import AXES, TOLERANCE
from .check import Certificate, Finding, Row
from .networks import NETWORKS, QUIET, QUIET_COLUMN

if TYPE_CHECKING:
    from rich.table import Table as RichTable

LIMITS = {str(dtype).removeprefix("torch."): limit for dtype, limit in TOLERANCE.items()}
LIMITS[QUIET_COLUMN] = QUIET
TITLE = (
    "Largest relative error of a gradient, compared with the definition in float64; spikes and "
    "membranes are bit-identical"
)
# largest number of failures shown on a terminal
SHOWN = 10


def write(certificate: Certificate, file: Path, command: str) -> None:
    """Writes the page `file` and the same content as JSON to a file with the suffix .json."""
    write_atomic(file, markdown(certificate, command).encode())
    write_atomic(file.with_suffix(".json"), to_json(complete(certificate, command)))


def complete(certificate: Certificate, command: str) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "command": command,
        "passed": certificate.passed,
        "machine": certificate.machine,
        "options": {axis: list(values) for axis, values in AXES.items()},
        "networks": list(NETWORKS),
        "limits": LIMITS,
        "backends": {name: asdict(row) for name, row in certificate.rows.items()},
        "failed": [failure(finding) for finding in certificate.failed],
    }


def failure(finding: Finding) -> dict[str, Any]:
    """A failed case as plain values."""
    return {
        **finding.case,
        "errors": finding.errors,
        "failed": finding.reason,
        "command": finding.command(),
    }


def summary(certificate: Certificate) -> str:
    """How many cases there were, and how many failed."""
    n = len(certificate.failed)
    return f"{certificate.cases:,} cases, {'all passed' if not n else f'{n:,} failed'}"


def table(certificate: Certificate) -> Table:
    """The limits, and a row per backend."""
    columns = [*left("backend"), *right("cases", "failed", "mask bits", *LIMITS)]
    limits = ["limit", "", "", "", *(f"{limit:.0e}" for limit in LIMITS.values())]
    rows = [_cells(name, row) for name, row in certificate.rows.items()]
    return Table(columns, [limits, *rows], TITLE)


def _cells(name: str, row: Row) -> list[str]:
    errors = [f"{row.errors[column]:.1e}" if column in row.errors else "–" for column in LIMITS]
    return [name, f"{row.cases:,}", f"{row.failed:,}", f"{row.masks:,}", *errors]


def about(certificate: Certificate) -> str:
    """The machine in one line."""
    m = certificate.machine
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['capability']}; "
        f"{m['system']}; Python {m['python']}, torch {m['torch']}"
    )


def terminal(certificate: Certificate) -> RichTable:
    """The table for a terminal."""
    return replace(table(certificate), notes=[about(certificate)]).to_rich()


def failures(certificate: Certificate) -> Iterator[str]:
    """The first failures, each with the command that runs only this case."""
    for finding in certificate.failed[:SHOWN]:
        yield f"failed: {finding.reason}\n    {finding.command()}"
    if (more := len(certificate.failed) - SHOWN) > 0:
        yield f"and {more:,} more; write all of them with --out FILE.md"


def markdown(certificate: Certificate, command: str) -> str:
    """The page."""
    source = f"{summary(certificate)}. Made by `{command}`; run it to check another machine."
    lines = ["# Certificate", "", source, "", f"{about(certificate)}.", ""]
    heading = f"{TITLE}. Mask bits: the number of cases in which they were compared."
    lines += [heading, "", table(certificate).to_markdown()]
    lines += [
        "Options; each backend was checked with every pair of values that it supports (with "
        "`--all`: every combination):",
        "",
    ]
    lines += [f"- `{axis}`: {', '.join(values)}" for axis, values in AXES.items()]
    lines += ["", f"Networks, in every backend: {', '.join(NETWORKS)}."]
    refused = dict.fromkeys(reason for row in certificate.rows.values() for reason in row.refused)
    lines += [
        "",
        "Not checked, because the neuron does not exist or the backend does not support it:",
        "",
        *(f"- {r}" for r in refused),
    ]
    if certificate.failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {f.reason}: `{f.command()}`" for f in certificate.failed]
    return "\n".join([*lines, ""])


@contextmanager
def listener(as_json: bool) -> Iterator[Listener]:
    """Shows events on standard output: as JSON, as a bar on a terminal, or not at all."""
    if as_json:
        yield lambda event: print(json.dumps(plain(event)), flush=True)
    elif sys.stdout.isatty():
        with _bar() as listen:
            yield listen
    else:
        yield lambda event: None


@contextmanager
def _bar() -> Iterator[Listener]:
    with open_bar(transient=True) as bar:
        cases = failed = 0

        def listen(event: dict[str, Any]) -> None:
            nonlocal cases, failed
            if event["event"] == "start":
                bar.move(total=event["cases"], description="certify")
                return
            cases, failed = cases + 1, failed + bool(event["failed"])
            done = f"{cases:,} cases" + (f", {failed:,} failed" if failed else "")
            bar.move(advance=1, description=event["backend"], text=done)

        yield listen
