"""A graph of layers that runs over whole sequences, `[T, B, ...]`, cycles included.

What stands in no cycle runs node by node, each over the whole sequence. The nodes of a cycle run
timestep by timestep. There, spikes that lead back arrive one timestep later, and before the first
timestep there are none.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExchangeError
from ..neuron.lif import lif
from ..surrogate import ATan, Surrogate

Edge = tuple[str, str]


class Stateful(nn.Module, ABC):
    """A node with a state: `step(x [B, ...], state) -> (y, state)`; state is None at the start."""

    @abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]: ...

    def forward(self, x: Tensor) -> Tensor:
        state, out = None, []
        for x_t in x:
            y, state = self.step(x_t, state)
            out.append(y)
        return torch.stack(out)


class Neuron(Stateful):
    """Every neuron of NIR, in the discrete form of `bs.lif`, with constants of any shape:

        i[t] = lam_s i[t-1] + gain_s x[t]                   only where there is a synapse, else x[t]
        u[t] = (lam v[t-1] + offset) + gain i[t]            the output, where nothing spikes
        s[t] = 1 if u[t] > theta else 0                     tie_fires: u[t] >= theta
        v[t] = v_reset where s[t] = 1, else u[t]            soft: v[t] = u[t] - theta s[t]

    The start is v = `start`, i = 0. The constants are buffers; those that `learn` names become
    parameters. surrogate: its derivative is the gradient of a spike. fast: a neuron in no cycle
    runs in the kernels of `bs.lif` where they compute the same bits, see `_kernel_constants`.
    """

    fast = False
    names = ("lam", "offset", "gain", "start", "theta", "v_reset", "lam_s", "gain_s")
    theta: Tensor | None

    def __init__(
        self,
        *,
        soft: bool = False,
        tie_fires: bool = False,
        surrogate: Surrogate = ATan(),  # noqa: B008  (frozen)
        **constants: Any,
    ) -> None:
        super().__init__()
        self.soft, self.tie_fires, self.surrogate = soft, tie_fires, surrogate
        for name in self.names:
            self.register_buffer(name, constants.pop(name, None))
        assert not constants
        self.shape = torch.broadcast_shapes(*(b.shape for b in self.buffers()))
        self.learned: dict[str, Leak] = {}  # of the membrane, "", and of the synapse, "_s"

    @property
    def spikes(self) -> bool:
        return self.theta is not None

    def learn(self, names: Iterable[str]) -> set[str]:
        """Make parameters of the constants named: "tau", "tau_synapse", "threshold".

        Returns those that this neuron has. A value that all neurons share stays one number.
        """
        found, c = set(), self.constants()
        if "threshold" in names and self.spikes:
            del self.theta
            self.theta = nn.Parameter(_shared(c["theta"]))
            found.add("threshold")
        for name, suffix in (("tau", ""), ("tau_synapse", "_s")):
            lam = c.get(f"lam{suffix}")
            if name in names and lam is not None and (lam < 1).all():
                offset = torch.zeros_like(lam) if suffix else c["offset"]
                leak = Leak(lam, offset, c[f"gain{suffix}"])
                self.add_module(f"leak{suffix}", leak)
                self.learned[suffix] = leak
                found.add(name)
        return found

    def constants(self) -> dict[str, Tensor]:
        c = {name: b for name in self.names if (b := getattr(self, name)) is not None}
        for suffix, leak in self.learned.items():
            c[f"lam{suffix}"], offset, c[f"gain{suffix}"] = leak()
            if not suffix:
                c["offset"] = offset
        return c

    def forward(self, x: Tensor) -> Tensor:
        c = self._kernel_constants(x) if self.fast and not torch.compiler.is_compiling() else None
        if c is None:
            return super().forward(x)
        start = torch.full_like(x[0], c.pop("start"))
        out = lif(c.pop("gain") * x, start, decay_input=False, surrogate=self.surrogate, **c)
        assert out.spikes is not None
        return out.spikes

    def _kernel_constants(self, x: Tensor) -> dict[str, Any] | None:
        """The arguments of `bs.lif` for these equations, and gain and start; None if it has none.

        They must be the same for all neurons, not learned and without a synapse; the membrane must
        rest at the reset potential; and where a membrane at the threshold does not fire, the
        threshold of the kernels is the next larger number, which a soft reset must not subtract.
        """
        c = self.constants()
        plain = self.spikes and not self.learned and not list(self.parameters())
        if not plain or "lam_s" in c or (self.soft and not self.tie_fires):
            return None
        wide = x.dtype in (torch.float32, torch.float64)
        if not wide or not all(_fits(b, x[0]) and _is_one(b, x.dtype) for b in c.values()):
            return None
        numbers = [float(c[name].flatten()[0]) for name in self.names[:6]]
        lam, offset, gain, start, theta, v_reset = numbers
        rest, tau = 0.0 if self.soft else v_reset, math.inf if lam == 1 else 1 / (1 - lam)
        rounded = torch.tensor([1 - 1 / tau, rest / tau], dtype=x.dtype).tolist() if tau > 1 else []
        if rounded != [lam, offset] or not theta > max(0.0, rest):
            return None
        if not self.tie_fires:
            above = torch.tensor(math.inf, dtype=x.dtype)
            theta = float(torch.nextafter(torch.tensor(theta, dtype=x.dtype), above))
        return {
            "tau": tau,
            "v_threshold": theta,
            "v_reset": None if self.soft else v_reset,
            "reset_gradient": 1.0,
            "gain": gain,
            "start": start,
        }

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        c = {
            name: b.reshape(-1, *[1] * (x.dim() - 2)) if b.dim() == 1 and x.dim() > 2 else b
            for name, b in self.constants().items()
        }
        if not all(_fits(b, x) for b in c.values()):
            raise ExchangeError(
                f"a neuron of shape {list(self.shape)} gets an input of shape {list(x.shape[1:])}"
            )
        v, i = state or (c["start"] + torch.zeros_like(x), torch.zeros_like(x))
        if "lam_s" in c:
            x = i = c["lam_s"] * i + c["gain_s"] * x
        u = (c["lam"] * v + c["offset"]) + c["gain"] * x
        if not self.spikes:
            return u, (u, i)
        z = u - c["theta"]
        s = (u >= c["theta"] if self.tie_fires else u > c["theta"]).to(u)
        if z.requires_grad:
            s = s + (z - z.detach()) * self.surrogate.derivative(z.detach())
        v = u - c["theta"] * s if self.soft else (1 - s) * u + s * c["v_reset"]
        return s, (v, i)


class Leak(nn.Module):
    """lam, offset and gain of a learned time constant, tau = 1 + exp(log_tau_minus_1) timesteps:

        lam = 1 - 1/tau,   offset = leak/tau,   gain = r/tau

    leak and r are those of the given constants. A gain of 1 stays 1: there r is tau itself.
    """

    def __init__(self, lam: Tensor, offset: Tensor, gain: Tensor) -> None:
        super().__init__()
        tau = 1 / (1 - lam)
        if not (tau > 1).all():
            raise ExchangeError(
                "a time constant of one timestep cannot be learned; give a shorter dt="
            )
        self.log_tau_minus_1 = nn.Parameter(_shared((tau - 1).log()))
        self.leak: Tensor
        self.r: Tensor | None
        self.register_buffer("leak", offset * tau)
        self.register_buffer("r", None if (gain == 1).all() else gain * tau)

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        rate = 1 / (1 + self.log_tau_minus_1.exp())
        gain = torch.ones_like(rate) if self.r is None else self.r * rate
        return 1 - rate, self.leak * rate, gain


def _shared(values: Tensor) -> Tensor:
    """One number, 0-dim, where all values are the same."""
    first = values.flatten()[0] if values.numel() else values
    return first.clone() if (values == first).all() else values.clone()


def _is_one(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether all values are the same number of this dtype."""
    return values.dtype == dtype and bool((values == values.flatten()[:1]).all())


