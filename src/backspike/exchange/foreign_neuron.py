"""The neurons of snnTorch, SpikingJelly and Norse as ours, recognised by class name and attributes.

None of these libraries is imported. `docs/bridges.md` has their equations beside ours.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ExchangeError
from ..layers.over_time import OverTime
from ..layers.sequential import Sequential
from ..neuron.cuba import CubaLIF
from ..neuron.integrator import Integrator
from ..neuron.lif import IF, LIF, PLIF
from ..neuron.recurrent import Recurrent
from ..neuron.shifted import DelayedReset, DelayedResetCuba, Shifted, ShiftedCuba
from ..surrogate import Surrogate
from . import foreign_surrogate

LIBRARIES = {"snntorch": "snnTorch", "spikingjelly": "SpikingJelly", "norse": "Norse"}
# what follows from a library's way to compute, and is no error
TIES = "a membrane exactly at its threshold fires here, but not in {library}, which asks for more"
DOUBLE_RESET = (
    "{name}: with reset_delay=False, snnTorch treats a membrane that is still above the threshold "
    "after a reset, above twice the threshold before it, in a way of its own; here it fires again"
)


def library(m: nn.Module) -> str:
    """The library that a module's class belongs to, or ""."""
    name = type(m).__module__.partition(".")[0]
    return name if name in LIBRARIES else ""


def is_neuron(m: nn.Module) -> bool:
    """Whether m is a neuron of one of the libraries, or of a class derived from one."""
    return any(
        name in BASES and base.__module__.startswith(BASES[name])
        for base in type(m).__mro__
        for name in [base.__name__]
    )


def runs_sequences(m: nn.Module) -> bool:
    """Whether a neuron takes `[T, B, ...]`, not one timestep."""
    name = type(m).__name__
    if library(m) == "norse":
        return not name.endswith("Cell")
    return name.startswith("MultiStep") or getattr(m, "step_mode", "s") == "m"


def passes_state(m: nn.Module) -> bool:
    """Whether the state goes in and out with each call."""
    return library(m) == "norse" or (library(m) == "snntorch" and not m.init_hidden)


def read(m: Any, surrogate: Surrogate | None = None) -> nn.Module:
    """Our equal of a neuron, on `[T, B, ...]`. surrogate: takes the place of the neuron's own.

    Raises ExchangeError with the reason if there is none.
    """
    lib, name = library(m), type(m).__name__
    if not lib:
        raise ExchangeError("a class of your own, whose code may differ from that of its base")
    reader = READERS[lib].get(name)
    if reader is None:
        raise ExchangeError(f"{NO_EQUAL.get(name, 'it has no equal here')}")
    return reader(m, surrogate)


# ---- constants -----------------------------------------------------------------------------------


def _number(value: Any, what: str) -> float:
    tensor = torch.as_tensor(value).detach()
    if tensor.numel() > 1 and not bool((tensor == tensor.flatten()[0]).all()):
        raise ExchangeError(f"{what} differs from neuron to neuron, which only beta may")
    return float(tensor.flatten()[0])


def _leak(value: Any, what: str) -> tuple[float, nn.Parameter | None]:
    """tau of lam = value. Where it is learned or differs between neurons: log(tau - 1)."""
    lam = torch.as_tensor(value).detach().clamp(0, 1)
    learned = isinstance(value, nn.Parameter)
    if not learned and lam.numel() == 1:
        number = float(lam)
        if number == 0:
            raise ExchangeError(f"{what} = 0 keeps no membrane; tau must be above 1 timestep")
        return (math.inf if number == 1 else 1 / (1 - number)), None
    if not bool(((lam > 0) & (lam < 1)).all()) or lam.dim() > 1:
        raise ExchangeError(f"{what} must lie between 0 and 1, one value or one per channel")
    start = lam.reshape(()) if lam.numel() == 1 else lam
    return 2.0, nn.Parameter(torch.logit(start), requires_grad=learned and value.requires_grad)


