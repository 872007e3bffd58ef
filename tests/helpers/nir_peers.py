"""NIR files written and run by other libraries, in their environment; imports nothing of ours.

`python nir_peers.py JOBS` takes a file with a JSON list of jobs. It prints a JSON list of what came
of each: null, or an error in one line. A job is {"do": "write" or "run", "library", "file", "x",
"out", ...}. "write" writes the network `network` of WRITERS to `file`, and stores its inputs
`[T, B, ...]` in x and its own spikes in out. "run" reads `file`, runs it with the step `dt` on the
inputs x, and stores the values of its output in out.
"""

import contextlib
import io
import json
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

T, B = 60, 3


# ---- readers -------------------------------------------------------------------------------------


def run_snntorch(path, x, dt):
    import nir
    from snntorch.import_nir import import_from_nir

    return by_samples(lambda: import_from_nir(nir.read(path)), x)


def run_snntorch_cells(path, x, dt):
    """With snnTorch's neurons, but wired by the older function of nirtorch."""
    import nir
    import nirtorch
    from snntorch import import_nir

    def make():
        graph = import_nir._replace_rnn_subgraph_with_nirgraph(nir.read(path))
        return nirtorch.load(graph, lambda n: import_nir._nir_to_snntorch_module(n, True, True))

    return by_samples(make, x)


def run_norse(path, x, dt):
    import nir
    import norse.torch as norse

    return by_samples(lambda: norse.from_nir(nir.read(path), dt=dt), x)


def run_spikingjelly(path, x, dt):
    from spikingjelly.activation_based.nir_exchange import import_from_nir

    return by_steps(import_from_nir(path, dt=dt), x)


def run_sinabs(path, x, dt):
    import nir
    from sinabs.nir import from_nir

    net = from_nir(nir.read(path), batch_size=x.shape[1])
    y, _ = net(x.transpose(0, 1).flatten(0, 1))
    return y.unflatten(0, x.shape[1::-1]).transpose(0, 1)


def run_nir(path, x, dt):
    import nir

    nir.read(path)


def run_snn_mlir(path, x, dt):
    import snn_mlir

    report = snn_mlir.check(path)
    if not report.ok:
        raise ValueError(report.errors[0].message)


def by_samples(make, x):
    """One sample after the other: Flatten of these readers counts no batch."""
    return torch.stack([by_steps(make(), sample) for sample in x.unbind(1)], 1)


def by_steps(net, x):
    state, out = None, []
    for x_t in x:
        y, state = net(x_t, state)
        out.append(y)
    return torch.stack(out)


# ---- writers: a network's layers, the shape of its input, and how it is exported and run ---------


def normal(net, std=3.0):
    """Weights that make neurons fire."""
    torch.manual_seed(0)
    for m in net.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            nn.init.normal_(m.weight, std=std / m.weight[0].numel() ** 0.5)
            nn.init.normal_(m.bias, std=0.1)
    return net.eval()


def write_snntorch(kind, path, x):
    import nir
    import snntorch as snn
    from snntorch.export_nir import export_to_nir

    def neuron(*shape):
        full = partial(torch.full, shape)
        o = {"reset_mechanism": "zero", "init_hidden": True, "threshold": full(1.0)}
        # RSynaptic of snnTorch 1.0.0 fails with reset_delay=False
        o |= {"beta": full(0.8), "reset_delay": kind == "RSynaptic"}
        if kind in ("Synaptic", "RSynaptic"):
            o["alpha"] = full(0.7)
        if kind.startswith("R"):
            o["linear_features"] = shape[0]
        return getattr(snn, "Leaky" if kind == "conv" else kind)(**o)

    make = flat if kind != "conv" else lambda f: image(f, nn.AvgPool2d(2))
    net = normal(make(neuron))

    def reset():
        for m in net:
            if hasattr(m, "reset_mem"):
                m.reset_mem()

    out = []
    for sample in x.unbind(1):
        reset()
        out.append(torch.stack([net(x_t[None])[0] for x_t in sample]))
    reset()
    nir.write(path, export_to_nir(net, x[0, :1], ignore_dims=[0]))
    return torch.stack(out, 1)


def flat(neuron):
    return nn.Sequential(nn.Linear(7, 9), neuron(9), nn.Linear(9, 4), neuron(4))


def image(neuron, pool):
    return nn.Sequential(
        *(nn.Conv2d(2, 5, 3, padding=1), neuron(5, 8, 8), pool),
        *(nn.Flatten(), nn.Linear(80, 4), neuron(4)),
    )


