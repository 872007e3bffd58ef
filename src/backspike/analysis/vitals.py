"""What a network does while it learns, measured on a few batches: spikes, potentials, gradients and how far a step goes.

`take` works on a copy of network and optimizer, so that nothing of a training changes but the generators, which who calls it
puts back. What the mask and the gradient through the reset do is found by leaving each out and taking the same gradient again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: PLC2701  (the base of all BatchNorms)

from ..layers.norm import TDBN
from ..methods.weight_mask import mask_weight_gradients
from ..neuron.hooks import Handle, observe, spiking_layers
from ..neuron.lif import LIF, Output
from ..neuron.recurrent import Recurrent
from ..recipes.recipe import Recipe
from ..surrogate import Masked
from .activity import distances, in_support

Batch = tuple[Tensor, Tensor]
ALWAYS = 0.99  # a channel that fires at this share of its places and timesteps always fires
FLAT = 0.1  # a channel of a norm is flat where its output varies less than this, of the 1 that a norm is for
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.8, 0.9, 0.99)
_DRAWN = 1 << 11  # potentials of a timestep and batch, about, that quantiles are taken from
_SEED = 1  # of every pass, so that two of them drop the same elements


@dataclass(frozen=True)
class Layer:
    """A spiking layer; lists have a value per timestep. Gradients are of its currents, over all samples and places."""

    firing_rate: list[float]
    support_share: list[float]  # of potentials where h is above 1 % of its peak
    gradient: list[float]  # norm; nan where none arrives
    reset_ratio: (
        list[float] | None
    )  # norm of what the path through the reset adds, relative to all else; None: no such path
    mask_left: list[float] | None  # norm with the mask, relative to that without; None: no mask
    dead: float  # share of channels without a spike
    saturated: float  # share of channels that always fire
    spikes_per_sample: float
    potential: dict[str, float]  # quantiles of u
    distance: dict[str, float]  # quantiles of abs(u - threshold)

    @property
    def rate(self) -> float:
        return _mean(self.firing_rate)

    @property
    def support(self) -> float:
        return _mean(self.support_share)

    @property
    def gradient_norm(self) -> float:
        return math.sqrt(sum(g * g for g in self.gradient))


@dataclass(frozen=True)
class Weight:
    """A tensor of weights, two dimensions or more."""

    norm: float
    gradient: float  # norm of the mean gradient of the batches; nan where none arrives
    update_ratio: float  # norm of what a step at the recipe's full learning rate changes, relative to that of the weights
    mask_alignment: float | None  # cosine between the gradients with and without the mask


@dataclass(frozen=True)
class Vitals:
    """What `take` measures."""

    samples: int
    T: int
    loss: float
    cross_entropy: float  # of the readout's logits
    accuracy: float
    classes: int  # outputs
    labels: int  # different ones among the samples
    input_rms: float
    input_constant: bool  # every sample is the same
    input_normed: bool  # a norm stands before the first spiking layer
    static: bool  # a sample is the same at every timestep
    logit_scale: float  # root mean square of the logits of a sample around their mean
    logit_spread: float  # deviation of a logit over the samples, relative to the scale
    layers: dict[str, Layer] = field(repr=False)  # in the order in which they run
    weights: dict[str, Weight] = field(repr=False)
    flat_norms: dict[str, float]  # share of channels whose norm gives out next to nothing
    without_gradient: list[str]  # learned tensors

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a log, five digits each."""
        return _rounded(asdict(self))


