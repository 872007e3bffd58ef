"""Muon: the momentum of each weight matrix is orthogonalised before it becomes a step.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; docs/methods.md, section 21. All
other parameters, such as those of BatchNorm, are trained by SGD in the same optimizer.
`torch.optim.Muon` takes matrices only, and computes in bfloat16 on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .weight_mask import WEIGHTED

# a x + b x^3 + c x^5 takes every x in (0, 1] close to 1 when it is repeated; the authors' values
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon for the groups with `matrices=True`, SGD with Nesterov momentum for the others.

    params: parameter groups; `split` makes them.
    weight_decay: of the matrices, decoupled as in AdamW.

    A weight of more than two dimensions counts as a matrix of its first dimension by all others.
    Raises ValueError for a value out of range.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"Muon: momentum must lie in [0, 1), got {momentum}")
        if not weight_decay >= 0:
            raise ValueError(f"Muon: weight_decay must not be negative, got {weight_decay}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "matrices": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)
        return loss

    def _step(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"]
        if not group["matrices"]:
            buffer.mul_(momentum).add_(grad)
            p.sub_(lr * grad.add(buffer, alpha=momentum))
            return
        buffer.lerp_(grad, 1 - momentum)
        update = orthogonalise(grad.lerp(buffer, momentum).flatten(1))
        if group["weight_decay"]:
            p.mul_(1 - lr * group["weight_decay"])
        rows, columns = update.shape
        p.sub_(lr * math.sqrt(max(1.0, rows / columns)) * update.view_as(grad))


def split(model: nn.Module, groups: list[dict[str, Any]], sgd_scale: float) -> list[dict[str, Any]]:
    """The matrices as a group of their own, then everything else.

    Matrices are the weights of the linear and convolutional layers in `model`, but for the layer
    that is defined last: it gives the outputs, which Muon does not suit.

    groups: the weights, then neuron parameters, each with its `lr_scale`. sgd_scale: the learning
    rate of SGD as a multiple of Muon's. The momentum of SGD is 0.9.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, WEIGHTED)]
    hidden = {id(layer._parameters.get("weight")) for layer in layers[:-1]}
    weights, *others = groups
    matrices = [p for p in weights["params"] if id(p) in hidden]
    rest = [p for p in weights["params"] if id(p) not in hidden]
    by_sgd = [{**weights, "params": rest}, *others]
    out = [
        {**weights, "params": matrices, "matrices": True},
        *(
            {**group, "momentum": 0.9, "lr_scale": group["lr_scale"] * sgd_scale}
            for group in by_sgd
        ),
    ]
    return [group for group in out if group["params"]]


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """A matrix with the singular vectors of x `[A, B]` whose singular values are close to 1.

    Newton-Schulz iterations after division by the norm: x <- a x + b s x + c s^2 x, s = x x^T.
    In bfloat16 on a GPU, otherwise in the type of x.
    """
    if not x.numel():
        return x
    wide = x if len(x) <= x.shape[1] else x.T
    wide = wide.bfloat16() if x.is_cuda else wide
    wide = wide / wide.norm().clamp(min=torch.finfo(wide.dtype).tiny)
    done = (_by_small_side if _rounds_finely(wide) else _iterate)(wide, steps).to(x.dtype)
    return done if len(x) <= x.shape[1] else done.T


def _rounds_finely(x: Tensor) -> bool:
    """Whether products of x have at least the precision of float32, which `_by_small_side` needs.

    It multiplies rounding errors by 12 in each iteration.
    """
    if x.dtype == torch.float32:
        try:
            return torch.get_float32_matmul_precision() == "highest"
        except RuntimeError:  # it was set by torch.backends, which this function cannot tell
            return False
    return x.dtype == torch.float64


def _iterate(x: Tensor, steps: int) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        s = x @ x.T
        x = torch.addmm(x, torch.addmm(s, s, s, beta=b, alpha=c), x, beta=a)
    return x


def _by_small_side(x: Tensor, steps: int) -> Tensor:
    """The same with fewer products where x is wide.

    Each iteration is a polynomial of s = x x^T times x, so that x is multiplied only once: with
    x[k] = q[k] x and s[k] = x[k] x[k]^T,

        p = a + b s[k] + c s[k]^2,    q[k+1] = p q[k],    s[k+1] = p^2 s[k].
    """
    a, b, c = COEFFICIENTS
    s = x @ x.T
    q = one = torch.eye(len(s), dtype=s.dtype, device=s.device)
    for k in range(steps):
        p = torch.addmm(s, s, s, beta=b, alpha=c) + a * one
        q = p if k == 0 else p @ q
        if k < steps - 1:
            s = p @ (p @ s)
    return q @ x
