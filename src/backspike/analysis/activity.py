"""Numbers that describe what a network does: firing rates, which neurons receive a gradient, and
everything that a run's report shows.

`probe` is the short version logged after every epoch; `collect` runs the test set once and returns
the arrays of `evaluation.npz`. Neither draws random numbers, so neither changes a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import readout
from ..data.batches import Batches
from ..kernel import dropped
from ..kernel.coefficients import over_channels
from ..methods.pda import surrogate_width
from ..neuron.cuba import CubaLIF
from ..neuron.hooks import observe, record, spiking_layers
from ..neuron.lif import LIF, Output

# a neuron counts as receiving a gradient where h exceeds this share of its peak
SUPPORT = 0.01
# edges of the histograms of z = u - threshold
EDGES = np.linspace(-2, 2, 81, dtype=np.float32)
RASTER_NEURONS = 64
CONSTANT_BINS = 30  # of the histograms of taus and thresholds
SAMPLES = 6
# batch size while layers are measured, which takes several times the memory of a layer
SAMPLES_AT_ONCE = 32


def derivative(layer: LIF, z: Tensor) -> Tensor:
    """The surrogate derivative h at z = u - threshold, with the learned width, without the mask."""
    width = layer.constants()[2]
    if width is None:
        return layer.surrogate.derivative(z)
    if width.dim():
        width = width.view(-1, *[1] * (z.dim() - 3))
    return layer.surrogate.derivative(z / width) / width


def distance(layer: LIF, out: Output) -> Tensor:
    """z = u - threshold, `[T, B, ...]`. Raises ValueError if the membrane was not recorded."""
    if out.membrane is None:
        raise ValueError("the membrane was not recorded")
    return out.membrane - over_channels(layer.constants()[1], out.membrane)


def in_support(layer: LIF, z: Tensor) -> Tensor:
    """Where h at z exceeds 1 % of its peak (a bool tensor of the shape of z)."""
    h = derivative(layer, z)
    return h > SUPPORT * derivative(layer, torch.zeros_like(z))


@torch.no_grad()
def probe(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """Measures the spiking layers on one batch x `[T, B, ...]`.

    Returns, per layer, the firing rate, the share of neurons with a gradient and the
    `potential_statistics` of each timestep; over all layers, the share of the surrogate gradient
    that the mask removes at these potentials. That mask has seed t at timestep t, so that a
    resumed run measures the same.
    """
    firing: dict[str, float] = {}
    support: dict[str, float] = {}
    potential: dict[str, dict[str, list[float]]] = {}
    whole = masked = 0.0

    def see(name: str, layer: LIF, out: Output) -> None:
        nonlocal whole, masked
        assert out.spikes is not None
        firing[name] = float(out.spikes.float().mean())
        inside = 0
        for t, z in enumerate(distances(layer, out)):
            h = derivative(layer, z)
            inside += int(in_support(layer, z).sum())
            whole += float(h.sum())
            if layer.mask_p is not None:
                masked += float((h * dropped(t, z.shape, layer.mask_p)).sum())
        support[name] = inside / out.spikes.numel()
        statistics = potential_statistics(model, {name: out})[name]
        potential[name] = {
            quantity: [round(float(v), 5) for v in values]
            for quantity, values in statistics.items()
        }

    model.eval()
    with observe(model, see):
        model(x)
    p = next(
        (layer.mask_p for layer in spiking_layers(model).values() if layer.mask_p is not None), None
    )
    return {
        "firing_rate": firing,
        "support_share": support,
        "potential": potential,
        "masked_share": masked / whole if p is not None and whole > 0 else None,
        "mask_p": None if p is None else float(p),
    }


@torch.no_grad()
def histograms(model: nn.Module, x: Tensor) -> dict[str, list[int]]:
    """The histogram of u - threshold over `EDGES` per spiking layer, on one batch `[T, B, ...]`."""
    counts: dict[str, list[int]] = {}

    def see(name: str, layer: LIF, out: Output) -> None:
        counts[name] = np.sum([_histogram(z) for z in distances(layer, out)], axis=0).tolist()

    model.eval()
    with observe(model, see):
        model(x)
    return counts


def distances(layer: LIF, out: Output) -> Iterator[Tensor]:
    """z of each timestep in turn, `[1, B, ...]`: T times less memory than all at once."""
    assert out.membrane is not None
    for u in out.membrane.split(1):
        yield distance(layer, out._replace(membrane=u))


def _histogram(z: Tensor) -> np.ndarray:
    """Counts over `EDGES`; the first and last bin also count the values outside.

    Bins are computed by arithmetic, which is far faster than a search.
    """
    n, step = len(EDGES) - 1, float(EDGES[1] - EDGES[0])
    bins = ((z.nan_to_num() - float(EDGES[0])) / step).floor().clamp(0, n - 1).to(torch.int64)
    return torch.bincount(bins.flatten(), minlength=n).cpu().numpy()


def widths(model: nn.Module) -> dict[str, float]:
    """The mean learned width of every layer that has one."""
    out = {}
    for name, layer in spiking_layers(model).items():
        width = layer.constants()[2]
        if width is not None:
            out[name] = float(width.detach().mean())
    return out


@torch.no_grad()
def constants(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Histograms of the constants that differ within a layer: "layer: tau" to edges and counts."""
    out: dict[str, dict[str, Any]] = {}
    for name, layer in spiking_layers(model).items():
        tau, threshold, _ = layer.constants()
        found = {"tau": tau, "v_threshold": threshold}
        if isinstance(layer, CubaLIF):
            found["tau_synapse"] = layer.tau_synapse_in_use()
        for what, values in found.items():
            if isinstance(values, Tensor) and values.dim():
                counts, edges = np.histogram(values.double().cpu().numpy(), CONSTANT_BINS)
                rounded = [float(f"{edge:.6g}") for edge in edges]
                out[f"{name}: {what}"] = {"edges": rounded, "counts": counts.tolist()}
    return out


