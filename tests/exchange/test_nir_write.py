"""Networks written as NIR files: read back, and integrated by a NumPy statement of NIR's equations,
they give the network's own spikes. In float64, where equal means bit for bit."""

import json
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import backspike as bs
from backspike.cli import main
from backspike.errors import BackspikeError
from backspike.exchange import nir_graph, nir_write
from backspike.exchange.nir_graph import Neuron
from backspike.exchange.nir_read import load
from backspike.models.residual import Basic, MSBasic, ResNet, SEWBasic
from backspike.neuron.hooks import record
from backspike.neuron.shifted import DelayedReset, DelayedResetCuba, Shifted, ShiftedCuba

nir = pytest.importorskip("nir")
T = 100


def normed(norm):
    """With statistics and weights as after training."""
    norm.running_mean.normal_(0, 0.5)
    norm.running_var.uniform_(0.5, 2)
    nn.init.normal_(norm.weight, 2, 0.5)
    nn.init.normal_(norm.bias, 0, 0.3)
    return norm


LAYERS = {
    "linear": ((7,), lambda: [nn.Linear(7, 9), normed(nn.BatchNorm1d(9))], 9),
    "linear-no-bias": ((7,), lambda: [nn.Linear(7, 9, bias=False)], 9),
    "conv1d": ((3, 11), lambda: [nn.Conv1d(3, 4, 3, stride=2), normed(nn.BatchNorm1d(4))], 4),
    "conv2d": (
        (2, 8, 6),
        lambda: [nn.Conv2d(2, 5, 3, padding=1, bias=False), normed(bs.TDBN(5, v_threshold=0.8))],
        5,
    ),
    "pooled": ((2, 8, 8), lambda: [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(32, 6)], 6),
}
RESETS = {"zero": 0.0, "below": -0.4, "soft": None}
KINDS = {
    "LIF": lambda **o: bs.LIF(2.3, decay_input=True, **o),
    "LIF-undecayed": lambda **o: bs.LIF(3.7, decay_input=False, v_threshold=1.7, **o),
    "IF": lambda **o: bs.IF(v_threshold=1.3, **o),
    "PLIF": lambda **o: bs.PLIF(2.9, learn="threshold", **o),
    "CubaLIF": lambda **o: bs.CubaLIF(
        2.1, tau_synapse=3.3, decay_input=True, learn="tau_synapse", **o
    ),
    "CubaLIF-undecayed": lambda **o: bs.CubaLIF(
        4.0, tau_synapse=1.7, decay_input=False, v_threshold=2.0, **o
    ),
}


def network(kind, reset, layer):
    torch.manual_seed(len(kind) + len(layer))
    shape, layers, channels = LAYERS[layer]
    neuron = KINDS[kind](v_reset=RESETS[reset], channels=channels)
    model = bs.Sequential(bs.OverTime(*layers()), neuron).eval()
    for m in model[0]:
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.normal_(m.weight, std=(6 / m.weight[0].numel()) ** 0.5)
    return model, torch.randn(T, 2, *shape) * 2


def spikes(model, sample):
    with torch.no_grad(), record(model.double()) as outputs:
        model(sample.double())
    return {name: out.spikes for name, out in outputs.items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, reset, layer, tmp_path):
    model, sample = network(kind, reset, layer)
    path = tmp_path / "net.nir"
    made = bs.nir.write(model, path, sample)
    expected = spikes(model, sample)["1"]
    assert 0.02 < expected.mean() < 0.9
    assert made.spikes == expected.sum()
    with torch.no_grad():
        values = load(path, trusted=True).trace(sample.double())
    assert torch.equal(values["1"], expected)
    assert torch.equal(by_numpy(path, sample)["1"], expected)
    assert bool(made.warnings) == (reset == "soft")
    assert [p.name for p in tmp_path.iterdir()] == ["net.nir"]


