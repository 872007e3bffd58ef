"""Turns a data set into batches `[T, B, ...]`.

NumPy arrays are indexed directly; other data sets are read sample by sample. The order of an epoch
depends only on (seed, epoch), and augmentation is drawn here rather than where samples are read, so
a resumed run can continue in the middle of an epoch with any number of workers.
"""

from __future__ import annotations

import copy
import functools
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset, default_collate, get_worker_info

from ..errors import RunError, option
from ..system.distributed import Ranks
from .augment import Augment, Crop, Cutout, Flip, ResizedCrop, Roll, Rotate, Shear
from .autoaugment import AutoAugment
from .loader import balanced, draw, labels_of, take_apart
from .mixing import CutMix, Mixing
from .picture_folder import Pictures
from .split import Split

logger = logging.getLogger("backspike")
ALONE = Ranks()
# share of a GPU's free memory, or of the memory limit; larger sets stay in host memory
RESIDENT_SHARE = 0.25
# torch 2.6 cannot index these
_SIGNED = {
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}
# their values may be too large for float32
_WIDE_INTEGERS = (torch.int32, torch.int64, torch.uint32, torch.uint64)

# augmentations that change pixels by their place
_ON_IMAGES = (Crop, Flip, ResizedCrop, Cutout, Roll, Rotate, Shear, AutoAugment, CutMix)


class BatchOptions(Protocol):
    """The recipe fields that decide how a data set is batched; `bs.Recipe` documents them."""

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
    @property
    def sampling(self) -> str: ...
    @property
    def memory_limit(self) -> int: ...


