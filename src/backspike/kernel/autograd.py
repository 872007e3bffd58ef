"""What the hand-written backward passes of this package share."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

# the ctx of a torch.autograd.Function, which carries any attribute from forward to backward
Context: TypeAlias = Any


def refuse_double_backward(layer: str = "a spiking layer") -> None:
    """Raise RuntimeError if the backward pass is itself differentiated (create_graph=True)."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"backspike: double backward through {layer} is not defined; use create_graph=False"
        )
