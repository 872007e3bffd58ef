"""What the `forward` of a module does, if it only calls its layers and adds what they give."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

# the layer that is called, or None for an addition, and the numbers of its inputs: 0 is the input
# of the module, n the result of step n
Step = tuple[nn.Module | None, list[int]]


class _OneLevel(fx.Tracer):
    """Looks into the module itself, but not into its layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def trace(module: nn.Module) -> tuple[list[Step], int] | None:
    """The steps of `module.forward` and the number of its result; None if it does anything else."""
    try:
        graph = _OneLevel().trace(module)
    except Exception:  # it branches on values, for example; a user's code may raise anything
        return None
    steps: list[Step] = []
    numbers: dict[Any, int] = {}
    for node in graph.nodes:
        inputs = [numbers.get(a, -1) if isinstance(a, fx.Node) else -1 for a in node.args]
        plain = not node.kwargs and -1 not in inputs
        if node.op == "placeholder" and not numbers:
            numbers[node] = 0
            continue
        if node.op == "output" and plain and len(inputs) == 1:
            return steps, inputs[0]
        if node.op == "call_module" and plain and len(inputs) == 1:
            steps.append((module.get_submodule(str(node.target)), inputs))
        elif node.target in (operator.add, operator.iadd, torch.add) and plain and len(inputs) == 2:
            steps.append((None, inputs))
        else:
            return None
        numbers[node] = len(steps)
    return None
