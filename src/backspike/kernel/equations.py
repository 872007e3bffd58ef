"""Neurons with equations of their own: the loop over time in torch, with an exact backward pass.

    u[t], m = step(x[t], states[t-1])         u: the spike variable; m: the states before the reset
    s[t] = 1 if u[t] >= theta else 0
    states[t] = adapt(s[t], reset(s[t], m))   reset_gradient scales the gradient of the reset's s

`definition` builds an autograd graph over all T, as `reference.py` does. `run` saves states, and
not their graph: its backward pass takes one timestep after the other, from the last to the first,
computes the step again from the states before it and differentiates it by autograd. It adds the
surrogate, the mask and reset_gradient by hand, as `eager.py` does. `own/` compiles the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .autograd import Context, refuse_double_backward
from .call import Call, Result
from .coefficients import over_channels, state_dtype
from .mask import masked_derivative
from .reference import membrane_moments, surrogate_spike

THRESHOLD = "v_threshold"  # its name among the constants
States = tuple[Tensor, ...]


class Equations(NamedTuple):
    """The equations of a neuron, and what they contain."""

    kind: type  # the class of the neuron
    step: Callable[..., Any]  # (x, *states) -> (u, *states)
    reset: Callable[..., Any]  # (s, *states) -> states
    adapt: Callable[..., Any]  # (s, *states) -> states
    constants: Mapping[str, float | Tensor]  # the learned ones are tensors, 0-dim or [C]
    use: Callable[[Mapping[str, Tensor]], AbstractContextManager[None]]  # as constants, meanwhile
    parameters: Sequence[Tensor] = ()  # whatever else the equations contain that requires grad


def definition(equations: Equations, call: Call, states: States) -> tuple[Result, States]:
    """The outputs of the call from these states, and the last states, as autograd sees them."""
    neuron, dtype, out = call.neuron, state_dtype(call.x), []
    theta = over_channels(call.theta, call.x)
    with context(equations, call, values_in_use(equations.constants, call.x)):
        for t, x in enumerate(call.x):
            if not neuron.temporal_gradient:
                states = tuple(s.detach() for s in states)
            u, middle = _step(equations, x.to(dtype), states)
            s = surrogate_spike(u, theta, t, call) + (u - u).detach()
            s_reset = s.detach() + neuron.reset_gradient * (s - s.detach())
            states = _end(equations, s_reset, s, middle)
            out.append((s, u))
    spikes, membrane = (torch.stack(sequence) for sequence in zip(*out))
    return result(spikes.to(call.x.dtype), membrane, call), states


def run(equations: Equations, call: Call, states: States, every: int) -> tuple[Result, States]:
    """As `definition`, without a graph. every: states are saved before each so many timesteps."""
    learned = {n: p for n, p in equations.constants.items() if isinstance(p, Tensor)}
    inputs = (call.x, call.width, *states, *learned.values(), *equations.parameters)
    needs = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in inputs)
    if needs:
        spikes, membrane, *last = _Run.apply(equations, call, every, tuple(learned), *inputs)
    else:
        spikes, membrane, last, _ = _forward(equations, call, states, len(call.x))
    return result(spikes, membrane, call), tuple(last)


def result(spikes: Tensor, membrane: Tensor | None, call: Call) -> Result:
    record, none = call.record, spikes.new_empty(0)
    moments = membrane_moments(membrane) if record.moments and membrane is not None else None
    return Result(spikes, none, membrane if record.membrane else None, moments)


@contextmanager
def context(equations: Equations, call: Call, values: Mapping[str, Tensor]) -> Iterator[None]:
    """The equations see these values, and compute in the dtype of the states."""
    with torch.autocast(call.x.device.type, enabled=False), equations.use(values):
        yield


def values_in_use(constants: Mapping[str, float | Tensor], x: Tensor) -> dict[str, Tensor]:
    """The constants as tensors that leave the dtype of a state as it is.

    0-dim ones are in float64, so that what is computed from them is rounded once, at the state.
    """
    values = {}
    for name, p in constants.items():
        if not isinstance(p, Tensor):
            values[name] = torch.tensor(p, dtype=torch.float64, device="cpu")
        elif p.dim():
            values[name] = over_channels(p, x).to(state_dtype(x))
        else:
            values[name] = p.double()
    return values


def _step(equations: Equations, x: Tensor, states: States) -> tuple[Tensor, States]:
    u, *after = _tensors(equations, "step", equations.step(x, *states), 1 + len(states), x)
    return u, tuple(after)


def _end(equations: Equations, s_reset: Tensor, s: Tensor, states: States) -> States:
    """The states after reset and adaptation."""
    for name, spike in (("reset", s_reset), ("adapt", s)):
        after = getattr(equations, name)(spike, *states)
        states = _tensors(equations, name, after, len(states), s)
    return states


def _tensors(equations: Equations, method: str, value: Any, n: int, like: Tensor) -> States:
    out = (value,) if isinstance(value, Tensor) else value
    fits = isinstance(out, tuple | list) and len(out) == n
    fits = fits and all(isinstance(a, Tensor) and a.shape == like.shape for a in out)
    if not fits or any(a.dtype != like.dtype for a in out):
        parts = out if isinstance(out, tuple | list) else (out,)
        got = [f"{list(a.shape)} {a.dtype}" if isinstance(a, Tensor) else repr(a) for a in parts]
        what = "the spike variable and the states" if method == "step" else "the states"
        raise ValueError(
            f"{equations.kind.__name__}.{method} must return {what}, {n} tensors of shape "
            f"{list(like.shape)} and {like.dtype}, got {', '.join(got) or 'nothing'}"
        )
    return tuple(out)


def _fire(u: Tensor, theta: Tensor | float) -> Tensor:
    return (u >= theta).to(u.dtype) + (u - u)  # NaN where u is not finite


def _threshold(call: Call) -> Any:
    return over_channels(
        call.theta.detach() if isinstance(call.theta, Tensor) else call.theta, call.x
    )


def _forward(
    equations: Equations, call: Call, states: States, every: int
) -> tuple[Tensor, Tensor | None, States, list[States]]:
    """(spikes, membrane, last states, states before every so many timesteps), without a graph."""
    x, dtype, record = call.x, state_dtype(call.x), call.record
    spikes, saved = torch.empty_like(x), []
    membrane = None
    if record.membrane or record.moments:
        membrane = torch.empty_like(spikes, dtype=dtype)
    theta = _threshold(call)
    with torch.no_grad(), context(equations, call, values_in_use(equations.constants, x)):
        for t in range(len(x)):
            if t % every == 0:
                saved.append(states)
            u, middle = _step(equations, x[t].to(dtype), states)
            spikes[t] = s = _fire(u, theta)
            if membrane is not None:
                membrane[t] = u
            states = _end(equations, s, s, middle)
    return spikes, membrane, states, saved


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        equations: Equations,
        call: Call,
        every: int,
        learned: tuple[str, ...],
        x: Tensor,
        width: Tensor | None,
        *others: Tensor,
    ) -> tuple[Tensor | None, ...]:
        n = len(others) - len(learned) - len(equations.parameters)  # states
        spikes, membrane, last, saved = _forward(equations, call, others[:n], every)
        last = tuple(s.clone() if any(s is o for o in others) else s for s in last)
        ctx.save_for_backward(
            x, width, *others[n:], *last, *(s for states in saved for s in states)
        )
        ctx.equations, ctx.call, ctx.every, ctx.learned, ctx.n = equations, call, every, learned, n
        ctx.set_materialize_grads(False)
        return spikes, membrane, *last

    @staticmethod
    def backward(
        ctx: Context, g: Tensor | None, g_membrane: Tensor | None, *g_last: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        refuse_double_backward("a neuron with equations of its own")
        x, width, *rest = ctx.saved_tensors
        backward = _Backward(ctx, x, width, rest)
        gx = torch.empty_like(x) if ctx.needs_input_grad[4] else None
        g_states = backward.run(g, g_membrane, g_last, gx)
        return None, None, None, None, gx, backward.g_width(), *g_states, *backward.sums()


class _Backward:
    """The backward pass of one call: from the last timestep to the first."""

    def __init__(
        self, ctx: Context, x: Tensor, width: Tensor | None, rest: Sequence[Tensor]
    ) -> None:
        self.equations: Equations = ctx.equations
        self.call: Call = ctx.call
        self.every, self.n = ctx.every, ctx.n
        count = len(ctx.learned)
        last = count + len(self.equations.parameters)
        saved = rest[last + self.n :]
        self.x, self.width, self.last = x, width, rest[last : last + self.n]
        self.saved = [tuple(saved[i : i + self.n]) for i in range(0, len(saved), self.n)]
        # in float64, so that the gradients of the constants are
        self.leaves = {
            name: p.detach().double().requires_grad_() for name, p in zip(ctx.learned, rest[:count])
        }
        self.learned = rest[:count]
        self.totals: list[Any] = [None] * last
        self.width_total: Any = 0.0

    def run(
        self,
        g: Tensor | None,
        g_membrane: Tensor | None,
        g_last: Sequence[Tensor | None],
        gx: Tensor | None,
    ) -> list[Tensor | None]:
        """Fill gx; return the gradients of the first states."""
        c, T = list(g_last), len(self.x)
        for i in reversed(range(len(self.saved))):
            start = i * self.every
            steps = range(start, min(start + self.every, T))
            states = self._recompute(self.saved[i], steps)
            for t in reversed(steps):
                g_s, g_u = (None if a is None else a[t] for a in (g, g_membrane))
                g_x, c = self._one(t, states.pop(), g_s, g_u, c)
                if gx is not None:
                    gx[t] = 0 if g_x is None else g_x
        return c

    def _recompute(self, states: States, steps: range) -> list[States]:
        """The states before each of these timesteps."""
        out, theta = [states], _threshold(self.call)
        values = values_in_use(self.equations.constants, self.x)
        with torch.no_grad(), context(self.equations, self.call, values):
            for t in steps[:-1]:
                u, middle = _step(self.equations, self._x(t), out[-1])
                s = _fire(u, theta)
                out.append(_end(self.equations, s, s, middle))
        return out

    def _x(self, t: int) -> Tensor:
        return self.x[t].to(state_dtype(self.x))

    def _one(
        self,
        t: int,
        states: States,
        g: Tensor | None,
        g_membrane: Tensor | None,
        c: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """One timestep: the gradients of x[t] and of the states before it.

        g, g_membrane, c: those of s[t], of u[t] and of the states after it.
        """
        neuron, equations = self.call.neuron, self.equations
        values = dict(self.equations.constants) | self.leaves
        parameters = [*self.leaves.values(), *equations.parameters]
        with torch.enable_grad(), context(equations, self.call, values_in_use(values, self.x)):
            x = self._x(t).detach().requires_grad_()
            before = tuple(s.detach().requires_grad_() for s in states)
            u, middle = _step(equations, x, before)
            theta = over_channels(self.leaves.get(THRESHOLD, self.call.theta), self.x)
            z = (u - theta).to(u.dtype)
            s = _fire(u.detach(), _threshold(self.call))
            s_reset, s_adapt = (s.clone().requires_grad_() for _ in range(2))
            cut = tuple(m.detach().requires_grad_() for m in middle)
            after = _end(equations, s_reset, s_adapt, cut)
        if t == len(self.x) - 1:
            self._check(after)
        g_reset, g_adapt, *rest = _gradients(after, c, (s_reset, s_adapt, *cut, *parameters))
        self._add(rest[self.n :])
        G = torch.zeros_like(s) if g is None else g.to(s.dtype)
        if g_adapt is not None:
            G = G + g_adapt
        if g_reset is not None and neuron.reset_gradient:
            G = G + neuron.reset_gradient * g_reset
        width = over_channels(self.width, self.x)
        width = None if width is None else width.to(s.dtype)
        z_now = z.detach()
        h, h_base = masked_derivative(z_now, t, width, neuron, self.call.seed, self.call.p)
        if width is not None:
            self._add_width(-(z_now / width) * G * h_base)
        outputs = (z, u, *middle)
        g_x, *rest = _gradients(
            outputs, (G * h, g_membrane, *rest[: self.n]), (x, *before, *parameters)
        )
        self._add(rest[self.n :])
        return g_x, rest[: self.n] if neuron.temporal_gradient else [None] * self.n

    def _check(self, after: Sequence[Tensor]) -> None:
        """Whether the recomputed states are those of the forward pass."""
        if self.x.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # a CUDA graph cannot read them; the steps before it were checked
        if not all(
            torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for a, b in zip(after, self.last)
        ):
            raise RuntimeError(
                f"{self.equations.kind.__name__} computed other states in backward than in "
                "forward: its methods must draw no random numbers, and nothing that they use may "
                "change"
            )

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        for i, g in enumerate(gradients):
            if g is not None:
                self.totals[i] = g.double() if self.totals[i] is None else self.totals[i] + g

    def _add_width(self, term: Tensor) -> None:
        assert self.width is not None
        dims = [d for d in range(term.dim()) if d != 1 or not self.width.dim()]
        self.width_total = self.width_total + term.sum(dims, dtype=torch.float64)

    def g_width(self) -> Tensor | None:
        return None if self.width is None else self.width_total.to(self.width.dtype)

    def sums(self) -> list[Tensor | None]:
        """The gradients of learned constants and parameters."""
        like = [*self.learned, *self.equations.parameters]
        return [None if g is None else g.to(p.dtype) for g, p in zip(self.totals, like)]


def _gradients(
    outputs: Sequence[Tensor], g: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """The gradients of the inputs; None where nothing depends on one."""
    pairs = [
        (o, g_o.to(o.dtype)) for o, g_o in zip(outputs, g) if g_o is not None and o.requires_grad
    ]
    if not pairs:
        return [None] * len(inputs)
    known, values = zip(*pairs)
    return list(torch.autograd.grad(known, inputs, values, allow_unused=True))


def step_once(equations: Equations, x: Tensor, states: States) -> None:
    """Run `step` on x[0], and nothing else."""
    with equations.use(values_in_use(equations.constants, x)):
        _step(equations, x[0], states)


def states_every(T: int, memory: str) -> int:
    """How many timesteps lie between saved states: 1, or about the root of T to save memory."""
    return 1 if memory == "exact" else math.isqrt(T - 1) + 1
