"""What a training needs before its first step: the data sets and the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .. import data
from ..errors import RunError
from ..recipes.recipe import Recipe
from ..run import Run
from ..system import distributed


def check_own(run: Run, **given: Any) -> None:
    """What `fit` was given in place of the recipe's has to be given again."""
    for what, value in given.items():
        if what in run.own() and value is None:
            arguments = {"model": "model=", "data": "train= and test="}[what]
            raise RunError(
                f"{run.path} was trained with a {what} of your own; give {arguments} again, in Python"
            )


def data_sets(recipe: Recipe, train: Any, validation: Any, test: Any) -> data.Splits | OwnData:
    if train is None:
        if validation is not None or test is not None:
            raise RunError("validation= and test= need train= beside them")
        with distributed.here().one_first():
            return load_data(recipe)
    return OwnData(train, validation, test)


def load_data(recipe: Recipe) -> data.Splits:
    """The data set that a recipe names, with the options of data sets that are fields of the recipe."""
    options = {
        name: getattr(recipe, name)
        for source in data.catalogue()
        for name in source.options
        if hasattr(recipe, name)
    }
    if "T" not in data.source(recipe.data).options:  # images repeat over the timesteps
        del options["T"]
    options["size"] = recipe.size or None
    return data.load(recipe.data, recipe.root or None, limit=recipe.limit or None, **options)


@dataclass(frozen=True)
class OwnData:
    """The user's data sets in the form of `bs.data.Splits`."""

    train: Any
    validation: Any
    test: Any
    num_classes: int | None = None
    note: str = "data sets of the user's own"
    credit: str = ""


def choose_device(device: str | torch.device | None) -> torch.device:
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as e:
        raise RunError(f"unknown device {device!r}; use cpu, cuda or cuda:1") from e
    if found.type == "cuda" and not torch.cuda.is_available():
        raise RunError("no CUDA device can be used here; use --device cpu")
    if found.type == "cuda":
        # with its number, as tensors name it, and as the one that streams and graphs are made on
        number, there = (
            torch.cuda.current_device() if found.index is None else found.index,
            torch.cuda.device_count(),
        )
        if distributed.here().size > 1:
            number = distributed.local_rank()
        if number >= there:
            raise RunError(
                f"there are {there} GPUs here; start as many ranks, --nproc-per-node={there}, or use --device cpu"
            )
        found = torch.device("cuda", number)
        torch.cuda.set_device(found)
    return found
