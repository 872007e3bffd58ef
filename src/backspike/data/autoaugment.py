"""AutoAugment's policy for CIFAR-10 (Cubuk, Zoph, Mané, Vasudevan & Le 2019), batched.

Each image gets its own sub-policy: two operations, each with a probability and a strength from 0 to
9. The operations are Pillow's, on 256 levels; those with two directions use either with equal
probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .augment import rotation, shearing, warp

if TYPE_CHECKING:
    from torch import Tensor

# (operation, probability, strength), twice
POLICY = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("auto_contrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("auto_contrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto_contrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("auto_contrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("auto_contrast", 0.9, 1)),
)


@dataclass(frozen=True)
class AutoAugment:
    """AutoAugment's CIFAR-10 policy for RGB images [B, 3, H, W], uint8 or floats in [0, 1].

    Raises ValueError for other shapes.
    """

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        if x.dim() != 4 or x.shape[1] != 3:
            raise ValueError(
                f"AutoAugment: expected RGB images [B, 3, H, W], got shape {list(x.shape)}"
            )
        levels = x.clone() if x.dtype == torch.uint8 else (x * 255).round().to(torch.uint8)
        policy = torch.randint(0, len(POLICY), (len(x),), device=x.device)
        for place in range(2):
            names, probabilities, strengths = zip(*(operations[place] for operations in POLICY))
            p = torch.tensor(probabilities, device=x.device)[policy]
            chosen = torch.rand(len(x), device=x.device) < p
            sign = 2 * torch.randint(0, 2, (len(x),), device=x.device).double() - 1
            m = sign * torch.tensor(strengths, device=x.device)[policy] / 9
            for name in dict.fromkeys(names):
                same = torch.tensor([name == other for other in names], device=x.device)[policy]
                (index,) = torch.nonzero(chosen & same, as_tuple=True)
                if len(index):
                    levels[index] = OPERATIONS[name](levels[index], m[index])
        return levels if x.dtype == torch.uint8 else levels.to(x.dtype) / 255


# Operations take uint8 [B, 3, H, W] and the strength for each image, float64 [B] in [-1, 1].


def _invert(x: Tensor, m: Tensor) -> Tensor:
    return 255 - x


def _solarize(x: Tensor, m: Tensor) -> Tensor:
    """Inverts levels above a threshold, which falls from 256 to 0."""
    return x.where(x < (256 * (1 - m.abs())).view(-1, 1, 1, 1), 255 - x)


def _posterize(x: Tensor, m: Tensor) -> Tensor:
    """Reduces levels to 8, ..., 4 bits."""
    dropped = (4 * m.abs()).round().to(x.dtype).view(-1, 1, 1, 1)
    return (x >> dropped) << dropped


def _auto_contrast(x: Tensor, m: Tensor) -> Tensor:
    """Stretches each channel to 0..255."""
    flat = x.flatten(2).double()
    low, high = flat.amin(2, keepdim=True), flat.amax(2, keepdim=True)
    scale = 255 / (high - low).clamp(min=1)
    stretched = (flat * scale - low * scale).trunc().clamp(0, 255)
    return stretched.where(high > low, flat).view(x.shape).to(x.dtype)


def _equalize(x: Tensor, m: Tensor) -> Tensor:
    """Maps the levels of each channel so that they become equally frequent."""
    import torch

    flat = x.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, flat, torch.ones_like(flat))
    # number of pixels with the highest level
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    below = counts.cumsum(2) - counts
    table = ((step // 2 + below) // step.clamp(min=1)).clamp(max=255)
    return table.gather(2, flat).where(step > 0, flat).view(x.shape).to(x.dtype)


def _blend(x: Tensor, other: Tensor, m: Tensor) -> Tensor:
    """Moves away from `other` for m > 0, towards it for m < 0, by up to 0.9."""
    out = other + (1 + 0.9 * m.view(-1, 1, 1, 1)).float() * (x.float() - other)
    return out.clamp(0, 255).to(x.dtype)


def _grey(x: Tensor) -> Tensor:
    """ITU-R BT.601 luma on 256 levels, [B, 1, H, W], rounded like Pillow."""
    r, g, b = x.int().unbind(1)
    return ((r * 19595 + g * 38470 + b * 7471 + 32768) >> 16).unsqueeze(1).float()


def _color(x: Tensor, m: Tensor) -> Tensor:
    return _blend(x, _grey(x), m)


def _contrast(x: Tensor, m: Tensor) -> Tensor:
    return _blend(x, (_grey(x).mean((1, 2, 3), keepdim=True) + 0.5).floor(), m)


def _brightness(x: Tensor, m: Tensor) -> Tensor:
    import torch

    return _blend(x, torch.zeros((), device=x.device), m)


def _sharpness(x: Tensor, m: Tensor) -> Tensor:
    """Blends with a smoothed image (weights 1, 5 in the centre); the border is unchanged."""
    import torch
    from torch.nn import functional as F

    kernel = torch.ones(3, 1, 3, 3, device=x.device)
    kernel[:, :, 1, 1] = 5
    smooth = x.float()
    smooth[..., 1:-1, 1:-1] = (F.conv2d(x.float(), kernel, groups=3) / 13 + 0.5).floor()
    return _blend(x, smooth, m)


def _rotate(x: Tensor, m: Tensor) -> Tensor:
    return warp(x, rotation(m * math.radians(30)))


def _shear(x: Tensor, m: Tensor, axis: int) -> Tensor:
    """Shears by up to 0.3 pixels per row or column, counted from the corner."""
    shift = m.new_zeros(len(x), 2)
    shift[:, axis] = m * 0.3 * x.shape[3 - axis] / 2
    return warp(x, shearing(m * 0.3, vertical=axis == 0), shift)


def _translate(x: Tensor, m: Tensor, axis: int) -> Tensor:
    """Shifts by up to 150/331 of the side, in whole pixels."""
    shift = m.new_zeros(len(x), 2)
    shift[:, axis] = (m * 150 / 331 * x.shape[2 + axis]).trunc()
    return warp(x, shearing(0 * m), shift)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "invert": _invert,
    "solarize": _solarize,
    "posterize": _posterize,
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
    "rotate": _rotate,
    "shear_x": lambda x, m: _shear(x, m, 1),
    "shear_y": lambda x, m: _shear(x, m, 0),
    "translate_x": lambda x, m: _translate(x, m, 1),
    "translate_y": lambda x, m: _translate(x, m, 0),
}
