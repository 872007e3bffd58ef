"""Why a network does not learn: from its vitals to findings in plain words, each with the change to try.

Illnesses are looked for along the way of the signal: data, spikes, norms, gradients, steps, answers. Where one stage is ill the
later ones are not judged, as a silent layer alone makes every gradient vanish: cure it and ask again. Every limit stands at the
head of this file with its reason; docs/doctor.md has the measurements behind them.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701  (the base of all BatchNorms)

from ..neuron.hooks import spiking_layers
from ..neuron.lif import LIF
from ..recipes import values
from ..recipes.recipe import Recipe
from ..surrogate import Masked, Parametric, Surrogate, Triangle
from .activity import in_support
from .vitals import Layer, Vitals, Weight

SPIKES = 1.0  # fewer spikes per sample in a whole layer: most samples pass on nothing
DEAD = 0.5  # of the channels without a spike, and SATURATED with nothing else: most of the layer says nothing
SATURATED = 0.5
SUPPORT = 0.05  # of the potentials under the surrogate
FLAT = 0.5  # of the channels of a norm that give out a constant
VANISHED = 1e-2  # gradient of the first layer's currents relative to the last one's; of a step's size likewise
EXPLODED = 1e2
FORGOTTEN = 1e-3  # gradient of the first half of the timesteps relative to all
RESET = 10.0  # norm of the part of a gradient that came through the reset, relative to all else
ALIGNED = (
    0.2  # cosine between the gradient with and without the mask; of 72 weights noise has ±0.12
)
FAR = 1.0  # a step as long as the weights themselves leaves nothing of them
NEAR = 0.1  # all steps of the recipe, if every one went the same way, relative to the weights
LOUD = 2.0  # cross-entropy relative to log K, what answers at random cost
CHANCE = 0.95
CONSTANT = 1e-3  # deviation of a logit over the samples relative to the logits
RIGHT_RATE = 0.2  # what a threshold is moved to: a fifth of the neurons over it
RIGHT_SUPPORT = 0.5  # what a surrogate is widened to


@dataclass(frozen=True)
class Finding:
    """Something that keeps a network from learning, or, as a note, something to know.

    changes: fields of the recipe, to be tried with `recipe.replace(finding.changes)`; empty where the cure lies elsewhere.
    """

    illness: str
    where: list[str]  # layers or tensors; [] for the whole network
    found: str
    advice: str
    changes: dict[str, Any] = field(default_factory=dict)
    note: bool = False

    @property
    def flags(self) -> str:
        """The changes as words of a command line."""
        return " ".join(
            f"--{name} {shlex.quote(_text(value))}" for name, value in self.changes.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a log."""
        changes = {name: _text(value) for name, value in self.changes.items()}
        return {**dataclasses.asdict(self), "changes": changes, "flags": self.flags}

    def __str__(self) -> str:
        places = f"{_list(self.where)}: " if self.where else ""
        return f"{self.illness}: {places}{self.found}; {self.advice}" + (
            f": {self.flags}" if self.changes else ""
        )


def diagnose(
    vitals: Vitals, model: nn.Module, recipe: Recipe, steps: int, trained: bool
) -> list[Finding]:
    """What is wrong with `model` in training by `recipe`, the first cause first; [] for nothing.

    steps: of the optimizer over the whole recipe. trained: the weights are not those of the start.
    """
    case = _Case(vitals, model, recipe, steps, trained)
    notes = [note for look in _NOTES for note in look(case)]
    for stage in _STAGES:
        found = [finding for look in stage for finding in look(case)]
        if any(not finding.note for finding in found):
            return found + notes
        notes += found
    return notes


@dataclass(frozen=True)
class _Case:
    vitals: Vitals
    model: nn.Module
    recipe: Recipe
    steps: int
    trained: bool

    @property
    def layers(self) -> list[tuple[str, Layer, LIF]]:
        spiking = spiking_layers(self.model)
        return [(name, layer, spiking[name]) for name, layer in self.vitals.layers.items()]

    @property
    def weights(self) -> list[tuple[str, Weight]]:
        return list(self.vitals.weights.items())


# ---- data ----------------------------------------------------------------------------------------------------------------


