"""Which 3x3 convolutions Winograd's algorithm computes faster, by a cost model.

`set_convolution(model, "fast")` allows the algorithm (`kernel/cpu/winograd.py`). What it costs is
calculated from shapes, dtype and processor with constants that were measured once, so that a run
and its resume always compute in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..kernel.cpu import winograd
from ..kernel.cpu.conv import Geometry

WAYS = ("exact", "fast")
# Winograd is chosen if it takes at most this part of the dense time.
FAST_BELOW = 0.9
_NEEDED = Geometry(stride=(1, 1), padding=(1, 1), dilation=(1, 1))
_TILE = 4  # outputs of a tile in each direction
_POSITIONS = 36  # products of a tile


@dataclass(frozen=True)
class Rates:
    """Times in multiply-adds of torch's convolution in the same dtype.

    product: of a product of transformed numbers. tile: of transforming a channel of a tile, of
    inputs or outputs. weight: of transforming the weights of a pair of channels.
    """

    product: float
    tile: float
    weight: float


# How many times as fast as torch, for 64 channels of 32x32, 128 of 16x16, 256 of 8x8 and 512 of 4x4
# on one core. BFLOAT16 (VNNI and avx512_bf16) is calculated: a prototype beside torch on Zen 4
# (2.13, 2.54, 2.23, 1.4) times the prototype beside this kernel on a Xeon (0.83, 0.80, 0.91, 0.83)
# is 1.8, 2.0, 2.0, 1.2; the constants give 1.8, 2.2, 2.1, 1.2. The others were measured beside
# float32 on a busy Xeon: VNNI 2.6, 3.0, 2.4, 2.6 (from the constants 2.6, 3.3, 3.2, 2.0), AVX2
# 2.4, 2.65, 2.3, 1.85 (2.4, 2.6, 2.3, 1.9), AVX-512 without VNNI 2.1, 1.9, 1.65, 2.2.
BFLOAT16, VNNI, OTHERS = Rates(1.1, 1300, 5000), Rates(0.8, 800, 2500), Rates(1.2, 500, 2000)


@dataclass(frozen=True)
class Costs:
    """Times of Winograd's algorithm as parts of the dense time; infinite if it cannot be used.

    forward, input: of the output and of the gradient of the input. why: a reason for both.
    """

    forward: float = math.inf
    input: float = math.inf
    why: str = ""


def set_convolution(model: nn.Module, how: str) -> None:
    """Choose how the 3x3 convolutions of the model are computed on a CPU.

    exact: as torch does. fast: by Winograd's algorithm in 16-bit integers where stride and padding
    are 1 and a cost model says that it is faster; forward and gradient of the input. The errors are
    those of bfloat16 or smaller, also in float32. Only convolutions inside `bs.OverTime`,
    `bs.Sequential`, `bs.block` and the networks of `bs.models` follow this; `bs.explain` shows how
    each was computed last. Raises ValueError.
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
    each = images, size, rates
    forward, input = _cost(C, N, *each), _cost(N, C, *each)
    gains = f"calculated {1 / forward:.1f} and {1 / input:.1f} times as fast as dense"
    return Costs(forward, input, gains)


def multiplies_tiles(dtype: torch.dtype) -> bool:
    """Whether torch multiplies in this dtype by the tile multiplication of the processor (AMX)."""
    return dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def _rates(dtype: torch.dtype) -> Rates | str:
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
    deep, wide = _up(C, unit), _up(N, block)
    tiles = images * math.prod(-(-n // _TILE) for n in size)
    products = _POSITIONS * tiles * deep * wide * rates.product
    transforms = tiles * (deep + wide) * rates.tile + deep * wide * rates.weight
    return (products + transforms) / (9 * images * math.prod(size) * C * N)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
