"""A network as nodes and edges of NIR.

The equations of `bs.lif` are the forward Euler step of NIR's with

    tau_nir = tau dt,   v_leak = rest,   R = gain tau     (IF and I: R = 1/dt)

BatchNorm is folded into the convolution or linear layer before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import readout as readouts
from ..data.formats import one_line
from ..errors import ExchangeError
from ..layers.block import Block
from ..layers.dropout import Dropout
from ..layers.norm import TEBN
from ..layers.over_time import BATCH_NORMS, OverTime, fold_norm
from ..layers.sequential import Sequential
from ..models.plain import PlainNet
from ..models.residual import Basic, Bottleneck, MSBasic, ResNet, SEWBasic, SEWBottleneck
from ..neuron.cuba import CubaLIF
from ..neuron.integrator import Integrator
from ..neuron.lif import IF, LIF, PLIF
from ..neuron.recurrent import Recurrent
from ..neuron.shifted import DelayedReset, DelayedResetCuba, Shifted, ShiftedCuba
from ..train.network import Network
from ..version import __version__
from .nir_read import DT

CHOICES = {
    "dialect": ("1.0.8", "1.0.4"),
    "pool": ("average", "sum"),
    "gain": ("trained", "unit", "decayed"),
}
CONTAINERS = (nn.Sequential, Sequential, OverTime)
NEURONS = (LIF, IF, PLIF, CubaLIF, Shifted, ShiftedCuba, DelayedReset, DelayedResetCuba)
SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, Dropout)
INSTEAD = (
    (
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d),
        "train with average pools (nn.AvgPool2d; convnet, vggsnn and vgg11 have them, and residual "
        "networks with stem='cifar' have no max pool)",
    ),
    ((TEBN,), "train with BatchNorm, which is folded (leave norm= out)"),
    ((LIF,), "train with LIF, IF, PLIF or CubaLIF"),
    ((nn.LayerNorm, nn.GroupNorm), "train with BatchNorm, which is folded"),
    ((nn.AdaptiveAvgPool2d,), "pool to one pixel, or use nn.AvgPool2d"),
)


@dataclass(frozen=True)
class Options:
    """How a file is written; `write` explains them."""

    dt: float = DT
    dialect: str = "1.0.8"
    pool: str = "average"
    gain: str = "trained"

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ExchangeError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise ExchangeError(f"dt must be a positive number of seconds, got {self.dt}")


class Walk:
    """Walk a network and collect nodes and edges.

    A value is written as the list of the nodes whose sum it is: several edges into a node add up.
    With pool="sum" a node may give its value times a number, its `scale`, which goes into the
    weights behind it, or else into a Scale node.
    """

    def __init__(
        self, nir: Any, network: nn.Module, shape: tuple[int, ...], options: Options
    ) -> None:
        self.nir, self.options, self.dt = nir, options, options.dt
        self.labels = {m: name for name, m in network.named_modules()}
        self.nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(shape)})}
        self.shapes: dict[str, tuple[int, ...]] = {"input": shape}
        self.layers: dict[str, Any] = {}  # convolution and linear layers: weight and bias
        self.scale: dict[str, float] = {}  # of nodes that give too much, such as a SumPool2d
        self.edges: list[tuple[str, str]] = []
        self.spiking: dict[str, str] = {}  # the node of each spiking layer
        self.warnings: list[str] = []
        readout = network.readout if isinstance(network, Network) else None
        self.chain = network.model if isinstance(network, Network) else network
        self.readout = readout
        self.prefix = "model." if readout is not None else ""

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def graph(self, T: int) -> Any:
        sources = self.scaled(self.walk(self.chain, ["input"]))
        metadata: dict[str, Any] = {
            "writer": f"backspike {__version__}",
            "dt": self.dt,
            "T": T,
            "tie": "fires",  # NIR's threshold is v > v_threshold, ours v >= v_threshold
        }
        if self.readout is not None:
            metadata["readout"] = type(self.readout).__name__
        if isinstance(self.readout, readouts.TWO):
            metadata["readout_weights"] = self.readout.weights.double().numpy()
        shape = self.shape_of(sources)
        self.add("output", self.nir.Output({"output": np.array(shape)}), sources, shape)
        for name, make in self.layers.items():
            self.nodes[name] = make["node"](_narrow(make["weight"]), _narrow(make["bias"]))
        try:
            return self.nir.NIRGraph(nodes=self.nodes, edges=self.edges, metadata=metadata)
        except Exception as error:
            raise ExchangeError(f"the library nir refuses it: {one_line(error)}") from error

    # ---- the walk --------------------------------------------------------------------------------

    def walk(self, m: Any, sources: list[str]) -> list[str]:
        """Add a module that gets the sum of `sources`; return the nodes whose sum it gives."""
        kind = type(m)
        if kind in SKIPPED:
            return sources
        if kind in CONTAINERS or (isinstance(m, nn.Sequential) and hasattr(m, "spiking_blocks")):
            return self.each(m, sources)
        if kind is PlainNet:
            return self.each([m.features, m.classifier], sources)
        if isinstance(m, ResNet):
            stem, *head = m.spiking_blocks()
            stages = [m.get_submodule(f"layer{i + 1}") for i in range(m.stages)]
            return self.blocks(head, self.each(stages, self.blocks([stem], sources)))
        if isinstance(m, Basic | Bottleneck | SEWBasic | SEWBottleneck | MSBasic):
            return self.residual(m, sources)
        if kind is Recurrent:
            neuron = self.neuron(m.neuron, self.scaled(sources), f"{self.name(m)}.lif")
            for source in self.scaled(self.walk(m.layer, [neuron])):
                self.edges.append((source, neuron))
            return [neuron]
        if kind in NEURONS:
            return [self.neuron(m, self.scaled(sources))]
        if kind is Integrator:
            return [self.integrator(m, self.scaled(sources))]
        if kind in BATCH_NORMS:
            return self.fold(m, sources)
        if kind in (nn.Conv1d, nn.Conv2d, nn.Linear):
            return [self.synapse(m, sources)]
        if kind in (nn.AvgPool2d, nn.AdaptiveAvgPool2d):
            return [self.pool(m, sources)]
        if kind is nn.Flatten:
            return [self.flatten(m, sources)]
        raise self.refuse(m)

    def each(self, modules: Any, sources: list[str]) -> list[str]:
        for m in modules:
            sources = self.walk(m, sources)
        return sources

    def blocks(self, blocks: Any, sources: list[str]) -> list[str]:
        for b in blocks:
            assert isinstance(b, Block)
            parts = (b.product, b.norm, b.neuron, b.pool)
            sources = self.each([m for m in parts if m is not None], sources)
        return sources

    def residual(self, m: Any, sources: list[str]) -> list[str]:
        blocks = list(m.spiking_blocks())
        # where currents are added before a last neuron, that one runs after the addition
        after = [blocks.pop()] if isinstance(m, Basic | Bottleneck) else []
        around = sources if m.downsample is None else self.walk(m.downsample, sources)
        return self.blocks(after, [*self.blocks(blocks, sources), *around])

    # ---- nodes -----------------------------------------------------------------------------------

    def label(self, m: nn.Module) -> str:
        return self.labels.get(m, "").removeprefix(self.prefix) or type(m).__name__

    def refuse(self, m: nn.Module, why: str = "") -> ExchangeError:
        what = f"{self.label(m)} is a {type(m).__name__}"
        if why:
            return ExchangeError(f"{what}: {why}")
        for kinds, instead in INSTEAD:
            if isinstance(m, kinds):
                return ExchangeError(f"{what}, for which NIR has no node; {instead}")
        return ExchangeError(
            f"{what}, whose code cannot be seen from outside; write the network with "
            "bs.Sequential, bs.OverTime and bs.Recurrent, or use convnet, mlp or a residual "
            "network of bs.models"
        )

    def add(self, name: str, node: Any, sources: list[str], shape: tuple[int, ...]) -> str:
        self.nodes[name], self.shapes[name] = node, shape
        self.edges += [(source, name) for source in sources]
        return name

    def name(self, m: nn.Module) -> str:
        """A new name, free of dots, at which snnTorch cuts names."""
        return self.unused(self.label(m).replace(".", "_").replace("/", "_"))

    def unused(self, text: str) -> str:
        name, n = text, 1
        while name in self.nodes:
            n += 1
            name = f"{text}_{n}"
        return name

    def scaled(self, sources: list[str]) -> list[str]:
        """The sources, with a Scale node behind each whose value is too large."""
        out = []
        for source in sources:
            if (scale := self.scale.get(source, 1.0)) != 1:
                shape = self.shapes[source]
                node = self.nir.Scale(np.full(shape, scale))
                source = self.add(self.unused(f"{source}_scale"), node, [source], shape)
            out.append(source)
        return out

    def one_scale(self, sources: list[str]) -> tuple[list[str], float]:
        """The sources, and the number by which all of their values must be multiplied."""
        scales = {self.scale.get(source, 1.0) for source in sources}
        return (sources, scales.pop()) if len(scales) == 1 else (self.scaled(sources), 1.0)

    def shape_of(self, sources: list[str]) -> tuple[int, ...]:
        return self.shapes[sources[0]]

    def run(self, m: nn.Module, sources: list[str]) -> tuple[int, ...]:
        """The shape of a timestep after a stateless layer."""
        shape = self.shape_of(sources)
        try:
            return tuple(m(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
        except (RuntimeError, ValueError) as error:
            raise self.refuse(m, f"it does not take {list(shape)} ({one_line(error)})") from error

    def synapse(self, m: Any, sources: list[str]) -> str:
        nir, shape = self.nir, self.shape_of(sources)
        if isinstance(m, nn.Linear):
            if len(shape) != 1:
                raise self.refuse(m, f"its input has the shape {list(shape)}; flatten it before")

            def node(weight: Any, bias: Any) -> Any:
                return nir.Linear(weight) if bias is None else nir.Affine(weight, bias)
        else:
            if m.padding_mode != "zeros":
                raise self.refuse(m, "NIR pads with zeros; train with padding_mode='zeros'")
            one = isinstance(m, nn.Conv1d)
            options = {
                key: value if isinstance(value, str) else value[0] if one else tuple(value)
                for key in ("stride", "padding", "dilation")
                for value in [getattr(m, key)]
            }

            def node(weight: Any, bias: Any) -> Any:
                bias = np.zeros(len(weight), weight.dtype) if bias is None else bias
                size = shape[1] if one else shape[1:]
                make = nir.Conv1d if one else nir.Conv2d
                return make(size, weight, groups=m.groups, bias=bias, **options)

        sources, scale = self.one_scale(sources)
        name = self.add(self.name(m), None, sources, self.run(m, sources))
        bias = None if m.bias is None else m.bias.detach()
        self.layers[name] = {"node": node, "weight": m.weight.detach() * scale, "bias": bias}
        return name

    def fold(self, m: Any, sources: list[str]) -> list[str]:
        (name,) = sources if len(sources) == 1 else ("",)
        if name not in self.layers or any(a == name for a, _ in self.edges):
            raise self.refuse(m, "it can be folded only right behind a convolution or linear layer")
        if m.running_var is None:
            raise self.refuse(m, "it has no running statistics; set track_running_stats=True")
        layer = self.layers[name]
        weight, bias = fold_norm(layer["weight"], layer["bias"], m)
        layer["weight"], layer["bias"] = weight.detach(), bias.detach()
        return sources

    def pool(self, m: Any, sources: list[str]) -> str:
        shape = self.shape_of(sources)
        if isinstance(m, nn.AdaptiveAvgPool2d):
            if m.output_size not in (1, (1, 1)):
                raise self.refuse(m)
            kernel = stride = shape[1:]
            padding: Any = 0
        else:
            if m.ceil_mode or m.divisor_override or (not m.count_include_pad and m.padding):
                raise self.refuse(m, "NIR has none of ceil_mode, divisor_override, unequal windows")
            kernel, stride, padding = m.kernel_size, m.stride, m.padding
        pair = [np.broadcast_to(np.array(v), 2).copy() for v in (kernel, stride, padding)]
        sources, scale = self.one_scale(sources)
        if summed := self.options.pool == "sum":
            scale /= float(np.prod(pair[0]))
        node = (self.nir.SumPool2d if summed else self.nir.AvgPool2d)(*pair)
        name = self.add(self.name(m), node, sources, self.run(m, sources))
        self.scale[name] = scale
        return name

    def flatten(self, m: nn.Flatten, sources: list[str]) -> str:
        if m.start_dim < 1:
            raise self.refuse(m, "it flattens the batch; set start_dim=1")
        shape, end = self.shape_of(sources), m.end_dim - (m.end_dim > 0)
        sources, scale = self.one_scale(sources)
        node = self.nir.Flatten({"input": np.array(shape)}, m.start_dim - 1, end)
        name = self.add(self.name(m), node, sources, self.run(m, sources))
        self.scale[name] = scale
        return name

    # ---- neurons ---------------------------------------------------------------------------------

    def seconds(self, tau: float | Tensor) -> np.ndarray:
        """tau dt, or a neighbour of it that divided by dt gives exactly tau, if there is one."""
        exact = np.asarray(tau, np.float64)
        out = exact * self.dt
        for candidate in (np.nextafter(out, 0), np.nextafter(out, np.inf)):
            better = (out / self.dt != exact) & (candidate / self.dt == exact)
            out = np.where(better, candidate, out)
        return out

    def neuron(self, m: Any, sources: list[str], name: str = "") -> str:
        if type(m) not in NEURONS:
            raise self.refuse(m)
        if self.label(m) in self.spiking:
            raise self.refuse(m, "it is called twice; give each call a neuron of its own")
        o, shape = m.options, self.shape_of(sources)
        taus, undecayed = self.taus(m), not o.decay_input
        if self.options.gain == "trained":
            unit, factor = undecayed, 1.0
        else:
            unit = self.options.gain == "unit"
            factor = _product(taus) ** (int(unit) - int(undecayed))

        def full(value: Any) -> np.ndarray:
            value = np.asarray(value, np.float64)
            value = value.reshape(-1, *[1] * (len(shape) - 1)) if value.ndim == 1 else value
            return np.broadcast_to(value, shape).copy()

        common = self.threshold_and_reset(m, lambda value: full(np.asarray(value) * factor))
        scale, leak = self.scale_and_leak(m)
        if not taus:
            node = self.nir.IF(r=full(np.asarray(scale) / self.dt), **common)
        else:
            rest = full(np.asarray(leak) * factor)
            times = [full(self.seconds(tau)) for tau in taus]
            gains = [full(tau if unit else 1.0) for tau in taus]
            gains[0] *= full(scale)
            if len(taus) == 1:
                node = self.nir.LIF(tau=times[0], r=gains[0], v_leak=rest, **common)
            else:
                node = self.nir.CubaLIF(
                    tau_mem=times[0],
                    r=gains[0],
                    tau_syn=times[1],
                    w_in=gains[1],
                    v_leak=rest,
                    **common,
                )
        self.add(name := name or self.name(m), node, sources, shape)
        self.spiking[self.label(m)] = name
        return name

    def taus(self, m: Any) -> list[Any]:
        """The time constants in timesteps: of the membrane and of the synapse, if there are any."""
        tau = m.constants().tau
        if not isinstance(m, CubaLIF):
            return [] if not isinstance(tau, Tensor) and math.isinf(tau) else [tau]
        taus = [tau, m.tau_synapse_in_use()]
        for what, tau, option in zip(("membrane", "synapse"), taus, ("tau", "tau_synapse")):
            if not isinstance(tau, Tensor) and math.isinf(tau):
                raise self.refuse(m, f"its {what} has no leak; train with a finite {option}")
        return taus

    def scale_and_leak(self, m: Any) -> tuple[Any, Any]:
        """The factor of a neuron's input, and v_leak, where NIR starts the membrane."""
        rest = 0.0 if m.options.soft else m.options.v_reset
        if not isinstance(m, Shifted):
            return 1.0, rest
        scale, shift, offset = m.transform()
        tau, start = m.constants().tau, (rest if m.start is None else m.start) + offset
        leaks = isinstance(tau, Tensor) or math.isfinite(tau)
        times = 1.0 if m.options.decay_input or not leaks else tau
        shift, start = torch.as_tensor(shift * times), torch.as_tensor(start)
        if not torch.allclose(rest + shift, start) or not (leaks or (shift == 0).all()):
            why = "its membrane starts where it does not rest, which NIR cannot say"
            raise self.refuse(m, f"{why}; export to ONNX")
        return scale, start

    def threshold_and_reset(self, m: Any, full: Callable[[Any], np.ndarray]) -> dict[str, Any]:
        rest = 0.0 if m.options.soft else m.options.v_reset
        known = "v_reset" in self.nir.LIF.__dataclass_fields__
        if rest and (self.options.dialect == "1.0.4" or not known):
            raise self.refuse(m, f"it is reset to {rest:g}, and nir 1.0.4 knows only 0")
        if m.options.soft:
            self.warn(
                f"{self.label(m)} is reset by subtraction, which NIR cannot say: it stands in the "
                "metadata, and other readers will reset it to 0"
            )
        offset = m.transform().offset if isinstance(m, Shifted) else 0.0
        out = {"v_threshold": full(m.constants().v_threshold + offset)}
        if known:
            out["v_reset"] = full(rest)
        return out | {"metadata": {"reset": "soft" if m.options.soft else "hard"}}

    def integrator(self, m: Integrator, sources: list[str]) -> str:
        shape = self.shape_of(sources)
        if m.tau is None or math.isinf(m.tau):
            node = self.nir.I(r=np.full(shape, 1 / self.dt))
        else:
            r = np.full(shape, 1.0 if m.decay_input else m.tau)
            tau = np.full(shape, self.seconds(m.tau))
            node = self.nir.LI(tau=tau, r=r, v_leak=np.zeros(shape))
        return self.add(self.name(m), node, sources, shape)


def _narrow(weights: Tensor | None) -> np.ndarray | None:
    """In float32 where nothing is lost by it: weights that no norm was folded into."""
    if weights is None:
        return None
    narrow = weights.float()
    return (narrow if torch.equal(narrow.double(), weights) else weights).numpy()


def _product(taus: list[Any]) -> Any:
    out: Any = 1.0
    for tau in taus:
        out = out * np.asarray(tau, np.float64)
    return out
