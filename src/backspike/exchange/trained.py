"""What is exported: a network, and inputs with which its file is proven."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.batches import Batches
from ..errors import ExchangeError
from ..run import Run
from ..train.network import load
from ..train.setup import load_data

SAMPLES = 16  # of a run's validation or test set


SILENT = "no neuron fired on the sample, so its spikes prove little; give another one"


class Subject(NamedTuple):
    """A network to export, its sample `[T, B, ...]`, and the run it is from, if it is from one."""

    network: nn.Module
    sample: Tensor
    run: Run | None


def find(model_or_run: nn.Module | str | Path, sample: Tensor | None) -> Subject:
    """The network itself, or that of a run as `Run.find` takes it.

    The default sample of a run is the first of its validation or test samples.
    Raises ExchangeError if a model comes without a sample, or a run was trained with a model or
    data of the user's own.
    """
    if isinstance(model_or_run, nn.Module):
        model, run = model_or_run, None
        if sample is None:
            raise ExchangeError("give sample=, inputs [T, B, ...] to prove the file with")
    else:
        run = Run.find(model_or_run)
        if "model" in run.own():
            raise ExchangeError(
                f"{run.path} was trained with a model of your own; in Python, write "
                "bs.load(run, model=...) with sample="
            )
        model = load(run.path)
        sample = _samples(run) if sample is None else sample
    if sample.dim() < 3:
        raise ExchangeError(f"sample must be [T, B, ...], got shape {list(sample.shape)}")
    return Subject(model, sample, run)


def _samples(run: Run) -> Tensor:
    recipe = run.recipe()
    if "data" in run.own():
        raise ExchangeError(f"{run.path} was trained with data of your own; give sample=")
    sets = load_data(recipe)
    split = sets.test if sets.validation is None else sets.validation
    batches = Batches(split, recipe, torch.device("cpu"))
    return batches.take(torch.arange(min(SAMPLES, len(split))))[0]
