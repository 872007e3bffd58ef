"""`explain`: which kernel each spiking layer of a model runs, what runs with it as one op, and why not where it does not.

What runs together is known of `bs.Sequential`, of the networks of `bs.models`, and of any module that lists its `fusion.Block`s
in a method `spiking_blocks()`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import kernel
from ..neuron.integrator import Integrator
from ..neuron.lif import LIF
from ..system.table import Table, left
from .block import Block, why_called
from .over_time import SYNAPSES, is_plain
from .sparsity import plans

_KEPT = {
    "exact": "the membrane",
    "bfloat16": "the distance to the threshold in bfloat16",
    "8bit": "the distance to the threshold in 8 bits",
    "1bit": "a bit",
    "recompute": "its input",
    "checkpoint": "its input",
}


def explain(model: nn.Module) -> str:
    """A table as text, one line per spiking layer: its name and type, the backend and why, what it keeps for the backward pass,
    and what runs with it as one op. A linear layer that has run says which way its products take."""
    device = next(
        (t.device for tensors in (model.parameters(), model.buffers()) for t in tensors),
        torch.device("cpu"),
    )
    names = {m: name or "(model)" for name, m in model.named_modules()}
    blocks, chosen = _blocks(model), dict(plans(model))
    rows: list[tuple[object, ...]] = []
    for layer, name in names.items():
        if isinstance(layer, LIF | Integrator):
            backend, why = _backend(layer, device)
            rows.append(
                (
                    name,
                    type(layer).__name__,
                    backend,
                    why,
                    _together(layer, blocks.get(layer), backend, names),
                )
            )
        elif name in chosen:
            rows.append((name, type(layer).__name__, "cpu", chosen[name], ""))
    if not any(isinstance(layer, LIF | Integrator) for layer in names):
        return "no spiking layer here: nothing for a kernel to do"
    return Table(left("", "", "", "", ""), rows).to_text()


def _blocks(model: nn.Module) -> dict[nn.Module | None, Block]:
    """By neuron. Of Sequentials in one another, it is the outer one that runs the layers."""
    found: dict[nn.Module | None, Block] = {}
    for m in model.modules():
        blocks: Any = getattr(m, "spiking_blocks", None)
        if blocks is not None:
            for block in blocks():
                found.setdefault(block.neuron, block)
    return found


def _backend(layer: LIF | Integrator, device: torch.device) -> tuple[str, str]:
    x = torch.zeros(1, 1, getattr(layer, "channels", None) or 1, device=device)
    with torch.no_grad():  # so that asking draws no seed
        return kernel.choose(layer.backend, layer.prepare(x, None))


def _together(
    layer: LIF | Integrator, block: Block | None, backend: str, names: dict[nn.Module, str]
) -> str:
    """What it keeps, what of its block runs with it as one op, and why the rest does not."""
    if not isinstance(layer, LIF):
        return ""
    kept = f"keeps {_KEPT[layer.memory]}"
    if block is None:
        return kept
    if reason := why_called(layer):
        return f"{kept}; called by itself: {reason}"
    elsewhere = (
        "" if backend in ("cpu", "triton") else f"backend {backend} runs one after the other"
    )
    parts = (
        (block.norm, elsewhere or block.why_norm_apart()),
        (block.pool, elsewhere or block.why_pool_apart()),
    )
    told = [
        (f"{type(part).__name__} {names.get(part, '')}".rstrip(), why)
        for part, why in parts
        if part is not None
    ]
    joined = " and ".join(text for text, why in told if not why)
    if (
        layer.memory == "checkpoint"
        and block.product is not None
        and is_plain(block.product, SYNAPSES)
    ):
        kept = f"keeps the input of {names.get(block.product, type(block.product).__name__)}"
    elif joined:
        kept = "keeps what the norm gets"
    apart = [f"{text} apart: {why}" for text, why in told if why]
    return "; ".join([f"{kept}, one op with {joined}" if joined else kept, *apart])
