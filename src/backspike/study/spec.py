"""What a study is: arms that differ in fields of a recipe, and the jobs they make, one run folder per arm and seed.

Nothing is trained or drawn here; of a run folder, only whether it is finished and holds the recipe of its job.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import StudyError
from ..recipes.recipe import OPEN, Recipe
from ..run import Run
from ..system.files import read_json

FREE = ("checkpoint_seconds", "root")  # fields that change no result


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: the base recipe with `changes`, dotted fields to values or their text.

    against: the arm it is compared with, if not the study's baseline. x, line: its place in a figure of accuracy against x.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    against: str | None = None
    x: float | None = None
    line: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 .,=+_-]*", self.name) or self.name.endswith(
            "."
        ):
            raise StudyError(
                f"an arm is called like a folder, letters, digits and ' .,=+_-'; got {self.name!r}"
            )


@dataclass(frozen=True)
class Study:
    """Arms over a base recipe. figures: any of the names in `FIGURES`; xlabel, log_x: of the figure `sweep`.

    shipped: the base as it comes with backspike; None for a study of one's own.
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
        if len(set(names)) < len(names) or not {
            self.baseline,
            *(a.against for a in self.arms if a.against),
        } <= set(names):
            raise StudyError(
                f"study {self.name}: arms need different names, and what they are compared with must be one of them"
            )

    def replace(self, changes: Mapping[str, Any]) -> Study:
        """The study with fields of its base recipe changed; StudyError for a field that the arms set themselves."""
        for ours in changes:
            for theirs in {key for arm in self.arms for key in arm.changes}:
                if f"{ours}.".startswith(f"{theirs}.") or f"{theirs}.".startswith(f"{ours}."):
                    raise StudyError(
                        f"--{ours} is what the arms of {self.name} differ in ({theirs}); leave it out"
                    )
        return dataclasses.replace(self, base=self.base.replace(dict(changes)))

    def recipe(self, arm: Arm, seed: int = 0) -> Recipe:
        """The recipe of an arm, number `seed` of its seeds."""
        return self.base.replace(
            {**arm.changes, "name": f"{self.name} {arm.name}", "seed": self.base.seed + seed}
        )

    def job(self, arm: Arm, seed: int, out: Path) -> Job:
        """The run of an arm, number `seed` of its seeds, in the study's folder `out`."""
        return Job(
            arm.name,
            seed,
            self.recipe(arm, seed),
            out / "runs" / arm.name / str(self.base.seed + seed),
        )

    def compared(self, arm: Arm) -> str | None:
        """The name of the arm that this one is compared with."""
        other = arm.against or self.baseline
        return None if other == arm.name else other

    def settings(self) -> dict[str, Any]:
        """What makes it this study: the base recipe and what each arm changes. More seeds are the same study."""
        base = self.base.to_dict()["fields"]
        arms = {}
        for arm in self.arms:
            fields = self.recipe(arm).to_dict()["fields"]
            arms[arm.name] = {k: v for k, v in fields.items() if base.get(k, ...) != v}
        return {
            "name": self.name,
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
    """Whether the run is there and complete. StudyError if the folder holds a run of another recipe."""
    if not (job.folder / "recipe.json").is_file():
        return False
    return Run.open(job.folder).done() is not None and same_recipe(job)


def same_recipe(job: Job) -> bool:
    """True; StudyError if the folder holds a run of another recipe."""
    path = job.folder / "recipe.json"
    try:
        stored = dict(read_json(path.read_bytes())["fields"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StudyError(
            f"{path} is damaged ({e}); remove {job.folder} and run the study again"
        ) from e
    wanted = json.loads(json.dumps(job.recipe.to_dict()["fields"]))
    # what the study leaves to the machine stands in the run as it was chosen
    any_value = {*FREE, *(k for k, v in OPEN.items() if wanted[k] == v)}
    if {k: v for k, v in stored.items() if k not in any_value} != {
        k: v for k, v in wanted.items() if k not in any_value
    }:
        raise StudyError(
            f"{job.folder} holds a run of another recipe; remove it, or choose another folder with --out"
        )
    return True
