"""`read`: a NIR file as a module.

The differential equations become those of `Neuron` in `nir_graph.py` by a forward Euler step of dt:
with rate = dt/tau, lam = 1 - rate, offset = v_leak rate and gain = R rate (IF and I: lam = 1,
gain = R dt). exact=True solves them instead, for an input that is constant during a timestep:
rate = 1 - exp(-dt/tau), and all else is the same.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import readout as readouts
from ..data.formats import one_line
from ..errors import ExchangeError
from ..surrogate import ATan, Surrogate, unwrap
from .nir_file import read_file
from .nir_graph import Delay, Edge, Graph, Neuron, Stateless

logger = logging.getLogger("backspike")
DT = 1e-4  # seconds; the step of the NIR paper, and of snnTorch's files
MOST_STEPS = 10_000  # of a delay
LEARNABLE = ("tau", "tau_synapse", "threshold")
LEAKY = {"LIF": "tau", "LI": "tau", "CubaLIF": "tau_mem", "CubaLI": "tau_mem"}


@dataclass(frozen=True)
class Options:
    """How a file is read; `read` explains them."""

    dt: float | None = None
    v_reset: float | None = 0.0
    exact: bool = False
    learn: tuple[str, ...] = ()
    surrogate: Surrogate = ATan()

    def __post_init__(self) -> None:
        if self.dt is not None and not (math.isfinite(self.dt) and self.dt > 0):
            raise ExchangeError(f"dt must be a positive number of seconds, got {self.dt}")
        if unknown := set(self.learn) - set(LEARNABLE):
            raise ExchangeError(
                f"learn may contain {', '.join(map(repr, LEARNABLE))}; got {sorted(unknown)}"
            )
        mask, parametric, base = unwrap(self.surrogate)
        if mask or parametric:
            raise ExchangeError(
                "surrogate must be plain here, without Masked or Parametric; give "
                f"{type(base).__name__}(...) itself"
            )


def read(
    path: str | Path,
    *,
    dt: float | None = None,
    v_reset: float | None = 0.0,
    exact: bool = False,
    learn: tuple[str, ...] | str = (),
    surrogate: Surrogate = ATan(),  # noqa: B008  (frozen)
) -> Graph:
    """The network of a NIR file as a module `[T, B, ...] -> [T, B, ...]`, in float32.

    dt: the timestep in seconds; by default the one that the file names, or else a guess, which is
    logged and stands in `guessed` of what is returned. v_reset: what neurons are reset to for which
    the file says nothing; None: by subtraction, also where the file has a v_reset, as the library
    nir writes 0 for every neuron without one. exact: membranes and synapses decay by
    exp(-dt/tau) in a timestep, as those of sinabs and Rockpool do, instead of 1 - dt/tau.

    Weights are parameters and can be trained further. learn: constants of the neurons that become
    parameters too, any of "tau", "tau_synapse" and "threshold"; one number for each node whose
    neurons share it. surrogate: for the gradient of spikes.
    Raises ExchangeError, one line that names the node, for what cannot be read or is not supported.
    """
    learn = (learn,) if isinstance(learn, str) else tuple(learn)
    graph = load(Path(path), Options(dt, v_reset, exact, learn, surrogate))
    for node in graph.nodes:
        if isinstance(node, Neuron):
            node.fast = True
    for note in (graph.guessed, *graph.notes):
        if note:
            logger.warning("%s: %s", path, note)
    return graph.float()


def load(path: Path, options: Options | None = None, *, trusted: bool = False) -> Graph:
    """`read` in float64, without the log. trusted: as for `read_file`."""
    options = options or Options()
    tree = read_file(path, trusted=trusted)
    try:
        return _build(tree, options)
    except ExchangeError as error:
        raise ExchangeError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # wrong types, shapes and missing fields show up anywhere
        raise ExchangeError(f"{path}: no valid NIR graph ({one_line(error)})") from error


def _build(tree: dict[str, Any], options: Options) -> Graph:
    nodes: dict[str, dict[str, Any]] = {}
    edges: list[Edge] = []
    _flatten(tree, "", nodes, edges)
    edges = list(dict.fromkeys(edges))
    for a, b in edges:
        if lost := {a, b} - set(nodes):
            raise ExchangeError(f"an edge leads to {min(lost)!r}, which is no node")
    # of a nested graph the inputs are nodes like others
    entered, left = {b for _, b in edges}, {a for a, _ in edges}
    inputs = [n for n, d in nodes.items() if d["type"] == "Input" and n not in entered]
    outputs = [n for n, d in nodes.items() if d["type"] == "Output" and n not in left]
    if not inputs or not outputs:
        raise ExchangeError("the graph has no Input or no Output node")
    metadata = tree.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    guessed, dt = "", options.dt
    if dt is None:
        dt = _number(metadata.get("dt"))
    if dt is None:
        dt, guessed = _guess(nodes)
    reader = _Reader(dt, options, metadata.get("tie") == "fires")
    modules = {name: reader.module(name, node) for name, node in nodes.items()}
    graph = Graph(modules, edges, inputs, outputs)
    graph.dt, graph.guessed, graph.readout = dt, guessed, _readout(metadata)
    if lost := set(options.learn) - reader.learned:
        raise ExchangeError(f"none of its neurons has a {min(lost)} to learn")
    if reader.assumed:
        how = "subtraction" if options.v_reset is None else f"to {options.v_reset:g}"
        graph.notes.append(
            f"the file does not say how {len(reader.assumed)} of its neurons are reset; "
            f"taken: {how} (v_reset=)"
        )
    return graph


def _flatten(
    graph: dict[str, Any], prefix: str, nodes: dict[str, dict[str, Any]], edges: list[Edge]
) -> None:
    """Add the nodes and edges of a graph; those of a graph inside it as `name.input` and so on."""
    held = graph.get("nodes")
    if graph.get("type") != "NIRGraph" or not isinstance(held, dict):
        raise ExchangeError(f"{prefix or 'the root'!r} is no NIRGraph with nodes")
    inner: dict[str, tuple[list[str], list[str]]] = {}
    for name, node in held.items():
        if not isinstance(node, dict) or not isinstance(node.get("type"), str):
            raise ExchangeError(f"node {prefix + name!r} has no type")
        if node["type"] != "NIRGraph":
            if prefix + name in nodes:
                raise ExchangeError(f"two nodes are called {prefix + name!r}")
            nodes[prefix + name] = node
            continue
        _flatten(node, f"{prefix}{name}.", nodes, edges)
        ends = [
            [f"{prefix}{name}.{n}" for n, d in node["nodes"].items() if d["type"] == kind]
            for kind in ("Input", "Output")
        ]
        if [len(e) for e in ends] != [1, 1]:
            raise ExchangeError(f"graph {prefix + name!r} needs one Input and one Output")
        inner[name] = ends[0], ends[1]
    pairs = np.asarray(graph.get("edges", ()), dtype=object).reshape(-1, 2)
    for a, b in pairs:
        a_name = inner[a][1][0] if a in inner else prefix + str(a)
        b_name = inner[b][0][0] if b in inner else prefix + str(b)
        edges.append((a_name, b_name))


def _guess(nodes: dict[str, dict[str, Any]]) -> tuple[float, str]:
    """The timestep in seconds, and how it was guessed, from the time constants and resistances."""
    leaky = [(n, d) for n, d in nodes.items() if d["type"] in LEAKY]
    taus = [_array(n, d, LEAKY[d["type"]]) for n, d in leaky]
    resistances = [_array(n, d, "r") for n, d in leaky]
    if not leaky:
        perfect = [_array(n, d, "r") for n, d in nodes.items() if d["type"] in ("IF", "I")]
        if not perfect:
            if any(d["type"] == "Delay" for d in nodes.values()):
                raise ExchangeError("nothing in the file tells the timestep; give dt=, in seconds")
            return DT, ""
        dt = 1 / float(perfect[0].flatten()[0])
        return (
            dt,
            f"dt is guessed as 1/R = {dt:g} s, so that a unit of input adds 1 to the membrane",
        )
    if all((r > 0).all() and (r != 1).all() for r in resistances):
        guesses = _from_resistances(taus, resistances)
        # the roundest, if all taus are the same, so that any rule gives one dt
        rounds = [g for g in guesses if math.isclose(g[0], float(f"{g[0]:.2g}"), rel_tol=1e-5)]
        for dt, rule in (rounds or guesses)[:1]:
            return dt, f"dt is guessed as {dt:g} s, as in all neurons {rule}"
    shortest = min(float(t.min()) for t in taus if t.size)
    if shortest > 1:
        return 1.0, f"dt is guessed as 1: time constants from {shortest:g} on look like timesteps"
    if shortest > DT:
        return DT, f"dt is guessed as {DT:g} s, the step of the NIR paper; dt= sets another"
    raise ExchangeError(f"the shortest time constant is {shortest:g} s; give dt=, below that")


def _from_resistances(
    taus: list[np.ndarray], resistances: list[np.ndarray]
) -> list[tuple[float, str]]:
    """The rules by which all neurons have the same dt, with this dt."""
    pairs = [np.broadcast_arrays(t, r) for t, r in zip(taus, resistances)]
    tau, r = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    y = np.log1p(1 / r)  # Newton's method for exp(-y)/y = r, with y = dt/tau
    for _ in range(30):
        y = y - (y * np.exp(y) - 1 / r) / (np.exp(y) * (1 + y))
    rules = ((tau / r, "R = tau/dt"), (tau * y, "R = exp(-dt/tau) tau/dt, as Rockpool writes it"))
    return [
        (float(f"{dt[0]:.6g}"), rule)
        for dt, rule in rules
        if np.allclose(dt, dt[0], rtol=1e-5, atol=0) and dt[0] > 0
    ]


def _readout(metadata: dict[str, Any]) -> nn.Module | None:
    name = metadata.get("readout")
    if name == "TWO":
        weights = torch.as_tensor(_array("metadata", metadata, "readout_weights")).flatten()
        two = readouts.TWO(len(weights))
        two.weights.copy_(weights)
        return two
    plain = {"Mean": readouts.Mean, "Last": readouts.Last}.get(
        name if isinstance(name, str) else ""
    )
    return plain() if plain else None


def _number(value: Any) -> float | None:
    if isinstance(value, int | float | np.number) and math.isfinite(value) and value > 0:
        return float(value)
    return None


def _array(name: str, node: dict[str, Any], key: str) -> np.ndarray:
    if key not in node:
        raise ExchangeError(f"node {name!r} ({node.get('type')}) has no {key}")
    value = node[key]
    if not isinstance(value, np.ndarray | np.number | np.bool_ | int | float):
        raise ExchangeError(f"node {name!r}: {key} is no array of numbers")
    with np.errstate(all="ignore"):  # of numbers in formats that only a damaged file has
        out = np.asarray(value, np.float64)
    if not np.isfinite(out).all():
        raise ExchangeError(f"node {name!r}: {key} holds values that are not finite")
    return out


class _Reader:
    """Make the module of a node."""

    def __init__(self, dt: float, options: Options, tie_fires: bool) -> None:
        self.dt, self.options, self.tie_fires = dt, options, tie_fires
        self.assumed: list[str] = []  # neurons whose reset the file does not tell
        self.learned: set[str] = set()

    def module(self, name: str, node: dict[str, Any]) -> nn.Module:
        self.name, self.node = name, node
        makers: dict[str, Callable[[], nn.Module]] = {
            "Input": self._input,
            "Output": lambda: Stateless(lambda x: x),
            "Identity": lambda: Stateless(lambda x: x),
            "Linear": self._linear,
            "Affine": self._linear,
            "Conv1d": lambda: self._convolution(1),
            "Conv2d": lambda: self._convolution(2),
            "AvgPool2d": lambda: self._pool(None),
            "SumPool2d": lambda: self._pool(1),
            "Flatten": self._flatten,
            "Scale": lambda: Stateless(torch.mul, scale=self.tensor("scale")),
            "Threshold": self._threshold,
            "Delay": self._delay,
        }
        kind = node["type"]
        if kind in (*LEAKY, "IF", "I"):
            return self._neuron(kind)
        if kind not in makers:
            raise ExchangeError(f"node {name!r} has the type {kind!r}, which is not supported")
        return makers[kind]()

    def tensor(self, key: str) -> Tensor:
        return torch.as_tensor(_array(self.name, self.node, key)).clone()

    def fail(self, why: str) -> ExchangeError:
        return ExchangeError(f"node {self.name!r}: {why}")

    def _leak(self, key: str, resistance: Tensor, leak: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """lam, offset and gain of dv/dt = (leak - v + resistance x) / tau."""
        k = self.tensor(key) / self.dt  # in timesteps
        if self.options.exact:
            if not (k > 0).all():
                raise self.fail(f"{key} must be above 0")
            rate = -torch.expm1(-1 / k)
            return 1 - rate, leak * rate, resistance * rate
        if not (k > 1 - 1e-6).all():
            raise self.fail(
                f"{key} is shorter than the timestep of {self.dt:g} s; give another dt="
            )
        return (1 - 1 / k).clamp(min=0), leak / k, _snapped(resistance / k)

    def _neuron(self, kind: str) -> Neuron:
        shapes = {k: np.shape(v) for k, v in self.node.items() if isinstance(v, np.ndarray)}
        if len({shape for shape in shapes.values() if shape not in ((), (1,))}) > 1:
            raise self.fail(f"its constants have different shapes: {shapes}")
        c: dict[str, Any] = {}
        r = self.tensor("r")
        if kind in LEAKY:
            c["start"] = leak = self.tensor("v_leak")
            c["lam"], c["offset"], c["gain"] = self._leak(LEAKY[kind], r, leak)
        else:
            c["lam"], c["offset"] = torch.ones_like(r), torch.zeros_like(r)
            c["gain"], c["start"] = _snapped(r * self.dt), torch.zeros_like(r)
        if kind.startswith("Cuba"):
            w_in = self.tensor("w_in") if "w_in" in self.node else torch.ones_like(r)
            c["lam_s"], _, c["gain_s"] = self._leak("tau_syn", w_in, torch.zeros_like(r))
        if kind in ("LI", "I", "CubaLI"):
            return self._learn(Neuron(**c))
        c["theta"] = self.tensor("v_threshold")
        metadata = self.node.get("metadata")
        reset = metadata.get("reset") if isinstance(metadata, dict) else None
        v_reset = self.options.v_reset
        soft = reset == "soft" or (v_reset is None and reset != "hard")
        c["v_reset"] = torch.zeros_like(c["theta"])
        if "v_reset" in self.node:
            c["v_reset"] = self.tensor("v_reset")
        elif reset not in ("soft", "hard"):
            self.assumed.append(self.name)
            c["v_reset"] += v_reset or 0.0
        if kind == "IF":
            c["start"] = torch.zeros_like(r) if soft else c["v_reset"]
        c |= {"tie_fires": self.tie_fires, "surrogate": self.options.surrogate}
        return self._learn(Neuron(soft=soft, **c))

    def _learn(self, neuron: Neuron) -> Neuron:
        try:
            self.learned |= neuron.learn(self.options.learn)
        except ExchangeError as error:
            raise self.fail(str(error)) from None
        return neuron

    def _input(self) -> nn.Module:
        key = "shape" if "shape" in self.node else "input_type"
        shape = _array(self.name, self.node, key).flatten().tolist() if key in self.node else None

        def check(x: Tensor) -> Tensor:
            if shape is not None and list(x.shape[1:]) != shape:
                wanted = [int(n) for n in shape]
                raise ExchangeError(f"expected timesteps of {wanted}, got {list(x.shape[1:])}")
            return x

        return Stateless(check)

    def _linear(self) -> nn.Module:
        weight = self.tensor("weight")
        if weight.dim() != 2:
            raise self.fail(f"weight has the shape {list(weight.shape)}, expected two dimensions")
        bias = self.tensor("bias") if self.node["type"] == "Affine" else None
        return Stateless(F.linear, weight=weight, bias=bias)

    def _integers(self, key: str, n: int, low: int) -> list[int]:
        values = _array(self.name, self.node, key).flatten()
        if len(values) not in (1, n) or (values != np.round(values)).any():
            raise self.fail(f"{key} must be 1 or {n} whole numbers")
        if values.min() < low or values.max() > 1 << 16:
            raise self.fail(f"{key} is out of bounds: {values.tolist()}")
        return [int(v) for v in np.broadcast_to(values, n)]

    def _convolution(self, n: int) -> nn.Module:
        weight, (groups,) = self.tensor("weight"), self._integers("groups", 1, 1)
        if weight.dim() != n + 2:
            raise self.fail(f"weight has the shape {list(weight.shape)}")
        stride, dilation = self._integers("stride", n, 1), self._integers("dilation", n, 1)
        padding: Any = self.node.get("padding")
        if padding not in ("same", "valid") if isinstance(padding, str) else True:
            padding = self._integers("padding", n, 0)
            reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
            if any(p > most for p, most in zip(padding, reach)):
                raise self.fail(f"padding {padding} is wider than the kernel")
        convolve: Any = F.conv1d if n == 1 else F.conv2d
        return Stateless(
            lambda x, w, b: convolve(x, w, b, stride, padding, dilation, groups),
            weight=weight,
            bias=self.tensor("bias") if "bias" in self.node else None,
        )

    def _pool(self, divisor: int | None) -> nn.Module:
        kernel, stride = self._integers("kernel_size", 2, 1), self._integers("stride", 2, 1)
        padding = self._integers("padding", 2, 0)
        if any(2 * p > k for p, k in zip(padding, kernel)):
            raise self.fail(f"padding {padding} is more than half of the kernel {kernel}")
        return Stateless(
            lambda x: F.avg_pool2d(x, kernel, stride, padding, divisor_override=divisor)
        )

    def _flatten(self) -> nn.Module:
        (start,), (end,) = (self._integers(k, 1, -64) for k in ("start_dim", "end_dim"))
        shape = np.ravel(self.node.get("input_type", ()))
        # NIR counts no batch; sinabs does, and gives a shape of zeros
        batch = 0 if len(shape) and not any(shape) else 1
        return Stateless(
            lambda x: x.flatten(start + batch * (start >= 0), end + batch * (end >= 0))
        )

    def _threshold(self) -> nn.Module:
        threshold, fires = self.tensor("threshold"), torch.ge if self.tie_fires else torch.gt
        return Stateless(lambda x, t: fires(x, t).to(x), threshold=threshold)

    def _delay(self) -> nn.Module:
        exact = self.tensor("delay") / self.dt
        steps = exact.round()
        if not torch.allclose(exact, steps, rtol=1e-5, atol=1e-5) or (steps < 0).any():
            raise self.fail(f"its delays are no whole numbers of timesteps of {self.dt:g} s")
        if (steps > MOST_STEPS).any():
            raise self.fail(f"a delay of more than {MOST_STEPS} timesteps; give another dt=")
        return Delay(steps.long())


def _snapped(gain: Tensor) -> Tensor:
    """Exactly 1 where it is 1 but for rounding: R = tau/dt says that the input does not decay."""
    return torch.where((gain - 1).abs() < 1e-9, torch.ones_like(gain), gain)
