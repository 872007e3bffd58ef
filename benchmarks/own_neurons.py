"""Time and saved memory of neurons with equations of their own against the kernel of `bs.LIF`.

    python benchmarks/own_neurons.py [--threads 1] [--repeats 15] [--peers PYTHON]

Runs one forward and backward pass of each layer in turn, so that all see the same machine, and
prints medians of the CPU time of the process, in ms and relative to `bs.LIF`, and what is saved for
backward besides input and output. --peers: a python with snnTorch and SpikingJelly, whose ways to
write a neuron of one's own take part: FlexSN, and a loop over time around a SpikingNeuron.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

SHAPES = ((4, 64, 4096), (100, 64, 512))


def ours():
    """The layers of this library."""
    import backspike as bs

    class LIF(bs.Neuron):
        """`bs.LIF` with its default options, as a neuron of one's own."""

        states = {"v": 0.0}  # noqa: RUF012
        tau: float = 2.0

        def step(self, x, v):
            u = (1 - 1 / self.tau) * v + x
            return u, u

        def reset(self, s, v):
            return v - self.v_threshold * s

    return {
        "bs.LIF": bs.LIF(),
        "own LIF": LIF(),
        "own LIF, recompute": LIF(memory="recompute"),
        "own LIF in torch": LIF(backend="eager"),
        "bs.AdEx": bs.AdEx(),
        "bs.AdEx in torch": bs.AdEx(backend="eager"),
        "bs.Izhikevich": bs.Izhikevich(),
        "bs.BRF": bs.BRF(),
    }


def peers():
    """The same LIF neuron in the other libraries."""
    import snntorch
    from snntorch import surrogate
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based import surrogate as sj_surrogate

    spike = sj_surrogate.atan.apply  # FlexSN takes no modules

    def core(x, v):
        u = 0.5 * v + x
        s = spike(u - 1.0, 2.0)
        return s, u - s.detach()

    class Own(snntorch.SpikingNeuron):
        def forward(self, x):
            v, out = torch.zeros_like(x[0]), []
            for x_t in x:
                u = 0.5 * v + x_t
                out.append(self.fire(u))
                v = u - self.mem_reset(u)
            return torch.stack(out)

    flexible = neuron.FlexSN(core, num_states=1)

    def flex(x):
        functional.reset_net(flexible)
        return flexible(x)

    return {"SpikingJelly FlexSN": flex, "snnTorch": Own(spike_grad=surrogate.atan())}


def measured(layer, shape):
    """(CPU time of a forward and backward pass in ms, MB saved for backward)."""
    x = torch.randn(shape, requires_grad=True)
    start = time.process_time()
    layer(x).sum().backward()
    ms, sizes = 1000 * (time.process_time() - start), {}

    def pack(t):
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = layer(x)
    for known in (x, out):
        sizes.pop(known.untyped_storage().data_ptr(), None)
    return ms, sum(sizes.values()) / 1e6


def serve():
    """Measure a layer for each line of the input, [name, shape]."""
    layers = peers()
    print(json.dumps([*layers]), flush=True)
    for line in sys.stdin:
        name, shape = json.loads(line)
        print(json.dumps(measured(layers[name], shape)), flush=True)


class Remote:
    """The layers of another python."""

    def __init__(self, python, threads):
        words = [python, __file__, "--serve", "--threads", str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True)
        self.names = json.loads(self.process.stdout.readline())

    def measured(self, name, shape):
        """As the function of this name."""
        print(json.dumps([name, shape]), file=self.process.stdin, flush=True)
        return tuple(json.loads(self.process.stdout.readline()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peers", metavar="PYTHON")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        serve()
        return
    layers = ours()
    runs = {
        name: lambda shape, layer=layer: measured(layer, shape) for name, layer in layers.items()
    }
    if options.peers:
        remote = Remote(options.peers, options.threads)
        runs |= {n: lambda shape, n=n: remote.measured(n, shape) for n in remote.names}
    for shape in SHAPES:
        found = {name: [] for name in runs}
        for _ in range(options.repeats + 1):
            for name, run in runs.items():
                found[name].append(run(shape))
        times = {n: statistics.median(ms for ms, _ in all_[1:]) for n, all_ in found.items()}
        print(f"\n{'x'.join(map(str, shape)):24}{'ms':>9}{'relative':>10}{'saved MB':>10}")
        for name, ms in times.items():
            saved = found[name][-1][1]
            print(f"{name:24}{ms:9.1f}{ms / times['bs.LIF']:10.2f}{saved:10.1f}")


if __name__ == "__main__":
    main()
