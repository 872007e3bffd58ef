"""The input and the output of a backend: it turns a `Call` into a `Result`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..options import LIF
from .coefficients import over_channels
from .layout import dense


class Moments(NamedTuple):
    """Moments of u over batch and space, `[T, C]` in float64.

    C is dimension 2 of x, or 1 when x is `[T, B]`. A loss on membrane potentials needs only these,
    not u itself. They are computed one timestep at a time, and their gradient reaches u as
    gu = a + b u with one a and b per timestep and channel, so neither u nor its gradient is stored
    for all timesteps.
    """

    mean: Tensor  # E(u)
    square: Tensor  # E(u^2)
    rate: Tensor | None = None  # E(s), without a gradient; given where the spikes may be pooled


class Result(NamedTuple):
    """The outputs of one call; those that were not requested are None."""

    spikes: Tensor  # [T, B, ...] in the dtype of x
    state: Tensor  # [B, ...], v[T-1]
    membrane: Tensor | None = None  # [T, B, ...], u before the reset
    moments: Moments | None = None
    # uint8: bit i of byte k says whether h is nonzero for element 8 k + i of [T, B, ...] in C
    # order, so that the gradient of that spike is needed; None if the spikes are not contiguous
    active: Tensor | None = None
    # uint8: bit i of byte k is spike 8 k + i in memory order; None if the backend does not write
    # them
    bits: Tensor | None = None

    def unflattened(self, shape: torch.Size) -> Result:
        """The result of a flattened call, for samples of this shape `[C, ...]`."""
        moments = self.moments
        if moments is not None:
            both = moments.mean, moments.square
            moments = Moments(*(m.unflatten(1, (shape[0], -1)).mean(2) for m in both))
        return self._replace(
            spikes=self.spikes.unflatten(2, shape),
            state=self.state.unflatten(-1, shape) if self.state.numel() else self.state,
            membrane=None if self.membrane is None else self.membrane.unflatten(2, shape),
            moments=moments,
        )


class SpikeInfo(NamedTuple):
    """What a kernel returned about the spikes that the next layer receives; see `Result`."""

    active: Tensor | None
    bits: Tensor | None
    at: int  # data pointer of the spikes

    @classmethod
    def from_result(cls, result: Result) -> SpikeInfo:
        """The `SpikeInfo` for the spikes of this result."""
        return cls(result.active, result.bits, result.spikes.data_ptr())

    def bits_of(self, x: Tensor) -> Tensor | None:
        """The bits if x is these same spikes in memory: a view counts, a copy does not."""
        bits = self.bits
        same = (
            bits is not None
            and x.data_ptr() == self.at
            and x.numel() == 8 * bits.numel()
            and dense(x)
        )
        return bits if same else None


def learns(p: float | Tensor | None) -> bool:
    """Whether p is a tensor that wants a gradient."""
    return isinstance(p, Tensor) and p.requires_grad


def as_tensor(p: float | Tensor | None) -> Tensor | None:
    """p if it is a tensor, else None."""
    return p if isinstance(p, Tensor) else None


class Constants(NamedTuple):
    """The constants that can be learned: each a number, or a tensor.

    A tensor is 0-dim, `[C]`, or has a value for each neuron and the shape of one timestep of one
    sample.
    """

    tau: float | Tensor
    v_threshold: float | Tensor
    width: Tensor | None = None


class Record(NamedTuple):
    """Which outputs a call returns in addition to the spikes."""

    membrane: bool = False
    moments: bool = False
    active: bool = False
    bits: bool = False  # the spikes packed as bits too, if the backend can write them
    state: bool = True  # False: the state is not needed and may be returned empty


@dataclass
class Call:
    """One call of `bs.lif`, with its arguments checked and normalised."""

    x: Tensor  # [T, B, ...], or [1, B, ...] for `repeats` identical timesteps
    v0: Tensor | None  # [B, ...] in the dtype of the state; [2, B, ...] with two states
    neuron: LIF  # its class selects the equations
    tau: float | Tensor  # the value to use; overrides `neuron.tau` when it is learned
    theta: float | Tensor  # likewise, instead of `neuron.v_threshold`
    width: Tensor | None
    seed: Tensor | None  # None: no mask
    p: Tensor | None
    repeats: int = 1
    record: Record = Record()
    # AdaptiveLIF: the factors of w[t] = lam_w w[t-1] + by_v (v[t] - rest) + by_s s[t]
    adaptation: tuple[float | Tensor, ...] = ()

    @property
    def inputs(self) -> tuple[float | Tensor | None, ...]:
        """The inputs that can receive a gradient."""
        return self.x, self.v0, self.tau, self.theta, self.width, *self.adaptation

    @property
    def needs_gradient(self) -> bool:
        """Whether autograd is on and any input requires a gradient."""
        return torch.is_grad_enabled() and any(map(learns, self.inputs))

    @property
    def per_neuron(self) -> bool:
        """Whether a constant differs from neuron to neuron of a sample `[C, H, W]`."""
        return any(
            isinstance(p, Tensor) and p.dim() > 1 for p in (self.tau, self.theta, *self.adaptation)
        )

    def flattened(self) -> Call:
        """The same call with all neurons of a sample as channels: x is `[T, B, C H W]`."""
        step = self.x.shape[2:]

        def flat(p: Any) -> Any:
            if not isinstance(p, Tensor) or not p.dim():
                return p
            return over_channels(p, self.x).expand(step).reshape(-1)

        return replace(
            self,
            x=self.x.flatten(2),
            v0=None if self.v0 is None else self.v0.flatten(self.v0.dim() - len(step)),
            tau=flat(self.tau),
            theta=flat(self.theta),
            width=flat(self.width),
            adaptation=tuple(map(flat, self.adaptation)),
        )
