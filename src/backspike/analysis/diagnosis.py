"""Why does a network not learn? Turns its vitals into findings, each with a change to try.

Checks follow the signal: data, spikes, norms, gradients, steps, answers. Once a stage has a
problem, later stages are not checked, because a single silent layer makes every gradient vanish.
Fix it and run the doctor again. All limits are at the top of this file with their reasons;
docs/doctor.md has the measurements behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..neuron.hooks import spiking_layers
from ..neuron.lif import LIF
from ..neuron.own import Neuron
from ..recipes.recipe import Recipe
from . import gradient_checks
from .finding import (
    DRAW_WEIGHTS,
    Case,
    Finding,
    percent,
    reach,
    tidy,
    times,
    widened,
)
from .vitals import Layer, Vitals

# spikes per sample in a whole layer; with fewer, most samples send nothing to the next layer
SPIKES = 1.0
# share of the channels that never fire (DEAD) or always fire (SATURATED): most of the layer
# carries no information
DEAD = 0.5
SATURATED = 0.5
# share of the membrane potentials that lie within the surrogate
SUPPORT = 0.05
# share of a norm's channels with constant output
FLAT = 0.5
# length of a step relative to the weights; at 1, nothing of the weights remains
FAR = 1.0
# length of all steps of the recipe, were they all in one direction, relative to the weights
NEAR = 0.1
# the same for an advised learning rate; a step changes the weights by 1 to 5 % of their size
RIGHT_DISTANCE = 5.0
# cross-entropy relative to log K, the cross-entropy of random answers
LOUD = 2.0
CHANCE = 0.95
# standard deviation of a logit over the samples, relative to the logits
CONSTANT = 1e-3
# an advised threshold is exceeded by this share of the potentials
RIGHT_RATE = 0.2
# an advised surrogate covers this share of the potentials
RIGHT_SUPPORT = 0.5


def diagnose(
    vitals: Vitals,
    model: nn.Module,
    recipe: Recipe,
    steps: int,
    trained: bool,
    own_model: bool = False,
) -> list[Finding]:
    """Finds what is wrong with `model` when trained by `recipe`; [] if nothing is.

    The first cause comes first. steps: optimizer steps in the whole recipe. trained: the weights
    have been trained. own_model: the model was not built from the recipe.
    """
    case = Case(vitals, model, recipe, steps, trained, own_model)
    notes = [note for check in _NOTES for note in check(case)]
    for stage in _STAGES:
        found = [finding for check in stage for finding in check(case)]
        if any(not finding.note for finding in found):
            return case.attributed(found + notes)
        notes += found
    return case.attributed(notes)


# ---- data ------------------------------------------------------------------------------------


def _blank(case: Case) -> Iterator[Finding]:
    v = case.vitals
    advice = "check what the data set returns"
    if v.input_rms == 0:
        yield Finding("blank input", [], "all sample values are 0", advice)
    elif v.input_constant:
        yield Finding("equal input", [], f"all {v.samples} samples are the same", advice)


def _one_label(case: Case) -> Iterator[Finding]:
    v = case.vitals
    if v.labels == 1 and v.classes > 1 and v.samples >= 4 * v.classes:
        found = f"all {v.samples} randomly drawn samples have the same one of {v.classes} labels"
        yield Finding("one label", [], found, "check the labels that the data set returns")


# ---- spikes ----------------------------------------------------------------------------------


def _no_spiking_layer(case: Case) -> Iterator[Finding]:
    if case.layers:
        return
    if idle := list(spiking_layers(case.model)):
        found = "the network does not call its spiking layers"
        yield Finding("no spiking layer", idle, found, "call them in the model's forward")
    else:
        found = "the network has no spiking layer"
        advice = "put one, such as bs.LIF(), after each layer with weights except the last"
        yield Finding("no spiking layer", [], found, advice)


def _input_scale(case: Case) -> Iterator[Finding]:
    """Without a norm before the first layer, the input's scale determines its potentials."""
    v = case.vitals
    if v.input_normed or not case.layers:
        return
    name, layer, _ = case.layers[0]
    unusable = (
        layer.support < SUPPORT or layer.saturated >= SATURATED or layer.spikes_per_sample < SPIKES
    )
    if unusable and not 0.1 <= v.input_rms <= 10:
        found = (
            f"the root mean square of the samples is {v.input_rms:.3g} and there is no norm before "
            f"the layer: half of its potentials are {layer.distance['0.5']:.2g} or more away from "
            "the threshold"
        )
        factor, verb = (v.input_rms, "divide") if v.input_rms > 1 else (1 / v.input_rms, "multiply")
        advice = f"{verb} the samples by {tidy(factor):g}"
        yield Finding("input out of scale", [name], found, advice)


