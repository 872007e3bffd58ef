"""SpikingJelly's parallel spiking neurons beside `bs.PSN`, in float64: a script for its python.

The last line of its output is JSON: for each form the number of spikes, the number of spikes that
differ, and the largest difference of gradients, relative to the largest.
"""

import json

import torch
from spikingjelly.activation_based import neuron, surrogate

import backspike as bs

T, K = 12, 4


def compare(theirs, ours, x):
    with torch.no_grad():
        torch.nn.init.normal_(theirs.weight, std=0.5)
        ours.weight.copy_(theirs.weight)
        ours.bias.copy_(theirs.bias.view_as(ours.bias) + ours.v_threshold)
    found = []
    for layer in (theirs, ours):
        leaf = x.clone().requires_grad_()
        s = layer(leaf)
        weights = torch.sin(torch.arange(s.numel(), dtype=s.dtype)).view_as(s)
        leaves = (leaf, layer.weight, layer.bias)
        found.append((s.detach(), *torch.autograd.grad((s * weights).sum(), leaves)))
    (s, *want), (own, *got) = found
    pairs = [(a.flatten(), b.flatten()) for a, b in zip(got, want)]
    return {
        "spikes": int(s.sum()),
        "outputs": int((s != own).sum()),
        "gradients": max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs),
    }


def main():
    torch.manual_seed(0)
    x = torch.randn(T, 5, 7, dtype=torch.float64) + 0.5
    slope = {"surrogate_function": surrogate.ATan(2.0)}
    ours = {"surrogate": bs.ATan(2.0)}
    pairs = {
        "full": (neuron.PSN(T, **slope), bs.PSN(T, **ours)),
        "masked": (
            neuron.MaskedPSN(k=K, T=T, lambda_init=1.0, step_mode="m", **slope),
            bs.PSN(T, K, **ours),
        ),
        "fading": (
            neuron.MaskedPSN(k=K, T=T, lambda_init=0.25, step_mode="m", **slope),
            bs.PSN(T, K, masking=0.25, **ours),
        ),
        "sliding": (neuron.SlidingPSN(K, step_mode="m", **slope), bs.PSN(order=K, **ours)),
    }
    print(json.dumps({name: compare(a.double(), b.double(), x) for name, (a, b) in pairs.items()}))


main()
