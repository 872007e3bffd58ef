"""The values in a recipe: neurons, norms, readouts, losses, methods and optimizers.

Each builds its part. The text of a recipe may name every dataclass in this file. Importing it does
not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from .. import options
from ..errors import option
from ..options.distribution import Distribution

if TYPE_CHECKING:
    from torch import Tensor, nn, optim


@dataclass(frozen=True)
class Neuron(options.LIF):
    """The arguments of `bs.LIF` for every spiking layer. Calling it with `channels=` builds one.

    Other kinds of neurons are subclasses with the same names as in `bs`. per=None learns one value
    per layer, or per channel where values are drawn.
    """

    unsaid: ClassVar[str | None] = "layer"  # what per=None means

    def __call__(self, channels: int | None = None) -> nn.Module:
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        if "per" in own:
            drawn = any(isinstance(value, Distribution) for value in own.values())
            own["per"] = self.per or (None if drawn else self.unsaid)
        return self.layer()(**own, channels=channels)

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        """The class of the layer."""
        from ..neuron.lif import LIF

        return LIF


@dataclass(frozen=True)
class PLIF(options.PLIF, Neuron):
    """`bs.PLIF`: tau is learned."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.lif import PLIF

        return PLIF


@dataclass(frozen=True)
class CubaLIF(options.CubaLIF, Neuron):
    """`bs.CubaLIF`: a synapse filters the input current."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.cuba import CubaLIF

        return CubaLIF


@dataclass(frozen=True)
class CLIF(options.CLIF, Neuron):
    """`bs.CLIF` with its paper's defaults; it has its own reset, so v_reset must be None."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.clif import CLIF

        return CLIF


@dataclass(frozen=True)
class AdaptiveLIF(options.AdaptiveLIF, Neuron):
    """`bs.AdaptiveLIF`: an adaptation current, driven by the membrane and the spikes.

    per=None learns one value per channel.
    """

    unsaid: ClassVar[str | None] = None

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.adaptive import AdaptiveLIF

        return AdaptiveLIF


@dataclass(frozen=True)
class QIF(options.QIF, Neuron):
    """`bs.QIF`: quadratic integrate-and-fire."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.biological import QIF

        return QIF


@dataclass(frozen=True)
class EIF(options.EIF, Neuron):
    """`bs.EIF`: exponential integrate-and-fire."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.biological import EIF

        return EIF


@dataclass(frozen=True)
class AdEx(options.AdEx, Neuron):
    """`bs.AdEx`: adaptive exponential integrate-and-fire."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.biological import AdEx

        return AdEx


@dataclass(frozen=True)
class Izhikevich(options.Izhikevich, Neuron):
    """`bs.Izhikevich`: the two equations of Izhikevich 2003."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.biological import Izhikevich

        return Izhikevich


@dataclass(frozen=True)
class BRF(options.BRF, Neuron):
    """`bs.BRF`: balanced resonate-and-fire."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.biological import BRF

        return BRF


@dataclass(frozen=True)
class RefractoryLIF(options.RefractoryLIF, Neuron):
    """`bs.RefractoryLIF`: absolute and relative refractory periods."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.refractory import RefractoryLIF

        return RefractoryLIF


@dataclass(frozen=True)
class RefractoryCubaLIF(options.RefractoryCubaLIF, Neuron):
    """`bs.RefractoryCubaLIF`: the same behind a first-order synapse."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.refractory import RefractoryCubaLIF

        return RefractoryCubaLIF


@dataclass(frozen=True)
class MPBN(options.MPBN, Neuron):
    """`bs.MPBN`: BatchNorm of the membrane potential before the threshold."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..layers.mpbn import MPBN

        return MPBN


@runtime_checkable
class Norm(Protocol):
    """The kind of normalisation in a network."""

    def layers(self, T: int, v_threshold: float) -> Callable[..., nn.Module]:
        """A function `norm(channels, branches=1)` that builds one layer."""
        ...


