"""Distributed training: the processes that torchrun starts, one per GPU or several on CPUs.

Each rank computes its share of every batch. Gradients (DistributedDataParallel), counts and
statistics are reduced with torch.distributed. In a single process every function here is the
identity, so callers need no special case.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
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
RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
COLLECTIVE_TIMEOUT = timedelta(hours=1)  # rank 0 may have to prepare a data set first
_groups = count()  # every process group has its own keys in the store
_ended: list[object] = []  # the last process group, see `process_group`
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` (from 0) of `size` processes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0

    def shard(self, x: Tensor) -> Tensor:
        """This rank's contiguous share of the samples x `[n, ...]`; sizes differ by at most 1."""
        return x.tensor_split(self.size)[self.rank]

    def share(self, samples: int) -> int:
        """The size of this rank's share of that many samples."""
        return samples // self.size + (self.rank < samples % self.size)

    def all_reduce(self, *values: Any) -> list[Any]:
        """Sums each number over the ranks in float64; a single process returns them unchanged."""
        if self.size == 1:
            return list(values)
        total = torch.tensor([float(value) for value in values], dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def on_rank0(self, f: Callable[[], R]) -> R:
        """Calls f on rank 0 only; every rank gets its result, or its exception."""
        if self.size == 1:
            return f()
        outcome: list[Any] = [None, None]  # result, exception
        if self.first:
            try:
                outcome[0] = f()
            except Exception as e:
                outcome[1] = e
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def gather(self, value: Any) -> list[Any]:
        """On rank 0, the values of all ranks in order; an empty list on the others."""
        if self.size == 1:
            return [value]
        values = [None] * self.size if self.first else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def broadcast(self, module: nn.Module) -> None:
        """Copies the parameters and buffers of rank 0 to all ranks."""
        if self.size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, src=0)

    @contextmanager
    def rank0_first(self) -> Iterator[None]:
        """On each machine one rank runs the block before the others, to prepare files for them."""
        if self.size == 1:
            yield
        elif local_rank() == 0:
            yield
            dist.barrier()
        else:
            dist.barrier()
            yield

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """The model, wrapped so that its gradients are averaged over the ranks."""
        if self.size == 1:
            return model
        # Some parameters, such as frozen ones, get no gradient. Also, only this setting keeps the
        # buckets, and so the order of additions, the same in the first step after a resume.
        return DistributedDataParallel(model, find_unused_parameters=True)


def current() -> Ranks:
    """The process group of this process; `Ranks(0, 1)` without one."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def no_sync(model: nn.Module) -> AbstractContextManager[None]:
    """Inside, gradients are not averaged: for all parts of a step except the last."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def local_rank() -> int:
    """The number of this process on its machine, which is also that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def command(*words: object) -> str:
    """A command line of this program, started through torchrun if this process was."""
    program = ["backspike"]
    if all(name in os.environ for name in _TORCHRUN):
        local, size = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), int(os.environ["WORLD_SIZE"])
        machines = [f"--nnodes={size // local}"] if size > local else []
        program = ["torchrun", *machines, f"--nproc-per-node={local}", "-m", "backspike"]
    return shlex.join([*program, *map(str, words)])


def is_peer_failure(e: BaseException) -> bool:
    """Whether this error means that another rank has ended."""
    return current().size > 1 and (isinstance(e, dist.DistError) or "gloo" in str(e))


@lru_cache
def _rendezvous(*variables: str) -> tuple[dist.Store, int, int]:
    """The store of these ranks, created once per process.

    Without torchrun, rank 0 serves it. If it closed the store after every process group, a rank
    that is early for the next one would connect to a server that is about to close.
    """
    store, rank, size = next(iter(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT)))
    return store, rank, size


@contextmanager
def process_group(device: str | torch.device | None = None) -> Iterator[Ranks]:
    """Joins the process group that torchrun started; without torchrun, the process stays alone.

    If several ranks fail, the first one raises its error; the others exit silently with code 1.
    SIGTERM, which torchrun sends to all ranks when one ends, raises KeyboardInterrupt. Raises
    RanksError if the ranks cannot connect or another one ends.
    """
    if (
        not all(name in os.environ for name in _TORCHRUN)
        or not dist.is_available()
        or dist.is_initialized()
    ):
        yield current()
        return
    gpu = torch.cuda.is_available() and str(device or "cuda").startswith("cuda")
    try:
        store, rank, size = _rendezvous(*(os.environ[name] for name in _TORCHRUN))
        store = dist.PrefixStore(
            f"backspike/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_groups)}",
            store,
        )
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=COLLECTIVE_TIMEOUT,
        )
    except (RuntimeError, ValueError) as e:
        line = str(e).splitlines()[0]
        raise RanksError(
            f"the ranks cannot connect to each other ({line}); start all of them with one torchrun"
        ) from e
    try:
        with _interrupt_on_sigterm():
            yield current()
    except (Exception, KeyboardInterrupt) as e:
        if not _claims_report(store):
            raise SystemExit(1) from e
        if is_peer_failure(e):
            raise RanksError("another rank ended; start all of them again") from e
        raise
    # DistributedDataParallel may live longer. If it freed the group, it would wait for a thread of
    # gloo without releasing the interpreter, for which that thread may be waiting.
    _ended[:] = [dist.group.WORLD]
    dist.destroy_process_group()


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt; after an error it is ignored, so that it can be reported.

    Otherwise the signal that torchrun sends when a rank ends would end the others without a word.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except BaseException:
        before = signal.SIG_IGN
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _claims_report(store: Any) -> bool:
    try:
        return store.add("reported", 1) == 1
    except RuntimeError:  # the process that serves the store has ended
        return True


# ---- sums that are differentiated ----------------------------------------------------------------


class _AllReduceSum(torch.autograd.Function):
    """Sum over ranks. Every rank's loss depends on it, so its gradient is summed as well."""

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
    """Sums x over the ranks; differentiable once."""
    return x if current().size == 1 else _AllReduceSum.apply(x)