def _fits(constant: Tensor, x: Tensor) -> bool:
    """Whether a constant broadcasts against one timestep `[B, ...]` and does not enlarge it."""
    sizes = zip(reversed(constant.shape), reversed(x.shape))
    return constant.dim() < x.dim() and all(a in (1, b) for a, b in sizes)


class Delay(Stateful):
    """y[t] = x[t - d], with d timesteps of any shape; zero before."""

    steps: Tensor

    def __init__(self, steps: Tensor) -> None:
        super().__init__()
        self.register_buffer("steps", steps)
        self.longest = int(steps.max()) if steps.numel() else 0

    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        past = [x, *(state or [torch.zeros_like(x)] * self.longest)]
        y = x
        for d in self.steps.unique().tolist():
            y = torch.where(self.steps == d, past[d], y)
        return y, past[: self.longest]


class Stateless(nn.Module):
    """A node that treats each timestep alike: `function(x [N, ...], *parameters)`."""

    def __init__(self, function: Callable[..., Tensor], **parameters: Tensor | None) -> None:
        super().__init__()
        self.function = function
        for name, p in parameters.items():
            self.register_parameter(name, None if p is None else nn.Parameter(p))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self._parameters.values())


@dataclass(frozen=True)
class Part:
    """Nodes that run together: one alone over the sequence, or those of a cycle step by step."""

    names: tuple[str, ...]  # in the order in which they run
    cycle: bool = False
    delayed: frozenset[Edge] = frozenset()


