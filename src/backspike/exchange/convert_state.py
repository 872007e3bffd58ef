"""`convert_state_dict`: the weights of another library's network, from its state dict alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExchangeError
from ..neuron.lif import LIF

_LAYER = ("weight", "V")  # a group with one of these belongs to a layer, not to a neuron
_NEURON = ("beta", "alpha", "threshold", "w", "R")
_RESETS = {0: "subtract", 1: "zero", 2: "none"}
Group = dict[str, Tensor]


def convert_state_dict(
    state: Mapping[str, Tensor], net: nn.Module, *, keys: Mapping[str, str] | None = None
) -> dict[str, Tensor]:
    """Return a state dict for `net`, from that of a network of snnTorch, SpikingJelly or Norse.

        net.load_state_dict(bs.convert_state_dict(torch.load("theirs.pt"), net))

    net: a network of backspike with the same layers and constants, written by hand or made by
    `bs.convert`. keys: for each module of theirs, the name of ours, such as {"fc1": "0.0",
    "lif1": "1"}; by default, layers and neurons are matched in their order.
    Learned constants become ours (beta = 1 - 1/tau); fixed ones must be equal to those of `net`,
    and every tensor must have the shape of ours.

    Raises ExchangeError, one line, naming the entry that does not fit.
    """
    theirs, ours = _groups(state), dict(net.named_modules())
    if keys is None:
        pairs = _in_order(theirs, net)
    else:
        if unknown := [name for name in theirs if name not in keys]:
            raise ExchangeError(f"keys= does not name {unknown[0]!r} of the state dict")
        if unknown := [name for name in keys.values() if name not in ours]:
            raise ExchangeError(f"keys= names {unknown[0]!r}, and the network has no such module")
        pairs = [(name, keys[name]) for name in theirs]
    out: dict[str, Tensor] = {}
    for name, target in pairs:
        module, group = ours[target], theirs[name]
        found = _constants(name, group, module) if isinstance(module, LIF) else group
        out |= {f"{target}.{key}".lstrip("."): value for key, value in found.items()}
    _check(out, net.state_dict())
    return out


def _groups(state: Mapping[str, Tensor]) -> dict[str, Group]:
    """The entries of each module, by its name."""
    groups: dict[str, Group] = {}
    for key, value in state.items():
        name, _, leaf = key.rpartition(".")
        if leaf in ("input_weights", "recurrent_weights"):  # of Norse: two layers in one
            groups[key] = {"weight": value}
        elif not (leaf == "V" and f"{name}.recurrent.V".lstrip(".") in state):
            groups.setdefault(name, {})[leaf] = value
    return {n: g for n, g in groups.items() if any(k in g for k in (*_LAYER, *_NEURON))}


def _in_order(theirs: dict[str, Group], net: nn.Module) -> list[tuple[str, str]]:
    modules = dict(net.named_modules())
    layers = [n for n, m in modules.items() if any(key in m._parameters for key in _LAYER)]
    their_layers = [n for n, g in theirs.items() if any(key in g for key in _LAYER)]
    their_neurons = [n for n in theirs if n not in their_layers]
    neurons = [n for n, m in modules.items() if isinstance(m, LIF)]
    if any("w" in theirs[n] for n in their_neurons):  # SpikingJelly's other neurons have no entry
        neurons = [n for n in neurons if modules[n].log_tau_minus_1 is not None]
    for kind, a, b in (("layers", their_layers, layers), ("neurons", their_neurons, neurons)):
        if a and len(a) != len(b):
            raise ExchangeError(
                f"the state dict has {len(a)} {kind} with entries ({', '.join(a)}), the network "
                f"{len(b)} ({', '.join(b)}); match them with keys="
            )
    return [*zip(their_layers, layers), *(zip(their_neurons, neurons) if their_neurons else ())]


def _constants(name: str, group: Group, neuron: LIF) -> Group:
    """Our learned constants from theirs. Raises ExchangeError if a fixed one of ours differs."""
    out: Group = {}
    for what, lam, parameter, tau in _leaks(group, neuron):
        if isinstance(parameter, Tensor):
            out[what] = torch.logit(lam.double()).to(lam.dtype).reshape(parameter.shape)
        else:
            _same(f"{name}: the leak per timestep", lam, 1 - 1 / tau, f"tau={_tau(lam)}")
    if "threshold" in group:
        if neuron.threshold is not None:
            out["threshold"] = group["threshold"].reshape(neuron.threshold.shape)
        else:
            theta = group["threshold"]
            _same(
                f"{name}: threshold",
                theta,
                neuron.held("v_threshold"),
                f"v_threshold={_text(theta)}",
            )
    if "graded_spikes_factor" in group:
        _same(f"{name}: graded_spikes_factor", group["graded_spikes_factor"], 1.0, "no such factor")
    if "reset_mechanism_val" in group:
        theirs = _RESETS[int(group["reset_mechanism_val"])]
        ours = "subtract" if neuron.v_reset is None else "zero" if neuron.v_reset == 0 else "other"
        if theirs != ours:
            raise ExchangeError(
                f"{name} has the reset {theirs!r}, the network v_reset={neuron.v_reset}"
            )
    return out


def _leaks(group: Group, neuron: Any) -> list[tuple[str, Tensor, Tensor | None, float]]:
    """For membrane and synapse: our parameter's name, lam, the parameter if learned, and tau."""
    found: list[tuple[str, Tensor, Tensor | None, float]] = []
    membrane = "log_tau_minus_1", neuron.log_tau_minus_1, neuron.tau
    if "w" in group:  # 1/tau = sig(w)
        found.append((membrane[0], torch.sigmoid(-group["w"]), *membrane[1:]))
    elif "R" in group:  # Lapicque, whose beta is not what it uses
        lam = 1 - group["time_step"] / (group["R"] * group["C"])
        found.append((membrane[0], lam, *membrane[1:]))
    elif "beta" in group:
        found.append((membrane[0], group["beta"], *membrane[1:]))
    if "alpha" in group:
        learned = neuron.log_tau_synapse_minus_1
        found.append(("log_tau_synapse_minus_1", group["alpha"], learned, neuron.tau_synapse))
    return found


def _tau(lam: Tensor) -> str:
    number = float(lam.flatten()[0])
    return "math.inf" if number == 1 else f"{1 / (1 - number):.8g}"


def _text(value: Tensor) -> str:
    return f"{float(value):.7g}" if value.numel() == 1 else str(value.tolist())


def _same(what: str, theirs: Tensor, ours: float | Tensor, instead: str) -> None:
    own = torch.as_tensor(ours, dtype=torch.float64)
    if not bool(((theirs.double() - own).abs() <= 1e-6 * own.abs().clamp(min=1)).all()):
        learnable = bool(own.isfinite().all()) and "no such" not in instead
        raise ExchangeError(
            f"{what} is {_text(theirs)}, that of the network {_text(own)}; build it with {instead}"
            + (", or learn it" if learnable else "")
        )


def _check(found: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for key, value in found.items():
        if key not in wanted or wanted[key].shape != value.shape:
            has = f"{list(wanted[key].shape)}" if key in wanted else "no such entry"
            raise ExchangeError(
                f"the network has {has} for {key} of shape {list(value.shape)}; "
                "match the modules with keys="
            )
    if missing := [key for key in wanted if key not in found]:
        raise ExchangeError(f"the state dict has nothing for {missing[0]}")
