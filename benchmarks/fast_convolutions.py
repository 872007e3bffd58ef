"""Errors and CPU time of fast convolutions on the numbers that a trained network computes with.

    backspike train cifar10 --out RUN
    python benchmarks/fast_convolutions.py RUN [--images 16] [--save operands.pt]
    python benchmarks/fast_convolutions.py operands.pt

Runs a training step of the run's network on a batch of its training data and takes the input, the
weight and the output's gradient of each 3x3 convolution with stride 1 and at least 16 channels
(of as many images, with the largest gradients). Errors are relative to the root mean square,
against float64; "worst" is that of the worst channel. Times are those of one thread, as many times
as fast as torch in bfloat16 and in float32. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 leaves out the tile
multiplication of newer processors, AVX2 more.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import backspike as bs
from backspike.data.batches import Batches
from backspike.kernel.cpu import winograd
from backspike.layers import sparsity
from backspike.run import Run
from backspike.system.table import Table, left, right
from backspike.train.network import to_channels_last, trained
from backspike.train.setup import load_data

LAST = torch.channels_last
REPEATS = 5


def operands(run, images):
    """{name: {"x", "weight", "g"}} of the convolutions that may be fast."""
    _, recipe, network = trained(Run.find(run))
    to_channels_last(network)
    bs.set_convolution(network, "fast")
    names = {m.weight.data_ptr(): n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)}
    found = {}

    def keep(kind, function):
        def recorded(a, weight, *others):
            found.setdefault(names[weight.data_ptr()], {"weight": weight.detach()})[kind] = a.detach()
            return function(a, weight, *others)

        return recorded

    sparsity.FAST_BELOW, sparsity.EVENTS_BELOW = 1e9, dict.fromkeys(winograd.DTYPES, (-1, -1))
    winograd.convolve = keep("x", winograd.convolve)
    winograd.input_gradient = keep("g", winograd.input_gradient)
    x, y = Batches(load_data(recipe).train, recipe, torch.device("cpu")).take(torch.arange(64))
    outputs = network.train().model(x)
    recipe.loss_value(outputs, network.readout(outputs), y).backward()
    for kept in found.values():
        largest = kept["g"].abs().amax((1, 2, 3)).topk(min(images, len(kept["g"]))).indices
        kept.update(x=kept["x"][largest].clone(), g=kept["g"][largest].clone())
    return found


def ways(x, weight, g):
    """{column: function} for output and input gradient."""

    def gradient(g, weight):
        return torch.ops.aten.convolution_backward(
            g, x.to(g), weight, None, *[[1, 1]] * 3, False, [0, 0], 1, [True, False, False]
        )[0]

    half = weight.bfloat16()
    return {
        "output": {
            "exact": lambda: F.conv2d(x.double(), weight.double(), padding=1),
            "torch, bf16": lambda a=x.bfloat16(): F.conv2d(a, half, padding=1),
            "fast, bf16": lambda a=x.bfloat16(): winograd.convolve(a, weight),
            "torch": lambda: F.conv2d(x, weight, padding=1),
            "fast": lambda: winograd.convolve(x, weight),
        },
        "input gradient": {
            "exact": lambda: gradient(g.double(), weight.double()),
            "torch, bf16": lambda a=g.bfloat16(): gradient(a, half),
            "fast, bf16": lambda a=g.bfloat16(): winograd.input_gradient(a, weight),
            "torch": lambda: gradient(g, weight),
            "fast": lambda: winograd.input_gradient(g, weight),
        },
    }


def errors(got, want):
    if got is None:
        return "refused"
    wrong, size = (got.double() - want).square(), want.square()
    each = (wrong.mean((0, 2, 3)) / size.mean((0, 2, 3)).clamp(min=1e-300)).sqrt()
    return f"{float((wrong.mean() / size.mean()).sqrt()):.1e} ({float(each.max()):.0e})"


def seconds(functions):
    """The CPU time of each function: the fastest of a few rounds."""
    rounds = []
    for _ in range(REPEATS):
        taken = []
        for function in functions:
            start = time.process_time()
            function()
            taken.append(time.process_time() - start)
        rounds.append(taken)
    return map(min, zip(*rounds))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source", help="a run folder, or a file that --save wrote")
    parser.add_argument("--images", type=int, default=16, help="images of each layer")
    parser.add_argument("--save", type=Path, help="write the operands to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if Path(args.source).is_file():
        layers = torch.load(args.source)
    else:
        layers = operands(args.source, args.images)
    if args.save:
        torch.save(layers, args.save)
    rows = []
    for name, kept in layers.items():
        x, weight, g = (kept[k].float().contiguous(memory_format=LAST) for k in ("x", "weight", "g"))
        for product, functions in ways(x, weight, g).items():
            numbers = x if product == "output" else g
            spread = numbers.abs().max() / numbers.square().mean().sqrt()
            want = functions.pop("exact")()
            half, fast_half, full, fast = seconds(functions.values())
            each = {k: errors(function(), want) for k, function in functions.items() if k != "torch"}
            shape = f"{name} {list(weight.shape[:2])} @{x.shape[2]}"
            gains = f"{half / fast_half:.2f}", f"{full / fast:.2f}"
            rows.append((shape, product, f"{spread:.0f}", *each.values(), *gains))
    columns = "torch, bf16", "fast, bf16", "fast, float32", "x bf16", "x float32"
    headings = *left("layer", "product"), *right("max / rms", *columns)
    print("errors (of the worst channel)")
    print(Table(headings, rows).to_text())


if __name__ == "__main__":
    main()
