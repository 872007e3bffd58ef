"""From a data set to batches `[T, B, ...]`: whole small sets live on the device as uint8, others are read sample by sample.

The order of an epoch is a function of (seed, epoch), so that a resumed run goes on in the middle of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from .data import Split
from .recipe import Recipe
from .run import RunError


class Batches:
    """A data set cut into batches (x `[T, B, ...]`, y `[B]`).

    data: a `bs.data.Split`, or any data set with `len(d)` and `d[i] -> (x, y)`. A sample with 4 dimensions is `[T, C, H, W]`;
    any other is static and repeats over T, unless the recipe's `has_time` says otherwise. Static samples of uint8 are divided
    by 255; all other values are taken as they are.
    """

    def __init__(self, data: Any, recipe: Recipe, device: torch.device) -> None:
        if len(data) == 0:
            raise RunError("the data set is empty; check the folder and the limit")
        self.data, self.recipe, self.device = data, recipe, device
        self.classes: int | None = None  # once known, labels outside are refused
        self.arrays: tuple[Tensor, Tensor] | None = None
        if isinstance(data, Split):
            self.arrays = torch.from_numpy(np.array(data.x)).to(device), torch.from_numpy(np.array(data.y)).long().to(device)

    def expect_classes(self, K: int) -> None:
        """From now on labels outside 0 ... K - 1 are refused."""
        self.classes = K
        if self.arrays is not None:
            self._check_labels(self.arrays[1], "the data")

    def _check_labels(self, y: Tensor, what: str) -> None:
        if self.classes is not None and not bool(((y >= 0) & (y < self.classes)).all()):
            raise RunError(f"{what} has labels outside 0 ... {self.classes - 1}, the model's outputs")

    def __len__(self) -> int:
        return -(-len(self.data) // self.recipe.batch_size)

    def order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.data), generator=generator)

    def training(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch in its own order, augmented, from batch number `first` on."""
        for x, y in self._read(self.order(epoch).split(self.recipe.batch_size), first):
            for augment in self.recipe.augment:
                x = augment(x)
            yield self._over_time(x), y

    def in_order(self, at_most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples once, in their order, as they are; at_most: so many at once."""
        size = min(self.recipe.part_size, at_most or self.recipe.part_size)
        for x, y in self._read(torch.arange(len(self.data)).split(size)):
            yield self._over_time(x), y

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The samples of these indices as one batch."""
        x, y = next(self._read((index,)))
        return self._over_time(x), y

    def first_part(self) -> Batches:
        """The same data, cut to as many samples as go through the network at once."""
        short = copy.copy(self)
        short.data = Subset(self.data, range(min(self.recipe.part_size, len(self.data))))
        return short

    def autocast(self) -> torch.autocast:
        """The precision of the recipe, for training and testing alike."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16")

    def _has_time(self, x: Tensor) -> bool:
        return x.dim() == 5 if self.recipe.has_time is None else self.recipe.has_time

    def _values(self, x: Tensor) -> Tensor:
        return x.float() / 255 if x.dtype == torch.uint8 and not self._has_time(x) else x.float()

    def _read(self, parts: tuple[Tensor, ...], first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        if self.arrays is not None:
            images, labels = self.arrays
            for part in parts[first:]:
                index = part.to(self.device)
                yield self._values(images[index]), labels[index]
            return
        # a generator of its own: the default one must not be drawn from when a loader is made
        loader = DataLoader(self.data, batch_sampler=[p.tolist() for p in parts[first:]], generator=torch.Generator())
        for number, (x, y) in enumerate(loader, first):
            x = self._values(x.to(self.device))
            if not bool(torch.isfinite(x).all()):
                raise RunError(f"batch {number} of the data holds NaN or infinity; clean the data set")
            y = torch.as_tensor(y, device=self.device).long()
            self._check_labels(y, f"batch {number} of the data")
            yield x, y

    def _over_time(self, x: Tensor) -> Tensor:
        """`[B, ...]` to `[T, B, ...]`: time comes first; a static sample repeats (stride 0, no copy)."""
        T = self.recipe.T
        if self._has_time(x):
            if x.shape[1] != T:
                raise RunError(f"the samples have {x.shape[1]} timesteps and the recipe has T = {T}; make them equal")
            x = x.transpose(0, 1)
            return x.contiguous()
        return x.expand(T, *x.shape)
