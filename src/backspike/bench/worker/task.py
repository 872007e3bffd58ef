"""The workload and the settings that are sent to a worker as JSON."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Workload:
    """A network or a single neuron layer, its sizes and input; `seed` sets weights and data."""

    name: str
    kind: str  # neuron, fc, vgg, resnet, recurrent, stream
    T: int
    B: int
    # layer widths, "P" for a pool; resnet: widths of the four stages; neuron: empty, B neurons
    layout: tuple[int | str, ...] = ()
    size: int = 0  # height and width of the input `[T, B, 3, size, size]`; 0: vectors
    static: bool = False  # the input is the same at every timestep
    share: float = 0.0  # of the inputs that are 1, the others being 0; 0: uniform in [0, 1)
    spikes: float = 0.0  # firing rate that `shifts` should produce; 0: as it is
    # share of nonzero surrogate derivatives that `widths` should produce; 0: ATan, always nonzero
    window: float = 0.0
    shifts: tuple[float, ...] = ()  # added to the input currents of each hidden layer
    widths: tuple[float, ...] = ()  # width of each hidden layer's rectangular surrogate
    classes: int = 10
    channels: int = 3  # input channels, if size > 0
    stem: str = "cifar"  # resnet: "imagenet" for a 7x7 convolution of stride 2 and a pool
    seed: int = 0

    @classmethod
    def read(cls, fields: dict[str, object]) -> Workload:
        """A workload from JSON, where tuples are lists."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        return cls(**values)

    def small(self) -> Workload:
        """The workload with a few thousand neurons, for the comparison with float64 and tests."""
        if self.kind == "neuron":
            return replace(self, B=min(self.B, 4099))
        layout = tuple(max(n // 16, 10) if isinstance(n, int) else n for n in self.layout)
        layout = (*layout[:-1], self.layout[-1]) if self.kind == "fc" else layout
        # with BatchNorm the currents do not depend on the width
        hidden, stream = len(self.layout) - 2 if self.kind == "fc" else 0, self.kind == "stream"
        # the imagenet stem reduces the image to a sixteenth of its pixels
        size = min(self.size, 64 if self.stem == "imagenet" else 16)
        return replace(
            self,
            T=min(self.T, 6),
            B=min(self.B, 4),
            layout=layout,
            size=size,
            # without them few neurons would spike
            shifts=(1.25,) * len(self.shifts) if stream else (1.0,) * hidden or self.shifts,
            widths=(0.5,) * hidden if self.window else (),
        )


@dataclass(frozen=True)
class Settings:
    """How a library is run.

    heap: what glibc does with freed memory: "kept", "lean" (returned at once), or "" (its default).
    backend: of bs.LIF, or of SpikingJelly's neurons. memory: of bs.LIF. part: for the library
    "limits", "copy" or "products". Ours only: streaming: use `bs.streaming` instead of
    `bs.stream`. graph: record the iteration as a CUDA graph. fast: 3x3 convolutions with less
    arithmetic, see `bs.set_convolution`.
    """

    library: str
    bfloat16: bool = False
    channels_last: bool = False
    heap: str = ""
    backend: str = "auto"
    memory: str = "exact"
    part: str = ""
    device: str = "cpu"
    graph: bool = False
    streaming: bool = False
    fast: bool = False


@dataclass(frozen=True)
class Neuron:
    """The differences between the libraries' neurons: lam = 1/2, threshold 1, hard reset to 0.

    u[t] = v[t-1] / 2 + gain x[t]. detached: no gradient flows through the reset. surrogate: its
    name in `gate.py`. width: of the rectangle.
    """

    gain: float = 0.5
    detached: bool = False
    surrogate: str = "atan"
    width: float = 1.0
