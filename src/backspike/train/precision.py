"""Chooses the precision and the memory layout that a recipe leaves open, once, when a run starts.

recipe.json stores the choice, so that resuming on another machine computes the same; env.json and
the start event store the reasons. On one machine, the choice for a recipe is always the same.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import option
from ..neuron.hooks import Handle
from ..recipes.recipe import Recipe

# Multiply-adds of the forward pass of a step below which casting costs more than bfloat16 gains.
# CPU time of a whole step on Zen 4, float32 / bfloat16 in ms: 1 M 6 / 8, 5 M 6.4 / 6.8,
# 15 M 4.6 / 4.4, digits (77 M) 16.5 / 12.2, mnist (942 M) 132 / 96.
WORTH_CASTING = 30e6


_WITHOUT_BFLOAT16 = {
    "cuda": f"no hardware support for bfloat16; {option('precision', 'float16')} uses this GPU's "
    "tensor cores"
}


def gradient_scaler(recipe: Recipe, device: torch.device) -> torch.amp.GradScaler | None:
    """The scaler of the loss, without which small gradients would be 0 in float16; else None."""
    return torch.amp.GradScaler(device.type) if recipe.precision == "float16" else None


@dataclass(frozen=True)
class Chosen:
    """A recipe with precision and memory layout, and the reasons for each choice by field."""

    recipe: Recipe
    reasons: dict[str, str] = field(default_factory=dict)


def choose(recipe: Recipe, model: nn.Module, x: Tensor) -> Chosen:
    """Replaces precision="auto" and channels_last=None; x: a sample `[T, 1, ...]` on the device."""
    reasons: dict[str, str] = {}
    if recipe.precision == "auto":
        precision, why = _precision(recipe, model, x)
        recipe, reasons["precision"] = replace(recipe, precision=precision), why
    if recipe.channels_last is None:
        last, why = _channels_last(model, x.device)
        recipe, reasons["channels_last"] = replace(recipe, channels_last=last), why
    return Chosen(recipe, reasons)


def _precision(recipe: Recipe, model: nn.Module, x: Tensor) -> tuple[str, str]:
    unit = bfloat16_unit(x.device)
    if unit is None:
        return "float32", _WITHOUT_BFLOAT16.get(x.device.type, "no hardware support for bfloat16")
    change = f"use {option('precision', 'float32')} to change"
    if x.device.type == "cuda":
        return "bfloat16", f"{unit} supports it; {change}"
    work = multiply_adds(model, x) * recipe.batch_size
    if work < WORTH_CASTING:
        amount = f"{work / 1e6:,.0f} million multiply-adds per step"
        return "float32", f"{amount} are too few to gain from bfloat16"
    return "bfloat16", f"{unit} supports it; {change}"


def bfloat16_unit(device: torch.device) -> str | None:
    """The hardware that multiplies in bfloat16; None if bfloat16 is emulated or support unknown."""
    if device.type == "cuda":
        return "this GPU" if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if device.type != "cpu":
        return None
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "this processor" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
    if torch.cpu._is_amx_tile_supported():
        return "this processor (AMX)"
    return "this processor (AVX-512 BF16)" if torch.cpu._is_avx512_bf16_supported() else None


@torch.no_grad()
def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds of all convolutions and linear layers in a forward pass; a static input, which
    repeats over time, counts once."""
    counted = 0

    def count(layer: Any, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal counted
        # input or output: where each element uses all weights of one channel
        side = inputs[0] if getattr(layer, "transposed", False) else out
        counted += side.numel() * layer.weight[0].numel()

    was_training = model.training
    model.eval()
    with Handle() as handle:
        for layer in model.modules():
            if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
                handle.undo.append(layer.register_forward_hook(count).remove)
        model(x)
    model.train(was_training)
    return counted


def _channels_last(model: nn.Module, device: torch.device) -> tuple[bool, str]:
    if not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return False, "the network has no image convolutions"
    where = {"cpu": "on a CPU", "cuda": "on a GPU's tensor cores"}.get(device.type)
    if where is None:
        return False, "torch's default on this device"
    return True, f"faster convolutions {where}"