def _layer(kind: type[LIF], tau: float, parameters: dict[str, Any], **options: Any) -> LIF:
    """A layer with every option spelled, and these learned parameters in place of its own."""
    learn = tuple(PARAMETERS[name] for name, p in parameters.items() if p is not None)
    options |= {"temporal_gradient": True, "backend": "auto", "memory": "exact"}
    if kind is LIF and math.isinf(tau):
        layer: LIF = IF(learn=learn, **options)
    else:
        layer = kind(tau, learn=learn, **options)
    for name, p in parameters.items():
        if p is not None:
            setattr(layer, name, p)
    return layer


PARAMETERS = {
    "log_tau_minus_1": "tau",
    "log_tau_synapse_minus_1": "tau_synapse",
    "threshold": "threshold",
}

# ---- SpikingJelly --------------------------------------------------------------------------------


def _spikingjelly(m: Any, surrogate: Surrogate | None) -> LIF:
    name = type(m).__name__.removeprefix("MultiStep")
    options = {
        "v_threshold": float(m.v_threshold),
        "v_reset": None if m.v_reset is None else float(m.v_reset),
        "surrogate": surrogate or foreign_surrogate.of_spikingjelly(m.surrogate_function),
        "reset_gradient": 0.0 if m.detach_reset else 1.0,
    }
    if name == "IFNode":
        return _layer(LIF, math.inf, {}, decay_input=False, **options)
    if name == "LIFNode":
        return _layer(LIF, float(m.tau), {}, decay_input=m.decay_input, **options)
    w = nn.Parameter(-m.w.detach(), requires_grad=m.w.requires_grad)
    return _layer(PLIF, 2.0, {"log_tau_minus_1": w}, decay_input=m.decay_input, **options)


# ---- snnTorch ------------------------------------------------------------------------------------


