"""The numbers that convolutions of a trained network compute with, and the errors on them.

Random numbers are easier: trained networks have gradients with large values, and small ones that
are alike in a whole channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight

from ..data.batches import Batches
from ..kernel.cpu import conv_lookup, winograd
from ..kernel.cpu.conv import Events
from ..kernel.pack import pack
from ..layers import sparsity
from ..neuron.hooks import on_call
from ..run import Run
from ..train.network import trained
from ..train.setup import load_data

SAMPLES, SEED = 64, 1
# torch rounds the weights, too, so it is further from the exact result
LIMIT = 1.0


@dataclass(frozen=True)
class Operands:
    """The numbers of a 3x3 convolution with stride and padding 1, in float32.

    x: `[images, C, H, W]`. weight: `[N, C, 3, 3]`. g: the gradient of the output,
    `[images, N, H, W]`.
    """

    x: Tensor
    weight: Tensor
    g: Tensor

    def exact(self) -> dict[str, Tensor]:
        """The output and the gradients of x and of the weight in float64.

        The gradient of the weight is that for spikes as input, where x is not zero.
        """
        return self._torch(torch.float64)

    def bfloat16(self) -> dict[str, Tensor]:
        """The same by torch in bfloat16."""
        return self._torch(torch.bfloat16)

    def fast(self, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """The same by the fast ways; the gradient of the weight by the one of this processor."""
        g = self.g.to(dtype)
        return {
            "output": winograd.convolve(self.x.to(dtype), self.weight),
            "input gradient": winograd.input_gradient(g, self.weight),
            "weight gradient": self.weight_gradient(dtype)(g),
        }

    def weight_gradient(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor | None]:
        """A function of g in this dtype: the fast gradient of the weight for spikes as input."""
        spikes = (self.x != 0).to(dtype)
        if not conv_lookup.available():
            return lambda g: winograd.weight_gradient(spikes, g)
        packed = pack(spikes)
        events = Events(packed.codes, packed.bits, packed.shape)
        return lambda g: conv_lookup.weight_gradient(events, g, self.weight, SEED)

    def _torch(self, dtype: torch.dtype) -> dict[str, Tensor]:
        x, weight, g = (t.to(dtype) for t in (self.x, self.weight, self.g))
        return {
            "output": F.conv2d(x, weight, padding=1),
            "input gradient": conv2d_input(x.shape, weight, g, padding=1),
            "weight gradient": conv2d_weight((x != 0).to(dtype), weight.shape, g, padding=1),
        }


def operands(run: str, images: int) -> dict[str, Operands]:
    """The operands of a training step of a run or of a network of the package, by layer name.

    images: how many images of each layer to take, those with the largest gradients.
    """
    _, recipe, network = trained(Run.find(run))
    x, y = Batches(load_data(recipe).train, recipe, torch.device("cpu")).take(torch.arange(SAMPLES))
    found: dict[str, Operands] = {}

    def keep(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = _last(layers[name].weight.detach())

        def keep_gradient(g: Tensor) -> None:
            largest = g.abs().amax((1, 2, 3)).topk(min(images, len(g))).indices
            found[name] = Operands(_last(inputs[0].detach()[largest]), weight, _last(g[largest]))

        output.register_hook(keep_gradient)

    modules = network.named_modules()
    layers = {n: m for n, m in modules if isinstance(m, nn.Conv2d) and _may_be_fast(m)}
    with on_call(layers, keep):
        outputs = network.train().model(x)
        recipe.loss_value(outputs, network.readout(outputs), y).backward()
    return found


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _may_be_fast(layer: nn.Conv2d) -> bool:
    same = layer.kernel_size == (3, 3) and layer.stride == layer.padding == layer.dilation == (1, 1)
    return same and layer.groups == 1 and min(layer.weight.shape[:2]) >= sparsity.FEWEST_CHANNELS


def error(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||."""
    return float((got.double() - want).norm() / want.norm())


@cache
def why_not_accurate() -> str:
    """Why fast convolutions are less accurate than torch's in bfloat16 on digits; "" if not."""
    for name, numbers in operands("digits", SAMPLES).items():
        exact, rounded = numbers.exact(), numbers.bfloat16()
        for product, got in numbers.fast(torch.bfloat16).items():
            limit = LIMIT * error(rounded[product], exact[product])
            if got is None or not error(got, exact[product]) <= limit:
                found = "refused" if got is None else f"off by {error(got, exact[product]):.1e}"
                return f"fast {product} of {name}: {found}, torch in bfloat16 by {limit:.1e}"
    return ""
