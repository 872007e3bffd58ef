"""Compiles the Triton kernels for a GPU, which need not exist, with the arguments of the host code.

test_triton.py runs this file in a separate process, because Triton decides on import whether to
interpret kernels. Prints a line of JSON per kernel. Arguments: the compute capability, "fused" or
"separate" for multiply-adds, and "few", "many" or "recurrent" cases.
"""

import json
import re
import sys
from importlib import import_module

import torch
import triton
from helpers.neurons import draw, prepare
from helpers.saved import channels_last
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import backspike as bs
from backspike import (
    ATan,
    Dspike,
    Masked,
    Parametric,
    PiecewiseExponential,
    Rectangle,
    Sigmoid,
    SuperSpike,
    Triangle,
)
from backspike.kernel.triton import lif as kernels
from backspike.kernel.triton import recurrent
from backspike.neuron.lif import compute

TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.uint8: "u8",
}
TYPES[torch.int64] = "i64"
FEW = {
    "bfloat16, tau 2": {"dtype": torch.bfloat16},
    "float32, masked, 8bit, soft": {
        "surrogate": Masked(ATan()),
        "memory": "8bit",
        "v_reset": None,
    },
    "float64, per channel": {"dtype": torch.float64, "learn": (64,)},
}
MANY = {
    "float16, 1bit": {
        "dtype": torch.float16,
        "surrogate": Masked(Rectangle(), rescale=True),
        "memory": "1bit",
        "v_reset": None,
    },
    "channels last": {
        "dtype": torch.bfloat16,
        "surrogate": Masked(SuperSpike(), p=0.4),
        "layout": channels_last,
    },
    "repeats": {
        "dtype": torch.bfloat16,
        "surrogate": SuperSpike(),
        "memory": "bfloat16",
        "repeats": 4,
    },
    "one learned, exp": {
        "surrogate": Masked(Parametric(Sigmoid()), replace=Rectangle(0.2)),
        "learn": (),
        "memory": "recompute",
    },
    "per channel, channels last, half": {
        "dtype": torch.float16,
        "learn": (64,),
        "layout": channels_last,
        "v_reset": None,
    },
    "moments": {"record_moments": True, "surrogate": PiecewiseExponential(), "reset_gradient": 0.0},
    "membrane, active": {
        "record_membrane": True,
        "record_active": True,
        "surrogate": Dspike(),
        "temporal_gradient": False,
    },
    "8bit, compact": {"surrogate": Triangle(), "memory": "8bit"},
    "active of codes": {
        "record_active": True,
        "memory": "8bit",
        "surrogate": bs.Erf(),
        "decay_input": False,
    },
    "T = 1": {"shape": (1, 2, 64, 16, 16)},
    "odd": {"shape": (3, 3, 7, 5, 3), "dtype": torch.bfloat16, "learn": (7,)},
}


# dtype and width of a recurrent layer
RECURRENT = {
    "recurrent, float32": (torch.float32, 128),
    "recurrent, float32, widest": (torch.float32, 362),
    "recurrent, bfloat16, widest": (torch.bfloat16, 512),
    "recurrent, float64, widest": (torch.float64, 256),
}


def compile_for(sm, fusion, case):
    """A replacement for `kernels.launch` that compiles the kernel instead."""

    def launch(kernel, grid, *_, **arguments):
        arguments |= {"ROWS": grid.rows, "COLUMNS": grid.columns}
        assert {*arguments} == {*kernel.arg_names}  # on a GPU, others are an error
        signature, constants, attributes = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            a, name = arguments[parameter.name], parameter.name
            if parameter.is_constexpr or a is None or (type(a) is int and a == 1):
                signature[name], constants[name] = "constexpr", a
                continue
            signature[name] = (
                f"*{TYPES[a.dtype]}"
                if isinstance(a, torch.Tensor)
                else "i64"
                if abs(a) >= 2**31
                else "i32"
            )
            if isinstance(a, torch.Tensor) or a % 16 == 0:  # as Triton's launcher does
                attributes[(i,)] = [["tt.divisibility", 16]]
        source = ASTSource(kernel, signature, constants, attributes)
        options = {"num_warps": grid.warps, "enable_fp_fusion": fusion}
        compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
        report = {"case": case, "kernel": kernel.__name__, "bytes": len(compiled.asm["cubin"])}
        for language, fused in (("ptx", r"\b(?:fma|mad)\.rn"), ("sass", r"\b[FDH]FMA\b")):
            report[language] = len(re.findall(fused, compiled.asm[language]))
        report["shared"] = compiled.metadata.shared
        report["wide"] = bool(re.search(r"(?:ld|st)\.global[.\w]*\.v2", compiled.asm["ptx"]))
        print(json.dumps(report), flush=True)

    return launch


def run(shape=(4, 2, 64, 16, 16), dtype=torch.float32, learn=None, layout=None, **change):
    x, v0, upstream = draw(shape, dtype=dtype)
    x = (layout or torch.clone)(x)[: 1 if change.get("repeats", 1) > 1 else None].requires_grad_()
    options = {
        "tau": 2.0,
        "v_threshold": 1.0,
        "v_reset": 0.0,
        "decay_input": True,
        "surrogate": ATan(),
        "reset_gradient": 1.0,
    }
    options |= {"temporal_gradient": True, "seed": 1, "record_bits": True} | change
    if learn is not None:
        for name, value in (("tau", 2.3), ("v_threshold", 0.9), ("width", 0.8)):
            options[name] = torch.full(learn, value, requires_grad=True)
        if not isinstance(options["surrogate"], Masked):
            options["surrogate"] = Parametric(options["surrogate"])
    out, moments = compute(prepare(x, v0, **options), "triton")
    leaves = [(out.spikes, upstream["g"])] + (
        [] if moments is None else [(m, m.detach()) for m in moments[:2]]
    )
    leaves += [] if out.membrane is None else [(out.membrane, upstream["gu"])]
    torch.autograd.backward(*zip(*leaves))


def run_recurrent(dtype, n):
    neuron = bs.CubaLIF(
        backend="triton", surrogate=Masked(ATan()), learn=("tau", "tau_synapse", "threshold")
    )
    layer = bs.Recurrent(torch.nn.Linear(n, n), neuron).to(dtype)
    layer(torch.zeros(3, 20, n, dtype=dtype, requires_grad=True)).sum().backward()


if __name__ == "__main__":
    sm, fusion, names = int(sys.argv[1]), sys.argv[2] == "fused", sys.argv[3]
    kernels.refuses = recurrent.refuses = lambda *_: None
    import_module("backspike.kernel.dispatch")._BACKENDS.setdefault("triton", kernels)
    for case, options in {"few": FEW, "many": FEW | MANY, "recurrent": {}}[names].items():
        kernels.launch = compile_for(sm, fusion, case)
        run(**options)
    for case, options in RECURRENT.items() if names == "recurrent" else ():
        kernels.launch = compile_for(sm, fusion, case)
        run_recurrent(*options)
