"""Shared by the tests: the built-in neurons, written as `bs.Neuron`, and comparisons with torch."""

import math
from typing import ClassVar

import torch

import backspike as bs


def outcome(layer, x, g, v0=None):
    """Spikes s, membrane u, last state v, and the gradients of x, v0 and parameters, by name."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    v0 = None if v0 is None else v0.clone().requires_grad_()
    with bs.record(layer) as seen:
        layer(x, v0)
    out = seen[""]
    loss = (out.spikes * g).sum() + (out.membrane * g.flip(0)).sum() + out.state.square().sum()
    leaves = {"x": x} | ({} if v0 is None else {"v0": v0}) | dict(layer.named_parameters())
    # a first state that nothing reaches has no gradient
    found = torch.autograd.grad(loss, [*leaves.values()], allow_unused=True)
    gradients = {
        name: torch.zeros_like(p) if g is None else g for g, (name, p) in zip(found, leaves.items())
    }
    outputs = {"s": out.spikes, "u": out.membrane, "v": out.state}
    return {name: a.detach() for name, a in (outputs | gradients).items()}


def beside_torch(kind, x, backend="cpu", v0=None, **options):
    """The outcomes of a kind of neuron on a backend and in torch, for an x that makes it fire."""
    layers = [kind(backend=b, **options) for b in (backend, "eager")]
    layers = [layer.double() if x.dtype == torch.float64 else layer for layer in layers]
    layers[1].load_state_dict(layers[0].state_dict())
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    got, want = (outcome(layer, x, g.to(x.dtype), v0) for layer in layers)
    assert 0 < got["s"].float().mean() < 1
    return got, want


def deviation(got, want):
    """The largest difference of two outcomes, relative to results above 1; 0 if they are the same.

    Infinite if spikes, names, shapes or dtypes differ.
    """
    pairs = [(got[name], want[name]) for name in want if name in got]
    alike = all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    if got.keys() != want.keys() or not alike or not torch.equal(got["s"], want["s"]):
        return math.inf
    parts = [(a - b).abs().max().double() / b.abs().max().clamp(min=1) for a, b in pairs]
    return float(torch.stack(parts).max())


class LIF(bs.Neuron):
    """Soft reset; the input does not decay."""

    states: ClassVar = {"v": 0.0}
    tau: float = 2.0

    def step(self, x, v):
        u = v * (1 - 1 / self.tau) + x
        return u, u

    def reset(self, s, v):
        return v - s * self.v_threshold


class PLIF(bs.Neuron):
    """Hard reset, the input decays, and what is learned is log(tau - 1)."""

    states: ClassVar = {"v": "v_reset"}
    log_tau: float = math.log(2.0)
    v_reset: float = 0.1

    def step(self, x, v):
        tau = 1 + self.log_tau.exp()
        u = (v * (1 - 1 / tau) + self.v_reset / tau) + x * (1 / tau)
        return u, u

    def reset(self, s, v):
        return (1 - s) * v + s * self.v_reset


class CubaLIF(LIF):
    states: ClassVar = {"v": 0.0, "i": 0.0}
    tau_synapse: float = 2.0

    def step(self, x, v, i):
        i = i * (1 - 1 / self.tau_synapse) + x
        u = v * (1 - 1 / self.tau) + i
        return u, u, i

    def reset(self, s, v, i):
        return v - s * self.v_threshold, i


class AdaptiveLIF(LIF):
    states: ClassVar = {"v": 0.0, "w": 0.0}
    log_tau_w: float = math.log(4.0)
    a: float = 1.0
    b: float = 5.0

    def step(self, x, v, w):
        u = v * (1 - 1 / self.tau) + (x - w)
        return u, u, w

    def reset(self, s, v, w):
        return v - s * self.v_threshold, w

    def adapt(self, s, v, w):
        tau = 1 + self.log_tau_w.exp()
        return v, w * (1 - 1 / tau) + (v * (self.a / tau) + s * (self.b / tau))


# built-in, own, and the parameters of both in the same order
PAIRS = {
    "LIF": (
        lambda **o: bs.LIF(3.0, learn="threshold", **o),
        lambda **o: LIF(tau=3.0, learn="threshold", **o),
        {"threshold": "threshold"},
    ),
    "PLIF": (
        lambda **o: bs.PLIF(3.0, v_reset=0.1, learn="threshold", **o),
        lambda **o: PLIF(learn=("threshold", "log_tau"), **o),
        {"threshold": "threshold", "log_tau_minus_1": "constant_log_tau"},
    ),
    "CubaLIF": (
        lambda **o: bs.CubaLIF(3.0, tau_synapse=2.5, learn="threshold", **o),
        lambda **o: CubaLIF(tau=3.0, tau_synapse=2.5, learn="threshold", **o),
        {"threshold": "threshold"},
    ),
    "AdaptiveLIF": (
        lambda **o: bs.AdaptiveLIF(
            3.0, tau_adaptation=5.0, b=2.0, learn=("tau_adaptation", "a", "b"), channels=2, **o
        ),
        lambda **o: AdaptiveLIF(tau=3.0, b=2.0, learn=("log_tau_w", "a", "b"), channels=2, **o),
        {
            "log_tau_adaptation_minus_1": "constant_log_tau_w",
            "adaptation_a": "constant_a",
            "adaptation_b": "constant_b",
        },
    ),
}


class Rising(bs.RefractoryLIF):
    threshold_rise: float = 0.4


class RisingCuba(bs.RefractoryCubaLIF):
    threshold_rise: float = 0.4


SHIPPED = {
    "QIF": (bs.QIF, 1.0),
    "EIF": (bs.EIF, 1.0),
    "AdEx": (bs.AdEx, 2.0),
    "Izhikevich": (bs.Izhikevich, 2.0),
    "BRF": (bs.BRF, 60.0),  # the size of an input that makes it fire
    "RefractoryLIF": (Rising, 1.0),
    "RefractoryCubaLIF": (RisingCuba, 0.6),
}
