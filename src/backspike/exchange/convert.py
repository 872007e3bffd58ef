"""`convert`: a living network of snnTorch, SpikingJelly or Norse as one of ours, weights and all.

Three kinds of networks, by who runs the loop over time:

* Modules in a row (nn.Sequential and the libraries' containers) become a `bs.Sequential`.
* A module with code of its own whose neurons keep their states is copied with our layers in the
  place of theirs; its code runs as it is.
* A module with a loop over time in its code is run once on the sample to see which layer feeds
  which; these layers become a `bs.Sequential`.

None of the libraries is imported; `docs/bridges.md` has the equations side by side.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn

from ..errors import ExchangeError
from ..layers.from_torch import Folded, Folding
from ..layers.over_time import OverTime
from ..layers.sequential import Sequential
from ..neuron.lif import LIF
from ..surrogate import Surrogate
from . import foreign_layer as layers
from . import foreign_neuron as neurons
from . import foreign_run as runs

logger = logging.getLogger("backspike")
# these act on the last dimensions or on single elements, so that T in front changes nothing
_TIME_IN_FRONT = (nn.Linear, nn.Identity, nn.LayerNorm, nn.Dropout, nn.ReLU, nn.Sigmoid, nn.Tanh)
_INSTEAD = "write the network with bs.Sequential and bring the weights with bs.convert_state_dict"


def convert(
    module: nn.Module, sample: Tensor | None = None, *, surrogate: Surrogate | None = None
) -> nn.Module:
    """Return a network of backspike that computes what a network of another library computes.

    module: a network of snnTorch, SpikingJelly (2.0, 0.0.0.0.14, 0.0.0.0.12) or Norse; it stays as
    it is. The result maps `[T, B, ...] -> [T, B, ...]`, starts from rest at each call, and gives
    the output of the last layer; states that the original returns too are left out.
    sample: an input of the original, `[T, B, ...]`, or whatever a module takes that loops over
    time itself. Both networks run on it in float64, in evaluation mode, and every spike of every
    layer must be equal. Only modules in a row can be converted without a sample.
    surrogate: of all neurons, in place of the original's; needed where it has no equal here.

    `result.notes` says what cannot be equal, such as ties, and what was compared.
    Raises ExchangeError, one line, naming the layer: one without a counterpart, or the first that
    fires at another time.
    """
    converter = _Converter(module, surrogate)
    if sample is None:
        if not converter.in_a_row:
            raise ExchangeError(
                f"{type(module).__name__} has code of its own, which must be run to be converted: "
                f"give sample=, an input of it; or {_INSTEAD}"
            )
        ours = converter.row()
    else:
        ours = _proven(converter, sample, surrogate)
    for note in converter.notes:
        logger.info("convert: %s", note)
    ours.notes = converter.notes  # type: ignore[assignment]
    return ours


def _proven(converter: _Converter, sample: Tensor, surrogate: Surrogate | None) -> nn.Module:
    wide = _Converter(_detached_copy(converter.module).double().eval(), surrogate)
    for m in wide.neurons.values():
        m.register_forward_hook(_in_float64)
    x = sample.detach().to(next(wide.module.parameters(), sample).device)
    x = x.double() if x.is_floating_point() else x
    if wide.in_a_row:
        ran = runs.run(wide.module, x, wide.neurons, not wide.whole)
        ours, twin = converter.row(), wide.row()
    elif (stepped := _called_by_step(wide, x)) is not None:
        ran = stepped
        ours, twin = converter.own_code(), wide.own_code()
    else:
        ran = runs.run(wide.module, x, wide.leaves(), by_step=False)
        chain, x = runs.chain(ran, wide.module)
        ran = runs.Ran(ran.inputs, ran.outputs, None, ran.order)  # its output is of another kind
        ours, twin = converter.chain(chain), wide.chain(chain)
    count, spikes = runs.compare(ran, twin.eval(), x, wide.twins())
    converter.notes.append(
        f"on a sample {list(x.shape)} in float64: {spikes} spikes in {count} spiking layers, all "
        "equal to the original's" + ("" if spikes or not count else "; no spikes prove little")
    )
    return ours


def _called_by_step(wide: _Converter, x: Tensor) -> runs.Ran | None:
    """What a module of own code does if each call is a timestep, or, on sequences, all of them.

    None if it passes the states of its neurons itself, or loops over time in its code.
    """
    if any(neurons.passes_state(m) for m in wide.neurons.values()):
        return None
    try:
        ran = runs.run(wide.module, x, wide.neurons, not wide.whole)
    except ExchangeError:
        if wide.whole:
            raise
        return None  # the sample may be an input of the whole loop; if not, that run says so
    return ran if all(len(y) == len(x) for y in ran.outputs.values()) or wide.whole else None


def _in_float64(m: Any, _args: Any, y: Any) -> Any:
    """snnTorch's spikes are float32 whatever its input is."""
    if hasattr(m, "spk"):
        m.spk = m.spk.double()
    if isinstance(y, Tensor):
        return y.double()
    return (y[0].double(), *y[1:]) if isinstance(y[0], Tensor) else y


