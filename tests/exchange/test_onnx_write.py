"""Networks written as ONNX files: onnxruntime gives what the network gives, for any batch and any
number of timesteps, and what differs gets no file."""

import hashlib
import json
import math
import re
import sys
from functools import partial

import numpy as np
import pytest
import torch
from helpers.paths import ROOT
from torch import nn

import backspike as bs
from backspike.cli import main
from backspike.errors import BackspikeError
from backspike.exchange import onnx_steps, onnx_verify, onnx_write
from backspike.exchange.onnx_steps import Neuron, Scan, render
from backspike.models.residual import ResNet, SEWBasic
from backspike.neuron.shifted import DelayedReset, DelayedResetCuba, Shifted, ShiftedCuba
from backspike.train.network import Network
from backspike.version import __version__

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def load(path):
    return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])


def sequence(path, x):
    return torch.from_numpy(load(path).run(None, {"input": x.numpy()})[0])


def stream(path, x):
    """The step model over all timesteps of x `[T, B, ...]`, its states zero at the start."""
    session = load(path)
    names = [i.name for i in session.get_inputs()]
    states = [np.zeros((x.shape[1], *i.shape[1:]), np.float32) for i in session.get_inputs()[1:]]
    out = []
    for x_t in x.numpy():
        y, *states = session.run(None, dict(zip(names, [x_t, *states])))
        out.append(torch.from_numpy(y))
    return torch.stack(out)