def take(
    network: Any,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    recipe: Recipe,
    autocast: Callable[[], AbstractContextManager[Any]],
    steps: int = 1,
) -> Vitals:
    """Measures a `train.Network` and its optimizer on batches (x `[T, B, ...]`, y), as `recipe` trains it.

    steps: of the optimizer, over whose sizes the median is taken; a fresh one needs a few until its averages are filled.
    """
    network, optimizer = copy.deepcopy((network, optimizer))
    network.train()
    course = _Course(network, recipe, batches, autocast)
    whole = course.gradients()
    spiking = spiking_layers(network.model)
    unmasked = without_reset = None
    if any(
        isinstance(layer.surrogate, Masked) and layer.mask_p is not None
        for layer in spiking.values()
    ):
        kept = {
            name: layer.mask_p.clone()
            for name, layer in spiking.items()
            if layer.mask_p is not None
        }
        for name in kept:
            spiking[name].mask_p.zero_()  # type: ignore[union-attr]
        unmasked = course.gradients(whole)
        for name, p in kept.items():
            spiking[name].mask_p.copy_(p)  # type: ignore[union-attr]
    if any(layer.reset_gradient > 0 for layer in spiking.values()) and len(batches[0][0]) > 1:
        options = {name: layer.options for name, layer in spiking.items()}
        for layer in spiking.values():
            layer.options = replace(layer.options, reset_gradient=0.0)
        without_reset = course.gradients(whole)
        for name, before in options.items():
            spiking[name].options = before
    ratios = course.steps(optimizer, steps)
    course.remove()
    parameters = {name: p for name, p in network.model.named_parameters() if p.requires_grad}
    layers = {}
    for name, tally in whole.tallies.items():
        reset = without_reset and without_reset.relative(name)
        left = unmasked and [
            math.sqrt(a / b) if b > 0 else math.nan for a, b in unmasked.energies(name)
        ]
        layers[name] = tally.layer(len(batches), whole.energy(name), reset or None, left or None)
    weights = {
        name: Weight(
            norm=float(p.detach().norm()),
            gradient=float(whole.of[name].norm()) if name in whole.of else math.nan,
            update_ratio=ratios.get(name, math.nan),
            mask_alignment=None
            if unmasked is None
            else _cosine(whole.of.get(name), unmasked.of.get(name)),
        )
        for name, p in parameters.items()
        if p.dim() > 1
    }
    return Vitals(
        **course.inputs(),
        **whole.answers([y for _, y in batches]),
        input_normed=whole.input_normed,
        layers=layers,
        weights=weights,
        flat_norms={
            name: float((spread < FLAT).float().mean()) for name, spread in whole.spreads.items()
        },
        without_gradient=[
            name for name in parameters if name not in whole.of or not bool(whole.of[name].any())
        ],
    )


