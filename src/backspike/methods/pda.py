"""PDA: adjust the distribution of membrane potentials (paper C, Wang, Cheng & Lim 2023).

A spike rounds the membrane to 0 or theta, and a surrogate passes gradients only near theta. PDA
penalises the divergence between the distribution of the membrane and one that loses less.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..kernel import Moments, firing_rate
from ..kernel.coefficients import over_channels
from ..neuron.hooks import Handle, spiking_layers, watch
from ..neuron.lif import LIF, Output, Watcher
from ..surrogate import Surrogate, unwrap
from ..system import distributed


class Normal(NamedTuple):
    """Mean and variance of normal distributions, per timestep `[T, 1]` or also channel `[T, C]`."""

    mean: Tensor
    var: Tensor


def divergence(p: Normal, q: Normal) -> Tensor:
    """Symmetric Kullback-Leibler divergence of normal distributions, in closed form.

    D = (KL(p||q) + KL(q||p)) / 2 = (sp^2 + d^2) / (4 sq^2) + (sq^2 + d^2) / (4 sp^2) - 1/2,
    with d the difference of the means.
    """
    d2 = (p.mean - q.mean) ** 2
    return (p.var + d2) / (4 * q.var) + (q.var + d2) / (4 * p.var) - 0.5


def _mean_over_ranks(layer: LIF, out: Output, mean: Tensor) -> Tensor:
    """The mean over the samples of all ranks, from that of this rank.

    Unchanged in evaluation, which a single rank may run.
    """
    if distributed.current().size == 1 or not layer.training:
        return mean
    assert out.spikes is not None
    samples = out.spikes.shape[1]
    mean = mean if samples else torch.zeros_like(mean)
    return distributed.all_reduce_sum(mean * samples) / distributed.all_reduce_sum(
        mean.new_tensor(samples)
    )


def _threshold(layer: LIF, per_channel: bool) -> float | Tensor:
    """The threshold, its mean over the channel or over the layer where it differs."""
    theta = layer.constants()[1]
    if not isinstance(theta, Tensor) or not theta.dim():
        return theta
    return (
        theta.flatten(1).mean(1)
        if per_channel and theta.dim() > 1
        else (theta if per_channel else theta.mean())
    )


def _spikes(layer: LIF, rate: Callable[[], Tensor], per_channel: bool, window: float) -> Normal:
    """The distribution of theta s, to which spiking rounds the membrane.

    Mean theta r and variance theta^2 r (1 - r), with r the firing rate.
    """
    theta = _threshold(layer, per_channel)
    r = rate()
    return Normal(theta * r, theta**2 * r * (1 - r))


def _gaussian(layer: LIF, rate: Callable[[], Tensor], per_channel: bool, window: float) -> Normal:
    """N(0, theta^2)."""
    theta = torch.as_tensor(_threshold(layer, per_channel), dtype=torch.float64)
    return Normal(torch.zeros_like(theta), theta**2)


def _window(layer: LIF, rate: Callable[[], Tensor], per_channel: bool, window: float) -> Normal:
    """N(theta, (c w)^2) with c = window and w the width of the surrogate."""
    theta = _threshold(layer, per_channel)
    w2 = torch.as_tensor(surrogate_width(layer), dtype=torch.float64) ** 2
    theta = torch.as_tensor(theta, dtype=torch.float64).detach()
    return Normal(theta, window**2 * (w2 if per_channel else w2.mean()))


_TARGETS: dict[str, Callable[[LIF, Callable[[], Tensor], bool, float], Normal]] = {
    "spikes": _spikes,
    "gaussian": _gaussian,
    "window": _window,
}


def surrogate_width(layer: LIF) -> float | Tensor:
    """The width w of a rectangle with the same area and peak as the layer's surrogate.

    `Rectangle(width)`: width; `Triangle(alpha)`: 1/alpha. A learned width multiplies it. The
    definition for other shapes is ours.
    """
    _, _, base = unwrap(layer.surrogate)
    nominal, learned = _nominal_width(base), layer.constants()[2]
    return nominal if learned is None else nominal * learned.detach()


def _nominal_width(surrogate: Surrogate) -> float:
    far = torch.tensor([-1e6, 1e6], dtype=torch.float64)
    area = surrogate.primitive(far).diff()
    return float(area / surrogate.derivative(torch.zeros(1, dtype=torch.float64)))


class PotentialAdjustment(Handle):
    """PDA (paper C, Wang et al. 2023): a loss on the distribution P of the membrane u before reset.

        loss() = strength * mean over layers and timesteps of D(P, Q)
        D = (KL(P||Q) + KL(Q||P)) / 2

    Add `pda.loss()` to the task loss after each forward pass of `model`; it covers the latest call
    of each watched layer. Gradients flow only to the membrane u: the target Q, including the
    threshold in it, is detached. In distributed training, P and Q are taken over all ranks.

    target: the distribution Q:
        "spikes"      theta s, to which spiking rounds u
        "gaussian"    N(0, theta^2)
        "window"      N(theta, (window w)^2) with w the width of the surrogate; more neurons then
                      receive a gradient
    form: "moments" treats P and Q as normal distributions with the moments of u and theta s. The
        kernel computes the moments, so u is not saved. eps theta^2 is added to both variances, so
        that a silent layer has a finite loss.
        "softmax" compares the softmax over the features of u with that of theta s; it records u
        and requires the target "spikes".
    per_channel: one distribution per channel (dimension 2) instead of one per layer.
    layers: names of the layers to adjust; all by default.
    warmup: number of `loss()` calls over which the strength rises linearly; `state_dict()` holds
        the count.

    `.remove()` ends it, and it is a context manager. Raises ValueError for wrong arguments, or if
    the model has no spiking layer.

    Evidence: the abstract of the paper states that the shift of the potential distribution caused
    by quantisation is measured and minimised; reading notes state that the loss is a symmetric
    divergence; the softmax form is from the author's earlier code. Targets, closed form, eps and
    defaults are ours (docs/methods.md).
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float = 1e-2,
        target: str = "spikes",
        *,
        form: str = "moments",
        per_channel: bool = False,
        layers: Collection[str] | None = None,
        window: float = 1.0,
        warmup: int = 0,
        eps: float = 1e-2,
    ) -> None:
        super().__init__()
        if target not in _TARGETS:
            raise ValueError(
                f"PotentialAdjustment: target must be one of {', '.join(_TARGETS)}, got {target!r}"
            )
        if form not in ("moments", "softmax"):
            raise ValueError(
                f"PotentialAdjustment: form must be 'moments' or 'softmax', got {form!r}"
            )
        if form == "softmax" and (target != "spikes" or per_channel):
            raise ValueError(
                "PotentialAdjustment: form='softmax' requires target='spikes' and per_channel=False"
            )
        for name, value in (("strength", strength), ("warmup", warmup)):
            if not value >= 0:
                raise ValueError(f"PotentialAdjustment: {name} must not be negative, got {value}")
        for name, value in (("window", window), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"PotentialAdjustment: {name} must be positive, got {value}")
        self.strength = strength
        self.target = target
        self.per_channel = per_channel
        self.window = window
        self.warmup = warmup
        self.eps = eps
        self.step = 0
        self._distances: dict[str, Tensor] = {}
        measure = self._softmax_distance if form == "softmax" else self._moment_distance
        for name, layer in _chosen(model, layers).items():
            see = partial(self._see, name, measure)
            softmax = form == "softmax"
            watcher = Watcher(see, membrane=softmax, moments=not softmax, spikes=softmax)
            self.undo.append(watch(layer, watcher))

    def loss(self) -> Tensor:
        """Return strength * mean D over the latest calls of the watched layers, a scalar.

        Raises RuntimeError if no watched layer ran since the last call.
        """
        if not self._distances:
            raise RuntimeError(
                "PotentialAdjustment.loss(): no watched layer ran since the last call"
            )
        distance = torch.stack(list(self._distances.values())).mean()
        self._distances.clear()
        strength = self.strength
        if torch.is_grad_enabled():
            self.step += 1
        if self.warmup:
            strength *= min(1.0, self.step / self.warmup)
        return strength * distance

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        if type(state["step"]) is not int or state["step"] < 0:
            raise ValueError(f"step must be a number of calls, got {state['step']!r}")
        self.step = state["step"]

    def _see(
        self,
        name: str,
        measure: Callable[..., Tensor],
        layer: LIF,
        out: Output,
        moments: Moments | None,
    ) -> None:
        distance = measure(layer, out, moments)
        # an empty batch has no distribution; other ranks may still have samples
        distance = distance if out.state.numel() else distance.detach().nan_to_num()
        self._distances[name] = distance.to(out.state.dtype)

    def _moment_distance(self, layer: LIF, out: Output, moments: Moments) -> Tensor:
        def over_samples(m: Tensor) -> Tensor:
            own = m if self.per_channel else m.mean(1, keepdim=True)
            return _mean_over_ranks(layer, out, own)

        def rate() -> Tensor:
            if moments.rate is not None:
                return over_samples(moments.rate)
            assert out.spikes is not None
            return over_samples(firing_rate(out.spikes))

        mean, square = over_samples(moments.mean), over_samples(moments.square)
        with torch.no_grad():
            theta = _threshold(layer, self.per_channel)
            q = _TARGETS[self.target](layer, rate, self.per_channel, self.window)
            floor = self.eps * theta**2
        p = Normal(mean, (square - mean**2).clamp(min=0) + floor)
        return divergence(p, Normal(q.mean, q.var + floor)).mean()

    def _softmax_distance(self, layer: LIF, out: Output, moments: None) -> Tensor:
        u, s = out.membrane, out.spikes
        assert u is not None
        assert s is not None
        if u.dim() < 3:
            raise ValueError(
                "PotentialAdjustment: form='softmax' needs features, [T, B, C, ...], "
                f"got shape {list(u.shape)}"
            )
        log_p = u.flatten(2).log_softmax(-1)
        with torch.no_grad():
            theta = over_channels(layer.constants()[1], u)
            log_q = (theta * s.to(u.dtype)).flatten(2).log_softmax(-1)
        return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean() / 2


def _chosen(model: nn.Module, layers: Collection[str] | None) -> dict[str, LIF]:
    spiking = spiking_layers(model)
    if not spiking:
        raise ValueError("PotentialAdjustment: this model has no spiking layer")
    if layers is None:
        return spiking
    if isinstance(layers, str) or not layers or set(layers) - set(spiking):
        raise ValueError(
            f"PotentialAdjustment: layers must be names out of {list(spiking)}, got {layers!r}"
        )
    return {name: spiking[name] for name in layers}
