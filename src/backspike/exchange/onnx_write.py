"""`write`: a network as an ONNX file, proven by execution before the file gets its name.

The network is rendered in plain torch (`onnx_steps.py`) and held to itself in float64; torch makes
an ONNX graph of the rendering; onnxruntime runs that graph, and each of its spikes is held to the
rendering in float32 (`onnx_verify.py`). Only then are the bytes that ran written.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import readout as readouts
from ..data.formats import one_line
from ..errors import ExchangeError
from ..layers.norm import TEBN
from ..recipes.recipe import Recipe
from ..run import Run
from ..system.files import write_atomic
from ..train.failures import first_line
from ..train.network import Network
from ..version import __version__
from . import onnx_verify as verify
from .onnx_steps import Once, Rendered, Scan, Trace, loop, render
from .trained import SILENT, find

logger = logging.getLogger("backspike")
AT_ONCE = 4  # samples, as the spikes of all layers are held
LARGEST = 2**31 - 1  # bytes of a protobuf message
OPSET = 18
NEXT = ".next"  # of the name of a state after the timestep


@dataclass(frozen=True)
class Exported:
    """What `write` returns: the file, and what its proof compared."""

    path: Path
    step: bool
    layers: int  # spiking layers
    spikes: int  # equal ones, in all layers, timesteps and samples
    ties: int  # decisions that fell otherwise, with the membrane within rounding of the threshold
    difference: float  # largest of the outputs from those of the network
    T: int | None  # None: any number of timesteps
    samples: int
    states: list[str]  # inputs that carry the state, in order
    warnings: list[str]


def write(
    model_or_run: nn.Module | str | Path,
    path: str | Path,
    sample: Tensor | None = None,
    *,
    recipe: Recipe | str | None = None,
    step: bool = False,
    dt: float | None = None,
) -> Exported:
    """Write a network as an ONNX file and prove it: onnxruntime gives the same spikes.

    model_or_run: a network on `[T, B, ...]`, or a run as for `bs.load`. sample: inputs for the
    proof, `[T, B, ...]`; for a run its validation or test samples by default. recipe: of the
    run, as for `bs.load`. step: write one
    timestep `[B, ...]`, without the readout; the states are inputs and outputs, and start at zero.
    dt: seconds that a timestep stands for, only for the metadata.
    Raises ExchangeError, one line, for a network that cannot be exported, and where onnxruntime
    computes something else: then it names the layer and the timestep, and writes nothing.
    """
    path = Path(path)
    if dt is not None and not (math.isfinite(dt) and dt > 0):
        raise ExchangeError(f"dt must be a positive number of seconds, got {dt}")
    _library()
    model, sample, run, made_by = find(model_or_run, sample, recipe)
    network = copy.deepcopy(model).cpu().float().eval()
    chain = network.model if step and isinstance(network, Network) else network
    if step and any(isinstance(m, TEBN) for m in network.modules()):
        raise ExchangeError("TEBN scales every timestep differently; export without step")
    _check_names(chain)
    x = sample.detach().cpu().float().contiguous()  # a view that repeats would be computed once
    with torch.no_grad():
        for part in x.split(AT_ONCE, 1):
            twin = copy.deepcopy(chain).double()
            verify.hold_to_network(render(twin), twin, part.double())
        rendered = render(chain)
        graph = _Graph(rendered, x, step)
        if step:
            twin = copy.deepcopy(chain).double()
            verify.hold_to_steps(render(twin), x[:, :AT_ONCE].double())
        program = _export(graph, x)
        _name_axes(program, graph)
        _describe(program, run, made_by, model, graph, dt)
        found, difference, data = _prove(program, graph, chain, x)
    write_atomic(path, data)
    notes = []
    if graph.spiking and not found.spikes:
        notes.append(SILENT)
    if not step and not graph.any_T:
        notes.append(f"the file takes exactly T = {len(x)} timesteps, as the network does")
    for note in notes:
        logger.warning("%s: %s", path, note)
    return Exported(
        path,
        step,
        len(graph.spiking),
        found.spikes,
        found.ties,
        difference,
        None if step or graph.any_T else len(x),
        x.shape[1],
        graph.state_names,
        notes,
    )


def _check_names(network: nn.Module) -> None:
    """torch's exporter writes names into code that it runs: only such that need no escapes."""
    modules = (name for name, _ in network.named_modules())
    tensors = (name for name, _ in [*network.named_parameters(), *network.named_buffers()])
    for name in (*modules, *tensors):
        if not name.isprintable() or set(name) & {'"', "'", "\\"}:
            raise ExchangeError(
                f"{name!a} is a name with quotes, backslashes or control characters, which "
                "cannot be exported; use another one"
            )


