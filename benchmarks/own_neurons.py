"""Time and saved memory of `bs.Neuron` against the kernels of `bs.LIF`.

    python benchmarks/own_neurons.py [--threads 1] [--repeats 15]

Runs one forward and backward pass of each layer in turn, so that all see the same machine, and
prints medians of the CPU time of the process, in ms and relative to `bs.LIF`.
"""

import argparse
import statistics
import time
from typing import ClassVar

import torch

import backspike as bs


class LIF(bs.Neuron):
    """`bs.LIF` with its default options, as a neuron of one's own."""

    states: ClassVar = {"v": 0.0}
    tau: float = 2.0

    def step(self, x, v):
        u = (1 - 1 / self.tau) * v + x
        return u, u

    def reset(self, s, v):
        return v - self.v_threshold * s


LAYERS = {
    "bs.LIF": bs.LIF(),
    "own LIF": LIF(),
    "own LIF, recompute": LIF(memory="recompute"),
    "own LIF, reference": LIF(backend="reference"),
    "bs.AdEx": bs.AdEx(),
}


def once(layer, x):
    start = time.process_time()
    layer(x).sum().backward()
    return 1000 * (time.process_time() - start)


def saved(layer, x):
    """MB saved for backward, without x."""
    sizes = {}

    def pack(t):
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x)
    sizes.pop(x.untyped_storage().data_ptr(), None)
    sizes.pop(out.untyped_storage().data_ptr(), None)
    return sum(sizes.values()) / 1e6


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for shape in ((4, 64, 4096), (100, 64, 512)):
        x = torch.randn(shape, requires_grad=True)
        times = {name: [once(layer, x)] for name, layer in LAYERS.items()}
        for _ in range(options.repeats):
            for name, layer in LAYERS.items():
                times[name].append(once(layer, x))
        base = statistics.median(times["bs.LIF"][1:])
        print(f"\n{'x'.join(map(str, shape)):24}{'ms':>9}{'relative':>10}{'saved MB':>10}")
        for name, layer in LAYERS.items():
            ms = statistics.median(times[name][1:])
            print(f"{name:24}{ms:9.1f}{ms / base:10.2f}{saved(layer, x):10.1f}")


if __name__ == "__main__":
    main()
