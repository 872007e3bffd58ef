"""Arguments of a neuron checked and turned into the `Call` that the kernels take."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import kernel
from ..kernel.coefficients import state_dtype
from ..kernel.mask import as_probability, as_seed, draw_seed
from ..kernel.saved import lacks, needs
from ..surrogate import Surrogate, unwrap

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def prepare(
    x: Tensor,
    v0: Tensor | None,
    *,
    tau: float | Tensor,
    v_threshold: float | Tensor,
    v_reset: float | None,
    decay_input: bool,
    surrogate: Surrogate,
    reset_gradient: float,
    temporal_gradient: bool,
    width: Tensor | None = None,
    seed: int | Tensor | None = None,
    mask_p: Tensor | None = None,
    record_membrane: bool = False,
    record_moments: bool = False,
    record_active: bool = False,
    record_bits: bool = False,
    record_state: bool = True,
    memory: str = "exact",
    repeats: int = 1,
    complementary: bool = False,
) -> kernel.Call:
    """Checks the arguments of `lif` and puts them into the form that backends take."""
    check_constants(tau, v_threshold, v_reset, decay_input, reset_gradient)
    check_input(x, v0, repeats, states=2 if complementary else 1)
    check_memory(memory, surrogate, v_reset, v_threshold)
    if lack := lacks(memory, tau=tau, theta=v_threshold, moments=record_moments):
        raise ValueError(f"memory={memory!r} {lack}")
    mask, parametric, base = unwrap(surrogate)
    if parametric and width is None:
        raise ValueError(
            "a Parametric surrogate needs width=, a tensor; the layer bs.LIF holds one"
        )
    if width is not None and not parametric:
        raise ValueError("width= would get no gradient: wrap the surrogate as Parametric(...)")
    for name, parameter in (("tau", tau), ("v_threshold", v_threshold), ("width", width)):
        check_parameter(name, parameter, x)
    if mask is None and mask_p is not None:
        raise ValueError("mask_p= needs a Masked surrogate")
    if mask is not None and seed is None and torch.is_grad_enabled():
        seed = draw_seed(x.device)
    masked = mask is not None and seed is not None
    rule = kernel.Rule(
        v_reset=None if v_reset is None else float(v_reset),
        decay_input=decay_input,
        surrogate=base,
        replace=mask.replace if mask else None,
        rescale=mask.rescale if mask else False,
        reset_gradient=float(reset_gradient),
        temporal_gradient=temporal_gradient,
        record_membrane=record_membrane,
        record_moments=record_moments,
        record_active=record_active,
        record_bits=record_bits,
        record_state=record_state,
        memory="recompute" if memory == "checkpoint" else memory,
        complementary=complementary,
    )
    return kernel.Call(
        x=x,
        v0=None if v0 is None else v0.to(state_dtype(x)),
        tau=tau,
        theta=v_threshold,
        width=width,
        seed=as_seed(seed, x.device) if masked and seed is not None else None,
        p=as_probability(mask.p if mask_p is None else mask_p) if masked and mask else None,
        rule=rule,
        repeats=repeats,
    )


def check_constants(
    tau: float | Tensor,
    v_threshold: float | Tensor,
    v_reset: float | None,
    decay_input: bool,
    reset_gradient: float,
) -> None:
    if not isinstance(tau, Tensor):
        if not tau > 1:
            raise ValueError(
                f"tau must be above 1 timestep (lam = 1 - 1/tau must lie in (0, 1]), got {tau}"
            )
        if math.isinf(tau) and decay_input:
            raise ValueError(
                "tau=inf with decay_input=True would divide the input by infinity; set decay_input=False"
            )
    if not isinstance(v_threshold, Tensor) and not v_threshold > 0:
        raise ValueError(f"v_threshold must be positive, got {v_threshold}")
    if v_reset is not None:
        if not math.isfinite(v_reset):
            raise ValueError(
                f"v_reset must be a finite number, or None for the soft reset, got {v_reset}"
            )
        if not isinstance(v_threshold, Tensor) and not v_reset < v_threshold:
            raise ValueError(f"v_reset must lie below v_threshold={v_threshold}, got {v_reset}")
    if not 0 <= reset_gradient <= 1:
        raise ValueError(f"reset_gradient must lie in [0, 1], got {reset_gradient}")


def check_memory(
    memory: str, surrogate: Surrogate, v_reset: float | None, v_threshold: float | Tensor
) -> None:
    mask, parametric, base = unwrap(surrogate)
    replace = mask is not None and mask.replace is not None
    soft, theta = v_reset is None, v_threshold
    if need := needs(
        memory,
        surrogate=base,
        parametric=parametric is not None,
        replace=replace,
        soft=soft,
        theta=theta,
    ):
        raise ValueError(f"memory={memory!r} {need}")


def check_input(x: Tensor, v0: Tensor | None, repeats: int = 1, states: int = 1) -> None:
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
            f"v0 must be the {states} states of this neuron, {[states, *step]}, got {list(v0.shape)}"
        )


def check_parameter(name: str, p: float | Tensor | None, x: Tensor) -> None:
    if not isinstance(p, Tensor) or p.dim() == 0:
        return
    channels = x.shape[2] if x.dim() > 2 else None
    if p.dim() != 1 or p.shape[0] != channels:
        raise ValueError(
            f"{name} must be 0-dim or [C] with C = {channels} (dimension 2 of x), got shape {list(p.shape)}"
        )
