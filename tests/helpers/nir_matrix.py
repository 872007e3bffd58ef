"""Which library's NIR files other libraries run, and with what share of equal spikes.

`measure` writes and runs all of them, with `nir_peers.py` in the other environment, and `table`
makes the Markdown of docs/nir.md from what it returns.
"""

import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

import backspike as bs
from helpers import peers

SCRIPT = Path(__file__).with_name("nir_peers.py")
T, B = 60, 3
READERS = ("backspike", "snntorch", "norse", "sinabs", "spikingjelly", "nir", "snn_mlir")
TITLES = (
    *("written by", "backspike", "snnTorch", "Norse", "sinabs", "SpikingJelly"),
    *("nir 1.0.4", "nir 1.0.8", "snn-mlir"),
)
# each library's networks, and what our reader must be told of what the file leaves open
WRITERS = {
    "snnTorch": {"Leaky": {}, "Synaptic": {}, "conv": {}, "RLeaky": {}, "RSynaptic": {}},
    "Norse": {
        "LIFBox": {"dt": 1e-3},
        "conv": {"dt": 1e-3},
        "IAF": {},
        "LIF": {"dt": 1e-3},
    },
    "sinabs": {
        "IAF": {"v_reset": None},
        "LIF": {"v_reset": None, "dt": 1.0, "exact": True},
        "conv": {"v_reset": None},
    },
    "SpikingJelly": {
        **{"IF": {}, "LIF": {}, "LIF-undecayed": {}, "PLIF": {}, "CUBALIF": {}, "conv": {}},
    },
}
DT = {"Norse": 1e-3, "sinabs": 1.0}  # for the other readers, where they take one


def weighted(model, std=3.0):
    torch.manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            nn.init.normal_(m.weight, std=std / m.weight[0].numel() ** 0.5)
            if m.bias is not None:
                nn.init.normal_(m.bias, std=0.1)
    return model.eval()


def calm(model):
    """Currents between 0 and the threshold of 1, for inputs between 0 and 1."""
    torch.manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            nn.init.uniform_(m.weight, 0, 1 / m.weight[0].numel())
            nn.init.uniform_(m.bias, 0, 0.05)
    return model.eval()


def flat(neuron):
    layers = bs.OverTime(nn.Linear(7, 9)), neuron(), bs.OverTime(nn.Linear(9, 4)), neuron()
    return bs.Sequential(*layers)


def image(neuron):
    first = bs.OverTime(nn.Conv2d(2, 5, 3, padding=1)), neuron()
    return bs.Sequential(
        *first, bs.OverTime(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(80, 4)), neuron()
    )


def recurrent(neuron, bias=True):
    first = bs.OverTime(nn.Linear(7, 9)), bs.Recurrent(nn.Linear(9, 9, bias), neuron())
    return bs.Sequential(*first, bs.OverTime(nn.Linear(9, 4)), neuron())


def lif(**options):
    return lambda: bs.LIF(
        2.0, **{"v_threshold": 0.7, "decay_input": True, "v_reset": 0.0} | options
    )


def cuba():
    return bs.CubaLIF(3.0, tau_synapse=2.5, v_threshold=0.4, v_reset=0.0, decay_input=True)


def hard():
    return bs.IF(v_threshold=1.0, v_reset=0.0)


def soft():
    return bs.IF(v_threshold=1.0, v_reset=None)


OURS = {
    "LIF": (lambda: weighted(flat(lif())), {}),
    'LIF, `dialect="1.0.4"`': (lambda: weighted(flat(lif())), {"dialect": "1.0.4"}),
    'LIF, `gain="unit"`': (lambda: weighted(flat(lif())), {"gain": "unit"}),
    "LIF, `decay_input=False`": (lambda: weighted(flat(lif(decay_input=False))), {}),
    'the same, `gain="decayed"`': (
        lambda: weighted(flat(lif(decay_input=False))),
        {"gain": "decayed"},
    ),
    "LIF, `v_reset=-0.2`": (lambda: weighted(flat(lif(v_reset=-0.2))), {}),
    "IF": (lambda: weighted(flat(hard)), {}),
    "IF, `dt=1`": (lambda: weighted(flat(hard)), {"dt": 1.0}),
    "IF, soft reset, `dt=1`": (lambda: weighted(flat(soft)), {"dt": 1.0}),
    "the same, currents in 0..1": (lambda: calm(flat(soft)), {"dt": 1.0}),
    "CubaLIF": (lambda: weighted(flat(cuba)), {}),
    'CubaLIF, `gain="unit"`': (lambda: weighted(flat(cuba)), {"gain": "unit"}),
    "conv, LIF": (lambda: weighted(image(lif())), {}),
    'conv, LIF, `pool="sum"`': (lambda: weighted(image(lif())), {"pool": "sum"}),
    'conv, IF, soft, 0..1, `dt=1`, `pool="sum"`': (
        lambda: calm(image(soft)),
        {"dt": 1.0, "pool": "sum"},
    ),
    'recurrent LIF, `gain="unit"`': (lambda: weighted(recurrent(lif())), {"gain": "unit"}),
    'recurrent CubaLIF, `gain="unit"`': (
        lambda: weighted(recurrent(cuba)),
        {"gain": "unit"},
    ),
    "the same, no recurrent bias": (
        lambda: weighted(recurrent(cuba, bias=False)),
        {"gain": "unit"},
    ),
}


