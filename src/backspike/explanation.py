"""`explain`: which kernel each spiking layer of a model runs, what runs with it as one op, and why not where it does not.

What runs together is known of `bs.Sequential`, of the networks of `bs.models`, and of any module that lists its `fusion.Block`s
in a method `spiking_blocks()`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import kernel
from .fusion import Block, why_called
from .neuron import LIF, Integrator, _call


def explain(model: nn.Module) -> str:
    """A table as text, one line per spiking layer: its name and type, the backend and why, and what runs with it as one op."""
    device = next((t.device for tensors in (model.parameters(), model.buffers()) for t in tensors), torch.device("cpu"))
    names = {m: name or "(model)" for name, m in model.named_modules()}
    blocks = _blocks(model)
    rows = [
        (name, type(layer).__name__, *_backend(layer, device), _together(blocks.get(layer), names))
        for layer, name in names.items()
        if isinstance(layer, LIF | Integrator)
    ]
    if not rows:
        return "no spiking layer here: nothing for a kernel to do"
    widths = [max(len(r[i]) for r in rows) for i in range(4)]
    return "\n".join("  ".join([*(cell.ljust(w) for cell, w in zip(r, widths)), r[4]]).rstrip() for r in rows)


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
    # a seed is given, so that asking draws none
    return kernel.choose(layer.backend, _call(x, None, **{**layer._options(), "seed": 0}))


def _together(block: Block | None, names: dict[nn.Module, str]) -> str:
    """What of its block runs with the neuron as one op, and why the rest does not."""
    if block is None or not isinstance(block.neuron, LIF):
        return ""
    if reason := why_called(block.neuron):
        return f"called by itself: {reason}"
    parts = (block.norm, block.why_norm_apart()), (block.pool, block.why_pool_apart())
    told = [(f"{type(part).__name__} {names.get(part, '')}".rstrip(), why) for part, why in parts if part is not None]
    joined = " and ".join(text for text, why in told if not why)
    return "; ".join([*([f"one op with {joined}"] if joined else []), *(f"{text} apart: {why}" for text, why in told if why)])