class Scale(nn.Module):
    """y = V x, the recurrent layer of one weight per neuron."""

    def __init__(self, V: Tensor) -> None:
        super().__init__()
        self.V = nn.Parameter(V.detach().clone(), requires_grad=V.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.V


def _snntorch_options(m: Any, surrogate: Surrogate | None) -> tuple[dict[str, Any], Any]:
    """The options that all its neurons share, and the learned threshold or None."""
    for option in ("inhibition", "state_quant", "surrogate_disable"):
        if getattr(m, option, False):
            raise ExchangeError(f"it is set to {option}, which has no equal here")
    graded = getattr(m, "graded_spikes_factor", torch.tensor(1.0))
    if isinstance(graded, nn.Parameter) or _number(graded, "graded_spikes_factor") != 1:
        raise ExchangeError("its spikes are graded (graded_spikes_factor is not 1)")
    learned = m.threshold if isinstance(m.threshold, nn.Parameter) else None
    if learned is not None:
        learned = nn.Parameter(learned.detach().reshape(()), requires_grad=learned.requires_grad)
    return {
        "v_threshold": _number(m.threshold, "threshold"),
        "surrogate": surrogate or foreign_surrogate.of_snntorch(m.spike_grad),
    }, learned


def _snntorch_reset(m: Any, drops_input: bool, cuba: bool) -> tuple[type[LIF], dict[str, Any]]:
    """The class and the options for its reset.

    drops_input: this neuron's delayed reset to zero also drops the input of that timestep.
    """
    how, delay = m.reset_mechanism, getattr(m, "reset_delay", True)
    if how == "none":
        raise ExchangeError(
            "reset_mechanism='none' has no equal here; as a readout use bs.Integrator"
        )
    if how == "subtract" and delay:
        return (DelayedResetCuba if cuba else DelayedReset), {"reset_gradient": 0.0}
    if how == "zero" and delay and drops_input:
        raise ExchangeError(
            "reset_mechanism='zero' drops the whole input of the timestep after a spike here; "
            "train with 'subtract'"
        )
    reset = {"v_reset": None if how == "subtract" else 0.0}
    return (CubaLIF if cuba else LIF), reset | {"reset_gradient": 0.0 if delay else 1.0}


def _leaky(m: Any, surrogate: Surrogate | None, drops_input: bool = False) -> LIF:
    options, threshold = _snntorch_options(m, surrogate)
    kind, reset = _snntorch_reset(m, drops_input, cuba=False)
    tau, learned = _leak(m.beta, "beta")
    parameters = {"log_tau_minus_1": learned, "threshold": threshold}
    return _layer(kind, tau, parameters, decay_input=False, **options, **reset)


def _lapicque(m: Any, surrogate: Surrogate | None) -> LIF:
    options, threshold = _snntorch_options(m, surrogate)
    kind, reset = _snntorch_reset(m, drops_input=True, cuba=False)
    R = _number(m.R, "R")
    tau = R * _number(m.C, "C") / _number(m.time_step, "time_step")
    if not tau > 1:
        raise ExchangeError(f"RC is {tau:g} timesteps, and must be above 1")
    parameters = {"threshold": threshold}
    return _layer(kind, tau, parameters, decay_input=True, scale=R, **options, **reset)


def _synaptic(m: Any, surrogate: Surrogate | None) -> LIF:
    options, threshold = _snntorch_options(m, surrogate)
    kind, reset = _snntorch_reset(m, drops_input=True, cuba=True)
    tau, learned = _leak(m.beta, "beta")
    tau_synapse, learned_synapse = _leak(m.alpha, "alpha")
    parameters = {
        "log_tau_minus_1": learned,
        "log_tau_synapse_minus_1": learned_synapse,
        "threshold": threshold,
    }
    options |= {"tau_synapse": tau_synapse, "decay_input": False}
    return _layer(kind, tau, parameters, **options, **reset)


def _recurrent(m: Any, surrogate: Surrogate | None) -> Recurrent:
    cuba = type(m).__name__ == "RSynaptic"
    if cuba and not m.reset_delay:
        raise ExchangeError("RSynaptic of snnTorch 1.0.0 does not do what reset_delay=False says")
    layer = Scale(m.recurrent.V) if hasattr(m.recurrent, "V") else copy.deepcopy(m.recurrent)
    return Recurrent(layer, _synaptic(m, surrogate) if cuba else _leaky(m, surrogate, True))


# ---- Norse ---------------------------------------------------------------------------------------


class NoAutapses(nn.Linear):
    """A linear layer whose diagonal is and stays zero: no neuron feeds itself."""

    def forward(self, x: Tensor) -> Tensor:
        off = 1 - torch.eye(self.in_features, dtype=self.weight.dtype, device=self.weight.device)
        return F.linear(x, self.weight * off, self.bias)


def _norse_surrogate(p: Any, surrogate: Surrogate | None) -> Surrogate:
    if surrogate is not None:
        return surrogate
    threshold = sys.modules["norse.torch.functional.threshold"].threshold
    return foreign_surrogate.of_norse(p.method, p.alpha, threshold)


def _norse_leak(m: Any, inverse: Any, what: str) -> tuple[float, nn.Parameter | None]:
    """tau in timesteps: 1 / (dt tau_inv)."""
    k = torch.as_tensor(m.dt * inverse)
    if not bool(((k > 0) & (k < 1)).all()):
        raise ExchangeError(f"dt {what} must lie between 0 and 1, got {k.tolist()}")
    return (1 / float(k), None) if k.numel() == 1 else _leak(1 - k, what)


def _norse_lif(m: Any, surrogate: Surrogate | None) -> LIF:
    p, name = m.p, type(m).__name__
    cuba = not name.startswith("LIFBox")
    reset = getattr(getattr(p, "reset_method", None), "__name__", "reset_value")
    if reset not in ("reset_value", "reset_subtract"):
        raise ExchangeError(f"its reset_method is {reset}")
    v_leak = _number(p.v_leak, "v_leak")
    v_reset = None if reset == "reset_subtract" else _number(p.v_reset, "v_reset")
    tau, learned = _norse_leak(m, p.tau_mem_inv, "tau_mem_inv")
    parameters = {"log_tau_minus_1": learned}
    options: dict[str, Any] = {
        "v_threshold": _number(p.v_th, "v_th"),
        "v_reset": v_reset,
        "decay_input": True,
        "surrogate": _norse_surrogate(p, surrogate),
        "reset_gradient": 0.0 if "Recurrent" in name else 1.0,
    }
    shift = v_leak - (v_reset or 0.0)
    if not cuba and shift == 0:
        return _layer(LIF, tau, parameters, **options)
    options |= {"shift": shift, "start": v_leak}
    if not cuba:
        return _layer(Shifted, tau, parameters, **options)
    tau_synapse, learned_synapse = _norse_leak(m, p.tau_syn_inv, "tau_syn_inv")
    if learned_synapse is not None:
        raise ExchangeError("tau_syn_inv differs from neuron to neuron")
    # its synapse adds x, ours x / tau_synapse
    options |= {"tau_synapse": tau_synapse, "scale": tau_synapse}
    return _layer(ShiftedCuba, tau, parameters, **options)


def _norse_recurrent(m: Any, surrogate: Surrogate | None) -> Sequential:
    into = _linear(m.input_weights)
    around = _linear(m.recurrent_weights, nn.Linear if m.autapses else NoAutapses)
    return Sequential(OverTime(into), Recurrent(around, _norse_lif(m, surrogate)))


def _linear(weight: Tensor, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    layer = kind(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    return layer


def _iaf(m: Any, surrogate: Surrogate | None) -> LIF:
    p = m.p
    options = {
        "v_threshold": _number(p.v_th, "v_th"),
        "v_reset": _number(p.v_reset, "v_reset"),
        "surrogate": _norse_surrogate(p, surrogate),
    }
    return _layer(LIF, math.inf, {}, decay_input=False, reset_gradient=1.0, **options)


def _li(m: Any, surrogate: Surrogate | None) -> nn.Module:
    p, name = m.p, type(m).__name__
    if _number(p.v_leak, "v_leak") != 0:
        raise ExchangeError("v_leak must be 0, the resting potential of bs.Integrator")
    k = _number(m.dt * p.tau_mem_inv, "tau_mem_inv")
    parts: list[nn.Module] = [Integrator(1 / k, decay_input=True)]
    if not name.startswith("LIBox"):
        k = _number(m.dt * p.tau_syn_inv, "tau_syn_inv")
        parts.insert(0, Integrator(1 / k, decay_input=False))
    if name.startswith("LILinear"):
        parts.insert(0, OverTime(_linear(m.input_weights)))
    return parts[0] if len(parts) == 1 else Sequential(*parts)


# ---- tables --------------------------------------------------------------------------------------

Reader = Callable[[Any, Surrogate | None], nn.Module]
_nodes = ("IFNode", "LIFNode", "ParametricLIFNode")
READERS: dict[str, dict[str, Reader]] = {
    "spikingjelly": {f"{many}{n}": _spikingjelly for n in _nodes for many in ("", "MultiStep")},
    "snntorch": {
        "Leaky": _leaky,
        "Lapicque": _lapicque,
        "Synaptic": _synaptic,
        "RLeaky": _recurrent,
        "RSynaptic": _recurrent,
    },
    "norse": {
        **dict.fromkeys(("LIFBoxCell", "LIFCell", "LIF"), _norse_lif),
        **dict.fromkeys(("LIFRecurrentCell", "LIFRecurrent"), _norse_recurrent),
        **dict.fromkeys(("IAFCell", "IAF"), _iaf),
        **dict.fromkeys(("LICell", "LI", "LIBoxCell", "LILinearCell"), _li),
    },
}
# bases of all neurons of a library, known here or not, and where they live
BASES = {
    "SpikingNeuron": "snntorch",
    "BaseNode": "spikingjelly",
    "SimpleBaseNode": "spikingjelly",
    "NonSpikingBaseNode": "spikingjelly",
    "SNN": "norse",
    "SNNCell": "norse",
    "SNNRecurrent": "norse",
    "SNNRecurrentCell": "norse",
    "LILinearCell": "norse",
}
NO_EQUAL = {
    "Alpha": "a difference of two exponentials drives its membrane; train with Synaptic",
    "NonSpikingIFNode": "it never spikes; use bs.Integrator() and a readout of bs.readout",
    "NonSpikingLIFNode": "it never spikes; use bs.Integrator(tau) and a readout of bs.readout",
}