def by_numpy(path, sample):
    """NIR's own equations by forward Euler steps of dt, in NumPy, for a chain of nodes."""
    graph = nir.read(str(path))
    dt, after = float(graph.metadata["dt"]), dict(graph.edges)
    x, name, out = sample.double().numpy(), "input", {}
    while name != "output":
        x = _node(graph.nodes[name], x, dt)
        out[name] = torch.from_numpy(np.ascontiguousarray(x))
        name = after[name]
    return out


def _node(node, x, dt):
    kind = type(node).__name__
    if kind in ("LIF", "IF", "CubaLIF"):
        return _neuron(node, x, dt)
    flat = torch.from_numpy(np.ascontiguousarray(x)).flatten(0, 1)
    if kind in ("Linear", "Affine"):
        y = flat.numpy() @ np.asarray(node.weight, float).T + np.asarray(getattr(node, "bias", 0.0))
    elif kind.startswith("Conv"):
        convolve = nn.functional.conv1d if kind == "Conv1d" else nn.functional.conv2d
        w, b = (torch.from_numpy(np.asarray(a, float)) for a in (node.weight, node.bias))
        stride, padding = (np.ravel(n).tolist() for n in (node.stride, node.padding))
        y = convolve(flat, w, b, stride, padding).numpy()
    elif kind == "AvgPool2d":
        n, c, h, w = flat.shape
        y = flat.numpy().reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))
    elif kind == "Flatten":
        y = flat.flatten(1).numpy()
    else:
        return x
    return y.reshape(*x.shape[:2], *y.shape[1:])


def _neuron(n, x, dt):
    soft = n.metadata["reset"] == "soft"
    v = np.zeros_like(x[0]) + (n.v_leak if hasattr(n, "v_leak") else n.v_reset)
    current, out = np.zeros_like(x[0]), []
    tau = getattr(n, "tau", getattr(n, "tau_mem", None))
    for drive in x:
        if hasattr(n, "tau_syn"):
            current = current + dt / n.tau_syn * (-current + n.w_in * drive)
        else:
            current = drive
        if tau is None:
            v = v + dt * n.r * current
        else:
            v = v + dt / tau * (n.v_leak - v + n.r * current)
        z = v >= n.v_threshold
        v = np.where(z, v - n.v_threshold if soft else n.v_reset, v)
        out.append(z.astype(float))
    return np.stack(out)


def equal(model, sample, tmp_path, **options):
    """Writes, reads back and compares every spiking layer and the output."""
    path = tmp_path / "net.nir"
    made = bs.nir.write(model, path, sample, **options)
    expected = spikes(model, sample)
    with torch.no_grad():
        graph = load(path, trusted=True)
        values = graph.trace(sample.double())
        output = model(sample.double())
    assert len(expected) == made.layers
    assert made.spikes == sum(s.sum() for s in expected.values()) > 0
    assert torch.allclose(values["output"], output, rtol=0, atol=1e-9)
    for name, s in expected.items():
        node = name.replace(".", "_").replace("_neuron", ".lif")
        assert torch.equal(values[node], s), name
    return graph


@pytest.mark.parametrize("kind", ["LIF", "IF", "CubaLIF", "PLIF"])
def test_recurrent(kind, tmp_path):
    torch.manual_seed(0)
    recurrent = bs.Recurrent(nn.Linear(8, 8), KINDS[kind](channels=8))
    model = bs.Sequential(
        bs.OverTime(nn.Linear(5, 8)), recurrent, nn.Linear(8, 3), bs.Integrator(4.0)
    )
    graph = equal(model.eval(), torch.randn(T, 3, 5) * 3, tmp_path)
    assert ("1.lif", "1_layer") in graph.edges


def resnet(kind):
    return ResNet(kind, (1, 2), (4, 6), bs.LIF, num_classes=3, in_channels=1)


