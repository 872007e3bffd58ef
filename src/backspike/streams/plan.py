"""`stream`: a network compiled once, then run timestep by timestep on an endless input."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..kernel.cpu import library
from ..kernel.cpu.stream import DTYPES
from ..neuron.prepare import check_tensor
from ..system.table import Table, left
from ..train.network import Network
from .compile import Compiled, Whole


class Stream:
    """A network that runs timestep by timestep; made by `bs.stream`, which explains it."""

    def __init__(self, model: nn.Module, x: Tensor | None = None) -> None:
        model = model.model if isinstance(model, Network) else model
        self._model = copy.deepcopy(model).eval()
        self._way: Compiled | Whole | None = None
        self._key: object = None  # shape, type and device of a timestep
        self._at_rest = True
        if x is not None:
            check_tensor(x)
            self._compile(x)

    def step(self, x: Tensor) -> Tensor:
        """The output for the next timestep, `[B, ...] -> [B, ...]`, in memory of its own.

        Raises TypeError if x is not a tensor, and ValueError if its shape, type or device is not
        that of the timesteps before.
        """
        check_tensor(x)
        if self._way is None or self._key != (x.shape, x.dtype, x.device):
            self._compile(x)
        assert self._way is not None
        self._at_rest = False
        return self._way.run(x)

    def reset(self) -> None:
        """Return to rest. The next timestep may then have another shape."""
        if self._way is not None:
            self._way.reset()
        self._at_rest = True

    def explain(self) -> str:
        """A text table that says how each layer runs: in C, or called as in `bs.streaming`."""
        if self._way is None:
            return "not compiled yet; the first timestep does that, or the x given to bs.stream"
        return Table(left("", "", ""), self._way.lines).to_text()

    def __repr__(self) -> str:
        if self._way is None:
            return "Stream(not compiled yet)"
        ways = [way for *_, way in self._way.lines]
        called = sum(way.startswith("called") for way in ways)
        return f"Stream({len(ways) - called} layers in C, {called} called; see explain())"

    @torch.inference_mode(False)  # the buffers must stay writable outside inference mode
    def _compile(self, x: Tensor) -> None:
        if not self._at_rest:
            assert isinstance(self._key, tuple)
            raise ValueError(
                f"this stream has timesteps of {_text(*self._key)}, got one of "
                f"{_text(x.shape, x.dtype, x.device)}; call reset() before another kind of input"
            )
        why = _why_whole(x)
        self._way = Whole(self._model, why) if why else Compiled(self._model, x)
        self._way.reset()
        self._key = x.shape, x.dtype, x.device


def stream(model: nn.Module, x: Tensor | None = None) -> Stream:
    """Compile a network once for an endless input; `plan.step(x)` then runs one timestep.

        plan = bs.stream(model)
        for x in camera:  # [B, ...], one timestep
            y = plan.step(x)
        plan.reset()

    The outputs are those of the model in evaluation mode inside `bs.streaming`, up to rounding in
    convolutions and linear layers (docs/streaming.md). Convolutions and linear layers, BatchNorm,
    pools, LIF, IF, PLIF, CubaLIF, MPBN, Integrator, Recurrent, and the residual networks of
    `bs.models` run in C without gradients, on one thread, in float32 or float64 on the CPU, and so
    do modules of your own whose `forward` only calls such layers and adds. Every other module is
    called; `plan.explain()` says which, and why.

    model: copied, so later changes of it do not reach the plan; with `bs.load(run)`, the outputs
    are those before the readout. x: an example of a timestep, to compile at once instead of with
    the first step; a module that is called runs once on zeros then.

    Raises ValueError or torch's error for an input that the model does not take.
    """
    return Stream(model, x)


def _why_whole(x: Tensor) -> str:
    """Why nothing of a network runs in C for this input; "" if it can."""
    if x.device.type != "cpu":
        return f"the input is on {x.device}"
    if x.dtype not in DTYPES:
        return f"the input is {x.dtype}, not float32 or float64"
    return library.missing() or ""


def _text(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> str:
    return f"shape {list(shape)} in {dtype} on {device}"