def normed(model):
    """With statistics and weights as after training."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.5)
            m.running_var.uniform_(0.5, 2)
            nn.init.normal_(m.weight, 2, 0.5)
            nn.init.normal_(m.bias, 0, 0.3)
    return model.eval()


# ---- the equations -------------------------------------------------------------------------------

RESETS = {"zero": 0.0, "below": -0.4, "soft": None}
KINDS = {
    "LIF": partial(bs.LIF, 2.3),
    "LIF-undecayed": partial(bs.LIF, 3.7, decay_input=False, v_threshold=1.7),
    "IF": partial(bs.IF, v_threshold=1.3),
    "PLIF": partial(bs.PLIF, 2.9, learn="threshold"),
    "CubaLIF": partial(bs.CubaLIF, 2.1, tau_synapse=3.3, learn="tau_synapse"),
    "CubaLIF-undecayed": partial(bs.CubaLIF, 4.0, tau_synapse=1.7, decay_input=False),
    "AdaptiveLIF": partial(bs.AdaptiveLIF, 2.7, tau_adaptation=5.0, a=2.0, learn=("a", "b")),
    "CLIF": partial(bs.CLIF, 2.6),
    "MPBN": partial(bs.MPBN, 2.4),
    "Shifted": partial(Shifted, 2.7, scale=1.4, shift=-0.1, start=0.3),
    "Shifted-IF": partial(Shifted, math.inf, decay_input=False, scale=0.8, start=0.5),
    "DelayedReset": partial(DelayedReset, 3.1, decay_input=False, learn=("tau", "threshold")),
    "ShiftedCuba": partial(ShiftedCuba, 2.1, tau_synapse=3.3, shift=0.1, start=-0.2),
    "DelayedResetCuba": partial(DelayedResetCuba, 4.0, tau_synapse=1.7, scale=0.7),
}
LAYERS = {
    "linear": ((7,), lambda: [nn.Linear(7, 9), nn.BatchNorm1d(9)], 9),
    "conv1d": ((3, 11), lambda: [nn.Conv1d(3, 4, 3, stride=2), nn.BatchNorm1d(4)], 4),
    "conv2d": ((2, 8, 6), lambda: [nn.Conv2d(2, 5, 3, padding=1, bias=False), bs.TDBN(5)], 5),
}
SOFT = ("CLIF", "DelayedReset", "DelayedResetCuba")
GIVEN = {**dict.fromkeys(SOFT, ("soft",)), "MPBN": ("zero", "below")}
CASES = [(kind, reset) for kind in KINDS for reset in GIVEN.get(kind, RESETS)]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("kind", "reset"), CASES)
def test_the_rendering_in_plain_operations_fires_as_the_network(kind, reset, layer):
    torch.manual_seed(0)
    shape, layers, channels = LAYERS[layer]
    options = {} if kind == "CLIF" else {"v_reset": RESETS[reset]}
    neuron = KINDS[kind](channels=channels, **options)
    model = normed(bs.Sequential(bs.OverTime(*layers()), neuron)).double()
    x = torch.randn(60, 2, *shape, dtype=torch.float64) * 4
    with torch.no_grad():
        onnx_verify.hold_to_network(render(model), model, x)
        spikes = model(x)
        rendered = render(model)(x, onnx_steps.Trace())
    assert 0.02 < spikes.mean() < 0.9
    assert torch.equal(rendered, spikes)


@pytest.mark.parametrize("kind", ["LIF", "IF", "CubaLIF", "AdaptiveLIF", "CLIF", "MPBN"])
def test_the_rendering_of_a_recurrent_layer_fires_as_the_network(kind):
    torch.manual_seed(1)
    recurrent = bs.Recurrent(nn.Linear(8, 8), KINDS[kind](channels=8))
    layers = [bs.OverTime(nn.Linear(5, 8)), recurrent, nn.Linear(8, 3), bs.Integrator(4.3)]
    for model in (recurrent, bs.Sequential(*layers)):
        model = normed(model).double()
        x = torch.randn(60, 3, 8 if model is recurrent else 5, dtype=torch.float64) * 3
        with torch.no_grad():
            onnx_verify.hold_to_network(render(model), model, x)
            torch.testing.assert_close(render(model)(x, onnx_steps.Trace()), model(x))


def calibrated():
    """A network of ReLUs made spiking, and a sample for it."""
    torch.manual_seed(4)
    layers = [nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2)]
    relus = nn.Sequential(*layers, nn.Flatten(), nn.Linear(54, 20), nn.ReLU(), nn.Linear(20, 3))
    images = torch.rand(40, 2, 6, 6)
    return bs.from_torch(relus.eval(), calibrate=images), images[:4].expand(12, 4, 2, 6, 6)


@pytest.mark.parametrize("step", [False, True])
def test_a_calibrated_network_becomes_a_file(step, tmp_path):
    model, x = calibrated()
    made = bs.onnx.write(model, tmp_path / "net.onnx", x, step=step)
    assert (made.layers, made.spikes > 1000) == (2, True)
    run = stream if step else sequence
    with torch.no_grad():
        torch.testing.assert_close(run(made.path, x), model(x), rtol=0, atol=1e-4)


def test_a_network_with_delayed_resets_becomes_a_file(tmp_path):
    torch.manual_seed(5)
    model = bs.Sequential(
        *(bs.OverTime(nn.Linear(5, 8)), DelayedReset(10.0, v_reset=None, decay_input=False)),
        *(bs.OverTime(nn.Linear(8, 3)), bs.Integrator(4.0)),
    )
    x = torch.randn(40, 3, 5)
    for step in (False, True):
        made = bs.onnx.write(model, tmp_path / f"{step}.onnx", x, step=step)
        assert made.spikes > 50


def test_a_norm_of_the_membrane_with_negative_weights():
    torch.manual_seed(2)
    model = bs.MPBN(channels=6).eval().double()
    nn.init.normal_(model.norm.weight, 0, 2)
    assert not model.folds()
    with torch.no_grad():
        x = torch.randn(40, 3, 6, dtype=torch.float64) * 3
        assert torch.equal(render(model)(x, onnx_steps.Trace()), model(x))


# ---- files ---------------------------------------------------------------------------------------


def every_kind():
    """All kinds of neurons and resets in one chain, learned and constant, feedback and a sum."""
    torch.manual_seed(3)
    width = 12

    def linear():
        layer = nn.Linear(width, width)
        nn.init.normal_(layer.weight, std=(8 / width) ** 0.5)
        return bs.OverTime(layer)

    neurons = [
        bs.LIF(2.3, v_reset=None),
        bs.IF(v_threshold=1.3, v_reset=-0.4),
        bs.PLIF(2.9, learn="threshold", v_reset=-0.2),
        bs.CLIF(2.2),
        bs.MPBN(2.1, channels=width, v_reset=-0.1),
        bs.CubaLIF(2.1, tau_synapse=1.6, decay_input=False),
        bs.Recurrent(nn.Linear(width, width), bs.CubaLIF(2.5, learn="tau_synapse")),
    ]
    layers = [layer for neuron in neurons for layer in (linear(), neuron)]
    return normed(bs.Sequential(*layers, nn.Linear(width, 3), bs.Integrator(4.3)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same network as a sequence and as a step, and what `write` returned."""
    folder, model = tmp_path_factory.mktemp("onnx"), every_kind()
    x = torch.randn(30, 4, 12) * 2
    made = [
        bs.onnx.write(model, folder / f"{step}.onnx", x, step=step, dt=1e-3)
        for step in (False, True)
    ]
    return model, *made