@pytest.mark.parametrize(
    "build",
    [
        lambda: bs.models.convnet("4-P-6-P", size=9, hidden=(12,)),
        lambda: bs.models.convnet("4-P-6", size=None),
        lambda: bs.models.mlp(5, 1, hidden=(8, 7), recurrent=True, dropout=0.2),
        lambda: resnet(Basic),
        lambda: resnet(SEWBasic),
        lambda: resnet(MSBasic),
    ],
    ids=["convnet", "global-pool", "mlp", "resnet", "sew", "ms"],
)
def test_networks_of_the_package(build, tmp_path):
    torch.manual_seed(1)
    model = build()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            normed(m)
    images = not isinstance(next(m for m in model.modules() if hasattr(m, "weight")), nn.Linear)
    shape = (1, 9, 9) if images else (1,)
    graph = equal(model.eval(), torch.rand(12, 2, *shape) * 3, tmp_path)
    thresholds = [m.theta for m in graph.modules() if isinstance(m, Neuron)]
    spiking = [m for m in model.modules() if isinstance(m, bs.LIF)]
    assert sum(theta is not None for theta in thresholds) == len(spiking)


def test_constants_per_channel(tmp_path):
    """As `bs.lif` takes them: [C] tensors, here set on the layer's parameters."""
    model, sample = network("PLIF", "zero", "conv2d")
    neuron = model[1]
    neuron.log_tau_minus_1 = nn.Parameter(torch.linspace(-1, 1, 5))
    neuron.threshold = nn.Parameter(torch.linspace(0.5, 1.5, 5))
    graph = equal(model, sample, tmp_path)
    assert graph.node("1").theta.shape == (5, 8, 6)


@pytest.mark.parametrize("tau", [None, 3.0])
@pytest.mark.parametrize("decay", [True, False])
def test_integrator(tau, decay, tmp_path):
    model = bs.Sequential(
        nn.Linear(3, 4), bs.LIF(), nn.Linear(4, 2), bs.Integrator(tau, decay_input=decay)
    )
    integrator = equal(model, torch.randn(T, 2, 3) * 4, tmp_path).node("3")
    assert integrator.theta is None
    gain = 1 / 3 if tau and decay else 1.0
    assert torch.allclose(integrator.lam, torch.full((2,), 2 / 3 if tau else 1.0).double())
    assert torch.allclose(integrator.gain, torch.full((2,), gain).double())


def test_a_timestep_of_another_length(tmp_path):
    model, sample = network("CubaLIF", "below", "linear")
    assert equal(model, sample, tmp_path, dt=0.0033).dt == 0.0033


def test_dialect_of_1_0_4_has_no_v_reset(tmp_path):
    h5py = pytest.importorskip("h5py")
    model, sample = network("LIF", "zero", "conv2d")
    equal(model, sample, tmp_path, dialect="1.0.4")
    names = []
    with h5py.File(tmp_path / "net.nir") as file:
        file.visit(names.append)
    assert not [n for n in names if "v_reset" in n]
    with pytest.raises(BackspikeError, match=r"1 is a LIF: it is reset to -0.4, and nir 1.0.4"):
        bs.nir.write(
            network("LIF", "below", "conv2d")[0], tmp_path / "b.nir", sample, dialect="1.0.4"
        )
    with pytest.raises(BackspikeError, match="dialect must be one of"):
        bs.nir.write(model, tmp_path / "b.nir", sample, dialect="2")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_only_membranes_at_the_threshold_fall_elsewhere(kind, reset, tmp_path):
    """Each neuron's first other spike, before its state may differ."""
    model, sample = network(kind, reset, "conv2d")
    bs.nir.write(model, tmp_path / "net.nir", sample)
    sample = torch.randn(T, 64, *sample.shape[2:]) * 2
    with torch.no_grad(), record(model.float()) as outputs:
        model(sample)
        theta = torch.as_tensor(model[1].constants().v_threshold)
    ours, found = outputs["1"], load(tmp_path / "net.nir", trusted=True).float()(sample)
    different = (ours.spikes != found).flatten(1)
    neurons = different.any(0).nonzero().flatten()
    first = different.float().argmax(0)[neurons]
    distance = (ours.membrane.flatten(1)[first, neurons] - theta).abs()
    assert (distance < 1e-4 * theta).all()
    assert different.float().mean() < 1e-2