def _blank(case: _Case) -> Iterator[Finding]:
    v = case.vitals
    if v.input_rms == 0:
        yield Finding(
            "blank input",
            [],
            "every value of the samples is 0",
            "look at what the data set returns",
        )
    elif v.input_constant:
        yield Finding(
            "equal input",
            [],
            f"all {v.samples} samples are the same",
            "look at what the data set returns",
        )


def _one_label(case: _Case) -> Iterator[Finding]:
    v = case.vitals
    if v.labels == 1 and v.classes > 1 and v.samples >= 4 * v.classes:
        found = (
            f"all {v.samples} samples, drawn at random, have the same label, of {v.classes} classes"
        )
        yield Finding("one label", [], found, "look at the labels that the data set returns")


# ---- spikes --------------------------------------------------------------------------------------------------------------


def _input_scale(case: _Case) -> Iterator[Finding]:
    """Where the first layer reads the input without a norm, the scale of the input is that of its potentials."""
    v = case.vitals
    if v.input_normed or not case.layers:
        return
    name, layer, _ = case.layers[0]
    ill = (
        layer.support < SUPPORT or layer.saturated >= SATURATED or layer.spikes_per_sample < SPIKES
    )
    if ill and not 0.1 <= v.input_rms <= 10:
        found = (
            f"the root mean square of the samples is {v.input_rms:.3g} and no norm stands before the layer: half of its "
            f"potentials lie {layer.distance['0.5']:.2g} or more from the threshold"
        )
        factor, verb = (v.input_rms, "divide") if v.input_rms > 1 else (1 / v.input_rms, "multiply")
        yield Finding(
            "input out of scale", [name], found, f"{verb} the samples by {_tidy(factor):g}"
        )


def _firing(case: _Case) -> Iterator[Finding]:
    """The first layer that fires too little or too much; those after it get nothing to tell apart."""
    for name, layer, neuron in case.layers:
        if layer.spikes_per_sample < SPIKES:
            found = f"{layer.spikes_per_sample:.2g} spikes per sample in the whole layer, so that most samples pass nothing on"
        elif layer.dead >= DEAD:
            found = f"{_percent(layer.dead)} of the channels never fire"
        elif layer.saturated >= SATURATED:
            found = f"{_percent(layer.saturated)} of the channels fire always, whatever the input"
        else:
            continue
        illness = "saturated layer" if layer.saturated >= SATURATED else "silent layer"
        yield _rethreshold(illness, name, layer, neuron, found)
        return


def _rethreshold(illness: str, name: str, layer: Layer, neuron: LIF, found: str) -> Finding:
    """The threshold that a fifth of the potentials lie above."""
    theta = _tidy(layer.potential[f"{1 - RIGHT_RATE:g}"])
    now = float(torch.as_tensor(neuron.constants()[1]).detach().double().mean())
    floor = neuron.v_reset or 0.0
    if theta <= max(floor, 1e-3):
        where = (
            f"the potentials lie at or below rest ({layer.potential['0.9']:.2g} at the upper tenth)"
        )
        advice = "put a norm before the layer, or make its weights or its bias larger"
        return Finding(illness, [name], f"{found}; {where}", advice)
    verb = "lower" if theta < now else "raise"
    advice = (
        f"{verb} the threshold from {now:.3g} to {theta:g}, which a fifth of the potentials reach"
    )
    return Finding(illness, [name], found, advice, {"neuron.v_threshold": theta})


def _outside(case: _Case) -> Iterator[Finding]:
    ill = [(name, layer, neuron) for name, layer, neuron in case.layers if layer.support < SUPPORT]
    if not ill:
        return
    name, layer, neuron = min(ill, key=lambda item: item[1].support)
    found = (
        f"{_percent(layer.support)} of the potentials of {name} lie under the surrogate, and only there a gradient passes; "
        f"half of them lie {layer.distance['0.5']:.2g} or more from the threshold, and it ends at {reach(neuron):.2g}"
    )
    factor = max(layer.distance[f"{RIGHT_SUPPORT:g}"] / reach(neuron) for _, layer, neuron in ill)
    advice = f"widen the surrogate {factor:.3g} times, or draw the potentials to it with --potential \"PDA(target='window')\""
    yield Finding(
        "outside the surrogate", [n for n, *_ in ill], found, advice, _widened(neuron, factor)
    )


