"""The workloads, and the implementations and limits that are measured for each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from .worker.task import Settings, Workload

PRECISIONS = ("both", "float32", "bfloat16")
PEERS = {
    "spikingjelly": "SpikingJelly",
    "snntorch": "snnTorch",
    "norse": "Norse",
    "sinabs": "sinabs",
}

_FC = Workload("fc", "fc", T=16, B=128, layout=(784, 1024, 1024, 10), static=True, spikes=0.25)
_VGG = Workload("vgg", "vgg", T=4, B=32, layout=(64, 128, "P", 256, "P"), size=32)
_RESNET = Workload("resnet", "resnet", T=4, B=16, layout=(64, 128, 256, 512), size=32)
_RECURRENT = Workload(
    "recurrent",
    "recurrent",
    T=100,
    B=128,
    layout=(700, 128),
    share=0.02,
    shifts=(0.75,),
    classes=20,
)
# 1,000 timesteps, so that milliseconds are microseconds a timestep
_STREAM = Workload(
    "stream",
    "stream",
    T=1000,
    B=1,
    layout=(16, "P", 32, "P"),
    size=34,
    channels=2,
    share=0.05,
    spikes=0.05,
)
WORKLOADS = (
    Workload("neuron", "neuron", T=4, B=2**22),
    _FC,
    replace(_FC, name="fc-10%", spikes=0.1, window=0.1),
    _VGG,
    replace(_VGG, name="vgg-10%", spikes=0.1),
    replace(_VGG, name="vgg-20%", spikes=0.2),
    _RESNET,
    replace(_RESNET, name="resnet-10%", spikes=0.1),
    replace(_RESNET, name="resnet-20%", spikes=0.2),
    _RECURRENT,
    replace(_RECURRENT, name="recurrent-512", layout=(700, 512)),
    replace(_RECURRENT, name="recurrent-1024", layout=(700, 1024)),
    _STREAM,
    replace(_STREAM, name="stream-linear", layout=(784, 1024, 1024, 10), size=0),
)
# for a GPU: the first is limited by memory bandwidth, the others have the sizes used in training;
# the small images of resnet make kernel launches matter
GPU_WORKLOADS = (
    Workload("neuron-gpu", "neuron", T=4, B=2**26),
    replace(_RESNET, name="resnet-32px", B=64),
    Workload(
        "vggsnn",
        "vgg",
        T=10,
        B=64,
        layout=(64, 128, "P", 256, 256, "P", 512, 512, "P", 512, 512, "P"),
        size=48,
        channels=2,
    ),
    Workload(
        "resnet-224px",
        "resnet",
        T=4,
        B=64,
        layout=(64, 128, 256, 512),
        size=224,
        classes=1000,
        stem="imagenet",
    ),
)
NAMES = tuple(work.name for work in (*WORKLOADS, *GPU_WORKLOADS))
ABOUT = {
    "neuron": "a single LIF layer, forward and backward",
    "fc": "784-1024-1024-10, static input",
    "fc-10%": "784-1024-1024-10, static input, 10 % spikes and nonzero surrogate derivatives",
    "vgg": "64-128-P-256-P, BatchNorm, 32x32",
    "vgg-10%": "64-128-P-256-P, BatchNorm, 32x32, 10 % spikes",
    "vgg-20%": "64-128-P-256-P, BatchNorm, 32x32, 20 % spikes",
    "neuron-gpu": "a single LIF layer, forward and backward",
    "resnet-32px": "SEW-ResNet18, 3x3 stem without pool, 32x32",
    "vggsnn": "VGGSNN, 2 x 48 x 48",
    "resnet-224px": "SEW-ResNet18, 224x224, 1000 classes",
    "resnet": "SEW-ResNet18, 3x3 stem without pool, 32x32",
    "resnet-10%": "SEW-ResNet18, 3x3 stem without pool, 32x32, 10 % spikes",
    "resnet-20%": "SEW-ResNet18, 3x3 stem without pool, 32x32, 20 % spikes",
    "stream": "2x34x34, 16-P-32-P-10, timestep by timestep without gradients, 5 % of the input "
    "set and 5 % spikes",
    "stream-linear": "784-1024-1024-10, timestep by timestep without gradients, 5 % of the input "
    "set and 5 % spikes",
    "recurrent": "700-128-20, the hidden layer recurrent, 2 % of the input set",
    "recurrent-512": "700-512-20, the hidden layer recurrent, 2 % of the input set",
    "recurrent-1024": "700-1024-20, the hidden layer recurrent, 2 % of the input set",
}


@dataclass(frozen=True)
class Implementation:
    """One row of a table: a library and how it is run."""

    name: str
    settings: Settings

    @property
    def peer(self) -> bool:
        """Whether it is another library, which may need another Python."""
        return self.settings.library in PEERS

    @property
    def limit(self) -> bool:
        """Whether it measures the machine rather than an implementation."""
        return self.settings.library == "limits"


def workloads(names: str, quick: bool, device: str = "cpu") -> list[Workload]:
    """The workloads with these NAMES, separated by commas, or "all" for the device.

    quick: small sizes for tests. Raises ValueError for an unknown name.
    """
    everything = [work.name for work in (GPU_WORKLOADS if device == "cuda" else WORKLOADS)]
    wanted = everything if names == "all" else names.split(",")
    if unknown := [name for name in wanted if name not in NAMES]:
        raise ValueError(
            f"unknown workload {', '.join(map(repr, unknown))}; "
            f"choose from {', '.join(NAMES)} or all"
        )
    chosen = [w for w in (*WORKLOADS, *GPU_WORKLOADS) if w.name in wanted]
    return [_quick(w) for w in chosen] if quick else chosen


def _quick(work: Workload) -> Workload:
    """The workload with some ten thousand neurons; its densities are still calibrated."""
    if work.kind == "neuron":
        return replace(work, B=2**14)
    if work.kind == "stream":
        return replace(work, T=20)
    narrow = tuple(n // 8 if isinstance(n, int) and n > 10 else n for n in work.layout)
    return replace(work, B=8, layout=narrow, size=min(work.size // 2, 32))


def implementations(
    work: Workload,
    precision: str = "both",
    peers: Collection[str] = (),
    only: Sequence[str] = (),
    device: str = "cpu",
) -> list[Implementation]:
    """The implementations and limits for a workload.

    peers: the other libraries that are installed. only: keep implementations whose names contain
    one of these strings; limits always stay.
    """
    rows = [
        *_ours(work),
        *_plain(work),
        *(row for name in PEERS if name in peers for row in _peer(name, work)),
    ]
    if device != "cpu":
        rows = _on_gpu(work, rows, "spikingjelly" in peers)
    chosen = [
        r for r in rows if precision == "both" or r.settings.bfloat16 == (precision == "bfloat16")
    ]
    if only:
        chosen = [r for r in chosen if any(part.lower() in r.name.lower() for part in only)]
    chosen += _limits(work, precision)
    return [replace(row, settings=replace(row.settings, device=device)) for row in chosen]


def _on_gpu(work: Workload, rows: list[Implementation], peer: bool) -> list[Implementation]:
    """On a GPU: no heap settings; adds CUDA graphs and SpikingJelly's Triton kernels."""
    made = [row for row in rows if "heap" not in row.name]
    network = work.kind != "neuron"
    if network:
        recorded = Settings("ours", bfloat16=True, channels_last=work.size > 0, graph=True)
        made.append(Implementation("backspike, bf16, CUDA graph", recorded))
    if peer:
        triton = Settings("spikingjelly", backend="triton")
        made.append(Implementation("SpikingJelly, Triton", triton))
        if network:
            made.append(
                Implementation("SpikingJelly, bf16, Triton", replace(triton, bfloat16=True))
            )
    return made