def refusal(model, tmp_path, sample=None):
    with pytest.raises(BackspikeError) as error:
        bs.nir.write(
            model, tmp_path / "no.nir", torch.rand(2, 1, 2, 8, 8) if sample is None else sample
        )
    assert list(tmp_path.iterdir()) == []
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([bs.OverTime(nn.MaxPool2d(2)), bs.LIF()], "0.0 is a MaxPool2d, .*AvgPool2d"),
        ([bs.OverTime(nn.Conv2d(2, 3, 3), bs.TEBN(3, 2)), bs.LIF()], "0.1 is a TEBN, .*BatchNorm"),
        ([bs.CLIF()], "0 is a CLIF, .*train with LIF"),
        ([bs.AdaptiveLIF()], "0 is a AdaptiveLIF, .*train with LIF"),
        ([bs.PSN(order=2)], "0 is a PSN, .*train with LIF"),
        ([bs.Delay(2, 3), bs.LIF()], "0 is a Delay"),
        ([bs.MPBN(channels=2)], "0 is a MPBN, .*train with LIF"),
        ([bs.OverTime(nn.BatchNorm2d(2)), bs.LIF()], "0.0 is a BatchNorm2d: it can be folded only"),
        ([bs.OverTime(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"))], "pads with zeros"),
        ([bs.OverTime(nn.AvgPool2d(3, ceil_mode=True))], "ceil_mode"),
        ([bs.OverTime(nn.Linear(8, 3))], "0.0 is a Linear: .*flatten it before"),
        ([bs.OverTime(nn.ReLU())], "0.0 is a ReLU, whose code cannot be seen"),
        ([bs.OverTime(nn.Conv2d(5, 3, 3))], r"0.0 is a Conv2d: it does not take \[2, 8, 8\]"),
    ],
)
def test_what_nir_cannot_say_is_refused(layers, message, tmp_path):
    assert re.search(message, refusal(bs.Sequential(*layers), tmp_path))


def test_a_module_with_code_of_its_own_is_refused(tmp_path):
    class Mine(nn.Module):
        def forward(self, x):
            return x * 2

    assert "0 is a Mine, whose code" in refusal(bs.Sequential(Mine(), bs.LIF()), tmp_path)


def test_a_neuron_called_twice_is_refused(tmp_path):
    neuron = bs.LIF()
    assert "called twice" in refusal(bs.Sequential(neuron, neuron), tmp_path)


@pytest.mark.parametrize("shift", [0.2, -0.2])
def test_a_difference_is_named_and_nothing_is_written(shift, tmp_path, monkeypatch):
    """A reader that gets one threshold wrong stands for any mistake in writing or reading."""
    model, sample = network("LIF", "zero", "linear")
    first = spikes(model, sample)["1"]

    def wrong(path, trusted):
        graph = load(path, trusted=trusted)
        graph.node("1").theta[3] += shift
        return graph

    monkeypatch.setattr(nir_write, "load", wrong)
    message = refusal(model, tmp_path, sample)
    t = int(re.search(r"differs first at 1, timestep (\d+)", message)[1])
    with torch.no_grad():
        model[1].v_threshold = 1 + shift
        raised = spikes(model, sample)["1"]
    assert t == int((first != raised)[..., 3].any(1).nonzero()[0])


def test_an_existing_file_survives_a_refusal(tmp_path):
    path = tmp_path / "net.nir"
    path.write_bytes(b"mine")
    with pytest.raises(BackspikeError):
        bs.nir.write(bs.Sequential(bs.CLIF()), path, torch.rand(2, 1, 3))
    assert path.read_bytes() == b"mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_silence_and_missing_samples(tmp_path):
    model = bs.Sequential(nn.Linear(3, 2), bs.LIF(v_threshold=1e6, v_reset=0.0))
    made = bs.nir.write(model, tmp_path / "net.nir", torch.rand(3, 1, 3))
    assert "no neuron fired" in made.warnings[0]
    with pytest.raises(BackspikeError, match="give sample="):
        bs.nir.write(model, tmp_path / "net.nir")
    with pytest.raises(BackspikeError, match="cannot write"):
        bs.nir.write(model, tmp_path / "none" / "net.nir", torch.rand(3, 1, 3))


def test_without_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nir", None)
    assert "pip install 'backspike[nir]'" in refusal(bs.Sequential(bs.LIF()), tmp_path)


QUICK = ["--limit=100", "--epochs=2", "--batch_size=50", "--model=ConvNet('6-P-8-P', size=8)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nir") / "run"
    assert main(["train", "digits", "--out", str(folder), *QUICK]) == 0
    return folder


@pytest.mark.parametrize("dialect", ["1.0.8", "1.0.4"])
def test_a_trained_run_from_the_command_line(run, dialect, capsys):
    assert main(["export", str(run), "--to", "nir", "--dialect", dialect, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["spikes"] > 0
    network, graph = bs.load(run), bs.nir.read(made["path"])
    assert graph.guessed == ""
    assert graph.notes == []
    x = torch.from_numpy(bs.data.load("digits").test.x[:50]).float() / 255
    x = x.view(-1, 1, 8, 8).expand(4, -1, -1, -1, -1)
    with torch.no_grad():
        assert torch.equal(graph.readout.weights, network.readout.weights)
        close = torch.isclose(graph.readout(graph(x)), network(x), atol=1e-4).all(1)
    assert close.float().mean() > 0.9  # float32: a membrane at the threshold may round otherwise


@pytest.mark.filterwarnings("ignore")
def test_trained_event_and_recurrent_networks(tmp_path):
    """A run of event frames, and a recurrent network that a user trained."""
    options = {"limit": 40, "epochs": 1, "model": "ConvNet('4-P-6-P', in_channels=2, size=17)"}
    run = tmp_path / "dvs"
    bs.fit(bs.recipes.digits_dvs().replace(options), run, report=False)
    assert bs.nir.write(run, tmp_path / "dvs.nir").spikes > 0
    neuron = partial(bs.CubaLIF, v_threshold=0.2)
    model = bs.models.mlp(10, 8, hidden=(12,), recurrent=True, neuron=neuron)
    data = bs.data.load("digits").train
    sample = torch.from_numpy(data.x[:64]).float().view(64, 8, 8).transpose(0, 1) / 255
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):  # rows as timesteps
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            model(sample).mean(0), torch.from_numpy(data.y[:64]).long()
        )
        loss.backward()
        optimizer.step()
    assert bs.nir.write(model, tmp_path / "rows.nir", sample).spikes > 0


def test_a_run_with_a_model_of_ones_own(tmp_path):
    options = {"limit": 40, "epochs": 1}
    model = bs.models.convnet("4-P", size=8)
    bs.fit(bs.recipes.digits().replace(options), tmp_path / "own", model=model, report=False)
    with pytest.raises(BackspikeError, match="model of your own"):
        bs.nir.write(tmp_path / "own", tmp_path / "own.nir")


def test_the_command_line_in_words(run, tmp_path, capsys):
    out = tmp_path / "a.nir"
    assert main(["export", str(run), "--to", "nir", "--out", str(out)]) == 0
    assert re.search(r"a.nir: \d+ spikes of 2 layers are the same", capsys.readouterr().out)
    assert main(["export", str(run), "--to", "paper"]) == 2
    assert main(["export", str(tmp_path), "--to", "nir"]) == 1


@pytest.mark.parametrize("gain", ["trained", "unit", "decayed"])
@pytest.mark.parametrize(
    "neuron",
    [
        lambda: DelayedReset(3.1, v_threshold=0.7, decay_input=False, scale=0.8),
        lambda: DelayedReset(2.4, decay_input=True, learn=("tau", "threshold")),
        lambda: DelayedReset(math.inf, decay_input=False),
        lambda: DelayedResetCuba(4.0, tau_synapse=1.7, scale=0.7, decay_input=False),
        lambda: Shifted(2.7, scale=1.4, shift=0.2, start=-0.1, v_reset=-0.3, decay_input=True),
        lambda: ShiftedCuba(2.1, tau_synapse=3.3, scale=2.0, v_reset=0.0, decay_input=True),
    ],
)
def test_neurons_of_other_libraries_keep_their_spikes(neuron, gain, tmp_path):
    torch.manual_seed(7)
    model = bs.Sequential(bs.OverTime(nn.Linear(6, 9)), neuron(), bs.OverTime(nn.Linear(9, 3)))
    made = bs.nir.write(model, tmp_path / "net.nir", torch.randn(T, 3, 6) * 3, gain=gain)
    assert made.spikes > 100


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_a_membrane_that_starts_elsewhere_is_refused(shift, tmp_path):
    tau = math.inf if shift == 0 else 2.0
    neuron = Shifted(tau, decay_input=False, v_reset=None, shift=shift, start=0.5)
    with pytest.raises(BackspikeError, match="starts where it does not rest, which NIR cannot say"):
        bs.nir.write(neuron, tmp_path / "net.nir", torch.randn(T, 3, 6))
    assert not (tmp_path / "net.nir").exists()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layer", ["linear", "conv2d"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("kind", ["LIF", "LIF-undecayed", "IF", "PLIF"])
def test_what_is_read_runs_in_the_kernels_with_the_same_bits(
    kind, reset, layer, dtype, tmp_path, monkeypatch
):
    """Spikes equal those of the recursion step by step, gradients up to rounding."""
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return bs.lif(*arguments, **options)

    monkeypatch.setattr(nir_graph, "lif", counted)
    model, x = network(kind, reset, layer)
    bs.nir.write(model, tmp_path / "net.nir", x)
    for tie_fires in (True, False):
        results = []
        for fast in (True, False):
            graph = bs.nir.read(tmp_path / "net.nir").to(dtype)
            [neuron] = [m for m in graph.modules() if isinstance(m, Neuron)]
            assert neuron.fast
            neuron.fast, neuron.tie_fires = fast, tie_fires
            leaf = x.to(dtype).requires_grad_()
            calls.clear()
            spikes = graph(leaf)
            if reset != "below":  # where lam and rest/tau need two taus, rounded
                assert len(calls) == (fast and (tie_fires or reset != "soft"))
            spikes.backward(torch.linspace(-1, 1, spikes.numel()).view(spikes.shape).to(dtype))
            results.append((spikes, leaf.grad))
        (ours, a), (theirs, b) = results
        assert ours.sum() > 50
        assert torch.equal(ours, theirs)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))


