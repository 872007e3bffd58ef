"""What a neuron saves for backward (`memory=` of `bs.lif`), and the codes of the membrane in torch.

    "exact"       u in the dtype of the state
    "bfloat16"    z = u - theta rounded to bfloat16
    "8bit"        z in 8 bits: steps of reach / 128 from -reach to reach, saturated beyond
    "1bit"        whether h is 0; exact, and only for Rectangle with the soft reset
    "recompute"   only x, from which backward computes u again; exact
    "checkpoint"  the same as "recompute" for a neuron outside a block

In both rounded forms the sign of the code says whether the neuron fired, so the backward pass sees
the spikes of the forward pass. With a learned width w the 8 bits hold z / w. Only gradients are
rounded: with ATan, Triangle and Sigmoid by 1 to 2 % (8 bits) and 0.2 % (bfloat16) of their norm,
with SuperSpike by 3 % (8 bits). Rectangle is discontinuous: in bfloat16 its edges cause an error of
4 %, so use "1bit" or "recompute" with it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..options import LIF
from ..surrogate import Surrogate, is_family

MEMORIES = ("exact", "bfloat16", "8bit", "1bit", "recompute", "checkpoint")
ROUNDED = ("bfloat16", "8bit")


def needs(neuron: LIF, theta: float | Tensor) -> str | None:
    """The requirement of `neuron.memory` that the neuron does not meet; None if it meets all."""
    memory, (mask, parametric, base) = neuron.memory, neuron.wrappers
    if memory not in MEMORIES:
        return f"must be one of {', '.join(MEMORIES)}"
    binary = is_family(base) and base.binary
    plain = parametric is None and (mask is None or not mask.replace)
    if memory == "1bit" and not (binary and plain and neuron.soft):
        return (
            "needs surrogate=Rectangle(...), masked or not but without replace, and v_reset=None;"
            " choose '8bit' or 'recompute'"
        )
    if memory in ROUNDED and not isinstance(theta, Tensor) and theta == math.inf:
        return "needs a finite v_threshold, because it saves the distance to it; choose 'exact'"
    return None


def lacks(
    memory: str, *, tau: float | Tensor | None, theta: float | Tensor | None, moments: bool
) -> str | None:
    """Which gradient this kind of `memory` cannot provide; None if it provides all needed ones."""
    parameters = {"tau": tau, "v_threshold": theta}
    learned = {name for name, p in parameters.items() if isinstance(p, Tensor) and p.requires_grad}
    if memory == "1bit" and learned:
        return f"gives no gradient for {', '.join(sorted(learned))}; choose 'recompute'"
    if memory == "8bit" and "tau" in learned:
        return (
            "gives no gradient for tau, which depends on membranes far from the threshold;"
            " choose 'bfloat16' or 'recompute'"
        )
    if memory in ("1bit", "8bit") and moments:
        return (
            "gives no gradient for the moments of the membrane (PotentialAdjustment);"
            " choose 'bfloat16' or 'recompute'"
        )
    return None


def reach(
    surrogate: Surrogate, replace: Surrogate | None = None, device: torch.device | None = None
) -> Tensor:
    """The largest abs(z) that 8 bits represent, as a 0-dim tensor.

    This is twice the smallest power of two at which the derivative is at most a tenth of its
    maximum: 2 for ATan(alpha=2). A derivative with compact support is therefore covered completely
    and is zero wherever the code saturates.
    """
    r = 2.0 ** torch.arange(-12, 13, dtype=torch.float64, device=device)
    z = torch.linspace(-1, 1, 257, dtype=torch.float64, device=device)
    reaches = []
    for s in (surrogate, replace):
        if s is not None:
            low = (
                s.derivative(torch.stack((-r, r))).amax(0)
                <= s.derivative(r[:, None] * z).max() / 10
            )
            reaches.append(torch.where(low, 2 * r, math.inf).amin())
    largest = torch.stack(reaches).amax()
    return torch.where(largest.isinf(), 2.0, largest)


def encode(
    memory: str,
    u: Tensor,
    theta: float | Tensor,
    width: Tensor | None,
    reach: float | Tensor | None,
) -> Tensor:
    """Encode the membrane u: as bfloat16, or as uint8 with at least 128 where the neuron fired."""
    z, fired = u - theta, u >= theta
    if memory == "bfloat16":
        return torch.copysign(
            z.to(torch.bfloat16), torch.where(fired, 1.0, -1.0).to(torch.bfloat16)
        )
    assert reach is not None
    k = (z if width is None else z / width) * (128 / reach) + 128
    k = torch.where(k > torch.where(fired, 128, 0), k, torch.where(fired, 128.0, 0.0).to(k))
    return torch.where(
        k < torch.where(fired, 255, 127), k, torch.where(fired, 255.0, 127.0).to(k)
    ).to(torch.uint8)


def decode(
    memory: str,
    code: Tensor,
    theta: float | Tensor,
    width: Tensor | None,
    reach: float | Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The membrane that a code represents, on the correct side of the threshold."""
    if memory == "bfloat16":
        z, fired = code.to(dtype), ~torch.signbit(code)
    else:
        assert reach is not None
        z, fired = (code.to(dtype) - 127.5) * (reach / 128), code >= 128
        z = z if width is None else z * width
    theta = torch.as_tensor(theta, dtype=dtype, device=code.device)
    below = theta * (1 - torch.finfo(dtype).eps / 2)
    u = z + theta
    return torch.where(~fired & (u > below), below, u)


def pack(flags: Tensor) -> Tensor:
    """Pack flags as uint8: bit i of byte k is element 8 k + i in C order, padded with zeros."""
    flags = torch.nn.functional.pad(
        flags.reshape(-1).to(torch.uint8), (0, -flags.numel() % 8)
    ).view(-1, 8)
    return (flags << torch.arange(8, dtype=torch.uint8, device=flags.device)).sum(
        1, dtype=torch.uint8
    )


def unpack(bits: Tensor, n: int) -> Tensor:
    """The first n flags of `pack`, as bool."""
    flags = bits[:, None] >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1
    return flags.reshape(-1)[:n].bool()
