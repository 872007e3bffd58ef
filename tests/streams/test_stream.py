"""`bs.stream`: the outputs of `bs.streaming`, timestep by timestep."""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import backspike as bs
from backspike.kernel.cpu import library
from backspike.models.residual import (
    Basic,
    Bottleneck,
    MSBasic,
    ResNet,
    SEWBasic,
    SEWBottleneck,
)

pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")

HARD = {"v_reset": 0.0, "decay_input": True}
BELOW = {"v_reset": -0.25, "decay_input": True, "v_threshold": 0.5}


def conv(*sizes, norm=True, **options):
    layers = [nn.Conv2d(*sizes, **options)]
    return bs.OverTime(*layers, nn.BatchNorm2d(sizes[1])) if norm else bs.OverTime(*layers)


def head(features):
    return bs.OverTime(nn.Flatten(), nn.Linear(features, 3))


def residual(kind, stem="cifar"):
    return ResNet(
        kind, (1, 1), (8, 16), lambda channels: bs.LIF(v_threshold=0.5), num_classes=3,
        in_channels=2, stem=stem, hidden=5,
    )  # fmt: skip


def tdbn():
    return bs.Sequential(
        bs.OverTime(nn.Conv2d(2, 16, 3), bs.TDBN(16, v_threshold=0.5)),
        bs.LIF(v_threshold=0.5),
        bs.OverTime(nn.MaxPool2d(2), nn.BatchNorm2d(16), nn.AdaptiveAvgPool2d(1)),
        head(16),
    )


