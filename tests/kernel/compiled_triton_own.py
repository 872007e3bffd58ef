"""Compiles the Triton kernels of own neurons for a GPU, which need not exist.

test_triton_own.py runs this file. Prints a line of JSON per kernel, as compiled_triton.py does.
"""

import torch
from compiled_triton import compile_for
from helpers.own_neurons import LIF, SHIPPED

import backspike as bs
from backspike.kernel.triton import own
from backspike.neuron.own import Neuron

own.check = lambda call: None
Neuron._backend = lambda self: own
for kind, (make, _) in {"LIF": (LIF, 2.0), **SHIPPED}.items():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        surrogate = bs.Masked(bs.Parametric(bs.ATan()), p=0.3, replace=bs.Triangle())
        options = {"learn": make.learnable, "channels": 4, "surrogate": surrogate}
        layer = make(**options, reset_gradient=0.5)
        layer = layer.double() if dtype == torch.float64 else layer
        own.launch = compile_for(90, False, f"{kind}, {dtype}")
        if kind == "LIF" or dtype == torch.float32:
            layer(torch.rand(8, 16, 4, 5).to(dtype).requires_grad_()).sum().backward()
