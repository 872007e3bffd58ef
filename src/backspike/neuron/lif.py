"""The LIF neuron: `lif`, a pure function of the whole input sequence, and the layer `LIF`.

With lam = 1 - 1/tau, gain = 1/tau (1 if decay_input=False), and rest = v_reset (0 for soft reset):

    u[t] = (lam v[t-1] + rest/tau) + gain x[t]          membrane before the reset
    s[t] = 1 if u[t] >= theta else 0                    equality fires
    v[t] = v_reset where s[t] = 1, else u[t]            hard reset
    v[t] = u[t] - theta s[t]                            soft reset (v_reset=None)

Time is the first dimension everywhere, `[T, B, ...]`; each call starts from rest unless it is given
a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from .. import kernel
from ..kernel.mask import draw_seed, draw_seeds
from ..options import LIF as Options
from ..options import PLIF as ParametricOptions
from ..options import VARYING
from ..surrogate import Parametric, unwrap
from .arguments import has, options, takes
from .constants import (
    Value,
    initial_values,
    learned,
    limits,
    take_tensors,
    values_shape,
    varies,
)
from .prepare import (
    check_gradients_of,
    check_neuron,
    check_surrogate,
    check_tensor,
    prepare,
)
from .streaming import Streaming

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .arguments import FunctionArguments, LayerArguments

    _Attributes = Options
else:
    _Attributes = object

WIDTH_RANGE = (0.2, 4.0)  # limits of a learned width; our choice
THRESHOLD_MIN = 1e-3


class Output(NamedTuple):
    """The result of `bs.lif`.

    spikes: `[T, B, ...]`, zeros and ones in the dtype of x; None from `bs.Integrator`.
    state: v[T-1], `[B, ...]`, in float32 for 16-bit inputs; `[2, B, ...]` for neurons with two
    states (v first).
    membrane: u before the reset, `[T, B, ...]`; None unless recorded.
    """

    spikes: Tensor | None
    state: Tensor
    membrane: Tensor | None


@takes(Options, without=("learn", "per"))
def lif(
    x: Tensor,
    v0: Tensor | None = None,
    *,
    tau: float | Tensor = 2.0,
    v_threshold: float | Tensor = 1.0,
    width: Tensor | None = None,
    seed: int | Tensor | None = None,
    mask_p: Tensor | None = None,
    backend: str | None = None,
    record_membrane: bool = False,
    repeats: int = 1,
    **rest: Unpack[FunctionArguments],
) -> Output:
    """Leaky integrate-and-fire neurons driven by currents x `[T, B, ...]`; returns a `bs.Output`.

        u[t] = (lam v[t-1] + rest/tau) + gain x[t]        lam = 1 - 1/tau; rest = v_reset, or 0
        s[t] = 1 if u[t] >= v_threshold else 0            gain = 1/tau; 1 if decay_input=False
        v[t] = v_reset where s[t] = 1, else u[t]          v_reset=None: u[t] - v_threshold s[t]

    v0: initial state `[B, ...]`; None starts from rest.
    tau: membrane time constant in timesteps, above 1; `math.inf` with decay_input=False: no leak.
    tau and v_threshold may be tensors, learned or not: 0-dim, `[C]` with one value per channel
    (dimension 2 of x), or of the shape x.shape[2:] with one value per neuron. width: of a
    `Parametric` surrogate, 0-dim or `[C]`.
    reset_gradient: rho in [0, 1] scales the gradient through the reset: 0 detaches it (STBP), 1
    keeps it (TSBP, Yang 2020).
    temporal_gradient=False: no gradient flows to earlier timesteps or to v0.
    seed: of the mask of `Masked`; None draws one from torch's generator.
    mask_p: overrides `Masked.p`, for annealing.
    memory: what is saved for backward, one of `bs.kernel.MEMORIES`:
        "exact"               the membrane
        "bfloat16", "8bit"    the distance to the threshold in fewer bits; spikes stay exact,
                              gradients are off by about 0.1 % and 1 to 2 %, in quiet layers
                              more (docs/speed-and-memory.md)
        "1bit"                one bit; exact; only Rectangle with soft reset
        "recompute"           x; exact, slower ("checkpoint" means the same here)
    repeats: x `[1, B, ...]` stands for this many equal timesteps; its gradient is summed over them.

    Raises TypeError or ValueError naming the argument, and `bs.Unsupported` if the backend that
    was asked for cannot run this.
    """
    check_surrogate(rest.get("surrogate", Options.surrogate))
    neuron, constants = (
        options(Options, "bs.lif", **rest),
        kernel.Constants(tau, v_threshold, width),
    )
    record = kernel.Record(membrane=record_membrane)
    call = prepare(x, v0, neuron, constants, seed, mask_p, repeats, record)
    return compute(call, backend or "auto")[0]


def compute(call: kernel.Call, backend: str) -> tuple[Output, kernel.Moments | None]:
    result = kernel.dispatch(backend, call)
    return Output(result.spikes, result.state, result.membrane), result.moments


@dataclass(frozen=True, eq=False)
class Watcher:
    """A callback for every output of a spiking layer.

    membrane, moments: whether the membrane, or its moments, must be recorded for it.
    spikes: whether it reads the spikes, which may otherwise be pooled already.
    """

    see: Callable[[LIF, Output, kernel.Moments | None], None]
    membrane: bool = False
    moments: bool = False
    spikes: bool = True


@has(Options)
class LIF(Streaming, _Attributes):
    """A layer of leaky integrate-and-fire neurons (Lapicque 1907; docs/methods.md, section 1).

    `layer(x)` returns spikes, `[T, B, ...] -> [T, B, ...]`; `layer(x, v0)` returns a `bs.Output`.

    tau and v_threshold are numbers, tensors or distributions such as `bs.Gamma(20, 3)`. Tensors
    are copied; they and drawn values are the buffers `tau_values` and `v_threshold_values`.
    learn: any of "tau" and "threshold"; a `Parametric` surrogate also learns its width. The
    parameters are called `log_tau_minus_1`, `threshold` and `log_width`. Widths are kept within
    [0.2, 4], thresholds above 0.001, and what is drawn from a `bs.Uniform` within its limits.
    per: learned and drawn values are one "layer", "channel" or "neuron" each. None: as the tensors
    that are given, otherwise per channel if `channels` is given.
    channels: size of dimension 2 of x, for values per channel; for values per neuron the shape of
    a timestep of a sample, x.shape[2:].
    The other arguments are those of `bs.lif`.

    Raises TypeError or ValueError naming the argument.
    """

    kind: ClassVar[type[Options]]  # set by `has`
    learnable: ClassVar[tuple[str, ...]] = ("tau", "threshold")
    mask_p: Tensor | None

    def __init__(
        self,
        tau: Value = Options.tau,
        *,
        channels: int | tuple[int, ...] | None = None,
        **rest: Unpack[LayerArguments],
    ) -> None:
        super().__init__()
        check_surrogate(rest.get("surrogate", self.kind.surrogate))
        rest["learn"] = names(rest.get("learn", ()))
        given, tensors = take_tensors({"tau": tau, **rest})
        self.options = neuron = options(self.kind, type(self).__name__, **given)
        self.shape = values_shape(neuron, channels, tensors)
        self.channels = channels or _channels(self.shape if tensors else ())
        if unknown := set(neuron.learn) - {*self.learnable}:
            raise ValueError(
                f"learn may contain {', '.join(map(repr, self.learnable))}; got {sorted(unknown)}"
            )
        for name in VARYING:
            if hasattr(neuron, name):
                values = initial_values(self, name, tensors.get(name))
                self.register_buffer(f"{name}_values", values)
        check_neuron(neuron, self.held("tau"), self.held("v_threshold"))
        if neuron.backend != "auto" and neuron.backend not in kernel.backends():
            raise ValueError(
                f"unknown backend {neuron.backend!r}; "
                f"choose one of auto, {', '.join(kernel.backends())}"
            )
        mask, parametric, _ = unwrap(neuron.surrogate)
        self.limits = {"log_width": (math.log(WIDTH_RANGE[0]), math.log(WIDTH_RANGE[1]))}
        self.log_tau_minus_1 = self.learned_constant("tau", "log_tau_minus_1")
        self.threshold = self.learned_constant("v_threshold", "threshold", THRESHOLD_MIN)
        self.log_width = (
            nn.Parameter(torch.zeros(_width_shape(parametric, self.channels)))
            if parametric
            else None
        )
        check_gradients_of(neuron, self.log_tau_minus_1, self.threshold)
        # not saved with the weights: annealing sets it from the training progress
        self.register_buffer(
            "mask_p", torch.tensor(mask.p, dtype=torch.float64) if mask else None, persistent=False
        )
        self.seed: Tensor | None = None  # of the last forward pass with gradients
        self.watchers: list[Watcher] = []  # see hooks.py
        self.awaits_gradient = False  # ran with gradients enabled; see check_gradients

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Any:
        p = self.mask_p
        super()._apply(fn, recurse)
        if p is not None and self.mask_p is not None:
            self.mask_p = p.to(self.mask_p.device)  # `model.half()` must not round a probability
        return self

    def held(self, name: str) -> float | Tensor:
        """The values of an option that the layer does not learn: a number, or its buffer."""
        values: Tensor | None = getattr(self, f"{name}_values")
        return getattr(self.options, name) if values is None else values

    def learned_constant(
        self, name: str, parameter: str, lowest: float = -math.inf
    ) -> nn.Parameter | None:
        """The parameter that learns an option, or None. It takes the place of the buffer."""
        learn = name.removeprefix("v_")
        if learn not in self.options.learn:
            return None
        start, minus_1 = self.held(name), parameter.endswith("_minus_1")
        if not isinstance(start, Tensor) and math.isinf(start):
            raise ValueError(
                f"learn={learn!r} needs a finite initial {name}; an IF neuron has none"
            )
        setattr(self, f"{name}_values", None)
        low, high = limits(getattr(self.options, name), lowest, minus_1)
        if (low, high) != (-math.inf, math.inf):
            self.limits[parameter] = low, high
        return learned(start, self.shape, minus_1)

    def tau_in_use(self, name: str, parameter: str) -> float | Tensor:
        """A time constant: a number, a buffer, or with a graph where it is learned."""
        log_tau = self.within_limits(parameter)
        return self.held(name) if log_tau is None else 1 + log_tau.exp()

    def within_limits(self, parameter: str) -> Tensor | None:
        """A learned parameter within its limits. With gradients, `begin` has clamped it."""
        p: Tensor | None = getattr(self, parameter)
        if p is None or parameter not in self.limits or torch.is_grad_enabled():
            return p
        return p.clamp(*self.limits[parameter])

    def constants(self) -> kernel.Constants:
        """The constants in use: floats, or tensors with a graph where they are learned."""
        threshold, log_width = map(self.within_limits, ("threshold", "log_width"))
        return kernel.Constants(
            self.tau_in_use("tau", "log_tau_minus_1"),
            self.held("v_threshold") if threshold is None else threshold,
            None if log_width is None else log_width.exp(),
        )

    def forward(self, x: Tensor, v0: Tensor | None = None, repeats: int = 1) -> Any:
        check_tensor(x)
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
        """Run the neurons from state v0, between `begin` and `see`.

        Returns the output, and the moments of the membrane if a watcher asks for them.
        want_state=False: the state need not be computed and may be empty.
        """
        record = self.record(want_state)
        return compute(self.prepare(x, v0, repeats, record), self.options.backend)

    def prepare(
        self,
        x: Tensor,
        v0: Tensor | None,
        repeats: int = 1,
        record: kernel.Record = kernel.Record(),  # noqa: B008  (a named tuple)
        constants: kernel.Constants | None = None,
    ) -> kernel.Call:
        """Build the call for input x from state v0. constants: replace those of the layer."""
        constants = constants or self.constants()
        mask = self.mask_seed(), self.mask_p
        return self.complete(prepare(x, v0, self.options, constants, *mask, repeats, record))

    def operations(self, T: int) -> tuple[int, float]:
        """States of a neuron, and its multiplications in one of T timesteps."""
        return 1, 1.0  # leak and input: one multiply-accumulate

    def complete(self, call: kernel.Call) -> kernel.Call:
        """The call with what a kind of neuron adds to it."""
        return call

    def mask_seed(self) -> Tensor | None:
        return self.seed if torch.is_grad_enabled() else None

    def record(self, state: bool = True) -> kernel.Record:
        """What the watchers need recorded."""
        membrane = any(w.membrane for w in self.watchers)
        moments = any(w.moments for w in self.watchers)
        return kernel.Record(membrane, moments, state=state)

    def begin(self, device: torch.device, steps: int | None = None) -> Tensor | None:
        """Start a forward pass: draw a seed in training or with gradients, clamp the parameters.

        steps: draw one seed for each of so many timesteps, and return them as `[steps]`.
        """
        seeds = None
        if torch.is_grad_enabled() or (self.training and not torch.is_inference_mode_enabled()):
            # Masked or not, so that all variants in a study consume the same random numbers;
            # without gradients too, so that a reentrant checkpoint, which restores the generator,
            # draws the same seed again.
            if steps is None:
                self.seed = draw_seed(device)
            else:
                seeds = draw_seeds(device, steps)
                self.seed = seeds[-1]
        if torch.is_grad_enabled():
            self._clamp_parameters()
            self.awaits_gradient = True
        return seeds

    def see(self, out: Output, moments: kernel.Moments | None) -> None:
        """End a forward pass: carry the state over if streaming, then call the watchers."""
        self.carry(out.state)
        for watcher in self.watchers:
            watcher.see(self, out, moments)

    def learned(self) -> dict[str, nn.Parameter]:
        """The learned parameters by name, such as log_tau_minus_1, threshold and log_width."""
        return {name: p for name, p in self.named_parameters(recurse=False) if p.requires_grad}

    def __getstate__(self) -> dict[str, Any]:
        # copies, such as an average of the weights or a file, have no watchers
        return {**self.__dict__, "watchers": []}

    def _clamp_parameters(self) -> None:
        # .data, so that a second call before backward does not count as an in-place change of what
        # the first call saved
        for name, low_and_high in self.limits.items():
            if (p := getattr(self, name)) is not None:
                p.data.clamp_(*low_and_high)

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, and always tau, if there is a leak."""
        shown = _changed(self.options)
        if self.options.tau == math.inf:
            del shown["tau"]
        elif "tau" not in shown:
            shown = {"tau": self.options.tau, **shown}
        if self.channels is not None:
            shown["channels"] = self.channels
        return ", ".join(f"{name}={_text(value)}" for name, value in shown.items())


