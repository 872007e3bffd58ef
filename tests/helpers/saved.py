"""Membranes, layouts and bits for tests of what is saved for backward."""

import math

import torch


def channels_last(a):
    return a.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


SPECIAL = torch.tensor(
    [1.0, 1 - 2**-24, 1 + 2**-23, math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0, 3.0, -1.0, 1e-30]
)


def membranes(dtype):
    """Inputs that are u itself for gain 1 and a start at 0; near theta = 1 and far from it."""
    u = torch.cat([SPECIAL, torch.linspace(-4, 6, 2001), 1 + torch.linspace(-1, 1, 101) * 2**-12])
    return u.to(dtype).view(1, 1, -1)


def flags(bits, shape):
    return torch.tensor(
        [bits[i // 8].item() >> (i % 8) & 1 for i in range(math.prod(shape))], dtype=torch.bool
    ).view(shape)


class PeakOfSaved:
    """Context that finds the most bytes that autograd held at one time, parameters excepted."""

    def __init__(self):
        self.held = self.peak = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: _Held(self, tensor), lambda held: held.tensor
        )

    def __enter__(self):
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)


class _Held:
    def __init__(self, counter, tensor):
        self.counter, self.tensor = counter, tensor
        self.size = 0 if isinstance(tensor, torch.nn.Parameter) else tensor.nbytes
        counter.held += self.size
        counter.peak = max(counter.peak, counter.held)

    def __del__(self):
        self.counter.held -= self.size