def answers_over_time(o: Tensor, how: nn.Module) -> Tensor:
    """The logits if the network stopped after 1, 2, ... T timesteps, `[T, B, K]`.

    o: outputs of all timesteps, `[T, B, K]`. how: the readout.
    """
    if isinstance(how, readout.Last):
        return o
    if isinstance(how, readout.TWO):
        o = o * how.weights.to(o.dtype).view(-1, 1, 1)
    steps = torch.arange(1, o.shape[0] + 1, device=o.device, dtype=o.dtype)
    return o.cumsum(0) / steps.view(-1, 1, 1)


@torch.no_grad()
def collect(network: Any, batches: Batches) -> dict[str, np.ndarray]:
    """The arrays of `evaluation.npz`, from one pass over the test set; see docs/run-folder.md."""
    network.eval()
    layers = spiking_layers(network.model)
    tallies = {name: _Tally() for name in layers}
    T = batches.recipe.T
    confusion: Any = 0
    right_at = torch.zeros(T, dtype=torch.int64)
    right: list[Tensor] = []
    for x, y in batches.in_order(SAMPLES_AT_ONCE):
        with (
            observe(network.model, lambda name, layer, out: tallies[name].add(layer, out)),
            batches.autocast(),
        ):
            o = network.model(x).float()
        over_time = answers_over_time(o, network.readout)
        answer = network.readout(o).argmax(-1)
        K = o.shape[2]
        confusion = confusion + torch.bincount(y.cpu() * K + answer.cpu(), minlength=K * K).view(
            K, K
        )
        right_at += (over_time.argmax(-1) == y).sum(1).cpu()
        right.append((answer == y).cpu())
    n = int(confusion.sum())
    arrays = {
        "classes": np.array([str(k) for k in range(len(confusion))]),
        "confusion": confusion.numpy(),
        "layer_names": np.array(list(layers)),
        "accuracy_over_time": right_at.numpy() / n,
        "membrane_edges": EDGES,
    }
    arrays |= _stack({name: t.arrays(n) for name, t in tallies.items()})
    z = torch.linspace(float(EDGES[0]), float(EDGES[-1]), 401)
    arrays["surrogate_z"] = z.numpy()
    arrays["surrogate_h"] = (
        np.stack([_curve(layer, z) for layer in layers.values()]) if layers else np.zeros((0, 401))
    )
    if isinstance(network.readout, readout.TWO):
        arrays["readout_weights"] = network.readout.weights.cpu().numpy()
    return arrays | _samples(network, batches, torch.cat(right), layers)


def _curve(layer: LIF, z: Tensor) -> np.ndarray:
    """h over z; with a width per channel, the mean over the channels."""
    width = layer.constants()[2]
    if width is None or width.dim() == 0:
        return derivative(layer, z).cpu().numpy()
    return (layer.surrogate.derivative(z / width[:, None]) / width[:, None]).mean(0).cpu().numpy()


