"""Why does a network not learn? Turns its vitals into findings, each with a change to try.

Checks follow the signal: data, spikes, norms, gradients, steps, answers. Once a stage has a
problem, later stages are not checked, because a single silent layer makes every gradient vanish.
Fix it and run the doctor again. All limits are at the top of this file with their reasons;
docs/doctor.md has the measurements behind them.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
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
# length of a step relative to the weights; at 1, nothing of the weights remains
FAR = 1.0
# length of all steps of the recipe, were they all in one direction, relative to the weights
NEAR = 0.1
# cross-entropy relative to log K, the cross-entropy of random answers
LOUD = 2.0
CHANCE = 0.95
# standard deviation of a logit over the samples, relative to the logits
CONSTANT = 1e-3
# an advised threshold is exceeded by this share of the potentials
RIGHT_RATE = 0.2
# an advised surrogate covers this share of the potentials
RIGHT_SUPPORT = 0.5


@dataclass(frozen=True)
class Finding:
    """A problem that keeps a network from learning or, if `note` is set, something worth knowing.

    changes: recipe fields to try with `recipe.replace(finding.changes)`; empty if the problem has
        to be solved elsewhere.
    own_model: the network is the user's, so its neurons have to be changed in Python.
    """

    problem: str
    # names of layers or tensors; [] for the whole network
    where: list[str]
    found: str
    advice: str
    changes: dict[str, Any] = field(default_factory=dict)
    note: bool = False
    own_model: bool = False

    @property
    def illness(self) -> str:
        """The former name of `problem`."""
        return self.problem

    @property
    def flags(self) -> str:
        """The changes as command-line options."""
        return to_flags(self.changes)

    @property
    def instructions(self) -> str:
        """The changes as command-line options or, for an own model, as Python; "" without any."""
        return to_python(self.changes) if self.own_model else self.flags

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a log."""
        plain = dataclasses.asdict(self)
        del plain["own_model"]
        changes = {name: flag_text(value) for name, value in self.changes.items()}
        return {**plain, "changes": changes, "flags": self.instructions}

    def __str__(self) -> str:
        places = f"{_list(self.where)}: " if self.where else ""
        instructions = f": {self.instructions}" if self.changes else ""
        return f"{self.problem}: {places}{self.found}; {self.advice}{instructions}"


def to_flags(changes: Mapping[str, Any]) -> str:
    """Recipe fields as command-line options."""
    return " ".join(f"--{name} {shlex.quote(flag_text(value))}" for name, value in changes.items())


def to_python(changes: Mapping[str, Any]) -> str:
    """Recipe fields as Python for a model of the user's own: neuron options, other fields."""
    neuron = [
        f"{name.removeprefix('neuron.')}={value!r}"
        for name, value in changes.items()
        if name.startswith("neuron.")
    ]
    others = {name: value for name, value in changes.items() if not name.startswith("neuron.")}
    parts = [f"bs.LIF(..., {', '.join(neuron)})"] if neuron else []
    parts += [f"recipe.replace({others!r})"] if others else []
    return " and ".join(parts)


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
    case = _Case(vitals, model, recipe, steps, trained, own_model)
    notes = [note for check in _NOTES for note in check(case)]
    for stage in _STAGES:
        found = [finding for check in stage for finding in check(case)]
        if any(not finding.note for finding in found):
            return case.attributed(found + notes)
        notes += found
    return case.attributed(notes)


@dataclass(frozen=True)
class _Case:
    vitals: Vitals
    model: nn.Module
    recipe: Recipe
    steps: int
    trained: bool
    own_model: bool

    @property
    def layers(self) -> list[tuple[str, Layer, LIF]]:
        spiking = spiking_layers(self.model)
        return [(name, layer, spiking[name]) for name, layer in self.vitals.layers.items()]

    @property
    def weights(self) -> list[tuple[str, Weight]]:
        return list(self.vitals.weights.items())

    def attributed(self, findings: list[Finding]) -> list[Finding]:
        return [dataclasses.replace(f, own_model=self.own_model) for f in findings]

    def change_surrogate(
        self, neuron: LIF, changed: Surrogate, path: str, value: Any
    ) -> dict[str, Any]:
        """The field of the recipe's surrogate, or the whole surrogate if the neuron has another."""
        if not self.own_model and self.recipe.neuron.surrogate == neuron.surrogate:
            return {f"neuron.surrogate{path}": value}
        return {"neuron.surrogate": changed}


# ---- data ------------------------------------------------------------------------------------


def _blank(case: _Case) -> Iterator[Finding]:
    v = case.vitals
    advice = "check what the data set returns"
    if v.input_rms == 0:
        yield Finding("blank input", [], "all sample values are 0", advice)
    elif v.input_constant:
        yield Finding("equal input", [], f"all {v.samples} samples are the same", advice)


def _one_label(case: _Case) -> Iterator[Finding]:
    v = case.vitals
    if v.labels == 1 and v.classes > 1 and v.samples >= 4 * v.classes:
        found = f"all {v.samples} randomly drawn samples have the same one of {v.classes} labels"
        yield Finding("one label", [], found, "check the labels that the data set returns")


