"""The parallel spiking neuron: one product over time instead of a recursion, and no reset."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import kernel
from ..options import LIF as Options
from ..surrogate import Surrogate
from .lif import LIF, Output
from .prepare import check_input

CHUNK = 64  # timesteps of the sliding form that one matrix product computes


class PSN(LIF):
    """A layer of parallel spiking neurons (Fang et al. 2023, arXiv 2304.12760).

        u[t] = sum_i W[t, i] x[i] + bias[t]                        PSN(T)
        u[t] = sum_{i > t - order, i <= t} W[t, i] x[i] + bias[t]  PSN(T, order): masked
        u[t] = sum_{i < order} W[i] x[t - order + 1 + i] + bias    PSN(order=order): sliding
        s[t] = 1 if u[t] >= v_threshold else 0

    No state and no reset: all timesteps are computed at once. W and bias are learned and shared by
    all neurons of the layer, as the parameters `weight` and `bias`; v_threshold - bias is the
    paper's threshold B. x before the first timestep is 0.

    T: the length of every input; such a neuron sees the whole sequence, and with `order` the last
    `order` timesteps. masking: of the masked form, how far the rest is faded out, from 0 to 1; an
    attribute, which the paper raises from 0 to 1 in training.
    order alone: the sliding form, for sequences of any length; `bs.streaming` carries its last
    order - 1 inputs, which are its state, `[order - 1, B, ...]`.
    surrogate, channels and backend are those of `bs.LIF`; kernels of `bs.LIF` compute the spikes.

    Raises ValueError for sizes that are no positive integers, for an input of another length than
    T, and for a state or streaming without the sliding form.
    """

    learnable = ()

    def __init__(
        self,
        T: int | None = None,
        order: int | None = None,
        *,
        masking: float = 1.0,
        v_threshold: float = 1.0,
        surrogate: Surrogate = Options.surrogate,
        channels: int | None = None,
        backend: str = Options.backend,
    ) -> None:
        if T is None and order is None:
            raise ValueError("PSN needs T, the number of timesteps, or order, or both")
        for name, value in (("T", T), ("order", order)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"PSN: {name} must be a positive integer, got {value!r}")
        if not 0 <= masking <= 1 or (masking != 1 and (T is None or order is None)):
            raise ValueError(
                f"PSN: masking must lie in [0, 1], and needs T and order; got {masking}"
            )
        super().__init__(
            math.inf,
            v_threshold=v_threshold,
            surrogate=surrogate,
            channels=channels,
            backend=backend,
        )
        self.T, self.order, self.masking = T, order, masking
        if T is None:
            # 1 for the latest input, and half as much for each one before
            self.weight = nn.Parameter(0.5 ** torch.arange(float(order or 1)).flip(0))
            self.bias = nn.Parameter(torch.zeros(()))
        else:
            self.weight = nn.Parameter(torch.empty(T, T))
            self.bias = nn.Parameter(torch.zeros(T))
            nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def compute(
        self, x: Tensor, v0: Tensor | None, repeats: int = 1, want_state: bool = True
    ) -> tuple[Output, kernel.Moments | None]:
        check_input(x, None, repeats)
        x = x.expand(repeats, *x.shape[1:]) if repeats > 1 else x
        if self.T is None:
            u, state = self._slide(x, v0)
        else:
            if v0 is not None or self.streams:
                raise ValueError("PSN with T needs the whole sequence; PSN(order=...) can stream")
            u, state = self._mix(x), x.new_empty(0)
        call = self.prepare(u, None, record=self.record(state=False))
        out = kernel.dispatch(self.options.backend, call)
        return Output(out.spikes, state, out.membrane), out.moments

    def operations(self, T: int) -> tuple[int, float]:
        if self.T is None:
            return len(self.weight), float(len(self.weight))
        return self.T, float((self._mixing() != 0).sum()) / self.T

    def complete(self, call: kernel.Call) -> kernel.Call:
        """The call for membranes: with lam = 0 and gain = 1, `LIF` has u[t] = x[t]."""
        return replace(call, tau=1.0)

    def _mix(self, x: Tensor) -> Tensor:
        if len(x) != self.T:
            raise ValueError(f"PSN(T={self.T}) needs an input [{self.T}, B, ...], got {[*x.shape]}")
        weight = self._mixing()
        u = torch.addmm(self.bias.to(x.dtype)[:, None], weight.to(x.dtype), x.flatten(1))
        return u.view(x.shape)

    def _mixing(self) -> Tensor:
        """The weights `[T, T]` in use: of membranes (rows) and inputs (columns)."""
        weight: Tensor = self.weight
        if self.order is None:
            return weight
        band = torch.ones_like(weight).tril().triu(1 - self.order)
        return weight * (self.masking * band + (1 - self.masking))

    def _slide(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """The membranes, and the last order - 1 inputs."""
        past = len(self.weight) - 1
        if before is None:
            before = x.new_zeros((past, *x.shape[1:]))
        if before.shape != (past, *x.shape[1:]):
            raise ValueError(
                f"v0 must hold the last {past} inputs, {[past, *x.shape[1:]]}, "
                f"got {[*before.shape]}"
            )
        inputs = torch.cat((before.to(x.dtype), x))
        rows = inputs.view(len(inputs), -1)
        n = min(CHUNK, len(x))
        # row t of this matrix holds the weights at the columns t, t + 1, ..., t + past
        period = functional.pad(self.weight.to(x.dtype), (0, n))
        matrix = period.repeat(n)[: n * (n + past)].view(n, n + past)
        parts = [
            matrix[: len(x) - t, : len(x) - t + past] @ rows[t : t + n + past]
            for t in range(0, len(x), n)
        ]
        u = torch.cat(parts).view(x.shape) + self.bias.to(x.dtype)
        return u, inputs[len(x) :]

    def learned(self) -> dict[str, nn.Parameter]:
        """Without weight and bias, which are trained as those of a linear layer are."""
        return {n: p for n, p in super().learned().items() if n not in ("weight", "bias")}

    def extra_repr(self) -> str:
        own = {"T": self.T, "order": self.order}
        sizes = [f"{name}={value}" for name, value in own.items() if value is not None]
        options = super().extra_repr()
        return ", ".join([*sizes, *([options] if options else [])])
