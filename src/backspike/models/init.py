"""Initial weights with which neurons fire: fluctuation-driven initialisation.

Rossbroich, Gygax & Zenke 2022, arXiv 2206.10226: random weights are scaled so that the membrane
fluctuates as far as the threshold. The paper computes the scale from an assumed firing rate; here
it is measured on one batch, so that images, spikes, borders and pools are all accounted for.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701  (the base of all BatchNorms)

from ..layers.mpbn import MPBN
from ..layers.over_time import SYNAPSES
from ..neuron.hooks import Handle
from ..neuron.lif import LIF, Watcher
from ..neuron.own import Neuron
from ..neuron.recurrent import Recurrent

_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_NEVER = 1e30  # a threshold that no potential reaches


@torch.no_grad()
def fluctuation_driven(
    model: nn.Module, sample: Tensor, *, mu: float = 0.0, xi: float = 1.0, alpha: float = 0.9
) -> dict[str, str]:
    """Draws the weights of all linear and convolutional layers that feed a spiking layer.

    Rossbroich, Gygax & Zenke 2022, arXiv 2206.10226; docs/methods.md, section 15.

    Afterwards, for this sample, the membrane u that a neuron would have if it never fired has

        E[u] = mu (about),   sqrt(E[(u - mu)^2]) = sigma,   sigma = (v_threshold - mu) / xi

    over all neurons, samples and timesteps of a layer. The weights are normally distributed,
    W ~ N(mu_W, sigma_W^2), biases are 0. With U1 and U the membranes for weights of 1 and for
    standard normal weights, and U0 that for weights of 0 (0, unless spikes bypass the layer),

        mu_W = (mu - E[U0]) / E[U1];  0 if mu = 0
        E[(U0 + mu_W U1 + sigma_W U - mu)^2] = sigma^2, solved for sigma_W

    Layers are set from first to last, each with the spikes of those before it. A `bs.Recurrent`
    gets sigma^2 in two shares: alpha from its input, 1 - alpha from its own spikes, which are
    those that the input alone causes. With a norm between layer and neuron (BatchNorm, MPBN),
    which undoes any scale, the layer keeps its weights. So does the last layer, if it feeds no
    neuron. Weights are drawn from torch's default generator.

    Args:
        model: maps `[T, B, ...]` to anything; its mode and its running statistics stay as they are.
        sample: one batch of its input, `[T, B, ...]`.
        mu: the mean membrane potential, below the threshold.
        xi: the distance from mu to the threshold in standard deviations; the paper advises 1 to 3.
        alpha: the share of the variance that comes from the input of a `bs.Recurrent`.

    Returns:
        The spiking layers by the name of the layer whose weights were drawn for them.

    Raises:
        ValueError: xi or alpha is out of range, mu is not below a threshold, several layers feed
            one neuron or one feeds several, no layer can be set, a layer gets no input, or a neuron
            has equations of its own (`bs.Neuron`).
    """
    if not xi > 0:
        raise ValueError(f"xi must be positive, got {xi}")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
    names = {m: name for name, m in model.named_modules()}
    saved = {name: b.clone() for name, b in model.named_buffers()}
    pairs = _pairs(model, sample, names)
    for layer, target in pairs.items():
        neuron = target.neuron if isinstance(target, Recurrent) else target
        if isinstance(neuron, Neuron):
            raise ValueError(
                f"{names[target]} is a {type(neuron).__name__}, whose equations need not be linear "
                "in the weights; draw the weights that feed it yourself"
            )
        sigma = (_threshold(neuron) - mu) / xi
        if not sigma > 0:
            raise ValueError(
                f"mu must be below the threshold of {names[target]}, "
                f"{_threshold(neuron):.3g}, got {mu}"
            )
        forward = sigma * math.sqrt(alpha) if isinstance(target, Recurrent) else sigma

        def current(target: nn.Module = target) -> Tensor:
            return _input_of(target, model, sample)

        _draw(layer, names[layer], neuron, current, mu, forward)
        if isinstance(target, Recurrent) and alpha < 1:
            _draw_recurrent(target, names[target], current(), sigma * math.sqrt(1 - alpha))
    for name, buffer in model.named_buffers():
        buffer.copy_(saved[name])
    return {names[layer]: names[target] for layer, target in pairs.items()}


def _pairs(
    model: nn.Module, sample: Tensor, names: dict[nn.Module, str]
) -> dict[nn.Module, LIF | Recurrent]:
    """The layers with weights in the order in which they run, each with the neuron it feeds."""
    ran: list[nn.Module] = []
    inside = {part for m in model.modules() if isinstance(m, Recurrent) for part in m.modules()}
    watched = [
        m
        for m in model.modules()
        if isinstance(m, (*SYNAPSES, *_NORMS, LIF, Recurrent))
        and (isinstance(m, Recurrent) or m not in inside)
    ]
    with Handle() as handle:
        for m in watched:
            handle.undo.append(m.register_forward_pre_hook(lambda m, _: ran.append(m)).remove)
        model(sample)
    pairs: dict[nn.Module, LIF | Recurrent] = {}
    layers: list[nn.Module] = []
    normed = False
    for module in ran:
        if not isinstance(module, LIF | Recurrent):
            normed |= isinstance(module, _NORMS)
            layers += [module] if isinstance(module, SYNAPSES) else []
            continue
        spiking = module.neuron if isinstance(module, Recurrent) else module
        if not normed and not isinstance(spiking, MPBN):
            if len(layers) > 1:
                fed = " and ".join(names[layer] for layer in layers)
                raise ValueError(
                    f"{fed} both run before {names[module]}; only one layer may feed it"
                )
            if layers and layers[0] in pairs:
                raise ValueError(f"{names[layers[0]]} feeds several spiking layers")
            pairs |= dict.fromkeys(layers, module)
        layers, normed = [], False
    if not pairs:
        raise ValueError(
            "no linear or convolutional layer feeds a spiking layer without a norm between them; "
            "with norms, the weights need no such initialisation"
        )
    return pairs


class _Reached(Exception):
    pass


def _input_of(target: nn.Module, model: nn.Module, sample: Tensor) -> Tensor:
    """The current `[T, B, ...]` into a spiking layer of the model."""
    found: list[Tensor] = []

    def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
        found.append(args[0])
        raise _Reached

    with Handle() as handle:
        handle.undo.append(target.register_forward_pre_hook(stop).remove)
        with contextlib.suppress(_Reached):
            model(sample)
    return found[0]


def _draw(
    layer: Any, name: str, neuron: LIF, current: Callable[[], Tensor], mu: float, sigma: float
) -> None:
    """Sets the layer so that the membrane has mean mu and spread sigma; see `fluctuation_driven`.

    current: computes the input of the neuron with the layer's present weights.
    """
    if layer.bias is not None:
        layer.bias.zero_()

    def membrane() -> Tensor:
        return _free_membrane(neuron, current())

    layer.weight.zero_()
    rest = membrane()
    mu_w = 0.0
    if mu:
        layer.weight.fill_(1.0)
        mean = float((membrane() - rest).mean())
        if mean == 0:
            raise ValueError(f"{name}: the mean of its input is 0, so mu must be 0 too")
        mu_w = (mu - float(rest.mean())) / mean
        layer.weight.fill_(mu_w)
    fixed = membrane()
    layer.weight.normal_()
    drawn = membrane() - rest
    a, b, c = (
        float(x.mean()) for x in (drawn**2, drawn * (fixed - mu), (fixed - mu) ** 2 - sigma**2)
    )
    if a == 0:
        raise ValueError(f"{name} gets no input from this sample; lower xi, or give a larger batch")
    if c >= 0:
        raise ValueError(
            f"{name}: mu = {mu:g} alone spreads the membrane by more than {sigma:.3g}; "
            "use a smaller mu or xi"
        )
    layer.weight.mul_((math.sqrt(b * b - a * c) - b) / a).add_(mu_w)


def _draw_recurrent(target: Recurrent, name: str, x: Tensor, sigma: float) -> None:
    """Sets the weights with which a layer's own spikes come back. x: its input."""
    layers = [m for m in target.layer.modules() if isinstance(m, SYNAPSES)]
    if len(layers) != 1:
        raise ValueError(f"{name}.layer must contain one layer with weights, got {len(layers)}")
    spikes = copy.deepcopy(target.neuron).compute(x, None)[0].spikes
    assert spikes is not None
    before = torch.cat([torch.zeros_like(spikes[:1]), spikes[:-1]])

    def current() -> Tensor:
        return torch.stack([target.layer(s) for s in before])

    _draw(layers[0], f"{name}.layer", target.neuron, current, 0.0, sigma)


def _free_membrane(neuron: LIF, x: Tensor) -> Tensor:
    """The membrane `[T, B, ...]`, in float64, of a neuron that never fires."""
    free = copy.deepcopy(neuron)
    free.threshold = None
    free.v_threshold_values = None  # type: ignore[assignment]  # a buffer
    free.options = replace(free.options, v_threshold=_NEVER, backend="auto")
    free.watchers = [Watcher(lambda *_: None, membrane=True)]
    membrane = free.compute(x, None)[0].membrane
    assert membrane is not None
    return membrane.double()


def _threshold(neuron: LIF) -> float:
    return float(torch.as_tensor(neuron.constants().v_threshold).double().mean())