def _detached_copy(module: nn.Module) -> nn.Module:
    """A copy also of neurons that have run: a state with a graph cannot be copied."""
    memo: dict[int, Any] = {}
    for m in module.modules():
        states = getattr(m, "_memories", {})
        for value in (*vars(m).values(), *m._buffers.values(), *states.values()):
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


class _Converter:
    """The counterparts of one network's modules."""

    def __init__(self, module: nn.Module, surrogate: Surrogate | None) -> None:
        self.module, self.surrogate = module, surrogate
        self.names = {m: name for name, m in module.named_modules()}
        self.neurons = {name: m for m, name in self.names.items() if neurons.is_neuron(m)}
        self.made: dict[nn.Module, nn.Module] = {}
        self.notes: list[str] = []
        for m, name in self.names.items():
            if layers.keeps_state(m) and not self._inside_neuron(name):
                raise ExchangeError(f"{self._label(m)}: it has no equal here")
        if not self.neurons:
            raise ExchangeError(
                f"{type(module).__name__} has no neuron of snnTorch, SpikingJelly or Norse; "
                "bs.from_torch makes a network of ReLUs spiking"
            )
        self.whole = any(
            layers.on_sequences(m) or (neurons.is_neuron(m) and neurons.runs_sequences(m))
            for m in self.names
        )
        self.in_a_row = self._known(module)
        self._note()

    def _known(self, m: nn.Module) -> bool:
        if layers.is_container(m):
            return all(self._known(child) for child in m.children())
        return neurons.is_neuron(m) or layers.is_layer(m) or layers.is_lifted(m)

    def _note(self) -> None:
        kinds = {neurons.library(m) for m in self.neurons.values()} & {"snntorch", "norse"}
        self.notes += [
            neurons.TIES.format(library=neurons.LIBRARIES[kind]) for kind in sorted(kinds)
        ]
        for name, m in self.neurons.items():
            if getattr(m, "reset_mechanism", "") == "subtract" and not getattr(m, "reset_delay", 1):
                self.notes.append(neurons.DOUBLE_RESET.format(name=name))
        if (
            any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.names)
            and not self.whole
        ):
            self.notes.append(
                "in training, BatchNorm takes its statistics over all timesteps, not one by one"
            )
        if any(layers.keeps_mask(m) for m in self.names):
            self.notes.append("in training, dropout draws a mask at each timestep, not one for all")

    def _label(self, m: nn.Module) -> str:
        origin = neurons.LIBRARIES.get(neurons.library(m))
        kind = type(m).__name__ + (f" of {origin}" if origin else "")
        return f"{self.names[m] or 'the network'} ({kind})"

    # ---- modules -------------------------------------------------------------------------------

    def neuron(self, m: nn.Module) -> nn.Module:
        if m in self.made:
            raise ExchangeError(f"{self.names[m]} is used twice; give each place its own neuron")
        try:
            made = neurons.read(m, self.surrogate)
        except ExchangeError as error:
            raise ExchangeError(f"{self._label(m)}: {error}") from None
        self.made[m] = _as(m, made)
        return made

    def layer(self, m: nn.Module) -> nn.Module:
        """A stateless layer or a row of them, without time."""
        if layers.is_container(m):
            return _as(m, nn.Sequential(*map(self.layer, m.children())))
        try:
            if not layers.is_layer(m):
                raise ExchangeError("it has no equal here")
            return layers.copy_layer(m)
        except ExchangeError as error:
            raise ExchangeError(f"{self._label(m)}: {error}") from None

    def on_sequence(self, m: nn.Module, whole: bool) -> nn.Module:
        """Our counterpart of m on `[T, B, ...]`. whole: m itself takes sequences."""
        if neurons.is_neuron(m):
            if neurons.runs_sequences(m) != whole:
                runs_on = "single timesteps" if whole else "sequences"
                raise ExchangeError(
                    f"{self._label(m)} runs on {runs_on}, unlike others; "
                    "functional.set_step_mode(net, 'm') sets them all"
                )
            return self.neuron(m)
        if layers.is_lifted(m):
            inner: Any = m.lifted_module
            return self.on_sequence(inner, whole=False)
        if layers.folds_container(m):
            return _as(m, OverTime(*map(self.layer, m.children())))
        if layers.is_container(m):
            if getattr(m, "return_hidden", False):
                raise ExchangeError(f"{self._label(m)}: set return_hidden=False")
            inside = whole and not layers.loops_over_time(m)
            children = [(name, child) for name, child in m._modules.items() if child is not None]
            parts = {name: self.on_sequence(child, inside) for name, child in children}
            return _as(m, Sequential(OrderedDict(parts)))
        layer = self.layer(m)
        if whole and not layers.folds_time(m) and not isinstance(m, _TIME_IN_FRONT):
            return layer  # it sees `[T, B, ...]` in the original, too
        return _as(m, OverTime(layer))

    # ---- networks ------------------------------------------------------------------------------

    def row(self) -> nn.Module:
        made = self.on_sequence(self.module, self.whole)
        return made if isinstance(made, Sequential) else Sequential(made)

    def chain(self, steps: list[str | nn.Module]) -> nn.Module:
        parts: dict[str, nn.Module] = {}
        for step in steps:
            if isinstance(step, str):
                parts[step.replace(".", "_")] = self.on_sequence(
                    self.module.get_submodule(step), whole=False
                )
            else:
                parts[f"{type(step).__name__.lower()}{len(parts)}"] = OverTime(step)
        return Sequential(OrderedDict(parts))

    def own_code(self) -> nn.Module:
        """A copy of the network with our layers in place of theirs."""
        folding, memo = Folding(), dict[int, Any]()
        for m in self._replaced(self.module):
            if layers.is_layer(m) and not layers.folds_time(m):
                made = self.layer(m)
            elif self.whole:
                made = self.on_sequence(m, whole=True)
            else:
                made = Folded(self.neuron(m), folding)
            if hasattr(m, "step_mode"):  # the code may look at it
                made.step_mode = m.step_mode
            memo[id(m)] = made
        network = copy.deepcopy(self.module, memo)
        if not self.whole:
            folding.attach(network)
        return network

    def _replaced(self, m: nn.Module) -> list[nn.Module]:
        """The modules below m to be replaced, none of which lies in another one."""
        found = []
        for child in m.children():
            timed = any(map(neurons.is_neuron, child.modules())) or any(
                map(layers.on_sequences, child.modules())
            )
            row = self.whole and timed and self._known(child)
            wrapped = layers.is_layer(child) and bool(neurons.library(child))
            if row or wrapped or neurons.is_neuron(child):
                found.append(child)
            else:
                found += self._replaced(child)
        return found

    def leaves(self) -> dict[str, nn.Module]:
        """What is watched in a network that loops over time."""
        return {
            name: m
            for m, name in self.names.items()
            if neurons.is_neuron(m) or (layers.is_layer(m) and not self._inside_neuron(name))
        }

    def _inside_neuron(self, name: str) -> bool:
        return any(name.startswith(f"{neuron}.") for neuron in self.neurons)

    def twins(self) -> dict[str, nn.Module]:
        """Our spiking layer for each neuron that spikes."""
        spiking = {
            name: next((part for part in self.made[m].modules() if isinstance(part, LIF)), None)
            for name, m in self.neurons.items()
            if m in self.made
        }
        return {name: twin for name, twin in spiking.items() if twin is not None}


def _as(theirs: nn.Module, ours: nn.Module) -> nn.Module:
    ours.training = theirs.training
    return ours
