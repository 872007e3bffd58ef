"""CUDA graphs: record the kernels of a training step once, then replay them with a single call.

Small networks spend their time launching kernels, hundreds per step. A replay runs the same kernels
on the same addresses, so everything that changes from step to step must be in tensors: the batch,
the learning rate, the seeds of the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernel.mask import Seeds
from .failures import first_line

# steps before the recording, in which libraries choose kernels and the optimizer creates its state
WARM_UP = 3


class Recorder(Protocol):
    """Records the kernels that a function launches."""

    def warm_up(self, run: Callable[[], None]) -> None:
        """Runs the function on the stream of the recording."""

    def record(self, run: Callable[[], None]) -> None:
        """Records the kernels without running them."""

    def replay(self) -> None:
        """Runs the recorded kernels."""


class CudaGraph:
    """`torch.cuda.CUDAGraph` as a `Recorder`."""

    def __init__(self) -> None:
        self._graph, self._stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()

    def warm_up(self, run: Callable[[], None]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, run: Callable[[], None]) -> None:
        # thread_local: another thread may pin memory for the next batch meanwhile
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            run()

    def replay(self) -> None:
        self._graph.replay()


class Replayed:
    """Records `step(*inputs)` and then replays it for inputs of the same shape; returns None.

    The first `WARM_UP` steps, and inputs of another shape (a last batch), run directly. The masks
    are bit-identical to those of direct steps. `step` must not read tensors on the host. If it
    does, or if memory runs out during the recording, `not_recorded` is called with the reason in
    one line, and all steps run directly.
    """

    def __init__(
        self,
        step: Callable[..., None],
        device: torch.device,
        not_recorded: Callable[[str], None],
        recorder: Callable[[], Recorder] = CudaGraph,
    ) -> None:
        self._step = step
        self._device = device
        self._not_recorded = not_recorded
        self._recorder = recorder
        self._usable = True
        self.forget()

    def forget(self) -> None:
        """Discards the recording, after a change that is not in tensors, such as a frozen layer."""
        self._graph: Recorder | None = None
        self._seeds = Seeds(self._device)
        self._shape: Any = None
        self._warm_steps = 0
        self._inputs: tuple[Tensor, ...] | None = None  # of the recording

    def __call__(self, *inputs: Tensor) -> None:
        shape: Any = tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        self._shape = self._shape or shape
        if not self._usable or shape != self._shape:
            self._step(*inputs)
            return
        if self._warm_steps < WARM_UP:
            self._graph = self._graph or self._recorder()
            with self._seeds:
                self._graph.warm_up(lambda: self._step(*inputs))
            self._warm_steps += 1
            return
        if self._inputs is None and not self._record(inputs):
            self._step(*inputs)
            return
        for recorded, x in zip(self._inputs or (), inputs):
            recorded.copy_(_one_timestep(x), non_blocking=True)
        self._seeds.refill()
        assert self._graph is not None
        self._graph.replay()

    def _record(self, inputs: tuple[Tensor, ...]) -> bool:
        assert self._graph is not None
        recorded = tuple(_one_timestep(x).clone() for x in inputs)
        expanded = [r.expand(x.shape) for r, x in zip(recorded, inputs)]
        self._seeds.make()
        try:
            with self._seeds:
                self._graph.record(lambda: self._step(*expanded))
        except RuntimeError as e:
            self._usable, self._graph = False, None
            self._not_recorded(first_line(e))
            return False
        self._inputs = recorded
        return True


def _one_timestep(x: Tensor) -> Tensor:
    """The first timestep if x repeats over T (stride 0), else x."""
    return x[:1] if x.dim() and len(x) > 1 and x.stride(0) == 0 else x
