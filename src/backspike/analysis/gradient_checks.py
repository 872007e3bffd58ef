"""Checks of the gradients: missing, masked away, vanishing or exploding over layers and time."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701  (the base of all BatchNorms)

from ..recipes import values
from .finding import Case, Finding, base_of, changed_base, tidy
from .tally import Layer

# gradient of the first layer's input currents relative to the last layer's; VANISHED also
# compares the relative sizes of optimizer steps
VANISHED = 1e-2
EXPLODED = 1e2
# gradient of the first half of the timesteps relative to all timesteps
FORGOTTEN = 1e-3
# norm of the part of a gradient that came through the reset, relative to the rest
RESET = 10.0
# cosine similarity of the gradient with and without the mask; over 72 weights, noise gives ±0.12
ALIGNED = 0.2


def missing(case: Case) -> Iterator[Finding]:
    names = case.vitals.without_gradient
    # residual branches may start with a norm of weight 0, which blocks all gradients behind it
    zero_start = not case.trained and any(
        m.weight is not None and not bool(m.weight.any())
        for m in case.model.modules()
        if isinstance(m, _BatchNorm)
    )
    if names and not zero_start and not _all_masked(case):
        found = "no gradient reaches it" if len(names) == 1 else "no gradient reaches them"
        advice = (
            "make the loss depend on it (is its output unused or detached?), or freeze it with "
            "requires_grad_(False)"
        )
        yield Finding("no gradient", names, found, advice)


def _all_masked(case: Case) -> bool:
    return any(
        layer.mask_left is not None and sum(layer.mask_left) == 0
        for layer in case.vitals.layers.values()
    )


def masked(case: Case) -> Iterator[Finding]:
    known = [
        (weight.mask_alignment, name)
        for name, weight in case.weights
        if weight.mask_alignment is not None
    ]
    if not known or min(known)[0] >= ALIGNED:
        return
    aligned, name = min(known)
    masked = [(float(n.mask_p), n) for *_, n in case.layers if n.mask_p is not None]
    p, neuron = max(masked, key=lambda item: item[0])
    # aligned^-2 - 1 is noise over signal: p / (1 - p) times a factor that does not depend on p
    noise = (max(aligned, 1e-2) ** -2 - 1) * (1 - min(p, 0.999)) / p
    better = min(0.5, math.floor(100 * 3 / (3 + noise)) / 100)
    found = (
        f"the mask (p = {p:g}) leaves mostly noise in the gradient of {name}: its cosine "
        f"similarity to the unmasked gradient is {aligned:.2g}"
    )
    advice = f"lower p to {better:g}, or use a wider surrogate or larger batches"
    surrogate: Any = neuron.surrogate
    whole = dataclasses.replace(surrogate, p=better)
    changes = case.change_surrogate(neuron, whole, ".p", better)
    if case.recipe.mask_p_end is not None and case.recipe.mask_p_end > better:
        changes = {"mask_p_end": None, **changes}
    yield Finding("masked away", [name], found, advice, changes)


def through_depth(case: Case) -> Iterator[Finding]:
    known = [item for item in case.layers if math.isfinite(item[1].gradient_norm)]
    if len(known) < 2:
        return
    (first, a, _), (last, b, neuron) = known[0], known[-1]
    ratio = _unmasked(a) / _unmasked(b) if _unmasked(b) > 0 else math.nan
    if VANISHED <= ratio <= EXPLODED or ratio != ratio:
        return
    each = ratio ** (1 / (len(known) - 1)) if ratio > 0 else 0.1
    problem = "vanishing gradient" if ratio < 1 else "exploding gradient"
    # Adam divides a gradient by its size; it compensates unless the gradient is far below its eps
    ratios = [weight.update_ratio for _, weight in case.weights]
    note = ratio < 1 and min(ratios) >= VANISHED * max(ratios)
    found = (
        f"over {len(known)} layers, from {last} back to {first}, the gradient changes by a factor "
        f"of {ratio:.2g}"
    )
    scale = getattr(base_of(neuron.surrogate)[1], "scale", None)
    if scale is None:
        advice = f"multiply the surrogate's derivative by {1 / each:.2g}"
        yield Finding(problem, [first], found, advice, note=note)
        return
    better = tidy(scale / each)
    advice = (
        f"change the surrogate's scale from {scale:g} to {better:g}, so that each layer passes on "
        "as much as it receives"
    )
    changes = changed_base(case, neuron, "scale", better)
    yield Finding(problem, [first], found, advice, changes, note)


def _unmasked(layer: Layer) -> float:
    left = layer.mask_left or [1.0] * len(layer.gradient)
    return math.sqrt(sum((g / m) ** 2 for g, m in zip(layer.gradient, left) if m > 0))


def through_time(case: Case) -> Iterator[Finding]:
    T = case.vitals.T
    if T < 2 or not case.layers or case.vitals.static:
        return
    # the last layer: in earlier ones, BatchNorm over time mixes in gradients of all timesteps
    name, layer, neuron = case.layers[-1]
    early = math.sqrt(sum(g * g for g in layer.gradient[: T // 2]))
    if not early < FORGOTTEN * layer.gradient_norm:
        return
    share = early / layer.gradient_norm
    found = (
        f"the first half of the {T} timesteps receives {share:.1g} of the gradient, so early "
        "input is not learned"
    )
    if not neuron.temporal_gradient:
        changes: dict[str, Any] = {"neuron.temporal_gradient": True}
        advice = "let the gradient flow back through time"
    else:
        tau = neuron.constants()[0]
        tau = float(torch.as_tensor(tau).detach().double().mean())
        # so that a tenth remains after half of the timesteps
        longer = tidy(1 / (1 - 0.1 ** (2 / T)))
        if longer <= tau:
            readout = {"readout": "Mean()"} if isinstance(case.recipe.readout, values.Last) else {}
            yield Finding("forgotten timesteps", [name], found, "read out every timestep", readout)
            return
        changes = {"neuron.tau": longer}
        advice = (
            f"raise tau from {tau:.3g} to {longer:g}, so that a tenth remains after half of the "
            "timesteps, or read out every timestep"
        )
    yield Finding("forgotten timesteps", [name], found, advice, changes)


def through_reset(case: Case) -> Iterator[Finding]:
    bad = {}
    for name, layer, _ in case.layers:
        if layer.reset_ratio and (worst := max(layer.reset_ratio)) > RESET:
            bad[name] = worst
    if not bad:
        return
    worst = max(bad.values())
    found = f"the gradient through the reset is {worst:.2g} times as large as the rest"
    advice = "detach the reset, or widen the surrogate until threshold times its peak is below 1"
    yield Finding("reset dominates", list(bad), found, advice, {"neuron.reset_gradient": 0.0})
