"""The processes that train together, one per GPU or a few on CPUs, as torchrun starts them.

Each computes its share of every batch; torch.distributed carries what is added up: gradients (DistributedDataParallel), counts,
statistics. In one process every function here is the identity, so that nobody has to ask.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ..errors import RanksError

R = TypeVar("R")
MEETING = timedelta(minutes=5)  # for all ranks to come
PATIENCE = timedelta(
    hours=1
)  # a rank waits so long for another that does not end, as while a data set is made ready
_meetings = count()  # what was agreed in one must not be found in the next
_STARTED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells a process


@dataclass(frozen=True)
class Ranks:
    """`size` processes, of which this is number `rank`, counted from 0."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def shard(self, x: Tensor) -> Tensor:
        """This rank's share of the samples x `[n, ...]`, neighbours; shares differ by one sample at most."""
        return x.tensor_split(self.size)[self.rank]

    def share(self, samples: int) -> int:
        """How many of so many samples are this rank's."""
        return samples // self.size + (self.rank < samples % self.size)

    def all_reduce(self, *values: Any) -> list[Any]:
        """Each value, a number, summed over the ranks, in float64, equal on all of them; of one rank as it is."""
        if self.size == 1:
            return list(values)
        total = torch.tensor([float(value) for value in values], dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def on_rank0(self, f: Callable[[], R]) -> R:
        """What f() is on rank 0, where alone it is called; what it raises there is raised everywhere."""
        if self.size == 1:
            return f()
        told: list[Any] = [None, None]
        if self.first:
            try:
                told[0] = f()
            except Exception as e:
                told[1] = e
        dist.broadcast_object_list(told, src=0)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def gather(self, value: Any) -> list[Any]:
        """On rank 0 the value of every rank in order, elsewhere nothing."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def broadcast(self, module: nn.Module) -> None:
        """Parameters and buffers become those of rank 0."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    @contextmanager
    def rank0_first(self) -> Iterator[None]:
        """On each machine one rank goes through it before the others: it makes ready what the others find."""
        if self.size == 1:
            yield
        elif local_rank() == 0:
            yield
            dist.barrier()
        else:
            dist.barrier()
            yield

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """The model, called so that its gradients become the mean over the ranks."""
        if self.size == 1:
            return model
        # parameters may go without a gradient, as frozen ones do; and only so the buckets, and with them the order of
        # additions, are the same in the first step of a resumed run as in every other
        return DistributedDataParallel(model, find_unused_parameters=True)


def current() -> Ranks:
    """The ranks that this process is one of."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Within it gradients are kept to the rank: those of all but the last part of a step."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def local_rank() -> int:
    """The number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def command(*words: object) -> str:
    """The command line of this program, with torchrun before it where that started this process."""
    program = ["backspike"]
    if all(name in os.environ for name in _STARTED):
        local, size = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ["WORLD_SIZE"])
        machines = [f"--nnodes={size // local}"] if size > local else []
        program = ["torchrun", *machines, f"--nproc-per-node={local}", "-m", "backspike"]
    return shlex.join([*program, *map(str, words)])


def is_peer_failure(e: BaseException) -> bool:
    """Whether this says that another rank is no more."""
    return current().size > 1 and (isinstance(e, dist.DistError) or "gloo" in str(e))


@lru_cache
def _rendezvous(*started: str) -> tuple[dist.Store, int, int]:
    """The store of these ranks, once per process: without torchrun rank 0 serves it, and if it closed the store after every
    meeting, a rank that is early for the next one would connect to a server that is about to close."""
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=MEETING)))
    return store, rank, size


@contextmanager
def process_group(device: str | torch.device | None = None) -> Iterator[Ranks]:
    """Within it, this process is one of those that torchrun started; alone where nobody did, or where it already is.

    Of an error that several ranks run into, the first that comes to it raises it; the others end with exit code 1, silently.
    """
    if (
        not all(name in os.environ for name in _STARTED)
        or not dist.is_available()
        or dist.is_initialized()
    ):
        yield current()
        return
    gpu = torch.cuda.is_available() and str(device or "cuda").startswith("cuda")
    try:
        store, rank, size = _rendezvous(*(os.environ[name] for name in _STARTED))
        store = dist.PrefixStore(
            f"backspike/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_meetings)}",
            store,
        )
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    except (RuntimeError, ValueError) as e:
        line = str(e).splitlines()[0]
        raise RanksError(
            f"the ranks do not find one another ({line}); start all of them with torchrun, once each"
        ) from e
    try:
        yield current()
    except (Exception, KeyboardInterrupt) as e:
        if not _claims_report(store):
            raise SystemExit(1) from e
        raise
    dist.destroy_process_group()


def _claims_report(store: Any) -> bool:
    try:
        return store.add("said", 1) == 1
    except RuntimeError:  # who keeps the store is gone
        return True


# ---- sums within a computation -------------------------------------------------------------------------------------------


class _AllReduceSum(torch.autograd.Function):
    """sum over ranks; as each rank's loss depends on it, so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        g = g.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(g)
        return g


def all_reduce_sum(x: Tensor) -> Tensor:
    """x summed over the ranks, with its gradient."""
    return x if current().size == 1 else _AllReduceSum.apply(x)
