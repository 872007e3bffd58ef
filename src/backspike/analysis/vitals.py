"""Measures a network while it learns on a few batches: spikes, potentials, gradients, step sizes.

`take` works on a copy of network and optimizer. It changes nothing of a training except the random
generators, which the caller has to restore. The effects of the mask and of the gradient through
the reset are found by computing the same gradient again without each of them.
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
from .tally import Layer, Tally

Batch = tuple[Tensor, Tensor]
# a norm's channel is flat if the standard deviation of its output is below this; norms aim at 1
FLAT = 0.1
# seeds every pass, so that all passes drop the same elements
_SEED = 1


@dataclass(frozen=True)
class Weight:
    """A weight tensor with at least two dimensions."""

    norm: float
    # norm of the mean gradient of the batches; nan if no gradient arrives
    gradient: float
    # norm of the change by a step at the recipe's full learning rate, relative to the weight's norm
    update_ratio: float
    # cosine similarity of the gradients with and without the mask
    mask_alignment: float | None


@dataclass(frozen=True)
class Vitals:
    """The result of `take`."""

    samples: int
    T: int
    loss: float
    # of the readout's logits
    cross_entropy: float
    accuracy: float
    # number of outputs
    classes: int
    # number of different labels among the samples
    labels: int
    # root mean square of the input
    input_rms: float
    # all samples are the same
    input_constant: bool
    # there is a norm before the first spiking layer
    input_normed: bool
    # samples are the same at every timestep
    static: bool
    # root mean square of a sample's logits around their mean
    logit_scale: float
    # standard deviation of a logit over the samples, relative to logit_scale
    logit_spread: float
    # in the order in which they run
    layers: dict[str, Layer] = field(repr=False)
    weights: dict[str, Weight] = field(repr=False)
    # share of a norm's channels with almost constant output
    flat_norms: dict[str, float]
    # trainable tensors that no gradient reaches
    without_gradient: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a log, rounded to five significant digits."""
        return _rounded(asdict(self))


def take(
    network: Any,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    recipe: Recipe,
    autocast: Callable[[], AbstractContextManager[Any]],
    steps: int = 1,
) -> Vitals:
    """Measures a `train.Network` and its optimizer on batches as `recipe` trains it.

    Args:
        network: a `train.Network`; it is copied.
        optimizer: its optimizer; it is copied.
        batches: pairs (x `[T, B, ...]`, y `[B]` or `[B, K]`).
        recipe: how the network is trained.
        autocast: makes the context in which forward passes run.
        steps: optimizer steps; step sizes are the median over them. A new optimizer needs several
            until its running averages are filled.
    """
    network, optimizer = copy.deepcopy((network, optimizer))
    network.train()
    parameters = {name: p for name, p in network.model.named_parameters() if p.requires_grad}
    # before the steps below, which change the weights
    norms = {name: float(p.detach().norm()) for name, p in parameters.items() if p.dim() > 1}
    training = _Training(network, recipe, batches, autocast)
    whole = training.gradients()
    spiking = spiking_layers(network.model)
    with _unmasked(spiking) as masked:
        unmasked = training.gradients(whole) if masked else None
    with _detached_resets(spiking) as attached:
        several = attached and len(batches[0][0]) > 1
        without_reset = training.gradients(whole) if several else None
    ratios = training.step_sizes(optimizer, steps)
    training.remove()
    layers = {}
    for name, tally in whole.tallies.items():
        reset = without_reset and without_reset.relative(name)
        left = unmasked and [
            math.sqrt(a / b) if b > 0 else math.nan for a, b in unmasked.energies(name)
        ]
        layers[name] = tally.layer(len(batches), whole.energy(name), reset or None, left or None)
    weights = {
        name: _weight(name, norm, whole, unmasked, ratios.get(name, math.nan))
        for name, norm in norms.items()
    }
    return Vitals(
        **training.inputs(),
        **whole.answers([y for _, y in batches]),
        input_normed=whole.input_normed,
        layers=layers,
        weights=weights,
        flat_norms={
            name: float((spread < FLAT).float().mean()) for name, spread in whole.spreads.items()
        },
        without_gradient=[
            name
            for name in parameters
            if name not in whole.parameters or not bool(whole.parameters[name].any())
        ],
    )


@contextmanager
def _unmasked(spiking: dict[str, LIF]) -> Iterator[bool]:
    """Sets the masks' probabilities to 0 inside; yields whether any layer has a mask."""
    masks = [
        layer.mask_p
        for layer in spiking.values()
        if isinstance(layer.surrogate, Masked) and layer.mask_p is not None
    ]
    before = [p.clone() for p in masks]
    for p in masks:
        p.zero_()
    try:
        yield bool(masks)
    finally:
        for p, value in zip(masks, before):
            p.copy_(value)


@contextmanager
def _detached_resets(spiking: dict[str, LIF]) -> Iterator[bool]:
    """Detaches all resets inside; yields whether any was attached."""
    before = {name: layer.options for name, layer in spiking.items()}
    for layer in spiking.values():
        layer.options = replace(layer.options, reset_gradient=0.0)
    try:
        yield any(options.reset_gradient > 0 for options in before.values())
    finally:
        for name, options in before.items():
            spiking[name].options = options