class _Tally:
    """Sums over the batches of a data set for one layer."""

    def __init__(self) -> None:
        self.spikes: Any = 0.0
        self.support: Any = 0.0
        self.elements = 0
        self.counts = np.zeros(len(EDGES) - 1, dtype=np.int64)

    def add(self, layer: LIF, out: Output) -> None:
        assert out.spikes is not None
        self.elements += out.spikes[0].numel()
        self.spikes = self.spikes + torch.stack(
            [s.sum(dtype=torch.float64).cpu() for s in out.spikes]
        )
        support = []
        for z in distances(layer, out):
            support.append(in_support(layer, z).sum(dtype=torch.float64).cpu())
            self.counts += _histogram(z)
        self.support = self.support + torch.stack(support)

    def arrays(self, images: int) -> dict[str, np.ndarray]:
        return {
            "firing_rate": (self.spikes / self.elements).numpy(),
            "support_share": (self.support / self.elements).numpy(),
            "membrane_counts": self.counts,
            "spikes_per_image": np.float64(self.spikes.sum() / images),
        }


def _stack(per_layer: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names: Iterable[str] = next(iter(per_layer.values()), {})
    return {name: np.stack([arrays[name] for arrays in per_layer.values()]) for name in names}


def _samples(
    network: Any, batches: Batches, right: Tensor, layers: dict[str, LIF]
) -> dict[str, np.ndarray]:
    """Inputs, answers over time and spikes of some neurons for a few test samples.

    Up to two of the samples are misclassified.
    """
    wrong = (~right).nonzero().flatten()[:2]
    index = torch.cat([right.nonzero().flatten()[: SAMPLES - len(wrong)], wrong])
    x, y = batches.take(index)
    with record(network.model) as outputs, batches.autocast():
        o = network.model(x)
    arrays = {
        "sample_x": x.transpose(0, 1).float().cpu().numpy(),
        "sample_y": y.cpu().numpy(),
        "sample_logits": answers_over_time(o.float(), network.readout)
        .transpose(0, 1)
        .cpu()
        .numpy(),
    }
    for i, name in enumerate(layers):
        spikes = outputs[name].spikes
        assert spikes is not None
        flat = spikes.flatten(2)
        some = torch.linspace(0, flat.shape[2] - 1, min(RASTER_NEURONS, flat.shape[2])).long()
        arrays[f"sample_spikes_{i}"] = (
            flat[:, :, some].transpose(0, 1).to(torch.uint8).cpu().numpy()
        )
    return arrays


@torch.no_grad()
def potential_statistics(
    model: nn.Module, recorded: Mapping[str, Output]
) -> dict[str, dict[str, np.ndarray]]:
    """Statistics of each layer's membrane potentials per timestep.

    Args:
        model: the network.
        recorded: outputs by layer name, from `bs.record(model)`.

    Returns:
        {layer: {quantity: array `[T]`}}, with the mean and std of u; quantisation_error,
        E(u - theta s)^2; active_share, the share with abs(u - theta) < w/2 for a surrogate of
        width w; share_below, that with u <= 0; share_above, that with u >= 2 theta.

    Raises:
        ValueError: the membrane was not recorded.
    """
    layers = spiking_layers(model)
    return {name: statistics(layers[name], out) for name, out in recorded.items()}


def statistics(layer: LIF, out: Output) -> dict[str, np.ndarray]:
    """`potential_statistics` of one layer."""
    u, s = out.membrane, out.spikes
    if u is None or s is None:
        raise ValueError(
            "potential_statistics: the membrane was not recorded; use bs.record(model)"
        )
    # timestep by timestep: a whole layer in double precision would take much memory
    steps = [at_one_timestep(layer, u[t : t + 1], s[t : t + 1]) for t in range(len(u))]
    return {quantity: np.array([step[quantity] for step in steps]) for quantity in steps[0]}


def at_one_timestep(layer: LIF, u: Tensor, s: Tensor) -> dict[str, float]:
    """`potential_statistics` of one layer at one timestep; u and s are `[1, B, ...]`."""
    theta = over_channels(layer.constants()[1], u)
    width: Any = over_channels(surrogate_width(layer), u)

    def over_all(x: Tensor) -> float:
        return float(x.mean(dtype=torch.float64))

    return {
        "mean": over_all(u),
        "std": float(u.double().std(correction=0)),
        "quantisation_error": over_all((u - theta * s) ** 2),
        "active_share": over_all(((u - theta).abs() < width / 2).float()),
        "share_below": over_all((u <= 0).float()),
        "share_above": over_all((u >= 2 * theta).float()),
    }
