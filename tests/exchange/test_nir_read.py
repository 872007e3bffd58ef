"""NIR files of others: the right spikes and guesses, and one line for what cannot be read."""

import os
import random
import subprocess
import sys
import time
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.paths import DATA
from torch import nn

import backspike as bs
from backspike.errors import BackspikeError
from backspike.exchange import nir_file
from backspike.exchange.nir_read import load

nir = pytest.importorskip("nir")
h5py = pytest.importorskip("h5py")
FILES = DATA / "nir"
needs_files = pytest.mark.skipif(not FILES.is_dir(), reason="the NIR files are not here")


def ones(*shape):
    return np.ones(shape)


def lif(n=3, tau=2e-3, **changes):
    options = {"tau": tau * ones(n), "r": ones(n), "v_leak": 0 * ones(n), "v_threshold": ones(n)}
    return nir.LIF(**(options | {"v_reset": 0 * ones(n)} | changes))


def written(path, nodes, edges=None, shape=(3,), out=(3,), metadata=None):
    """A file of these nodes between input and output, in a row unless edges are given."""
    names = ["input", *nodes, "output"]
    nodes = {"input": nir.Input({"input": np.array(shape)}), **nodes}
    nodes["output"] = nir.Output({"output": np.array(out)})
    edges = list(pairwise(names)) if edges is None else edges
    graph = nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata or {}, type_check=False)
    nir.write(str(path), graph)
    return path


IN_A_WORKER = ("test_damaged_and_truncated_files", "test_a_leak_to_elsewhere")


