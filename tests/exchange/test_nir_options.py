"""Options of `bs.nir.write` (pool, gain) and `bs.nir.read` (v_reset, exact, learn, surrogate)."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import backspike as bs
from backspike.cli import main
from backspike.errors import BackspikeError
from backspike.exchange.nir_read import Options, load
from backspike.neuron.hooks import record

nir = pytest.importorskip("nir")
T = 60


def random(model, std=3.0):
    torch.manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            nn.init.normal_(m.weight, std=std / m.weight[0].numel() ** 0.5)
    return model.eval()


def write(model, sample, path, **options):
    """Write, read in float64 and compare every spike; `write` has done so too."""
    made = bs.nir.write(model, path, sample, **options)
    graph = load(path, trusted=True)
    with torch.no_grad(), record(model.double()) as outputs:
        expected = model(sample.double())
        values = graph.trace(sample.double())
    assert torch.allclose(values["output"], expected, rtol=0, atol=1e-9)
    assert made.spikes == sum(int(o.spikes.sum()) for o in outputs.values()) > 0
    return graph, nir.read(str(path)).nodes


# ---- pool="sum" ----------------------------------------------------------------------------------


def test_the_divisor_of_a_pool_goes_into_the_weights_behind_it(tmp_path):
    layers = nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d(2), nn.AvgPool2d((2, 1), 2), nn.Flatten()
    model = random(bs.Sequential(bs.OverTime(*layers, nn.Linear(16, 5)), bs.LIF(2.5)))
    _, nodes = write(model, torch.randn(T, 2, 2, 8, 8), tmp_path / "a.nir", pool="sum")
    kinds = {type(n).__name__ for n in nodes.values()}
    assert "SumPool2d" in kinds
    assert not kinds & {"AvgPool2d", "Scale"}
    weight = model[0][4].weight.detach().numpy()
    assert np.array_equal(nodes["0_4"].weight, weight / 8)


def test_without_weights_behind_it_a_scale_node_takes_the_divisor(tmp_path):
    model = random(
        bs.Sequential(
            bs.OverTime(nn.Conv2d(2, 4, 3), nn.AvgPool2d(3)), bs.LIF(2.5), nn.AvgPool2d(2)
        )
    )
    model = bs.Sequential(*model[:2], bs.OverTime(model[2]))
    _, nodes = write(model, torch.randn(T, 2, 2, 8, 8), tmp_path / "a.nir", pool="sum")
    scales = {name: np.unique(n.scale) for name, n in nodes.items() if type(n) is nir.Scale}
    assert scales == {"0_1_scale": [1 / 9], "2_0_scale": [1 / 4]}


def test_branches_with_different_divisors_meet(tmp_path):
    model = bs.models.resnet18(num_classes=3, in_channels=1, stem="cifar", neuron=bs.LIF)
    model.layer1[0].downsample = bs.OverTime(nn.AvgPool2d(3, 1, 1))
    sample = torch.rand(3, 1, 1, 8, 8) * 9
    graph, _ = write(model.eval(), sample, tmp_path / "a.nir", pool="sum")
    assert graph.sources["layer1_0_sn2"] == ["layer1_0_conv2", "layer1_0_downsample_0_scale"]


# ---- gain ----------------------------------------------------------------------------------------

NEURONS = {
    "LIF": lambda **o: bs.LIF(2.3, v_threshold=0.8, v_reset=-0.3, **o),
    "soft": lambda **o: bs.LIF(3.0, v_threshold=0.8, v_reset=None, **o),
    "PLIF": lambda **o: bs.PLIF(2.9, v_threshold=0.8, v_reset=0.0, **o),
    "CubaLIF": lambda **o: bs.CubaLIF(2.1, tau_synapse=3.3, v_threshold=0.3, v_reset=0.0, **o),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("gain", ["unit", "decayed"])
@pytest.mark.parametrize("kind", NEURONS)
def test_gain(kind, gain, decay, tmp_path):
    neuron = NEURONS[kind](decay_input=decay)
    model = random(bs.Sequential(nn.Linear(5, 8), neuron))
    _, nodes = write(model, torch.randn(T, 2, 5), tmp_path / "a.nir", gain=gain)
    node, dt = nodes["1"], 1e-4
    tau = node.tau_mem if kind == "CubaLIF" else node.tau
    assert np.allclose(node.r, tau / dt if gain == "unit" else 1)
    taus = tau / dt
    if kind == "CubaLIF":
        assert np.allclose(node.w_in, node.tau_syn / dt if gain == "unit" else 1)
        taus = taus * node.tau_syn / dt
    scale = 1 if decay == (gain == "decayed") else taus if decay else 1 / taus
    assert np.allclose(node.v_threshold, neuron.options.v_threshold * scale)
    assert np.allclose(node.v_reset, (neuron.options.v_reset or 0) * scale)
    assert np.allclose(node.v_leak, node.v_reset)


def test_gain_leaves_an_if_as_it_is(tmp_path):
    model = random(bs.Sequential(nn.Linear(5, 8), bs.IF(v_threshold=1.3, v_reset=0.0)))
    _, nodes = write(model, torch.randn(T, 2, 5), tmp_path / "a.nir", gain="decayed")
    assert np.unique(nodes["1"].r) == [1e4]
    assert np.unique(nodes["1"].v_threshold) == [1.3]


@pytest.mark.parametrize("option", ["pool", "gain", "dialect"])
def test_unknown_choices_are_named(option, tmp_path):
    with pytest.raises(BackspikeError, match=f"{option} must be one of .*, got 'x'"):
        bs.nir.write(bs.LIF(), tmp_path / "a.nir", torch.rand(2, 1, 3), **{option: "x"})


def test_the_options_on_the_command_line(tmp_path):
    recipe = bs.recipes.digits().replace(
        {"limit": 40, "epochs": 1, "model": "ConvNet('4-P', size=8)"}
    )
    bs.fit(recipe, tmp_path / "run", report=False)
    out = tmp_path / "a.nir"
    options = ["--pool", "sum", "--gain", "unit", "--dt", "0.001", "--dialect", "1.0.4"]
    assert main(["export", str(tmp_path / "run"), "--to", "nir", "--out", str(out), *options]) == 0
    nodes = nir.read(str(out)).nodes
    kinds = {type(n).__name__ for n in nodes.values()}
    assert "SumPool2d" in kinds
    for node in nodes.values():
        if isinstance(node, nir.LIF):
            assert np.allclose(node.r, node.tau / 1e-3)
    assert main(["export", str(tmp_path / "run"), "--to", "nir", "--dt", "-1"]) == 1


# ---- what read is told ---------------------------------------------------------------------------


def file(path, nodes, shape=(3,), metadata=None):
    names = ["input", *nodes, "output"]
    nodes = {"input": nir.Input({"input": np.array(shape)}), **nodes}
    nodes["output"] = nir.Output({"output": np.array(shape)})
    edges = list(pairwise(names))
    graph = nir.NIRGraph(nodes=nodes, edges=edges, metadata=metadata or {}, type_check=False)
    nir.write(str(path), graph)
    return path


def ones(*shape):
    return np.ones(shape)


def lif(**changes):
    o = {"tau": 5e-4 * ones(3), "r": ones(3), "v_leak": 0 * ones(3), "v_threshold": 0.5 * ones(3)}
    return nir.LIF(**(o | changes))


@pytest.fixture
def load_file(tmp_path):
    def make(nodes, metadata=None, **options):
        path = file(tmp_path / "f.nir", nodes, metadata=metadata)
        return load(path, Options(**options), trusted=True)

    return make


def test_subtraction_also_where_nir_has_written_a_v_reset_of_0(load_file):
    """nir 1.0.8 writes v_reset = 0 for every neuron that has none, such as those of sinabs."""
    nodes = {"a": nir.IF(r=ones(3), v_threshold=ones(3))}
    x = torch.full((4, 1, 3), 0.8, dtype=torch.float64)
    assert load_file(nodes)(x)[:, 0, 0].tolist() == [0, 1, 0, 1]
    assert load_file(nodes, v_reset=None)(x)[:, 0, 0].tolist() == [0, 1, 1, 1]
    ours = {"a": nir.IF(r=ones(3), v_threshold=ones(3), metadata={"reset": "hard"})}
    assert load_file(ours, v_reset=None)(x)[:, 0, 0].tolist() == [0, 1, 0, 1]


def test_exact_solves_the_equation_for_a_constant_input(load_file):
    """v(t) = c + (v_leak + R x - c) ... : tau dv/dt = v_leak - v + R x has a closed solution."""
    tau, r, leak, x = 3.7e-4, 2.5, -0.3, 0.9
    node = nir.LI(tau=tau * ones(3), r=r * ones(3), v_leak=leak * ones(3))
    graph = load_file({"a": node}, dt=1e-4, exact=True)
    v = graph(torch.full((20, 1, 3), x, dtype=torch.float64))[:, 0, 0]
    t = 1e-4 * np.arange(1, 21)
    solution = leak + r * x * (1 - np.exp(-t / tau))
    assert np.allclose(v, solution, rtol=1e-12)
    euler = load_file({"a": node}, dt=1e-4)(torch.full((20, 1, 3), x, dtype=torch.float64))
    assert not np.allclose(euler[:, 0, 0], solution, rtol=1e-2)
    # also for time constants shorter than a timestep, which an Euler step cannot take
    short = {"a": lif(tau=2e-5 * ones(3))}
    assert load_file(short, dt=1e-4, exact=True)(torch.ones(2, 1, 3).double()).sum() == 6


def test_the_step_of_files_of_rockpool(load_file):
    """Rockpool writes R = exp(-dt/tau) tau/dt."""

    def node(*taus):
        tau = np.array(taus)
        r = tau * np.exp(-1e-3 / tau) / 1e-3
        return nir.CubaLIF(tau_mem=tau, tau_syn=2 * tau, r=r, v_leak=0 * r, v_threshold=1 + 0 * r)

    for nodes in ({"a": node(0.02, 0.02, 0.02)}, {"a": node(0.02, 0.03, 0.01)}):
        graph = load_file(nodes)
        assert graph.dt == pytest.approx(1e-3)
        assert "as Rockpool writes it" in graph.guessed


def test_a_network_of_lava(load_file):
    """As its converter writes it: decays of 4096 parts, R = tau/dt, w_in = tau_syn/dt."""
    v_decay, i_decay, threshold, dt = 128 / 4096, 1024 / 4096, 80 / 64, 1e-4
    full = ones(3)
    node = nir.CubaLIF(
        tau_mem=dt / v_decay * full,
        tau_syn=dt / i_decay * full,
        r=full / v_decay,
        w_in=full / i_decay,
        v_leak=0 * full,
        v_threshold=threshold * full,
    )
    graph = load_file({"0": node})
    assert graph.dt == pytest.approx(dt)
    torch.manual_seed(0)
    x = torch.randn(100, 1, 3).double() * 0.3
    found = graph(x)[:, 0].numpy()
    i, v = np.zeros(3), np.zeros(3)
    for t in range(100):  # as Loihi computes: u[t] = (1 - du) u[t-1] + x[t], then the membrane
        i = (1 - i_decay) * i + x[t, 0].numpy()
        v = (1 - v_decay) * v + i
        assert np.array_equal(found[t], v > threshold)
        v[v > threshold] = 0
    assert 0.02 < found.mean() < 0.9


# ---- learn and surrogate -------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.2, None])
@pytest.mark.parametrize("kind", ["LIF", "CubaLIF"])
def test_learned_constants_get_the_gradients_of_our_own_layers(kind, v_reset, decay, tmp_path):
    surrogate = bs.Triangle(alpha=1.5)
    o = {"v_threshold": 0.6, "v_reset": v_reset, "decay_input": decay, "surrogate": surrogate}
    o |= {"reset_gradient": 1.0, "backend": "reference"}
    if kind == "LIF":
        names = ("tau", "threshold")
        neuron = bs.LIF(2.6, learn=names, **o)
    else:
        names = ("tau", "threshold", "tau_synapse")
        neuron = bs.CubaLIF(2.6, tau_synapse=1.8, learn=names, **o)
    model = random(bs.Sequential(nn.Linear(4, 6), neuron)).double()
    x = torch.randn(30, 2, 4).double()
    bs.nir.write(model, tmp_path / "a.nir", x)
    graph = load(tmp_path / "a.nir", Options(learn=names, surrogate=surrogate), trusted=True)
    weights = torch.randn(30, 2, 6).double()
    for m in (model, graph):
        (m(x) * weights).sum().backward()
    node = graph.node("1")
    pairs = [
        (neuron.threshold, node.theta),
        (neuron.log_tau_minus_1, node.leak.log_tau_minus_1),
        (model[0].weight, graph.node("0").weight),
    ]
    if kind == "CubaLIF":
        pairs.append((neuron.log_tau_synapse_minus_1, node.leak_s.log_tau_minus_1))
    for ours, read in pairs:
        assert read.shape == ours.shape
        assert torch.allclose(read, ours.to(read), rtol=1e-6)
        assert ours.grad.abs().sum() > 0
        assert torch.allclose(read.grad, ours.grad.to(read), rtol=1e-5), (read.grad, ours.grad)


def test_constants_that_differ_are_learned_apart(load_file):
    node = lif(v_threshold=np.array([0.5, 0.6, 0.7]))
    graph = load_file({"a": node}, dt=1e-4, learn=("tau", "threshold"))
    shapes = {name: tuple(p.shape) for name, p in graph.named_parameters()}
    assert sorted(shapes.values()) == [(), (3,)]
    plain = load_file({"a": node}, dt=1e-4)
    x = torch.rand(50, 2, 3).double() * 2
    assert torch.equal(graph(x), plain(x))
    assert plain(x).sum() > 0
    assert not list(plain.parameters())


def test_a_network_read_can_be_saved_and_trained(tmp_path):
    model = random(bs.Sequential(nn.Linear(4, 6), bs.LIF(2.6, v_threshold=0.6)))
    x = torch.randn(20, 8, 4)
    bs.nir.write(model, tmp_path / "a.nir", x)
    net = bs.nir.read(tmp_path / "a.nir", learn="tau", surrogate=bs.Sigmoid(alpha=2.0))
    before = {name: p.clone() for name, p in net.state_dict().items()}
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (net(x).mean(0) - 0.4).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert net.node("1").leak.log_tau_minus_1 != before["nodes.1.leak.log_tau_minus_1"]
    net.load_state_dict(before)


def test_what_cannot_be_learned_is_refused(load_file):
    for options, message in [
        ({"learn": ("taus",)}, "learn may contain 'tau', 'tau_synapse', 'threshold'; got"),
        ({"learn": ("tau_synapse",)}, "none of its neurons has a tau_synapse to learn"),
        ({"learn": ("tau",), "dt": 5e-4}, "none of its neurons has a tau to learn|one timestep"),
        ({"surrogate": bs.Masked(bs.ATan())}, r"without Masked or Parametric; give ATan\(...\)"),
        ({"surrogate": bs.Parametric(bs.ATan())}, "without Masked or Parametric"),
    ]:
        with pytest.raises(BackspikeError, match=message):
            load_file({"a": lif()}, **options)
    assert math.isclose(load_file({"a": lif()}, learn=("tau",)).dt, 1e-4)
