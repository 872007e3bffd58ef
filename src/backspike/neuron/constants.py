"""Constants of a layer that may differ between channels or neurons: given, drawn or learned.

An option such as tau is a number, a tensor or a distribution. Tensors and drawn values become
buffers of the layer, so that they are saved, copied and moved with it; learned values become
parameters instead.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from ..options import LIF as Options
from ..options import PER, VARYING
from ..options.distribution import Distribution, Given

Value = float | Tensor | Distribution

_LOWEST = {"tau": 1.0, "tau_synapse": 1.0, "v_threshold": 0.0}


def varies(value: object) -> bool:
    """Whether a value given for an option may differ between channels or neurons."""
    return isinstance(value, Distribution) or (isinstance(value, Tensor) and value.dim() > 0)


def take_tensors(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments with `Given` in place of tensors, and the tensors.

    Raises ValueError for a tensor that requires a gradient, which would not learn.
    """
    tensors = {n: v for n, v in given.items() if n in VARYING and isinstance(v, Tensor)}
    for name, value in tensors.items():
        learned = name.removeprefix("v_")
        if value.requires_grad:
            raise ValueError(
                f"{name} requires a gradient, but the layer copies it; give {name}.detach(), and "
                f"learn={learned!r} if the layer shall learn it"
            )
    return given | {n: Given(v.shape) for n, v in tensors.items()}, tensors


def values_shape(
    neuron: Options, channels: int | tuple[int, ...] | None, tensors: dict[str, Tensor]
) -> tuple[int, ...]:
    """The shape of learned and drawn values: (), (C,) or that of a sample's timestep.

    Raises ValueError for sizes that are missing or contradict each other.
    """
    if neuron.per not in (None, *PER):
        raise ValueError(f"per must be one of {', '.join(PER)}, got {neuron.per!r}")
    sizes = (channels,) if isinstance(channels, int) else tuple(channels or ())
    given = {name: tuple(t.shape) for name, t in tensors.items() if t.dim()}
    if not sizes and given and neuron.per != "layer":
        sizes = next(iter(given.values()))
    wide = max(map(len, given.values()), default=1)
    shape = {"layer": (), "neuron": sizes, "channel": sizes[:1], None: sizes[:wide]}[neuron.per]
    for name, own in given.items():
        if own != shape:
            raise ValueError(
                f"{name} has the shape {list(own)}, but with per={neuron.per!r} and "
                f"channels={channels} a value has the shape {list(shape)}; set per and channels"
            )
    drawn = [n for n in VARYING if isinstance(getattr(neuron, n, None), Distribution)]
    if drawn and not shape:
        raise ValueError(
            f"{drawn[0]}={getattr(neuron, drawn[0])!r} gives each channel or neuron a value: set "
            "per='channel' or 'neuron', and channels=, their number (for neurons in space their "
            "shape, such as (16, 8, 8))"
        )
    if neuron.per in ("channel", "neuron") and neuron.learn and not shape:
        raise ValueError(
            f"per={neuron.per!r} needs channels=, the number of channels; for neurons in space "
            "their shape, such as (16, 8, 8)"
        )
    return shape


def initial_values(layer: Any, name: str, given: Tensor | None) -> Tensor | None:
    """The values of an option to start from, `layer.shape`; None if it is a number.

    Raises ValueError naming the option for values that are out of range.
    """
    option, low = getattr(layer.options, name), _LOWEST[name]
    if name == "v_threshold" and isinstance(layer.options.v_reset, Real):
        low = max(low, float(layer.options.v_reset))
    if isinstance(option, Distribution):
        seed = getattr(option, "seed", None)
        if seed is None:
            seed = int(torch.randint(1 << 62, (), device="cpu"))
        drawn = option.draw(math.prod(layer.shape), low, seed)
        return torch.as_tensor(drawn, dtype=torch.get_default_dtype()).reshape(layer.shape)
    if given is None:
        return None
    values = given.detach().clone()
    if not values.is_floating_point():
        values = values.to(torch.get_default_dtype())
    if not values.is_meta and not (values > low).all():
        raise ValueError(f"all values of {name} must be above {low:g}, got {values.min():g}")
    finite = layer.options.decay_input or name in layer.options.learn
    if name != "v_threshold" and finite and not values.is_meta and not values.isfinite().all():
        raise ValueError(f"all values of {name} must be finite where they are learned or scale x")
    return values


def learned(values: float | Tensor, shape: tuple[int, ...], minus_1: bool) -> nn.Parameter:
    """A parameter that starts at these values; minus_1: it is log(values - 1)."""
    if isinstance(values, Tensor):
        start = (values - 1).log() if minus_1 else values
        return nn.Parameter(start.expand(shape).clone())
    return nn.Parameter(torch.full(shape, math.log(values - 1) if minus_1 else float(values)))


def limits(option: Value, lowest: float, minus_1: bool) -> tuple[float, float]:
    """The limits of a learned parameter, from the support of the distribution that it starts from.

    lowest: the smallest value that is allowed in any case.
    """
    low, high = option.support if isinstance(option, Distribution) else (-math.inf, math.inf)
    low = max(low, lowest)
    if not minus_1:
        return low, high
    return math.log(low - 1) if low > 1 else -math.inf, math.log(high - 1)