def _library() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except Exception as error:  # a broken installation raises more than ImportError
        raise ExchangeError(
            "ONNX files are written with onnx, onnxscript and onnxruntime: "
            f"pip install 'backspike[onnx]' ({one_line(error)})"
        ) from error
    return onnx, onnxruntime


class _Graph(nn.Module):
    """A rendered network as a function of tensors, `(x, states) -> [y, *states, *spikes]`."""

    def __init__(self, rendered: Rendered, x: Tensor, step: bool) -> None:
        super().__init__()
        self.network, self.rendered, self.step = rendered.network, rendered, step
        trace, once = Trace(), Once()
        y = rendered(x[:1], once) if step else rendered(x, trace)
        if step and tuple(y.shape[:2]) != (1, x.shape[1]):
            raise ExchangeError(
                f"one timestep gives {list(y.shape)}, not [1, B, ...]: with step, give a network "
                "of outputs over time, without a readout"
            )
        self.layers = once.layers if step else trace.layers
        self.spiking = [key for key, layer in self.layers.items() if layer.spiking]
        self.start = [s for states in once.before.values() for s in states]
        self.any_T = False  # known after the export

    @property
    def state_names(self) -> list[str]:
        if not self.step:
            return []
        return [f"{k}.{s}" for k, layer in self.layers.items() for s in layer.states]

    @property
    def output_names(self) -> list[str]:
        logits = not self.step and isinstance(self.network, Network)
        states = [name + NEXT for name in self.state_names]
        spikes = [f"{key}.spikes" for key in self.spiking]
        return ["logits" if logits else "output", *states, *spikes]

    def forward(self, x: Tensor, states: list[Tensor]) -> list[Tensor]:
        if not self.step:
            trace: Trace = Scan()
            y = self.rendered(x, trace)
            return [y.clone(), *(trace.outputs[key].clone() for key in self.spiking)]
        rest = iter(states)
        before = {k: [next(rest) for _ in layer.states] for k, layer in self.layers.items()}
        once = Once(before)
        y = self.rendered(x[None], once)[0]
        after = [s for states in once.after.values() for s in states]
        spikes = [once.outputs[key][0] for key in self.spiking]
        return [t.clone() for t in (y, *after, *spikes)]


def _export(graph: _Graph, x: Tensor) -> Any:
    """torch's ONNXProgram of the graph, with every size of x but those of batch and time fixed."""
    # torch.export takes a size of 1 for a constant
    x = torch.cat([x, x], 1)[:, :2] if x.shape[1] == 1 else x
    states = [torch.cat([s, s])[: x.shape[1]] for s in graph.start]
    auto = torch.export.Dim.AUTO
    shapes = {"x": {0: auto} if graph.step else {0: auto, 1: auto}}
    dynamic = {**shapes, "states": [{0: auto} for _ in states]}
    try:
        with _quiet():
            program = torch.export.export(
                graph,
                (x[0] if graph.step else x, states),
                dynamic_shapes=dynamic,
                strict=False,
            )
            _check(program, graph)
            made = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["input", *graph.state_names],
                output_names=graph.output_names,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
            )
    except ExchangeError:
        raise
    except Exception as error:
        raise ExchangeError(
            f"torch {torch.__version__} cannot export this network: {_reason(error)}"
        ) from error
    finally:
        for layer in graph.rendered.layers.values():
            layer.over_time = loop
    return made


def _check(program: torch.export.ExportedProgram, graph: _Graph) -> None:
    """Refuse what would fail later, or not be a file for any batch."""
    if any(str(node.target).startswith("backspike.") for node in program.graph.nodes):
        raise ExchangeError(
            "the network calls bs.lif or another function of this package, which ONNX lacks; "
            "use layers such as bs.LIF"
        )
    x = next(node for node in program.graph.nodes if node.name == "x")
    batch = str(x.meta["val"].shape[0 if graph.step else 1])
    if batch.isdigit():  # torch has no other word for a symbol that the code has fixed
        raise ExchangeError(
            f"the code of the network fixes the batch to {batch}; take sizes from x.shape, "
            "not from len(x) or numbers"
        )


