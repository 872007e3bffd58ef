"""What a worker is told, as values that travel as JSON: the workload, and how the implementation is to be run."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Workload:
    """A network (or a neuron layer alone), its sizes and its input; weights and data come from `seed`."""

    name: str
    kind: str  # neuron, fc, vgg, resnet
    T: int
    B: int
    layout: tuple[
        int | str, ...
    ] = ()  # widths, P a pool; resnet: widths of the four stages; neuron: none, B neurons
    size: int = 0  # height and width of the input `[T, B, 3, size, size]`; 0: vectors
    static: bool = False  # the input is the same at every timestep
    spikes: float = 0.0  # share of spikes that `shifts` are to give; 0: left as it is
    window: float = 0.0  # share of entries with a surrogate derivative that is not zero; 0: ATan, which is zero nowhere
    shifts: tuple[float, ...] = ()  # added to the currents of each hidden layer
    widths: tuple[float, ...] = ()  # of the rectangular surrogate of each hidden layer
    classes: int = 10
    channels: int = 3  # of the input, where it has a size
    stem: str = "cifar"  # resnet: "imagenet" for a 7x7 convolution of stride 2 and a pool
    seed: int = 0

    @classmethod
    def read(cls, fields: dict[str, object]) -> Workload:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})  # type: ignore[arg-type]

    def small(self) -> Workload:
        """The same in a few thousand neurons, for the comparison with float64 and for tests."""
        if self.kind == "neuron":
            return replace(self, B=min(self.B, 4099))
        layout = tuple(max(n // 16, 10) if isinstance(n, int) else n for n in self.layout)
        layout = (*layout[:-1], self.layout[-1]) if self.kind == "fc" else layout
        hidden = (
            len(self.layout) - 2 if self.kind == "fc" else 0
        )  # elsewhere BatchNorm gives any width the same currents
        return replace(
            self,
            T=min(self.T, 6),
            B=min(self.B, 4),
            layout=layout,
            size=min(
                self.size, 64 if self.stem == "imagenet" else 16
            ),  # that stem leaves a sixteenth of the pixels
            shifts=(1.0,) * hidden or self.shifts,  # without them few neurons would fire
            widths=(0.5,) * hidden if self.window else (),
        )


@dataclass(frozen=True)
class Settings:
    """How a library is run. heap: what glibc does with freed memory: "kept", "lean" (given back at once), or ""."""

    library: str
    bfloat16: bool = False
    channels_last: bool = False
    heap: str = ""
    backend: str = "auto"  # of bs.LIF, or of SpikingJelly's neurons
    memory: str = "exact"  # ours: of bs.LIF
    part: str = ""  # limits: "copy" or "products"
    device: str = "cpu"
    graph: bool = False  # ours: the iteration is recorded as a CUDA graph


@dataclass(frozen=True)
class Neuron:
    """The neuron that a library has, with lam = 1/2, threshold 1 and a hard reset to 0, as far as libraries differ.

    u[t] = v[t-1] / 2 + gain x[t]. detached: no gradient flows through the reset. surrogate: its name in `gate.py`.
    """

    gain: float = 0.5
    detached: bool = False
    surrogate: str = "atan"
    width: float = 1.0
