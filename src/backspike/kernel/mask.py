"""The gradient mask of MSG, computed by a counter-based hash.

No mask tensor is stored, and every backend drops the same elements. The mask is a pure function of
(seed, element index), fixed permanently by golden vectors in the tests. Seeds come from torch's
default generator through one opaque operator, so `torch.manual_seed` controls them and compiled
code draws the same seeds as eager code.
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
    """The public-domain integer hash lowbias32, in-place on int32.

    Arithmetic wraps around; the masks turn arithmetic shifts into logical ones.
    """
    x ^= (x >> 16) & 0xFFFF
    x *= _C1
    x ^= (x >> 15) & 0x1FFFF
    x *= _C2
    x ^= (x >> 16) & 0xFFFF
    return x


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.to(torch.int32), (x >> 32).to(torch.int32)


def dropped_at(seed: Tensor, start: int, shape: Sequence[int], p: Tensor) -> Tensor:
    """Which of the elements start, start + 1, ... are dropped.

    Returns a bool tensor of `shape` on the device of the seed.
    """
    index = torch.arange(start, start + math.prod(shape), dtype=torch.int64, device=seed.device)
    lo, hi = _halves(index)
    seed_lo, seed_hi = _halves(seed)
    bits = _lowbias32(_lowbias32(lo ^ seed_lo) ^ seed_hi ^ hi)
    limit = (p.to(device=seed.device, dtype=torch.float64) * 2**24).round().to(torch.int32)
    return (((bits >> 8) & 0xFFFFFF) < limit).view(tuple(shape))


def dropped(seed: int | Tensor, shape: Sequence[int], p: float | Tensor) -> Tensor:
    """The elements that `Masked(p)` drops for this seed, as a bool tensor of `shape` `[T, B, ...]`.

    seed: an integer in [0, 2^63), or the 0-dim int64 tensor that a layer drew (`layer.seed`). The
    index of an element is its position in `[T, B, ...]` in C order, whatever the memory layout.
    Raises ValueError if the seed or p is out of range.
    """
    return dropped_at(as_seed(seed), 0, shape, as_probability(p))


def masked_derivative(
    z: Tensor, t: int, width: Tensor | None, neuron: LIF, seed: Tensor | None, p: Tensor | None
) -> tuple[Tensor, Tensor]:
    """h at timestep t, and the part of it from the base surrogate, which a learned width sees."""
    base = neuron.base
    h = base.derivative(z) if width is None else base.derivative(z / width) / width
    if seed is None or p is None:
        return h, h
    drop = dropped_at(seed, t * z.numel(), z.shape, p)
    h = (h / (1 - p.to(h)) if neuron.rescale else h).masked_fill(drop, 0.0)
    if neuron.replace is None:
        return h, h
    return torch.where(drop, neuron.replace.derivative(z), h), h


def as_seed(seed: int | Tensor, device: torch.device | None = None) -> Tensor:
    """The seed as a 0-dim int64 tensor; ValueError if it is not an integer in [0, 2^63)."""
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
    """p as a tensor; ValueError for a number outside [0, 1]."""
    if isinstance(p, Tensor):
        return p
    if not 0 <= p <= 1:
        raise ValueError(f"p is a probability and must lie in [0, 1], got {p}")
    return torch.tensor(p, dtype=torch.float64, device="cpu")


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
            "a masked layer must run once before it is captured in a CUDA graph: run a few training"
            " steps first"
        )
    # a number from the host would be frozen in the graph: every replay would use the same mask
    return advanced(torch.full((), int(seed), dtype=torch.int64, device=device), _replays[device])


@torch.library.register_fake("backspike::draw_seed", lib=_library)
def _(device: torch.device) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=device)


def _draw(n: int) -> Tensor:
    """n seeds on the host, the same ones as n calls of `_draw(1)`."""
    seeds = torch.randint(0, 2**63 - 1, (n,), dtype=torch.int64, device="cpu")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        seeds ^= (torch.distributed.get_rank() * _RANK_STRIDE) & (2**63 - 1)
    return seeds


# how many times captured draws were replayed, counted on the device
_replays: dict[torch.device, Tensor] = {}


def advanced(seed: Tensor, replays: Tensor) -> Tensor:
    """The seed for this replay of a captured draw: count up `replays` in-place and mix it in."""
    replays += 1
    return (seed + replays * _REPLAY_STRIDE) & (2**63 - 1)


class Seeds:
    """The seeds of a step captured in a CUDA graph, in one tensor on the device.

    Inside `with seeds:`, `draw_seed` takes its seeds from that tensor in order. The first pass only
    counts the draws. `refill` then draws as many from torch's default generator, as the layers
    would have, so that a replayed step uses the same masks as a step that was not captured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._values = torch.empty(0, dtype=torch.int64, device=device)
        self._drawn = 0

    def __enter__(self) -> Seeds:
        global _seeds
        _seeds = self
        self._drawn = 0
        return self

    def __exit__(self, *_: object) -> None:
        global _seeds
        _seeds = None

    def make(self) -> None:
        """Allocate one seed for each draw of the last pass; later passes take theirs from there."""
        self._values = torch.zeros(self._drawn, dtype=torch.int64, device=self._device)

    def refill(self) -> None:
        """Draw new seeds for the next replay."""
        # non_blocking is safe: pageable memory is read before copy_ returns
        self._values.copy_(_draw(len(self._values)), non_blocking=True)

    def next(self) -> Tensor:
        """The next seed; RuntimeError if the last pass drew fewer."""
        self._drawn += 1
        if not len(self._values):
            return torch.ops.backspike.draw_seed(self._device)
        if self._drawn > len(self._values):
            raise RuntimeError(
                f"a captured step drew {self._drawn} seeds, but the step before it drew"
                f" {len(self._values)}; every step must run the same masked layers"
            )
        return self._values[self._drawn - 1]


_seeds: Seeds | None = None


def draw_seed(device: torch.device) -> Tensor:
    """Draw a seed from torch's default generator: a 0-dim int64 tensor on `device`.

    Each rank of a process group gets a different seed.
    """
    return torch.ops.backspike.draw_seed(device) if _seeds is None else _seeds.next()


def draw_seeds(device: torch.device, n: int) -> Tensor:
    """Draw n seeds, `[n]`: the same as n calls of `draw_seed`."""
    if device.type == "cpu" and _seeds is None and not torch.compiler.is_compiling():
        return _draw(n)
    return torch.stack([draw_seed(device) for _ in range(n)])
