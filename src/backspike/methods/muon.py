"""Muon: the momentum of each weight matrix is orthogonalised before it becomes a step.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; docs/methods.md, section 21. Vectors,
such as those of BatchNorm, and the last layer are trained by SGD in the same optimizer.
`torch.optim.Muon` takes matrices only, and computes in bfloat16 on every processor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# a x + b x^3 + c x^5 takes every x in (0, 1] close to 1 when it is repeated; the authors' values
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon for the groups with `matrices=True`, SGD with Nesterov momentum for the others.

    params: parameter groups; `split` makes them.
    weight_decay: decoupled as in AdamW for matrices, added to the gradient for SGD.
    ns_steps: Newton-Schulz iterations.

    A weight of more than two dimensions counts as a matrix of its first dimension by all others.
    Raises ValueError for a value out of range.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"Muon: momentum must lie in [0, 1), got {momentum}")
        if not weight_decay >= 0:
            raise ValueError(f"Muon: weight_decay must not be negative, got {weight_decay}")
        if ns_steps < 1:
            raise ValueError(f"Muon: ns_steps must be at least 1, got {ns_steps}")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
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
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"]
        if not group["matrices"]:
            grad = grad.add(p, alpha=decay) if decay else grad
            buffer.mul_(momentum).add_(grad)
            p.sub_(lr * grad.add(buffer, alpha=momentum))
            return
        buffer.lerp_(grad, 1 - momentum)
        update = orthogonalise(grad.lerp(buffer, momentum).flatten(1), group["ns_steps"])
        if decay:
            p.mul_(1 - lr * decay)
        rows, columns = update.shape
        p.sub_(lr * math.sqrt(max(1.0, rows / columns)) * update.view_as(grad))


def split(groups: list[dict[str, Any]], sgd_scale: float) -> list[dict[str, Any]]:
    """The matrices of the first group but the last as a group of their own, then everything else.

    groups: the weights, then neuron parameters, each with its `lr_scale`. The last matrix is that
    of the layer that gives the outputs, which Muon does not suit. sgd_scale: the learning rate of
    SGD as a multiple of Muon's. SGD has a momentum of 0.9 and no weight decay.
    """
    weights, *others = groups
    matrices = [p for p in weights["params"] if p.dim() > 1][:-1]
    ids = {id(p) for p in matrices}
    rest = [p for p in weights["params"] if id(p) not in ids]
    by_sgd = [{**weights, "params": rest}, *others]
    sgd = {"momentum": 0.9, "weight_decay": 0.0}
    out = [
        {**weights, "params": matrices, "matrices": True},
        *({**group, **sgd, "lr_scale": group["lr_scale"] * sgd_scale} for group in by_sgd),
    ]
    return [group for group in out if group["params"]]


def orthogonalise(x: Tensor, steps: int = 5) -> Tensor:
    """A matrix with the singular vectors of x `[A, B]` whose singular values are close to 1.

    Newton-Schulz iterations, x <- a x + b (x x^T) x + c (x x^T)^2 x, after division by the norm.
    Each is a polynomial of the same symmetric matrix times x, so that x is multiplied only once:
    with x[k] = q[k] x and s[k] = x[k] x[k]^T,

        p = a + b s[k] + c s[k]^2,    q[k+1] = p q[k],    s[k+1] = p^2 s[k].

    In bfloat16 on a GPU, otherwise in the type of x.
    """
    a, b, c = COEFFICIENTS
    wide = x if len(x) <= x.shape[1] else x.T
    wide = wide.bfloat16() if x.is_cuda else wide
    wide = wide / wide.norm().clamp(min=1e-7)
    s = wide @ wide.T
    q = one = torch.eye(len(s), dtype=s.dtype, device=s.device)
    for k in range(steps):
        p = torch.addmm(s, s, s, beta=b, alpha=c) + a * one
        q = p if k == 0 else p @ q
        if k < steps - 1:
            s = p @ (p @ s)
    done = (q @ wide).to(x.dtype)
    return done if len(x) <= x.shape[1] else done.T
