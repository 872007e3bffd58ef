"""Layers with a state in plain torch, one timestep at a time, as ONNX can express them.

`render(network)` is a copy of a network in which each layer with a state is a `Step`. Membranes
are measured from rest, so that every state starts at zero. With v and u relative to rest:

    u[t] = lam v[t-1] + gain x[t]
    s[t] = 1 if u[t] >= theta - rest else 0
    v[t] = 0 where s[t] = 1, else u[t]        soft reset: u[t] - theta s[t]

How a network runs over time is up to `Step.over_time`: timestep by timestep in torch (`loop`), as
one `Scan` of ONNX (`scan`), or a single timestep with states from outside (`Once`).
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExchangeError
from ..kernel.coefficients import leak, rest
from ..layers.dropout import Dropout
from ..layers.mpbn import MPBN
from ..neuron.adaptive import AdaptiveLIF
from ..neuron.clif import CLIF
from ..neuron.cuba import CubaLIF
from ..neuron.integrator import Integrator
from ..neuron.lif import IF, LIF, PLIF
from ..neuron.recurrent import Recurrent
from ..neuron.shifted import DelayedReset, DelayedResetCuba, Shifted, ShiftedCuba
from ..neuron.streaming import Streaming

# (u - theta, spikes) of one timestep -> the spikes to go on with
Check = Callable[[Tensor, Tensor], Tensor]


class Step(nn.Module, ABC):
    """A layer with a state: `step(x [B, ...], *states) -> (y, *states)`, all of one shape."""

    states: tuple[str, ...]

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.over_time: Callable[[Step, Tensor], Tensor] = loop

    @abstractmethod
    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]: ...

    @property
    def spiking(self) -> Neuron | None:
        """The neuron whose spikes are the outputs, if they are spikes."""
        return None

    def start(self, x: Tensor) -> list[Tensor]:
        """The states before the first timestep of x `[T, B, ...]`: zeros."""
        return [x.new_zeros(x.shape[1:]) for _ in self.states]

    def forward(self, x: Tensor, v0: Tensor | None = None, repeats: int = 1) -> Tensor:
        if v0 is not None or repeats != 1:
            raise ExchangeError(
                f"{self.name!r} is called with a state or repeats; call it with its input alone"
            )
        return self.over_time(self, x)


class Leaky(Step):
    """u[t] = lam v[t-1] + gain x[t]."""

    states: tuple[str, ...] = ("v",)
    lam: Tensor
    gain: Tensor

    def __init__(self, name: str, tau: float | Tensor, decay_input: bool) -> None:
        super().__init__(name)
        lam, gain = coefficients(tau, decay_input)
        self.hold(lam=lam, gain=gain)

    def hold(self, **constants: float | Tensor) -> None:
        """Constants as buffers in float64, which `float()` rounds once, as the kernels do."""
        for name, value in constants.items():
            self.register_buffer(name, torch.as_tensor(value, dtype=torch.float64).detach().clone())

    def membrane(self, x: Tensor, v: Tensor) -> Tensor:
        return over(self.lam, x) * v + over(self.gain, x) * x

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        u = self.membrane(x, *states)
        return u, u


class Neuron(Leaky):
    """LIF, IF and PLIF. check: gets u - theta and the spikes, returns those to go on with."""

    theta: Tensor

    def __init__(self, name: str, m: LIF) -> None:
        constants, options = m.constants(), m.options
        super().__init__(name, constants.tau, options.decay_input)
        self.soft, self.rest = options.soft, rest(options.v_reset)
        self.hold(theta=torch.as_tensor(constants.v_threshold, dtype=torch.float64) - self.rest)
        self.check: Check | None = None

    @property
    def spiking(self) -> Neuron:
        return self

    def fire(self, u: Tensor) -> Tensor:
        theta = over(self.theta, u)
        s = (u >= theta).to(u.dtype)
        return s if self.check is None else self.check(u - theta, s)

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        u = self.membrane(x, *states)
        s = self.fire(u)
        return s, u - over(self.theta, u) * s if self.soft else u * (1 - s)


class Cuba(Neuron):
    """i[t] = lam_s i[t-1] + gain_s x[t] drives the membrane."""

    states = ("v", "i")
    lam_s: Tensor
    gain_s: Tensor

    def __init__(self, name: str, m: CubaLIF) -> None:
        super().__init__(name, m)
        lam, gain = coefficients(m.tau_synapse_in_use(), m.options.decay_input)
        self.hold(lam_s=lam, gain_s=gain)

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        v, i = states
        i = over(self.lam_s, x) * i + over(self.gain_s, x) * x
        return *super().step(i, v), i


class Moved(Neuron):
    """`Shifted` and `DelayedReset`: membranes are measured from where they start.

    u[t] = lam v[t-1] + gain scale x[t] + drive
    """

    drive: Tensor
    jump: Tensor
    home: Tensor

    def __init__(self, name: str, m: Shifted) -> None:
        super().__init__(name, m)
        scale, shift, offset = m.transform()
        start = self.rest if m.start is None else m.start
        jump = self.theta + self.rest + offset  # the threshold of the kernels
        home = self.rest - (start + offset)
        drive = self.gain * shift + (1 - self.lam) * home
        self.hold(gain=self.gain * scale, drive=drive, theta=jump - (start + offset))
        self.hold(jump=jump, home=home)

    def membrane(self, x: Tensor, v: Tensor) -> Tensor:
        return super().membrane(x, v) + over(self.drive, x)

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        u = self.membrane(x, *states)
        s = self.fire(u)
        after = u - over(self.jump, u) * s if self.soft else u * (1 - s) + over(self.home, u) * s
        return s, after


class MovedCuba(Cuba, Moved):
    """`Moved` behind the synapse of `Cuba`."""


class Adaptive(Neuron):
    """AdaptiveLIF: x[t] - w[t-1] drives v;  w[t] = lam_w w[t-1] + by_v v[t] + by_s s[t]."""

    states = ("v", "w")
    lam_w: Tensor
    by_v: Tensor
    by_s: Tensor

    def __init__(self, name: str, m: AdaptiveLIF) -> None:
        super().__init__(name, m)
        self.hold(**dict(zip(("lam_w", "by_v", "by_s"), m.adaptation())))

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        v, w = states
        s, v = super().step(x - w, v)
        return s, v, over(self.lam_w, x) * w + (over(self.by_v, x) * v + over(self.by_s, x) * s)


class Complementary(Neuron):
    """CLIF: m[t] = m[t-1] sig(u[t] / tau) + s[t],  v[t] = u[t] - s[t] (theta + sig(m[t]))."""

    states = ("v", "m")

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        v, m = states
        u = self.membrane(x, v)
        s = self.fire(u)
        m = m * torch.sigmoid(u * (1 - over(self.lam, u))) + s
        return s, u - (over(self.theta, u) + torch.sigmoid(m)) * s, m


class Normed(Neuron):
    """MPBN: the norm of the membrane is compared with theta, the membrane itself goes on."""

    def __init__(self, name: str, m: MPBN) -> None:
        super().__init__(name, m)
        self.norm = m.norm

    def fire(self, u: Tensor) -> Tensor:
        return super().fire(self.norm(u + self.rest) - self.rest)


class Feedback(Step):
    """Recurrent: the neuron gets x[t] + layer(s[t-1])."""

    def __init__(self, name: str, layer: nn.Module, neuron: Neuron) -> None:
        super().__init__(name)
        self.layer, self.neuron = layer, neuron
        self.states = ("s", *neuron.states)

    @property
    def spiking(self) -> Neuron:
        return self.neuron

    def step(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        last, *inner = states
        s, *inner = self.neuron.step(x + self.layer(last), *inner)
        return s, s, *inner


def coefficients(tau: float | Tensor, decay_input: bool) -> tuple[Any, Any]:
    """lam and gain in float64."""
    lam, _, gain = leak(tau, torch.empty(0, 0, 0, dtype=torch.float64), None, decay_input)
    return lam, gain


def over(constant: Tensor, x: Tensor) -> Tensor:
    """A constant, 0-dim, per channel or per neuron, against one timestep x `[B, C, ...]`."""
    if not constant.dim():
        return constant
    constant = constant.to(x.dtype)  # unlike a 0-dim one, it would make x wider
    return constant.reshape(-1, *[1] * (x.dim() - 2)) if constant.dim() == 1 else constant


# ---- over time -----------------------------------------------------------------------------------


def loop(layer: Step, x: Tensor) -> Tensor:
    """Timestep by timestep, in torch."""
    states, out = layer.start(x), []
    for x_t in x:
        y, *states = layer.step(x_t, *states)
        out.append(y)
    return torch.stack(out)


class Trace:
    """A way to run over time that collects what each call of a layer gives, under `key`.

    The key is the name of the layer; of its second call, name#2.
    """

    def __init__(self) -> None:
        self.layers: dict[str, Step] = {}
        self.outputs: dict[str, Tensor] = {}

    def __call__(self, layer: Step, x: Tensor) -> Tensor:
        key = numbered(layer.name, self.layers)
        self.layers[key] = layer
        y = self.outputs[key] = self.run(key, layer, x)
        return y

    def run(self, key: str, layer: Step, x: Tensor) -> Tensor:
        return loop(layer, x)


class Scan(Trace):
    """All timesteps as one `Scan` of ONNX."""

    def run(self, key: str, layer: Step, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan  # noqa: PLC2701  (no public way yet)

        x = x.contiguous()

        def body(states: list[Tensor], x_t: Tensor) -> tuple[list[Tensor], Tensor]:
            y, *after = layer.step(x_t, *states)
            return after, y.clone()  # no output may be another one too

        y: Tensor = scan(body, layer.start(x), x)[1]
        return y


class Once(Trace):
    """A single timestep; `before` are the states before it and `after` those after it, by key.

    A layer that has no states in `before` starts.
    """

    def __init__(self, before: dict[str, list[Tensor]] | None = None) -> None:
        super().__init__()
        self.before = before or {}
        self.after: dict[str, list[Tensor]] = {}

    def run(self, key: str, layer: Step, x: Tensor) -> Tensor:
        before = self.before.setdefault(key, layer.start(x))
        y, *self.after[key] = layer.step(x[0], *before)
        return y[None]


def numbered(name: str, taken: Container[str]) -> str:
    """name, or name#2, name#3, ... if it is taken."""
    key, n = name, 1
    while key in taken:
        n += 1
        key = f"{name}#{n}"
    return key


