"""What is exported: a network, and inputs with which its file is proven."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..data.batches import Batches
from ..errors import ExchangeError
from ..run import Run
from ..train.network import load
from ..train.setup import load_data

SAMPLES = 16  # of a run's validation or test set


def network_and_sample(
    model_or_run: nn.Module | str | Path, sample: Tensor | None
) -> tuple[nn.Module, Tensor]:
    """The network, or that of a run's folder, and the sample `[T, B, ...]`.

    Without a sample, those of a run are the first of its validation or test set.
    Raises ExchangeError if a model comes without a sample, or a run was trained with a model or
    data of the user's own.
    """
    if isinstance(model_or_run, nn.Module):
        model = model_or_run
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
    return model, sample


def _samples(run: Run) -> Tensor:
    recipe = run.recipe()
    if "data" in run.own():
        raise ExchangeError(f"{run.path} was trained with data of your own; give sample=")
    sets = load_data(recipe)
    split = sets.test if sets.validation is None else sets.validation
    batches = Batches(split, recipe, torch.device("cpu"))
    return batches.take(torch.arange(min(SAMPLES, len(split))))[0]
