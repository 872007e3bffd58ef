"""Builds a training from its recipe and tries it on one sample, before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import data
from ..data.batches import Batches
from ..errors import RunError
from ..layers.norm import sync_batch_norm
from ..methods.weight_mask import mask_weight_gradients
from ..recipes.recipe import Recipe
from ..run import Run
from ..system import distributed
from ..system.distributed import Ranks
from .failures import first_line, logger
from .network import Network, to_channels_last
from .precision import choose
from .schedule import parameter_groups


@dataclass(frozen=True)
class Setup:
    """Everything a training consists of before its first step."""

    recipe: Recipe  # with precision and memory layout chosen
    reasons: dict[str, str]  # why they were chosen, by field
    device: torch.device
    ranks: Ranks
    sets: data.Splits | OwnData
    train: Batches
    validation: Batches | None
    test: Batches | None
    network: Network
    averaged: Network | None
    optimizer: torch.optim.Optimizer
    potential: Any  # the handle of PDA, or None
    scaling: Any  # the handle of SGS, or None
    record_steps: bool  # as a CUDA graph
    own: list[str]  # what the user passed in place of the recipe's: "model", "data"

    @property
    def evaluated(self) -> Network:
        """The network that is tested and saved."""
        return self.averaged or self.network


def set_up(
    recipe: Recipe,
    model: nn.Module | None = None,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    device: str | torch.device | None = None,
) -> Setup:
    """Seeds torch, builds everything and tries one sample. The arguments are those of `fit`."""
    sets = data_sets(recipe, train, validation, test)
    target, ranks = choose_device(device), distributed.current()
    torch.manual_seed(recipe.seed)
    network = _build_network(recipe, model, target, ranks)
    training = Batches(sets.train, recipe, target)
    held_out = [
        None if d is None else Batches(d, recipe, target) for d in (sets.validation, sets.test)
    ]
    batches = [training, *(b for b in held_out if b)]
    x, classes = _try_sample(network, training, sets.num_classes)
    for b in batches:
        b.expect_classes(classes)
    chosen = ranks.on_rank0(lambda: choose(recipe, network.model, x))
    recipe = chosen.recipe
    for b in batches:
        b.recipe = recipe
    if recipe.channels_last:
        to_channels_last(network)
    _check_shares(training, recipe, ranks)
    if recipe.patience and sets.validation is None:
        raise RunError(
            "patience counts epochs without a better validation accuracy; "
            "give validation=, or patience=0"
        )
    with _build_errors():
        averaged = copy.deepcopy(network) if recipe.ema else None
        optimizer = recipe.optimizer.build(parameter_groups(network.model, recipe))
        # these hook into the network, but not into its averaged copy
        potential = recipe.potential.build(network.model) if recipe.potential else None
        scaling = recipe.scaling.build(network.model) if recipe.scaling else None
        if recipe.weight_mask:
            mask_weight_gradients(network.model, recipe.weight_mask)
    seed_rank(recipe, ranks, step=0)
    return Setup(
        recipe=recipe,
        reasons=chosen.reasons,
        device=target,
        ranks=ranks,
        sets=sets,
        train=training,
        validation=held_out[0],
        test=held_out[1],
        network=network,
        averaged=averaged,
        optimizer=optimizer,
        potential=potential,
        scaling=scaling,
        record_steps=_records_steps(recipe, target),
        own=["model"] * (model is not None) + ["data"] * isinstance(sets, OwnData),
    )


@contextmanager
def _build_errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as e:
        raise RunError(f"the recipe cannot be built: {first_line(e)}") from e


def _build_network(
    recipe: Recipe, model: nn.Module | None, device: torch.device, ranks: Ranks
) -> Network:
    with _build_errors():
        network = Network(model or recipe.network(), recipe.readout.build(recipe.T))
        if recipe.sync_norm and ranks.size > 1:
            sync_batch_norm(network)
        network = network.to(device)
        ranks.broadcast(network)
    return network


def _try_sample(network: Network, train: Batches, num_classes: int | None) -> tuple[Tensor, int]:
    """One sample `[T, 1, ...]` that the network accepts, and the number of its outputs."""
    try:
        x, y = train.take(torch.zeros(1, dtype=torch.int64))
    except RunError:
        raise
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as e:
        raise RunError(
            f"the first sample of the training data cannot be read: {first_line(e)}"
        ) from e
    network.eval()
    try:
        with torch.no_grad(), train.autocast():
            o = network.model(x)
    except (RuntimeError, ValueError, TypeError) as e:
        raise RunError(
            f"the model does not take this data, a batch of shape {list(x.shape)} [T, B, ...]: "
            f"{first_line(e)}"
        ) from e
    if o.dim() != 3 or o.shape[:2] != x.shape[:2]:
        raise RunError(
            f"the model must give outputs over time [T, B, K]; "
            f"it gave {list(o.shape)} for {list(x.shape)}"
        )
    K = o.shape[2]
    needed = num_classes or int(y.max()) + 1
    if needed > K:
        raise RunError(
            f"the model has {K} outputs and the data {needed} classes; set num_classes={needed}"
        )
    return x, K


def _check_shares(train: Batches, recipe: Recipe, ranks: Ranks) -> None:
    """Every rank needs a sample of every part of a step."""
    for number in {0, len(train) - 1}:
        if (fewest := min(train.parts(number))) < ranks.size:
            raise RunError(
                f"batch {number} of an epoch comes in parts of {fewest} samples, "
                f"too few for {ranks.size} ranks; change --batch_size ({recipe.batch_size}), "
                f"--accumulate ({recipe.accumulate}) or --limit"
            )


def seed_rank(recipe: Recipe, ranks: Ranks, step: int) -> None:
    """Seeds every rank but rank 0 differently; rank 0 draws the numbers of a single process."""
    if not ranks.first:
        entropy = np.random.SeedSequence((recipe.seed, ranks.rank, step))
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


def _records_steps(recipe: Recipe, device: torch.device) -> bool:
    if recipe.cuda_graph is False:
        return False
    why = None
    if device.type != "cuda":
        why = "needs a GPU; leave it out, or run where torch.cuda.is_available()"
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        why = "cannot record a step of several processes; leave it out"
    elif recipe.scaling is not None:
        why = "cannot record SGS, which looks at the graph of autograd; leave one of them out"
    elif recipe.potential is not None and recipe.potential.warmup:
        why = "cannot record PDA's warm-up, a number of the host; set potential's warmup to 0"
    if why and recipe.cuda_graph:
        raise RunError(f"--cuda_graph {why}")
    if why and device.type == "cuda":
        logger.info("steps are not recorded as a CUDA graph: it %s", why)
    return why is None


def check_own(run: Run, **arguments: Any) -> None:
    """Raises if `fit` was called with a model or data of the user's own that is missing now."""
    for what, value in arguments.items():
        if what in run.own() and value is None:
            missing = {"model": "model=", "data": "train= and test="}[what]
            raise RunError(
                f"{run.path} was trained with a {what} of your own; give {missing} again, in Python"
            )


def data_sets(recipe: Recipe, train: Any, validation: Any, test: Any) -> data.Splits | OwnData:
    if train is None:
        if validation is not None or test is not None:
            raise RunError("validation= and test= need train= beside them")
        with distributed.current().rank0_first():
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
        # with its index, as tensors have it; streams and graphs are created on the current device
        number = torch.cuda.current_device() if found.index is None else found.index
        present = torch.cuda.device_count()
        if distributed.current().size > 1:
            number = distributed.local_rank()
        if number >= present:
            raise RunError(
                f"there are {present} GPUs here; start as many ranks, "
                f"--nproc-per-node={present}, or use --device cpu"
            )
        found = torch.device("cuda", number)
        torch.cuda.set_device(found)
    return found