def reach(neuron: LIF) -> float:
    """The largest distance from the threshold at which the surrogate derivative is above 1 % of its peak."""
    z = torch.logspace(-5, 5, 4001)[:, None, None]
    width = neuron.constants()[2]
    if width is not None and width.dim():
        z = z.expand(-1, 1, len(width))
    inside = in_support(neuron, z).flatten(1).any(1)
    return float(z[inside].max()) if bool(inside.any()) else 1e-5


def _base(surrogate: Surrogate) -> tuple[str, Surrogate]:
    """What a mask or a learned width wraps, with the name of its field in a recipe."""
    path = "neuron.surrogate"
    while isinstance(surrogate, Masked | Parametric):
        path, surrogate = f"{path}.base", surrogate.base
    return path, surrogate


def _widened(neuron: LIF, factor: float) -> dict[str, Any]:
    """The surrogate so many times as wide; a triangle where its width cannot be set."""
    path, base = _base(neuron.surrogate)
    width, alpha = (getattr(base, name, None) for name in ("width", "alpha"))
    if isinstance(width, float | int):
        return {f"{path}.width": _tidy(width * factor)}
    if isinstance(alpha, float | int):
        return {f"{path}.alpha": _tidy(alpha / factor)}
    return {path: Triangle(alpha=_tidy(1 / (reach(neuron) * factor)))}


# ---- norms ---------------------------------------------------------------------------------------------------------------


def _flat(case: _Case) -> Iterator[Finding]:
    ill = {name: share for name, share in case.vitals.flat_norms.items() if share >= FLAT}
    if not ill:
        return
    norms = dict(case.model.named_modules())
    name = next(iter(ill))
    weight: Any = norms[name].weight
    found = f"{_percent(ill[name])} of the channels of {name} give out the same for every sample"
    if weight is not None and float((weight.detach().abs() < 0.1).float().mean()) >= FLAT:
        found += f": their weights are next to 0 ({float(weight.detach().abs().median()):.2g} in the middle)"
        advice = "start them at 1 (torch.nn.init.ones_), and let weight decay spare them"
        changes = (
            {}
            if not getattr(case.recipe.optimizer, "weight_decay", 0)
            else {"optimizer.weight_decay": 0.0}
        )
    else:
        found += f": what enters varies less than its eps of {norms[name].eps:g}"
        advice, changes = "make the layer before it or the samples larger, or eps smaller", {}
        if case.vitals.input_rms < 0.1:
            found += f"; the root mean square of the samples is {case.vitals.input_rms:.2g}"
            advice = f"multiply the samples by {_tidy(1 / case.vitals.input_rms):g}"
    yield Finding("flat norm", list(ill), found, advice, changes)


# ---- gradients -----------------------------------------------------------------------------------------------------------


def _missing(case: _Case) -> Iterator[Finding]:
    names = case.vitals.without_gradient
    # the branches of a residual network may begin with a norm of weight 0, behind which all gradients are 0
    begins = not case.trained and any(
        m.weight is not None and not bool(m.weight.any())
        for m in case.model.modules()
        if isinstance(m, _BatchNorm)
    )
    if names and not begins and not _all_masked(case):
        found = "no gradient reaches it" if len(names) == 1 else "no gradient reaches them"
        advice = "make the loss depend on it (is its output used, or detached?), or freeze it with requires_grad_(False)"
        yield Finding("no gradient", names, found, advice)


def _all_masked(case: _Case) -> bool:
    return any(
        layer.mask_left is not None and sum(layer.mask_left) == 0
        for layer in case.vitals.layers.values()
    )