# name: (network, shape of a timestep of a sample)
NETWORKS = {
    "conv": (
        lambda: bs.Sequential(
            conv(2, 16, 3, padding=1), bs.LIF(**HARD), bs.OverTime(nn.AvgPool2d(2)),
            conv(16, 32, 3, padding=1), bs.LIF(v_threshold=0.5), bs.OverTime(nn.MaxPool2d(2)),
            head(32 * 9), bs.LIF(v_threshold=0.5),
        ),
        (2, 12, 12),
    ),
    "odd geometry": (
        lambda: bs.Sequential(
            conv(2, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
            bs.IF(v_reset=-0.25, v_threshold=0.5),
            conv(6, 12, 3, stride=2, padding=2, groups=3, norm=False), bs.LIF(tau=3.0),
            bs.OverTime(nn.MaxPool2d(3, stride=2, padding=1)),
            conv(12, 32, 2, dilation=2, padding=(2, 1), norm=False), bs.PLIF(),
            bs.OverTime(nn.AvgPool2d((2, 3), stride=1, padding=1, count_include_pad=False)),
            head(32 * 15),
        ),
        (2, 11, 9),
    ),
    "one dimension": (
        lambda: nn.Sequential(
            bs.OverTime(nn.Conv1d(3, 8, 5, stride=2, padding=2, groups=1), nn.BatchNorm1d(8)),
            bs.CubaLIF(), bs.OverTime(nn.MaxPool1d(2), nn.Conv1d(8, 16, 3), nn.AvgPool1d(2)),
            bs.LIF(v_threshold=0.25), bs.OverTime(nn.Dropout(0.5), nn.Flatten()),
            bs.Dropout(0.5), nn.Linear(16, 3),
            bs.Integrator(tau=2.0, decay_input=False),
        ),
        (3, 17),
    ),
    "recurrent": (
        lambda: bs.Sequential(
            nn.Linear(20, 33), bs.Recurrent(nn.Linear(33, 33), bs.LIF(v_threshold=0.5)),
            nn.Linear(33, 24), bs.Recurrent(nn.Linear(24, 24, bias=False), bs.PLIF()),
            bs.Recurrent(nn.Linear(24, 24), bs.CubaLIF(v_threshold=0.5)),
            nn.Linear(24, 3), bs.Integrator(),
        ),
        (20,),
    ),
    "recurrent convolution": (
        lambda: bs.Sequential(
            conv(2, 4, 3, padding=1),
            bs.Recurrent(nn.Conv2d(4, 4, 3, padding=1, groups=2), bs.LIF(v_threshold=0.5)),
            head(4 * 36),
        ),
        (2, 6, 6),
    ),
    "norms": (tdbn, (2, 8, 8)),
    "membrane norm": (
        lambda: bs.Sequential(conv(2, 16, 3, norm=False), bs.MPBN(channels=16), head(16 * 16)),
        (2, 6, 6),
    ),
    "learned": (
        lambda: bs.Sequential(
            nn.Linear(20, 30), bs.LIF(learn=("tau", "threshold")),
            nn.Linear(30, 30), bs.CubaLIF(learn=("tau", "tau_synapse"), tau_synapse=3.0),
            nn.Linear(30, 3),
        ),
        (20,),
    ),
    "model": (
        lambda: bs.models.convnet("8-P-16-P", size=12, in_channels=2, hidden=(20,)), (2, 12, 12),
    ),
    "mlp": (lambda: bs.models.mlp(3, 20, (30, 30), recurrent=True, dropout=0.3), (20,)),
    "basic": (lambda: residual(Basic), (2, 8, 8)),
    "bottleneck": (lambda: residual(Bottleneck), (2, 8, 8)),
    "SEW basic": (lambda: residual(SEWBasic), (2, 8, 8)),
    "SEW bottleneck": (lambda: residual(SEWBottleneck, "imagenet"), (2, 32, 32)),
    "MS basic": (lambda: residual(MSBasic), (2, 8, 8)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def build(name, dtype):
    """The network with statistics and learned constants of its own, in evaluation mode."""
    make, shape = NETWORKS[name]
    model = make().to(dtype).eval()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.1)
            m.running_var.uniform_(0.05, 0.2)
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, 0, 0.2)
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            m.weight.data *= 3
        if isinstance(m, bs.LIF) and m.threshold is not None:
            nn.init.constant_(m.threshold, 0.7)
    return model, shape


def frames(T, batch, shape, dtype, share=0.2):
    """Counts of events, mostly zero."""
    return (torch.rand(T, batch, *shape) < share).to(dtype) * torch.randint(
        1, 4, (T, batch, *shape)
    )


def run(plan, x):
    return torch.stack([plan.step(t) for t in x])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_stream_equals_the_sequence_in_chunks_and_as_a_whole(name, batch):
    """In float64 a spike that differed would change the outputs by far more than rounding."""
    model, shape = build(name, torch.float64)
    x = frames(9, batch, shape, torch.float64)
    with torch.no_grad(), bs.streaming(model):
        chunks = torch.cat([model(part) for part in (x[:4], x[4:5], x[5:])])
    with torch.no_grad():
        torch.testing.assert_close(chunks, model(x))
    plan = bs.stream(model)
    y = run(plan, x)
    torch.testing.assert_close(y, chunks, rtol=1e-10, atol=1e-10)
    assert y.abs().sum() > 0
    assert "called" not in plan.explain()
    plan.reset()
    assert torch.equal(run(plan, x), y)


@pytest.mark.parametrize("name", NETWORKS)
def test_neurons_spike_on_the_way(name):
    """Otherwise the test above would compare biases."""
    model, shape = build(name, torch.float64)
    with torch.no_grad(), bs.record(model) as outputs:
        model(frames(9, 3, shape, torch.float64))
    rates = {key: out.spikes.mean().item() for key, out in outputs.items()}
    assert all(0.01 < rate < 0.99 for rate in rates.values()), rates


def sixteenths(model):
    """Weights whose sums are exact in float32, in whatever order they are added."""
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            for p in m.parameters():
                p.data.mul_(16).round_().div_(16)
    return model


@pytest.mark.parametrize("level", library.levels() if library.available() else ())
@pytest.mark.parametrize("name", ["recurrent", "exact convolutions"])
def test_spikes_are_bit_equal_in_float32_where_sums_are_exact(name, level):
    if name == "recurrent":
        model, shape = build(name, torch.float32)
    else:
        shape = 2, 9, 9
        model = bs.Sequential(
            conv(2, 16, 3, padding=1, norm=False), bs.LIF(**BELOW), bs.OverTime(nn.AvgPool2d(2)),
            conv(16, 48, 3, norm=False), bs.CubaLIF(), head(48 * 4), bs.LIF(v_threshold=0.25),
        )  # fmt: skip
    for p in sixteenths(model).parameters():
        p.data *= 2
    x = frames(20, 2, shape, torch.float32)
    with library.level(level):
        y = run(bs.stream(model), x)
    with torch.no_grad():
        assert torch.equal(y, model(x))
    assert y.count_nonzero() > 0


def test_spikes_differ_from_float32_only_at_the_threshold():
    model = bs.Sequential(conv(2, 64, 3, padding=1), bs.LIF(v_threshold=0.5))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.05, 0.2)
    model.eval()
    x = frames(30, 4, (2, 34, 34), torch.float32)
    with torch.no_grad(), bs.record(model) as outputs:
        expected = model(x)
    (membrane,) = (out.membrane for out in outputs.values())
    # once a spike differs, so does the membrane of this neuron from then on
    differs = (run(bs.stream(model), x) != expected).cummax(0).values
    first = differs & ~torch.cat((torch.zeros_like(differs[:1]), differs[:-1]))
    assert first.double().mean() < 1e-5
    assert (membrane[first] - 0.5).abs().max().item() < 1e-4 if first.any() else True


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_million_timesteps_need_no_more_memory_and_equal_the_chunks():
    model = sixteenths(
        bs.Sequential(
            conv(1, 4, 3, norm=False),
            bs.LIF(**HARD),
            bs.OverTime(nn.MaxPool2d(2)),
            head(4),
            bs.Recurrent(nn.Linear(3, 3), bs.CubaLIF(v_threshold=0.5)),
        )
    )
    plan, steps, sizes, spikes = bs.stream(model), 10_000, [], 0.0
    with torch.no_grad(), bs.streaming(model):
        for _ in range(100):
            x = frames(steps, 1, (1, 4, 4), torch.float32)
            y = torch.stack([plan.step(t) for t in x])
            assert torch.equal(y, model(x))
            spikes += y.mean().item()
            sizes.append(
                int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            )
    assert spikes > 1
    assert max(sizes[50:]) - max(sizes[10:50]) < 1 << 20


