"""Masked weight gradients (MSG at the weight site): a share of the gradient of every weight is dropped at random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..kernel.mask import as_probability, draw_seed, dropped_at
from ..neuron.hooks import Handle

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


class WeightMask(Handle):
    """What `mask_weight_gradients` returns; `p` may be set at any time (annealing)."""

    def __init__(self, weights: list[Tensor], p: float) -> None:
        super().__init__()
        self._device = weights[0].device  # so that no backward pass copies it there
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
    """MSG at the weights (paper A, Li et al. 2024): every dL/dW is multiplied elementwise by M ~ Bernoulli(1 - p).

    For all linear and convolution layers of `model` that learn, transposed convolutions too; p is the probability of being
    dropped and there is no rescaling. One mask per layer and backward pass, from the counter hash of `Masked` with a seed
    from torch's default generator, so `torch.manual_seed` governs it and a resumed run draws the same. A weight used in
    several places gets one mask for its whole gradient. Under gradient accumulation each backward pass draws its own
    mask, for its own part of the minibatch; so does each rank of a distributed run. Evidence: reading notes say that the
    printed paper masks here; the authors' code masks the spikes, which is `Masked` (docs/methods.md).
    """
    weights = {id(layer.weight): layer.weight for _, layer in learning_layers(model)}
    if not weights:
        raise ValueError(
            "mask_weight_gradients: no linear or convolution layer of this model has a weight that learns"
        )
    return WeightMask(list(weights.values()), p)


def learning_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in model.named_modules():
        if isinstance(layer, WEIGHTED):
            if not isinstance(layer._parameters.get("weight"), nn.Parameter):
                raise ValueError(
                    f"layer {name!r}: its weight is computed (a parametrization), not a parameter with a gradient"
                )
            if layer.weight.requires_grad:
                yield name, layer
