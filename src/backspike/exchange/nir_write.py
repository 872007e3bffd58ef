"""`write`: a network as a NIR file, proven by execution before the file gets its name.

The equations of `bs.lif` are the forward Euler step of NIR's with

    tau_nir = tau dt,   v_leak = rest,   R = gain tau     (IF and I: R = 1/dt)

BatchNorm is folded into the convolution or linear layer before it.
"""

from __future__ import annotations

import copy
import logging
import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import readout as readouts
from ..data.formats import one_line
from ..errors import ExchangeError
from ..layers.block import Block
from ..layers.norm import TEBN
from ..layers.over_time import BATCH_NORMS, OverTime, fold_norm
from ..layers.sequential import Sequential
from ..models.plain import PlainNet
from ..models.residual import Basic, Bottleneck, MSBasic, ResNet, SEWBasic, SEWBottleneck
from ..neuron.cuba import CubaLIF
from ..neuron.integrator import Integrator
from ..neuron.lif import IF, LIF, PLIF
from ..neuron.recurrent import Recurrent
from ..system import disk
from ..system.files import cannot_write
from ..train.network import Network
from ..version import __version__
from . import verify
from .nir_read import DT, load
from .trained import network_and_sample

logger = logging.getLogger("backspike")
DIALECTS = ("1.0.8", "1.0.4")
CONTAINERS = (nn.Sequential, Sequential, OverTime)
SKIPPED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
INSTEAD = (
    (
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d),
        "train with average pools (nn.AvgPool2d; the networks convnet, vggsnn, vgg11 have them)",
    ),
    ((TEBN,), "train with BatchNorm, which is folded (leave norm= out)"),
    ((LIF,), "train with LIF, IF, PLIF or CubaLIF"),
    ((nn.LayerNorm, nn.GroupNorm), "train with BatchNorm, which is folded"),
    ((nn.AdaptiveAvgPool2d,), "pool to one pixel, or use nn.AvgPool2d"),
)


@dataclass(frozen=True)
class Exported:
    """What `write` returns: the file, and what its proof compared."""

    path: Path
    layers: int  # spiking layers
    spikes: int  # equal ones, in all layers, timesteps and samples
    T: int
    samples: int
    dt: float  # seconds
    warnings: list[str]


def write(
    model_or_run: nn.Module | str | Path,
    path: str | Path,
    sample: Tensor | None = None,
    *,
    dt: float = DT,
    dialect: str = "1.0.8",
) -> Exported:
    """Write a network as a NIR file and prove it: read back, it gives the same spikes.

    model_or_run: a network `[T, B, ...] -> [T, B, ...]`, or the folder of a run. sample: inputs
    `[T, B, ...]` for the proof; for a run its validation or test samples by default. dt: seconds
    that a timestep stands for. dialect: "1.0.4" leaves out the field v_reset, on which the readers
    of nir 1.0.4 fail; then every hard reset must be to 0.
    Raises ExchangeError, one line, for a layer that NIR has no word for, and where the file read
    back differs: then it names the layer and the timestep, and writes nothing.
    """
    path = Path(path)
    if dialect not in DIALECTS:
        raise ExchangeError(f"dialect must be one of {', '.join(DIALECTS)}, got {dialect!r}")
    if not (math.isfinite(dt) and dt > 0):
        raise ExchangeError(f"dt must be a positive number of seconds, got {dt}")
    nir = _library()
    model, sample = network_and_sample(model_or_run, sample)
    network = copy.deepcopy(model).cpu().double().eval()
    sample = sample.detach().cpu().double()
    with torch.no_grad():
        writer = _Writer(nir, network, tuple(sample.shape[2:]), dt, dialect)
        graph = writer.graph(len(sample))
        temporary = disk.temporary(path)
        try:
            _save(nir, graph, temporary, dialect)
            back = load(temporary, trusted=True)
            found = verify.compare(writer.chain, back, writer.spiking, sample)
            disk.sync(temporary)
            disk.replace(temporary, path)
            disk.sync(path.parent)
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            with suppress(OSError):  # it was renamed, or the folder cannot be written
                temporary.unlink()
    if not found:
        writer.warn("no neuron fired on the sample, so its spikes prove little; give another one")
    for warning in writer.warnings:
        logger.warning("%s: %s", path, warning)
    T, B = sample.shape[:2]
    return Exported(path, len(writer.spiking), found, T, B, dt, writer.warnings)


def _library() -> Any:
    try:
        import nir
    except Exception as error:  # a broken installation raises more than ImportError
        raise ExchangeError(
            f"NIR files are written by nir: pip install 'backspike[nir]' ({one_line(error)})"
        ) from error
    return nir