def test_few_and_many_events_are_summed_to_the_same_bits(monkeypatch):
    from backspike.kernel.cpu import stream

    layer = bs.OverTime(nn.Conv2d(16, 48, 3, stride=2, padding=1, dilation=2))
    x = torch.randn(4, 2, 16, 13, 10) * (torch.rand(4, 2, 16, 13, 10) < 0.6)
    outputs = []
    for share in (0.0, 1.0):  # all products, and only those of nonzero inputs
        monkeypatch.setattr(stream, "DENSE", share)
        outputs.append(run(bs.stream(layer), x))
    assert torch.equal(*outputs)
    with torch.no_grad():
        torch.testing.assert_close(outputs[0], layer(x))


def test_each_output_has_memory_of_its_own():
    plan = bs.stream(bs.Sequential(nn.Linear(4, 4), bs.Integrator()))
    first = plan.step(torch.ones(1, 4))
    before = first.clone()
    plan.step(torch.ones(1, 4))
    assert torch.equal(first, before)
    assert not first.requires_grad


def test_two_plans_and_their_model_do_not_share_states_or_weights():
    model = bs.Sequential(nn.Linear(6, 5), bs.Integrator(), Doubled())
    x = torch.randn(4, 1, 6)
    one, two = bs.stream(model), bs.stream(model)
    y = run(one, x)
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(run(two, x), y)
    assert model[1].carried is None
    assert not model[1].streams


class Doubled(nn.Module):
    """A layer of a user's own, with a neuron inside."""

    def __init__(self):
        super().__init__()
        self.neuron = bs.LIF(v_threshold=0.5)

    def forward(self, x):
        return self.neuron(x) + 2 * x


def test_other_layers_are_called_and_named():
    model = bs.Sequential(
        conv(2, 8, 3), bs.CLIF(), bs.OverTime(nn.Softplus()), Doubled(), conv(8, 8, 3, norm=False),
        bs.LIF(), bs.OverTime(nn.GroupNorm(2, 8)), head(8 * 4 * 4),
    ).double().eval()  # fmt: skip
    x = frames(7, 2, (2, 8, 8), torch.float64)
    plan = bs.stream(model, x[0])
    text = plan.explain()
    lines = {line.split()[1]: " ".join(line.split()[2:]) for line in text.splitlines()}
    for kind in ("CLIF", "Softplus", "Doubled", "GroupNorm"):
        assert lines[kind] == "called: there is no C for it"
    assert lines["LIF"] == "in C"
    assert lines["BatchNorm2d"] == "folded into 0.0"
    assert repr(plan).endswith("4 called; see explain())")
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(run(plan, x), expected, rtol=1e-10, atol=1e-10)
    plan.reset()
    torch.testing.assert_close(run(plan, x), expected, rtol=1e-10, atol=1e-10)