@pytest.mark.parametrize(("T", "B"), [(30, 4), (1, 1), (77, 3)])
def test_any_batch_and_any_number_of_timesteps(files, T, B):
    model, made, _ = files
    x = torch.randn(T, B, 12) * 2
    with torch.no_grad():
        torch.testing.assert_close(sequence(made.path, x), model(x), rtol=0, atol=1e-5)


def test_every_layer_fired_in_the_proof(files):
    _, *both = files
    for made in both:
        assert made.layers == 7
        assert made.spikes > 7 * 100
        assert made.ties <= 1
        assert made.difference < 1e-5
        assert made.T is None
        assert made.warnings == []


def test_a_step_over_1000_timesteps_equals_the_sequence(files):
    model, whole, step = files
    x = torch.randn(1000, 2, 12) * 2
    with torch.no_grad():
        expected = model(x)
    out = stream(step.path, x)
    assert out.abs().max() > 0.5
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(out, sequence(whole.path, x), rtol=0, atol=1e-5)


def test_states_are_named_inputs_and_outputs(files):
    _, whole, step = files
    session = load(step.path)
    inputs, outputs = session.get_inputs(), [o.name for o in session.get_outputs()]
    names = ["1.v", "3.v", "5.v", "7.v", "7.m", "9.v", "11.v", "11.i"]
    names += ["13.s", "13.v", "13.i", "15.v"]
    assert step.states == names
    assert [i.name for i in inputs] == ["input", *names]
    assert outputs == ["output", *(f"{name}.next" for name in names)]
    assert [i.shape for i in inputs][:2] == [["batch", 12], ["batch", 12]]
    assert load(whole.path).get_inputs()[0].shape == ["T", "batch", 12]
    assert [o.name for o in load(whole.path).get_outputs()] == ["output"]


def test_the_metadata_of_a_network(files):
    _, whole, step = files
    for made, kind in ((whole, "sequence"), (step, "step")):
        about = {p.key: p.value for p in onnx.load(made.path).metadata_props}
        version = about.pop("writer")
        assert version == f"backspike {__version__}"
        assert about == {"kind": kind, "classes": "3", "dt": "0.001"}


def test_no_node_is_left_that_nobody_reads(files):
    for made in files[1:]:
        graph = onnx.load(made.path).graph
        read = {name for node in graph.node for name in node.input}
        read |= {o.name for o in graph.output}
        assert all(read & set(node.output) for node in graph.node)


