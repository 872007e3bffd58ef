"""The neuron: `lif`, a pure function of a whole input sequence, and the layers around it: `LIF` and its kin, `Integrator`.

With lam = 1 - 1/tau, gain = 1/tau (or 1 when the input does not decay) and rest = v_reset (0 for the soft reset)

    u[t] = (lam v[t-1] + rest/tau) + gain x[t]          membrane before the reset
    s[t] = 1 if u[t] >= theta else 0                    a tie fires
    v[t] = v_reset where s[t] = 1, else u[t]            hard reset;  soft (v_reset=None): v[t] = u[t] - theta s[t]

Time comes first everywhere, `[T, B, ...]`, and every call starts from rest unless a state is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import kernel
from ..kernel.mask import draw_seed
from ..options import LIF as Options
from ..surrogate import Parametric, unwrap
from .arguments import has, takes
from .prepare import check_gradients_of, check_neuron, prepare
from .streaming import Streaming

if TYPE_CHECKING:
    _Attributes = Options
else:
    _Attributes = object

WIDTH_RANGE = (0.2, 4.0)  # a learned width stays inside; ours
THRESHOLD_MIN = 1e-3


class Output(NamedTuple):
    """What `bs.lif` returns."""

    spikes: Tensor | None  # [T, B, ...], zeros and ones in the dtype of x
    state: Tensor  # [B, ...], v[T-1]; float32 for 16-bit inputs. [2, B, ...] where a neuron has two: v and the other
    membrane: Tensor | None  # [T, B, ...], u before the reset; None unless recorded


@takes(Options, without=("learn",))
def lif(
    x: Tensor,
    v0: Tensor | None = None,
    *,
    tau: float | Tensor = Options.tau,
    v_threshold: float | Tensor = Options.v_threshold,
    width: Tensor | None = None,
    seed: int | Tensor | None = None,
    mask_p: Tensor | None = None,
    backend: str | None = None,
    record_membrane: bool = False,
    repeats: int = 1,
    **rest: Any,
) -> Output:
    """Leaky integrate-and-fire neurons over a sequence of currents x `[T, B, ...]`; equations at the head of this file.

    tau: membrane time constant in timesteps, above 1 (`math.inf` with decay_input=False: no leak). tau, v_threshold and
    width may be tensors that learn, 0-dim or one per channel `[C]` (dimension 2 of x). v_reset=None: soft reset.
    reset_gradient: rho in [0, 1], the share of the gradient that flows back through the reset; 0 detaches it (STBP), 1 keeps
    it (TSBP, Yang 2020). temporal_gradient=False: nothing flows from one timestep to an earlier one, nor to v0.
    seed: of the mask of `Masked`, drawn from torch's generator when None. mask_p: overrides `Masked.p` (annealing).
    memory: what is kept for the backward pass, one of `bs.kernel.MEMORIES`: "exact" the membrane, "bfloat16" and "8bit" the
    distance to the threshold in fewer bits (the spikes stay exact, gradients are off by about 0.2 and 1 %), "1bit" (exact,
    Rectangle with soft reset alone), "recompute" x instead (exact, slower; "checkpoint" is the same here).
    repeats: x `[1, B, ...]` stands for that many equal timesteps, and its gradient is the sum over them.
    Raises ValueError naming the argument; `Unsupported` when the named backend cannot do it.
    """
    neuron, constants = Options(**rest), kernel.Constants(tau, v_threshold, width)
    record = kernel.Record(membrane=record_membrane)
    call = prepare(x, v0, neuron, constants, seed, mask_p, repeats, record)
    return compute(call, backend or "auto")[0]


def compute(call: kernel.Call, backend: str) -> tuple[Output, kernel.Moments | None]:
    result = kernel.dispatch(backend, call)
    return Output(result.spikes, result.state, result.membrane), result.moments


@dataclass(frozen=True, eq=False)
class Watcher:
    """Someone who sees every output of a spiking layer, and whether the membrane or its moments are to be taken for it."""

    see: Callable[[LIF, Output, kernel.Moments | None], None]
    membrane: bool = False
    moments: bool = False


@has(Options)
class LIF(Streaming, _Attributes):
    """A layer of leaky integrate-and-fire neurons: `layer(x) -> spikes`, both `[T, B, ...]`; `layer(x, v0) -> bs.Output`.

    learn: any of "tau", "threshold"; with a `Parametric` surrogate the width learns as well. What is learned are the
    parameters `log_tau_minus_1`, `threshold` and `log_width`. channels: the size of dimension 2 of x, needed when the width
    is per channel. The other arguments are those of `bs.lif`. A width stays within [0.2, 4], a threshold above 0.001.
    """

    kind: ClassVar[type[Options]]  # set by `has`
    learnable: ClassVar[tuple[str, ...]] = ("tau", "threshold")
    mask_p: Tensor | None

    def __init__(
        self,
        tau: float = Options.tau,
        *,
        channels: int | None = None,
        learn: tuple[str, ...] | str = (),
        **rest: Any,
    ) -> None:
        super().__init__()
        self.options = neuron = self.kind(tau, learn=names(learn), **rest)
        self.channels = channels
        if unknown := set(neuron.learn) - {*self.learnable}:
            raise ValueError(
                f"learn: any of {', '.join(map(repr, self.learnable))}, got {sorted(unknown)}"
            )
        check_neuron(neuron, tau, neuron.v_threshold)
        if "tau" in neuron.learn and math.isinf(tau):
            raise ValueError("learn='tau' needs a finite tau to start from; an IF neuron has none")
        if neuron.backend != "auto" and neuron.backend not in kernel.backends():
            raise ValueError(
                f"unknown backend {neuron.backend!r}; "
                f"here there are: auto, {', '.join(kernel.backends())}"
            )
        mask, parametric, _ = unwrap(neuron.surrogate)
        self.log_tau_minus_1 = (
            nn.Parameter(torch.tensor(math.log(tau - 1))) if "tau" in neuron.learn else None
        )
        self.threshold = (
            nn.Parameter(torch.tensor(float(neuron.v_threshold)))
            if "threshold" in neuron.learn
            else None
        )
        self.log_width = (
            nn.Parameter(torch.zeros(_width_shape(parametric, channels))) if parametric else None
        )
        check_gradients_of(neuron, self.log_tau_minus_1, self.threshold)
        # a function of the training progress, set by whoever anneals it; so it is no part of the weights
        self.register_buffer(
            "mask_p", torch.tensor(mask.p, dtype=torch.float64) if mask else None, persistent=False
        )
        self.seed: Tensor | None = None  # of the last forward pass that kept a graph
        self.watchers: list[Watcher] = []  # see hooks.py
        self.awaits_gradient = False  # since a forward pass that kept a graph; see check_gradients

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Any:
        p = self.mask_p
        super()._apply(fn, recurse)
        if p is not None and self.mask_p is not None:
            self.mask_p = p.to(self.mask_p.device)  # a probability keeps its bits in `model.half()`
        return self

    def constants(self) -> kernel.Constants:
        """As used: floats, or tensors with a graph where they are learned."""
        tau = self.options.tau if self.log_tau_minus_1 is None else 1 + self.log_tau_minus_1.exp()
        learned: Tensor | None = self.threshold
        threshold = self.options.v_threshold if learned is None else learned
        log_width: Tensor | None = self.log_width
        if not torch.is_grad_enabled():  # a training step has moved them into their bounds
            if isinstance(threshold, Tensor):
                threshold = threshold.clamp(min=THRESHOLD_MIN)
            log_width = None if log_width is None else log_width.clamp(*map(math.log, WIDTH_RANGE))
        width = None if log_width is None else log_width.exp()
        return kernel.Constants(tau, threshold, width)

    def forward(self, x: Tensor, v0: Tensor | None = None, repeats: int = 1) -> Any:
        self.begin(x.device)
        out, moments = self.compute(
            x,
            self.initial_state(v0, x),
            repeats,
            v0 is not None or self.streams or bool(self.watchers),
        )
        self.see(out, moments)
        return out.spikes if v0 is None else out

    def compute(
        self, x: Tensor, v0: Tensor | None, repeats: int = 1, want_state: bool = True
    ) -> tuple[Output, kernel.Moments | None]:
        """Between `begin` and `see`: the output from this state, and the moments of the membrane if a watcher wants them.

        want_state=False spares writing the state, which may then come out empty.
        """
        record = self.record()._replace(state=want_state)
        return compute(self.prepare(x, v0, repeats, record), self.options.backend)

    def prepare(
        self,
        x: Tensor,
        v0: Tensor | None,
        repeats: int = 1,
        record: kernel.Record = kernel.Record(),  # noqa: B008  (a named tuple)
        constants: kernel.Constants | None = None,
    ) -> kernel.Call:
        """The call that computes x from this state. constants: in place of the layer's own."""
        constants = constants or self.constants()
        mask = self.mask_seed(), self.mask_p
        return prepare(x, v0, self.options, constants, *mask, repeats, record)

    def mask_seed(self) -> Tensor | None:
        return self.seed if torch.is_grad_enabled() else None

    def record(self) -> kernel.Record:
        """What the watchers want recorded."""
        return kernel.Record(
            any(w.membrane for w in self.watchers), any(w.moments for w in self.watchers)
        )

    def begin(self, device: torch.device) -> None:
        """The first thing in a forward pass. In training, or with gradients, it draws a seed."""
        if torch.is_grad_enabled() or (self.training and not torch.is_inference_mode_enabled()):
            # masked or not, so that the arms of a study draw the same numbers; without gradients
            # too, so that a reentrant checkpoint, which restores the generator, draws the same one
            self.seed = draw_seed(device)
        if torch.is_grad_enabled():
            self._project()
            self.awaits_gradient = True

    def see(self, out: Output, moments: kernel.Moments | None) -> None:
        """The last thing in a forward pass: the state is carried where it streams, and watchers are told."""
        self._finish(out.state)
        for watcher in self.watchers:
            watcher.see(self, out, moments)

    def learned(self) -> dict[str, nn.Parameter]:
        """The parameters of the neuron that learn, by name: any of log_tau_minus_1, threshold, log_width."""
        return {name: p for name, p in self.named_parameters(recurse=False) if p.requires_grad}

    def __getstate__(self) -> dict[str, Any]:
        # a copy (an average of the weights, a file) is not watched
        return {**self.__dict__, "watchers": []}

    def _project(self) -> None:
        # through .data: a second call before backward must not look like a change to what the first call saved
        if self.log_width is not None:
            self.log_width.data.clamp_(math.log(WIDTH_RANGE[0]), math.log(WIDTH_RANGE[1]))
        if self.threshold is not None:
            self.threshold.data.clamp_(min=THRESHOLD_MIN)

    def extra_repr(self) -> str:
        learned = f", learn={self.learn}" if self.learn else ""
        memory = f", memory={self.memory!r}" if self.memory != "exact" else ""
        return (
            f"tau={self.tau}, v_threshold={self.v_threshold}, v_reset={self.v_reset}, decay_input={self.decay_input}, "
            f"surrogate={self.surrogate}, reset_gradient={self.reset_gradient}{learned}{memory}"
        )


