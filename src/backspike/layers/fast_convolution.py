"""Which 3x3 convolutions are computed faster than by torch, by a cost model.

`set_convolution(model, "fast")` allows two algorithms: Winograd's (`kernel/cpu/winograd.py`) for
the output and the gradients, and looking up (`kernel/cpu/conv_lookup.py`) for the gradient of the
weight where the input is spikes. What they cost is calculated from shapes, dtype and processor with
constants that were measured once, so that a run and its resume always compute in the same way.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import nn

from ..kernel.cpu import conv_lookup, winograd
from ..kernel.cpu.conv import Geometry

WAYS = ("exact", "fast")
# A fast way is chosen if it takes at most this part of the dense time.
FAST_BELOW = 0.9
_NEEDED = Geometry(stride=(1, 1), padding=(1, 1), dilation=(1, 1))
_TILE = 4  # outputs of a tile in each direction
_POSITIONS = 36  # products of a tile
_TOGETHER = 16  # channels, of inputs or outputs
_BLOCK = 16  # output channels that winograd_weight.c adds together with AVX2


@dataclass(frozen=True)
class Rates:
    """Times of Winograd's algorithm in multiply-adds of torch's convolution in the same dtype.

    product: of a product of transformed numbers. tile: of transforming a channel of a tile, of
    inputs or outputs. weight: of transforming the weights of a pair of channels, or the sums that
    their gradient is made of.
    """

    product: float
    tile: float
    weight: float


@dataclass(frozen=True)
class LookupRates:
    """Times of looking up, in the same unit.

    look: for an octet, a tap and a pair of channels. octet: of the tables of an output for an
    octet, and of the places of an input in them. sums: of the sums of a pair of channels.
    """

    look: float
    octet: float
    sums: float


# How many times as fast as torch, for 64 channels of 32x32, 128 of 16x16, 256 of 8x8 and 512 of 4x4
# on one core, 64 images. Winograd: BFLOAT16 (VNNI and avx512_bf16) is calculated: a prototype
# beside torch on Zen 4 (2.13, 2.54, 2.23, 1.4) times the prototype beside this kernel on a Xeon
# (0.83, 0.80, 0.91, 0.83) is 1.8, 2.0, 2.0, 1.2; the constants give 1.8, 2.2, 2.1, 1.2. The others
# were measured beside float32 on a busy Xeon: VNNI 2.6, 3.0, 2.4, 2.6 (from the constants 2.6, 3.3,
# 3.2, 2.0), AVX2 2.4, 2.65, 2.3, 1.85 (2.4, 2.6, 2.3, 1.9), AVX-512 without VNNI 2.1, 1.9, 1.65,
# 2.2.
# Looking up: BFLOAT16 is calculated in the same way, 2.49, 2.29, 2.48, 2.54 times 0.97, 0.99, 1.01,
# 0.98 is 2.4, 2.3, 2.5, 2.5 (from the constants 2.4 for all). VNNI was measured beside float32 on a
# quiet Xeon (Sapphire Rapids), medians of two runs: 1.6, 1.8, 2.2, 3.0 (1.7, 1.95, 2.1, 2.2); on
# two cores 1.4, 1.7, 1.9, 1.8. Without VNNI the same took 1.25 times as long.
BFLOAT16 = Rates(1.1, 1300, 5000), LookupRates(3.2, 50, 100)
VNNI = Rates(0.8, 800, 2500), LookupRates(3.4, 400, 100)
OTHERS = Rates(1.2, 500, 2000), LookupRates(4.25, 500, 125)
# Of Winograd's gradient of the weight with AVX2, measured beside float32 on one core (Zen 3), as
# many times as fast as torch: 32 to 64 channels of 16x16 2.2, 64 to 128 of 8x8 2.8, 128 to 256 of
# 4x4 3.6, 256 images; 64 of 32x32 3.3, 128 of 16x16 3.4, 256 of 8x8 3.3, 512 of 4x4 2.0, 64 images
# (from the constants 2.5, 3.0, 3.0; 2.9, 3.3, 3.1, 2.0). Not measured with AVX-512, where it is not
# used.
WEIGHT = Rates(0.95, 500, 2200)


@dataclass(frozen=True)
class Costs:
    """Times of the fast ways as parts of the dense time; infinite if they cannot be used.

    forward, input, weight: of the output, and of the gradients of the input and of the weight, by
    Winograd's algorithm. lookup: of looking up the gradient of the weight, if the input is spikes.
    why: a reason for all.
    """

    forward: float = math.inf
    input: float = math.inf
    weight: float = math.inf
    lookup: float = math.inf
    why: str = ""


def set_convolution(model: nn.Module, how: str) -> None:
    """Choose how the 3x3 convolutions of the model are computed on a CPU.

    exact: as torch does. fast: where stride and padding are 1 and a cost model says that it is
    faster, by Winograd's algorithm: in 16-bit integers (output and gradient of the input), and in
    float32 (gradient of the weight, with AVX2). With AVX-512, the gradient of the weight is
    computed by sums of the output gradient that the spikes look up, where the input is spikes. The
    errors are those of bfloat16 or smaller, also in float32. Only convolutions inside
    `bs.OverTime`, `bs.Sequential`, `bs.block` and the networks of `bs.models` follow this;
    `bs.explain` shows how each was computed last. Raises ValueError.
    """
    if how not in WAYS:
        raise ValueError(f"a convolution is exact or fast, got {how!r}")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.convolution = how  # type: ignore[assignment]


def costs(
    layer: nn.Conv2d, images: int, size: tuple[int, int], dtype: torch.dtype, window: Geometry
) -> Costs | None:
    """The costs for inputs `[images, C, *size]`; None if the layer is to be exact."""
    if getattr(layer, "convolution", "exact") == "exact":
        return None
    if layer.kernel_size != (3, 3) or window != _NEEDED:
        return Costs(why="only 3x3 with stride 1 and padding 1 can be fast")
    rates = _rates(dtype)
    if isinstance(rates, str):
        return Costs(why=rates)
    C, N = layer.in_channels, layer.out_channels
    transformed, looked_up = rates
    forward, input = (_cost(*pair, images, size, transformed) for pair in ((C, N), (N, C)))
    weight = _weight_cost(C, N, images, size)
    lookup = _lookup_cost(C, N, images, size, looked_up)
    gains = f"calculated {1 / forward:.1f} and {1 / input:.1f} times as fast as dense"
    if weight < math.inf:
        gains += f", the weight gradient {1 / weight:.1f} times"
    if lookup < math.inf:
        gains += f", the weight gradient of spikes {1 / lookup:.1f} times"
    return Costs(forward, input, weight, lookup, gains)


def multiplies_tiles(dtype: torch.dtype) -> bool:
    """Whether torch multiplies in this dtype by the tile multiplication of the processor (AMX).

    The environment variable ONEDNN_MAX_CPU_ISA can forbid it, as in a comparison of processors.
    """
    highest = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    allowed = highest in ("", "ALL", "DEFAULT") or "AMX" in highest
    return allowed and dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def _rates(dtype: torch.dtype) -> tuple[Rates, LookupRates] | str:
    """The rates on this processor, or why the algorithm is not used on it."""
    if not winograd.available() or winograd.block() < 16:
        return "fast only with AVX2 or AVX-512"
    if multiplies_tiles(dtype):
        return "the tile multiplication of this processor (AMX) is faster in bfloat16"
    if winograd.block() < 64 or not winograd.has_vnni():
        return OTHERS
    native = dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return BFLOAT16 if native else VNNI


def _cost(C: int, N: int, images: int, size: tuple[int, int], rates: Rates) -> float:
    """The time of a convolution of C to N channels as a part of the dense time."""
    block = winograd.block()
    unit = max(block // 2, 16)  # input channels that are transformed together: two vectors
    return _part(C, N, _up(C, unit), _up(N, block), images, size, rates)


def _weight_cost(C: int, N: int, images: int, size: tuple[int, int]) -> float:
    """The same for the gradient of the weight."""
    if winograd.block() != _BLOCK:  # with AVX-512
        return math.inf
    return _part(C, N, C, _up(N, _BLOCK), images, size, WEIGHT)


def _part(
    C: int, N: int, deep: int, wide: int, images: int, size: tuple[int, int], rates: Rates
) -> float:
    """The same where channels are computed as if there were `deep` and `wide`."""
    tiles = images * math.prod(-(-n // _TILE) for n in size)
    products = _POSITIONS * tiles * deep * wide * rates.product
    transforms = tiles * (deep + wide) * rates.tile + deep * wide * rates.weight
    return (products + transforms) / (9 * images * math.prod(size) * C * N)


def _lookup_cost(C: int, N: int, images: int, size: tuple[int, int], rates: LookupRates) -> float:
    """The same for looking up the gradient of the weight."""
    if not conv_lookup.available():
        return math.inf
    octets = images * min(
        math.prod(-(-n // side) for n, side in zip(size, sides)) for sides in ((1, 8), (2, 4))
    )
    deep, wide = _up(C, _TOGETHER), _up(N, _TOGETHER)
    looked = 9 * octets * deep * wide * rates.look + octets * (deep + wide) * rates.octet
    return (looked + deep * wide * rates.sums) / (9 * images * math.prod(size) * C * N)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
