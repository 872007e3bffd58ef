"""Compiles the Triton kernels of own neurons for a GPU, which need not exist.

test_triton_own.py runs this file. Prints of each kernel its name, its size, and how many
multiply-adds are fused in it.
"""

import re

import torch
import triton
from helpers.own_neurons import LIF, SHIPPED
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import backspike as bs
from backspike.kernel.triton import own
from backspike.neuron.own import Neuron

TYPES = {torch.float64: "fp64", torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64"}


def launch(kernel, grid, **arguments):
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        a, name = arguments[parameter.name], parameter.name
        if parameter.is_constexpr or a is None or (type(a) is int and a == 1):
            signature[name], constants[name] = "constexpr", a
            continue
        signature[name] = f"*{TYPES[a.dtype]}" if isinstance(a, torch.Tensor) else "i32"
        if isinstance(a, torch.Tensor) or a % 16 == 0:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": 4, "enable_fp_fusion": False}
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    fused = len(re.findall(r"\bfma\.rn\.f32", found.asm["ptx"]))
    print(kernel.__name__, len(found.asm["cubin"]), fused, flush=True)


own.launch, own.check = launch, lambda call: None
Neuron._backend = lambda self: own
for kind, (make, _) in {"LIF": (LIF, 2.0), **SHIPPED}.items():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        surrogate = bs.Masked(bs.Parametric(bs.ATan()), p=0.3, replace=bs.Triangle())
        options = {"learn": make.learnable, "channels": 4, "surrogate": surrogate}
        layer = make(**options, reset_gradient=0.5)
        layer = layer.double() if dtype == torch.float64 else layer
        if kind == "LIF" or dtype == torch.float32:
            layer(torch.rand(8, 16, 4, 5).to(dtype).requires_grad_()).sum().backward()