class Block(nn.Module):
    """Layers with a shortcut, in a module of a user's own."""

    def __init__(self, channels):
        super().__init__()
        self.conv = bs.OverTime(nn.Conv2d(channels, channels, 3, padding=1))
        self.neuron = bs.LIF(v_threshold=0.5)

    def forward(self, x):
        s = self.neuron(self.conv(x))
        s += x
        return s


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv(2, 8, 3)
        self.neuron = bs.LIF(v_threshold=0.5)
        self.block = Block(8)
        self.last = Branching(8)
        self.head = head(8 * 36)

    def forward(self, x):
        s = self.neuron(self.stem(x))
        return self.head(self.last(self.block(s)) + s)


class Branching(Block):
    """What it does depends on its input, so it can only be called."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


def test_own_modules_that_call_and_add_run_in_c():
    model = Net().double().eval()
    x = frames(8, 2, (2, 8, 8), torch.float64)
    plan = bs.stream(model, x[0])
    ways = dict(line.split(maxsplit=1) for line in plan.explain().splitlines())
    assert " ".join(ways["block"].split()) == "Block in C: an addition"
    assert " ".join(ways["last"].split()) == "Branching called: there is no C for it"
    assert "1 called" in repr(plan)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(run(plan, x), expected, rtol=1e-10, atol=1e-10)


def test_hooks_still_fire():
    model = bs.Sequential(nn.Linear(4, 3), bs.LIF())
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    plan = bs.stream(model, torch.zeros(1, 4))
    assert "called: it has hooks" in plan.explain()
    calls.clear()
    run(plan, torch.ones(3, 1, 4))
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_called_as_a_whole(dtype):
    model, shape = build("recurrent", dtype)
    x = frames(5, 2, shape, dtype)
    plan = bs.stream(model)
    y = run(plan, x)
    assert f"called: the input is {dtype}" in plan.explain()
    with torch.no_grad(), bs.streaming(model):
        assert torch.equal(y, torch.cat([model(t[None]) for t in x]))


def test_without_the_c_kernel_a_stream_runs_too(monkeypatch):
    monkeypatch.setattr(library, "_c", None)
    model = bs.Sequential(nn.Linear(4, 3), bs.LIF(backend="eager"))
    plan = bs.stream(model, torch.zeros(1, 4))
    assert "the C kernel was not compiled" in plan.explain()
    assert plan.step(torch.ones(1, 4)).shape == (1, 3)


def test_an_infinite_or_missing_number_spreads_as_in_the_network():
    model = bs.Sequential(nn.Linear(4, 3), bs.LIF())
    x = torch.ones(4, 2, 4)
    x[1, 0, 2] = float("nan")
    x[2, 1, 1] = float("inf")
    with torch.no_grad():
        expected = model(x)
    assert torch.equal(run(bs.stream(model), x).isnan(), expected.isnan())
    assert expected.isnan().any()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    assert "called: a weight is not finite" in bs.stream(model, x[0]).explain()


def test_inputs_of_any_strides_are_read_right():
    model, shape = build("conv", torch.float64)
    x = frames(4, 2, shape, torch.float64)
    expected = run(bs.stream(model), x)
    last = [t.contiguous(memory_format=torch.channels_last) for t in x]
    assert torch.equal(run(bs.stream(model), last), expected)


def test_a_stream_may_begin_in_inference_mode_and_go_on_outside():
    plan = bs.stream(bs.Sequential(nn.Linear(4, 3), bs.LIF(), Doubled()))
    with torch.inference_mode():
        y = plan.step(torch.ones(1, 4))
    plan.reset()
    assert torch.equal(plan.step(torch.ones(1, 4)), y)


def test_another_kind_of_input_needs_a_reset():
    plan = bs.stream(bs.Sequential(nn.Linear(4, 3), bs.LIF()))
    plan.step(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=r"shape \[1, 4\].*got one of shape \[2, 4\].*reset"):
        plan.step(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="float64"):
        plan.step(torch.zeros(1, 4).double())
    with pytest.raises(TypeError, match="must be one tensor"):
        plan.step([0.0] * 4)
    plan.reset()
    assert plan.step(torch.zeros(2, 4)).shape == (2, 3)
    plan.reset()
    with pytest.raises(RuntimeError, match="shapes"):
        plan.step(torch.zeros(1, 5))


def test_a_trained_network_streams_its_outputs_before_the_readout():
    network = bs.load("digits")
    x = (torch.rand(6, 1, 1, 8, 8) < 0.3).float()
    with torch.no_grad():
        expected = network.model(x)
    torch.testing.assert_close(run(bs.stream(network), x), expected, rtol=1e-4, atol=1e-4)