class _Course(Handle):
    """The same batches through the same network, again and again."""

    def __init__(
        self,
        network: Any,
        recipe: Recipe,
        batches: Sequence[Batch],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        super().__init__()
        self.network, self.recipe, self.batches, self.autocast = network, recipe, batches, autocast
        model = network.model
        self.potential = recipe.potential.build(model) if recipe.potential else None
        scaling = recipe.scaling.build(model) if recipe.scaling else None
        mask = mask_weight_gradients(model, recipe.weight_mask) if recipe.weight_mask else None
        self.undo += [part.remove for part in (self.potential, scaling, mask) if part is not None]

    def gradients(self, before: _Gradients | None = None) -> _Gradients:
        """Of the mean loss; before: the same of an earlier pass, to be compared with."""
        found = _Gradients(before)
        self.network.zero_grad(set_to_none=True)
        with found.looking(self.network.model):
            for i, (x, y) in enumerate(self.batches):
                torch.manual_seed(_SEED + i)
                found.call = 0
                o, logits, loss = self._loss(x, y)
                found.batch = i
                (loss / len(self.batches)).backward()
                found.outputs.append((o.detach(), logits.detach(), float(loss.detach())))
        found.of = {
            n: p.grad.detach().clone()
            for n, p in self.network.model.named_parameters()
            if p.grad is not None
        }
        return found

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self.autocast():
            o = self.network.model(x).float()
        logits = self.network.readout(o)
        loss = self.recipe.loss.value(o, logits, y)
        return o, logits, loss if self.potential is None else loss + self.potential.loss()

    def steps(self, optimizer: torch.optim.Optimizer, count: int) -> dict[str, float]:
        """How far steps at the full learning rate go, relative to the weights as they are: the median of each tensor."""
        for group in optimizer.param_groups:
            group["lr"] = self.recipe.optimizer.lr * group.get("lr_scale", 1.0)
        weights = {
            name: p
            for name, p in self.network.model.named_parameters()
            if p.requires_grad and p.dim() > 1
        }
        sizes = {name: float(p.detach().norm()) for name, p in weights.items()}
        ratios: dict[str, list[float]] = {name: [] for name in weights}
        for step in range(count):
            self.network.zero_grad(set_to_none=True)
            x, y = self.batches[step % len(self.batches)]
            self._loss(x, y)[2].backward()
            if self.recipe.clip:
                torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
            old = {name: p.detach().clone() for name, p in weights.items()}
            optimizer.step()
            for name, p in weights.items():
                change = float((p.detach() - old[name]).norm())
                size = sizes[name] or float(
                    old[name].norm()
                )  # what starts at 0 has a size after a step
                ratios[name].append(change / size if size > 0 else math.inf if change else 0.0)
        return {name: sorted(r)[len(r) // 2] for name, r in ratios.items() if r}

    def inputs(self) -> dict[str, Any]:
        x = [x.float() for x, _ in self.batches]
        first = x[0][:, :1]
        return {
            "samples": sum(b.shape[1] for b in x),
            "T": len(first),
            "input_rms": float(torch.stack([(b.double() ** 2).mean() for b in x]).mean().sqrt()),
            "input_constant": all(bool((b == first).all()) for b in x),
            "static": len(first) > 1
            and all(b.stride(0) == 0 or bool((b == b[:1]).all()) for b in x),
        }


class _Gradients:
    """What a pass over the batches shows."""

    def __init__(self, before: _Gradients | None = None) -> None:
        self.before = before
        self.tallies: dict[str, _Tally] = {}
        self.spreads: dict[str, Tensor] = {}  # [C] of each norm
        self.of: dict[str, Tensor] = {}  # of the learned tensors
        self.outputs: list[tuple[Tensor, Tensor, float]] = []
        self.batch = self.call = 0
        self.input_normed = False
        # of the currents: by batch, call and layer while a later pass may ask for them; sums of squares over T
        self.currents: dict[tuple[int, int, str], Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.differences: dict[str, Tensor] = {}

    @contextmanager
    def looking(self, model: nn.Module) -> Iterator[None]:
        layers = spiking_layers(model)
        with (
            Handle() as handle,
            observe(model, self._see) if self.before is None else nullcontext(),
        ):
            for name, m in model.named_modules():
                if isinstance(m, Recurrent):  # which computes its neuron without calling it
                    see = partial(self._current, f"{name}.neuron".lstrip("."))
                elif name in layers:
                    see = partial(self._current, name)
                elif self.before is None and isinstance(m, _BatchNorm):
                    see = partial(self._norm, name)
                else:
                    continue
                handle.undo.append(m.register_forward_pre_hook(see).remove)
            yield

    def _current(self, name: str, module: nn.Module, args: Any) -> None:
        x = args[0]
        if x.requires_grad:
            x.register_hook(partial(self._gradient, name, self.call))
            self.call += 1

    def _gradient(self, name: str, call: int, g: Tensor) -> None:
        place = self.batch, call, name
        if self.before is None:
            self.currents[place] = g.detach()
        else:
            self.differences[name] = self.differences.get(name, 0) + _squares(
                g.detach() - self.before.currents[place]
            )
        self.squares[name] = self.squares.get(name, 0) + _squares(g.detach())

    @torch.no_grad()
    def _norm(self, name: str, norm: Any, args: Any) -> None:
        x = args[0].detach().float()
        x = (
            x.flatten(0, 1) if x.dim() > 2 and x.shape[1] != norm.num_features else x
        )  # [T, B, C, ...] of TEBN
        var = x.transpose(0, 1).flatten(1).var(1, correction=0)
        weight = torch.ones_like(var) if norm.weight is None else norm.weight.detach().abs()
        if isinstance(norm, TDBN):
            weight = weight * norm.factor / norm.v_threshold
        spread = weight * (var / (var + norm.eps)).sqrt()
        known = self.spreads.get(name)
        self.spreads[name] = spread if known is None else torch.maximum(known, spread)

    @torch.no_grad()
    def _see(self, name: str, layer: LIF, out: Output) -> None:
        if not self.tallies:
            self.input_normed = bool(self.spreads)
        self.tallies.setdefault(name, _Tally()).add(layer, out)

    def energy(self, name: str) -> list[float]:
        squares = self.squares.get(name)
        return [math.nan] * self.tallies[name].T if squares is None else squares.tolist()

    def energies(self, name: str) -> list[tuple[float, float]]:
        """Of the earlier pass and of this one."""
        assert self.before is not None
        if name not in self.squares:
            return []
        return list(zip(self.before.energy(name), self.squares[name].tolist()))

    def relative(self, name: str) -> list[float]:
        """Norm of the difference to the earlier pass, relative to this one."""
        if name not in self.squares:
            return []
        pairs = zip(self.differences[name].tolist(), self.squares[name].tolist())
        return [math.sqrt(d / s) if s > 0 else math.inf if d > 0 else 0.0 for d, s in pairs]

    def answers(self, targets: list[Tensor]) -> dict[str, Any]:
        logits = torch.cat([logits for _, logits, _ in self.outputs]).double()
        y = torch.cat(targets)
        hard = y.argmax(-1) if y.dim() == 2 else y
        centred = logits - logits.mean(1, keepdim=True)
        scale = float((centred**2).mean().sqrt())
        spread = float(centred.std(0, correction=0).square().mean().sqrt())
        return {
            "loss": sum(loss for *_, loss in self.outputs) / len(self.outputs),
            "cross_entropy": float(F.cross_entropy(logits, y if y.dim() == 1 else y.double())),
            "accuracy": float((logits.argmax(-1) == hard).double().mean()),
            "classes": logits.shape[1],
            "labels": len(hard.unique()),
            "logit_scale": scale,
            "logit_spread": spread / scale if scale > 0 else 0.0,
        }


class _Tally:
    """Sums of one layer over the batches."""

    def __init__(self) -> None:
        self.T = self.samples = self.elements = self.calls = 0
        self.spikes: Any = 0.0
        self.support: Any = 0.0
        self.channels: Any = 0.0
        self.potentials: list[Tensor] = []
        self.distances: list[Tensor] = []

    def add(self, layer: LIF, out: Output) -> None:
        s, u = out.spikes, out.membrane
        assert s is not None
        assert u is not None
        s = s.detach()
        self.T, self.calls = len(s), self.calls + 1
        self.samples += s.shape[1]
        self.elements += s[0].numel()
        self.spikes = self.spikes + s.sum(list(range(1, s.dim())), dtype=torch.float64).cpu()
        support = []
        for z in distances(layer, out):
            support.append(in_support(layer, z).sum(dtype=torch.float64).cpu())
            self.distances.append(_some(z[0]).abs())
        self.support = self.support + torch.stack(support)
        self.potentials += [_some(u_t) for u_t in u.detach()]
        over = [d for d in range(s.dim()) if d != 2]
        self.channels = (
            self.channels
            + (s if s.dim() > 2 else s[:, :, None]).mean(over, dtype=torch.float64).cpu()
        )

    def layer(
        self,
        batches: int,
        energy: list[float],
        reset: list[float] | None,
        mask_left: list[float] | None,
    ) -> Layer:
        rates = self.channels / self.calls
        u, z = torch.cat(self.potentials), torch.cat(self.distances)
        return Layer(
            firing_rate=(self.spikes / self.elements).tolist(),
            support_share=(self.support / self.elements).tolist(),
            gradient=[math.sqrt(e) if e == e else math.nan for e in energy],
            reset_ratio=reset,
            mask_left=mask_left,
            dead=float((rates == 0).double().mean()),
            saturated=float((rates >= ALWAYS).double().mean()),
            spikes_per_sample=float(self.spikes.sum() / self.samples),
            potential=_quantiles(u),
            distance=_quantiles(z),
        )


def _some(x: Tensor) -> Tensor:
    """Elements of one timestep `[B, ...]`, out of as many samples as it takes."""
    samples = min(len(x), -(-_DRAWN // x[0].numel()))
    flat = x.detach()[:: len(x) // samples].flatten().float()
    return flat[:: -(-len(flat) // _DRAWN)].cpu()


def _quantiles(x: Tensor) -> dict[str, float]:
    x = x.nan_to_num()[:: -(-len(x) // (1 << 22))]
    return {
        f"{q}": float(v) for q, v in zip(_QUANTILES, torch.quantile(x, torch.tensor(_QUANTILES)))
    }


def _squares(g: Tensor) -> Tensor:
    """The sum of squares at every timestep, `[T]`."""
    return torch.linalg.vector_norm(g.float(), dim=list(range(1, g.dim()))).double().square().cpu()


def _cosine(a: Tensor | None, b: Tensor | None) -> float | None:
    if a is None or b is None:
        return None
    size = float(a.double().norm() * b.double().norm())
    return float((a.double() * b.double()).sum()) / size if size > 0 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value