def _firing(case: Case) -> Iterator[Finding]:
    """The first layer that fires too little or too much; later ones cannot tell samples apart."""
    for name, layer, neuron in case.layers:
        if layer.spikes_per_sample < SPIKES:
            found = (
                f"the whole layer emits {layer.spikes_per_sample:.2g} spikes per sample, so "
                "most samples send no signal to the next layer"
            )
        elif layer.dead >= DEAD:
            found = f"{percent(layer.dead)} of the channels never fire"
        elif layer.saturated >= SATURATED:
            found = f"{percent(layer.saturated)} of the channels always fire, whatever the input"
        else:
            continue
        problem = "saturated layer" if layer.saturated >= SATURATED else "silent layer"
        finding = _change_threshold(problem, name, layer, neuron, found)
        drawn = case.own_model and not isinstance(neuron, Neuron)
        if drawn and problem == "silent layer":
            finding = replace(finding, advice=f"{finding.advice}; or {DRAW_WEIGHTS}")
        yield finding
        return


def _change_threshold(problem: str, name: str, layer: Layer, neuron: LIF, found: str) -> Finding:
    """Advises the threshold that a fifth of the potentials exceed."""
    theta = tidy(layer.potential[f"{1 - RIGHT_RATE:g}"])
    now = float(torch.as_tensor(neuron.constants()[1]).detach().double().mean())
    floor = neuron.options.v_reset or 0.0
    if theta <= max(floor, 1e-3):
        where = f"90 % of the potentials are at or below {layer.potential['0.9']:.2g}, about rest"
        advice = "put a norm before the layer, or increase its weights or its bias"
        return Finding(problem, [name], f"{found}; {where}", advice)
    verb = "lower" if theta < now else "raise"
    advice = (
        f"{verb} the threshold from {now:.3g} to {theta:g}, which 20 % of the potentials exceed"
    )
    return Finding(problem, [name], found, advice, {"neuron.v_threshold": theta})


def _outside(case: Case) -> Iterator[Finding]:
    bad = [item for item in case.layers if item[1].support < SUPPORT]
    if not bad:
        return
    name, layer, neuron = min(bad, key=lambda item: item[1].support)
    found = (
        f"only {percent(layer.support)} of the potentials of {name} are within the surrogate, "
        f"where gradients pass; half of them are {layer.distance['0.5']:.2g} or more away from "
        f"the threshold, and the surrogate reaches {reach(neuron):.2g}"
    )
    factor = max(layer.distance[f"{RIGHT_SUPPORT:g}"] / reach(neuron) for _, layer, neuron in bad)
    advice = (
        f"widen the surrogate by a factor of {factor:.3g}, or move the potentials towards it with "
        "--potential \"PDA(target='window')\""
    )
    where = [name for name, *_ in bad]
    yield Finding("outside the surrogate", where, found, advice, widened(case, neuron, factor))


# ---- norms -----------------------------------------------------------------------------------


def _flat(case: Case) -> Iterator[Finding]:
    flat = {name: share for name, share in case.vitals.flat_norms.items() if share >= FLAT}
    if not flat:
        return
    norms = dict(case.model.named_modules())
    name = next(iter(flat))
    weight: Any = norms[name].weight
    found = f"{percent(flat[name])} of the channels of {name} have the same output for all samples"
    changes: dict[str, Any] = {}
    if weight is not None and float((weight.detach().abs() < 0.1).float().mean()) >= FLAT:
        median = float(weight.detach().abs().median())
        found += f": their weights are close to 0 (median {median:.2g})"
        advice = "initialise them to 1 (torch.nn.init.ones_) and exclude them from weight decay"
        if getattr(case.recipe.optimizer, "weight_decay", 0):
            changes = {"optimizer.weight_decay": 0.0}
    else:
        found += f": their input varies less than the norm's eps of {norms[name].eps:g}"
        advice = "increase the preceding weights or the samples, or reduce eps"
        if case.vitals.input_rms < 0.1:
            found += f"; the root mean square of the samples is {case.vitals.input_rms:.2g}"
            advice = f"multiply the samples by {tidy(1 / case.vitals.input_rms):g}"
    yield Finding("flat norm", list(flat), found, advice, changes)


