"""Builds a training from its recipe and tries it, before anything is written."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .. import data
from ..data.batches import Batches
from ..data.loader import held_out, take_apart
from ..errors import RecipeError, RunError, option
from ..layers.fast_convolution import set_convolution
from ..layers.norm import sync_batch_norm
from ..methods.weight_mask import mask_weight_gradients
from ..neuron.lif import check_gradients
from ..recipes.recipe import DATA_OPTIONS, Recipe
from ..recipes.source import text
from ..system import distributed
from ..system.distributed import Ranks
from . import learning_rate
from .checkpoint import preserved_rng
from .failures import first_line, logger, out_of_memory
from .gradient import Outputs, backward
from .learning_rate import Formula, OwnScheduler, Scheduled
from .network import Network, to_channels_last
from .precision import choose, gradient_scaler
from .schedule import parameter_groups
from .start_from import freeze, load_weights
from .try_sample import try_sample


@dataclass(frozen=True)
class Setup:
    """Everything a training consists of before its first step."""

    recipe: Recipe  # with precision and memory layout chosen
    reasons: dict[str, str]  # for these choices, by field
    device: torch.device
    ranks: Ranks
    sets: data.Splits | OwnData
    train: Batches
    validation: Batches | None
    test: Batches | None
    network: Network
    averaged: Network | None
    optimizer: torch.optim.Optimizer
    rates: Formula | Scheduled  # of learning
    scaler: torch.amp.GradScaler | None  # of float16
    frozen_norms: list[nn.Module]  # always in evaluation mode
    weights: dict[str, Any] | None  # the event that says which weights came from another run
    potential: Any  # the handle of PDA, or None
    scaling: Any  # the handle of SGS, or None
    record_steps: bool  # as a CUDA graph
    own: list[str]  # what the user passed instead of the recipe's; the keys of `_REPLACED`

    @property
    def evaluated(self) -> Network:
        """The network that is tested and saved."""
        return self.averaged or self.network

    @property
    def own_neurons(self) -> bool:
        """Whether the neurons are made by the user's code, without the fields `neuron.*`."""
        return "model" in self.own or self.recipe.own_neurons

    def describe(self) -> dict[str, Any]:
        """The recipe as in recipe.json, without fields that the user's model or data replace."""
        described = self.recipe.to_dict()
        fields = described["fields"]
        for what in self.own:
            for name in replaced_fields(fields, what):
                del fields[name]
            fields[what] = f"own {what}"
        return described


# fields of a recipe that have no effect with the user's own model or data
_REPLACED = {
    "model": ("model", "neuron", "norm"),
    "data": ("data", *DATA_OPTIONS),
    "scheduler": ("schedule", "warmup_epochs"),
}


def replaced_fields(fields: Iterable[str], what: str) -> list[str]:
    """The names of those fields that have no effect with the user's own "model" or "data"."""
    return [name for name in fields if name.split(".")[0] in _REPLACED[what]]


def with_loader(recipe: Recipe, train: Any) -> Recipe:
    """The recipe with the settings of a DataLoader, if `train` is one. Raises RunError."""
    if not isinstance(train, DataLoader) or not isinstance(recipe, Recipe):
        return recipe
    take_apart(train)  # raises for loaders that cannot be used
    assert train.batch_size is not None
    return replace(recipe, batch_size=train.batch_size, workers=train.num_workers)


def set_up(
    recipe: Recipe,
    model: nn.Module | None = None,
    train: Any = None,
    validation: Any = None,
    test: Any = None,
    device: str | torch.device | None = None,
    *,
    scheduler: OwnScheduler | None = None,
    try_step: bool = False,
    has_checkpoint: bool = False,
) -> Setup:
    """Seeds torch, builds everything and tries one sample. The arguments are those of `fit`.

    try_step: also try a forward and backward pass. It changes no result.
    has_checkpoint: the weights will come from a checkpoint, not from `recipe.start_from`.
    """
    _check_types(recipe, model)
    sets = data_sets(recipe, train, validation, test)
    target, ranks = choose_device(device), distributed.current()
    torch.manual_seed(recipe.seed)
    network = _build_network(recipe, model, target, ranks)
    weights = None
    if recipe.start_from and not has_checkpoint:
        weights = load_weights(network, recipe.start_from)
    frozen_norms = freeze(network.model, recipe.freeze)
    training, *held_out = parts = _batches(recipe, sets, target)
    batches = [b for b in parts if b]
    x, classes = try_sample(network, training, sets.num_classes)
    training.check_augmentation(x)
    for b in batches:
        b.expect_classes(classes)
    recipe = _class_weights(recipe, training, classes)
    chosen = ranks.on_rank0(lambda: choose(recipe, network.model, x))
    recipe = chosen.recipe
    for b in batches:
        b.recipe = recipe
    if recipe.channels_last:
        to_channels_last(network)
    _check_shares(training, recipe, ranks)
    if try_step:
        _try_step(recipe, network, training)
    with _build_errors():
        averaged = copy.deepcopy(network) if recipe.ema else None
        optimizer = recipe.optimizer.build(parameter_groups(network.model, recipe))
        records = _records_steps(recipe, target)
        on_device = target if records or target.type == "cuda" else None
        rates = learning_rate.build(recipe, optimizer, len(training), on_device, scheduler)
        if records and rates.changes_momentum:
            why = "cannot record a scheduler that changes the momentum; set cycle_momentum=False"
            records = _not_recorded(recipe, target, why)
        # these hook into the network, but not into its averaged copy
        potential, scaling = _add_methods(recipe, network.model)
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
        rates=rates,
        scaler=gradient_scaler(recipe, target),
        frozen_norms=frozen_norms,
        weights=weights,
        potential=potential,
        scaling=scaling,
        record_steps=records,
        own=["model"] * (model is not None)
        + ["data"] * (train is not None)
        + ["scheduler"] * (scheduler is not None),
    )


