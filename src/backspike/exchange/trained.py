"""What is exported: a network, and inputs with which its file is proven."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.batches import Batches
from ..errors import ExchangeError
from ..recipes.recipe import Recipe
from ..run import Run
from ..train.network import trained
from ..train.setup import load_data

SAMPLES = 16  # of a run's validation or test set


SILENT = "no neuron fired on the sample, so its spikes prove little; give another one"


class Subject(NamedTuple):
    """A network to export, its sample `[T, B, ...]`, and its run and recipe, if it has them."""

    network: nn.Module
    sample: Tensor
    run: Run | None
    recipe: Recipe | None


def find(
    model_or_run: nn.Module | str | Path,
    sample: Tensor | None,
    recipe: Recipe | str | None = None,
) -> Subject:
    """The network itself, or that of a run as `Run.find` takes it.

    recipe: as for `load`. The default sample of a run is the first of its validation or test
    samples.
    Raises ExchangeError if a model comes without a sample, or a run was trained with a model or
    data of the user's own.
    """
    if isinstance(model_or_run, nn.Module):
        model, run, made_by = model_or_run, None, None
        if sample is None:
            raise ExchangeError("give sample=, inputs [T, B, ...] to prove the file with")
    else:
        run = Run.find(model_or_run)
        if "model" in run.own():
            raise ExchangeError(
                f"{run.path} was trained with a model of your own; in Python, write "
                "bs.load(run, model=...) with sample="
            )
        _, made_by, model = trained(run, recipe=recipe)
        sample = _samples(run, made_by) if sample is None else sample
    if sample.dim() < 3:
        raise ExchangeError(f"sample must be [T, B, ...], got shape {list(sample.shape)}")
    return Subject(model, sample, run, made_by)


def _samples(run: Run, recipe: Recipe) -> Tensor:
    if "data" in run.own():
        raise ExchangeError(f"{run.path} was trained with data of your own; give sample=")
    sets = load_data(recipe)
    split = sets.test if sets.validation is None else sets.validation
    batches = Batches(split, recipe, torch.device("cpu"))
    return batches.take(torch.arange(min(SAMPLES, len(split))))[0]
