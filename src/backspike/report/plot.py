"""Plots with matplotlib: spikes, membrane traces, surrogates, weights of timesteps.

Every function draws into `ax`, or into a new figure without it, and returns the axes, so that
titles and limits can be changed and the figure saved: `bs.plot.raster(s).figure.savefig("s.svg")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..neuron.lif import Output
from ..readout import TWO
from ..surrogate import Masked, Surrogate

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def raster(
    spikes: Tensor, *, sample: int = 0, neurons: int | None = 100, ax: Axes | None = None
) -> Axes:
    """A line for each neuron and a mark for each of its spikes.

    spikes: `[T, B, ...]`, of which one sample is shown, or `[T, N]`. neurons: at most so many,
    evenly spaced over the layer; None shows all.

    Raises ValueError if spikes has fewer than two dimensions.
    """
    ax = _axes(ax)
    flat = _of_sample("raster", spikes, sample)
    some = _some(flat.shape[1], neurons)
    t, row = flat[:, some].nonzero(as_tuple=True)
    ax.scatter(t, row, marker="|", s=max(4.0, 2000 / len(some)), color="C0", linewidths=1.2)
    ax.set(xlim=(-0.5, len(flat) - 0.5), ylim=(-0.5, len(some) - 0.5))
    ax.set(xlabel="timestep", ylabel="neuron")
    return ax


def traces(
    out: Output,
    *,
    v_threshold: float = 1.0,
    sample: int = 0,
    neurons: int | None = 4,
    ax: Axes | None = None,
) -> Axes:
    """The membrane of some neurons over time, with a dot at each spike and the threshold.

    out: of `bs.lif(..., record_membrane=True)` or from `bs.record(model)`. Its membrane is u,
    before the reset. neurons: at most so many, evenly spaced over the layer; None shows all.

    Raises ValueError if the membrane was not recorded.
    """
    if out.membrane is None:
        raise ValueError(
            "plot.traces: the membrane was not recorded; use bs.lif(..., record_membrane=True) "
            "or bs.record(model)"
        )
    ax = _axes(ax)
    u = _of_sample("traces", out.membrane, sample)
    s = None if out.spikes is None else _of_sample("traces", out.spikes, sample)
    for n in _some(u.shape[1], neurons).tolist():
        (line,) = ax.plot(u[:, n], linewidth=1.2, label=f"neuron {n}")
        if s is not None:
            at = s[:, n].nonzero().flatten()
            ax.scatter(at, u[at, n], color=line.get_color(), s=18, zorder=3)
    if s is not None:
        ax.axhline(v_threshold, color="0.5", linestyle="--", linewidth=1)
    ax.set(xlabel="timestep", ylabel="membrane u")
    return ax


def surrogate(
    *surrogates: Surrogate,
    primitive: bool = False,
    limits: tuple[float, float] = (-2.0, 2.0),
    ax: Axes | None = None,
) -> Axes:
    """The derivatives h(z) of surrogates over z = u - threshold, or their smooth steps.

    The mask of `Masked` is drawn as the share of h that is left on average.
    primitive=True: the step whose derivative is h, beside the spike itself.

    Raises ValueError without a surrogate.
    """
    if not surrogates:
        raise ValueError("plot.surrogate: give at least one surrogate, such as bs.ATan()")
    ax = _axes(ax)
    z = torch.linspace(*limits, 801)
    for one in surrogates:
        if primitive:
            y = one.primitive(z)
        else:
            left = 1 - one.p if isinstance(one, Masked) and not one.rescale else 1.0
            y = one.derivative(z) * left
            if isinstance(one, Masked) and one.replace is not None:
                y = y + one.p * one.replace.derivative(z)
        ax.plot(z, y, label=repr(one).replace(", scale=1.0", ""))
    if primitive:
        ax.plot(z, (z >= 0).float(), color="0.5", linestyle="--", linewidth=1, label="spike")
    ax.set(xlabel="z = u - threshold", ylabel="smooth step" if primitive else "h(z)")
    ax.legend(frameon=False, fontsize="small", loc="upper left")
    return ax


def timestep_weights(weights: TWO | Tensor, *, ax: Axes | None = None) -> Axes:
    """The weight of each timestep in the output, as bars; 1 means that all count the same.

    weights: a `bs.readout.TWO`, or a tensor `[T]`.

    Raises ValueError for a tensor of another shape.
    """
    w = weights.weights if isinstance(weights, TWO) else weights
    if w.dim() != 1:
        raise ValueError(f"plot.timestep_weights: expected weights [T], got {list(w.shape)}")
    ax = _axes(ax)
    ax.bar(range(1, len(w) + 1), w.detach().cpu().tolist())
    ax.axhline(1, color="0.5", linestyle="--", linewidth=1)
    ax.set(xlabel="timestep", ylabel="weight")
    return ax


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots()[1]


def _of_sample(name: str, x: Tensor, sample: int) -> Tensor:
    """`[T, N]` of `[T, B, ...]`; `[T, N]` stays as it is."""
    if x.dim() < 2:
        raise ValueError(f"plot.{name}: expected [T, B, ...] or [T, N], got {list(x.shape)}")
    x = x.detach().cpu().float()
    return x if x.dim() == 2 else x[:, sample].flatten(1)


def _some(count: int, at_most: int | None) -> Tensor:
    return torch.linspace(0, count - 1, min(count, at_most or count)).round().long()
