"""A model with its readout, and `load`, which builds the trained one from a run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from ..errors import RunError
from ..layers.fast_convolution import set_convolution
from ..recipes.recipe import Recipe
from ..run import Run
from ..system import distributed
from .failures import first_line


class Network(nn.Module):
    """A model and its readout: `[T, B, ...]` to logits `[B, K]`.

    `network.model(x)` returns the outputs over time, `[T, B, K]`.
    """

    def __init__(self, model: nn.Module, readout: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.readout = readout

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.model(x))


def load(
    run: str | Path,
    model: nn.Module | None = None,
    *,
    recipe: Recipe | str | None = None,
    values: tuple[Any, ...] = (),
) -> Network:
    """The trained network of a run, in evaluation mode, on the CPU.

    run: a run folder; or `hf://user/name[@revision]`, downloaded from the Hugging Face hub (only
    the recipe and the weights; nothing is executed); or the name of a network of the package, which
    `bs.models.pretrained()` lists. A folder goes before a network with the same name.
    model: your own module, if `fit` was called with one. recipe: the run's recipe, if your own code
    makes it: a `bs.Recipe`, or "mine.py:recipe", which imports that file. values: instead of
    it, your own classes and functions that the recipe names.
    Raises RunError if the weights are missing, damaged or belong to another network, if the recipe
    is your own code and was not given, or if its file has changed.
    """
    return trained(Run.find(run), model, recipe=recipe, values=values).network


class Trained(NamedTuple):
    """The trained network of a run, in evaluation mode on the CPU, and the run's recipe.

    The recipe says how samples become batches: `Batches(samples, recipe, device)`.
    """

    run: Run
    recipe: Recipe
    network: Network


def trained(
    folder: Run,
    model: nn.Module | None = None,
    *,
    recipe: Recipe | str | None = None,
    values: tuple[Any, ...] = (),
) -> Trained:
    """The network and the recipe of a run; the arguments are those of `load`. Raises RunError."""
    check_own(folder, model=model)
    recipe = folder.recipe(values, recipe)
    if not folder.has("model.safetensors"):
        raise RunError(
            f"{folder.path} has no model.safetensors; "
            f"finish it with: {distributed.command(*folder.command('resume'))}"
        )
    try:
        packed = folder.read("model.safetensors")
        weights = load_safetensors(packed)
        _check_names(packed)
        if model is None:
            check_size(recipe, folder.path / "model.safetensors")
        network = Network(model or recipe.network(), recipe.readout.build(recipe.T))
        if difference := mismatch(network, weights):
            raise ValueError(difference)
        network.load_state_dict(weights)
        set_convolution(network, recipe.convolution)
    except RunError:
        raise
    except Exception as e:  # a damaged file can raise almost anything
        path = folder.path / "model.safetensors"
        problem = f"{path} is damaged or belongs to another network: {first_line(e)}"
        if model is not None:
            problem = f"the model= given does not fit {path}, give the one that was trained"
            problem += f": {first_line(e)}"
        raise RunError(problem) from e
    return Trained(folder, recipe, network.eval())


def check_own(run: Run, **arguments: Any) -> None:
    """Raises RunError if `fit` got a model, data or scheduler of the user's own, missing now."""
    for what, value in arguments.items():
        if what in run.own() and value is None:
            whose, missing = {
                "model": ("a model of your own", "model="),
                "data": ("data of your own", "train= and test="),
                "scheduler": ("a learning-rate scheduler of your own", "scheduler="),
            }[what]
            raise RunError(f"{run.path} was trained with {whose}; give {missing} again, in Python")


def mismatch(network: Network, weights: dict[str, Tensor]) -> str | None:
    """The first difference in names, shapes or types between a network and stored weights."""
    wanted = network.state_dict()
    for name in [*wanted, *weights]:
        if name not in weights:
            return f"it lacks {name}"
        if name not in wanted:
            return f"the network has no {name}"
        stored, own = weights[name], wanted[name]
        if stored.shape != own.shape:
            return f"{name} has shape {list(stored.shape)}, in the network {list(own.shape)}"
        if stored.dtype != own.dtype:
            return f"{name} is {_dtype(stored)}, in the network {_dtype(own)}"
    return None


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _check_names(packed: bytes) -> None:
    """Raises ValueError if a name occurs twice in the header of a safetensors file."""
    size = int.from_bytes(packed[:8], "little")
    json.loads(packed[8 : 8 + size], object_pairs_hook=_no_duplicates)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> None:
    names = set()
    for name, _ in pairs:
        if name in names:
            raise ValueError(f"{name} occurs twice")
        names.add(name)


def check_size(recipe: Recipe, weights: Path, *others: Path) -> None:
    """A recipe is untrusted input: build no network that is larger than the file of its weights."""
    try:
        with torch.device("meta"):
            network = Network(recipe.network(), recipe.readout.build(recipe.T))
        needed = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    except Exception:  # building it on a real device will report the reason
        return
    if needed > (held := max(path.stat().st_size for path in (weights, *others))):
        raise RunError(
            f"{weights} is damaged or belongs to another network: it has {held} bytes, "
            f"but the network in recipe.json needs {needed}; "
            "restore the matching file, or give model= again if it was your own"
        )


def to_channels_last(network: nn.Module) -> None:
    """Stores the weights of all image convolutions channels-last."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
