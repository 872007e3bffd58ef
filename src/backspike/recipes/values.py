"""The values that a recipe holds: neurons, norms, readouts, losses, methods and optimizers, each of which builds its part.

Every dataclass in this file may be named by the text of a recipe. Importing it imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .. import options

if TYPE_CHECKING:
    from torch import Tensor, nn, optim


@dataclass(frozen=True)
class Neuron(options.LIF):
    """The spiking neuron of every layer: the arguments of `bs.LIF`. Called with `channels=`, it builds the layer.

    Other neurons are subclasses of the name that they have in `bs`.
    """

    def __call__(self, channels: int | None = None) -> nn.Module:
        return self.layer()(**vars(self), channels=channels)

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.lif import LIF

        return LIF


@dataclass(frozen=True)
class PLIF(Neuron):
    """`bs.PLIF`: tau learns."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.lif import PLIF

        return PLIF


@dataclass(frozen=True)
class CubaLIF(options.CubaLIF, Neuron):
    """`bs.CubaLIF`: a synapse filters the current."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.cuba import CubaLIF

        return CubaLIF


@dataclass(frozen=True)
class CLIF(options.CLIF, Neuron):
    """`bs.CLIF`, with the defaults of its paper; its reset is its own, so v_reset stays None."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..neuron.clif import CLIF

        return CLIF


@dataclass(frozen=True)
class MPBN(Neuron):
    """`bs.MPBN`: BatchNorm of the membrane before it fires."""

    @staticmethod
    def layer() -> Callable[..., nn.Module]:
        from ..layers.mpbn import MPBN

        return MPBN


@runtime_checkable
class Norm(Protocol):
    """What makes the norms of a network: a function `norm(channels, branches=1)`, for T timesteps and a threshold."""

    def layers(self, T: int, v_threshold: float) -> Callable[..., nn.Module]: ...


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
    """What builds the module that turns the outputs over time `[T, B, K]` into logits `[B, K]`."""

    def build(self, T: int) -> nn.Module: ...


@dataclass(frozen=True)
class Mean(Readout):
    """Mean over time."""

    def build(self, T: int) -> nn.Module:
        from .. import readout

        return readout.Mean()


@dataclass(frozen=True)
class Last(Readout):
    """The last timestep."""

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
    """What computes the loss from the outputs over time `[T, B, K]`, the logits `[B, K]` and the targets."""

    def value(self, o: Tensor, logits: Tensor, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """One cross-entropy on the readout's logits."""

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)

    def value(self, o: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        from torch.nn import functional as F

        return F.cross_entropy(logits, y, **vars(self))


@dataclass(frozen=True)
class TET(Loss):
    """The loss of every timestep, averaged, see `bs.loss.tet`; the readout only answers."""

    lam: float = 0.05
    phi: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.label_smoothing)

    def value(self, o: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        from .. import loss

        return loss.tet(o, y, **vars(self))


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
    @property
    def lr(self) -> float: ...

    def build(self, groups: Any) -> optim.Optimizer: ...


@dataclass(frozen=True)
class AdamW(Optimizer):
    lr: float = 1e-3
    weight_decay: float = 0.0

    def build(self, groups: Any) -> optim.Optimizer:
        from torch import optim

        return optim.AdamW(groups, **vars(self), fused=True)


@dataclass(frozen=True)
class SGD(Optimizer):
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False

    def build(self, groups: Any) -> optim.Optimizer:
        from torch import optim

        return optim.SGD(groups, **vars(self), fused=True)
