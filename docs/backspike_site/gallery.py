"""The gallery: a figure for each neuron, surrogate and network, and the table of recipes."""

import inspect
import textwrap
from dataclasses import fields
from functools import cache
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

import backspike as bs
from backspike.models import NETWORKS
from backspike.recipes import NAMES
from backspike.report.summary import Summary
from backspike.surrogate import FAMILIES

from . import drawing
from .markdown import code_block, table

# how each neuron is made, and the size of its current; neurons with units take theirs in them
NEURONS = {
    "LIF": ("bs.LIF(tau=10.0)", 0.25),
    "IF": ("bs.IF()", 0.1),
    "PLIF": ("bs.PLIF(tau=10.0)", 2.0),
    "CLIF": ("bs.CLIF(tau=10.0)", 0.25),
    "CubaLIF": ("bs.CubaLIF(tau=10.0, tau_synapse=5.0)", 0.05),
    "AdaptiveLIF": ("bs.AdaptiveLIF(tau=10.0, tau_adaptation=40.0)", 0.6),
    "QIF": ("bs.QIF()", 0.06),
    "EIF": ("bs.EIF()", 0.15),
    "AdEx": ("bs.AdEx()", 1.0),
    "Izhikevich": ("bs.Izhikevich()", 1.0),
    "BRF": ("bs.BRF(omega=10.0, dt=0.05)", 20.0),
    "RefractoryLIF": ("bs.RefractoryLIF(refractory=5, threshold_rise=0.3)", 0.25),
    "RefractoryCubaLIF": ("bs.RefractoryCubaLIF(refractory=5)", 0.05),
    "Recurrent": ("bs.Recurrent(torch.nn.Hardtanh(0.0, 0.3), bs.LIF(tau=10.0))", 0.15),
    "PSN": ("bs.PSN(order=20)", 0.8),
    "MPBN": ("bs.MPBN(tau=10.0, channels=1)", 0.25),
    "Integrator": ("bs.Integrator(tau=10.0)", 0.25),
}


# where the equations of a neuron stand that has none of its own in its docstring
EQUATIONS = {"LIF": bs.lif, "IF": bs.lif, "PLIF": bs.lif, "Integrator": bs.lif, "MPBN": bs.lif}


def current(steps: int = 200) -> torch.Tensor:
    """The input of all neurons, at most 1: a constant, a pause, a ramp. `[T, 1, 1]`."""
    x = torch.zeros(steps, 1, 1)
    x[20:90] = 0.7
    x[120:190, 0, 0] = torch.linspace(0, 1, 70)
    return x


