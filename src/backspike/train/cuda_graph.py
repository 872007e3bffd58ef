"""CUDA graphs: what a training step launches on a GPU is recorded once and then replayed with one call.

Small networks spend their time starting kernels, hundreds a step. A replay runs the same kernels on the same addresses, so
whatever changes from step to step has to lie in tensors: the batch, the learning rate, the seeds of the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..kernel.mask import Seeds

WARM_UP = 3  # steps that are not recorded: libraries choose their kernels in them, and the optimizer makes its state


class Recorder(Protocol):
    """What records on a device."""

    def warm_up(self, run: Callable[[], None]) -> None:
        """Runs it, where it will be recorded."""

    def record(self, run: Callable[[], None]) -> None:
        """Records what it launches, without doing it."""

    def replay(self) -> None:
        """Does what was recorded."""


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
        # thread_local: a thread that pins memory for the next batch may go on
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            run()

    def replay(self) -> None:
        self._graph.replay()


class Replayed:
    """`step(*inputs)`, which returns nothing, with its launches recorded for inputs like the first ones and then replayed.

    Inputs of another shape (a last batch), and the first `WARM_UP` steps, run as they are. The masks are those of a step that
    is not recorded, bit for bit. `step` must not look at values of tensors on the host. Where it does, or where memory does
    not suffice for the activations of the recording, `refused` is told why in one line and each step runs as it is.
    """

    def __init__(
        self,
        step: Callable[..., None],
        device: torch.device,
        refused: Callable[[str], None],
        recorder: Callable[[], Recorder] = CudaGraph,
    ) -> None:
        self._step, self._device, self._refused, self._recorder = step, device, refused, recorder
        self._usable = True
        self.forget()

    def forget(self) -> None:
        """Records anew: something that is no tensor has changed, such as what learns."""
        self._graph: Recorder | None = None
        self._seeds, self._form, self._warm = Seeds(self._device), None, 0
        self._held: tuple[Tensor, ...] | None = None

    def __call__(self, *inputs: Tensor) -> None:
        form: Any = tuple((x.shape, x.stride(), x.dtype) for x in inputs)
        self._form = self._form or form
        if not self._usable or form != self._form:
            self._step(*inputs)
            return
        if self._warm < WARM_UP:
            self._graph = self._graph or self._recorder()
            with self._seeds:
                self._graph.warm_up(lambda: self._step(*inputs))
            self._warm += 1
            return
        if self._held is None and not self._record(inputs):
            self._step(*inputs)
            return
        for held, x in zip(self._held or (), inputs):
            held.copy_(_once(x), non_blocking=True)
        self._seeds.refill()
        assert self._graph is not None
        self._graph.replay()

    def _record(self, inputs: tuple[Tensor, ...]) -> bool:
        assert self._graph is not None
        held = tuple(_once(x).clone() for x in inputs)
        given = tuple(h.expand(x.shape) for h, x in zip(held, inputs))
        self._seeds.make()
        try:
            with self._seeds:
                self._graph.record(lambda: self._step(*given))
        except RuntimeError as e:
            self._usable, self._graph = False, None
            self._refused((str(e).splitlines() or [type(e).__name__])[0])
            return False
        self._held = held
        return True


def _once(x: Tensor) -> Tensor:
    """x without its equal timesteps, where it repeats over T (stride 0)."""
    return x[:1] if x.dim() and len(x) > 1 and x.stride(0) == 0 else x