def measure(folder):
    """Rows (writer, network, {reader: share of equal spikes, True (loads) or an error})."""
    files = [*_ours(folder), *_theirs(folder)]
    jobs = [
        _job(file, "run", reader, dt=dt)
        for _, _, file, _, dt in files
        for reader in (*READERS[1:], "snntorch_cells")
    ]
    outcomes = iter(_run(folder, jobs))
    old = _run(folder, [_job(f[2], "run", "nir") for f in files], older_nir())
    rows = []
    for (writer, network, file, options, _), of_104 in zip(files, old):
        own, x = np.load(f"{file}-own.npy"), torch.from_numpy(np.load(f"{file}-x.npy"))
        assert 0.01 < own.mean() < 0.9, (writer, network, own.mean())
        with torch.no_grad():
            graph = bs.nir.read(f"{file}.nir", **options)
            cells = {"backspike": (graph(x).numpy() == own).mean(), "nir 1.0.4": of_104 or True}
        for reader in (*READERS[1:], "snntorch_cells"):
            error, out = next(outcomes), Path(f"{file}-{reader}.npy")
            cells[reader] = error or (_share(out, own) if out.exists() else True)
        rows.append((writer, network, cells))
    return rows


def _share(out, own):
    found = np.load(out)
    if found.shape != own.shape:
        return f"gives the shape {found.shape}"
    return (found == own).mean()


def _ours(folder):
    for i, (name, (make, options)) in enumerate(OURS.items()):
        model, file = make(), folder / f"ours-{i}"
        shape = (2, 8, 8) if isinstance(model[0][0], nn.Conv2d) else (7,)
        torch.manual_seed(1)
        x = (torch.rand if "0..1" in name else torch.randn)(T, B, *shape)
        bs.nir.write(model, f"{file}.nir", x, **options)
        np.save(f"{file}-x.npy", x)
        with torch.no_grad():
            np.save(f"{file}-own.npy", model(x))
        yield "backspike", name, file, {}, options.get("dt", 1e-4)


def _theirs(folder):
    for writer, networks in WRITERS.items():
        files = {name: folder / f"{writer}-{name}" for name in networks}
        jobs = [_job(file, "write", writer.lower(), network=name) for name, file in files.items()]
        for (name, options), failed in zip(networks.items(), _run(folder, jobs)):
            assert failed is None, (writer, name, failed)
            yield writer, name, files[name], options, DT.get(writer, 1e-4)


def _job(file, do, library, **more):
    out = "own" if do == "write" else library
    paths = {"file": f"{file}.nir", "x": f"{file}-x.npy", "out": f"{file}-{out}.npy"}
    return {"do": do, "library": library, **paths, **more}


def _run(folder, jobs, extra=None):
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return peers.run(SCRIPT, folder / "jobs.json", extra=extra)


def older_nir():
    """The folder that has nir 1.0.4, of BACKSPIKE_PEER_FOLDERS."""
    for path in filter(None, os.environ.get("BACKSPIKE_PEER_FOLDERS", "").split(os.pathsep)):
        if (Path(path) / "nir-1.0.4.dist-info").is_dir():
            return path
    peers.pytest.skip("BACKSPIKE_PEER_FOLDERS has no folder with nir 1.0.4")
    return None


def table(rows):
    lines = [f"| {' | '.join(TITLES)} |", "|---" * len(TITLES) + "|"]
    for writer, network, cells in rows:
        shown = [_cell(cells[r]) for r in ("backspike", *READERS[1:5])]
        if shown[1] == "no":
            shown[1] = _cell(cells["snntorch_cells"]) + "*"
        shown[1] = "no" if shown[1] == "no*" else shown[1]
        shown += [_cell(cells[r]) for r in ("nir 1.0.4", "nir", "snn_mlir")]
        lines.append(f"| {writer}: {network} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _cell(value):
    if isinstance(value, str):
        return "no"
    if value is True:
        return "yes"
    return "100" if value == 1 else f"{min(100 * value, 99.9):.1f}"