def _ours(work: Workload) -> list[Implementation]:
    exact = Settings("ours", heap="kept")
    if work.kind == "stream":
        called = replace(exact, streaming=True)
        return [Implementation("backspike", exact), Implementation("backspike, streaming", called)]
    eight = replace(exact, memory="8bit")
    made = [
        Implementation("backspike", exact),
        Implementation("backspike, heap not kept", replace(exact, heap="")),
        Implementation("backspike, 8 bit", eight),
        Implementation("backspike, 8 bit, lean heap", replace(eight, heap="lean")),
        Implementation("backspike, eager", replace(exact, backend="eager")),
    ]
    if work.kind == "neuron":
        return [
            *made,
            Implementation(
                "backspike, recompute, lean heap", replace(exact, memory="recompute", heap="lean")
            ),
        ]
    bfloat16 = replace(exact, bfloat16=True, channels_last=work.size > 0)
    checkpoint = replace(bfloat16, memory="checkpoint")
    if work.size:
        fast = replace(exact, channels_last=True, fast=True)
        made += [
            Implementation("backspike, fast convolutions", fast),
            Implementation("backspike, bf16, fast convolutions", replace(fast, bfloat16=True)),
        ]
    return [
        *made,
        Implementation("backspike, bf16", bfloat16),
        Implementation("backspike, bf16, heap not kept", replace(bfloat16, heap="")),
        Implementation("backspike, bf16, 8 bit", replace(bfloat16, memory="8bit")),
        Implementation("backspike, bf16, checkpoint", checkpoint),
        Implementation(
            "backspike, bf16, 8 bit, lean heap", replace(bfloat16, memory="8bit", heap="lean")
        ),
        Implementation("backspike, bf16, checkpoint, lean heap", replace(checkpoint, heap="lean")),
    ]


def _plain(work: Workload) -> list[Implementation]:
    made = [Implementation("plain loop", Settings("plain"))]
    if work.kind in ("neuron", "stream"):
        return made
    return [*made, Implementation("plain loop, bf16", Settings("plain", bfloat16=True))]


def _peer(library: str, work: Workload) -> list[Implementation]:
    name = PEERS[library]
    made = [Implementation(name, Settings(library))]
    if library != "spikingjelly" or work.kind == "stream":
        return made
    if work.kind == "neuron":
        return [*made, Implementation(f"{name}, heap kept", Settings(library, heap="kept"))]
    bfloat16 = Settings(library, bfloat16=True)
    return [
        *made,
        Implementation(f"{name}, bf16", bfloat16),
        Implementation(f"{name}, bf16, heap kept", replace(bfloat16, heap="kept")),
        Implementation(f"{name}, bf16, lean heap", replace(bfloat16, heap="lean")),
    ]


def _limits(work: Workload, precision: str) -> list[Implementation]:
    made = [Implementation("copy", Settings("limits", part="copy", heap="kept"))]
    if work.kind == "neuron":
        return made
    products = Settings("limits", part="products", heap="kept")
    if precision != "bfloat16":
        made.append(Implementation("products, fp32", products))
        if work.size and work.kind != "stream":
            made.append(
                Implementation(
                    "products, fp32, channels-last", replace(products, channels_last=True)
                )
            )
    if precision != "float32" and work.kind != "stream":
        lean = replace(products, bfloat16=True, channels_last=work.size > 0)
        made.append(Implementation("products, bf16", lean))
    return made