def _masked(case: _Case) -> Iterator[Finding]:
    known = [
        (weight.mask_alignment, name)
        for name, weight in case.weights
        if weight.mask_alignment is not None
    ]
    if not known or min(known)[0] >= ALIGNED:
        return
    aligned, name = min(known)
    p = max(float(n.mask_p) for *_, n in case.layers if n.mask_p is not None)
    # aligned^-2 - 1 is noise over signal, and p / (1 - p) times what does not depend on p
    noise = (max(aligned, 1e-2) ** -2 - 1) * (1 - min(p, 0.999)) / p
    better = min(0.5, math.floor(100 * 3 / (3 + noise)) / 100)
    found = (
        f"of the gradient of {name} little is left but noise: with the mask (p = {p:g}) it has a cosine of {aligned:.2g} to "
        "what it would be without"
    )
    advice = f"mask less, p = {better:g}, or make the surrogate wider or the batches larger"
    changes: dict[str, Any] = {"neuron.surrogate.p": better}
    if case.recipe.mask_p_end is not None and case.recipe.mask_p_end > better:
        changes = {"mask_p_end": None, **changes}
    yield Finding("masked away", [name], found, advice, changes)


def _through_depth(case: _Case) -> Iterator[Finding]:
    known = [
        (n, layer, neuron) for n, layer, neuron in case.layers if math.isfinite(layer.gradient_norm)
    ]
    if len(known) < 2:
        return
    (first, a, _), (last, b, neuron) = known[0], known[-1]
    ratio = _unmasked(a) / _unmasked(b) if _unmasked(b) > 0 else math.nan
    if VANISHED <= ratio <= EXPLODED or ratio != ratio:
        return
    each = ratio ** (1 / (len(known) - 1)) if ratio > 0 else 0.1
    illness = "vanishing gradient" if ratio < 1 else "exploding gradient"
    # Adam divides a gradient by its size; only far below its eps it cannot make up for what vanishes
    ratios = [weight.update_ratio for _, weight in case.weights]
    note = ratio < 1 and min(ratios) >= VANISHED * max(ratios)
    found = f"over {len(known)} layers, from {last} back to {first}, the gradient becomes {ratio:.2g} times what it was"
    path, base = _base(neuron.surrogate)
    scale = getattr(base, "scale", None)
    if scale is None:
        yield Finding(
            illness,
            [first],
            found,
            f"multiply the surrogate's derivative by {1 / each:.2g}",
            note=note,
        )
        return
    better = _tidy(scale / each)
    advice = f"scale the surrogate from {scale:g} to {better:g}, so that each layer passes on as much as arrives"
    yield Finding(illness, [first], found, advice, {f"{path}.scale": better}, note)


def _unmasked(layer: Layer) -> float:
    left = layer.mask_left or [1.0] * len(layer.gradient)
    return math.sqrt(sum((g / m) ** 2 for g, m in zip(layer.gradient, left) if m > 0))


