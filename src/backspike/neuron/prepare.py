"""Check the arguments of a neuron and build the `Call` that the kernels take."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from .. import kernel, options
from ..kernel.coefficients import state_dtype
from ..kernel.mask import as_probability, as_seed, draw_seed
from ..kernel.saved import lacks, needs
from ..surrogate import Surrogate

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def prepare(
    x: Tensor,
    v0: Tensor | None,
    neuron: options.LIF,
    constants: kernel.Constants,
    seed: int | Tensor | None = None,
    mask_p: Tensor | None = None,
    repeats: int = 1,
    record: kernel.Record = kernel.Record(),  # noqa: B008  (a named tuple)
) -> kernel.Call:
    """Check the arguments of `lif` and build the `Call` for the backends."""
    tau, v_threshold, width = constants
    check_neuron(neuron, tau, v_threshold)
    check_input(x, v0, repeats, states=neuron.states)
    check_gradients_of(neuron, tau, v_threshold, record.moments)
    mask, parametric, _ = neuron.wrappers
    if parametric and width is None:
        raise ValueError(
            "a Parametric surrogate needs width=, a tensor; the layer bs.LIF has one built in"
        )
    if width is not None and not parametric:
        raise ValueError("width= would get no gradient: wrap the surrogate as Parametric(...)")
    for name, parameter in zip(constants._fields, constants):
        check_parameter(name, parameter, x, neuron.per if name != "width" else None)
    if mask is None and mask_p is not None:
        raise ValueError("mask_p= needs a Masked surrogate")
    if mask is not None and seed is None and torch.is_grad_enabled():
        seed = draw_seed(x.device)
    masked = mask is not None and seed is not None
    return kernel.Call(
        x=x,
        v0=None if v0 is None else v0.to(state_dtype(x)),
        neuron=neuron,
        tau=tau,
        theta=v_threshold,
        width=width,
        seed=as_seed(seed, x.device) if masked and seed is not None else None,
        p=as_probability(mask.p if mask_p is None else mask_p) if masked and mask else None,
        repeats=repeats,
        record=record,
    )


def check_surrogate(surrogate: object) -> None:
    if isinstance(surrogate, type) or not isinstance(surrogate, Surrogate):
        raise TypeError(
            "surrogate must be an object such as bs.ATan(), with the methods derivative(z) and "
            f"primitive(z), got {surrogate!r}"
        )


def check_tensor(x: object) -> None:
    if not isinstance(x, Tensor):
        hint = "; torch.stack(...) makes one of a list of timesteps" * isinstance(x, list | tuple)
        raise TypeError(f"input must be one tensor [T, B, ...], got {type(x).__name__}{hint}")


def check_neuron(neuron: options.LIF, tau: float | Tensor, v_threshold: float | Tensor) -> None:
    """Check the options. tau and v_threshold: the values in use, numbers or learned tensors."""
    v_reset = neuron.v_reset
    for name, value in (
        ("tau", tau),
        ("v_threshold", v_threshold),
        ("v_reset", v_reset),
        ("reset_gradient", neuron.reset_gradient),
    ):
        if not (isinstance(value, Tensor) and name in options.VARYING):
            _check_number(name, value, or_none=name == "v_reset")
    if not isinstance(tau, Tensor):
        check_tau(tau, neuron.decay_input)
    if not isinstance(v_threshold, Tensor) and not v_threshold > 0:
        raise ValueError(f"v_threshold must be positive, got {v_threshold}")
    if v_reset is not None:
        if not math.isfinite(v_reset):
            raise ValueError(
                f"v_reset must be a finite number, or None for the soft reset, got {v_reset}"
            )
        if not isinstance(v_threshold, Tensor) and not v_reset < v_threshold:
            raise ValueError(f"v_reset must lie below v_threshold={v_threshold}, got {v_reset}")
    if not 0 <= neuron.reset_gradient <= 1:
        raise ValueError(f"reset_gradient must lie in [0, 1], got {neuron.reset_gradient}")
    if need := needs(neuron, v_threshold):
        raise ValueError(f"memory={neuron.memory!r} {need}")


def _check_number(name: str, value: object, or_none: bool) -> None:
    if name == "v_reset" and isinstance(value, Tensor | options.distribution.Distribution):
        raise TypeError(
            "v_reset must be a number: v_reset is also the resting potential, so only the distance "
            "v_threshold - v_reset matters; give v_threshold one value per channel or neuron"
        )
    if not (isinstance(value, Real) or (or_none and value is None)):
        soft = ", or None for the soft reset" * or_none
        raise TypeError(f"{name} must be a number{soft}, got {value!r}")


def check_tau(tau: float, decay_input: bool) -> None:
    if not tau > 1:
        raise ValueError(
            f"tau must be above 1 timestep (lam = 1 - 1/tau must lie in (0, 1]), got {tau}"
        )
    if math.isinf(tau) and decay_input:
        raise ValueError(
            "tau=inf with decay_input=True divides the input by infinity; set decay_input=False"
        )


def check_gradients_of(
    neuron: options.LIF,
    tau: float | Tensor | None,
    v_threshold: float | Tensor | None,
    moments: bool = False,
) -> None:
    """Raise ValueError if what `memory` saves does not suffice for the learned parameters."""
    if lack := lacks(neuron.memory, tau=tau, theta=v_threshold, moments=moments):
        raise ValueError(f"memory={neuron.memory!r} {lack}")


def check_input(x: Tensor, v0: Tensor | None, repeats: int = 1, states: int = 1) -> None:
    check_tensor(x)
    if v0 is not None and not isinstance(v0, Tensor):
        raise TypeError(f"v0 must be a tensor, as in `out.state`, got {type(v0).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(
            f"x must be a tensor of float16, bfloat16, float32 or float64, got {x.dtype}"
        )
    if x.dim() < 1 or x.shape[0] < 1:
        raise ValueError(f"x must be [T, B, ...] with T >= 1, got shape {list(x.shape)}")
    if repeats < 1 or (repeats > 1 and x.shape[0] != 1):
        raise ValueError(
            f"repeats={repeats} needs an x of one timestep, [1, B, ...], got shape {list(x.shape)}"
        )
    step = list(x.shape[1:])
    if v0 is not None and states == 1 and list(v0.shape) != step:
        raise ValueError(f"v0 must have the shape of one timestep {step}, got {list(v0.shape)}")
    if v0 is not None and states > 1 and list(v0.shape) != [states, *step]:
        raise ValueError(
            f"v0 must hold the {states} states of this neuron, {[states, *step]}, "
            f"got {list(v0.shape)}"
        )


def check_parameter(name: str, p: float | Tensor | None, x: Tensor, per: str | None = None) -> None:
    """Raise ValueError unless p is a number, 0-dim, `[C]`, or has the shape x.shape[2:].

    per="neuron": only the last.
    """
    if not isinstance(p, Tensor) or p.dim() == 0:
        return
    if x.dim() < 3:
        raise ValueError(
            f"{name} of shape {list(p.shape)} is per channel, so x must be [T, B, C, ...], "
            f"got shape {list(x.shape)}"
        )
    sample = x.shape[2:]
    if p.shape != sample and (per == "neuron" or p.shape != sample[:1]):
        raise ValueError(
            f"{name} must be 0-dim or [C] with C = {x.shape[2]} (dimension 2 of x), or have a "
            f"value for each neuron of a sample, {list(sample)}; got shape {list(p.shape)}"
        )