# ---- spikes ----------------------------------------------------------------------------------


def _no_spiking_layer(case: _Case) -> Iterator[Finding]:
    if case.layers:
        return
    if idle := list(spiking_layers(case.model)):
        found = "the network does not call its spiking layers"
        yield Finding("no spiking layer", idle, found, "call them in the model's forward")
    else:
        found = "the network has no spiking layer"
        advice = "put one, such as bs.LIF(), after each layer with weights except the last"
        yield Finding("no spiking layer", [], found, advice)


def _input_scale(case: _Case) -> Iterator[Finding]:
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
        advice = f"{verb} the samples by {_tidy(factor):g}"
        yield Finding("input out of scale", [name], found, advice)


def _firing(case: _Case) -> Iterator[Finding]:
    """The first layer that fires too little or too much; later ones cannot tell samples apart."""
    for name, layer, neuron in case.layers:
        if layer.spikes_per_sample < SPIKES:
            found = (
                f"the whole layer emits only {layer.spikes_per_sample:.2g} spikes per sample, so "
                "most samples send no signal to the next layer"
            )
        elif layer.dead >= DEAD:
            found = f"{_percent(layer.dead)} of the channels never fire"
        elif layer.saturated >= SATURATED:
            found = f"{_percent(layer.saturated)} of the channels always fire, whatever the input"
        else:
            continue
        problem = "saturated layer" if layer.saturated >= SATURATED else "silent layer"
        yield _change_threshold(problem, name, layer, neuron, found)
        return


def _change_threshold(problem: str, name: str, layer: Layer, neuron: LIF, found: str) -> Finding:
    """Advises the threshold that a fifth of the potentials exceed."""
    theta = _tidy(layer.potential[f"{1 - RIGHT_RATE:g}"])
    now = float(torch.as_tensor(neuron.constants()[1]).detach().double().mean())
    floor = neuron.v_reset or 0.0
    if theta <= max(floor, 1e-3):
        where = f"90 % of the potentials are at or below {layer.potential['0.9']:.2g}, about rest"
        advice = "put a norm before the layer, or increase its weights or its bias"
        return Finding(problem, [name], f"{found}; {where}", advice)
    verb = "lower" if theta < now else "raise"
    advice = (
        f"{verb} the threshold from {now:.3g} to {theta:g}, which 20 % of the potentials exceed"
    )
    return Finding(problem, [name], found, advice, {"neuron.v_threshold": theta})


def _outside(case: _Case) -> Iterator[Finding]:
    bad = [item for item in case.layers if item[1].support < SUPPORT]
    if not bad:
        return
    name, layer, neuron = min(bad, key=lambda item: item[1].support)
    found = (
        f"only {_percent(layer.support)} of the potentials of {name} are within the surrogate, "
        f"where gradients pass; half of them are {layer.distance['0.5']:.2g} or more away from "
        f"the threshold, and the surrogate reaches {reach(neuron):.2g}"
    )
    factor = max(layer.distance[f"{RIGHT_SUPPORT:g}"] / reach(neuron) for _, layer, neuron in bad)
    advice = (
        f"widen the surrogate by a factor of {factor:.3g}, or move the potentials towards it with "
        "--potential \"PDA(target='window')\""
    )
    where = [name for name, *_ in bad]
    yield Finding("outside the surrogate", where, found, advice, _widened(case, neuron, factor))


def reach(neuron: LIF) -> float:
    """The distance from the threshold within which the derivative exceeds 1 % of its peak."""
    z = torch.logspace(-5, 5, 4001)[:, None, None]
    width = neuron.constants()[2]
    if width is not None and width.dim():
        z = z.expand(-1, 1, len(width))
    inside = in_support(neuron, z).flatten(1).any(1)
    return float(z[inside].max()) if bool(inside.any()) else 1e-5


def _base(surrogate: Surrogate) -> tuple[str, Surrogate]:
    """The surrogate inside masks and learned widths, with the path that leads to it."""
    path = ""
    while isinstance(surrogate, Masked | Parametric):
        path, surrogate = f"{path}.base", surrogate.base
    return path, surrogate


def _with_base(surrogate: Surrogate, base: Surrogate) -> Surrogate:
    """The surrogate with another one inside its masks and learned widths."""
    if isinstance(surrogate, Masked | Parametric):
        return dataclasses.replace(surrogate, base=_with_base(surrogate.base, base))
    return base


def _changed_base(case: _Case, neuron: LIF, name: str, value: float) -> dict[str, Any]:
    """A change of one field of the neuron's innermost surrogate."""
    path, base = _base(neuron.surrogate)
    new: Any = dataclasses.replace(base, **{name: value})  # type: ignore[type-var]
    whole = _with_base(neuron.surrogate, new)
    return case.change_surrogate(neuron, whole, f"{path}.{name}", value)


