"""Whether two descriptions of a network fire alike: every spike, every output.

One of them is run again in torch along the spikes that the other one gave. Where a neuron would
decide otherwise, its membrane must lie within rounding of the threshold, and the run goes on with
the given spike; so one membrane at the threshold does not hide what comes after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.formats import one_line
from ..errors import ExchangeError
from ..neuron.hooks import observe
from .onnx_steps import Once, Rendered, Step, Trace, loop, numbered

# relative to the largest membrane of a timestep, or the largest output
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
MOST_TIES = 1e-3  # of all decisions of a layer; more of them are no accident of rounding


@dataclass
class Found:
    """What was compared: spikes that both have, and decisions within rounding of the threshold."""

    spikes: int = 0
    ties: int = 0

    def add(self, other: Found) -> None:
        self.spikes += other.spikes
        self.ties += other.ties


class Follow(Trace):
    """Run along given spikes `[T, B, ...]` by key, and judge every decision that differs."""

    def __init__(self, given: Mapping[str, Tensor], what: str) -> None:
        super().__init__()
        self.given, self.what = given, what
        self.found = Found()

    def run(self, key: str, layer: Step, x: Tensor) -> Tensor:
        neuron = layer.spiking
        if neuron is None:
            return loop(layer, x)
        given = self.given.get(key)
        if given is None or given.shape != x.shape:
            shape = "none" if given is None else list(given.shape)
            raise ExchangeError(
                f"not written: {key!r} gives {list(x.shape)} in the network, {self.what} {shape}"
            )
        timestep, found = iter(range(len(given))), Found()

        def check(distance: Tensor, own: Tensor) -> Tensor:
            t = next(timestep)
            s = given[t].to(own)
            different = s != own
            if different.any():
                scale = max(1.0, float(distance.abs().max()))
                wrong = different & ~(distance.abs() <= TOLERANCE[own.dtype] * scale)
                if wrong.any():
                    raise ExchangeError(
                        f"not written: {self.what} differs first at {key!r}, timestep {t}: "
                        f"{int(wrong.sum())} of {wrong.numel()} spikes; please report this"
                    )
                found.ties += int(different.sum())
            found.spikes += int((s * own).sum())
            return s

        neuron.check = check
        try:
            y = loop(layer, x)
        finally:
            neuron.check = None
        if found.ties > max(1, MOST_TIES * y.numel()):
            raise ExchangeError(
                f"not written: {self.what} decides {found.ties} ties of {key!r} otherwise; "
                "please report this"
            )
        self.found.add(found)
        return y


def follow(
    rendered: Rendered, given: Mapping[str, Tensor], outputs: Tensor, x: Tensor, what: str
) -> Found:
    """Hold spikes and outputs, which `what` gave for x, to the network in torch.

    Raises ExchangeError for the first layer and timestep with another spike, or other outputs.
    """
    trace = Follow(given, what)
    hold(rendered(x, trace), outputs, what)
    return trace.found


def hold(expected: Tensor, found: Tensor, what: str) -> None:
    """Raises ExchangeError if outputs differ by more than rounding."""
    if expected.shape != found.shape:
        raise ExchangeError(
            f"not written: the network gives {list(expected.shape)}, {what} {list(found.shape)}"
        )
    bound = TOLERANCE[expected.dtype] * max(1.0, float(expected.abs().max()))
    if not torch.allclose(found, expected, rtol=0, atol=bound, equal_nan=True):
        raise ExchangeError(
            f"not written: all spikes of {what} are equal, but its outputs differ by "
            f"{float((found - expected).abs().max()):.3g}; please report this"
        )


def hold_to_network(rendered: Rendered, network: nn.Module, x: Tensor) -> None:
    """Hold a network's rendering to the network itself."""
    given: dict[str, Tensor] = {}
    names = {n.name: layer.name for layer in rendered.layers.values() if (n := layer.spiking)}

    def see(name: str, spikes: Tensor | None) -> None:
        assert spikes is not None
        given[numbered(names.get(name, name), given)] = spikes

    with observe(network, lambda name, _, out: see(name or "network", out.spikes)):
        try:
            outputs = network(x)
        except Exception as error:  # the code of the network may be anybody's
            raise ExchangeError(
                f"the network fails on a sample of shape {list(x.shape)}: {one_line(error)}"
            ) from error
    follow(rendered, given, outputs, x, "its rendering in plain operations")


def hold_to_steps(rendered: Rendered, x: Tensor) -> None:
    """Raises ExchangeError if a timestep needs more of earlier ones than the states of layers."""
    once, steps = Once(), []
    for x_t in x:
        steps.append(rendered(x_t[None], once))
        once = Once(once.after)
    found, whole = torch.cat(steps), rendered(x, Trace())
    bound = TOLERANCE[whole.dtype] * max(1.0, float(whole.abs().max()))
    if found.shape != whole.shape or not torch.allclose(found, whole, rtol=0, atol=bound):
        raise ExchangeError(
            "the network carries more from timestep to timestep than the states of layers of this "
            "package, so single timesteps give other outputs; export without step"
        )