def trace(name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The current, the membrane and the spikes `[T]` of the neuron with this name."""
    how, size = NEURONS[name]
    torch.manual_seed(0)
    layer = eval(how, {"bs": bs, "torch": torch})
    x = size * current()
    with torch.no_grad(), bs.record(layer) as outputs:
        layer.eval()
        result = layer(x)
    (out,) = outputs.values() if outputs else [bs.Output(None, result, result)]
    spikes = torch.zeros_like(x) if out.spikes is None else out.spikes
    return x.flatten(), out.membrane.flatten(), spikes.flatten()


def neurons(folder: Path) -> str:
    """A section for each kind of neuron."""
    parts = []
    for name, (how, _) in NEURONS.items():
        figure = drawing.trace(*trace(name), threshold=name != "Integrator")
        parts.append(_section(folder, name, how, figure, f"{name} under a current"))
    return "\n\n".join(parts)


def surrogates(folder: Path) -> str:
    """A section for each surrogate, and for what wraps another."""
    parts = []
    for kind in FAMILIES:
        default = kind()
        parameter = fields(kind)[0].name
        value = getattr(default, parameter)
        variants = [kind(**{parameter: factor * value}) for factor in (1.0, 0.5, 2.0)]
        figure = drawing.surrogates(variants)
        how = f"bs.{kind.__name__}({parameter}={value:g})"
        parts.append(_section(folder, kind.__name__, how, figure, kind.__name__))
    base = bs.Triangle(alpha=1.0)
    wrapped = {
        "Masked": (f"bs.Masked({base!r}, p=0.5)", [base, bs.Masked(base, 0.5)]),
        "Parametric": (f"bs.Parametric({base!r})", [base, bs.Triangle(0.5), bs.Triangle(2.0)]),
    }
    for name, (how, curves) in wrapped.items():
        figure = drawing.surrogates(curves)
        parts.append(_section(folder, name, how.replace(", scale=1.0", ""), figure, name))
    return "\n\n".join(parts)


@cache
def summaries() -> dict[type, tuple[nn.Module, Summary]]:
    """Each network, and what it does with one sample at one timestep."""
    found = {}
    for kind in NETWORKS:
        torch.manual_seed(0)
        model = kind().build(bs.LIF)
        found[kind] = model, bs.summary(model, torch.rand(1, 1, *input_shape(kind())))
    return found


def network_table(folder: Path) -> str:
    """A table of all networks."""
    rows = [
        [f"[{kind.__name__}](#{kind.__name__.lower()})", _input(kind), *_counted(made)]
        for kind, (_, made) in summaries().items()
    ]
    head = ["network", "input", "parameters", "multiply-accumulates a timestep"]
    return table(head, rows, "lrrr")


def networks(folder: Path) -> str:
    """A section with a diagram for each network."""
    parts = []
    for kind, (model, made) in summaries().items():
        name = kind.__name__
        parameters, macs = _counted(made)
        note = f"Input {_input(kind)}: {parameters} parameters, {macs} multiply-accumulates."
        figure = drawing.network(model, made.rows)
        parts.append(
            _section(folder, name, f"bs.models.{kind()!r}", figure, f"{name}: layers", note)
        )
    return "\n\n".join(parts)


def _input(kind: type) -> str:
    return " × ".join(map(str, input_shape(kind())))


def _counted(made: Summary) -> tuple[str, str]:
    return f"{made.parameters / 1e6:.2f} M", f"{made.ann.macs / 1e6:,.1f} M"


def input_shape(network: object) -> tuple[int, ...]:
    """The shape of one timestep of one sample that a network is shown with."""
    if isinstance(network, bs.models.MLP):
        return (network.in_channels,)
    side = getattr(network, "size", 224 if getattr(network, "stem", "") == "imagenet" else 32)
    return (network.in_channels, side, side)


def recipes(folder: Path) -> str:
    """A table of all recipes."""
    rows = []
    for name, shipped in NAMES.items():
        recipe = shipped.make()
        network = type(recipe.model).__name__
        link = f"[{network}](networks.md#{network.lower()})"
        about = f"{shipped.about} `{recipe.data}`, {link}, T = {recipe.T}."
        rows.append([f"`{name}`", about, shipped.here or "not run", shipped.reported or "unknown"])
    return table(["recipe", "what it is", "here", "paper"], rows, "llll")


def _section(folder: Path, name: str, how: str, figure: Figure, alt: str, note: str = "") -> str:
    drawing.save(figure, folder / f"{name}.svg")
    kind = getattr(bs, name, None) or getattr(bs.models, name)
    about, equations = described(kind)
    equations = equations or described(EQUATIONS.get(name))[1]
    reference = f"[Reference](#backspike.{name})" if hasattr(bs, name) else ""
    parts = [f"## {name}", f"`{how}`", about, equations, note, reference]
    return "\n\n".join([*filter(None, parts), f"![{alt}](/_made/{name}.svg)"])


def described(kind: object) -> tuple[str, str]:
    """The first sentence of a docstring, and its first block of equations as Markdown."""
    paragraphs = inspect.cleandoc((kind and kind.__doc__) or "").split("\n\n")
    blocks = [p for p in paragraphs if p.startswith("    ")]
    equations = code_block(textwrap.dedent(blocks[0])) if blocks else ""
    return paragraphs[0].replace("\n", " "), equations