def _widened(case: _Case, neuron: LIF, factor: float) -> dict[str, Any]:
    """The surrogate `factor` times as wide; a triangle if its width cannot be set."""
    path, base = _base(neuron.surrogate)
    width, alpha = (getattr(base, name, None) for name in ("width", "alpha"))
    if isinstance(width, float | int):
        return _changed_base(case, neuron, "width", _tidy(width * factor))
    if isinstance(alpha, float | int):
        return _changed_base(case, neuron, "alpha", _tidy(alpha / factor))
    triangle = Triangle(alpha=_tidy(1 / (reach(neuron) * factor)))
    return case.change_surrogate(neuron, _with_base(neuron.surrogate, triangle), path, triangle)


# ---- norms -----------------------------------------------------------------------------------


def _flat(case: _Case) -> Iterator[Finding]:
    flat = {name: share for name, share in case.vitals.flat_norms.items() if share >= FLAT}
    if not flat:
        return
    norms = dict(case.model.named_modules())
    name = next(iter(flat))
    weight: Any = norms[name].weight
    found = f"{_percent(flat[name])} of the channels of {name} have the same output for all samples"
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
            advice = f"multiply the samples by {_tidy(1 / case.vitals.input_rms):g}"
    yield Finding("flat norm", list(flat), found, advice, changes)


# ---- gradients -------------------------------------------------------------------------------


def _missing(case: _Case) -> Iterator[Finding]:
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


def _through_depth(case: _Case) -> Iterator[Finding]:
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
    scale = getattr(_base(neuron.surrogate)[1], "scale", None)
    if scale is None:
        advice = f"multiply the surrogate's derivative by {1 / each:.2g}"
        yield Finding(problem, [first], found, advice, note=note)
        return
    better = _tidy(scale / each)
    advice = (
        f"change the surrogate's scale from {scale:g} to {better:g}, so that each layer passes on "
        "as much as it receives"
    )
    changes = _changed_base(case, neuron, "scale", better)
    yield Finding(problem, [first], found, advice, changes, note)


def _unmasked(layer: Layer) -> float:
    left = layer.mask_left or [1.0] * len(layer.gradient)
    return math.sqrt(sum((g / m) ** 2 for g, m in zip(layer.gradient, left) if m > 0))


def _through_time(case: _Case) -> Iterator[Finding]:
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
        longer = _tidy(1 / (1 - 0.1 ** (2 / T)))
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


def _through_reset(case: _Case) -> Iterator[Finding]:
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


# ---- steps -----------------------------------------------------------------------------------


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
        found = (
            f"a step changes the weights by {_times(largest)} their own size, so nothing that was "
            "learned remains"
        )
        advice = f"lower the learning rate from {lr:g} to {lower:g}"
        yield Finding("steps too large", far, found, advice, {"optimizer.lr": lower})
        return
    # the mean of a cosine schedule is half its peak
    distance = largest * case.steps / 2
    if distance < NEAR and case.steps:
        right = min(0.05, max(0.01, 10 * NEAR / case.steps))
        higher = _tidy(lr * right / largest) if largest > 0 else 1e-3
        found = (
            f"a step changes the weights by at most {largest:.1g} of their size, and all "
            f"{case.steps:,} steps, even in one direction, by {distance:.1g}"
        )
        advice = f"raise the learning rate from {lr:g} to {higher:g}"
        yield Finding("steps too small", [], found, advice, {"optimizer.lr": higher})


# ---- answers ---------------------------------------------------------------------------------


def _answers(case: _Case) -> Iterator[Finding]:
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
        advice, changes = f"divide the outputs by {_tidy(v.logit_scale):g}", {}
        if case.trained:
            advice = "train again with a lower learning rate"
            changes = {"optimizer.lr": _tidy(case.recipe.optimizer.lr / 10)}
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


_STAGES: Sequence[Sequence[Callable[[_Case], Iterator[Finding]]]] = (
    (_blank, _one_label),
    (_no_spiking_layer,),
    (_input_scale,),
    (_firing,),
    (_outside,),
    (_flat,),
    (_missing, _masked, _through_reset),
    (_through_depth, _through_time),
    (_steps,),
    (_answers,),
)


# ---- notes -----------------------------------------------------------------------------------


def _one_timestep(case: _Case) -> Iterator[Finding]:
    if case.vitals.T == 1:
        found = (
            "with T = 1 no state is carried between timesteps, so tau, the reset and the gradient "
            "through time have no effect"
        )
        yield Finding("one timestep", [], found, "use more timesteps", {"T": 4}, note=True)


def _some_dead(case: _Case) -> Iterator[Finding]:
    for name, layer, _ in case.layers:
        if 0.1 <= layer.dead < DEAD:
            share, samples = _percent(layer.dead), case.vitals.samples
            found = f"{share} of the channels did not fire on {samples} samples"
            advice = "lower the threshold, or use fewer channels"
            yield Finding("idle channels", [name], found, advice, note=True)


_NOTES = (_one_timestep, _some_dead)


def _tidy(value: float) -> float:
    """Rounds to two significant digits, enough for advice."""
    return float(f"{value:.2g}") if math.isfinite(value) else value


def flag_text(value: Any) -> str:
    """A value as text that the command line parses."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if math.isfinite(ratio) else "many times"


def _list(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{names[0]}, {names[1]} and {len(names) - 2} more"