def _batches(
    recipe: Recipe, sets: data.Splits | OwnData, device: torch.device
) -> tuple[Batches, Batches | None, Batches | None]:
    """The batches for training, validation and testing. Raises RunError."""
    if recipe.patience and sets.validation is None:
        raise RunError(
            "patience counts epochs without a better validation accuracy; "
            "give validation=, or set patience=0"
        )
    training = Batches(sets.train, recipe, device)
    if not len(training):
        raise RunError("drop_last leaves no batch of the training data; use a smaller batch_size")
    validation, test = (
        None if d is None else Batches(d, recipe, device) for d in (sets.validation, sets.test)
    )
    return training, validation, test


def _class_weights(recipe: Recipe, train: Batches, classes: int) -> Recipe:
    """The recipe with its class weights as numbers; (K) of them. Raises RunError."""
    weights = recipe.class_weights
    if weights == "balanced":
        counts = torch.bincount(train.labels, minlength=classes).tolist()
        total = sum(counts)
        balanced = tuple(total / (classes * n) if n else 0.0 for n in counts)
        return replace(recipe, class_weights=balanced)
    if weights and len(weights) != classes:
        raise RunError(
            f"class_weights has {len(weights)} weights and the model {classes} outputs; "
            "give one weight for each class"
        )
    return recipe


@contextmanager
def limited_on_gpu(recipe: Recipe, device: str | torch.device | None) -> Iterator[None]:
    """Within it, torch allocates no more on a GPU than the recipe's `memory_limit`."""
    limit = recipe.memory_limit if isinstance(recipe, Recipe) else 0  # set_up refuses others
    target = choose_device(device)
    if not limit or target.type != "cuda":
        yield
        return
    whole = torch.cuda.mem_get_info(target)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), target)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, target)


