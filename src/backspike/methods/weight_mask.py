"""Masked weight gradients (MSG at the weights): randomly drop elements of weight gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..kernel.mask import as_probability, draw_seed, dropped_at
from ..neuron.hooks import Handle

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


class WeightMask(Handle):
    """The handle that `mask_weight_gradients` returns; `p` may be set at any time (annealing)."""

    def __init__(self, weights: list[Tensor], p: float) -> None:
        super().__init__()
        self._device = weights[0].device  # p lives there, so that backward need not copy it
        self.p = p
        self.undo = [w.register_hook(self._mask).remove for w in weights]

    @property
    def p(self) -> float:
        return float(self._p)

    @p.setter
    def p(self, p: float) -> None:
        self._p = as_probability(p).to(self._device)

    def _mask(self, g: Tensor) -> Tensor:
        return g.masked_fill(dropped_at(draw_seed(g.device), 0, g.shape, self._p), 0.0)


def mask_weight_gradients(model: nn.Module, p: float = 0.5) -> WeightMask:
    """MSG at the weights (paper A, Li et al. 2024): multiply each dL/dW by M ~ Bernoulli(1 - p).

    p is the probability that an element is dropped; there is no rescaling. Applies to all learned
    weights of linear and convolution layers in `model`, transposed convolutions included.
    Each layer draws one mask per backward pass, from the counter hash of `Masked` with a seed from
    torch's default generator; so `torch.manual_seed` controls it, and a resumed run draws the same
    masks. A weight used in several places gets one mask for its whole gradient. With gradient
    accumulation, each backward pass draws its own mask for its part of the minibatch, and so does
    each rank of a distributed run.

    Returns a handle: `.remove()` ends it, and it is a context manager.
    Raises ValueError if no such layer learns, or if p is not in [0, 1].

    Evidence: according to reading notes, the printed paper masks here; the authors' code masks the
    spikes, which is `Masked` (docs/methods.md).
    """
    weights = {id(layer.weight): layer.weight for _, layer in learning_layers(model)}
    if not weights:
        raise ValueError(
            "mask_weight_gradients: this model has no linear or convolution layer with a learned "
            "weight"
        )
    return WeightMask(list(weights.values()), p)


def learning_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield (name, layer) for each linear or convolution layer whose weight requires a gradient."""
    for name, layer in model.named_modules():
        if isinstance(layer, WEIGHTED):
            if not isinstance(layer._parameters.get("weight"), nn.Parameter):
                raise ValueError(
                    f"layer {name!r}: its weight is computed by a parametrization; "
                    "only weights that are parameters are supported"
                )
            if layer.weight.requires_grad:
                yield name, layer