def test_a_residual_network_with_a_max_pool(tmp_path):
    torch.manual_seed(4)
    options = {"num_classes": 3, "in_channels": 1, "stem": "imagenet"}
    model = normed(ResNet(SEWBasic, (1,), (4,), bs.LIF, **options))
    x = torch.randn(6, 3, 1, 13, 13) * 2
    made = bs.onnx.write(model, tmp_path / "net.onnx", x)
    assert made.spikes > 100
    x = torch.randn(9, 5, 1, 13, 13) * 2
    with torch.no_grad():
        torch.testing.assert_close(sequence(made.path, x), model(x), rtol=0, atol=1e-5)


def test_a_layer_that_is_called_twice(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.neuron = bs.LIF(v_threshold=0.3)

        def forward(self, x):
            return self.neuron(self.linear(self.neuron(x)))

    torch.manual_seed(5)
    model, x = Twice().eval(), torch.randn(8, 3, 6)
    made = bs.onnx.write(model, tmp_path / "net.onnx", x, step=True)
    assert made.states == ["neuron.v", "neuron#2.v"]
    x = torch.randn(20, 2, 6)
    with torch.no_grad():
        assert torch.equal(stream(made.path, x), model(x))


# ---- refusals ------------------------------------------------------------------------------------


def refusal(model, tmp_path, x=None, **options):
    path = tmp_path / "refused.onnx"
    with pytest.raises(BackspikeError) as error:
        bs.onnx.write(model, path, torch.rand(4, 2, 3) if x is None else x, **options)
    assert not path.exists()
    text = str(error.value)
    assert "\n" not in text
    return text


class Own(bs.LIF):
    """Its code may do anything."""


class WithState(nn.Module):
    def __init__(self):
        super().__init__()
        self.neuron = bs.LIF()

    def forward(self, x):
        return self.neuron(x, torch.zeros_like(x[0])).spikes


@pytest.mark.parametrize(
    ("model", "options", "text"),
    [
        (bs.Sequential(bs.LIF(), Own()), {}, "'1' is a Own, whose equations"),
        (bs.PSN(order=3), {}, "'network' is a PSN, whose equations"),
        (bs.Sequential(bs.Delay(3, 4), bs.LIF()), {}, "'0' is a Delay, whose equations"),
        (WithState(), {}, "'neuron' is called with a state"),
        (Network(bs.LIF(), bs.readout.TWO(9)), {}, "fails on a sample of shape [4, 2, 3]: Value"),
        (bs.Sequential(bs.OverTime(bs.TEBN(3, T=4)), bs.LIF()), {"step": True}, "TEBN"),
        (nn.Sequential(bs.LIF(), bs.readout.Mean()), {"step": True}, "without a readout"),
        (bs.LIF(), {"dt": -1.0}, "dt must be"),
        (bs.LIF(), {"x": torch.rand(4, 2)}, "sample must be"),
    ],
    ids=["own", "psn", "delay", "state", "T", "tebn", "readout", "dt", "sample"],
)
def test_refused_in_one_line(model, options, text, tmp_path):
    assert text in refusal(model.eval(), tmp_path, **options)


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a'b", 'a"b', "a\\b"])
def test_a_name_with_escapes_is_refused(name, tmp_path):
    model = nn.Sequential()
    model.add_module(name, bs.LIF())
    text = refusal(model, tmp_path)
    assert text.startswith(f"{name!a} is a name with quotes")
    assert text.isprintable()


def test_a_network_that_fixes_its_batch_or_calls_the_function(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = bs.LIF()

        def forward(self, x):
            return self.neuron(x.reshape(len(x), 2, -1))

    assert "fixes the batch to 2" in refusal(Fixed(), tmp_path)

    class Function(nn.Module):
        def forward(self, x):
            return bs.lif(x).spikes

    assert "use layers such as bs.LIF" in refusal(Function(), tmp_path)


@pytest.mark.parametrize("step", [False, True])
def test_a_network_from_torch_takes_any_batch(step, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    model, x = bs.from_torch(net, bs.LIF).eval(), 9 * torch.rand(6, 4, 8)
    made = bs.onnx.write(model, tmp_path / "net.onnx", x, step=step)
    assert made.spikes > 20
    more = 9 * torch.rand(9, 7, 8)
    found = stream(made.path, more) if step else sequence(made.path, more)
    torch.testing.assert_close(found, model(more))


def test_a_step_needs_all_states_to_be_those_of_layers(tmp_path):
    pytest.importorskip("nir")
    torch.manual_seed(0)
    x = torch.rand(5, 3, 8)
    bs.nir.write(bs.Sequential(bs.OverTime(nn.Linear(8, 6)), bs.LIF()), tmp_path / "a.nir", 9 * x)
    network = bs.nir.read(tmp_path / "a.nir")
    assert "carries more from timestep to timestep" in refusal(network, tmp_path, 9 * x, step=True)
    assert bs.onnx.write(network, tmp_path / "whole.onnx", 9 * x).T == 5


def test_a_network_of_the_package_is_written_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = bs.onnx.write("digits", "digits.onnx")
    assert made.spikes > 1000
    (network,) = (n for n in bs.models.pretrained() if n.name == "digits")
    weights = network.card.with_name("model.safetensors").read_bytes()
    about = {p.key: p.value for p in onnx.load("digits.onnx").metadata_props}
    assert about["sha256"] == hashlib.sha256(weights).hexdigest()
    assert about["T"] == str(network.T)


def test_hooks_are_not_lost_in_silence(tmp_path):
    model = bs.Sequential(bs.LIF(), bs.LIF(v_threshold=0.9))
    model[0].register_forward_hook(lambda m, x, y: 0 * y)
    text = refusal(model, tmp_path, torch.full((5, 2, 3), 3.0))
    assert "its rendering in plain operations differs first at '1', timestep 0" in text


def test_without_the_libraries(tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, name, None)
            assert "pip install 'backspike[onnx]'" in refusal(bs.LIF(), tmp_path)


def test_a_wrong_file_gets_no_name(tmp_path, monkeypatch):
    """The graph's neurons do not leak, and an older file stays as it was."""

    class Wrong(Scan):
        def run(self, key, layer, x):
            layer.lam.fill_(0.9)
            y = super().run(key, layer, x)
            layer.lam.fill_(0.5)
            return y

    path = tmp_path / "net.onnx"
    path.write_bytes(b"older")
    monkeypatch.setattr(onnx_write, "Scan", Wrong)
    torch.manual_seed(0)
    model = bs.Sequential(nn.Linear(3, 3), bs.LIF(v_threshold=0.4))
    with pytest.raises(BackspikeError, match="the file in onnxruntime differs first at '1', time"):
        bs.onnx.write(model, path, torch.rand(5, 2, 3) * 4)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_bytes() == b"older"


# ---- ties ----------------------------------------------------------------------------------------


def test_a_membrane_at_the_threshold_may_round_otherwise_and_the_run_goes_on():
    """Of 3000 decisions one is a tie: the given spikes have it the other way."""
    torch.manual_seed(6)
    model = bs.IF().double()
    x = torch.rand(1000, 1, 3, dtype=torch.float64)
    x[0, 0, 0] = 1.0 - 1e-12  # just below the threshold
    given = model(x.where(x != x[0, 0, 0], torch.ones_like(x)))
    assert given[0, 0, 0] == 1
    assert model(x)[0, 0, 0] == 0
    rendered = render(model)
    found = onnx_verify.follow(rendered, {"network": given}, given, x, "the file")
    assert (found.ties, found.spikes) == (1, int(given.sum()) - 1)
    x[0, 0, 0] = 1.0 - 1e-6
    with pytest.raises(BackspikeError, match="differs first at 'network', timestep 0: 1 of 3"):
        onnx_verify.follow(rendered, {"network": given}, given, x, "the file")


def test_many_ties_are_no_rounding(monkeypatch):
    """A graph that fires above the threshold only, where inputs lie on it."""
    model, x = bs.IF(), torch.full((50, 2, 3), 0.5)
    with monkeypatch.context() as m:
        m.setattr(Neuron, "fire", lambda self, u: (u > self.theta).to(u.dtype))
        given = render(model)(x, onnx_steps.Trace())
    with pytest.raises(BackspikeError, match=r"decides \d+ ties of 'network' otherwise"):
        onnx_verify.follow(render(model), {"network": given}, given, x, "the file")


def test_other_outputs_are_an_error():
    model, x = bs.Sequential(bs.LIF(), bs.Integrator()), torch.rand(5, 2, 3) * 3
    with torch.no_grad():
        y, spikes = model(x), model[0](x)
    onnx_verify.follow(render(model), {"0": spikes}, y, x, "the file")
    with pytest.raises(BackspikeError, match=r"outputs differ by 0\.1"):
        onnx_verify.follow(render(model), {"0": spikes}, y + 0.1, x, "the file")
    with pytest.raises(BackspikeError, match=r"gives \[5, 2, 3\], the file \[1, 2, 3\]"):
        onnx_verify.follow(render(model), {"0": spikes}, y[:1], x, "the file")


# ---- runs ----------------------------------------------------------------------------------------


QUICK = ["--epochs=3", "--batch_size=32", "--model=ConvNet('8-P-16-P', size=8)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "run"
    assert main(["train", "digits", "--out", str(folder), *QUICK]) == 0
    return folder


def digits():
    x = torch.from_numpy(bs.data.load("digits").test.x).float() / 255
    return x.view(-1, 1, 8, 8).expand(4, -1, -1, -1, -1).contiguous()


def test_a_trained_run_from_the_command_line(run, capsys):
    assert main(["export", str(run), "--to", "onnx", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["path"] == str(run / "network.onnx")
    assert made["spikes"] > 0
    assert made["T"] == 4
    network, x = bs.load(run), digits()
    with torch.no_grad():
        expected = network(x)
    logits = sequence(made["path"], x)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    assert torch.equal(logits.argmax(1), expected.argmax(1))
    about = {p.key: p.value for p in onnx.load(made["path"]).metadata_props}
    assert (about["T"], about["classes"], about["readout"]) == ("4", "10", "TWO")
    assert json.loads(about["readout_weights"]) == network.readout.weights.tolist()
    weights = (run / "model.safetensors").read_bytes()
    assert about["sha256"] == hashlib.sha256(weights).hexdigest()


def test_a_step_of_a_run_gives_the_outputs_before_the_readout(run, tmp_path, capsys):
    out = tmp_path / "a.onnx"
    assert main(["export", str(run), "--to", "onnx", "--step", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: run by onnxruntime, " in said
    assert "inputs: input, features.1.v, features.4.v (states start at zero)" in said
    x = digits()[:, :20].repeat(3, 1, 1, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(stream(out, x), bs.load(run).model(x), rtol=0, atol=1e-5)


def test_the_code_of_the_page_runs(run, monkeypatch, capsys):
    for words in ([], ["--step"]):
        assert main(["export", str(run), "--to", "onnx", *words]) == 0
    (run.parent / "digits").symlink_to(run)
    monkeypatch.chdir(run.parent)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/onnx.md").read_text(), re.S)
    assert len(code) == 2
    for block in code:
        exec(block, {})
    out = capsys.readouterr().out
    assert 0.5 < float(re.search(r"^accuracy (\S+)", out, re.M)[1]) < 1
    assert "outputs of the last timestep [[" in out


def test_options_of_one_format_are_refused_with_the_other(run, capsys):
    assert main(["export", str(run), "--to", "nir", "--step"]) == 2
    assert main(["export", str(run), "--to", "onnx", "--dialect", "1.0.4"]) == 2
    assert "--dialect is an option of --to nir" in capsys.readouterr().err
    assert main(["export", str(run / "none"), "--to", "onnx"]) == 1
