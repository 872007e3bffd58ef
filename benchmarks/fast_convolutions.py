"""Errors and CPU time of fast convolutions on the numbers that a trained network computes with.

    python benchmarks/fast_convolutions.py digits
    python benchmarks/fast_convolutions.py RUN [--images 16] [--save operands.pt]
    python benchmarks/fast_convolutions.py operands.pt

Takes the operands of each 3x3 convolution with stride 1 and at least 16 channels from a training
step of a run or of a network of the package. Errors are relative, against float64. Times are those
of one thread, as many times as fast as torch in bfloat16 and in float32.
ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 keeps torch from the tile multiplication of new processors;
with AVX2 and ATEN_CPU_CAPABILITY=avx2 both run as on a processor without AVX-512.
"""

import argparse
import time
from dataclasses import astuple
from pathlib import Path

import torch
import torch.nn.functional as F

from backspike.bench.operands import Operands, error, operands
from backspike.kernel.cpu import winograd
from backspike.system.table import Table, left, right

ROUNDS = 5
DTYPES = (torch.bfloat16, torch.float32)


def gains(numbers, product):
    """How many times as fast as torch the fast way is, in each dtype."""
    for dtype in DTYPES:
        x, weight, g = (a.to(dtype) for a in astuple(numbers))
        if product == "output":
            ways = (
                lambda x=x, w=weight: F.conv2d(x, w, padding=1),
                lambda x=x: winograd.convolve(x, numbers.weight),
            )
        elif product == "input gradient":
            ways = (
                lambda x=x, w=weight, g=g: backward(g, x, w, [True, False, False]),
                lambda g=g: winograd.input_gradient(g, numbers.weight),
            )
        else:
            spikes, ours = (x != 0).to(dtype), numbers.weight_gradient(dtype)
            ways = (
                lambda x=spikes, w=weight, g=g: backward(g, x, w, [False, True, False]),
                lambda g=g, ours=ours: ours(g),
            )
        torchs, fast = map(min, zip(*([seconds(way) for way in ways] for _ in range(ROUNDS))))
        yield f"{torchs / fast:.2f}"


def backward(g, x, weight, wanted):
    geometry = *[[1, 1]] * 3, False, [0, 0], 1
    return torch.ops.aten.convolution_backward(g, x, weight, None, *geometry, wanted)


def seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="a run, a network of the package, or a file of --save")
    parser.add_argument("--images", type=int, default=16, help="images of each layer")
    parser.add_argument("--save", type=Path, help="write the operands to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if Path(args.source).is_file():
        layers = {name: Operands(*kept) for name, kept in torch.load(args.source).items()}
    else:
        layers = operands(args.source, args.images)
    if args.save:
        torch.save({name: astuple(kept) for name, kept in layers.items()}, args.save)
    rows = []
    for name, numbers in layers.items():
        exact, fast = numbers.exact(), [numbers.fast(dtype) for dtype in DTYPES]
        for product in fast[0]:
            want = exact[product]
            given = numbers.x if product == "output" else numbers.g
            results = numbers.bfloat16()[product], *(computed[product] for computed in fast)
            errors = ("refused" if got is None else f"{error(got, want):.1e}" for got in results)
            spread = f"{given.abs().max() / given.square().mean().sqrt():.0f}"
            shape = f"{name} {list(numbers.weight.shape[:2])} of {list(given.shape[2:])}"
            rows.append((shape, product, spread, *errors, *gains(numbers, product)))
    columns = "torch, bf16", "fast, bf16", "fast, fp32", "times bf16", "times fp32"
    print(Table([*left("layer", "product"), *right("max / rms", *columns)], rows).to_text())


if __name__ == "__main__":
    main()