def names(learn: tuple[str, ...] | str) -> tuple[str, ...]:
    return (learn,) if isinstance(learn, str) else tuple(learn)


def _width_shape(parametric: Parametric | None, channels: int | None) -> tuple[int, ...]:
    if parametric is None or not parametric.per_channel:
        return ()
    if channels is None:
        raise ValueError(
            "Parametric(per_channel=True) needs channels=, the size of dimension 2 of the input"
        )
    return (channels,)


@has(Options, without=("tau", "decay_input"))
class IF(LIF):
    """A layer of integrate-and-fire neurons: `LIF` without the leak (lam = 1, gain = 1)."""

    def __init__(self, *, channels: int | None = None, **rest: Any) -> None:
        super().__init__(math.inf, decay_input=False, channels=channels, **rest)


@has(Options)
class PLIF(LIF):
    """A layer of parametric LIF neurons: `LIF` whose tau learns, one for the layer, from the tau given (Fang et al. 2021).

    The paper's parameter w, with 1/tau = sig(w), is -log_tau_minus_1: w = -log(tau - 1). `load_state_dict` takes either, so it
    reads weights of SpikingJelly, where w is learned. Runs as `LIF` does, in one op with its BatchNorm and pool.
    """

    def __init__(
        self,
        tau: float = Options.tau,
        *,
        channels: int | None = None,
        learn: tuple[str, ...] | str = (),
        **rest: Any,
    ) -> None:
        others = (name for name in names(learn) if name != "tau")
        super().__init__(tau, channels=channels, learn=("tau", *others), **rest)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        w, ours = f"{prefix}w", f"{prefix}log_tau_minus_1"
        if w in state_dict and ours not in state_dict:
            state_dict[ours] = -state_dict.pop(w)
        super()._load_from_state_dict(state_dict, prefix, *args)


