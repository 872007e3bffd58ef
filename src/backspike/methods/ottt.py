"""OTTT: online training through time, with traces of the inputs (Xiao et al. 2022)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..neuron.hooks import Handle
from ..neuron.integrator import Integrator
from ..neuron.lif import IF, LIF, PLIF
from ..neuron.streaming import Streaming
from .sgs import weight_gradient
from .weight_mask import learning_layers


def ottt(model: nn.Module) -> Handle:
    """OTTT (Xiao et al. 2022, arXiv 2210.04195): weight gradients from traces of the inputs.

        A[t] = lam A[t-1] + a[t],   A[-1] = 0,   lam = 1 - 1/tau
        dL/dW = sum_t d[t] A[t]^T   instead of   sum_t d[t] a[t]^T

    a: the input of a linear or convolution layer, spikes or not.
    d[t]: the gradient of its output at timestep t, which passes only through this timestep of the
    layers above.
    lam: the leak of the next LIF, IF, PLIF or `bs.Integrator` in the order of `model.modules()`;
    layers with none behind them, such as a classifier, have no trace: A[t] = a[t].
    Gradients of biases, norms and neurons are those of SLTT, without traces.

    Run the model one timestep at a time, with its states carried and detached:

        with bs.streaming(model), bs.ottt(model):
            for x_t in x.split(1):
                loss(model(x_t)).backward()

    or call `bs.backward_in_chunks(..., size=1, truncate=True)` inside `with bs.ottt(model)`. The
    traces start at zero with the handle, so each sequence needs a new one. Memory does not grow
    with T: each layer holds one trace of the size of its input at a timestep.

    Returns a handle: `.remove()` ends it, and it is a context manager.
    Raises ValueError for other neurons, recurrent or transposed layers, or if no layer has a trace;
    and the model, when it runs with gradients and not as above.
    """
    leaks = _leaks(model)
    if not leaks:
        raise ValueError("ottt: no learned linear or convolution layer feeds a spiking layer")
    handle = Handle()
    handle.undo = [model.register_forward_pre_hook(_check_call).remove]
    handle.undo += [layer.register_forward_hook(_Trace(n)).remove for layer, n in leaks.items()]
    return handle


class _Trace:
    """Hook of a layer whose output drives `neuron`; holds the trace A of its input."""

    def __init__(self, neuron: LIF | Integrator) -> None:
        self.neuron = neuron
        self.trace: Tensor | None = None

    def __call__(self, layer: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled():
            return None
        with torch.no_grad():
            x = args[0]
            earlier = None if self.trace is None else _leak(self.neuron) * self.trace
            self.trace = x.clone() if earlier is None else earlier + x
        return y if earlier is None else _Earlier.apply(y, layer.weight, layer, earlier)


class _Earlier(torch.autograd.Function):
    """The identity on y; in backward, the weight also gets the gradient of the earlier inputs."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, layer: nn.Module, earlier: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(earlier)
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (earlier,) = ctx.saved_tensors
        with torch.autocast(g.device.type, enabled=False):
            found = weight_gradient(ctx.layer, earlier, g)
        return g, found.to(ctx.layer.weight.dtype), None, None


def _leaks(model: nn.Module) -> dict[Any, LIF | Integrator]:
    """Each layer with a trace, and the neuron that it drives."""
    learning = {layer for _, layer in learning_layers(model)}
    driving: list[Any] = []
    found: dict[Any, LIF | Integrator] = {}
    for name, m in model.named_modules():
        if m in learning:
            if getattr(m, "transposed", False):
                raise ValueError(f"ottt: no transposed convolutions, such as layer {name!r}")
            driving.append(m)
        elif isinstance(m, Streaming):
            if type(m) not in (LIF, IF, PLIF, Integrator):
                raise ValueError(
                    "ottt: feed-forward networks of LIF, IF and PLIF only; "
                    f"layer {name!r} is a {type(m).__name__}"
                )
            found |= dict.fromkeys(driving, m)
            driving = []
    return found


def _leak(neuron: LIF | Integrator) -> Any:
    """lam."""
    tau = neuron.constants().tau if isinstance(neuron, LIF) else neuron.tau or math.inf
    if isinstance(tau, Tensor) and tau.dim():
        raise ValueError("ottt: one tau per layer only; this one differs between its neurons")
    return 1 - 1 / tau


def _check_call(model: nn.Module, args: tuple[Tensor]) -> None:
    carried = all(m.streams and m.detaches for m in model.modules() if isinstance(m, Streaming))
    if torch.is_grad_enabled() and not (carried and len(args[0]) == 1):
        raise ValueError(
            "ottt: run the model one timestep at a time inside `with bs.streaming(model)`; "
            f"got shape {list(args[0].shape)}" + ("" if carried else " outside of it")
        )