def _save(nir: Any, graph: Any, path: Path, dialect: str) -> None:
    import h5py

    try:
        nir.write(str(path), graph)
        if dialect == "1.0.4":
            with h5py.File(path, "a") as file:
                for node in file["node/nodes"].values():
                    if "v_reset" in node:
                        del node["v_reset"]
        nir.read(str(path))  # so that a file which the library itself refuses gets no name
    except OSError:
        raise
    except Exception as error:
        raise ExchangeError(f"the library nir refuses this network: {one_line(error)}") from error


class _Writer:
    """Walk a network and collect nodes and edges.

    A value is written as the list of the nodes whose sum it is: several edges into a node add up.
    """

    def __init__(
        self, nir: Any, network: nn.Module, shape: tuple[int, ...], dt: float, dialect: str
    ) -> None:
        self.nir, self.dt, self.dialect = nir, dt, dialect
        self.labels = {m: name for name, m in network.named_modules()}
        self.nodes: dict[str, Any] = {"input": nir.Input({"input": np.array(shape)})}
        self.shapes: dict[str, tuple[int, ...]] = {"input": shape}
        self.layers: dict[str, Any] = {}  # convolution and linear layers: weight and bias
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
        sources = self.walk(self.chain, ["input"])
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
            neuron = self.neuron(m.neuron, sources, f"{self.name(m)}.lif")
            for source in self.walk(m.layer, [neuron]):
                self.edges.append((source, neuron))
            return [neuron]
        if kind in (LIF, IF, PLIF, CubaLIF):
            return [self.neuron(m, sources)]
        if kind is Integrator:
            return [self.integrator(m, sources)]
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
        name = text = self.label(m).replace(".", "_").replace("/", "_")
        n = 1
        while name in self.nodes:
            n += 1
            name = f"{text}_{n}"
        return name

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

        name = self.add(self.name(m), None, sources, self.run(m, sources))
        bias = None if m.bias is None else m.bias.detach()
        self.layers[name] = {"node": node, "weight": m.weight.detach(), "bias": bias}
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
        node = self.nir.AvgPool2d(*pair)
        return self.add(self.name(m), node, sources, self.run(m, sources))

    def flatten(self, m: nn.Flatten, sources: list[str]) -> str:
        if m.start_dim < 1:
            raise self.refuse(m, "it flattens the batch; set start_dim=1")
        shape, end = self.shape_of(sources), m.end_dim - (m.end_dim > 0)
        node = self.nir.Flatten({"input": np.array(shape)}, m.start_dim - 1, end)
        return self.add(self.name(m), node, sources, self.run(m, sources))

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
        if type(m) not in (LIF, IF, PLIF, CubaLIF):
            raise self.refuse(m)
        if self.label(m) in self.spiking:
            raise self.refuse(m, "it is called twice; give each call a neuron of its own")
        nir, o, shape, constants = self.nir, m.options, self.shape_of(sources), m.constants()

        def full(value: Any) -> np.ndarray:
            value = np.asarray(value, np.float64)
            value = value.reshape(-1, *[1] * (len(shape) - 1)) if value.ndim else value
            return np.broadcast_to(value, shape).copy()

        rest, tau = (0.0 if o.soft else o.v_reset), constants.tau
        common: dict[str, Any] = {"v_threshold": full(constants.v_threshold)}
        if "v_reset" in nir.LIF.__dataclass_fields__:
            common["v_reset"] = full(rest)
        if rest and (self.dialect == "1.0.4" or "v_reset" not in common):
            raise self.refuse(m, f"it is reset to {rest:g}, and nir 1.0.4 knows only 0")
        common["metadata"] = {"reset": "soft" if o.soft else "hard"}
        if o.soft:
            self.warn(
                f"{self.label(m)} is reset by subtraction, which NIR cannot say: it stands in the "
                "metadata, and other readers will reset it to 0"
            )
        perfect = not isinstance(tau, Tensor) and math.isinf(tau)
        if perfect and isinstance(m, CubaLIF):
            raise self.refuse(m, "its membrane has no leak; train with a finite tau")
        if perfect:
            node = nir.IF(r=full(1 / self.dt), **common)
        else:
            r = full(1.0 if o.decay_input else tau)
            membrane = full(self.seconds(tau))
            if isinstance(m, CubaLIF):
                learned = m.log_tau_synapse_minus_1
                tau_s = o.tau_synapse if learned is None else 1 + learned.exp()
                if not isinstance(tau_s, Tensor) and math.isinf(tau_s):
                    raise self.refuse(m, "its synapse has no leak; train with a finite tau_synapse")
                w_in = full(1.0 if o.decay_input else tau_s)
                synapse = full(self.seconds(tau_s))
                node = nir.CubaLIF(
                    tau_syn=synapse, tau_mem=membrane, r=r, v_leak=full(rest), w_in=w_in, **common
                )
            else:
                node = nir.LIF(tau=membrane, r=r, v_leak=full(rest), **common)
        self.add(name := name or self.name(m), node, sources, shape)
        self.spiking[self.label(m)] = name
        return name

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
