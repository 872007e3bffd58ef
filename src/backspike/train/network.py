"""A model with its readout, and `load`, which builds the trained one from a run folder."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from ..errors import RunError
from ..recipes.recipe import Recipe
from ..run import Run
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
    run: str | Path, model: nn.Module | None = None, *, values: tuple[type, ...] = ()
) -> Network:
    """The trained network of a run folder, in evaluation mode, on the CPU.

    model: your own module, if `fit` was called with one. values: your own classes in the recipe.
    """
    folder = Run.open(run)
    recipe = folder.recipe(values)
    if not folder.has("model.safetensors"):
        raise RunError(
            f"{folder.path} has no model.safetensors; "
            f"finish it with: backspike resume {folder.path}"
        )
    try:
        weights = load_safetensors(folder.read("model.safetensors"))
        if model is None:
            check_size(recipe, folder.path / "model.safetensors")
        network = Network(model or recipe.network(), recipe.readout.build(recipe.T))
        network.load_state_dict(weights)
    except RunError:
        raise
    except Exception as e:  # whatever a damaged file makes the reader raise
        text = first_line(e)
        raise RunError(
            f"{folder.path / 'model.safetensors'} is damaged or belongs to another network "
            f"(give model= again): {text}"
        ) from e
    return network.eval()


def check_size(recipe: Recipe, weights: Path, *others: Path) -> None:
    """A recipe is untrusted input: build no network that is larger than the file of its weights."""
    try:
        with torch.device("meta"):
            network = Network(recipe.network(), recipe.readout.build(recipe.T))
        needed = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    except Exception:  # building it on a real device reports the reason
        return
    if needed > (held := max(path.stat().st_size for path in (weights, *others))):
        raise RunError(
            f"{weights} is damaged or of another network: it has {held} bytes, "
            f"the weights of the network in recipe.json {needed}; "
            "restore the two that belong together, or give model= again if it was your own"
        )


def to_channels_last(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