class Batches:
    """Batches (x, y) of a data set: x float32 `[T, B, ...]`, y int64 `[B]` (`[B, K]` once mixed).

    data: a `bs.data.Split`, any data set with `len(d)` and `d[i] -> (x, y)`, y a class number, or a
    DataLoader of one: then its sampler, collate function and `drop_last` apply.
    Samples with 4 dimensions are `[T, C, H, W]`; all others are static and repeat over T, unless
    the recipe's `has_time` says otherwise. Static samples of type uint8, and pixels in sequence
    (`Split.pixels`), are divided by 255; all other values are used unchanged, with a log message
    where that may surprise. With several ranks,
    each one reads its shard of every batch and draws its own augmentation.
    Raises RunError for an empty data set, for labels that are no class numbers, and for samples
    that are no real, finite numbers.
    """

    def __init__(self, data: Any, recipe: BatchOptions, device: torch.device) -> None:
        self.loaded = take_apart(data)
        data = self.loaded.data
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise RunError(
                f"expected a data set with len(d) and d[i] -> (x, y), got a {type(data).__name__}"
            )
        if len(data) == 0:
            raise RunError("the data set is empty; check the folder and the limit")
        self.data = data
        self.recipe = recipe
        self.device = device
        self.pixels = isinstance(data, Split) and data.pixels
        # once known, labels outside are refused
        self.classes: int | None = None
        self.arrays: tuple[Tensor, Tensor] | None = None
        if (
            isinstance(data, Split)
            and isinstance(data.x, np.ndarray)
            and self.loaded.collate is default_collate
            and not (isinstance(data.x, np.memmap) and recipe.workers)
        ):
            labels = _class_numbers(_tensor(data.y, "labels"), "the data")
            samples = _tensor(data.x, "samples")
            self._warn_of_conversion(samples)
            self.arrays = (
                _place(samples, device, recipe.memory_limit),
                _place(labels, device, recipe.memory_limit),
            )
            if self.arrays[0].device.type != "cpu":
                # all at once, because single batches on the device are not checked
                _check_finite(self.arrays[0], None, torch.arange(len(data)))

    def expect_classes(self, K: int) -> None:
        """Sets the number of classes. From now on, labels outside 0 ... K - 1 raise RunError."""
        self.classes = K
        if self.arrays is not None:
            self._check_labels(self.arrays[1], "the data")

    def _check_labels(self, y: Tensor, what: str) -> None:
        if self.classes is not None and not bool(((y >= 0) & (y < self.classes)).all()):
            raise RunError(
                f"{what} has labels outside 0 ... {self.classes - 1}, the model's outputs"
            )

    @property
    def samples(self) -> int:
        """The number of samples in an epoch of training."""
        n = len(self.data if self.loaded.sampler is None else self.loaded.sampler)
        return n - n % self.recipe.batch_size if self.loaded.drop_last else n

    def __len__(self) -> int:
        return -(-self.samples // self.recipe.batch_size)

    def parts(self, number: int) -> list[int]:
        """The sizes of the parts in which batch `number` passes through the network, all ranks."""
        size = min(self.recipe.batch_size, self.samples - number * self.recipe.batch_size)
        return [len(part) for part in torch.arange(size).chunk(self.recipe.accumulate)]

    def order(self, epoch: int) -> Tensor:
        """The sample indices of an epoch, int64 [N]; a function of (seed, epoch) only."""
        if self.loaded.sampler is not None:
            return draw(self.loaded.sampler, self.recipe.seed, epoch)[: self.samples]
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + epoch)
        if self.recipe.sampling == "balanced":
            return balanced(self.labels, generator)[: self.samples]
        return torch.randperm(len(self.data), generator=generator)[: self.samples]

    @functools.cached_property
    def labels(self) -> Tensor:
        """The class number of every sample, int64 [N], on the host."""
        return labels_of(self.data)

    def training(
        self, epoch: int, first: int = 0, ranks: Ranks = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The shuffled, augmented batches of an epoch, starting with batch number `first`.

        With several ranks: the rank's shard of every part of a batch.
        """
        source, augment = _crop_while_decoding(self.data, self.recipe.augment)
        batches = self.order(epoch).split(self.recipe.batch_size)
        shards = [
            torch.cat([ranks.shard(p) for p in batch.chunk(self.recipe.accumulate)])
            for batch in batches
        ]
        for x, y in self._read(shards, first, epoch, source):
            if augment:
                x, y = self._apply_augmentation(self._to_float(x), y, augment)
            yield self._add_time(x), y

    def in_order(
        self, at_most: int | None = None, ranks: Ranks = ALONE
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples once, unshuffled and without augmentation, at most `at_most` in a batch.

        With several ranks, each one gets a different shard.
        """
        size = min(self.recipe.part_size, at_most or self.recipe.part_size)
        shards = [ranks.shard(part) for part in torch.arange(len(self.data)).split(size)]
        for x, y in self._read([shard for shard in shards if len(shard)]):
            yield self._add_time(x), y

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """One batch of the samples at `index`, int64 [B]."""
        x, y = next(self._read([index]))
        return self._add_time(x), y

    def check_augmentation(self, x: Tensor) -> None:
        """Raises RunError if a timestep of `x`, [T, B, ...], is no image for the augmentation."""
        moving = [a for a in self.recipe.augment if isinstance(a, _ON_IMAGES)]
        if moving and x.dim() < 4:
            rest = tuple(a for a in self.recipe.augment if a not in moving)
            raise RunError(
                f"the recipe's augmentation {moving[0]} needs images [C, H, W]; your samples have "
                f"shape {list(x.shape[2:])} at each timestep: set augment={rest}"
            )

    def first_part(self) -> Batches:
        """The same data, limited to the number of samples that pass the network at once."""
        short = copy.copy(self)
        short.loaded = replace(self.loaded, sampler=None, drop_last=False)
        short.data = Subset(self.data, range(min(self.recipe.part_size, len(self.data))))
        return short

    def autocast(self) -> torch.autocast:
        """The recipe's precision as an autocast context, for training and testing alike."""
        dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(self.recipe.precision)
        return torch.autocast(self.device.type, dtype, enabled=dtype is not None)

    def _has_time(self, x: Tensor) -> bool:
        return x.dim() == 5 if self.recipe.has_time is None else self.recipe.has_time

    def _guesses_time(self) -> bool:
        return self.recipe.has_time is None and not isinstance(self.data, Split)

    def _to_float(self, x: Tensor) -> Tensor:
        return x.float() / 255 if self._in_255(x) else x.float()

    def _in_255(self, x: Tensor) -> bool:
        """Whether x are pixels that have not been divided by 255 yet."""
        return x.dtype == torch.uint8 and (self.pixels or not self._has_time(x))

    def _warn_of_conversion(self, x: Tensor) -> None:
        """Warns where values change, or might be expected to change, on their way to float32."""
        if x.dtype == torch.float64:
            _warn_once("samples of type float64 are rounded to float32")
        elif x.is_floating_point() or x.dtype in (torch.uint8, torch.bool):
            return
        elif not self._has_time(x):
            _warn_once(
                f"static samples of type {_type_name(x)} are used unchanged, as float32; "
                "only uint8 is divided by 255"
            )
        elif x.dtype in _WIDE_INTEGERS:
            _warn_once(
                f"samples of type {_type_name(x)} are used as float32, which is exact up to "
                "16,777,216"
            )

    def _apply_augmentation(
        self, x: Tensor, y: Tensor, augment: tuple[Augment | Mixing, ...]
    ) -> tuple[Tensor, Tensor]:
        for change in augment:
            if isinstance(change, Mixing):
                x, y = change.mix(x, self._class_shares(y))
            else:
                x = change(x)
        return x, y

    def _class_shares(self, y: Tensor) -> Tensor:
        """Labels as the share of each class, float32 [B, K]."""
        if y.dim() == 2:
            return y
        if self.classes is None:
            raise RunError("mixing needs the number of classes: call expect_classes first")
        return F.one_hot(y, self.classes).float()

    def _read(
        self, parts: Sequence[Tensor], first: int = 0, epoch: int = 0, source: Any = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        if self.arrays is None:
            data = self.data if source is None else source
            yield from self._read_samples(data, parts, first, epoch)
            return
        images, labels = self.arrays
        for number, part in enumerate(parts[first:], first):
            x, y = (
                _rows(a, part if a.device.type == "cpu" else self._to_device(part))
                for a in (images, labels)
            )
            # a check on the device would make the host wait for it
            if x.device.type == "cpu":
                _check_finite(x, number, part)
            yield self._to_device(x), self._to_device(y)

    def _to_device(self, x: Tensor) -> Tensor:
        """Copies to the device; from pinned memory, so that a GPU computes meanwhile."""
        if x.device == self.device:
            return x
        return (x.pin_memory() if self.device.type == "cuda" else x).to(
            self.device, non_blocking=True
        )

    def _read_samples(
        self, source: Any, parts: Sequence[Tensor], first: int, epoch: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loader: DataLoader[Any] = DataLoader(
            _Seeded(source, (self.recipe.seed, epoch)),
            batch_sampler=[part.tolist() for part in parts[first:]],
            num_workers=min(self.recipe.workers, len(parts) - first),
            collate_fn=self.loaded.collate,
            worker_init_fn=self.loaded.worker_init,
            pin_memory=self.device.type == "cuda",
            # its own generator: creating a loader must not draw from the default one
            generator=torch.Generator(),
        )
        for number, batch in enumerate(_explain_errors(iter(loader), self.recipe.workers), first):
            what = f"batch {number + 1} of the data"
            x, y = _pair(batch, what)
            _check_real(x, what)
            self._warn_of_conversion(x)
            # checked on the host, so that nothing waits for the device
            _check_finite(x, number, parts[number])
            y = _class_numbers(y, what)
            self._check_labels(y, what)
            yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def _add_time(self, x: Tensor) -> Tensor:
        """`[B, ...]` to float32 `[T, B, ...]`; static samples repeat over T (stride 0, no copy)."""
        T = self.recipe.T
        if not self._has_time(x):
            x = self._to_float(x)
            if self.recipe.channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            return x.expand(T, *x.shape)
        if x.shape[1] != T:
            raise RunError(
                f"the samples have {x.shape[1]} timesteps and the recipe has T = {T}; "
                "make them equal"
                + (", or set has_time=False if the samples are static" * self._guesses_time())
            )
        x = x.transpose(0, 1)
        if self.recipe.channels_last and x.dim() == 5:
            channels_last = (*x.shape[:2], *x.shape[3:], x.shape[2])
            out = torch.empty(channels_last, device=x.device).movedim(-1, 2)
        else:
            out = torch.empty(x.shape, device=x.device)
        # changes memory layout and type in one pass
        out.copy_(x)
        return out.div_(255) if self._in_255(x) else out


def _crop_while_decoding(
    data: Any, augment: tuple[Augment | Mixing, ...]
) -> tuple[Any, tuple[Augment | Mixing, ...]]:
    """Lets the decoder of `Pictures` apply a leading `ResizedCrop`; returns (data, the rest)."""
    match augment:
        case (ResizedCrop() as crop, *others) if isinstance(data, Split) and isinstance(
            data.x, Pictures
        ):
            return replace(data, x=replace(data.x, part=crop.part)), tuple(others)
    return data, augment


def _tensor(array: np.ndarray, what: str) -> Tensor:
    """The array as a tensor, without reading memory-mapped files. Read-only arrays are copied."""
    try:
        tensor = torch.from_numpy(array if array.flags.writeable else np.array(array))
    except TypeError as error:
        raise RunError(f"the {what} are of type {array.dtype}: expected numbers") from error
    _check_real(tensor, "the data")
    return tensor


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """x[index]"""
    return x.view(_SIGNED.get(x.dtype, x.dtype))[index].view(x.dtype)


def _place(x: Tensor, device: torch.device, limit: int) -> Tensor:
    """x on the device if it is small enough, else on the host. limit: of memory, or 0."""
    if device.type != "cuda":
        return x.to(device)
    room = torch.cuda.mem_get_info(device)[0]
    if limit:
        room = min(room, limit - torch.cuda.memory_allocated(device))
    return x if x.nbytes > RESIDENT_SHARE * room else x.to(device)


def _pair(batch: Any, what: str) -> tuple[Tensor, Any]:
    """The samples and labels that the loader has collated."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        one = f"{len(batch)} values" if isinstance(batch, tuple | list) else type(batch).__name__
        raise RunError(
            f"{what}: expected pairs (x, y) of a tensor and its class number, got {one} for each "
            "sample; of two tensors, torch.utils.data.TensorDataset(x, y) makes a data set"
        )
    x, y = batch
    if not isinstance(x, Tensor):
        raise RunError(
            f"{what} has samples of type {type(x).__name__}: expected one tensor or array x in "
            "each pair (x, y)"
        )
    return x, y


def _class_numbers(y: Any, what: str) -> Tensor:
    """Labels as int64 [B]. Raises RunError for anything but one whole number for each sample."""
    try:
        y = torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError):
        raise RunError(
            f"{what} has labels that are no numbers: expected one class number for each sample, "
            "an integer 0 ... K - 1"
        ) from None
    if y.is_floating_point() or y.is_complex() or y.dim() != 1:
        raise RunError(
            f"{what} has labels of type {_type_name(y)} and shape {list(y.shape)}: expected one "
            "class number for each sample, an integer 0 ... K - 1"
            + ("; of one-hot or soft labels take argmax(-1)" if y.shape[1:].numel() > 1 else "")
        )
    return y.long()


def _check_real(x: Tensor, what: str) -> None:
    if x.is_complex():
        raise RunError(f"{what} has complex numbers: expected real ones, such as their magnitudes")


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def _type_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


class _Seeded(Dataset[Any]):
    """Seeds the generators for each sample that a worker reads, by (seed, epoch, sample index).

    Random samples then do not depend on the worker that reads them, or on when it does.
    """

    def __init__(self, data: Any, seed: tuple[int, int]) -> None:
        self.data = data
        self.seed = seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        if get_worker_info() is not None:
            (seed,) = np.random.SeedSequence((*self.seed, i)).generate_state(1).tolist()
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  (what a user's data set may draw from)
        return self.data[i]


def _check_finite(x: Tensor, number: int | None, samples: Tensor) -> None:
    """Raises RunError for NaN or infinity in batch `number` (None: all data) of these samples."""
    if x.is_floating_point() and not bool((finite := torch.isfinite(x)).all()):
        bad = samples[~finite.reshape(len(x), -1).all(1).cpu()].tolist()
        named = ", ".join(map(str, bad[:3])) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        what = "the data" if number is None else f"batch {number + 1} of the data"
        raise RunError(f"{what} holds NaN or infinity (sample {named}); clean the data set")


def reader_died(e: BaseException) -> bool:
    """Whether the error means that a DataLoader worker is gone. Torch may raise it at any time."""
    return "DataLoader worker" in str(e) and (
        "exited unexpectedly" in str(e) or "killed by signal" in str(e)
    )


def reader_ended(workers: int) -> RunError:
    """The error to raise where `reader_died`."""
    return RunError(
        "a process that reads samples ended (killed, perhaps because memory ran out); "
        f"lower {option('workers')} ({workers})"
    )


def _explain_errors(batches: Iterator[Any], workers: int) -> Iterator[Any]:
    """Turns the tracebacks of workers into a RunError of one line."""
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