# ---- steps -----------------------------------------------------------------------------------


def _steps(case: Case) -> Iterator[Finding]:
    lr = case.recipe.optimizer.lr
    known = [
        (w.update_ratio if math.isfinite(w.update_ratio) else math.inf, name)
        for name, w in case.weights
    ]
    if not known:
        return
    far = [name for ratio, name in known if ratio >= FAR]
    largest, _ = max(known)
    if far:
        lower = tidy(lr * 0.05 / largest if math.isfinite(largest) else lr / 1000)
        found = (
            f"a step changes the weights by {times(largest)} their own size, so nothing that was "
            "learned remains"
        )
        advice = f"lower the learning rate from {lr:g} to {lower:g}"
        yield Finding("steps too large", far, found, advice, {"optimizer.lr": lower})
        return
    # the mean of a cosine schedule is half its peak
    distance = largest * case.steps / 2
    if distance < NEAR and case.steps:
        right = min(0.05, max(0.01, 2 * RIGHT_DISTANCE / case.steps))
        found = (
            f"a step changes the weights by at most {largest:.1g} of their size, and all "
            f"{case.steps:,} steps, even in one direction, by {distance:.1g}"
        )
        if max(largest, right) * case.steps / 2 < NEAR:
            epochs = math.ceil(case.recipe.epochs * RIGHT_DISTANCE / distance)
            yield Finding("too few steps", [], found, f"train {epochs} epochs", {"epochs": epochs})
            return
        higher = tidy(lr * right / largest) if largest > 0 else 1e-3
        advice = f"raise the learning rate from {lr:g} to {higher:g}"
        yield Finding("steps too small", [], found, advice, {"optimizer.lr": higher})


# ---- answers ---------------------------------------------------------------------------------


def _answers(case: Case) -> Iterator[Finding]:
    v = case.vitals
    chance = math.log(v.classes)
    if v.logit_spread < CONSTANT:
        found = (
            "the answer is the same for all samples (the logits vary by "
            f"{v.logit_spread:.1g} of their size)"
        )
        advice = "check the layers between the last spiking layer and the readout"
        yield Finding("constant answer", [], found, advice)
    elif v.cross_entropy > LOUD * chance:
        found = (
            f"the cross-entropy is {v.cross_entropy:.3g} ({chance:.3g} for random answers): the "
            f"logits are too large ({v.logit_scale:.2g} around their mean)"
        )
        advice, changes = f"divide the outputs by {tidy(v.logit_scale):g}", {}
        if case.trained:
            advice = "train again with a lower learning rate"
            changes = {"optimizer.lr": tidy(case.recipe.optimizer.lr / 10)}
        yield Finding("logits too large", [], found, advice, changes)
    elif case.trained and v.cross_entropy > CHANCE * chance:
        found = (
            f"after training the cross-entropy is {v.cross_entropy:.3g} ({chance:.3g} for random "
            "answers)"
        )
        advice = (
            "layers, gradients and steps look fine: check that labels match their samples, or "
            "train longer"
        )
        yield Finding("nothing learned", [], found, advice)


_STAGES: Sequence[Sequence[Callable[[Case], Iterator[Finding]]]] = (
    (_blank, _one_label),
    (_no_spiking_layer,),
    (_input_scale,),
    (_firing,),
    (_outside,),
    (_flat,),
    (gradient_checks.missing, gradient_checks.masked, gradient_checks.through_reset),
    (gradient_checks.through_depth, gradient_checks.through_time),
    (_steps,),
    (_answers,),
)


# ---- notes -----------------------------------------------------------------------------------


def _one_timestep(case: Case) -> Iterator[Finding]:
    if case.vitals.T == 1:
        found = (
            "with T = 1 no state is carried between timesteps, so tau, the reset and the gradient "
            "through time have no effect"
        )
        yield Finding("one timestep", [], found, "use more timesteps", {"T": 4}, note=True)


def _some_dead(case: Case) -> Iterator[Finding]:
    for name, layer, _ in case.layers:
        if 0.1 <= layer.dead < DEAD:
            share, samples = percent(layer.dead), case.vitals.samples
            found = f"{share} of the channels did not fire on {samples} samples"
            advice = "lower the threshold, or use fewer channels"
            yield Finding("idle channels", [name], found, advice, note=True)


_NOTES = (_one_timestep, _some_dead)