# ---- a network -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendered:
    """A network whose layers with a state are `layers`, by their names in the network."""

    network: nn.Module
    layers: dict[str, Step]

    def __call__(self, x: Tensor, over_time: Trace) -> Tensor:
        for layer in self.layers.values():
            layer.over_time = over_time
        y = self.network(x)
        if not isinstance(y, Tensor):
            raise ExchangeError(f"the network must return one tensor, not a {type(y).__name__}")
        return y


def render(network: nn.Module) -> Rendered:
    """A copy of the network, in evaluation mode, of `Step`s and stateless layers.

    Raises ExchangeError, naming the layer, for one with a state that is not of this package.
    """
    copied = nn.Sequential(copy.deepcopy(network).eval())  # so that every layer has an owner
    layers: dict[nn.Module, Step] = {}
    for path, owner in list(copied.named_modules()):
        if isinstance(owner, Recurrent):
            continue  # its neuron becomes a part of it
        for child, m in list(owner._modules.items()):  # named_children() gives each module once
            if isinstance(m, Dropout):
                setattr(owner, child, nn.Identity())
            elif isinstance(m, Streaming):
                layers[m] = layers.get(m) or step_of(m, f"{path}.{child}".lstrip("."))
                setattr(owner, child, layers[m])
    return Rendered(copied[0], {layer.name: layer for layer in layers.values()})


KINDS: dict[Any, Any] = {
    LIF: Neuron,
    IF: Neuron,
    PLIF: Neuron,
    CubaLIF: Cuba,
    AdaptiveLIF: Adaptive,
    CLIF: Complementary,
    MPBN: Normed,
    Shifted: Moved,
    DelayedReset: Moved,
    ShiftedCuba: MovedCuba,
    DelayedResetCuba: MovedCuba,
}


def step_of(m: Any, path: str) -> Step:
    """The layer at `path` of the copy, which is 0 or begins with "0."."""
    kind: Any = type(m)
    name = path[2:] or "network"
    if kind is Recurrent:
        neuron = step_of(m.neuron, f"{path}.neuron")
        assert isinstance(neuron, Neuron)
        return Feedback(name, m.layer, neuron)
    if kind is Integrator:
        tau = math.inf if m.tau is None else m.tau
        return Leaky(name, tau, m.decay_input and m.tau is not None)
    if make := KINDS.get(kind):
        return make(name, m)
    raise ExchangeError(
        f"{name!r} is a {kind.__name__}, whose equations this export does not know; "
        "use LIF, IF, PLIF, CubaLIF, AdaptiveLIF, CLIF, MPBN, Integrator or Recurrent"
    )