class SameProcess:
    """In the place of a worker, whose start takes a second."""

    def __init__(self, **options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def call(self, function, *args, timeout):
        return function(*args)


@pytest.fixture(autouse=True)
def _in_this_process(request, monkeypatch):
    if request.node.originalname not in IN_A_WORKER:
        monkeypatch.setattr(nir_file, "Worker", SameProcess)


@pytest.fixture
def file(tmp_path):
    return lambda *args, **options: written(tmp_path / "net.nir", *args, **options)


# ---- files of others -----------------------------------------------------------------------------


@needs_files
def test_the_lif_file_fires_where_the_exact_solution_does(caplog):
    graph = bs.nir.read(FILES / "lif_norse.nir")
    x = np.loadtxt(FILES / "lif_exact.csv", delimiter=",")
    spikes = graph(torch.tensor(x[:, 0], dtype=torch.float32).view(-1, 1, 1)).flatten()
    assert spikes.nonzero().flatten().tolist() == [460, 510, 710, 760]
    assert np.array_equal(spikes.detach().numpy(), x[:, 2])
    assert graph.dt == 1e-4
    assert "dt is guessed as 0.0001 s, the step of the NIR paper" in caplog.text
    assert "the file does not say how 1 of its neurons are reset; taken: to 0" in caplog.text


def snntorch(nodes, x):
    """The Braille network by the equations in snnTorch's documentation of RSynaptic and Synaptic
    (reset_mechanism="zero", reset_delay=False), which share no code with ours:

    syn[t] = alpha syn[t-1] + input[t] + V(spk[t-1]),  mem[t] = beta mem[t-1] + syn[t],
    spk[t] = mem[t] > threshold,  then mem = 0 where spk = 1
    """
    dt, (B, T) = 1e-4, x.shape[1::-1]
    fc1, fc2, back = nodes["fc1"], nodes["fc2"], nodes["lif1.w_rec"]

    def layer(n):
        assert np.allclose(n.r, n.tau_mem / dt)
        assert np.allclose(n.w_in, n.tau_syn / dt)
        return 1 - dt / n.tau_syn, 1 - dt / n.tau_mem, n.v_threshold

    def step(constants, state, drive):
        alpha, beta, threshold = constants
        syn = alpha * state[0] + drive
        mem = beta * state[1] + syn
        spk = (mem > threshold).astype(float)
        return spk, (syn, mem * (1 - spk))

    one, two = layer(nodes["lif1.lif"]), layer(nodes["lif2"])
    n, m = len(fc1.bias), len(fc2.bias)
    a, b = (np.zeros((B, n)),) * 2, (np.zeros((B, m)),) * 2
    hidden, out = [np.zeros((B, n))], []
    w = {k: np.asarray(v.weight, float) for k, v in {"1": fc1, "2": fc2, "r": back}.items()}
    c = {k: np.asarray(v.bias, float) for k, v in {"1": fc1, "2": fc2, "r": back}.items()}
    for t in range(T):
        s, a = step(one, a, x[t] @ w["1"].T + c["1"] + hidden[-1] @ w["r"].T + c["r"])
        o, b = step(two, b, s @ w["2"].T + c["2"])
        hidden.append(s)
        out.append(o)
    return np.stack(hidden[1:]), np.stack(out)


@needs_files
def test_the_braille_network_gives_the_spikes_of_snntorch():
    path = FILES / "braille_noDelay_bias_zero.nir"
    x = np.random.default_rng(0).random((256, 8, 12)) < 0.05
    hidden, out = snntorch(nir.read(str(path)).nodes, x.astype(float))
    graph = load(path)
    with torch.no_grad():
        values = graph.trace(torch.tensor(x, dtype=torch.float64))
    assert graph.dt == 1e-4
    assert "R = tau/dt" in graph.guessed
    assert 0.01 < hidden.mean() < 0.5
    assert 0.01 < out.mean() < 0.5
    assert np.array_equal(values["lif1.lif"].numpy(), hidden)
    assert np.array_equal(values["output"].numpy(), out)


def test_a_file_can_be_trained_further(file):
    graph = bs.nir.read(file({"w": nir.Linear(ones(3, 3)), "n": lif()}))
    x = torch.rand(20, 2, 3)
    graph(x).sum().backward()
    (weight,) = graph.parameters()
    assert weight.dtype == torch.float32
    assert weight.grad.abs().sum() > 0


# ---- guesses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "dt"),
    [
        ({"a": lif(tau=2e-3)}, 1e-4),
        ({"a": lif(tau=8e-3, r=8 * ones(3)), "b": lif(tau=3e-3, r=3 * ones(3))}, 1e-3),
        ({"a": lif(tau=20.0)}, 1.0),  # as sinabs writes time constants in timesteps
        ({"a": nir.IF(r=ones(3) * 1e4, v_threshold=ones(3))}, 1e-4),
        ({"a": nir.IF(r=ones(3), v_threshold=ones(3))}, 1.0),
        ({"a": nir.Linear(ones(3, 3))}, 1e-4),
    ],
    ids=["unit-r", "r-is-tau-over-dt", "timesteps", "if", "if-unit", "none"],
)
def test_guesses_of_dt(nodes, dt, file):
    graph = bs.nir.read(file(nodes))
    assert graph.dt == pytest.approx(dt)
    assert bool(graph.guessed) == ("tau" in vars(nodes["a"]) or "r" in vars(nodes["a"]))


def test_dt_given_and_dt_in_the_file(file):
    assert bs.nir.read(file({"a": lif()}), dt=5e-4).dt == 5e-4
    graph = bs.nir.read(file({"a": lif()}, metadata={"dt": 2e-4}))
    assert (graph.dt, graph.guessed) == (2e-4, "")
    for node, message in [(lif(tau=1e-5), "give dt="), (nir.Delay(ones(3)), "give dt=")]:
        with pytest.raises(BackspikeError, match=message):
            bs.nir.read(file({"a": node}))
    with pytest.raises(BackspikeError, match=r"tau is shorter than the timestep of 0\.01 s"):
        bs.nir.read(file({"a": lif()}), dt=0.01)
    with pytest.raises(BackspikeError, match="dt must be a positive number"):
        bs.nir.read(file({"a": lif()}), dt=-1)


