"""Batch augmentation on the device, for images `[B, C, H, W]` and frames `[B, T, C, H, W]`.

Each sample gets its own random draw from torch's default generator, the same for all its timesteps.
Shape and dtype do not change. Pixels are moved, never interpolated, so event counts remain counts.
Torch is imported by the call, so that recipes can hold these values without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Augment(Protocol):
    """Any callable on a batch that keeps its shape.

    The trainer passes float32: images in [0, 1] or event counts.
    """

    def __call__(self, x: Tensor) -> Tensor: ...


def _positive(value: object, name: str, amount: float) -> None:
    if not amount > 0:
        raise ValueError(f"{type(value).__name__}: {name} must be above 0, got {amount}")


def _probability(value: object, name: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ValueError(f"{type(value).__name__}: {name} must lie in [0, 1], got {p}")


def _per_sample(draw: Tensor, x: Tensor) -> Tensor:
    """Reshapes one value per sample, [B], so that it broadcasts against x."""
    return draw.view(-1, *[1] * (x.dim() - 1))


def _uniform(x: Tensor, bound: float) -> Tensor:
    """Draws one number per sample in [-bound, bound], float32 [B]."""
    import torch

    return (2 * torch.rand(len(x), device=x.device) - 1) * bound


@dataclass(frozen=True)
class Crop:
    """A random crop of the zero-padded image: shifts it by up to `pad` pixels each way."""

    pad: int = 4

    def __post_init__(self) -> None:
        if self.pad < 1:
            raise ValueError(
                f"{type(self).__name__}: the number of pixels must be at least 1, got {self.pad}"
            )

    def __call__(self, x: Tensor) -> Tensor:
        import torch
        from torch.nn import functional as F

        H, W = x.shape[-2:]
        rows, columns = (
            torch.randint(0, 2 * self.pad + 1, (len(x), 1), device=x.device)
            + torch.arange(n, device=x.device)
            for n in (H, W)
        )
        padded = F.pad(x, [self.pad] * 4)
        sample = torch.arange(len(x), device=x.device)[:, None, None]
        # indexed dimensions first: [B, H, W, (T,) C]
        front = padded.movedim((0, -2, -1), (0, 1, 2))
        moved = front[sample, rows[:, :, None], columns[:, None, :]]
        return moved.movedim((1, 2), (-2, -1))


@dataclass(frozen=True)
class Shift(Crop):
    """Crop with a default of one pixel, for small images."""

    pad: int = 1


@dataclass(frozen=True)
class Flip:
    """Flips left and right with probability p."""

    p: float = 0.5

    def __post_init__(self) -> None:
        _probability(self, "p", self.p)

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        flipped = torch.rand(len(x), device=x.device) < self.p
        return torch.where(_per_sample(flipped, x), x.flip(-1), x)


@dataclass(frozen=True)
class ResizedCrop:
    """Scales a random part of the image to its full size (Szegedy et al. 2015).

    scale: bounds of the part's fraction of the area. ratio: bounds of its width divided by height.
    As the first augmentation of a recipe on picture files, it crops the whole file while decoding,
    with bilinear scaling; otherwise it crops its input and takes the nearest pixel.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        for name, (low, high), most in (("scale", self.scale, 1), ("ratio", self.ratio, math.inf)):
            if not (0 < low <= high <= most and high < math.inf):
                bound = " to at most 1" if most == 1 else ""
                raise ValueError(
                    f"ResizedCrop: {name} must rise from above 0{bound}, got {(low, high)}"
                )

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        H, W = x.shape[-2:]
        centre, extent = (part.to(x.device) for part in self.boxes(len(x), W, H))
        return warp(
            x, torch.diag_embed(extent), (centre - 0.5) * torch.tensor([H, W], device=x.device)
        )

    def part(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Draws one part, for `picture.decode`: left, top, right, bottom as fractions."""
        centre, extent = (part[0] for part in self.boxes(1, width, height))
        (top, left), (bottom, right) = (
            (centre + sign * extent / 2).clamp(0, 1).tolist() for sign in (-1, 1)
        )
        return left, top, right, bottom

    def boxes(self, n: int, width: int, height: int) -> tuple[Tensor, Tensor]:
        """Draws n parts of images of this size: (centre, extent), float32 [n, 2].

        Both are (row, column), as fractions of the sides. Of ten draws of area and ratio, the first
        that fits is used; if none fits, the largest centred part with the ratio closest to the
        image's.
        """
        import torch

        area = torch.empty(n, 10).uniform_(*self.scale)
        ratio = torch.empty(n, 10).uniform_(*map(math.log, self.ratio)).exp()
        # from here on, a ratio of fractions
        ratio = ratio * height / width
        extent = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], -1)
        fits = (extent <= 1).all(-1)
        chosen = extent[torch.arange(n), fits.int().argmax(1)]
        middle = min(max(width / height, self.ratio[0]), self.ratio[1]) * height / width
        largest = torch.tensor([min(1 / middle, 1.0), min(middle, 1.0)])
        found = fits.any(1, keepdim=True)
        extent = torch.where(found, chosen, largest)
        centre = torch.where(found, extent / 2 + torch.rand(n, 2) * (1 - extent), 0.5)
        return centre, extent


@dataclass(frozen=True)
class Cutout:
    """Zeroes a square of `size` pixels at a random place, clipped at the border.

    DeVries & Taylor 2017.
    """

    size: int = 16

    def __post_init__(self) -> None:
        _positive(self, "size", self.size)

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        size = torch.full((len(x),), self.size, device=x.device)
        return x.masked_fill(box(x, size, size), 0)


def box(x: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """A mask that is True in a box around a random pixel of each sample, clipped at the border.

    height, width: in pixels, int64 [B]. Returns [B, 1, H, W], or [B, 1, 1, H, W] for frames.
    """
    import torch

    inside = []
    for length, side in zip(x.shape[-2:], (height, width)):
        first = torch.randint(0, length, (len(x),), device=x.device) - side // 2
        index = torch.arange(length, device=x.device)
        inside.append((index >= first[:, None]) & (index < (first + side)[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :]).view(
        len(x), *[1] * (x.dim() - 3), *x.shape[-2:]
    )


def warp(x: Tensor, matrix: Tensor, shift: Tensor | None = None) -> Tensor:
    """Moves pixels: output pixel d is input pixel `matrix @ d + shift`.

    d is (row, column) from the centre; matrix [B, 2, 2], shift [B, 2]. Takes the nearest pixel, and
    zero outside: values (and counts) are moved, never interpolated.
    """
    import torch

    H, W = x.shape[-2:]
    rows, columns = (
        torch.arange(n, device=x.device, dtype=matrix.dtype) - (n - 1) / 2 for n in (H, W)
    )
    target = torch.stack([rows[:, None].expand(H, W), columns.expand(H, W)]).reshape(2, H * W)
    # [B, 2, H * W]
    source = matrix @ target
    if shift is not None:
        source = source + shift[:, :, None]
    row, column = ((s + n / 2).floor().long() for s, n in zip(source.unbind(1), (H, W)))
    outside = (row < 0) | (row >= H) | (column < 0) | (column >= W)
    index = (row * W + column).masked_fill(outside, 0)
    between = [1] * (x.dim() - 3)
    flat = x.flatten(-2)
    taken = flat.gather(-1, index.view(len(x), *between, H * W).expand_as(flat))
    return taken.masked_fill(outside.view(len(x), *between, H * W), 0).unflatten(-1, (H, W))


@dataclass(frozen=True)
class Roll:
    """Shifts each sample by up to `pixels` each way, wrapping around the border."""

    pixels: int = 5

    def __post_init__(self) -> None:
        _positive(self, "pixels", self.pixels)

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        for dimension in (-2, -1):
            n = x.shape[dimension]
            by = torch.randint(-self.pixels, self.pixels + 1, (len(x), 1), device=x.device)
            index = (torch.arange(n, device=x.device) - by) % n
            shape = [len(x), *[1] * (x.dim() - 1)]
            shape[dimension] = n
            x = x.gather(dimension, index.view(shape).expand_as(x))
        return x


@dataclass(frozen=True)
class Rotate:
    """Rotates each sample about its centre by up to `degrees` either way."""

    degrees: float = 15.0

    def __post_init__(self) -> None:
        _positive(self, "degrees", self.degrees)

    def __call__(self, x: Tensor) -> Tensor:
        return warp(x, rotation(_uniform(x, math.radians(self.degrees))))


def rotation(angle: Tensor) -> Tensor:
    """Matrices for `warp`, [B, 2, 2], that rotate counter-clockwise by `angle` [B] in radians."""
    import torch

    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, sin, -sin, cos], -1).view(-1, 2, 2)


@dataclass(frozen=True)
class Shear:
    """Shifts each row sideways by up to `amount` pixels per row of distance from the centre."""

    amount: float = 0.15

    def __post_init__(self) -> None:
        _positive(self, "amount", self.amount)

    def __call__(self, x: Tensor) -> Tensor:
        return warp(x, shearing(_uniform(x, self.amount)))


def shearing(amount: Tensor, vertical: bool = False) -> Tensor:
    """Matrices for `warp`, [B, 2, 2], that shift each row (`vertical`: column) by `amount` [B]."""
    import torch

    matrix = torch.eye(2, dtype=amount.dtype, device=amount.device).repeat(len(amount), 1, 1)
    matrix[:, 1 - vertical, int(vertical)] = amount
    return matrix


@dataclass(frozen=True)
class EventDrop:
    """Drops, with equal probability, nothing, single events, a time span, or an area.

    Single events are dropped with a probability drawn from [0, `most`]; the span takes a fraction
    of the timesteps, and the area a fraction of each side, drawn from the same range. After
    EventDrop (Gu, Sng, Hu & Yu 2021), for frames of counts `[B, T, C, H, W]`.
    Raises ValueError for anything else.
    """

    most: float = 0.5

    def __post_init__(self) -> None:
        _positive(self, "most", self.most)
        _probability(self, "most", self.most)

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        if x.dim() != 5:
            raise ValueError(
                f"EventDrop: expected frames [B, T, C, H, W], got shape {list(x.shape)}"
            )
        B, T, _, H, W = x.shape
        kind = torch.randint(0, 4, (B,), device=x.device)
        share = torch.rand(B, device=x.device) * self.most
        x = _drop_events(x, torch.where(kind == 1, share, 0))
        first = torch.rand(B, device=x.device) * (1 - share) * T
        step = torch.arange(T, device=x.device) + 0.5
        span = (
            (step >= first[:, None]) & (step < (first + share * T)[:, None]) & (kind == 2)[:, None]
        )
        area = box(x, (share * H).round().long(), (share * W).round().long()) & _per_sample(
            kind == 3, x
        )
        return x.masked_fill(span.view(B, T, 1, 1, 1) | area, 0)


def _drop_events(x: Tensor, p: Tensor) -> Tensor:
    """Drops each event of counts x with probability p [B]."""
    import torch

    (cell,) = torch.nonzero(((x > 0) & (_per_sample(p, x) > 0)).flatten(), as_tuple=True)
    # the index into `cell` of each event
    event = torch.repeat_interleave(
        torch.arange(len(cell), device=x.device), x.flatten()[cell].long()
    )
    stays = torch.rand(len(event), device=x.device) >= p[cell // x[0].numel()][event]
    counts = torch.zeros(len(cell), dtype=torch.long, device=x.device)
    counts.index_add_(0, event, stays.long())
    return x.flatten().index_put((cell,), counts.to(x.dtype)).view(x.shape)


@dataclass(frozen=True)
class OneOf:
    """Applies one of `choices` to each sample, all equally probable.

    The default, with a `Flip` before and a `CutMix` after it, is the scheme of NDA (Li, Kim, Park,
    Geller & Panda 2022). Raises ValueError without choices.
    """

    choices: tuple[Augment, ...] = (Roll(), Rotate(), Shear(), Cutout(8))

    def __post_init__(self) -> None:
        if not self.choices:
            raise ValueError("OneOf: at least one choice is needed")

    def __call__(self, x: Tensor) -> Tensor:
        import torch

        choice, out = torch.randint(0, len(self.choices), (len(x),), device=x.device), x.clone()
        for number, augment in enumerate(self.choices):
            (index,) = torch.nonzero(choice == number, as_tuple=True)
            if len(index):
                out[index] = augment(x[index])
        return out
