"""The files of a study: study.json, table.md, table.tex, figures/ and study.html.

They are made from run folders and included runs: by `write` from the outcomes of arms, by `publish`
from any tables, sentences and pictures.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import StudyError
from ..recipes.fields import to_fields
from ..report.chart import Picture
from ..report.page import Page, Part, Section, code, grid
from ..run import Run
from ..system.files import to_json, write_atomic
from ..system.table import Table, left, right
from ..version import __version__
from .figures import FIGURES, gradient_pictures
from .included import Included
from .results import KINDS, Outcome, gradient_shares, summary
from .spec import Job, Study, finished
from .statistics import (
    DRAWS,
    EXACT_UP_TO,
    Paired,
    difference_cell,
    p_value,
    percent,
    smallest_p,
    verdict,
)


def write(
    study: Study,
    out: Path,
    seeds: int,
    failed: Mapping[Job, str] | None = None,
    include: Mapping[tuple[str, int], Included] | None = None,
    stopped: bool = False,
) -> Path:
    """Writes all files from finished runs and returns the path of the page.

    failed: what went wrong, by job. include: further runs by arm and seed; where there is a folder
    as well, the folder counts. stopped: the user waits, so leave out the slow figure of gradients.
    Raises StudyError if no run has finished or one is damaged.
    """
    outcomes: list[Outcome] = []
    results: list[Outcome | Included] = []
    for arm in study.arms:
        for seed in range(seeds):
            job = study.job(arm, seed, out)
            if finished(job):
                outcomes.append(Outcome.read(job))
                results.append(outcomes[-1])
            elif run := (include or {}).get((arm.name, seed)):
                results.append(run)
    if not results:
        raise StudyError(
            f"no run of {study.name} has finished"
            + (f": {next(iter(failed.values()))}" if failed else "")
        )
    rows = summary(study, results)
    differences = [row["best"].get("difference") for row in rows]
    pairs = max((d["n"] for d in differences if d), default=seeds)
    # without a folder only numbers are known
    drawn = [name for name in study.figures if name in FIGURES and (outcomes or name == "dots")]
    pictures = [p for name in drawn for p in FIGURES[name](study, rows, outcomes)]
    shares = None
    baseline = [o for o in outcomes if o.arm == study.baseline]
    # these need the network and the data, which the caller may have given to `run`
    drawable = "gradients" in study.figures and not stopped
    if drawable and baseline and not Run.open(baseline[0].folder).own():
        shares = gradient_shares(study, baseline[0])
        pictures = gradient_pictures(study, shares) + pictures
    settings = study.settings()
    complete = {
        "settings": settings,
        "version": __version__,
        "seeds": seeds,
        "smallest_p": smallest_p(pairs),
        "runs": [result.entry for result in results],
        "arms": rows,
        "gradient_shares": shares,
        "failed": list((failed or {}).values()),
    }
    conclusions = sentences(rows, pairs)
    wanted = len(study.arms) * seeds
    if (left := wanted - len(results) - len(failed or ())) > 0:
        conclusions.insert(0, f"{left} of {wanted} runs have not finished and are missing.")
    if failed:
        missing = f"{len(failed)} runs failed and are missing: {'; '.join(failed.values())}."
        conclusions.insert(0, missing)
    data_note = next((result.data_note for result in results if result.data_note), "")
    machines = dict.fromkeys(result.machine or "an unknown machine" for result in results)
    notes = [
        "Mean ± standard deviation over seeds; difference from the compared arm, paired by seed, "
        "in percentage points, with its 95 % confidence interval (t); p of the two-sided sign-flip "
        "test over all sign patterns.",
        f"Test set of {to_fields(study.base)['data']}"
        + (f" ({data_note})" if data_note else "")
        + f", {study.base.epochs} epochs; {'; '.join(machines)}.",
        f"Command: {command(study, seeds)}",
    ]
    if others := len(results) - len(outcomes):
        notes.append(
            f"{others} of {len(results)} runs are included from a study.json; figures over epochs "
            "and layers show only the others."
        )
    arms = [(name, changes(fields)) for name, fields in settings["arms"].items()]
    title = f"{study.name} on {to_fields(study.base)['data']}"
    return publish(
        out, title, study.about, table(rows, notes), conclusions, pictures, arms, complete
    )


def command(study: Study, seeds: int) -> str:
    """The command that reproduces a shipped study."""
    if study.shipped is None:
        made_by = f", of {study.base.source}" if study.base.source else ""
        return f"your own study, `backspike.study.runner.run`{made_by}"
    data = str(study.base.source or study.base.data)
    words = ["backspike", "study", study.name, "--data", data, "--seeds", str(seeds)]
    before = study.shipped.to_dict()["fields"]
    for name, value in study.base.to_dict()["fields"].items():
        if value != before.get(name, ...):
            words += [f"--{name}", str(value)]
    return shlex.join(words)


# ---- tables and sentences --------------------------------------------------------------------


HEAD = (
    *("arm", "runs", "last epoch, %", "difference [95 % CI]", "p"),
    *("best by validation, %", "difference [95 % CI]", "p"),
    *("firing, %", "spikes per image", "s per epoch"),
)


def table(rows: list[dict[str, Any]], notes: Sequence[str]) -> Table:
    """Accuracies as mean ± standard deviation, differences in percentage points."""
    lines = []
    for row in rows:
        cells = [row["arm"], str(row["n"])]
        for kind in KINDS:
            d, sd = row[kind].get("difference"), row[kind]["sd"]
            cells += [percent(row[kind]["mean"]) + (f" ± {percent(sd)}" if sd is not None else "")]
            cells += [difference_cell(d), "–" if d is None else p_value(d["p"])]
        spikes, seconds = row["spikes_per_image"], row["seconds_per_epoch"]
        cells += [percent(row["firing_rate"], 1), "–" if spikes is None else f"{spikes:.0f}"]
        lines.append([*cells, "–" if seconds is None else f"{seconds:.2f}"])
    return results_table(HEAD, lines, notes)


def results_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]
) -> Table:
    """A table whose first note says what the numbers mean, and the others where they come from."""
    first, *others = heads
    columns = [*left(first), *right(*others)]
    return Table(columns, rows, "Results", notes, style="numbers compare")


def sentences(rows: list[dict[str, Any]], seeds: int) -> list[str]:
    """What the comparison supports for each arm, by the accuracy at the best validation epoch."""
    if seeds == 1:
        return [
            "Only one seed can be compared: the differences prove nothing. p cannot fall below "
            "0.05 with fewer than 6 seeds."
        ]
    lines = []
    for row in rows:
        d = row["best"].get("difference")
        if d is not None:
            lines.append(f"{row['arm']} against {row['against']}: {verdict(Paired(**d))}")
    compared, smallest = len(lines), smallest_p(seeds)
    last = f"With {seeds} seeds the smallest p that the test can give is {smallest:.2g}"
    last += (
        ", so p cannot fall below 0.05; that takes at least 6 seeds." if smallest >= 0.05 else "."
    )
    if compared > 1:
        last += f" p is not corrected for the {compared} comparisons."
    lines.append(last)
    if seeds > EXACT_UP_TO:
        lines.append(
            f"p is from {DRAWS:,} random sign patterns with a fixed seed, because 2^{seeds} are "
            "too many to list."
        )
    return lines


# ---- files -----------------------------------------------------------------------------------


def changes(fields: Mapping[str, Any]) -> str:
    """Recipe fields in one line of text."""
    return ", ".join(f"{key} {value}" for key, value in fields.items() if key != "name") or "–"


def publish(
    out: Path,
    title: str,
    about: str,
    table: Table,
    conclusions: Sequence[str],
    pictures: Sequence[Picture],
    settings: Sequence[tuple[str, str]],
    complete: dict[str, Any],
) -> Path:
    """Writes tables, figures, page and finally study.json; returns the path of the page.

    The first note of `table` says how to read it.
    """
    listed = replace(table, notes=[*conclusions, *table.notes])
    write_atomic(out / "table.md", listed.to_markdown().encode())
    write_atomic(out / "table.tex", table.to_latex().encode())
    (out / "figures").mkdir(exist_ok=True)
    for picture in pictures:
        write_atomic(out / "figures" / f"{picture.name}.svg", picture.file())
    path = out / "study.html"
    write_atomic(path, _page(title, about, table, conclusions, pictures, settings).html())
    write_atomic(out / "study.json", to_json({**complete, "conclusions": list(conclusions)}))
    return path


def _page(
    title: str,
    about: str,
    table: Table,
    conclusions: Sequence[str],
    pictures: Sequence[Picture],
    settings: Sequence[tuple[str, str]],
) -> Page:
    meaning, *notes = table.notes
    arms = Table(left("arm", "changes"), [(arm, code(c)) for arm, c in settings], "Settings")
    noise = "Within the noise: the 95 % interval of a difference includes zero."
    source = "What each arm changes, and where the numbers come from."
    drawn = grid(*(picture.figure() for picture in pictures))
    sections = [
        Section("results", "Results", meaning, [table]),
        Section("verdict", "What it supports", noise, [Part("bullets", conclusions)]),
        Section("figures", "Figures", "Also as files in figures/.", drawn),
        Section("settings", "Settings", source, [arms, *(Part("paragraph", n) for n in notes)]),
    ]
    return Page("study", f"{title} · backspike study", title, sections, about)