def neuron_parameters(model: nn.Module) -> list[nn.Parameter]:
    """What the neurons of `model` learn: thresholds, time constants and widths, for an optimizer group of their own.

    Ours: 0.1 times the learning rate of the weights and no weight decay, which would pull a width towards 1.
    """
    return list(
        {
            id(p): p for m in model.modules() if isinstance(m, LIF) for p in m.learned().values()
        }.values()
    )


def check_gradients(model: nn.Module) -> None:
    """Call it after `backward()`: raises RuntimeError naming every learned neuron parameter that received no gradient.

    Meant are the threshold, log_tau_minus_1 and log_width of each layer that ran with gradients enabled since the last check
    and whose `.grad` is None: the loss does not depend on the layer, or something on the way detached it. A gradient of
    exactly zero is no error: `Masked(p=1)` gives it, and so does a rectangle that no potential lies under. It cannot be told
    from silence after `zero_grad(set_to_none=False)`, so keep torch's default there.
    """
    silent = []
    for name, layer in model.named_modules():
        if isinstance(layer, LIF):
            if layer.awaits_gradient:
                silent += [
                    f"{name}.{p}".lstrip(".")
                    for p, value in layer.learned().items()
                    if value.grad is None
                ]
            layer.awaits_gradient = False
    if silent:
        raise RuntimeError(
            f"no gradient reached {', '.join(silent)}: backpropagate a loss that depends on these layers, "
            "or freeze them with requires_grad_(False)"
        )