def _through_time(case: _Case) -> Iterator[Finding]:
    T = case.vitals.T
    if T < 2 or not case.layers or case.vitals.static:
        return
    # of the last layer: to those before it a BatchNorm over time hands a little of every timestep's gradient
    name, layer, neuron = case.layers[-1]
    early = math.sqrt(sum(g * g for g in layer.gradient[: T // 2]))
    if not early < FORGOTTEN * layer.gradient_norm:
        return
    share = early / layer.gradient_norm
    found = f"the first half of the {T} timesteps gets {share:.1g} of its gradient, so that nothing early is learned"
    if not neuron.temporal_gradient:
        changes: dict[str, Any] = {"neuron.temporal_gradient": True}
        advice = "let the gradient flow back through time"
    else:
        tau = neuron.constants()[0]
        tau = float(torch.as_tensor(tau).detach().double().mean())
        longer = _tidy(1 / (1 - 0.1 ** (2 / T)))  # a tenth after half of the timesteps
        if longer <= tau:
            readout = {"readout": "Mean()"} if isinstance(case.recipe.readout, values.Last) else {}
            yield Finding("forgotten timesteps", [name], found, "read out every timestep", readout)
            return
        changes = {"neuron.tau": longer}
        advice = f"raise tau from {tau:.3g} to {longer:g}, which keeps a tenth over half of them, or read out every timestep"
    yield Finding("forgotten timesteps", [name], found, advice, changes)


def _through_reset(case: _Case) -> Iterator[Finding]:
    ill = {}
    for name, layer, _ in case.layers:
        if layer.reset_ratio and (worst := max(layer.reset_ratio)) > RESET:
            ill[name] = worst
    if not ill:
        return
    worst = max(ill.values())
    found = f"the gradient through the reset is {worst:.2g} times as large as all else that arrives"
    advice = "detach the reset, or widen the surrogate until theta times its peak is below 1"
    yield Finding("reset dominates", list(ill), found, advice, {"neuron.reset_gradient": 0.0})


# ---- steps ---------------------------------------------------------------------------------------------------------------


def _steps(case: _Case) -> Iterator[Finding]:
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
        lower = _tidy(lr * 0.05 / largest if math.isfinite(largest) else lr / 1000)
        found = f"a step changes the weights by {_times(largest)} their own size, so that nothing stays of what was learned"
        yield Finding(
            "steps too large",
            far,
            found,
            f"lower the learning rate from {lr:g} to {lower:g}",
            {"optimizer.lr": lower},
        )
        return
    way = largest * case.steps / 2  # a cosine's mean is half its peak
    if way < NEAR and case.steps:
        right = min(0.05, max(0.01, 10 * NEAR / case.steps))
        higher = _tidy(lr * right / largest) if largest > 0 else 1e-3
        found = (
            f"a step changes the weights by {largest:.1g} of their size at most; all {case.steps:,} steps, if each "
            f"went the same way, by {way:.1g}"
        )
        yield Finding(
            "steps too small",
            [],
            found,
            f"raise the learning rate from {lr:g} to {higher:g}",
            {"optimizer.lr": higher},
        )


# ---- answers -------------------------------------------------------------------------------------------------------------


def _answers(case: _Case) -> Iterator[Finding]:
    v = case.vitals
    chance = math.log(v.classes)
    if v.logit_spread < CONSTANT:
        found = f"the answer is the same for every sample (its logits vary by {v.logit_spread:.1g} of their size)"
        yield Finding(
            "constant answer",
            [],
            found,
            "look at what stands between the last spiking layer and the readout",
        )
    elif v.cross_entropy > LOUD * chance:
        found = (
            f"the cross-entropy is {v.cross_entropy:.3g}, answers at random cost {chance:.3g}: the logits are too large "
            f"({v.logit_scale:.2g} around their mean)"
        )
        advice = f"divide the outputs by {_tidy(v.logit_scale):g}"
        changes = {}
        if case.trained:
            advice, changes = (
                "train anew with a lower learning rate",
                {"optimizer.lr": _tidy(case.recipe.optimizer.lr / 10)},
            )
        yield Finding("logits too large", [], found, advice, changes)
    elif case.trained and v.cross_entropy > CHANCE * chance:
        found = f"after training the cross-entropy is {v.cross_entropy:.3g}, that of answers at random {chance:.3g}"
        advice = "layers, gradients and steps are as they should be: check that labels belong to their samples, or train longer"
        yield Finding("nothing learned", [], found, advice)


_STAGES: Sequence[Sequence[Callable[[_Case], Iterator[Finding]]]] = (
    (_blank, _one_label),
    (_input_scale,),
    (_firing,),
    (_outside,),
    (_flat,),
    (_missing, _masked, _through_reset),
    (_through_depth, _through_time),
    (_steps,),
    (_answers,),
)


# ---- notes ---------------------------------------------------------------------------------------------------------------


def _one_timestep(case: _Case) -> Iterator[Finding]:
    if case.vitals.T == 1:
        found = "nothing is carried from one timestep to the next, so tau, the reset and the gradient through time do nothing"
        yield Finding("one timestep", [], found, "take more of them", {"T": 4}, note=True)


def _some_dead(case: _Case) -> Iterator[Finding]:
    for name, layer, _ in case.layers:
        if 0.1 <= layer.dead < DEAD:
            found = f"{_percent(layer.dead)} of the channels did not fire on {case.vitals.samples} samples"
            yield Finding(
                "idle channels", [name], found, "a lower threshold, or fewer channels", note=True
            )


_NOTES = (_one_timestep, _some_dead)


def _tidy(value: float) -> float:
    """Two digits are enough for advice."""
    return float(f"{value:.2g}") if math.isfinite(value) else value


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if math.isfinite(ratio) else "many times"


def _list(names: Sequence[str]) -> str:
    return (
        ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
    )
