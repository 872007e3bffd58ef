"""Lower limits for the time of any implementation that does all the work.

`Copy` moves the 16 bytes per neuron and timestep that a float32 neuron layer has to move: input,
spikes and their gradients. `Products` runs only the convolutions and matrix products of the
network's forward and backward passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from . import networks
from .libraries.plain import Parts
from .task import Settings, Workload

# bytes read, and as many written, if the workload does not determine them: far beyond any cache
COPIED = 2**27


class Copy:
    """Copies a buffer."""

    def __init__(self, work: Workload, settings: Settings) -> None:
        size = 8 * work.T * work.B if work.kind == "neuron" else COPIED
        self.a = torch.ones(size // 4, device=settings.device)
        self.b = torch.zeros(size // 4, device=settings.device)

    def iteration(self) -> None:
        self.b.copy_(self.a)

    def facts(self) -> dict[str, Any]:
        return {"bytes": 8 * self.a.numel()}


class Products:
    """Output, weight gradient and (except in the first layer) input gradient of all layers."""

    def __init__(self, work: Workload, settings: Settings) -> None:
        self.dtype = torch.bfloat16 if settings.bfloat16 else torch.float32
        self.layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self.runs: list[Callable[[], object]] = []
        self.device = settings.device
        self.flop = 0
        self.moved = 0
        self.inputs: list[float] = []
        for module, shape, share in _layers(work, settings):
            self.inputs.append(share)
            first = not self.runs
            if work.kind == "stream":
                self._add_steps(module, shape, work.T, share)
            elif isinstance(module, nn.Conv2d):
                self._add_convolution(module, shape, first)
            else:
                self._add_linear(module, shape, first)

    def iteration(self) -> None:
        for run in self.runs:
            run()

    def facts(self) -> dict[str, Any]:
        """inputs: share of nonzero inputs by layer. moved: bytes read and written by the products,
        and by BatchNorm fused with the neuron between them.
        """
        return {"flop": self.flop, "inputs": self.inputs, "moved": self.moved}

    def _tensor(self, shape: tuple[int, ...]) -> Tensor:
        made = torch.rand(shape).to(self.device, self.dtype)
        return made.contiguous(memory_format=self.layout) if len(shape) == 4 else made

    def _count(self, products: int, operations: int) -> None:
        self.flop += 2 * products * operations

    def _add_convolution(self, m: nn.Conv2d, shape: tuple[int, ...], first: bool) -> None:
        x, w = self._tensor(shape), self._tensor(tuple(m.weight.shape))
        geometry: Any = (m.stride, m.padding, m.dilation)
        g = self._tensor(tuple(nn.functional.conv2d(x, w, None, *geometry).shape))
        backward = torch.ops.aten.convolution_backward

        def run() -> None:
            nn.functional.conv2d(x, w, None, *geometry)
            backward(g, x, w, None, *geometry, False, [0, 0], 1, [not first, True, False])

        self.runs.append(run)
        self._count(2 if first else 3, g.numel() * math.prod(w.shape[1:]))
        self._move(x, g, first)

    def _add_linear(self, m: nn.Linear, shape: tuple[int, ...], first: bool) -> None:
        x, w = self._tensor(shape), self._tensor(tuple(m.weight.shape))
        g = self._tensor((shape[0], m.out_features))

        def run() -> None:
            nn.functional.linear(x, w)
            torch.mm(g.t(), x)
            if not first:
                torch.mm(g, w)

        self.runs.append(run)
        self._count(2 if first else 3, g.numel() * m.in_features)
        self._move(x, g, first)

    def _add_steps(self, m: Any, shape: tuple[int, ...], T: int, share: float) -> None:
        """All products of the layer, forward and timestep by timestep.

        Moved are at least the rows of the weight at nonzero inputs, and per neuron its current
        (written and read), its state (read and written) and its spike (written).
        """
        x, w = self._tensor((shape[0] // T, *shape[1:])), self._tensor(tuple(m.weight.shape))
        if isinstance(m, nn.Conv2d):
            run = partial(nn.functional.conv2d, x, w, None, m.stride, m.padding, m.dilation)
        else:
            run = partial(nn.functional.linear, x, w)
        y = run()
        self.runs.append(lambda: [run() for _ in range(T)])
        self._count(1, T * y.numel() * math.prod(w.shape[1:]))
        rows = share * x.numel() * w.numel() / w.shape[1]
        self.moved += round(T * x.element_size() * (rows + 5 * y.numel()))

    def _move(self, x: Tensor, y: Tensor, first: bool) -> None:
        """Counts the bytes moved by a layer with input x and output y.

        Each product reads two of input, output and weights (or their gradients) and writes the
        third. BatchNorm with its neuron reads y for the statistics, reads it again and writes the
        spikes; in backward it reads y and the gradient twice and writes one gradient.
        """
        products, neuron = 2 if first else 3, 8
        self.moved += x.element_size() * (products * (x.numel() + y.numel()) + neuron * y.numel())


@torch.no_grad()
def _layers(work: Workload, settings: Settings) -> list[tuple[Any, tuple[int, ...], float]]:
    """Every convolution and linear layer, the shape of its input (T folded into the batch), and its
    share of nonzero values.
    """
    seen: list[tuple[Any, tuple[int, ...], float]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(
            (module, tuple(inputs[0].shape), inputs[0].count_nonzero().item() / inputs[0].numel())
        )

    lib = Parts(settings)
    model = networks.build(work, lib)
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            m.register_forward_pre_hook(note)
    x, _ = networks.data(work)
    model(lib.repeat(x, work.T) if work.static else x)
    if work.static:  # a static input is computed once
        module, shape, share = seen[0]
        seen[0] = (module, (shape[0] // work.T, *shape[1:]), share)
    return seen
