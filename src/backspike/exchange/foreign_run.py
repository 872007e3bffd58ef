"""Run a network of another library, see what its layers do, and hold ours to it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data.formats import one_line
from ..errors import ExchangeError
from ..neuron.hooks import observe, on_call
from .foreign_neuron import library, runs_sequences

TOLERANCE = 1e-9  # of the outputs in float64, relative to the largest
# what a forward may call as a function between two layers, and is recognised by its result
_BETWEEN = (nn.Identity(), nn.Flatten(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.ReLU())


@dataclass(frozen=True)
class Ran:
    """What a network did: the input and output of each watched module, `[T, B, ...]`, by name.

    out: the network's output, or None where it is no tensor.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    out: Tensor | None
    order: list[str]  # of the calls


def run(theirs: nn.Module, x: Tensor, watched: dict[str, nn.Module], by_step: bool) -> Ran:
    """Run the network from rest on x, timestep by timestep or at once."""
    calls: list[tuple[str, Tensor, Tensor]] = []

    def see(name: str, inputs: tuple[Any, ...], output: Any) -> None:
        calls.append((name, inputs[0].detach().clone(), _first(output).clone()))

    _reset(theirs)
    try:
        with torch.no_grad(), on_call(watched, see):
            out = _by_step(theirs, x) if by_step else _first(theirs(x))
    except ExchangeError:
        raise
    except Exception as error:  # code of anybody
        raise ExchangeError(
            f"the {type(theirs).__name__} does not run on the sample: {one_line(error)}"
        ) from error
    finally:
        _reset(theirs)
    inputs, outputs = {}, {}
    for name, m in watched.items():
        mine = [(a, b) for label, a, b in calls if label == name]
        if mine:
            join = torch.cat if runs_sequences(m) else torch.stack
            inputs[name], outputs[name] = (join(list(values)) for values in zip(*mine))
    return Ran(inputs, outputs, out, [name for name, _, _ in calls])


def _by_step(theirs: nn.Module, x: Tensor) -> Tensor | None:
    state, out = None, []
    keeps_state = library(theirs) == "norse"  # a SequentialState
    for x_t in x:
        y = theirs(x_t, state) if keeps_state else theirs(x_t)
        state = y[1] if keeps_state else None
        out.append(_first(y))
    return torch.stack(out) if all(isinstance(y, Tensor) for y in out) else None


def _first(y: Any) -> Any:
    while isinstance(y, tuple | list) and y:
        y = y[0]
    return y if isinstance(y, Tensor) else None


def _reset(theirs: nn.Module) -> None:
    for m in theirs.modules():
        if library(m) == "spikingjelly" and hasattr(m, "_memories"):
            m.reset()  # type: ignore[operator]
        elif library(m) == "snntorch" and hasattr(m, "reset_mem"):
            m.reset_mem()  # type: ignore[operator]


def chain(ran: Ran, module: nn.Module) -> tuple[list[str | nn.Module], Tensor]:
    """The layers of a network that loops over time, in the order in which each feeds the next.

    Returns their names, torch layers for functions called between them, and the first one's input.
    Raises ExchangeError where something else happens between two layers.
    """
    order = list(dict.fromkeys(ran.order))
    steps = len(ran.order) // max(1, len(order))
    if not order or ran.order != order * steps:
        raise ExchangeError(
            f"{type(module).__name__} does not call the same layers at every timestep; write it "
            "with bs.Sequential and bring the weights with bs.convert_state_dict"
        )
    layers: list[str | nn.Module] = [order[0]]
    for before, name in itertools.pairwise(order):
        if between := _between(ran.outputs[before], ran.inputs[name]):
            layers += [b for b in between if not isinstance(b, nn.Identity)]
        else:
            raise ExchangeError(
                f"{name} does not get the output of {before}: between them, "
                f"{type(module).__name__} does something that cannot be seen from outside; write "
                "it as a module, or write the network with bs.Sequential and bring the weights "
                "with bs.convert_state_dict"
            )
        layers.append(name)
    return layers, ran.inputs[order[0]]


def _between(y: Tensor, x: Tensor) -> tuple[nn.Module, ...]:
    """The functions that make x from y, `[T, B, ...]`; empty if unknown."""
    for first in _BETWEEN:
        for second in _BETWEEN:
            try:
                z = second(first(y.flatten(0, 1)))
            except (RuntimeError, IndexError):  # not for this shape
                continue
            if z.shape == x.flatten(0, 1).shape and torch.equal(z, x.flatten(0, 1)):
                return first, second
    return ()


def compare(ran: Ran, ours: nn.Module, x: Tensor, twins: dict[str, nn.Module]) -> tuple[int, int]:
    """Hold ours, run on x, to what theirs did. Returns the number of layers and of equal spikes.

    twins: our spiking layer for each neuron of theirs that spikes. The outputs are compared where
    theirs has a tensor of the same shape.
    Raises ExchangeError naming the first layer and timestep with another spike.
    """
    spikes: dict[str, Any] = {}
    with torch.no_grad(), observe(ours, lambda name, _, out: spikes.__setitem__(name, out)):
        out = ours(x)
    labels = {m: name for name, m in ours.named_modules()}
    ran_twins = {name: twin for name, twin in twins.items() if name in ran.outputs}
    total = 0
    for name, twin in ran_twins.items():
        theirs, found = ran.outputs[name], spikes[labels[twin]]
        if theirs.shape != found.spikes.shape:
            raise ExchangeError(
                f"{name} gave {list(theirs.shape)} and the converted one "
                f"{list(found.spikes.shape)}: neurons must run once per timestep"
            )
        different = theirs != found.spikes
        if different.any():
            t = int(different.flatten(1).any(1).nonzero()[0])
            z = (found.membrane - _threshold(twin))[t][different[t]]
            tie = "; a tie fires here" if float(z.abs().min()) < 1e-12 else ""
            raise ExchangeError(
                f"the networks differ first at {name}, timestep {t}: {int(different[t].sum())} of "
                f"{different[t].numel()} spikes, {float(z.abs().min()):.1g} from the threshold{tie}"
            )
        total += int(theirs.sum())
    _compare_outputs(ran.out, out)
    return len(ran_twins), total


def _threshold(neuron: Any) -> Any:
    return neuron.v_threshold if neuron.threshold is None else neuron.threshold.detach()


def _compare_outputs(theirs: Tensor | None, ours: Tensor) -> None:
    if theirs is None or theirs.shape != ours.shape:
        return
    bound = TOLERANCE * max(1.0, float(theirs.abs().max()))
    if not torch.allclose(ours, theirs.to(ours.dtype), rtol=0, atol=bound):
        raise ExchangeError(
            "all spikes are equal, but the outputs differ by up to "
            f"{float((ours - theirs).abs().max()):.2g}"
        )
