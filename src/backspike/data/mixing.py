"""Mixes pairs of samples in a batch, and their labels: `mix(x, y)` with class shares y `[B, K]`.

x are images `[B, C, H, W]` or frames `[B, T, C, H, W]`, mixed alike at all timesteps. Each sample
gets its own random draw and a random partner in the batch, from torch's default generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from .augment import box

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class Mixing(Protocol):
    """Anything with a method `mix(x, y)` that returns mixed samples and labels."""

    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...


def _check_alpha(value: object, alpha: float) -> None:
    if not alpha > 0:
        raise ValueError(f"{type(value).__name__}: alpha must be above 0, got {alpha}")


def _draw(x: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Draws partners, int64 [B], and each sample's own share, Beta(alpha, alpha) [B]."""
    import torch

    partner = torch.randperm(len(x), device=x.device)
    shape = torch.full((len(x),), float(alpha), device=x.device)
    return partner, torch.distributions.Beta(shape, shape, validate_args=False).sample()


def _mix_labels(y: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    return share[:, None] * y + (1 - share[:, None]) * y[partner]


@dataclass(frozen=True)
class Mixup:
    """Weighted means of two samples and of their labels, with weights from Beta(alpha, alpha).

    Zhang, Cisse, Dauphin & Lopez-Paz 2018. Raises ValueError unless alpha is positive.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check_alpha(self, self.alpha)

    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed samples, shaped like x, and labels [B, K]."""
        partner, share = _draw(x, self.alpha)
        own = share.view(-1, *[1] * (x.dim() - 1))
        return own * x + (1 - own) * x[partner], _mix_labels(y, partner, share)


@dataclass(frozen=True)
class CutMix:
    """Fills a box with the same region of another sample, and mixes labels by area.

    Yun et al. 2019; for events: NDA, Li et al. 2022. Before it is clipped at the border, the box
    covers a share 1 - Beta(alpha, alpha) of the area and has the aspect ratio of the image.
    Raises ValueError unless alpha is positive.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self, self.alpha)

    def mix(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed samples, shaped like x, and labels [B, K]."""
        import torch

        partner, share = _draw(x, self.alpha)
        H, W = x.shape[-2:]
        side = (1 - share).sqrt()
        hole = box(x, (side * H).round().long(), (side * W).round().long())
        own = 1 - hole.flatten(1).float().mean(1)
        return torch.where(hole, x[partner], x), _mix_labels(y, partner, own)