@dataclass(frozen=True)
class TDBN(Norm):
    """Threshold-dependent BatchNorm, see `bs.TDBN`."""

    def layers(self, T: int, v_threshold: float) -> Callable[..., nn.Module]:
        from ..layers import norm

        return partial(norm.TDBN, v_threshold=v_threshold)


@dataclass(frozen=True)
class TEBN(Norm):
    """Temporal effective BatchNorm, see `bs.TEBN`."""

    def layers(self, T: int, v_threshold: float) -> Callable[..., nn.Module]:
        from ..layers import norm

        return lambda channels, branches=1: norm.TEBN(channels, T)


@runtime_checkable
class Readout(Protocol):
    """How the outputs over time become logits."""

    def build(self, T: int) -> nn.Module:
        """A module from outputs `[T, B, K]` to logits `[B, K]`."""
        ...


@dataclass(frozen=True)
class Mean(Readout):
    """Mean over time."""

    def build(self, T: int) -> nn.Module:
        from .. import readout

        return readout.Mean()


@dataclass(frozen=True)
class Last(Readout):
    """The output of the last timestep."""

    def build(self, T: int) -> nn.Module:
        from .. import readout

        return readout.Last()


@dataclass(frozen=True)
class TWO(Readout):
    """Temporally weighted output, see `bs.readout.TWO`."""

    beta: float = 0.7
    start_epoch: int = 5
    cumulative: bool = False

    def build(self, T: int) -> nn.Module:
        from .. import readout

        return readout.TWO(T, **vars(self))


def _check_smoothing(label_smoothing: float) -> None:
    if not (isinstance(label_smoothing, int | float) and 0 <= label_smoothing < 1):
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing!r}")


@runtime_checkable
class Loss(Protocol):
    """The training loss."""

    def value(self, o: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """From outputs over time `[T, B, K]`, logits `[B, K]` and targets `[B]` or `[B, K]`.

        A loss that can be used with the recipe's `class_weights` also takes
        `weight: tuple[float, ...]`.
        """
        ...


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross-entropy of the readout's logits."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)

    def value(self, o: Tensor, logits: Tensor, y: Tensor, weight: tuple[float, ...] = ()) -> Tensor:
        from .. import loss

        return loss.of_logits(logits, y, self.label_smoothing, weight)


@dataclass(frozen=True)
class TET(Loss):
    """Mean of the losses of all timesteps, see `bs.loss.tet`; the readout only predicts."""

    lam: float = 0.05
    phi: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)

    def value(self, o: Tensor, logits: Tensor, y: Tensor, weight: tuple[float, ...] = ()) -> Tensor:
        from .. import loss

        return loss.tet(o, y, **vars(self), weight=weight)


@dataclass(frozen=True)
class PDA:
    """Potential distribution adjustment, see `bs.PotentialAdjustment`."""

    strength: float = 1e-2
    target: str = "spikes"
    form: str = "moments"
    per_channel: bool = False
    window: float = 1.0
    warmup: int = 0
    eps: float = 1e-2
    layers: tuple[str, ...] | None = None

    def build(self, model: nn.Module) -> Any:
        from ..methods.pda import PotentialAdjustment

        return PotentialAdjustment(model, **vars(self))


@dataclass(frozen=True)
class SGS:
    """Spike-dependent gradient scaling, see `bs.scale_gradients`."""

    alpha: float = 0.5
    pair: str = "pre_post"
    normalise: str = "layer"
    mean_preserving: bool = False
    pool_pre: bool = False

    def build(self, model: nn.Module) -> Any:
        from ..methods.sgs import scale_gradients

        return scale_gradients(model, **vars(self))


