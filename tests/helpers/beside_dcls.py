"""DCLS 0.1.1 beside `bs.Delay`: a script for a python that has it.

The last line of its output is JSON: for each form the size of the outputs, and the largest
differences of outputs and gradients, relative to the largest value. DCLS adds 1e-7 to the sum that
it divides by, and its kernel is reversed in time, with positions relative to its middle.
"""

import json

import torch
from DCLS.construct.modules import Dcls1d

import backspike as bs

T, B, C, O, D = 30, 3, 4, 5, 12


def error(got, want):
    return float((got - want).abs().max() / want.abs().max())


def compare(groups):
    torch.manual_seed(0)
    outputs = C if groups > 1 else O
    theirs = Dcls1d(
        C, outputs, kernel_count=1, dilated_kernel_size=D + 1, groups=groups, bias=groups == 1,
        version="gauss",
    ).double()  # fmt: skip
    ours = bs.Delay(C, D, out_features=None if groups > 1 else O).double()
    ours.sigma.fill_(1.7)
    with torch.no_grad():
        # position 0 of DCLS is the middle of its kernel; the last column is the present
        theirs.P.copy_((D / 2 - ours.delay).reshape(theirs.P.shape))
        theirs.SIG.fill_(1.7 - 0.27)  # DCLS adds 0.27
        if groups > 1:
            theirs.weight.fill_(1.0)
        else:
            theirs.weight.copy_(ours.weight[..., None])
            theirs.bias.copy_(ours.bias)
    x = torch.randn(T, B, C, dtype=torch.float64)
    padded = torch.nn.functional.pad(x.permute(1, 2, 0), (D, 0))
    found = []
    for y, delay, sign, others in (
        (ours(x), ours.delay, 1, (ours.weight, ours.bias)),
        (theirs(padded).permute(2, 0, 1), theirs.P, -1, (theirs.weight, theirs.bias)),
    ):
        weights = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
        learned = [] if groups > 1 else others
        gradients = torch.autograd.grad((y * weights).sum(), [delay, *learned])
        found.append(
            (y.detach(), sign * gradients[0].flatten(), *(g.flatten() for g in gradients[1:]))
        )
    (own, *got), (y, *want) = found
    return {
        "size": float(y.abs().mean()),
        "outputs": error(own, y),
        "gradients": max(error(a, b) for a, b in zip(got, want)),
    }


print(json.dumps({"channels": compare(C), "synapses": compare(1)}))