def test_the_reset_where_the_file_says_nothing(file):
    path = file({"a": nir.IF(r=ones(1), v_threshold=ones(1))}, shape=(1,), out=(1,))
    x = torch.tensor([0.8] * 4).view(4, 1, 1)
    with h5py.File(path, "a") as f:
        del f["node/nodes/a/v_reset"]
    assert bs.nir.read(path)(x).flatten().tolist() == [0, 1, 0, 1]
    assert bs.nir.read(path, v_reset=None)(x).flatten().tolist() == [0, 1, 1, 1]
    # an IF starts at its reset, as ours does
    assert bs.nir.read(path, v_reset=-2.0)(x).flatten().tolist() == [0, 0, 0, 1]


# ---- nodes ---------------------------------------------------------------------------------------


def test_a_tie_does_not_fire_in_files_of_others(file):
    node = {"a": nir.IF(r=ones(1), v_threshold=ones(1))}
    x = torch.ones(1, 1, 1)
    assert bs.nir.read(file(node, shape=(1,), out=(1,)))(x) == 0
    ours = file(node, shape=(1,), out=(1,), metadata={"tie": "fires"})
    assert bs.nir.read(ours)(x) == 1


def test_delay_scale_threshold_and_pools(file):
    x = torch.rand(6, 2, 3)
    delay = bs.nir.read(file({"a": nir.Delay(np.array([0, 1e-4, 3e-4]))}), dt=1e-4)(x)
    for i, d in enumerate((0, 1, 3)):
        assert torch.equal(delay[d:, :, i], x[: 6 - d, :, i])
        assert (delay[:d, :, i] == 0).all()
    scale = bs.nir.read(file({"a": nir.Scale(np.array([1.0, 2, 3]))}))(x)
    assert torch.equal(scale, x * torch.tensor([1.0, 2, 3]))
    over = bs.nir.read(file({"a": nir.Threshold(ones(3) / 2)}))(x)
    assert torch.equal(over, (x > 0.5).float())
    image = torch.rand(2, 2, 1, 4, 4)
    two, none = np.array([2, 2]), np.array([0, 0])
    options = {"shape": (1, 4, 4), "out": (1, 2, 2)}
    total = bs.nir.read(file({"a": nir.SumPool2d(two, two, none)}, **options))(image)
    assert torch.allclose(total, image.unflatten(4, (2, 2)).unflatten(3, (2, 2)).sum((4, 6)))
    mean = bs.nir.read(file({"a": nir.AvgPool2d(two, two, none)}, **options))(image)
    assert torch.allclose(mean, total / 4)


def test_convolutions_and_flatten(file):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    w, b = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    nodes = {
        "c": nir.Conv2d((7, 7), w, 2, 1, 1, 2, b),
        "f": nir.Flatten({"input": np.array([6, 4, 4])}, 0, -1),
    }
    graph = bs.nir.read(file(nodes, shape=(4, 7, 7), out=(96,)))
    x = torch.rand(3, 2, 4, 7, 7)
    expected = layer(x.flatten(0, 1)).flatten(1).unflatten(0, (3, 2))
    assert torch.allclose(graph(x), expected, atol=1e-6)
    same = {"c": nir.Conv1d(9, ones(1, 1, 3), 1, "same", 1, 1, np.zeros(1))}
    y = bs.nir.read(file(same, shape=(1, 9), out=(1, 9)))(torch.ones(1, 1, 1, 9))
    assert y.flatten().tolist() == [2, 3, 3, 3, 3, 3, 3, 3, 2]


def test_a_flatten_of_sinabs_counts_the_batch(file):
    path = file({"f": nir.Flatten({"input": np.zeros(4, int)}, 1, -1)}, shape=(2, 3, 3), out=(18,))
    assert bs.nir.read(path)(torch.rand(4, 2, 2, 3, 3)).shape == (4, 2, 18)