def _weight(
    name: str, norm: float, whole: _Gradients, unmasked: _Gradients | None, ratio: float
) -> Weight:
    gradient = whole.parameters.get(name)
    return Weight(
        norm=norm,
        gradient=math.nan if gradient is None else float(gradient.norm()),
        update_ratio=ratio,
        mask_alignment=_cosine(gradient, unmasked.parameters.get(name)) if unmasked else None,
    )


class _Training(Handle):
    """Repeated passes of the same batches through the same network."""

    def __init__(
        self,
        network: Any,
        recipe: Recipe,
        batches: Sequence[Batch],
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.batches = batches
        self.autocast = autocast
        model = network.model
        self.potential = recipe.potential.build(model) if recipe.potential else None
        scaling = recipe.scaling.build(model) if recipe.scaling else None
        mask = mask_weight_gradients(model, recipe.weight_mask) if recipe.weight_mask else None
        self.undo += [part.remove for part in (self.potential, scaling, mask) if part is not None]

    def gradients(self, before: _Gradients | None = None) -> _Gradients:
        """Gradients of the mean loss. before: those of an earlier pass, to compare with."""
        measured = _Gradients(before)
        self.network.zero_grad(set_to_none=True)
        with measured.watching(self.network.model):
            for i, (x, y) in enumerate(self.batches):
                torch.manual_seed(_SEED + i)
                measured.call = 0
                o, logits, loss = self._loss(x, y)
                measured.batch = i
                (loss / len(self.batches)).backward()
                measured.outputs.append((o.detach(), logits.detach(), float(loss.detach())))
        measured.parameters = {
            name: p.grad.detach().clone()
            for name, p in self.network.model.named_parameters()
            if p.grad is not None
        }
        return measured

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with self.autocast():
            o = self.network.model(x).float()
        logits = self.network.readout(o)
        loss = self.recipe.loss_value(o, logits, y)
        return o, logits, loss if self.potential is None else loss + self.potential.loss()

    def step_sizes(self, optimizer: torch.optim.Optimizer, count: int) -> dict[str, float]:
        """Takes steps at the full learning rate; returns each weight tensor's median change,
        relative to its norm before the first step."""
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
                # a tensor that starts at 0 has a size after the first step
                size = sizes[name] or float(old[name].norm())
                ratios[name].append(change / size if size > 0 else math.inf if change else 0.0)
        return {name: sorted(r)[len(r) // 2] for name, r in ratios.items() if r}

    def inputs(self) -> dict[str, Any]:
        """The fields of `Vitals` that describe the input."""
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
    """What one pass over all batches shows."""

    def __init__(self, before: _Gradients | None = None) -> None:
        self.before = before
        self.tallies: dict[str, Tally] = {}
        # [C] per norm: standard deviation of its output
        self.spreads: dict[str, Tensor] = {}
        # gradients of the trainable tensors
        self.parameters: dict[str, Tensor] = {}
        self.outputs: list[tuple[Tensor, Tensor, float]] = []
        self.batch = 0
        self.call = 0
        self.input_normed = False
        # gradients of the input currents by batch, call and layer, for a later pass to compare with
        self.currents: dict[tuple[int, int, str], Tensor] = {}
        # [T] per layer: sums of squares of these gradients, and of their differences to `before`
        self.squares: dict[str, Tensor] = {}
        self.differences: dict[str, Tensor] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        layers = spiking_layers(model)
        with (
            Handle() as handle,
            observe(model, self._see) if self.before is None else nullcontext(),
        ):
            for name, m in model.named_modules():
                # Recurrent computes its neuron without calling it
                if isinstance(m, Recurrent):
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
        key = self.batch, call, name
        if self.before is None:
            self.currents[key] = g.detach()
        else:
            self.differences[name] = self.differences.get(name, 0) + _squares(
                g.detach() - self.before.currents[key]
            )
        self.squares[name] = self.squares.get(name, 0) + _squares(g.detach())

    @torch.no_grad()
    def _norm(self, name: str, norm: Any, args: Any) -> None:
        x = args[0].detach().float()
        # TEBN gets [T, B, C, ...]
        x = x.flatten(0, 1) if x.dim() > 2 and x.shape[1] != norm.num_features else x
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
        self.tallies.setdefault(name, Tally()).add(layer, out)

    def energy(self, name: str) -> list[float]:
        """The sum of squares of the gradient per timestep; nan if no gradient arrives."""
        squares = self.squares.get(name)
        return [math.nan] * self.tallies[name].T if squares is None else squares.tolist()

    def energies(self, name: str) -> list[tuple[float, float]]:
        """`energy` of the earlier pass and of this one."""
        assert self.before is not None
        if name not in self.squares:
            return []
        return list(zip(self.before.energy(name), self.squares[name].tolist()))

    def relative(self, name: str) -> list[float]:
        """Norm of the difference from the earlier pass, relative to this one, per timestep."""
        if name not in self.squares:
            return []
        pairs = zip(self.differences[name].tolist(), self.squares[name].tolist())
        return [math.sqrt(d / s) if s > 0 else math.inf if d > 0 else 0.0 for d, s in pairs]

    def answers(self, targets: list[Tensor]) -> dict[str, Any]:
        """The fields of `Vitals` that describe the output."""
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
