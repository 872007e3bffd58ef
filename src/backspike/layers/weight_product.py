"""The weight gradient of a convolution as one matrix product, where torch's own way is slow.

On a processor that multiplies tiles (AMX), oneDNN's weight gradient of a convolution with small
outputs takes several times as long as a matrix product of that size. So the input is spread into
columns, the elements that each output reads, and multiplied by the gradient of the output. Measured
in bfloat16 on a Xeon (Sapphire Rapids), ms of oneDNN / product on one thread: 512 to 512 channels,
3x3, 64 images of 4x4 42 / 9.4, of 7x7 59 / 37, of 8x8 64 / 62; 128 to 256, 256 images of 4x4
16.0 / 4.7; 256 to 512, stride 2, 8x8 to 4x4 26 / 4.9. Without tiles the product takes 1.1 to 1.2
times as long as oneDNN for images of 4x4.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernel.cpu.conv import Geometry
from .fast_convolution import multiplies_tiles

PIXELS = 49  # of an output image at most
BYTES = 1 << 24  # of columns at a time


def pays(x: Tensor, weight: Tensor, dtype: torch.dtype, window: Geometry) -> bool:
    """Whether the product is faster for the input x `[N, K, H, W]`, if computed in this dtype."""
    small = math.prod(window.outputs(x.shape[2:], weight.shape[2:])) <= PIXELS
    return small and window.dilation == (1, 1) and multiplies_tiles(dtype)


def weight_gradient(x: Tensor, g: Tensor, weight: Tensor, window: Geometry) -> Tensor:
    """The gradient of the weight for the input x and the output gradient g, at least in float32.

    x `[N, K, H, W]`, g `[N, C, ...]` and the result, of the shape of the weight `[C, K, h, w]`.
    """
    images, C, *size = g.shape
    K, *kernel = weight.shape[1:]
    (top, left), (down, right) = window.padding, window.stride
    last = F.pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top)).contiguous()
    of_image, of_row, of_pixel, _ = last.stride()
    run = kernel[1] * K  # these are neighbours in a row
    each = size[0] * size[1] * kernel[0] * run
    together = min(images, max(1, BYTES // (each * x.element_size())))
    columns = torch.empty(together, *size, kernel[0], run, dtype=x.dtype, device=x.device)
    gradients = g.permute(0, 2, 3, 1).contiguous()
    wide = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(C, kernel[0] * run, dtype=wide, device=x.device)
    for i in range(0, images, together):
        part = last[i : i + together]
        shape = (len(part), *size, kernel[0], run)
        strides = of_image, of_row * down, of_pixel * right, of_row, 1
        spread = columns[: len(part)]
        spread.copy_(part.as_strided(shape, strides))
        total += gradients[i : i + together].view(-1, C).t() @ spread.view(-1, kernel[0] * run)
    return total.view(C, *kernel, K).permute(0, 3, 1, 2)
