"""What a neuron saves for backward (`memory=` of `bs.lif`), and the codes of the membrane in torch.

    "exact"       u in the dtype of the state
    "bfloat16"    z = u - theta rounded to bfloat16
    "8bit"        z in 8 bits, see `EightBits`
    "1bit"        whether h is 0; exact, and only for Rectangle with the soft reset
    "recompute"   only x, from which backward computes u again; exact
    "checkpoint"  the same as "recompute" for a neuron outside a block

In both rounded forms the sign of the code says whether the neuron fired, so the backward pass sees
the spikes of the forward pass. With a learned width w the 8 bits hold z / w. Only gradients are
rounded: by 0 to 2 % of their norm with 8 bits, by about 0.1 % in bfloat16; in quiet layers, whose
gradients are small, by more (the table in docs/speed-and-memory.md). Dspike and Rectangle are
discontinuous: in bfloat16 their edges cause errors of 1 and 4 %, with 8 bits they are on the
borders of codes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

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


class EightBits(NamedTuple):
    """The 8-bit code of z, or of z / w; `kernel/csrc/saved.h` has the same.

    Both have 128 codes on either side of 0. Uniform: steps of one unit, for surrogates that are 0
    in the last step. Logarithmic: 12 steps for each factor of 2 in y = abs(z) / unit + 1, up to
    y = 1621; the last code means any larger y, where h is taken as practically 0.
    """

    unit: float | Tensor
    logarithmic: bool


def eight_bits(
    base: Surrogate,
    replace: Surrogate | None = None,
    parametric: bool = False,
    device: torch.device | None = None,
) -> EightBits:
    """The code for these surrogates; its unit may be a 0-dim tensor on the device.

    It is uniform up to the largest support if all supports are finite and in the same unit, which
    with a learned width that of `replace` is not. Otherwise the unit is 1/24 of `reach`, so that
    the first logarithmic steps are 1/288 of it and the last ends at 67 times the reach.
    """
    surrogates = [base] if replace is None else [base, replace]
    support = max(s.support if is_family(s) else math.inf for s in surrogates)
    if math.isfinite(support) and not (parametric and replace is not None):
        return EightBits(support / 127, False)
    return EightBits(torch.stack([reach(s, device) for s in surrogates]).amax() / 24, True)


def reach(surrogate: Surrogate, device: torch.device | None = None) -> Tensor:
    """A width of the derivative, as a 0-dim tensor: 2 for ATan(alpha=2).

    This is twice the smallest power of two at which the derivative is at most a tenth of its
    maximum.
    """
    r = 2.0 ** torch.arange(-12, 13, dtype=torch.float64, device=device)
    z = torch.linspace(-1, 1, 257, dtype=torch.float64, device=device)
    low = (
        surrogate.derivative(torch.stack((-r, r))).amax(0)
        <= surrogate.derivative(r[:, None] * z).max() / 10
    )
    smallest = torch.where(low, 2 * r, math.inf).amin()
    return torch.where(smallest.isinf(), 2.0, smallest)


def encode(
    memory: str,
    u: Tensor,
    theta: float | Tensor,
    width: Tensor | None,
    code: EightBits | None,
) -> Tensor:
    """Encode the membrane u: as bfloat16, or as uint8 with at least 128 where the neuron fired."""
    z, fired = u - theta, u >= theta
    if memory == "bfloat16":
        return torch.copysign(
            z.to(torch.bfloat16), torch.where(fired, 1.0, -1.0).to(torch.bfloat16)
        )
    assert code is not None
    size = (z if width is None else z / width).abs() * (1 / code.unit)
    if code.logarithmic:
        k = (((size + 1).float().view(torch.int32) - _ONE) >> 12) * 3 >> 9
    else:
        k = torch.where(size < 127, size, 127.0).to(torch.int32)
    k = k.clamp(max=127)
    return torch.where(fired, 128 + k, 127 - k).to(torch.uint8)


def decode(
    memory: str,
    saved_u: Tensor,
    theta: float | Tensor,
    width: Tensor | None,
    code: EightBits | None,
    dtype: torch.dtype,
) -> Tensor:
    """The membrane that a code represents, on the correct side of the threshold."""
    if memory == "bfloat16":
        z, fired = saved_u.to(dtype), ~torch.signbit(saved_u)
    else:
        assert code is not None
        z, fired = _middle(saved_u, code.logarithmic, dtype) * code.unit, saved_u >= 128
        z = z if width is None else z * width
    theta = torch.as_tensor(theta, dtype=dtype, device=saved_u.device)
    below = theta * (1 - torch.finfo(dtype).eps / 2)
    u = z + theta
    return torch.where(~fired & (u > below), below, u)


_ONE = 0x3F800000  # the bits of 1.0


def _middle(saved_u: Tensor, logarithmic: bool, dtype: torch.dtype) -> Tensor:
    """z / unit in the middle of each 8-bit code; far away in the last logarithmic one."""
    odd = 2 * saved_u.int() - 255
    if not logarithmic:
        return odd.to(dtype) * 0.5
    size = odd.abs()
    bits = _ONE + size * (0x800000 // 24) + (size == 255) * (16 << 23)
    y = bits.to(torch.int32).view(torch.float32).to(dtype)
    return torch.where(odd < 0, 1 - y, y - 1)


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