def _check_types(recipe: Any, model: Any) -> None:
    if not isinstance(recipe, Recipe):
        given = type(recipe).__name__
        raise RecipeError(
            f"recipe must be a bs.Recipe, got {given}; bs.recipes.get(name) gives one"
        )
    if model is not None and not isinstance(model, nn.Module):
        given = (
            "a class; create the model first" if isinstance(model, type) else type(model).__name__
        )
        raise RunError(
            f"model must be a torch.nn.Module, got {given}; "
            "a function that makes one is a field of the recipe: bs.Recipe(model=...)"
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
        set_convolution(network, recipe.convolution)
        if recipe.convolution == "fast" and device.type != "cpu":
            logger.info("convolution fast has no effect on %s, only on a CPU", device.type)
        network = network.to(device)
        ranks.broadcast(network)
    return network


def _add_methods(recipe: Recipe, model: nn.Module) -> tuple[Any, Any]:
    """Hooks PDA, SGS and weight masks into the model; returns the handles of PDA and SGS."""
    potential = recipe.potential.build(model) if recipe.potential else None
    scaling = recipe.scaling.build(model) if recipe.scaling else None
    if recipe.weight_mask:
        mask_weight_gradients(model, recipe.weight_mask)
    return potential, scaling


def _try_step(recipe: Recipe, network: Network, train: Batches) -> None:
    """Tries forward and backward of two samples on a copy; restores all random generators."""
    size = min(2, *train.parts(0))
    with preserved_rng(train.device):
        x, y = train.take(torch.arange(size))
        try:
            trial = copy.deepcopy(network)
        except Exception:  # a user's model that cannot be copied is tried by its first step
            return
        with _build_errors():
            potential, _ = _add_methods(recipe, trial.model)
        try:
            trial.train()

            def loss(o: Tensor) -> Tensor:
                value = recipe.loss_value(o, trial.readout(o), y)
                return value if potential is None else value + potential.loss()

            backward(recipe, Outputs(trial.model, train.autocast), x, loss)
            check_gradients(trial.model)
        except (RuntimeError, ValueError, TypeError) as e:
            if out_of_memory(e) or distributed.is_peer_failure(e):
                raise
            raise RunError(f"the recipe cannot be trained: {first_line(e)}") from e


def _check_shares(train: Batches, recipe: Recipe, ranks: Ranks) -> None:
    """Raises RunError unless every rank gets a sample of every part of a step."""
    for number in {0, len(train) - 1}:
        if (fewest := min(train.parts(number))) < ranks.size:
            raise RunError(
                f"batch {number + 1} of an epoch comes in parts of {fewest} samples, "
                f"too few for {ranks.size} ranks; change "
                f"{option('batch_size')} ({recipe.batch_size}), "
                f"{option('accumulate')} ({recipe.accumulate}) or {option('limit')}"
            )


def seed_rank(recipe: Recipe, ranks: Ranks, step: int) -> None:
    """Gives every rank its own seed, except rank 0, which draws the numbers of a single process."""
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
        why = "cannot record SGS, which reads the autograd graph; leave one of them out"
    elif recipe.potential is not None and recipe.potential.warmup:
        why = "cannot record PDA's warm-up, which counts on the host; set potential's warmup to 0"
    elif recipe.in_chunks:
        why = "cannot record a step that runs in chunks of time; leave it out"
    elif recipe.precision == "float16":
        why = "cannot record float16, whose gradient scaler decides on the host; use bfloat16"
    return why is None or _not_recorded(recipe, device, why)


def _not_recorded(recipe: Recipe, device: torch.device, why: str) -> bool:
    if recipe.cuda_graph:
        raise RunError(f"{option('cuda_graph')} {why}")
    if device.type == "cuda":
        logger.info("steps are not recorded as a CUDA graph: it %s", why)
    return False


def data_sets(recipe: Recipe, train: Any, validation: Any, test: Any) -> data.Splits | OwnData:
    """The user's data sets if there are any, else those of the recipe."""
    if train is None:
        if validation is not None or test is not None:
            raise RunError("validation= and test= need train= as well")
        with distributed.current().rank0_first():
            return load_data(recipe)
    return OwnData(train, held_out(validation), held_out(test))


def load_data(recipe: Recipe) -> data.Splits | OwnData:
    """The data set of a recipe, with its options that are fields of the recipe."""
    if not isinstance(recipe.data, str):
        return _make_data(recipe, recipe.data)
    options = data_options(recipe)
    if "T" not in data.source(recipe.data).options:  # images repeat over the timesteps
        del options["T"]
    return data.load(recipe.data, recipe.root or None, limit=recipe.limit or None, **options)


def data_options(recipe: Recipe) -> dict[str, Any]:
    """The options of data sets that are fields of a recipe."""
    options = {n: getattr(recipe, n) for n in data.option_names() if hasattr(recipe, n)}
    return {**options, "size": recipe.size or None}


def _make_data(recipe: Recipe, function: Callable[..., Any]) -> data.Splits | OwnData:
    """What a function of the user's returns, called with the same random numbers every time.

    So a resumed run, an evaluation and the runs of a study see the same samples.
    """
    with preserved_rng(torch.device("cpu")):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002  (what a user's function may draw from)
        made = recipe.call(function)
    if isinstance(made, data.Splits):
        return made
    parts = list(made) if isinstance(made, tuple | list) else []
    if len(parts) not in (2, 3):
        given = f"{len(parts)} values" if parts else f"a {type(made).__name__}"
        raise RunError(
            f"{text(function)} must return (train, test), (train, validation, test) or "
            f"bs.data.Splits, got {given}"
        )
    return OwnData(parts[0], parts[1] if len(parts) == 3 else None, parts[-1])


@dataclass(frozen=True)
class OwnData:
    """The user's data sets in the form of `bs.data.Splits`."""

    train: Any
    validation: Any
    test: Any
    num_classes: int | None = None
    note: str = "own data"
    credit: str = ""

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, if the training set has them as torchvision's sets do."""
        return tuple(map(str, getattr(self.train, "classes", ())))


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device to train on; None: a GPU if there is one. Raises RunError if it is missing."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as e:
        raise RunError(f"unknown device {device!r}; use cpu, cuda or cuda:1") from e
    if found.type == "cuda" and not torch.cuda.is_available():
        raise RunError(f"no CUDA device is available; use {option('device', 'cpu')}")
    if found.type == "cuda":
        # with its index, as tensors have it; streams and graphs are created on the current device
        number = torch.cuda.current_device() if found.index is None else found.index
        present = torch.cuda.device_count()
        if distributed.current().size > 1:
            number = distributed.local_rank()
        if number >= present:
            raise RunError(
                f"this machine has {present} GPUs; start at most as many ranks "
                f"(--nproc-per-node={present}), or use {option('device', 'cpu')}"
            )
        found = torch.device("cuda", number)
        torch.cuda.set_device(found)
    return found