def write_norse(kind, path, x):
    import nir
    import norse.torch as norse

    def neuron(*shape):
        full = partial(torch.full, shape)
        if kind == "IAF":
            return norse.IAFCell(norse.IAFParameters(v_th=full(1.0), v_reset=full(0.0)))
        if kind == "LIF":
            p = norse.LIFParameters(full(200.0), full(100.0), full(0.0), full(1.0), full(0.0))
            return norse.LIFCell(p)
        return norse.LIFBoxCell(
            norse.LIFBoxParameters(full(200.0), full(0.0), full(1.0), full(0.0))
        )

    net = flat(neuron)
    if kind == "conv":  # to_nir knows neither pools nor Flatten
        net = nn.Sequential(
            *(nn.Conv2d(2, 5, 3), neuron(5, 6, 6), nn.Conv2d(5, 4, 6), neuron(4, 1, 1))
        )
    net = norse.SequentialState(*normal(net, 2.5 if kind == "IAF" else 12.0))
    # with its default dt=0.001, the time constants are in units of 1/1000 of what from_nir reads
    graph = norse.to_nir(net, x[0, 0], dt=1.0)
    graph.infer_types()  # without it nir 1.0.8 cannot write a convolution
    nir.write(path, graph)
    return by_samples(lambda: net, x)


def write_sinabs(kind, path, x):
    import nir
    import sinabs.layers as sl
    from sinabs.activation import SingleSpike
    from sinabs.nir import to_nir

    def neuron(*shape):
        o = {"spike_threshold": torch.ones(shape), "batch_size": B, "spike_fn": SingleSpike}
        if kind == "LIF":
            return sl.LIFSqueeze(tau_mem=torch.full(shape, 5.0), **o)
        return sl.IAFSqueeze(**o)

    make = flat if kind != "conv" else lambda f: image(f, sl.SumPool2d(2))
    net = normal(make(neuron), 6 if kind == "LIF" else 0.8)
    flattened = x.transpose(0, 1).flatten(0, 1)
    spikes = net(flattened).unflatten(0, (B, T)).transpose(0, 1)
    graph = to_nir(net, flattened[:B])
    graph.infer_types()  # without it nir 1.0.8 cannot write a convolution
    nir.write(path, graph)
    return spikes


def write_spikingjelly(kind, path, x):
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    kinds = {
        "IF": lambda *n: neuron.IFNode(),
        "LIF": lambda *n: neuron.LIFNode(tau=2.0, v_threshold=0.7, v_reset=-0.2),
        "LIF-undecayed": lambda *n: neuron.LIFNode(tau=3.7, decay_input=False),
        "PLIF": lambda *n: neuron.ParametricLIFNode(init_tau=3.0),
        "CUBALIF": lambda *n: neuron.CUBALIFNode(c_decay=0.5, v_decay=0.7),
    }
    make = flat if kind != "conv" else lambda f: image(f, layer.AvgPool2d(2))
    net = normal(make(kinds.get(kind, kinds["LIF-undecayed"])))
    export_to_nir(net, x[0, :1], save_path=path)
    functional.reset_net(net)
    return torch.stack([net(x_t) for x_t in x])


WRITERS = {
    "snntorch": ("Leaky", "Synaptic", "RLeaky", "RSynaptic", "conv"),
    "norse": ("LIFBox", "LIF", "IAF", "conv"),
    "sinabs": ("IAF", "LIF", "conv"),
    "spikingjelly": ("IF", "LIF", "LIF-undecayed", "PLIF", "CUBALIF", "conv"),
}


def do(job):
    x, dt = Path(job["x"]), job.get("dt", 1e-4)
    if job["do"] == "write":
        torch.manual_seed(1)
        data = torch.randn(T, B, *((2, 8, 8) if job["network"] == "conv" else (7,)))
        np.save(x, data.numpy())
        y = globals()[f"write_{job['library']}"](job["network"], job["file"], data)
    else:
        y = globals()[f"run_{job['library']}"](job["file"], torch.from_numpy(np.load(x)), dt)
    if y is not None:
        np.save(job["out"], y.detach().numpy())


def main():
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                do(job)
            results.append(None)
        except Exception as error:
            text = (str(error) or type(error).__name__).splitlines()[0]
            results.append(f"{type(error).__name__}: {text}")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