def test_a_membrane_at_the_threshold_fires_as_the_file_says(tmp_path):
    """Integers, with which membranes hit the threshold exactly: `>` of NIR, `>=` of ours."""
    model = bs.Sequential(bs.OverTime(nn.Linear(3, 3, bias=False)), bs.IF(v_reset=0.0))
    nn.init.eye_(model[0][0].weight)
    x = torch.ones(6, 1, 3)
    bs.nir.write(model, tmp_path / "net.nir", x)
    graph = bs.nir.read(tmp_path / "net.nir")
    assert graph(x).sum() == 18
    [neuron] = [m for m in graph.modules() if isinstance(m, Neuron)]
    neuron.tie_fires = False
    assert graph(x)[:, 0, 0].tolist() == [0, 1, 0, 1, 0, 1]


def test_constants_of_their_own_run_step_by_step(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError

    monkeypatch.setattr(nir_graph, "lif", refuse)
    model, x = network("CubaLIF", "zero", "linear")
    bs.nir.write(model, tmp_path / "net.nir", x)
    assert bs.nir.read(tmp_path / "net.nir")(x).sum() > 0
    model, x = network("LIF", "zero", "linear")
    bs.nir.write(model, tmp_path / "net.nir", x)
    learned = bs.nir.read(tmp_path / "net.nir", learn="tau")
    assert learned(x).sum() > 0
    graph = bs.nir.read(tmp_path / "net.nir")
    [neuron] = [m for m in graph.modules() if isinstance(m, Neuron)]
    neuron.theta[0] += 0.5
    assert graph(x).sum() > 0
