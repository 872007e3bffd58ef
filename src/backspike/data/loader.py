"""Takes a `torch.utils.data.DataLoader` apart, and draws the order of the samples of an epoch.

A run must be able to continue in the middle of an epoch, so it reads samples by their numbers, in
an order that depends only on (seed, epoch).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from ..errors import RunError
from .split import Split

LARGEST_DRAW = 1 << 24  # categories of torch.multinomial


@dataclass(frozen=True)
class Loaded:
    """A data set, and what a DataLoader does with it. sampler=None: shuffle."""

    data: Any
    collate: Callable[[list[Any]], Any] = default_collate
    sampler: Any = None
    drop_last: bool = False
    worker_init: Callable[[int], None] | None = None


def take_apart(data: Any) -> Loaded:
    """The parts of a DataLoader; of anything else a `Loaded` with this data set.

    Raises RunError for a loader whose batches cannot be read again by sample numbers.
    """
    if not isinstance(data, DataLoader):
        return Loaded(data)
    if isinstance(data.dataset, IterableDataset):
        raise RunError(
            "the DataLoader reads an IterableDataset, which cannot be resumed at a sample; "
            "give a data set with len(d) and d[i] -> (x, y)"
        )
    if type(data.batch_sampler) is not BatchSampler:
        raise RunError(
            "the DataLoader has a batch_sampler of its own or no batch size; "
            "give it batch_size= and, if you need one, sampler="
        )
    if isinstance(data.sampler, DistributedSampler):
        raise RunError(
            "the DataLoader has a DistributedSampler; leave it out, "
            "as batches are divided among the ranks here"
        )
    return Loaded(
        data.dataset,
        data.collate_fn,
        None if _visits_all(data, RandomSampler) else data.sampler,
        data.drop_last,
        data.worker_init_fn,
    )


def held_out(data: Any) -> Any:
    """The data set of validation or test data, with only the samples that a DataLoader visits.

    Raises RunError for a loader that visits a sample twice, or another set of samples each time.
    """
    if not isinstance(data, DataLoader):
        return data
    parts = take_apart(data)
    kinds = (RandomSampler, SequentialSampler)
    if _visits_all(data, kinds) and not data.drop_last:
        return data
    if _visits_all(data, kinds) or len(set(visited := list(parts.sampler))) < len(visited):
        raise RunError(
            "a DataLoader for validation or test data must visit the same samples each time, each "
            "once; leave out drop_last and samplers that draw at random"
        )
    chosen = Subset(parts.data, sorted(visited))
    return DataLoader(chosen, collate_fn=parts.collate, worker_init_fn=parts.worker_init)


def _visits_all(loader: DataLoader[Any], kinds: Any) -> bool:
    """Whether the sampler is one of torch's own `kinds` and visits each sample once."""
    sampler: Any = loader.sampler
    own = kinds if isinstance(kinds, tuple) else (kinds,)
    replacing = getattr(sampler, "replacement", False)
    return type(sampler) in own and not replacing and len(sampler) == len(loader.dataset)  # type: ignore[arg-type]


def draw(sampler: Any, seed: int, epoch: int) -> Tensor:
    """The sample numbers that a sampler gives in an epoch, int64 [N]; the same for the same seed.

    Sets all generators that it may draw from, and restores the global ones.
    """
    own = getattr(sampler, "generator", None)
    state = np.random.SeedSequence((seed, epoch)).generate_state(1).tolist()[0]
    with _global_generators():
        for generator in (torch.default_generator, own):
            if isinstance(generator, torch.Generator):
                generator.manual_seed(state)
        random.seed(state)
        np.random.seed(state)  # noqa: NPY002  (what a user's sampler may draw from)
        return torch.tensor([int(i) for i in sampler], dtype=torch.int64)


@contextmanager
def _global_generators() -> Iterator[None]:
    """Restores Python's, NumPy's and torch's generators on the CPU."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """N sample numbers drawn with replacement, every class equally often on average, int64 [N].

    labels: int64 [N]. Raises RunError for more samples than torch can draw from.
    """
    if len(labels) > LARGEST_DRAW:
        raise RunError(f"sampling balanced is limited to {LARGEST_DRAW:,} samples; use shuffled")
    weights = 1 / torch.bincount(labels).double()
    return torch.multinomial(weights[labels], len(labels), True, generator=generator)


def labels_of(data: Any) -> Tensor:
    """The class number of every sample, int64 [N].

    Uses labels that the data set has as an array: those of a `Split`, a TensorDataset, a Subset of
    them, or an attribute `targets` as in torchvision. Otherwise it reads all samples once.
    """
    if isinstance(data, Split):
        return torch.from_numpy(np.array(data.y))
    if isinstance(data, TensorDataset):
        return data.tensors[-1].long().cpu()
    if isinstance(data, Subset):
        return labels_of(data.dataset)[torch.as_tensor(list(data.indices), dtype=torch.int64)]
    targets = getattr(data, "targets", None)
    if targets is not None and len(targets) == len(data):
        return torch.as_tensor(targets).long().cpu()
    with _global_generators():
        return torch.tensor([int(data[i][1]) for i in range(len(data))], dtype=torch.int64)