def _reason(error: BaseException) -> str:
    """The first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings about its own code, and about operators of torchvision."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)


def _name_axes(program: Any, graph: _Graph) -> None:
    """Call the free sizes "batch" and "T"."""
    for value in program.model.graph.inputs:
        for axis, size in enumerate(value.shape):
            if str(size).isdigit():  # torch writes a size that the code fixed as text
                value.shape[axis] = int(str(size))
    sizes = list(program.model.graph.inputs[0].shape)
    batch = sizes[0 if graph.step else 1]
    names = {batch.value: "batch"}
    graph.any_T = not graph.step and not isinstance(sizes[0], int)
    if graph.any_T:
        names[sizes[0].value] = "T"
    program.rename_axes(names)


def _describe(
    program: Any,
    run: Run | None,
    recipe: Recipe | None,
    model: nn.Module,
    graph: _Graph,
    dt: float | None,
) -> None:
    """The metadata of the file."""
    about = {
        "writer": f"backspike {__version__}",
        "kind": "step" if graph.step else "sequence",
        "classes": str(program.model.graph.outputs[0].shape[-1]),
    }
    if T := _timesteps(program, recipe, graph):
        about["T"] = str(T)
    if dt is not None:
        about["dt"] = f"{dt!r}"
    if isinstance(model, Network):
        about["readout"] = type(model.readout).__name__
        if isinstance(model.readout, readouts.TWO):
            about["readout_weights"] = json.dumps(model.readout.weights.tolist())
    if run is not None:
        about["sha256"] = hashlib.sha256(run.read("model.safetensors")).hexdigest()
    program.model.metadata_props.update(about)
    program.model.producer_name, program.model.producer_version = "backspike", __version__


def _timesteps(program: Any, recipe: Recipe | None, graph: _Graph) -> int | None:
    """T of the run, or the only T that the file takes."""
    if recipe is not None:
        return recipe.T
    return None if graph.step or graph.any_T else int(program.model.graph.inputs[0].shape[0])


# ---- the proof -----------------------------------------------------------------------------------


def _prove(
    program: Any, graph: _Graph, chain: nn.Module, x: Tensor
) -> tuple[verify.Found, float, bytes]:
    """Run the graph on x, and on another batch and number of timesteps; return the file's bytes.

    Returns too what was compared, and the largest difference of the outputs from the network's.
    """
    watched = _Session(_bytes(program), graph)
    outputs = program.model.graph.outputs
    del outputs[1 + len(graph.state_names) :]
    _drop_unused(program)
    data = _bytes(program)
    session = _Session(data, graph)
    found, difference = verify.Found(), 0.0
    for part in (*x.split(AT_ONCE, 1), _another(x, graph.any_T)):
        y, spikes = watched(part)
        found.add(verify.follow(graph.rendered, spikes, y, part, "the file in onnxruntime"))
        final, _ = session(part)
        verify.hold(y, final, "the file without its inner outputs")
        difference = max(difference, float((final - chain(part)).abs().max()))
    return found, difference, data


def _another(x: Tensor, any_T: bool) -> Tensor:
    """Inputs of another batch size that end in silence, one timestep later if T is free."""
    x = torch.cat([x if any_T else x[:-1], torch.zeros_like(x[:1])])
    return x[:, :1] if x.shape[1] > 1 else torch.cat([x, x], 1)


def _drop_unused(program: Any) -> None:
    """Leave out the nodes whose results nobody reads any more."""
    from onnxscript.ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(program.model)


def _bytes(program: Any) -> bytes:
    onnx, _ = _library()
    try:
        proto = program.model_proto
        onnx.checker.check_model(proto, full_check=True)
        data: bytes = proto.SerializeToString()
    except Exception as error:
        raise ExchangeError(f"the library onnx refuses this network: {one_line(error)}") from error
    if len(data) > LARGEST:
        raise ExchangeError("the network has more than 2 GB, too much for one ONNX file")
    return data


class _Session:
    """A file in onnxruntime: `session(x [T, B, ...])` -> outputs, spikes by layer."""

    def __init__(self, data: bytes, graph: _Graph) -> None:
        _, onnxruntime = _library()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.graph = graph
        try:
            self.session = onnxruntime.InferenceSession(
                data, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ExchangeError(f"onnxruntime refuses the file: {one_line(error)}") from error

    def __call__(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.graph.step:
            return self.named(self.run(x.numpy(), []))
        n = len(self.graph.start)
        states = [np.zeros((x.shape[1], *s.shape[1:]), np.float32) for s in self.graph.start]
        steps = []
        for x_t in x.numpy():
            y, *rest = self.run(x_t, states)
            states = rest[:n]
            steps.append([y, *rest[n:]])
        return self.named([np.stack(values) for values in zip(*steps)])

    def run(self, x: np.ndarray, states: list[np.ndarray]) -> list[np.ndarray]:
        names = [i.name for i in self.session.get_inputs()]
        try:
            found: list[np.ndarray] = self.session.run(None, dict(zip(names, [x, *states])))
        except Exception as error:
            raise ExchangeError(f"not written: onnxruntime fails: {one_line(error)}") from error
        return found

    def named(self, values: list[np.ndarray]) -> tuple[Tensor, dict[str, Tensor]]:
        y, *spikes = map(torch.from_numpy, values)
        return y, dict(zip(self.graph.spiking, spikes))
