"""`evaluate`: measures the trained network of a run on the test set."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..analysis import activity, op_count
from ..analysis import early_exit as early
from ..data.batches import Batches
from ..data.loader import held_out
from ..errors import RunError
from ..recipes.recipe import Recipe
from ..run import Borrowed, Run
from ..system import distributed
from .failures import first_line, logger
from .network import Network, check_own, to_channels_last, trained
from .setup import OwnData, choose_device, load_data


def evaluate(
    run: str | Path,
    model: nn.Module | None = None,
    test: Any = None,
    *,
    validation: Any = None,
    anytime: bool = False,
    device: str | torch.device | None = None,
    recipe: Recipe | str | None = None,
    values: tuple[Any, ...] = (),
) -> dict[str, Any]:
    """Runs the test set through the trained network of a run and writes `evaluation.npz`.

    A run on the hub or of the package is not written to.

    Returns accuracy, loss, number of samples and the accuracy after each timestep. The arguments
    are those of `load` and `fit`. anytime: also measure early exit, with a threshold chosen on the
    validation split, and write `anytime.json`. Raises RunError or DataError.
    """
    found = Run.find(run)
    folder = found if isinstance(found, Borrowed) else _WritableOrNot(found.path)
    check_own(folder, model=model, data=test)
    _, recipe, network = trained(folder, model, recipe=recipe, values=values)
    network = network.to(choose_device(device))
    if recipe.channels_last:
        to_channels_last(network)
    sets = (
        load_data(recipe) if test is None else OwnData(None, held_out(validation), held_out(test))
    )
    if anytime and sets.validation is None:
        raise RunError(
            "early exit chooses its threshold on a validation split; give validation=, as for fit"
        )
    batches = Batches(sets.test, recipe, choose_device(device))
    try:
        accuracy, loss = accuracy_and_loss(network, batches, recipe)
        over_time = measure_test(folder, network, batches)
    except (RuntimeError, ValueError, TypeError, IndexError) as e:
        if isinstance(e, RunError):
            raise
        raise RunError(
            f"the network of {folder.path} does not accept this test data: {first_line(e)}"
        ) from e
    n = len(batches.data)
    result = {
        "run": str(run),
        "test_accuracy": accuracy,
        "test_loss": loss,
        "n": n,
        "accuracy_over_time": over_time,
    }
    if anytime:
        chosen_on = Batches(sets.validation, recipe, choose_device(device))
        result["anytime"] = early.measured(
            early.split(network, chosen_on), early.split(network, batches)
        )
        folder.write_json("anytime.json", result["anytime"])
    return result


class _WritableOrNot(Run):
    """A run folder where a result that cannot be stored is a warning, not an error."""

    def write(self, name: str, data: bytes) -> None:
        try:
            super().write(name, data)
        except RunError as e:
            logger.warning("backspike: the result was not stored: %s", e)


def measure_test(run: Run, network: Network, batches: Batches) -> list[float]:
    """Writes evaluation.npz; returns the accuracy after each timestep."""
    arrays = activity.collect(network, batches) | op_count.count(network, batches)
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    run.write("evaluation.npz", packed.getvalue())
    return arrays["accuracy_over_time"].tolist()


@torch.no_grad()
def accuracy_and_loss(network: Network, batches: Batches, recipe: Recipe) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean loss over a data set; each rank computes its share."""
    network.eval()
    ranks = distributed.current()
    sums, n = torch.zeros(2, dtype=torch.float64, device=batches.device), 0
    for x, y in batches.in_order(ranks=ranks):
        with batches.autocast():
            o = network.model(x).float()
        logits = network.readout(o)
        sums[0] += (logits.argmax(-1) == y).sum()
        sums[1] += recipe.loss_value(o, logits, y).double() * len(y)
        n += len(y)
    correct, loss, n = ranks.all_reduce(*sums.tolist(), n)
    return correct / n, loss / n
