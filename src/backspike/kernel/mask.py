"""The gradient mask of MSG: a counter hash, so that no mask tensor is stored and every backend drops the same elements.

The mask is a pure function of (seed, element index), fixed for ever by golden vectors in the tests. Seeds come from torch's
default generator through one opaque operator, so `torch.manual_seed` governs them and compiled code draws what eager draws.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..options import LIF

_C1 = 0x7FEB352D
_C2 = 0x846CA68B - 2**32  # the same 32 bits as a signed int32
_RANK_STRIDE = 0x9E3779B97F4A7C15
_REPLAY_STRIDE = 0x2545F4914F6CDD1D


def _lowbias32(x: Tensor) -> Tensor:
    """The public-domain integer hash lowbias32, in place on int32 (arithmetic wraps; shifts are made logical)."""
    x ^= (x >> 16) & 0xFFFF
    x *= _C1
    x ^= (x >> 15) & 0x1FFFF
    x *= _C2
    x ^= (x >> 16) & 0xFFFF
    return x


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.to(torch.int32), (x >> 32).to(torch.int32)


def dropped_at(seed: Tensor, start: int, shape: Sequence[int], p: Tensor) -> Tensor:
    """Which of the elements start, start + 1, ... are dropped, as a bool tensor of `shape` on the seed's device."""
    index = torch.arange(start, start + math.prod(shape), dtype=torch.int64, device=seed.device)
    lo, hi = _halves(index)
    seed_lo, seed_hi = _halves(seed)
    bits = _lowbias32(_lowbias32(lo ^ seed_lo) ^ seed_hi ^ hi)
    limit = (p.to(device=seed.device, dtype=torch.float64) * 2**24).round().to(torch.int32)
    return (((bits >> 8) & 0xFFFFFF) < limit).view(tuple(shape))


def dropped(seed: int | Tensor, shape: Sequence[int], p: float | Tensor) -> Tensor:
    """Exactly the elements that `Masked(p)` drops for this seed: a bool tensor of `shape`, `[T, B, ...]`.

    seed: an integer in [0, 2^63), or the 0-dim int64 tensor a layer drew (`layer.seed`). The index of an element is its
    C-order position in `[T, B, ...]`, whatever the memory layout.
    """
    return dropped_at(as_seed(seed), 0, shape, as_probability(p))


def masked_derivative(
    z: Tensor, t: int, width: Tensor | None, neuron: LIF, seed: Tensor | None, p: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h at timestep t, and the part of the base surrogate in it, through which a width learns."""
    base = neuron.base
    h = base.derivative(z) if width is None else base.derivative(z / width) / width
    if seed is None or p is None:
        return h, h
    gone = dropped_at(seed, t * z.numel(), z.shape, p)
    kept = (h / (1 - p.to(h)) if neuron.rescale else h).masked_fill(gone, 0.0)
    if neuron.replace is None:
        return kept, kept
    return torch.where(gone, neuron.replace.derivative(z), kept), kept


def as_seed(seed: int | Tensor, device: torch.device | None = None) -> Tensor:
    if isinstance(seed, Tensor):
        if seed.dim() != 0 or seed.dtype != torch.int64:
            raise ValueError(
                f"seed must be a 0-dim int64 tensor, got shape {list(seed.shape)} of {seed.dtype}"
            )
        return seed if device is None else seed.to(device)
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie in [0, 2^63), got {seed}")
    return torch.tensor(seed, dtype=torch.int64, device=device)


def as_probability(p: float | Tensor) -> Tensor:
    if isinstance(p, Tensor):
        return p
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability and must lie in [0, 1], got {p}")
    return torch.tensor(p, dtype=torch.float64)


_library = torch.library.Library("backspike", "DEF")
_library.define("draw_seed(Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))


@torch.library.impl(_library, "draw_seed", "CompositeExplicitAutograd")
def _draw_seed(device: torch.device) -> Tensor:
    (seed,) = _draw(1)
    if device.type != "cuda":
        return seed.to(device)
    if not torch.cuda.is_current_stream_capturing():
        if device not in _replays:
            _replays[device] = torch.zeros((), dtype=torch.int64, device=device)
        return seed.to(device, non_blocking=True)
    if device not in _replays:
        raise RuntimeError(
            "a masked layer must run once before it is recorded in a CUDA graph: do a few steps first"
        )
    # a number from the host would be frozen in the recording: one mask for ever
    return advanced(torch.full((), int(seed), dtype=torch.int64, device=device), _replays[device])


@torch.library.register_fake("backspike::draw_seed", lib=_library)
def _(device: torch.device) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=device)


def _draw(n: int) -> Tensor:
    """n seeds on the host, the same as n times one."""
    seeds = torch.randint(0, 2**63 - 1, (n,), dtype=torch.int64, device="cpu")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        seeds ^= (torch.distributed.get_rank() * _RANK_STRIDE) & (2**63 - 1)
    return seeds


_replays: dict[
    torch.device, Tensor
] = {}  # how often recorded draws were replayed, counted on the device


def advanced(seed: Tensor, replays: Tensor) -> Tensor:
    """The seed of this replay of a recorded draw: `replays` is counted up where it lies, and mixed into the seed."""
    replays += 1
    return (seed + replays * _REPLAY_STRIDE) & (2**63 - 1)


class Seeds:
    """The seeds of a step that is recorded: `draw_seed` takes them from one tensor on the device, in order.

    Within `with seeds:` the first pass only counts the draws; `refill` then draws as many from torch's default generator, as
    the layers would have, so that a replayed step has the masks of one that is not recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._values, self._drawn = (
            device,
            torch.empty(0, dtype=torch.int64, device=device),
            0,
        )

    def __enter__(self) -> Seeds:
        global _seeds
        _seeds, self._drawn = self, 0
        return self

    def __exit__(self, *_: object) -> None:
        global _seeds
        _seeds = None

    def make(self) -> None:
        """From now on the draws of a pass come from the tensor, as many as the last pass had."""
        self._values = torch.zeros(self._drawn, dtype=torch.int64, device=self._device)

    def refill(self) -> None:
        self._values.copy_(
            _draw(len(self._values)), non_blocking=True
        )  # from pageable memory: read before this returns

    def next(self) -> Tensor:
        self._drawn += 1
        if not len(self._values):
            return torch.ops.backspike.draw_seed(self._device)
        if self._drawn > len(self._values):
            raise RuntimeError(
                f"a recorded step drew {self._drawn} seeds, the one before it {len(self._values)}"
            )
        return self._values[self._drawn - 1]


_seeds: Seeds | None = None


def draw_seed(device: torch.device) -> Tensor:
    """A fresh seed from torch's default generator, a 0-dim int64 tensor on `device`; each rank of a group gets its own."""
    return torch.ops.backspike.draw_seed(device) if _seeds is None else _seeds.next()
