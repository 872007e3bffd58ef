"""What a study leaves behind: study.json, table.md, table.tex, figures/ and study.html, written from its run folders alone.

`write` makes them from the outcomes of arms; `publish` takes any tables, sentences and pictures.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import StudyError
from ..report.chart import Picture
from ..report.page import Page, Part, Section, code, grid
from ..run import Run
from ..system.files import to_json, write_atomic
from ..system.table import Table, left, right
from ..version import __version__
from .figures import FIGURES, gradient_pictures
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


def write(study: Study, out: Path, seeds: int, failed: Mapping[Job, str] | None = None) -> Path:
    """Writes study.json, table.md, table.tex, figures/ and study.html from the finished run folders; returns the page."""
    outcomes = []
    for arm in study.arms:
        for seed in range(seeds):
            job = study.job(arm, seed, out)
            if finished(job):
                outcomes.append(Outcome.read(job))
    if not outcomes:
        raise StudyError(
            f"no run of {study.name} has finished"
            + (f": {next(iter(failed.values()))}" if failed else "")
        )
    rows = summary(study, outcomes)
    pictures = [
        p for name in study.figures if name in FIGURES for p in FIGURES[name](study, rows, outcomes)
    ]
    shares = None
    if "gradients" in study.figures and (of := [o for o in outcomes if o.arm == study.baseline]):
        shares = gradient_shares(study, of[0])
        pictures = gradient_pictures(study, shares) + pictures
    settings = study.settings()
    complete = {
        "settings": settings,
        "version": __version__,
        "seeds": seeds,
        "smallest_p": smallest_p(seeds),
        "runs": [{"arm": o.arm, "seed": o.seed, **o.numbers(), **o.done} for o in outcomes],
        "arms": rows,
        "gradient_shares": shares,
        "failed": list((failed or {}).values()),
    }
    said = sentences(rows, seeds)
    if failed:
        said.insert(0, f"{len(failed)} runs failed and are missing: {'; '.join(failed.values())}.")
    env = Run(outcomes[0].folder).read_json("env.json")
    notes = [
        "Mean ± standard deviation over seeds; difference to the arm compared with, paired by seed, in percentage points, with "
        "its 95 % confidence interval (t); p of the two-sided sign-flip test over all sign patterns.",
        f"Test set of {study.base.data}"
        + (f" ({env['data_note']})" if env.get("data_note") else "")
        + f", {study.base.epochs} "
        f"epochs; {env.get('device')}, {env.get('cpu')}, {env.get('threads')} threads a run, torch {env.get('torch')}.",
        f"Command: {command(study, seeds)}",
    ]
    arms = [(name, changes(fields)) for name, fields in settings["arms"].items()]
    title = f"{study.name} on {study.base.data}"
    return publish(out, title, study.about, table(rows, notes), said, pictures, arms, complete)


def command(study: Study, seeds: int) -> str:
    """The command that repeats a shipped study."""
    if study.shipped is None:
        return "a study of one's own, `backspike.study.run`"
    words = ["backspike", "study", study.name, "--data", study.base.data, "--seeds", str(seeds)]
    before = study.shipped.to_dict()["fields"]
    for name, value in study.base.to_dict()["fields"].items():
        if value != before[name]:
            words += [f"--{name}", str(value)]
    return shlex.join(words)


# ---- tables and sentences ------------------------------------------------------------------------------------------------


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
    """The first note says what the numbers mean, the others where they come from."""
    first, *others = heads
    columns = [*left(first), *right(*others)]
    return Table(columns, rows, "Results", notes, style="numbers compare")


def sentences(rows: list[dict[str, Any]], seeds: int) -> list[str]:
    """What the comparison supports, arm by arm, on the accuracy of the epoch that validation chose."""
    if seeds == 1:
        return [
            "Only one seed was run: the differences prove nothing. 6 seeds are the fewest with which p can fall below 0.05."
        ]
    said = []
    for row in rows:
        d = row["best"].get("difference")
        if d is not None:
            said.append(f"{row['arm']} against {row['against']}: {verdict(Paired(**d))}")
    compared = len(said)
    said.append(
        f"With {seeds} seeds the smallest p that the test can give is {smallest_p(seeds):.2g}"
        + (
            ", so no difference can reach 0.05 here; 6 seeds are the fewest that can."
            if smallest_p(seeds) >= 0.05
            else "."
        )
        + (
            f" {compared} comparisons were made and p is corrected for none."
            if compared > 1
            else ""
        )
    )
    if seeds > EXACT_UP_TO:
        said.append(
            f"p is from {DRAWS:,} random sign patterns with a fixed seed, as 2^{seeds} are too many to go through."
        )
    return said


# ---- files ---------------------------------------------------------------------------------------------------------------


def changes(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in fields.items() if key != "name") or "–"


def publish(
    out: Path,
    title: str,
    about: str,
    table: Table,
    said: Sequence[str],
    pictures: Sequence[Picture],
    settings: Sequence[tuple[str, str]],
    complete: dict[str, Any],
) -> Path:
    """The files of a study: tables, figures, page, and last of all study.json. The notes of `table` say how to read it."""
    listed = replace(table, notes=[*said, *table.notes])
    write_atomic(out / "table.md", listed.to_markdown().encode())
    write_atomic(out / "table.tex", table.to_latex().encode())
    (out / "figures").mkdir(exist_ok=True)
    for picture in pictures:
        write_atomic(out / "figures" / f"{picture.name}.svg", picture.file())
    path = out / "study.html"
    write_atomic(path, _page(title, about, table, said, pictures, settings).html())
    write_atomic(out / "study.json", to_json({**complete, "conclusions": list(said)}))
    return path


def _page(
    title: str,
    about: str,
    table: Table,
    said: Sequence[str],
    pictures: Sequence[Picture],
    settings: Sequence[tuple[str, str]],
) -> Page:
    meaning, *notes = table.notes
    arms = Table(left("arm", "changes"), [(arm, code(c)) for arm, c in settings], "Settings")
    noise = "Inside the noise: the 95 % interval of a difference includes zero."
    made = "What each arm changes, and where the numbers come from."
    drawn = grid(*(picture.figure() for picture in pictures))
    sections = [
        Section("results", "Results", meaning, [table]),
        Section("verdict", "What it supports", noise, [Part("bullets", said)]),
        Section("figures", "Figures", "Also as files in figures/.", drawn),
        Section("settings", "Settings", made, [arms, *(Part("paragraph", n) for n in notes)]),
    ]
    return Page("study", f"{title} · backspike study", title, sections, about)
