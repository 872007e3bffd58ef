"""Defines a study: arms that differ in recipe fields, and jobs, one run folder per arm and seed.

Nothing is trained or drawn here. Run folders are only checked: whether a run is finished and has
the recipe of its job.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import StudyError, on_command_line, option
from ..recipes.recipe import OPEN, Recipe
from ..run import Run
from ..system.files import read_json, read_regular

# fields that do not affect results
FREE = ("checkpoint_seconds", "root", "memory_limit")


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: the base recipe with changed fields.

    changes: dotted field names to values or their text. against: the arm to compare with, by
    default the study's baseline. x, line: its position in a figure of accuracy against x.
    Raises StudyError if the name is no valid folder name.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = None
    x: float | None = None
    line: str = ""

    def __post_init__(self) -> None:
        valid = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .,=+_-]*", self.name)
        if not valid or self.name.endswith("."):
            raise StudyError(
                "the name of an arm is a folder name of letters, digits and ' .,=+_-'; "
                f"got {self.name!r}"
            )


@dataclass(frozen=True)
class Study:
    """Arms over a base recipe.

    figures: names in `FIGURES`. xlabel, log_x: x axis of the figure `sweep`. shipped: the base
    recipe as shipped with backspike; None for your own study. Raises StudyError unless arms have
    different names and are compared with one of them.
    """

    name: str
    about: str
    base: Recipe
    arms: tuple[Arm, ...]
    baseline: str
    figures: tuple[str, ...] = ("dots", "curves")
    seeds: int = 5
    xlabel: str = ""
    log_x: bool = False
    shipped: Recipe | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        compared = {self.baseline, *(a.against for a in self.arms if a.against)}
        if len(set(names)) < len(names) or not compared <= set(names):
            raise StudyError(
                f"study {self.name}: arms need different names, and must be compared with one of "
                "them"
            )

    def replace(self, changes: Mapping[str, Any]) -> Study:
        """The study with changed fields of its base recipe.

        Raises StudyError for a field that the arms set.
        """
        for changed in changes:
            for own in {key for arm in self.arms for key in arm.changes}:
                if f"{changed}.".startswith(f"{own}.") or f"{own}.".startswith(f"{changed}."):
                    raise StudyError(
                        f"the arms of {self.name} differ in {own}; leave {option(changed)} out"
                    )
        return dataclasses.replace(self, base=self.base.replace(dict(changes)))

    def recipe(self, arm: Arm, seed: int = 0) -> Recipe:
        """The recipe of an arm with its seed number `seed`."""
        return self.base.replace(
            {**arm.changes, "name": f"{self.name} {arm.name}", "seed": self.base.seed + seed}
        )

    def job(self, arm: Arm, seed: int, out: Path) -> Job:
        """The run of an arm with its seed number `seed`, in the study's folder `out`."""
        return Job(
            arm.name,
            seed,
            self.recipe(arm, seed),
            out / "runs" / arm.name / str(self.base.seed + seed),
        )

    def compared(self, arm: Arm) -> str | None:
        """The name of the arm to compare with; None for the baseline."""
        other = arm.against or self.baseline
        return None if other == arm.name else other

    def settings(self) -> dict[str, Any]:
        """What identifies the study: the base recipe and the arms' changes, not the seeds."""
        base = self.base.to_dict()["fields"]
        arms = {}
        for arm in self.arms:
            fields = self.recipe(arm).to_dict()["fields"]
            arms[arm.name] = {k: v for k, v in fields.items() if base.get(k, ...) != v}
        source = self.base.source
        return {
            "name": self.name,
            **({"sha256": source.sha256} if source else {}),
            "base": {k: v for k, v in base.items() if k not in FREE},
            "arms": arms,
        }


class Job(NamedTuple):
    """One run of a study."""

    arm: str
    seed: int
    recipe: Recipe
    folder: Path


def finished(job: Job) -> bool:
    """Whether the run exists and is complete. Raises StudyError if it has another recipe."""
    if not (job.folder / "recipe.json").is_file():
        return False
    return Run.open(job.folder).done() is not None and same_recipe(job)


def accept_option() -> str:
    """How to set `accept_change` here."""
    return option("accept_change", True).replace("_", "-" if on_command_line() else "_")


def same_recipe(job: Job) -> bool:
    """Returns True. Raises StudyError if the folder holds a run of another recipe."""
    path = job.folder / "recipe.json"
    try:
        written = read_json(read_regular(path))
        stored, source = dict(written["fields"]), written.get("source")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StudyError(
            f"{path} is damaged ({e}); remove {job.folder} and run the study again"
        ) from e
    wanted = json.loads(json.dumps(job.recipe.to_dict()["fields"]))
    made_by = job.recipe.source
    if made_by and not (isinstance(source, dict) and source.get("sha256") == made_by.sha256):
        raise StudyError(
            f"{made_by.file} has changed since {job.folder} was trained; restore it, remove the "
            f"folder, or choose another one ({option('out')})"
        )
    # a run stores what was chosen for fields that the study leaves to the machine
    any_value = {*FREE, *(k for k, v in OPEN.items() if wanted[k] == v)}
    if {k: v for k, v in stored.items() if k not in any_value} != {
        k: v for k, v in wanted.items() if k not in any_value
    }:
        raise StudyError(
            f"{job.folder} holds a run of another recipe; remove it, "
            f"or choose another folder ({option('out')})"
        )
    return True
