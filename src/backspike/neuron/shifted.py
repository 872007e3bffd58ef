"""LIF neurons of other libraries whose equations `LIF` cannot write, run by the kernels of `LIF`.

Both classes transform the membrane linearly and call the kernels on the result, so spikes and
gradients are those of the equations given here, up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from .. import kernel
from ..kernel.coefficients import over_channels
from ..kernel.coefficients import rest as resting
from .cuba import CubaLIF
from .lif import LIF, Output

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .arguments import LayerArguments
    from .constants import Value


class Shift(NamedTuple):
    """x becomes scale x + shift; the kernels see the membrane u + offset, which starts there."""

    scale: Any
    shift: Any
    offset: Any


class Shifted(LIF):
    """`LIF` with a scaled input, a resting potential apart from v_reset, and a start of its own:

        u[t] = (lam v[t-1] + rest/tau) + gain (scale x[t] + shift),   v[-1] = start

    The other equations and arguments are those of `LIF`. start=None: rest, which is v_reset, or 0
    for the soft reset. The resting potential is rest + shift with decay_input=True.
    """

    def __init__(
        self,
        tau: Value = 2.0,
        *,
        scale: float = 1.0,
        shift: float = 0.0,
        start: float | None = None,
        channels: int | tuple[int, ...] | None = None,
        **rest: Unpack[LayerArguments],
    ) -> None:
        super().__init__(tau, channels=channels, **rest)
        self.scale, self.shift, self.start = scale, shift, start

    def transform(self) -> Shift:
        return Shift(self.scale, self.shift, 0.0)

    def compute(
        self, x: Tensor, v0: Tensor | None, repeats: int = 1, want_state: bool = True
    ) -> tuple[Output, kernel.Moments | None]:
        transform = self.transform()
        scale, shift, offset = (
            over_channels(c, x).to(x.dtype) if isinstance(c, Tensor) else c for c in transform
        )
        if v0 is None:
            start = resting(self.v_reset) if self.start is None else self.start
            v0 = torch.full_like(x[0], start)
        out, moments = super().compute(scale * x + shift, v0 + offset, repeats, want_state)
        membrane = None if out.membrane is None else out.membrane - offset
        state = out.state - offset if want_state else out.state
        if moments is not None:
            mean, square, d = moments.mean, moments.square, transform.offset
            moments = kernel.Moments(mean - d, square - 2 * d * mean + d * d)
        return out._replace(state=state, membrane=membrane), moments

    def extra_repr(self) -> str:
        own = {"scale": (self.scale, 1.0), "shift": (self.shift, 0.0), "start": (self.start, None)}
        shown = [f"{name}={value:g}" for name, (value, usual) in own.items() if value != usual]
        return ", ".join([super().extra_repr(), *shown])


class DelayedReset(Shifted):
    """snnTorch's reset by subtraction, which acts one timestep later and does not leak:

        u[t] = lam u[t-1] + gain scale x[t] - theta s[t-1],   s[t] = 1 if u[t] >= theta else 0

    `LIF` with v_reset=None subtracts lam theta s[t-1] instead. With d = theta/lam - theta, the
    membrane u + d follows the equations of `LIF` with the threshold theta/lam, driven by
    (1 - lam) d more. The state is u - (theta/lam) s; `v_threshold` and `threshold` are theta.
    """

    def __init__(
        self,
        tau: Value = 2.0,
        *,
        channels: int | tuple[int, ...] | None = None,
        scale: float = 1.0,
        **rest: Unpack[LayerArguments],
    ) -> None:
        rest["v_reset"] = None
        super().__init__(tau, channels=channels, scale=scale, **rest)
        if len(self.shape) > 1:
            raise ValueError("DelayedReset takes constants per layer or channel, not per neuron")

    def prepare(
        self,
        x: Tensor,
        v0: Tensor | None,
        repeats: int = 1,
        record: kernel.Record = kernel.Record(),  # noqa: B008  (a named tuple)
        constants: kernel.Constants | None = None,
    ) -> kernel.Call:
        c = constants or self.constants()
        c = c._replace(v_threshold=c.v_threshold / (1 - 1 / c.tau))
        return super().prepare(x, v0, repeats, record, c)

    def transform(self) -> Shift:
        tau, theta, _ = self.constants()
        d = theta / (1 - 1 / tau) - theta
        return Shift(self.scale, d if self.decay_input else d / tau, d)


class ShiftedCuba(CubaLIF, Shifted):
    """`Shifted` behind the synapse of `CubaLIF`: x is the synaptic current."""


class DelayedResetCuba(CubaLIF, DelayedReset):
    """`DelayedReset` behind the synapse of `CubaLIF`."""
