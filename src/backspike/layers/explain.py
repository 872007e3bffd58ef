"""`explain`: which kernel each spiking layer runs, what is fused with it, and why the rest is not.

Fusion is known for `bs.Sequential`, for the networks of `bs.models`, and for any module with a
method `spiking_blocks()` that returns its `Block`s.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import kernel
from ..neuron.cuba import CubaLIF
from ..neuron.integrator import Integrator
from ..neuron.lif import LIF
from ..neuron.own import Neuron
from ..neuron.recurrent import Recurrent
from ..system.table import Table, left
from .block import Block, why_called
from .dropout import Dropout
from .over_time import SYNAPSES, is_plain
from .sparsity import plans

_SAVED = {
    "exact": "the membrane",
    "bfloat16": "the distance to the threshold in bfloat16",
    "8bit": "the distance to the threshold in 8 bits",
    "1bit": "a bit",
    "recompute": "its input",
    "checkpoint": "its input",
}


def explain(model: nn.Module) -> str:
    """Return a text table that says how each spiking layer of `model` runs.

    One line per spiking layer: name, type, backend and the reason for it, what is saved for
    backward, and what is fused with it; and one per `bs.Dropout`. Linear layers that have run also
    say whether they computed densely or from the spikes alone.
    """
    device = next(
        (t.device for tensors in (model.parameters(), model.buffers()) for t in tensors),
        torch.device("cpu"),
    )
    names = {m: name or "(model)" for name, m in model.named_modules()}
    blocks, chosen = _blocks(model), dict(plans(model))
    loops = {m.neuron: m for m in model.modules() if isinstance(m, Recurrent)}
    rows: list[tuple[object, ...]] = []
    for layer, name in names.items():
        if isinstance(layer, LIF | Integrator):
            backend, why = _backend(layer, device)
            details = _details(layer, blocks.get(layer), backend, device, names)
            if layer in loops:
                details += f"; {_loop(loops[layer])}"
            rows.append((name, type(layer).__name__, backend, why, details))
        elif isinstance(layer, Dropout):
            what = f"p = {layer.p:g}, one mask for all timesteps"
            rows.append((name, "Dropout", "torch", what, "nothing in evaluation"))
        elif name in chosen:
            rows.append((name, type(layer).__name__, "cpu", chosen[name], ""))
    if not any(isinstance(layer, LIF | Integrator) for layer in names):
        return "this model has no spiking layer"
    return Table(left("", "", "", "", ""), rows).to_text()


def _blocks(model: nn.Module) -> dict[nn.Module | None, Block]:
    """The block of each neuron. In nested Sequentials, the outermost one runs the layers."""
    found: dict[nn.Module | None, Block] = {}
    for m in model.modules():
        blocks: Any = getattr(m, "spiking_blocks", None)
        if blocks is not None:
            for block in blocks():
                found.setdefault(block.neuron, block)
    return found


def _backend(layer: LIF | Integrator, device: torch.device) -> tuple[str, str]:
    if isinstance(layer, Neuron):
        return layer.runs_on(device)
    channels = getattr(layer, "channels", None) or 1
    sample = (channels,) if isinstance(channels, int) else channels
    x = torch.zeros(1, 1, *sample, device=device)
    with torch.no_grad():  # draw no seed
        return kernel.choose(layer.backend, layer.prepare(x, None))


def _varying(layer: LIF) -> str:
    """The constants that differ between channels or neurons."""
    values = dict(zip(("tau", "v_threshold"), layer.constants()))
    if isinstance(layer, CubaLIF):
        values["tau_synapse"] = layer.tau_synapse_in_use()
    own = [f"{n} {list(v.shape)}" for n, v in values.items() if isinstance(v, Tensor) and v.dim()]
    return f"; values of their own: {', '.join(own)}" if own else ""


def _loop(layer: Recurrent) -> str:
    weight = next(layer.layer.parameters(), torch.empty(1, 1))
    x = torch.zeros(1, 1, weight.shape[-1], dtype=weight.dtype, device=weight.device)
    reason = layer.why_step_by_step(x)
    return "all timesteps in one kernel" if reason is None else f"step by step: {reason}"


def _details(
    layer: LIF | Integrator,
    block: Block | None,
    backend: str,
    device: torch.device,
    names: dict[nn.Module, str],
) -> str:
    """What is saved for backward, what is fused with the neuron, and why the rest is not."""
    if not isinstance(layer, LIF):
        return ""
    saved = f"saves {_SAVED[layer.memory]}{_varying(layer)}"
    if isinstance(layer, Neuron):
        saved = f"saves {layer.describe_saved(device)}"
    if block is None:
        return saved
    if reason := why_called(layer):
        return f"{saved}; called by itself: {reason}"
    elsewhere = "" if backend in ("cpu", "triton") else f"backend {backend} fuses nothing"
    parts = (
        (block.norm, elsewhere or block.why_norm_separate()),
        (block.pool, elsewhere or block.why_pool_separate()),
    )
    reasons = [
        (f"{type(part).__name__} {names.get(part, '')}".rstrip(), why)
        for part, why in parts
        if part is not None
    ]
    fused = " and ".join(text for text, why in reasons if not why)
    synapse = block.product
    if layer.memory == "checkpoint" and synapse is not None and is_plain(synapse, SYNAPSES):
        saved = f"saves the input of {names.get(synapse, type(synapse).__name__)}"
    elif fused:
        saved = "saves the input of the norm"
    separate = [f"{text} not fused: {why}" for text, why in reasons if why]
    return "; ".join([f"{saved}, fused with {fused}" if fused else saved, *separate])
