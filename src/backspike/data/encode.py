"""Encoders: turn real numbers into spikes over time, with time as the first dimension.

    rate      the larger the value, the more spikes
    latency   the larger the value, the earlier its only spike
    delta     a spike for each change of a signal, up or down

Spikes are zeros and ones in the dtype of the input and on its device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rate(x: Tensor, T: int, *, seed: int | None = None) -> Tensor:
    """Spikes at random, each timestep anew with probability x: `[B, ...] -> [T, B, ...]`.

    seed: of these spikes; None draws from torch's default generator.

    Raises ValueError if a value lies outside [0, 1], or if T is below 1.
    """
    _check("rate", x, T)
    generator = None if seed is None else torch.Generator(x.device).manual_seed(seed)
    chance = torch.rand((T, *x.shape), generator=generator, device=x.device)
    return (chance < x).to(x.dtype)


def latency(x: Tensor, T: int, *, tau: float | None = None, threshold: float = 0.01) -> Tensor:
    """One spike per value, the earlier the larger it is: `[B, ...] -> [T, B, ...]`.

    By default the time is linear in x: the spike of 1 is at timestep 0, that of 0 would be at
    T - 1. With tau it is the time at which a leaky neuron with this time constant, driven by the
    current x, reaches the threshold: t = tau ln(x / (x - threshold)). Times are rounded to whole
    timesteps. Values of at most `threshold` have no spike, nor have spikes after the last timestep.

    tau: in timesteps.

    Raises ValueError if a value lies outside [0, 1], T is below 1, or tau or threshold is not
    positive (the threshold may be 0 without tau).
    """
    _check("latency", x, T)
    if tau is not None and not (tau > 0 and math.isfinite(tau)):
        raise ValueError(f"encode.latency: tau must be a positive number, got {tau}")
    if threshold < 0 or (tau is not None and threshold == 0):
        raise ValueError(f"encode.latency: threshold must be positive, got {threshold}")
    if tau is None:
        time = (1 - x) * (T - 1)
    else:
        time = tau * -torch.log1p(-(threshold / x).clamp(max=1))  # infinite at the threshold
    time = torch.where(x > threshold, time.round(), math.inf)
    steps = torch.arange(T, device=x.device, dtype=x.dtype).view(-1, *[1] * x.dim())
    return (time == steps).to(x.dtype)


def delta(x: Tensor, threshold: float = 0.1) -> Tensor:
    """Spikes for changes of a signal: `[T, B, ...] -> [T, B, 2, ...]`, first up, then down.

    As an event camera does: each value has a level, at first x[0]. Where x exceeds it by at least
    the threshold, there is a spike up, and the level rises by the threshold; likewise down. Thus
    x[0] + threshold times (all spikes up - all spikes down) follows x, as fast as one threshold per
    timestep (delta modulation).

    Raises ValueError if x has no time and batch dimension, or if the threshold is not positive.
    """
    if x.dim() < 2 or len(x) < 1:
        raise ValueError(f"encode.delta: expected a signal [T, B, ...], got {list(x.shape)}")
    if not threshold > 0:
        raise ValueError(f"encode.delta: threshold must be positive, got {threshold}")
    level, spikes = x[0].clone(), []
    for now in x:
        up, down = now - level >= threshold, level - now >= threshold
        level = level + threshold * (up.to(x.dtype) - down.to(x.dtype))
        spikes.append(torch.stack([up, down], 1))
    return torch.stack(spikes).to(x.dtype)


def _check(name: str, x: Tensor, T: int) -> None:
    if T < 1:
        raise ValueError(f"encode.{name}: T must be at least 1, got {T}")
    if not x.is_floating_point():
        raise ValueError(f"encode.{name}: x must hold floats in [0, 1], got {x.dtype}")
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"encode.{name}: values must lie in [0, 1], got {float(x.min()):g} ... "
            f"{float(x.max()):g}; divide by the largest"
        )
