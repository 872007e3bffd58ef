"""How a step gets its gradients: by back-propagation over all timesteps, or in chunks of time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from ..methods.long_sequences import backward_in_chunks
from ..methods.ottt import ottt
from ..recipes.recipe import Recipe


class Outputs(nn.Module):
    """The outputs of a model over time in float32, computed in the precision of the training."""

    def __init__(
        self, model: nn.Module, autocast: Callable[[], AbstractContextManager[object]]
    ) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast

    def forward(self, x: Tensor) -> Tensor:
        with self.autocast():
            return self.model(x).float()


def backward(
    recipe: Recipe,
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    accumulating: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of loss(model(x)) by the rule of the recipe; returns loss and outputs."""
    if not recipe.in_chunks:
        o = model(x)
        value = loss(o)
        value.backward()
        return value.detach(), o.detach()
    sizes = {"bptt": recipe.truncate, "checkpoint": None, "sltt": 1, "ottt": 1}
    with ottt(model) if recipe.rule == "ottt" else nullcontext():
        return backward_in_chunks(
            model,
            x,
            loss,
            sizes[recipe.rule],
            truncate=recipe.rule != "checkpoint",
            accumulating=accumulating,
        )
