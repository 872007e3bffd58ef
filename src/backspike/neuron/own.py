"""`Neuron`: a layer of neurons whose equations the user writes, one timestep of them."""

from __future__ import annotations

import inspect
import threading
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from numbers import Real
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .. import kernel
from ..errors import Unsupported
from ..kernel import equations
from ..kernel.coefficients import over_channels, state_dtype
from ..kernel.own import native
from ..kernel.own import run as compiled
from ..kernel.own.plan import Prepared, describe
from ..options import Own
from .arguments import check_names
from .lif import LIF, Output, names
from .prepare import check_input, check_parameter

OPTIONS = tuple(f.name for f in fields(Own))
MEMORIES = ("exact", "recompute", "checkpoint")
REASON = "equations of its own run in torch, one timestep after the other"
COMPILED = "compiled from its equations"
_OF_LIF = ("tau", "v_reset", "decay_input")  # which mean nothing here, unless declared


class _Current(threading.local):
    """The layer whose equations this thread computes, and its constants as tensors."""

    layer: Neuron | None = None
    values: Mapping[str, Tensor] = MappingProxyType({})


_current = _Current()


class Neuron(LIF):
    """A layer of neurons with equations of your own: a subclass writes one timestep of them.

        class Leaky(bs.Neuron):
            states = {"v": 0.0}  # each with its value at rest, a number or the name of a constant
            tau: float = 2.0  # a constant, with its default

            def step(self, x, v):  # the input current and the states, each [B, ...]
                u = (1 - 1 / self.tau) * v + x
                return u, u  # the spike variable, then the states

            def reset(self, s, v):  # s: 1 where the neuron fires, else 0
                return v - self.v_threshold * s

    A neuron fires where its spike variable u is at least `v_threshold`. `Leaky(tau=3.0)` is then a
    layer as `bs.LIF` is one, `[T, B, ...] -> [T, B, ...]`, with the same surrogates and masks, and
    with `bs.record`, `bs.streaming` and `bs.Recurrent`. `step`, `reset` and `adapt` use
    elementwise torch operations, change nothing in place and draw no random numbers. The constants
    are tensors in them, and numbers or parameters elsewhere.

    learn: names of constants, and "threshold". The parameters are called `constant_<name>` and
    `threshold`; with `channels`, a constant is learned for each channel (dimension 2 of x).
    `bounds`, a dict on the class, keeps learned constants within (lowest, highest); `fixed` names
    those that cannot be learned.
    reset_gradient scales the gradient through the s in `reset`, and not that in `adapt`.
    memory: "exact" saves the states of every timestep; "recompute" and "checkpoint" those of about
    every sqrt(T)-th, and compute the others again. Gradients are exact either way.
    backend: "cpu", compiled C; "triton", for GPUs; "eager", torch; "reference", a graph of autograd
    over all timesteps; or "auto": "cpu" if that can be compiled, else "eager". `bs.explain` says
    why.
    The state is that of `bs.LIF` with one state, and `[states, B, ...]` with more.

    Raises TypeError or ValueError naming the argument, or the method that returned something else
    than it must; `bs.Unsupported` for the other backends; RuntimeError in a backward pass whose
    steps differ from those in forward.
    """

    states: ClassVar[Mapping[str, float | str]] = {}  # type: ignore[assignment]
    bounds: ClassVar[Mapping[str, tuple[float, float]]] = {}
    fixed: ClassVar[tuple[str, ...]] = ()  # constants that cannot be learned
    channels: int | None
    defaults: ClassVar[dict[str, float]] = {}  # of the constants

    if TYPE_CHECKING:
        tau: Any
        v_reset: Any

        def __getattr__(self, name: str) -> Any: ...

    def __init_subclass__(cls, constants: type[Own] | None = None) -> None:
        """constants: an options class that declares them; else the class's annotations do."""
        super().__init_subclass__()
        cls.defaults = {**cls.defaults, **_declared(cls, constants)}
        taken = {*dir(LIF()), *dir(Neuron), "numbers", "not_compiled", "last_input"} - {*_OF_LIF}
        for name in cls.defaults:
            if name in taken:
                raise TypeError(
                    f"{cls.__name__}: {name!r} is the name of something that every layer has; "
                    "give the constant another one"
                )
        for name in cls.defaults:
            setattr(cls, name, _constant(name))
        cls.learnable = ("threshold", *(name for name in cls.defaults if name not in cls.fixed))
        cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    def __init__(self, *, channels: int | None = None, **rest: Any) -> None:
        kind = type(self).__name__
        if not self.states:
            raise TypeError(f'{kind} needs states, such as states = {{"v": 0.0}}')
        if type(self).step is Neuron.step:
            raise TypeError(f"{kind} needs a method step(self, x, *states)")
        check_names(kind, rest, {*OPTIONS, *self.defaults})
        numbers = {name: rest.pop(name, default) for name, default in self.defaults.items()}
        if "v_threshold" in rest:
            rest["v_threshold"] = _number(kind, "v_threshold", rest["v_threshold"])
        learn = names(rest.pop("learn", ()))
        super().__init__(
            torch.inf, channels=channels, learn=tuple({*learn} & {"threshold"}), **rest
        )
        if unknown := {*learn} - {*self.learnable}:
            raise ValueError(
                f"learn may contain {', '.join(map(repr, self.learnable))}; got {sorted(unknown)}"
            )
        if self.options.memory not in MEMORIES:
            raise ValueError(
                f"{kind}: memory must be one of {', '.join(MEMORIES)}, got {self.options.memory!r}"
            )
        self.options = replace(self.options, learn=learn)
        self.numbers: dict[str, float] = {}
        self.not_compiled: dict[tuple[object, ...], str] = {}  # the reasons, by kinds of input
        # the shape of a timestep of the last input, and its dtype
        self.last_input: tuple[torch.Size, torch.dtype] | None = None
        shape = () if channels is None else (channels,)
        for name, value in numbers.items():
            self.numbers[name] = value = _number(kind, name, value)
            p = nn.Parameter(torch.full(shape, value)) if name in learn else None
            self.register_parameter(f"constant_{name}", p)
            if p is not None and name in self.bounds:
                self.limits[f"constant_{name}"] = self.bounds[name]

    @property
    def in_use(self) -> Mapping[str, Tensor]:
        """The constants as tensors, while this thread computes the equations; else nothing."""
        return _current.values if _current.layer is self else {}

    @property
    def v_threshold(self) -> Any:
        return self.in_use.get(equations.THRESHOLD, self.options.v_threshold)

    @v_threshold.setter
    def v_threshold(self, value: Any) -> None:
        self.options = replace(self.options, v_threshold=value)

    # ---- the equations -------------------------------------------------------------------------

    @abstractmethod
    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One timestep: the spike variable, and the states before the reset, each `[B, ...]`."""

    def reset(self, s: Tensor, *states: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The states after the reset; without one of its own, a neuron has none."""
        return states

    def adapt(self, s: Tensor, *states: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The states after what else a spike does; reset_gradient does not apply here."""
        return states

    # ---- the layer -----------------------------------------------------------------------------

    def compute(
        self, x: Tensor, v0: Tensor | None, repeats: int = 1, want_state: bool = True
    ) -> tuple[Output, kernel.Moments | None]:
        n = len(self.states)
        check_input(x, v0, repeats, states=n)
        if x.dim() < 2:
            raise ValueError(f"{type(self).__name__} needs x [T, B, ...], got {list(x.shape)}")
        x = x.expand(repeats, *x.shape[1:]) if repeats > 1 else x
        v0 = None if v0 is None else v0.to(state_dtype(x)).view(n, *x.shape[1:])
        call = replace(self.prepare(x, None, record=self.record(want_state)), v0=v0)
        own = self._equations(call)
        prepared = self._compiled(own, call)
        if isinstance(prepared, str):
            states = self._at_rest(own, x) if v0 is None else tuple(v0)
            if self.options.backend == "reference":
                result, last = equations.definition(own, call, states)
            else:
                every = equations.states_every(len(x), self.options.memory)
                result, last = equations.run(own, call, states, every)
            state = torch.stack(last)
        else:
            result, state = compiled.run(prepared, x.shape, self._backend())
        state = state if n > 1 or not state.numel() else state[0]
        return Output(result.spikes, state, result.membrane), result.moments

    def _compiled(self, own: equations.Equations, call: kernel.Call) -> Prepared | str:
        """The call as the compiled equations take it, or why they do not run it.

        Raises `bs.Unsupported` if the backend that was asked for does not run it.
        """
        backend, x = self.options.backend, call.x
        if backend in ("eager", "reference"):
            return "requested"
        if backend == "auto" and torch.compiler.is_compiling():
            return f"{REASON}: torch.compile compiles them"
        self.last_input = x.shape[1:], x.dtype
        kind = x.device.type, *self.last_input
        if backend == "auto" and kind in self.not_compiled:  # it is not tried again
            return self.not_compiled[kind]
        try:
            return compiled.prepare(own, call, tuple(self.states.values()), self._backend())
        except Unsupported as error:
            if backend != "auto":
                raise Unsupported(f"backend {backend!r}: {error}; use backend='auto'") from error
            self.not_compiled[kind] = reason = f"{REASON}: {error}"
            return reason

    def _backend(self) -> ModuleType:
        """The module of the compiled backend that is in question."""
        if self.options.backend != "triton":
            return native
        if "triton" not in kernel.backends():
            raise Unsupported(f"there is no Triton here, and {REASON}")
        from ..kernel.triton import own

        return own

    @torch.enable_grad()
    def runs_on(self, device: torch.device | None = None) -> tuple[str, str]:
        """The backend and the reason for it. Raises `bs.Unsupported` if it cannot be used."""
        call = self._example(device)
        prepared = self._compiled(self._equations(call), call)
        if isinstance(prepared, str):
            return self.options.backend.replace("auto", "eager"), prepared
        return self.options.backend.replace("auto", "cpu"), COMPILED

    @torch.enable_grad()
    def describe_saved(self, device: torch.device | None = None) -> str:
        """What is saved for backward, in words. Raises `bs.Unsupported` as `runs_on` does."""
        call = self._example(device)
        prepared = self._compiled(self._equations(call), call)
        if not isinstance(prepared, str):
            return describe(prepared.plan, tuple(self.states))
        some = "its input, and the states of about every sqrt(T)-th timestep"
        return "the states" if self.options.memory == "exact" else some

    def _example(self, device: torch.device | None) -> kernel.Call:
        """A call such as the last one, or for two neurons in each channel, in training."""
        step, dtype = self.last_input or ((2, self.channels or 1, 2), torch.float32)
        x = torch.zeros(1, *step, dtype=dtype, device=device)
        with torch.no_grad():  # draws no seed
            call = self.prepare(x, None)
        return replace(call, x=x.requires_grad_())

    def _equations(self, call: kernel.Call) -> equations.Equations:
        constants = self.constants_in_use()
        for name, p in constants.items():
            check_parameter(name, p, call.x)
        ours = {*self.learned(), *(f"constant_{name}" for name in self.defaults)}
        others = [p for name, p in self.named_parameters() if name not in ours and p.requires_grad]
        return equations.Equations(
            type(self),
            *(self.step, self.reset, self.adapt),
            {**constants, equations.THRESHOLD: call.theta},
            self._use,
            others,
        )

    def constants_in_use(self) -> dict[str, float | Tensor]:
        """The constants, numbers or learned tensors, within their bounds."""
        out: dict[str, float | Tensor] = dict(self.numbers)
        for name in self.options.learn:
            if name != "threshold":
                p = self.within_limits(f"constant_{name}")
                assert p is not None
                out[name] = p
        return out

    @contextmanager
    def _use(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        before = _current.layer, _current.values
        _current.layer, _current.values = self, values
        try:
            yield
        finally:
            _current.layer, _current.values = before

    def _at_rest(self, own: equations.Equations, x: Tensor) -> tuple[Tensor, ...]:
        dtype, out = state_dtype(x), []
        for value in self.states.values():
            p = own.constants[value] if isinstance(value, str) else value
            zeros = torch.zeros_like(x[0], dtype=dtype)
            out.append(zeros + (over_channels(p, x).to(dtype) if isinstance(p, Tensor) else p))
        return tuple(out)

    def learned(self) -> dict[str, nn.Parameter]:
        """The learned constants, threshold and width, without what a subclass adds."""
        own = {"threshold", "log_width", *(f"constant_{name}" for name in self.defaults)}
        return {name: p for name, p in super().learned().items() if name in own}

    @torch.no_grad()
    def try_step(self) -> None:
        """Run `step` once, from rest, on two neurons in each channel."""
        x = torch.zeros(1, 2, self.channels or 1, 2)
        own = self._equations(self.prepare(x, None))
        equations.step_once(own, x, self._at_rest(own, x))

    def extra_repr(self) -> str:
        changed = {n: v for n, v in self.numbers.items() if v != self.defaults[n]}
        shown = [f"{name}={value:g}" for name, value in changed.items()]
        return ", ".join([*shown, *([rest] if (rest := super().extra_repr()) else [])])


def _declared(cls: type, constants: type[Own] | None) -> dict[str, float]:
    """The constants that a class declares, with their defaults."""
    if constants is not None:
        own = (f for f in fields(constants) if f.name not in OPTIONS)
        return {f.name: _number(cls.__name__, f.name, f.default) for f in own}
    inherited = getattr(cls, "defaults", {})
    out = {n: v for n, v in vars(cls).items() if n in inherited and isinstance(v, Real)}
    for name, kind in inspect.get_annotations(cls).items():
        if kind in (float, "float"):
            if name not in vars(cls):
                raise TypeError(f"{cls.__name__}: the constant {name} needs a default")
            out[name] = vars(cls)[name]
    return {name: _number(cls.__name__, name, value) for name, value in out.items()}


def _number(kind: str, name: str, value: object) -> float:
    if isinstance(value, Tensor):
        raise TypeError(
            f"{kind}: {name} must be a number; for one per channel use learn={name!r}, channels=, "
            f"and set the values of layer.constant_{name}"
        )
    if not isinstance(value, Real) or isinstance(value, bool) or value != value:
        raise TypeError(f"{kind}: {name} must be a number, got {value!r}")
    return float(value)


def _constant(name: str) -> property:
    def read(layer: Any) -> Any:
        if name in layer.in_use:
            return layer.in_use[name]
        learned = getattr(layer, f"constant_{name}")
        return layer.numbers[name] if learned is None else learned

    def write(layer: Any, value: float) -> None:
        number = _number(type(layer).__name__, name, value)
        if name in layer.options.learn:
            getattr(layer, f"constant_{name}").data.fill_(number)
        layer.numbers[name] = number

    return property(read, write)


def _signature(cls: type[Neuron]) -> inspect.Signature:
    def argument(name: str, default: Any, kind: Any) -> inspect.Parameter:
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind
        )

    return inspect.Signature(
        [
            *(argument(name, default, float) for name, default in cls.defaults.items()),
            argument("channels", None, "int | None"),
            *(argument(f.name, f.default, f.type) for f in fields(Own)),
        ]
    )
