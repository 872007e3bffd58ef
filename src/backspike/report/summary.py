"""`summary`: what a model consists of, and what it does with one batch, as a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis import energy, op_count
from ..neuron.hooks import observe, on_call
from ..neuron.lif import LIF, Output
from ..system.table import Table, left, right
from .format import as_percent, count, joules, tenths
from .page import table_html

MATMUL = "matrix product"  # the kind of a row that is no layer


@dataclass(frozen=True)
class Row:
    """A layer. Numbers are per sample, over all timesteps; nan where they have no meaning."""

    name: str
    kind: str
    shape: tuple[int, ...] | None  # of its output for one sample and timestep; None: not known
    parameters: int
    spikes: float
    rate: float  # share of its neurons that spike at a timestep
    macs: float
    additions: float


@dataclass(frozen=True)
class Summary:
    """The result of `bs.summary`. It prints as text, and notebooks show it as an HTML table."""

    T: int
    batch: int
    rows: tuple[Row, ...]
    parameters: int  # of the whole model
    ann: energy.Cost  # the same layers computed once with real numbers
    snn: energy.Cost

    @property
    def spikes(self) -> float:
        """Spikes of all layers per sample."""
        return sum(row.spikes for row in self.rows if not math.isnan(row.spikes))

    def table(self) -> Table:
        """The layers, a row each, and the totals as notes."""
        columns = [
            *left("layer", "type"),
            *right("output", "parameters", "spikes", "rate", "MACs", "additions"),
        ]
        rows = [
            [
                row.name,
                row.kind,
                _output(row),
                count(row.parameters) if row.parameters else "",
                _shown(row.spikes, tenths(row.spikes)),
                _shown(row.rate, as_percent(row.rate)),
                _shown(row.macs, count(row.macs)),
                _shown(row.additions, count(row.additions)),
            ]
            for row in self.rows
        ]
        caption = f"One sample, T = {self.T}; spikes and rates are means over {self.batch} samples"
        return Table(columns, rows, caption, self.notes())

    def notes(self) -> list[str]:
        """The totals, a sentence each."""
        return [
            f"{count(self.parameters)} parameters, {count(self.spikes)} spikes",
            f"{count(self.snn.macs)} multiply-accumulates and {count(self.snn.acs)} additions: "
            f"about {joules(self.snn.arithmetic)} of arithmetic (45 nm, Horowitz 2014)",
            f"the same layers once, with real numbers: {count(self.ann.macs)} "
            f"multiply-accumulates, about {joules(self.ann.arithmetic)}",
        ]

    def __str__(self) -> str:
        table = self.table()
        return "\n".join([table.caption, table.to_text(), *table.notes])

    def to_html(self) -> str:
        """The table and the totals as a fragment of HTML."""
        from markupsafe import Markup

        notes = [Markup("<p>{}</p>").format(note) for note in (self.table().caption, *self.notes())]
        return "\n".join([notes[0], table_html(self.table()), *notes[1:]])

    def _repr_html_(self) -> str:
        return self.to_html()


def _output(row: Row) -> str:
    if row.shape is None:
        return "" if row.kind == MATMUL else "not run"
    return " × ".join(map(str, row.shape)) or "1"


def summary(model: nn.Module, sample: Tensor) -> Summary:
    """Describe `model` by running one batch: `print(bs.summary(model, x))`.

    Shows each layer's output shape for one timestep, parameters, spikes, firing rate and
    operations, and the energy of the arithmetic (constants of Horowitz 2014). A synaptic layer that
    receives spikes needs one addition per spike and connection; other inputs need
    multiply-accumulates, and so do the neurons. Norms and pools are not counted.

    The model runs in evaluation mode and without gradients; it is left as it was, and no random
    numbers are drawn.

    Args:
        model: any module that maps `[T, B, ...]` to an output.
        sample: a batch `[T, B, ...]` on the device of the model.

    Raises:
        ValueError: sample is not a tensor `[T, B, ...]` with at least one timestep and sample.
    """
    if not isinstance(sample, Tensor) or sample.dim() < 2 or 0 in sample.shape[:2]:
        shape = list(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
        raise ValueError(f"summary: expected a sample [T, B, ...], got {shape}")
    T, batch = sample.shape[:2]
    shown = {name: m for name, m in model.named_modules() if _is_layer(m)}
    shapes: dict[str, tuple[int, ...]] = {}

    def see(name: str, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            lead = 2 if output.shape[:2] == (T, batch) else 1
            shapes[name] = tuple(output.shape[lead:])

    def see_neurons(name: str, _layer: LIF, out: Output) -> None:
        if out.spikes is not None:  # a neuron may run without being called, as in `Recurrent`
            shapes[name] = tuple(out.spikes.shape[2:])

    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), on_call(shown, see), observe(model, see_neurons):
            arrays = op_count.count_model(model, sample)
    finally:
        for m, training in modes.items():
            m.training = training
    costs = energy.layers(arrays, T)
    known = {cost.name: cost for cost in costs}
    layers = [
        _row(name, m, shapes.get(name), known.pop(name, None), T) for name, m in shown.items()
    ]
    products = [_row(name, None, None, cost, T) for name, cost in known.items()]
    return Summary(
        T,
        batch,
        (*layers, *products),
        sum(p.numel() for p in model.parameters()),
        energy.total(cost.ann for cost in costs),
        energy.total(cost.snn for cost in costs),
    )


def _is_layer(m: nn.Module) -> bool:
    """Whether a module has a row of its own: it has no parts, holds parameters, or spikes."""
    own = any(True for _ in m.parameters(recurse=False))
    return own or isinstance(m, LIF) or not any(True for _ in m.children())


def _row(
    name: str,
    m: nn.Module | None,
    shape: tuple[int, ...] | None,
    cost: energy.Layer | None,
    T: int,
) -> Row:
    neurons = isinstance(m, LIF) and shape is not None and cost is not None
    spikes = cost.spikes if neurons and cost else math.nan
    return Row(
        name or "(model)",
        type(m).__name__ if m is not None else MATMUL,
        shape,
        sum(p.numel() for p in m.parameters(recurse=False)) if m is not None else 0,
        spikes,
        spikes / (T * math.prod(shape)) if neurons and shape is not None else math.nan,
        cost.snn.macs if cost else math.nan,
        cost.snn.acs if cost else math.nan,
    )


def _shown(value: float, text: str) -> str:
    return "" if math.isnan(value) else text