def test_a_leak_to_elsewhere(file):
    """v_leak apart from v_reset, which `bs.lif` does not have: by hand, with tau = 2 dt."""
    node = lif(1, 2e-4, v_leak=ones(1) * 0.5, v_reset=-ones(1), v_threshold=ones(1))
    graph = bs.nir.read(file({"a": node}, shape=(1,), out=(1,)))
    x = torch.tensor([0, 1.75, 0, 3]).view(4, 1, 1)
    # v: 0.5, 1.375 -> -1, -0.25, 1.625
    assert graph(x).flatten().tolist() == [0, 1, 0, 1]


def test_branches_meet_and_nested_graphs_open(file):
    inner = nir.NIRGraph(
        nodes={
            "input": nir.Input({"input": np.array([3])}),
            "n": nir.Scale(3 * ones(3)),
            "output": nir.Output({"output": np.array([3])}),
        },
        edges=[("input", "n"), ("n", "output")],
    )
    nodes = {"a": nir.Scale(2 * ones(3)), "g": inner}
    edges = [("input", "a"), ("input", "g"), ("a", "output"), ("g", "output")]
    graph = bs.nir.read(file(nodes, edges))
    x = torch.rand(4, 2, 3)
    assert torch.allclose(graph(x), 5 * x)
    assert "g.n" in graph.names


def test_a_cycle_over_two_layers(file):
    """a drives b in the same timestep, b inhibits a one timestep later."""
    nodes = {
        "a": nir.IF(r=ones(1) * 1e4, v_threshold=ones(1) / 2),
        "w": nir.Linear(ones(1, 1)),
        "b": nir.IF(r=ones(1) * 1e4, v_threshold=ones(1) / 2),
        "back": nir.Affine(-ones(1, 1), ones(1) / 4),
    }
    edges = [("input", "a"), ("a", "w"), ("w", "b"), ("b", "back"), ("back", "a"), ("b", "output")]
    graph = bs.nir.read(file(nodes, edges, shape=(1,), out=(1,)), dt=1e-4)
    x = torch.tensor([0.3, 1, 1, 0.9]).view(4, 1, 1)
    # a: 0.3 + 0.25 fires; 1 + 0.25 - 1 does not; 0.25 + 1 + 0.25 fires; 0.9 + 0.25 - 1 does not
    assert graph(x).flatten().tolist() == [1, 0, 1, 0]
    assert graph.trace(x)["a"].flatten().tolist() == [1, 0, 1, 0]


def test_a_neuron_that_drives_itself(file):
    node = nir.IF(r=ones(1) * 1e4, v_threshold=ones(1) / 2)
    edges = [("input", "a"), ("a", "a"), ("a", "output")]
    graph = bs.nir.read(file({"a": node}, edges, shape=(1,), out=(1,)), dt=1e-4)
    x = torch.tensor([0.6, 0, -0.9, 0.1]).view(4, 1, 1)
    # 0.6 fires; 0 + 1 fires; -0.9 + 1 does not and stays; 0.1 + 0.1 does not
    assert graph(x).flatten().tolist() == [1, 1, 0, 0]


# ---- refusals ------------------------------------------------------------------------------------


def refused(path, **options):
    start = time.perf_counter()
    with pytest.raises(BackspikeError) as error:
        bs.nir.read(path, **options)
    assert "\n" not in str(error.value)
    assert time.perf_counter() - start < 60
    return str(error.value)


def change(path, place, value):
    with h5py.File(path, "a") as f:
        del f[place]
        f[place] = value
    return path


def test_unknown_and_broken_nodes_are_named(file):
    path = file({"a": lif()})
    assert "'a' has the type 'Quantum'" in refused(change(path, "node/nodes/a/type", "Quantum"))
    path = change(file({"a": lif()}), "node/nodes/a/tau", np.array([np.nan] * 3))
    assert "node 'a': tau holds values that are not finite" in refused(path)
    path = change(file({"a": lif()}), "node/nodes/a/tau", np.ones(7))
    assert "node 'a': its constants have different shapes" in refused(path)
    path = file({"a": lif()})
    with h5py.File(path, "a") as f:
        del f["node/nodes/a/r"]
    assert "node 'a' (LIF) has no r" in refused(path)
    assert "leads to 'nowhere'" in refused(file({"a": lif()}, [("input", "a"), ("a", "nowhere")]))


