"""Samples of a batch mixed in pairs, with their labels: `mix(x, y)` takes and gives shares of the classes, y `[B, K]`.

x are images `[B, C, H, W]` or frames `[B, T, C, H, W]`, treated alike at all timesteps. Each sample has its own draw and a
random partner in the batch, from torch's default generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .augment import box

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Mixing(Protocol):
    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...


def _check_alpha(value: object, alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(f"{type(value).__name__}: alpha must be above 0, got {alpha}")


def _drawn(x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Partners, int64 [B], and the share of a sample itself, Beta(alpha, alpha) [B]."""
    import torch

    partner = torch.randperm(len(x), device=x.device)
    shape = torch.full((len(x),), float(alpha), device=x.device)
    return partner, torch.distributions.Beta(shape, shape, validate_args=False).sample()


def _mixed(y: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    return share[:, None] * y + (1 - share[:, None]) * y[partner]


@dataclass(frozen=True)
class Mixup:
    """Weighted means of two samples and of their labels; the weight is Beta(alpha, alpha) (Zhang et al. 2018)."""

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check_alpha(self, self.alpha)

    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        partner, share = _drawn(x, self.alpha)
        own = share.view(-1, *[1] * (x.dim() - 1))
        return own * x + (1 - own) * x[partner], _mixed(y, partner, share)


@dataclass(frozen=True)
class CutMix:
    """A box is filled with the same place of another sample; labels are mixed by area (Yun et al. 2019; events: NDA, Li et al.
    2022). Before it is cut at the border, the box has the share 1 - Beta(alpha, alpha) of the area, and the image's shape."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self, self.alpha)

    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        partner, share = _drawn(x, self.alpha)
        H, W = x.shape[-2:]
        side = (1 - share).sqrt()
        hole = box(x, (side * H).round().long(), (side * W).round().long())
        kept = 1 - hole.flatten(1).float().mean(1)
        return torch.where(hole, x[partner], x), _mixed(y, partner, kept)
