"""Learned delays: each channel, or each synapse, delays its input by a number of timesteps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..neuron.prepare import check_input
from ..neuron.streaming import Streaming

SIGMA_END = 0.5  # in timesteps, as in the paper


class Delay(Streaming):
    """Delays that are learned (Hammouamri, Khalfaoui-Hassani & Masquelier 2023, arXiv 2306.17670).

        y[t, c] = sum_n k_c[n] x[t - n, c]                 one delay per channel, [T, B, C, ...]
        y[t, o] = sum_{i,n} W_oi k_oi[n] x[t - n, i]       out_features: per synapse, [T, B, I]
        training:    k[n] = exp(-((n - d) / sigma)^2 / 2) / sum over all n,   n = 0 ... max_delay
        evaluation:  k[n] = 1 if n = round(d) else 0

    d is the parameter `delay`, in timesteps, `[C]` or `[O, I]`, kept within [0, max_delay] and
    drawn uniformly from there. x before the first timestep is 0, and no output depends on later
    inputs. With `out_features` the layer is a linear layer with a delay in each synapse; its
    `weight` and `bias` are initialised as those of `nn.Linear`.

    The Gaussian lets gradients find delays far from the present one; it narrows during training.
    sigma: its standard deviation at the start, in timesteps; None: max_delay / 2, as in the paper.
    `anneal(progress)` sets the buffer `sigma` for a share of the training from 0 to 1, `bs.fit`
    calls it once per epoch: exponentially from its start to 0.5 over the first quarter, as in the
    paper. `bs.streaming` carries the last max_delay inputs.

    Raises ValueError for sizes that are no positive integers, or another number of channels.
    """

    sigma: Tensor

    def __init__(
        self,
        channels: int,
        max_delay: int,
        *,
        out_features: int | None = None,
        bias: bool = True,
        sigma: float | None = None,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "max_delay": max_delay, "out_features": out_features}
        for name, value in sizes.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"Delay: {name} must be a positive integer, got {value!r}")
        self.sigma_start = max(max_delay / 2, SIGMA_END) if sigma is None else float(sigma)
        if not 0 < self.sigma_start < math.inf:
            raise ValueError(f"Delay: sigma must be a positive number, got {sigma}")
        self.channels, self.max_delay, self.out_features = channels, max_delay, out_features
        shape = (channels,) if out_features is None else (out_features, channels)
        self.delay = nn.Parameter(torch.empty(shape).uniform_(0, max_delay))
        self.register_buffer("sigma", torch.tensor(self.sigma_start))
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if out_features is not None:
            bound = 1 / math.sqrt(channels)
            self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
            if bias:
                self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))

    def anneal(self, progress: float) -> None:
        """Set sigma for this share of the training, from 0 to 1."""
        ratio = min(SIGMA_END / self.sigma_start, 1.0)
        self.sigma.fill_(self.sigma_start * ratio ** min(4 * progress, 1.0))

    def kernel(self) -> Tensor:
        """k[n] for n = 0 ... max_delay, `[C, max_delay + 1]` or `[O, I, max_delay + 1]`."""
        n = torch.arange(self.max_delay + 1, device=self.delay.device)
        d = self.delay[..., None]
        if not self.training:
            return (n == d.round().clamp(0, self.max_delay)).to(d.dtype)
        return torch.softmax(-0.5 * ((n - d) / self.sigma) ** 2, -1)

    def forward(self, x: Tensor) -> Tensor:
        check_input(x, None)
        dimensions = "[T, B, C, ...]" if self.weight is None else "[T, B, C]"
        fits = x.dim() >= 3 if self.weight is None else x.dim() == 3
        if not fits or x.shape[2] != self.channels:
            raise ValueError(
                f"Delay needs an input {dimensions} with C = {self.channels}, got {[*x.shape]}"
            )
        if self.training and torch.is_grad_enabled():
            self.delay.data.clamp_(0, self.max_delay)
        before = self.initial_state(None, x)
        if before is None:
            before = x.new_zeros((self.max_delay, *x.shape[1:]))
        inputs = torch.cat((before, x))
        self.carry(inputs[len(x) :])
        if self.weight is not None:
            return self._synapses(inputs)
        return self._smooth(inputs) if self.training else self._shift(inputs)

    def _shift(self, inputs: Tensor) -> Tensor:
        """Each channel as it was `delay` timesteps before."""
        delay = self.delay.detach().round().clamp(0, self.max_delay).long()
        T = len(inputs) - self.max_delay
        at = torch.arange(self.max_delay, len(inputs), device=delay.device)[:, None] - delay
        index = at.view(T, 1, -1, *[1] * (inputs.dim() - 3)).expand(T, *inputs.shape[1:])
        return inputs.gather(0, index)

    def _smooth(self, inputs: Tensor) -> Tensor:
        """A depthwise convolution over time."""
        rows = inputs.flatten(3).movedim(0, -1) if inputs.dim() > 3 else inputs.movedim(0, -1)
        if rows.dim() > 3:  # [B, C, positions, time] -> [B positions, C, time]
            rows = rows.transpose(1, 2).flatten(0, 1)
        k = self.kernel().flip(-1)[:, None].to(inputs.dtype)
        y = functional.conv1d(rows, k, groups=self.channels)
        y = y.view(inputs.shape[1], -1, self.channels, y.shape[-1]).permute(3, 0, 2, 1)
        return y.reshape(y.shape[0], *inputs.shape[1:])

    def _synapses(self, inputs: Tensor) -> Tensor:
        assert self.weight is not None
        k = (self.weight[..., None] * self.kernel()).flip(-1).to(inputs.dtype)
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return functional.conv1d(inputs.permute(1, 2, 0), k, bias).permute(2, 0, 1)

    def extra_repr(self) -> str:
        outputs = "" if self.out_features is None else f", out_features={self.out_features}"
        return f"{self.channels}, max_delay={self.max_delay}{outputs}"
