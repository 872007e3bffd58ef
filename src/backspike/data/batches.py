"""From a data set to batches `[T, B, ...]`: arrays are indexed where they lie, other data sets are read sample by sample.

The order of an epoch is a function of (seed, epoch), and augmentation is drawn here, not where samples are read: a resumed run
goes on in the middle of an epoch, with any number of workers.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, default_collate, get_worker_info

from ..errors import RunError
from ..system.distributed import Ranks
from .augment import Augment, ResizedCrop
from .mixing import Mixing
from .pictures import Pictures
from .split import Split

ALONE = Ranks()
RESIDENT_SHARE = 0.25  # of a GPU's free memory: larger sets stay on the host


class BatchOptions(Protocol):
    """The fields of a recipe that decide how a data set is cut into batches; `bs.Recipe` says what they mean."""

    @property
    def T(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def accumulate(self) -> int: ...
    @property
    def part_size(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def augment(self) -> tuple[Augment | Mixing, ...]: ...
    @property
    def has_time(self) -> bool | None: ...
    @property
    def channels_last(self) -> bool | None: ...
    @property
    def precision(self) -> str: ...
    @property
    def workers(self) -> int: ...


class Batches:
    """A data set cut into batches (x `[T, B, ...]`, y `[B]`, or `[B, K]` where samples are mixed).

    data: a `bs.data.Split`, or any data set with `len(d)` and `d[i] -> (x, y)`. A sample with 4 dimensions is `[T, C, H, W]`;
    any other is static and repeats over T, unless the recipe's `has_time` says otherwise. Static samples of uint8 are divided
    by 255; all other values are taken as they are. Of several ranks each reads its share of every batch, augmented with its
    own draws.
    """

    def __init__(self, data: Any, recipe: BatchOptions, device: torch.device) -> None:
        if len(data) == 0:
            raise RunError("the data set is empty; check the folder and the limit")
        self.data, self.recipe, self.device = data, recipe, device
        self.classes: int | None = None  # once known, labels outside are refused
        self.arrays: tuple[Tensor, Tensor] | None = None
        if (
            isinstance(data, Split)
            and isinstance(data.x, np.ndarray)
            and not (isinstance(data.x, np.memmap) and recipe.workers)
        ):
            self.arrays = _placed(data.x, device), _placed(data.y, device).long()
            if self.arrays[0].device.type != "cpu":  # once, as no batch of it is looked at
                _check_numbers(self.arrays[0], None, torch.arange(len(data)))

    def expect_classes(self, K: int) -> None:
        """From now on labels outside 0 ... K - 1 are refused."""
        self.classes = K
        if self.arrays is not None:
            self._check_labels(self.arrays[1], "the data")

    def _check_labels(self, y: Tensor, what: str) -> None:
        if self.classes is not None and not bool(((y >= 0) & (y < self.classes)).all()):
            raise RunError(
                f"{what} has labels outside 0 ... {self.classes - 1}, the model's outputs"
            )

    def __len__(self) -> int:
        return -(-len(self.data) // self.recipe.batch_size)

    def parts(self, number: int) -> list[int]:
        """Into how many samples each batch is split that goes through the network at once: of batch `number`, of all ranks."""
        size = min(self.recipe.batch_size, len(self.data) - number * self.recipe.batch_size)
        return [len(part) for part in torch.arange(size).chunk(self.recipe.accumulate)]

    def order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        return torch.randperm(len(self.data), generator=generator)

    def training(
        self, epoch: int, first: int = 0, ranks: Ranks = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch in its own order, augmented, from batch number `first` on; a rank's share of each part."""
        source, augment = _cut_when_decoded(self.data, self.recipe.augment)
        batches = self.order(epoch).split(self.recipe.batch_size)
        shares = [
            torch.cat([ranks.shard(p) for p in batch.chunk(self.recipe.accumulate)])
            for batch in batches
        ]
        for x, y in self._read(shares, first, epoch, source):
            if augment:
                x, y = self._augmented(self._values(x), y, augment)
            yield self._over_time(x), y

    def in_order(
        self, at_most: int | None = None, ranks: Ranks = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples once, in their order, as they are; at_most: so many at once. Of ranks each has others."""
        size = min(self.recipe.part_size, at_most or self.recipe.part_size)
        shares = [ranks.shard(part) for part in torch.arange(len(self.data)).split(size)]
        for x, y in self._read([share for share in shares if len(share)]):
            yield self._over_time(x), y

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The samples of these indices as one batch."""
        x, y = next(self._read([index]))
        return self._over_time(x), y

    def first_part(self) -> Batches:
        """The same data, cut to as many samples as go through the network at once."""
        short = copy.copy(self)
        short.data = Subset(self.data, range(min(self.recipe.part_size, len(self.data))))
        return short

    def autocast(self) -> torch.autocast:
        """The precision of the recipe, for training and testing alike."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bfloat16"
        )

    def _has_time(self, x: Tensor) -> bool:
        return x.dim() == 5 if self.recipe.has_time is None else self.recipe.has_time

    def _values(self, x: Tensor) -> Tensor:
        return x.float() / 255 if x.dtype == torch.uint8 and not self._has_time(x) else x.float()

    def _augmented(
        self, x: Tensor, y: Tensor, augment: tuple[Augment | Mixing, ...]
    ) -> tuple[Tensor, Tensor]:
        for change in augment:
            if isinstance(change, Mixing):
                x, y = change.mix(x, self._shares(y))
            else:
                x = change(x)
        return x, y

    def _shares(self, y: Tensor) -> Tensor:
        """Labels as shares of the classes, [B, K]."""
        if y.dim() == 2:
            return y
        if self.classes is None:
            raise RunError(
                "samples can be mixed once the number of classes is known: call expect_classes first"
            )
        return F.one_hot(y, self.classes).float()

    def _read(
        self, parts: Sequence[Tensor], first: int = 0, epoch: int = 0, source: Any = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.arrays is None:
            yield from self._sampled(self.data if source is None else source, parts, first, epoch)
            return
        images, labels = self.arrays
        for number, part in enumerate(parts[first:], first):
            x, y = (
                a[part if a.device.type == "cpu" else self._here(part)] for a in (images, labels)
            )
            if (
                x.device.type == "cpu"
            ):  # what lies on the device is not looked at, so that nothing waits for it
                _check_numbers(x, number, part)
            yield self._here(x), self._here(y)

    def _here(self, x: Tensor) -> Tensor:
        """On the device; from pinned memory, a copy to a GPU goes on beside the computation."""
        if x.device == self.device:
            return x
        return (x.pin_memory() if self.device.type == "cuda" else x).to(
            self.device, non_blocking=True
        )

    def _sampled(
        self, source: Any, parts: Sequence[Tensor], first: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            _Seeded(source, (self.recipe.seed, epoch)),
            batch_sampler=[part.tolist() for part in parts[first:]],
            num_workers=min(self.recipe.workers, len(parts) - first),
            collate_fn=default_collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # of its own: the default one must not be drawn from when a loader is made
        )
        for number, (x, y) in enumerate(_in_one_line(iter(loader), self.recipe.workers), first):
            _check_numbers(
                x, number, parts[number]
            )  # on the host, so that nothing waits for the device
            y = torch.as_tensor(y).long()
            self._check_labels(y, f"batch {number} of the data")
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _over_time(self, x: Tensor) -> Tensor:
        """`[B, ...]` to float32 `[T, B, ...]`: time comes first; a static sample repeats (stride 0, no copy)."""
        T = self.recipe.T
        if not self._has_time(x):
            x = self._values(x)
            if self.recipe.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            return x.expand(T, *x.shape)
        if x.shape[1] != T:
            raise RunError(
                f"the samples have {x.shape[1]} timesteps and the recipe has T = {T}; make them equal"
            )
        x = x.transpose(0, 1)
        if self.recipe.channels_last and x.dim() == 5:
            out = torch.empty(*x.shape[:2], *x.shape[3:], x.shape[2], device=x.device).movedim(
                -1, 2
            )
        else:
            out = torch.empty(x.shape, device=x.device)
        return out.copy_(x)  # the change of order and of type in one pass


def _cut_when_decoded(
    data: Any, augment: tuple[Augment | Mixing, ...]
) -> tuple[Any, tuple[Augment | Mixing, ...]]:
    """A `ResizedCrop` that comes first becomes the part of the pictures that is decoded: (data, what is left of augment)."""
    match augment:
        case (ResizedCrop() as crop, *others) if isinstance(data, Split) and isinstance(
            data.x, Pictures
        ):
            return replace(data, x=replace(data.x, part=crop.part)), tuple(others)
    return data, augment


def _placed(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device where it is small enough, else as it lies on the host; memory-mapped files are not read."""
    tensor = torch.from_numpy(array if array.flags.writeable else np.array(array))
    if device.type == "cuda" and array.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        return tensor
    return tensor.to(device)


class _Seeded(Dataset[Any]):
    """A data set whose samples, read in a worker, draw at random by (seed, epoch, number): whoever reads them, and when."""

    def __init__(self, data: Any, seed: tuple[int, int]) -> None:
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        if get_worker_info() is not None:
            (seed,) = np.random.SeedSequence((*self.seed, i)).generate_state(1).tolist()
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  (what a user's data set may draw from)
        return self.data[i]


def _check_numbers(x: Tensor, number: int | None, samples: Tensor) -> None:
    """Refuses NaN and infinity in batch `number`, or in all of the data, which holds these samples."""
    if x.is_floating_point() and not bool((fine := torch.isfinite(x)).all()):
        bad = samples[~fine.reshape(len(x), -1).all(1).cpu()].tolist()
        named = ", ".join(map(str, bad[:3])) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        what = "the data" if number is None else f"batch {number} of the data"
        raise RunError(f"{what} holds NaN or infinity (sample {named}); clean the data set")


def reader_died(e: BaseException) -> bool:
    """Whether this says that a process that reads samples is gone. Torch may raise it at any moment."""
    return "DataLoader worker" in str(e) and (
        "exited unexpectedly" in str(e) or "killed by signal" in str(e)
    )


def reader_ended(workers: int) -> RunError:
    return RunError(
        f"a process that reads samples ended (killed, perhaps for want of memory); lower --workers ({workers})"
    )


def _in_one_line(batches: Iterator[Any], workers: int) -> Iterator[Any]:
    """What goes wrong in a worker, in one line."""
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as e:
            if workers == 0:
                raise
            if reader_died(e):
                raise reader_ended(workers) from e
            raise RunError(f"a sample cannot be read: {str(e).strip().splitlines()[-1]}") from e
        yield batch