@runtime_checkable
class Optimizer(Protocol):
    """The optimizer and its options."""

    @property
    def lr(self) -> float:
        """The learning rate after warm-up."""
        ...

    def groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The parameter groups, divided where the optimizer treats layers differently."""
        return groups

    def build(self, groups: Any) -> optim.Optimizer:
        """The torch optimizer for these parameter groups."""
        ...


@dataclass(frozen=True)
class AdamW(Optimizer):
    """`torch.optim.AdamW`, fused."""

    lr: float = 1e-3
    weight_decay: float = 0.0

    def build(self, groups: Any) -> optim.Optimizer:
        from torch import optim

        return optim.AdamW(groups, **vars(self), fused=True)


@dataclass(frozen=True)
class SGD(Optimizer):
    """`torch.optim.SGD`, fused."""

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def build(self, groups: Any) -> optim.Optimizer:
        from torch import optim

        return optim.SGD(groups, **vars(self), fused=True)


@dataclass(frozen=True)
class Muon(Optimizer):
    """Muon for the weights of all linear and convolutional layers but the last, SGD for the rest.

    Jordan et al. 2024; docs/methods.md, section 21. A step changes a weight of no more rows than
    columns by a matrix whose singular values are all about lr, whatever the size of its gradient.

    momentum, weight_decay: of Muon. sgd_scale: the learning rate of SGD as a multiple of lr; its
    momentum is 0.9.
    """

    lr: float = 0.05
    momentum: float = 0.6
    weight_decay: float = 0.0
    sgd_scale: float = 2.0

    def groups(self, model: nn.Module, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from ..methods import muon

        if not 0 < self.sgd_scale < math.inf:
            raise ValueError(f"Muon: sgd_scale must be positive, got {self.sgd_scale}")
        return muon.split(model, groups, self.sgd_scale)

    def build(self, groups: Any) -> optim.Optimizer:
        from ..methods import muon

        return muon.Muon(groups, self.lr, self.momentum, self.weight_decay)


@runtime_checkable
class Schedule(Protocol):
    """A learning-rate scheduler of torch, by its name there. It counts epochs unless it says so."""

    def build(self, optimizer: optim.Optimizer, steps: int) -> Any:
        """The torch scheduler of this optimizer. steps: of the whole training."""
        ...


@dataclass(frozen=True)
class StepLR(Schedule):
    """`torch.optim.lr_scheduler.StepLR`: times gamma after every `step_size` epochs."""

    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not self.step_size >= 1:
            raise ValueError(f"step_size must be at least 1 epoch, got {self.step_size!r}")

    def build(self, optimizer: optim.Optimizer, steps: int) -> Any:
        from torch.optim import lr_scheduler

        return lr_scheduler.StepLR(optimizer, **vars(self))


@dataclass(frozen=True)
class MultiStepLR(Schedule):
    """`torch.optim.lr_scheduler.MultiStepLR`: times gamma after each of these epochs."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def build(self, optimizer: optim.Optimizer, steps: int) -> Any:
        from torch.optim import lr_scheduler

        return lr_scheduler.MultiStepLR(optimizer, **vars(self))


@dataclass(frozen=True)
class OneCycleLR(Schedule):
    """`torch.optim.lr_scheduler.OneCycleLR`: up to the optimizer's lr and down, step by step."""

    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    cycle_momentum: bool = True
    div_factor: float = 25.0
    final_div_factor: float = 1e4

    def build(self, optimizer: optim.Optimizer, steps: int) -> Any:
        from torch.optim import lr_scheduler

        groups = optimizer.param_groups
        if self.cycle_momentum and len({group.get("momentum") for group in groups}) > 1:
            raise ValueError(
                "OneCycleLR would give all parts of the optimizer the same momentum; "
                f"set {option('schedule.cycle_momentum', False)}"
            )
        peaks = [float(group["lr"]) for group in groups]
        return lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=steps, **vars(self))


@dataclass(frozen=True)
class ReduceLROnPlateau(Schedule):
    """`torch.optim.lr_scheduler.ReduceLROnPlateau`: times `factor` after more than `patience`
    epochs without a lower loss: of the validation set, or else of the training."""

    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4

    def build(self, optimizer: optim.Optimizer, steps: int) -> Any:
        from torch.optim import lr_scheduler

        return lr_scheduler.ReduceLROnPlateau(optimizer, **vars(self))
