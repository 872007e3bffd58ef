"""Runs whose folders are elsewhere: their numbers, from the study.json that their study wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import StudyError
from ..recipes.recipe import Recipe
from ..system.files import read_json, read_regular, to_json
from .results import NUMBERS, is_number
from .spec import Study, accept_option


@dataclass(frozen=True)
class Included:
    """A finished run as study.json describes it. entry: its part of the file."""

    arm: str
    seed: int
    entry: Mapping[str, Any]

    def numbers(self) -> dict[str, float]:
        """The same as `Outcome.numbers`."""
        return {name: self.entry[name] for name in NUMBERS}

    @property
    def machine(self) -> str:
        """Where it was trained; "" if the file does not say."""
        return str(self.entry.get("machine", ""))

    @property
    def data_note(self) -> str:
        """What every result on its data must mention, such as "simulated"."""
        return str(self.entry.get("data_note", ""))


def read(
    file: str | Path, study: Study, accept_change: bool = False
) -> dict[tuple[str, int], Included]:
    """The runs of a study.json that this study would train as well, by arm and seed.

    An arm is the same if its name and all its fields are; the studies may have different names.
    accept_change: the Python file that makes the study may have changed.
    Raises StudyError if the file cannot be read, or has no such run.
    """
    try:
        stored = read_json(read_regular(Path(file)))
        settings, entries = stored["settings"], stored["runs"]
        base, arms = dict(settings["base"]), dict(settings["arms"])
        runs = [Included(str(e["arm"]), int(e["seed"]), dict(e)) for e in entries]
        for run in runs:
            if wrong := [k for k, v in run.numbers().items() if not _is_finite(v)]:
                raise ValueError(f"{wrong[0]} of {run.arm} seed {run.seed} is not a number")
    except OSError as e:
        raise StudyError(f"cannot read {file}: {e.strerror or e}") from e
    except (ValueError, KeyError, TypeError) as e:
        reason = f"{e} is missing" if isinstance(e, KeyError) else e
        raise StudyError(f"{file} is no study.json of a finished study ({reason})") from e
    wanted = read_json(to_json(study.settings()))
    if settings.get("sha256") != wanted.get("sha256") and not accept_change:
        raise StudyError(
            f"{file} is of a study by another version of your Python file; to count its runs all "
            f"the same: {accept_option()}"
        )
    # a field that is younger than the file had its default value
    base = {**{k: v for k, v in _defaults().items() if k in wanted["base"]}, **base}
    for name in {**base, **wanted["base"]}:
        was, now = base.get(name), wanted["base"].get(name)
        if was != now:
            raise StudyError(
                f"{file} is of a study with other settings ({name} was {was!r} and is {now!r})"
            )
    same = {name for name, changes in wanted["arms"].items() if arms.get(name) == changes}
    found = {(run.arm, run.seed): run for run in runs if run.arm in same}
    if not found:
        raise StudyError(f"{file} has no finished run of an arm of {study.name}")
    return found


def _is_finite(value: Any) -> bool:
    return is_number(value) and math.isfinite(value)


def _defaults() -> dict[str, Any]:
    return dict(read_json(to_json(Recipe().to_dict()["fields"])))