def test_cycles_without_a_neuron_are_refused(file):
    nodes = {"a": nir.Linear(ones(3, 3)), "b": nir.Scale(ones(3))}
    edges = [("input", "a"), ("a", "b"), ("b", "a"), ("b", "output")]
    assert "a cycle without a neuron: ['a'" in refused(file(nodes, edges))
    assert "a cycle without a neuron" in refused(
        file({"a": nodes["b"]}, [("input", "a"), ("a", "a"), ("a", "output")])
    )


def test_inputs_of_another_shape_are_refused(file):
    graph = bs.nir.read(file({"w": nir.Linear(ones(2, 3)), "n": lif(5)}, out=(5,)))
    with pytest.raises(
        BackspikeError, match=r"node 'input': expected timesteps of \[3\], got \[4\]"
    ):
        graph(torch.rand(2, 1, 4))
    with pytest.raises(BackspikeError, match=r"node 'n': a neuron of shape \[5\] gets .* \[2\]"):
        graph(torch.rand(2, 1, 3))


def test_names_with_escapes_stay_on_one_line(file, tmp_path):
    path = file({"a\x1b[2J\n": lif(tau=1e-7)}, [])
    assert "\x1b" not in refused(path, dt=1e-4)


def test_claims_of_huge_arrays_take_no_memory(file):
    for options in ({}, {"chunks": (1 << 20,), "compression": "gzip"}):
        path = file({"w": nir.Linear(ones(3, 3))})
        with h5py.File(path, "a") as f:
            del f["node/nodes/w/weight"]
            f["node/nodes/w"].create_dataset("weight", (10**9,), "f8", **options)
        assert "claims a shape of (1000000000,)" in refused(path)
    path = change(
        file({"c": nir.Conv1d(9, ones(1, 1, 3), 1, 0, 1, 1, np.zeros(1))}),
        "node/nodes/c/padding",
        10**9,
    )
    assert "node 'c': padding is out of bounds" in refused(path)
    assert "more than 10000 timesteps" in refused(file({"d": nir.Delay(ones(3) * 1e9)}), dt=1e-4)


def test_links_and_deep_groups_are_refused(file, tmp_path):
    path = file({"a": lif()})
    with h5py.File(path, "a") as f:
        f["node/nodes/b"] = h5py.ExternalLink("/etc/passwd", "x")
    assert "'b' is a link to another place" in refused(path)
    path = file({"a": lif()})
    with h5py.File(path, "a") as f:
        f["node/nodes/a/round"] = f["node"]
    assert "stands in two places" in refused(path)
    path = file({"a": lif()})
    with h5py.File(path, "a") as f:
        f.create_group("node/nodes/a/" + "/".join("x" * 40))
    assert "deep" in refused(path)


def test_damaged_and_truncated_files(file, tmp_path):
    path = file({"w": nir.Affine(ones(3, 3), ones(3)), "a": lif()})
    data = path.read_bytes()
    assert "is no file" in refused(tmp_path / "none.nir")
    path.write_bytes(b"")
    assert "truncated, damaged or no NIR file" in refused(path)
    path.write_bytes(data[: len(data) // 2])
    refused(path)
    with h5py.File(path, "w") as f:
        f["x"] = 1
    assert "no group 'node'" in refused(path)
    dice = random.Random(0)
    for _ in range(3):
        damaged = bytearray(data)
        for _ in range(30):
            damaged[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(damaged)
        with suppress(BackspikeError):
            bs.nir.read(path)


def test_the_process_that_reads_loads_no_torch(file):
    code = "import sys, backspike.exchange.nir_file; sys.exit('torch' in sys.modules)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0
