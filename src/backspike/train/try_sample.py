"""Tries one sample on the network, and explains in one line why it does not fit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..data.batches import Batches
from ..errors import RunError
from ..layers.over_time import OverTime
from .failures import first_line
from .network import Network

# they take their input without a time dimension
_TIMELESS = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
)


def try_sample(network: Network, train: Batches, num_classes: int | None) -> tuple[Tensor, int]:
    """One sample `[T, 1, ...]` that the network accepts, and its number of outputs.

    Raises RunError if the sample cannot be read, the network does not take it, or the outputs have
    another shape or another number of classes.
    """
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
            f"{first_line(e)}{_hint(network.model, x, train)}"
        ) from e
    if not isinstance(o, Tensor):
        raise RunError(
            "the model must return one tensor, the outputs over time [T, B, K]; "
            f"it returned {'None' if o is None else f'a {type(o).__name__}'}"
        )
    if o.dim() != 3 or o.shape[:2] != x.shape[:2]:
        raise RunError(
            f"the model must return outputs over time [T, B, K]; it returned {list(o.shape)} "
            f"for an input of {list(x.shape)}{_hint(network.model, x, train)}"
        )
    K = o.shape[2]
    needed = num_classes or int(y.max()) + 1
    if needed > K:
        raise RunError(
            f"the model has {K} outputs and the data {needed} classes; set num_classes={needed}"
        )
    return x, K


def _hint(model: nn.Module, x: Tensor, train: Batches) -> str:
    """What may be wrong: layers outside `OverTime`, or samples that have a time dimension."""
    if layers := [f"{name} ({type(m).__name__})" for name, m in _outside_over_time(model)]:
        return f"; put layers without a time dimension into bs.OverTime(...): {', '.join(layers)}"
    sample = x.shape[2:]
    looks_timed = len(sample) == 2 or list(sample[:1]) == [len(x)]
    if train.recipe.has_time is None and looks_timed:
        return "; if the first dimension of your samples is time, set the recipe's has_time=True"
    return ""


def _outside_over_time(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers of Sequentials that would take `[T, B, ...]` for `[B, ...]`, with their names."""
    if not isinstance(model, nn.Sequential) or isinstance(model, OverTime):
        return
    for name, m in model.named_children():
        if isinstance(m, _TIMELESS) or (isinstance(m, nn.Flatten) and m.start_dim == 1):
            yield prefix + name, m
        yield from _outside_over_time(m, f"{prefix}{name}.")