class Graph(nn.Module):
    """A NIR graph: `graph(x [T, B, ...])` gives the output node's values, `[T, B, ...]`.

    Of several outputs it gives a dict by name, and several inputs it takes as one. `trace(x)` gives
    the values of all nodes by name. dt: the timestep in seconds; guessed: how it was guessed, or
    ""; notes: what else the reader assumed; readout: as in the file, or None.
    """

    def __init__(
        self,
        nodes: dict[str, nn.Module],
        edges: Iterable[Edge],
        inputs: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        super().__init__()
        self.names, self.nodes = list(nodes), nn.ModuleList(nodes.values())
        self.edges, self.inputs, self.outputs = list(edges), list(inputs), list(outputs)
        self.sources: dict[str, list[str]] = {name: [] for name in nodes}
        for a, b in self.edges:
            self.sources[b].append(a)
        self.parts = _plan(nodes, self.edges)
        self.dt, self.guessed, self.notes = 0.0, "", list[str]()
        self.readout: nn.Module | None = None

    def node(self, name: str) -> nn.Module:
        return self.nodes[self.names.index(name)]

    def forward(self, x: Any) -> Any:
        values = self.trace(x)
        out = {name: values[name] for name in self.outputs}
        return out if len(out) > 1 else out[self.outputs[0]]

    def trace(self, x: Any) -> dict[str, Tensor]:
        given = x if isinstance(x, dict) else {self.inputs[0]: x}
        if set(given) != set(self.inputs):
            raise ExchangeError(f"this graph takes a dict of its inputs {self.inputs}")
        values: dict[str, Tensor] = {}
        modules = dict(zip(self.names, self.nodes))
        for part in self.parts:
            if part.cycle:
                values |= self._run_cycle(part, modules, values, len(next(iter(given.values()))))
                continue
            (name,) = part.names
            module, sources = modules[name], self.sources[name]
            try:
                if name in given:
                    values[name] = _fold(module, given[name])
                elif sources:
                    values[name] = _fold(module, sum_of([values[s] for s in sources]))
                else:
                    raise ExchangeError("nothing leads to it")
            except (ExchangeError, RuntimeError, IndexError) as error:
                raise _at(name, error) from error
        return values

    def _run_cycle(
        self, part: Part, modules: dict[str, nn.Module], values: dict[str, Tensor], T: int
    ) -> dict[str, Tensor]:
        outer = {n: [values[s] for s in self.sources[n] if s in values] for n in part.names}
        inner = {n: [s for s in self.sources[n] if s not in values] for n in part.names}
        example = next((x for xs in outer.values() for x in xs), None)
        if example is None:
            raise ExchangeError(f"no input leads into the cycle of {list(part.names)}")
        last = {}  # what the delayed edges carry
        for name in {a for a, _ in part.delayed}:
            shape = tuple(getattr(modules[name], "shape", ()))
            own = outer[name][0].shape[2:] if outer[name] else shape
            last[name] = example.new_zeros(example.shape[1], *own)
        states: dict[str, Any] = {}
        out: dict[str, list[Tensor]] = {name: [] for name in part.names}
        for t in range(T):
            now: dict[str, Tensor] = {}
            for name in part.names:
                back = [last[s] if (s, name) in part.delayed else now[s] for s in inner[name]]
                try:
                    x = sum_of([*(x[t] for x in outer[name]), *back])
                    module = modules[name]
                    if isinstance(module, Stateful):
                        now[name], states[name] = module.step(x, states.get(name))
                    else:
                        now[name] = module(x)
                except (ExchangeError, RuntimeError, IndexError) as error:
                    raise _at(name, error) from error
                out[name].append(now[name])
            last = {name: now[name] for name in last}
        return {name: torch.stack(ys) for name, ys in out.items()}


def sum_of(xs: Sequence[Tensor]) -> Tensor:
    """The sum from left to right, of tensors that must have one shape."""
    total = xs[0]
    for x in xs[1:]:
        if x.shape != total.shape:
            raise ExchangeError(f"its inputs have shapes {list(total.shape)} and {list(x.shape)}")
        total = total + x
    return total


def _fold(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, Stateful):
        return module(x)
    return module(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def _at(name: str, error: Exception) -> ExchangeError:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ExchangeError(f"node {name!r}: {text}")


def _plan(nodes: dict[str, nn.Module], edges: Sequence[Edge]) -> list[Part]:
    """The strongly connected components in topological order (Kosaraju)."""
    after: dict[str, list[str]] = {n: [] for n in nodes}
    before: dict[str, list[str]] = {n: [] for n in nodes}
    for a, b in edges:
        after[a].append(b)
        before[b].append(a)
    seen: set[str] = set()
    parts = []
    for root in reversed(_postorder(nodes, after, set())):
        if component := _postorder([root], before, seen):
            alone = len(component) == 1 and root not in after[root]
            parts.append(
                Part((root,)) if alone else _plan_cycle(nodes, set(component), before, after)
            )
    return parts


def _postorder(roots: Iterable[str], following: dict[str, list[str]], seen: set[str]) -> list[str]:
    out = []
    for root in roots:
        stack = [] if root in seen else [(root, iter(following[root]))]
        seen.add(root)
        while stack:
            name, rest = stack[-1]
            child = next((n for n in rest if n not in seen), None)
            if child is None:
                stack.pop()
                out.append(name)
            else:
                seen.add(child)
                stack.append((child, iter(following[child])))
    return out


def _plan_cycle(
    nodes: dict[str, nn.Module],
    inside: set[str],
    before: dict[str, list[str]],
    after: dict[str, list[str]],
) -> Part:
    """Which edges of a component are delayed, and the order of its nodes within a timestep.

    A depth-first search from where input enters finds the edges that lead back. What they carry
    comes from neurons, perhaps through layers without a state; the edges out of these neurons are
    the delayed ones, so that at the first timestep such a layer gives its bias.
    """
    spiking = {n for n in inside if isinstance(nodes[n], Neuron)}
    members = [n for n in nodes if n in inside]
    _sorted({n: [a for a in before[n] if a in inside - spiking] for n in members})
    entries = [n for n in members if any(a not in inside for a in before[n])]
    order = _postorder(
        entries or members, {n: [b for b in after[n] if b in inside] for n in members}, set()
    )
    rank = {name: i for i, name in enumerate(order)}
    delayed: set[Edge] = set()
    # an edge leads back if the search finished its source before its target
    waiting = [(a, b) for b in members for a in before[b] if a in inside and rank[a] <= rank[b]]
    traced = set(waiting)
    while waiting:
        a, b = waiting.pop()
        if a in spiking:
            delayed.add((a, b))
            continue
        more = {(source, a) for source in before[a] if source in inside} - traced
        traced |= more
        waiting += more
    remaining = {
        n: [a for a in before[n] if a in inside and (a, n) not in delayed] for n in members
    }
    return Part(tuple(_sorted(remaining)), True, frozenset(delayed))


def _sorted(before: dict[str, list[str]]) -> list[str]:
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise ExchangeError(
            f"a cycle without a neuron: {error.args[1]}; only neurons carry values from one "
            "timestep to the next"
        ) from None
