"""MPBN: BatchNorm of the membrane before the threshold (Guo et al. 2023, arXiv 2308.08359).

    u[t] = (lam v[t-1] + rest/tau) + gain x[t]       as in `bs.lif`
    n[t] = w (u[t] - m[t]) / sqrt(s2[t] + eps) + b   BatchNorm at timestep t over batch and space
    s[t] = 1 if n[t] >= theta else 0                 (w and b are shared by all t)
    v[t] = v_reset where s[t] = 1, else u[t]         u is carried over, not n

In evaluation m and s2 are the running statistics, and n >= theta is equivalent to u >= theta' with

    theta' = (theta - b) sqrt(s2 + eps) / w + m      if w > 0

so the norm is free: the neuron is a LIF with a threshold per channel. In training the statistics at
a timestep depend on earlier spikes, so it runs step by step in torch and autograd saves each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import kernel
from ..kernel import reference
from ..kernel.coefficients import leak, over_channels, rest, state_dtype
from ..kernel.layout import usual_strides
from ..neuron.arguments import has
from ..neuron.lif import LIF, Output, compute
from ..options import MPBN as Options
from .norm import AnyBatchNorm

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..neuron.arguments import LayerArguments
    from ..neuron.constants import Value


@has(Options)
class MPBN(LIF):
    """`LIF` with BatchNorm of its membrane (Guo et al. 2023), `[T, B, C, ...] -> [T, B, C, ...]`.

    The threshold and the surrogate apply to the normalised membrane
    n[t] = w (u[t] - m[t]) / sqrt(s2[t] + eps) + b, with mean and variance per timestep and channel.
    The reset acts on u and must be hard. Recording and PDA see n.
    channels: C, required. `norm.weight` and `norm.bias` are learned. memory: "exact" only.
    The other arguments are those of `LIF`.

    Raises ValueError for missing channels, a soft reset or another `memory`.
    """

    def __init__(
        self,
        tau: Value = Options.tau,
        *,
        channels: int | None = None,
        **rest: Unpack[LayerArguments],
    ) -> None:
        if channels is None:
            raise ValueError("MPBN needs channels=, the size of dimension 2 of the input")
        super().__init__(tau, channels=channels, **rest)
        if self.options.soft:
            raise ValueError(
                "MPBN needs a hard reset such as v_reset=0.0, "
                "because its threshold applies to the normalised membrane"
            )
        if self.options.memory != "exact":
            raise ValueError(f"MPBN: memory must be 'exact', got {self.options.memory!r}")
        self.norm = AnyBatchNorm(channels)

    def compute(
        self, x: Tensor, v0: Tensor | None, repeats: int = 1, want_state: bool = True
    ) -> tuple[Output, kernel.Moments | None]:
        record = self.record()
        if record.membrane or record.moments or torch.is_grad_enabled() or not self.folds():
            return _steps(self.prepare(x, v0, repeats, record), self.norm)
        constants = self.constants()._replace(v_threshold=self.folded_threshold())
        return compute(self.prepare(x, v0, repeats, record, constants), self.options.backend)

    def folds(self) -> bool:
        """Whether the norm can be folded into the threshold in this mode, with these weights."""
        return not self.norm.training and bool((self.norm.weight > 0).all())

    def folded_threshold(self) -> Tensor:
        """theta' `[C]`."""
        n, theta = self.norm, self.constants().v_threshold
        assert n.running_var is not None
        assert n.running_mean is not None
        return (theta - n.bias) * (n.running_var + n.eps).sqrt() / n.weight + n.running_mean


def _steps(call: kernel.Call, norm: nn.Module) -> tuple[Output, kernel.Moments | None]:
    neuron, x, dtype = call.neuron, call.x, state_dtype(call.x)
    lam, offset, gain = leak(call.tau, x, neuron.v_reset, neuron.decay_input)
    reset, theta = rest(neuron.v_reset), over_channels(call.theta, x)
    v = torch.full_like(x[0], reset, dtype=dtype) if call.v0 is None else call.v0
    spikes, normalised = [], []
    for t in range(len(x) * call.repeats):
        v = v if neuron.temporal_gradient else v.detach()
        u = (lam * v + offset) + gain * x[t // call.repeats].to(dtype)
        n = usual_strides(norm(usual_strides(u)))
        s = reference.surrogate_spike(n, theta, t, call)
        s_reset = s.detach() + neuron.reset_gradient * (s - s.detach())
        v = (1 - s_reset) * u + s_reset * reset
        spikes.append(s.to(x.dtype))
        normalised.append(n)
    record = call.record
    n_seq = torch.stack(normalised) if record.membrane or record.moments else None
    moments = reference.membrane_moments(n_seq) if n_seq is not None and record.moments else None
    return Output(torch.stack(spikes), v, n_seq if record.membrane else None), moments