def _changed(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    values = {f.name: (getattr(value, f.name), f.default) for f in fields(value) if f.repr}
    return {name: now for name, (now, default) in values.items() if now != default}


def _text(value: Any) -> str:
    if not is_dataclass(value):
        return repr(value)
    shown = ", ".join(f"{name}={_text(v)}" for name, v in _changed(value).items())
    return f"{type(value).__name__}({shown})"


def names(learn: tuple[str, ...] | str) -> tuple[str, ...]:
    return (learn,) if isinstance(learn, str) else tuple(learn)


def _channels(shape: tuple[int, ...]) -> int | tuple[int, ...] | None:
    return shape[0] if len(shape) == 1 else shape or None


def _width_shape(
    parametric: Parametric | None, channels: int | tuple[int, ...] | None
) -> tuple[int, ...]:
    if parametric is None or not parametric.per_channel:
        return ()
    if channels is None:
        raise ValueError(
            "Parametric(per_channel=True) needs channels=, the size of dimension 2 of the input"
        )
    return (channels,) if isinstance(channels, int) else channels[:1]


@has(Options, without=("tau", "decay_input"))
class IF(LIF):
    """A layer of integrate-and-fire neurons: `LIF` without leak (lam = 1, gain = 1)."""

    def __init__(
        self, *, channels: int | tuple[int, ...] | None = None, **rest: Unpack[LayerArguments]
    ) -> None:
        rest.setdefault("decay_input", False)
        super().__init__(math.inf, channels=channels, **rest)


@has(ParametricOptions)
class PLIF(LIF):
    """A layer of parametric LIF neurons (Fang et al. 2021): `LIF` with one learned tau per layer.

    As in the paper, the reset is hard and the input decays, unless other values are given.
    tau: its initial value. The paper's parameter w, with 1/tau = sig(w), is -log_tau_minus_1:
    w = -log(tau - 1). `load_state_dict` accepts either, so SpikingJelly's weights load.
    """

    def __init__(
        self,
        tau: Value = Options.tau,
        *,
        channels: int | tuple[int, ...] | None = None,
        **rest: Unpack[LayerArguments],
    ) -> None:
        others = (name for name in names(rest.get("learn", ())) if name != "tau")
        rest["learn"] = ("tau", *others)
        if not any(map(varies, (tau, rest.get("v_threshold")))):
            rest["per"] = rest.get("per") or "layer"
        super().__init__(tau, channels=channels, **rest)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        w, ours = f"{prefix}w", f"{prefix}log_tau_minus_1"
        if w in state_dict and ours not in state_dict:
            state_dict[ours] = -state_dict.pop(w)
        super()._load_from_state_dict(state_dict, prefix, *args)


def neuron_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The learned thresholds, time constants and widths of `model`, for a separate optimizer group.

    We use 0.1 times the learning rate of the weights, and no weight decay, which would pull
    widths towards 1.
    """
    return list(
        {
            id(p): p for m in model.modules() if isinstance(m, LIF) for p in m.learned().values()
        }.values()
    )


def check_gradients(model: nn.Module) -> None:
    """Call after `backward()`: raise RuntimeError if a learned neuron parameter got no gradient.

    It names each threshold, log_tau_minus_1 and log_width whose `.grad` is None in a layer that ran
    with gradients enabled since the last check: the loss does not depend on the layer, or
    something in between detached it. A gradient of exactly zero is not an error (`Masked(p=1)`
    causes it, or a rectangle that contains no potential). After `zero_grad(set_to_none=False)` the
    two cannot be told apart, so keep torch's default.
    """
    missing = []
    for name, layer in model.named_modules():
        if isinstance(layer, LIF):
            if layer.awaits_gradient:
                missing += [
                    f"{name}.{p}".lstrip(".")
                    for p, value in layer.learned().items()
                    if value.grad is None
                ]
            layer.awaits_gradient = False
    if missing:
        raise RuntimeError(
            f"no gradient reached {', '.join(missing)}: backpropagate a loss that depends on "
            "these layers, or freeze them with requires_grad_(False)"
        )
