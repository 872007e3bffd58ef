"""Sparse convolutions, against float64 results; the layers that use them, against torch's."""

import copy
import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers.convolutions import all_results
from helpers.paths import TESTS
from helpers.threads import on_threads
from torch import nn

import backspike as bs
from backspike.kernel.cpu import conv, library, sparse
from backspike.kernel.cpu.conv import Events, Geometry
from backspike.kernel.pack import pack
from backspike.layers import sparsity, synapse

pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
LAST = torch.channels_last
# x [n, C, H, W], N, window, stride, padding, dilation
CASES = {
    "3x3": ((3, 37, 9, 11), 70, (3, 3), (1, 1), (1, 1), (1, 1)),
    "3x3, whole words": ((2, 64, 16, 16), 128, (3, 3), (1, 1), (1, 1), (1, 1)),
    "3x3, many small images": ((70, 66, 4, 3), 33, (3, 3), (1, 1), (1, 1), (1, 1)),
    "3x3, rows in parts": ((2, 5, 40, 70), 8, (3, 3), (1, 1), (1, 1), (1, 1)),
    "stride 2": ((3, 20, 9, 10), 40, (3, 3), (2, 2), (1, 1), (1, 1)),
    "stride 2, parts": ((1, 3, 75, 81), 9, (3, 3), (2, 2), (1, 1), (1, 1)),
    "1x1": ((4, 130, 5, 3), 200, (1, 1), (1, 1), (0, 0), (1, 1)),
    "1x1, stride 2": ((4, 33, 7, 6), 17, (1, 1), (2, 2), (0, 0), (1, 1)),
    "5x5": ((2, 7, 12, 9), 19, (5, 5), (1, 1), (2, 2), (1, 1)),
    "4x3, uneven": ((2, 17, 13, 15), 21, (4, 3), (3, 2), (0, 4), (1, 2)),
    "dilation": ((2, 9, 14, 13), 35, (3, 3), (1, 2), (2, 2), (2, 3)),
    "one pixel": ((1, 1, 1, 1), 1, (1, 1), (1, 1), (0, 0), (1, 1)),
    "padding beyond the window": ((2, 4, 3, 2), 5, (2, 2), (1, 1), (3, 4), (1, 1)),
}
CODES = {1: 1, 4: 15, 8: 255}  # bits: the largest code


def draw(case, bits=1, density=0.3, dtype=torch.float32, seed=0):
    """x with values that fit into the bits, its Events, weight, bias, output gradient, geometry."""
    shape, N, window, stride, padding, dilation = case
    r = torch.Generator().manual_seed(seed)
    codes = torch.randint(1, CODES[bits] + 1, shape, generator=r)
    x = (codes if bits == 1 else codes / 4) * (torch.rand(shape, generator=r) < density)
    if bits > 1:
        x.view(-1)[0] = CODES[bits] / 4  # so that fewer bits do not suffice
    x = x.float().contiguous(memory_format=LAST)
    packed, geometry = pack(x), Geometry(stride, padding, dilation)
    assert packed.bits == bits
    size = geometry.outputs(shape[2:], window)
    weight, bias, g = (
        torch.randn(s, generator=r).to(dtype)
        for s in ((N, shape[1], *window), (N,), (shape[0], N, *size))
    )
    return (
        x,
        Events(packed.codes, bits, x.shape),
        weight,
        bias,
        g.contiguous(memory_format=LAST),
        geometry,
    )


def assert_near(got, want, bound):
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert float((got.double() - want).abs().max()) <= bound * max(float(want.abs().max()), 1e-30)


@pytest.mark.parametrize("dtype", sparse.DTYPES)
@pytest.mark.parametrize("bits", CODES)
@pytest.mark.parametrize("name", CASES)
def test_output_and_gradient(name, bits, dtype, tolerance):
    for density in (0.0, 0.02, 0.4, 1.0):
        x, events, weight, bias, g, geometry = draw(CASES[name], bits, density, dtype)
        how = geometry.stride, geometry.padding, geometry.dilation
        y = events.convolved(weight, bias, geometry)
        assert (y.dtype, y.is_contiguous(memory_format=LAST)) == (dtype, True)
        assert_near(y, F.conv2d(x.double(), weight.double(), bias.double(), *how), tolerance[dtype])
        assert_near(
            events.convolved(weight, None, geometry),
            F.conv2d(x.double(), weight.double(), None, *how),
            tolerance[dtype],
        )
        want = nn.grad.conv2d_weight(x.double(), weight.shape, g.double(), *how)
        for template in (
            weight,
            weight.contiguous(memory_format=LAST),
            weight.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2),
        ):
            gw = events.weight_gradient(g, template, geometry)
            assert (gw.dtype, gw.stride()) == (torch.float32, template.stride())
            assert_near(gw, want, tolerance[torch.float32])
            assert torch.equal(events.convolved(template, bias, geometry), y)


def test_sums_of_multiples_of_a_64th_are_exact():
    for bits, case in itertools.product((1, 4), CASES.values()):
        x, events, weight, bias, g, geometry = draw(case, bits)
        weight, bias, g = ((64 * a).round() / 64 for a in (weight, bias, g))
        how = geometry.stride, geometry.padding, geometry.dilation
        want = F.conv2d(x.double(), weight.double(), bias.double(), *how)
        assert torch.equal(events.convolved(weight, bias, geometry).double(), want)
        want = nn.grad.conv2d_weight(x.double(), weight.shape, g.double(), *how)
        assert torch.equal(events.weight_gradient(g, weight, geometry).double(), want)


@pytest.mark.parametrize("dtype", sparse.DTYPES)
def test_results_do_not_depend_on_the_number_of_threads(dtype, monkeypatch):
    monkeypatch.setattr(conv, "_GRAIN", 1)
    cases = []
    for bits, case in itertools.product((1, 4), CASES.values()):
        x, _, *rest = draw(case, bits, dtype=dtype)
        cases.append((x, bits, *rest))
    first, *others = on_threads(lambda: all_results(cases))
    assert all(torch.equal(a, b) for made in others for a, b in zip(made, first, strict=True))


LEVEL = """
import sys, torch
from backspike.kernel.cpu.conv import Geometry
from backspike.kernel.cpu import library
sys.path.insert(0, sys.argv[3])
from helpers.convolutions import all_results
torch.set_num_threads(1)
cases = [(*rest, Geometry(*how)) for *rest, how in torch.load(sys.argv[1])]
torch.save((library._c._name, all_results(cases)), sys.argv[2])
"""


def test_all_processor_levels_agree(tmp_path):
    """The levels use blocks of different widths, but sum in the same order."""
    cases = []
    chosen = [CASES[name] for name in ("3x3", "stride 2", "5x5", "1x1")]
    for dtype, bits, case in itertools.product(sparse.DTYPES, (1, 4), chosen):
        x, _, weight, bias, g, geometry = draw(case, bits, dtype=dtype)
        cases.append(
            (x, bits, weight, bias, g, (geometry.stride, geometry.padding, geometry.dilation))
        )
    torch.save(cases, tmp_path / "cases.pt")
    results = []
    for level in ("default", "avx2", None):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": level} if level else os.environ
        command = [
            sys.executable,
            "-c",
            LEVEL,
            *(str(tmp_path / name) for name in ("cases.pt", "rows.pt")),
            str(TESTS),
        ]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        results.append(torch.load(tmp_path / "rows.pt"))
    assert len({name for name, _ in results}) > 1
    for _, rows in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(rows, results[0][1], strict=True))


# ------------------------------------------------------------------------------------------- layers


@pytest.fixture
def always_sparse(monkeypatch):
    """Every supported convolution is computed sparsely, whatever its size and density."""
    monkeypatch.setattr(sparsity, "WORTH_IT", 0)
    monkeypatch.setattr(sparsity, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(sparsity, "EVENTS_BELOW", dict.fromkeys(sparse.DTYPES, (2.0, 2.0)))


def gradients(call, layer, x, autocast=False):
    """The output, and the gradients of x, if it needs one, and of all parameters."""
    layer.zero_grad()
    x = x.detach().requires_grad_(x.requires_grad)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = call(x, layer)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def call_layer(x, layer):
    return layer(x)


LAYERS = {
    "3x3": lambda: nn.Conv2d(20, 34, 3, padding=1),
    "no bias": lambda: nn.Conv2d(20, 34, 3, bias=False),
    "stride, dilation": lambda: nn.Conv2d(20, 34, 3, stride=2, dilation=2, padding=(1, 2)),
    "same": lambda: nn.Conv2d(20, 34, 3, padding="same"),
    "1x1": lambda: nn.Conv2d(20, 34, 1, stride=(2, 1)),
}
INPUTS = {
    "spikes": lambda x: x > 0.3,
    "pooled": lambda x: (x.clamp(0, 3) * 4).round() / 4,
    "summed": lambda x: x.clamp(0, 40).round(),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "formats", list(itertools.product([torch.contiguous_format, LAST], repeat=2)), ids=str
)
@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_match_torch(name, input, formats, autocast, always_sparse, tolerance):
    layer = LAYERS[name]().to(memory_format=formats[0])
    x = torch.randn((3, 20, 9, 8), generator=torch.Generator().manual_seed(1)) * (
        1 if input == "spikes" else 4
    )
    x = INPUTS[input](x).float().contiguous(memory_format=formats[1]).requires_grad_()
    got = gradients(synapse.convolution, layer, x, autocast)
    dtype = torch.bfloat16 if autocast else torch.float32
    for a, b in zip(got, gradients(call_layer, layer, x, autocast), strict=True):
        assert a.dtype == b.dtype
        assert_near(a, b.double(), tolerance[dtype])
    plan = sparsity.plan_of(layer)
    density = pytest.approx(float((x != 0).float().mean()))
    assert (plan.forward, plan.weight, plan.input, plan.spikes) == (
        "gather",
        "gather",
        "dense",
        density,
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(synapse.convolution(x, layer), got[0])


@pytest.mark.parametrize(
    "frozen",
    [(), ("weight",), ("bias",), ("weight", "bias"), ("x",), ("x", "bias"), ("x", "weight")],
)
def test_only_required_gradients_are_computed(frozen, always_sparse):
    layer = nn.Conv2d(20, 34, 3)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name not in frozen)
    x = (torch.rand(4, 20, 7, 6) < 0.3).float().requires_grad_("x" not in frozen)
    for a, b in zip(
        gradients(synapse.convolution, layer, x), gradients(call_layer, layer, x), strict=True
    ):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert sparsity.plan_of(layer).forward == "gather"


@pytest.mark.parametrize("thresholds", list(itertools.product((2.0, -1.0), repeat=2)))
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
def test_forward_and_weight_gradient_can_be_sparse_separately(
    thresholds, memory_format, always_sparse, monkeypatch
):
    monkeypatch.setattr(sparsity, "EVENTS_BELOW", dict.fromkeys(sparse.DTYPES, thresholds))
    layer = nn.Conv2d(20, 34, 3)
    x = (
        (torch.rand(4, 20, 7, 6) < 0.3)
        .float()
        .contiguous(memory_format=memory_format)
        .requires_grad_()
    )
    for a, b in zip(
        gradients(synapse.convolution, layer, x), gradients(call_layer, layer, x), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    plan = sparsity.plan_of(layer)
    assert (plan.forward, plan.weight) == tuple(
        "gather" if way > 0 else "dense" for way in thresholds
    )


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_unsupported_convolutions_stay_dense(always_sparse):
    x = (torch.rand(4, 20, 8, 8) < 0.3).float().contiguous(memory_format=LAST)
    for layer, inputs in (
        (nn.Conv2d(20, 20, 3, groups=2), x),
        (nn.Conv2d(20, 20, 3, padding=1, padding_mode="reflect"), x),
        (nn.Conv2d(20, 20, (3, 4), padding="same"), x),
        (nn.Conv2d(20, 20, 3), x[0]),
        (nn.Conv2d(20, 20, 3).double(), x.double()),
        (nn.Conv1d(20, 20, 3), x[:, :, 0]),
        (nn.Conv2d(20, 20, 3), torch.randn(4, 20, 8, 8)),
    ):
        for a, b in zip(
            gradients(synapse.convolution, layer, inputs),
            gradients(call_layer, layer, inputs),
            strict=True,
        ):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
        assert dict(sparsity.plans(layer)).get("", sparsity.SparsityPlan()).forward == "dense"
        with torch.no_grad():
            assert torch.equal(synapse.convolution(inputs, layer), layer(inputs))


def test_small_and_narrow_convolutions_have_no_plan():
    for channels, images, has_plan in ((16, 8, True), (15, 8, False), (16, 1, False)):
        layer = nn.Conv2d(channels, 16, 3, padding=1)
        synapse.convolution((torch.rand(images, channels, 16, 16) < 0.05).float(), layer)
        assert bool(dict(sparsity.plans(layer))) == has_plan


# ------------------------------------------------------------------------------------------- choice


def test_plans_change_with_hysteresis(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for dtype in sparse.DTYPES:
        plan, (forward, weight) = sparsity.SparsityPlan(), sparsity.EVENTS_BELOW[dtype]
        for part, way in (
            (1.05, "dense"),
            (0.95, "dense"),
            (0.85, "gather"),
            (1.05, "gather"),
            (1.2, "dense"),
            (0.95, "dense"),
        ):
            assert plan.decide_events(dtype, True, part * forward).forward == way
        plan = sparsity.SparsityPlan()
        for part, way in ((0.95, "dense"), (0.85, "gather"), (1.05, "gather"), (1.2, "dense")):
            assert plan.decide_events(dtype, True, part * weight).weight == way
        for binary, way in ((True, "gather"), (False, "dense")):
            plan = sparsity.SparsityPlan().decide_events(
                dtype, binary, 0.875 * min(forward, weight)
            )
            assert (plan.forward, plan.weight) == (way, way)
        plan.decide_events(dtype, True, None)
        assert (plan.forward, plan.weight, plan.spikes) == ("dense", "dense", None)


def test_the_plan_is_saved_resumed_and_explained():
    """Just above the limit the plan depends on the previous plan."""
    density = 1.03 * sparsity.EVENTS_BELOW[torch.float32][0]
    x = (torch.rand((8, 32, 16, 16), generator=torch.Generator().manual_seed(2)) < density).float()
    model = bs.Sequential(bs.OverTime(nn.Conv2d(32, 32, 3, padding=1)), bs.LIF())
    layer = model[0][0]
    plan = sparsity.plan_of(layer).decide_events(torch.float32, True, 0.01)
    assert (plan.forward, plan.weight) == ("gather", "gather")
    saved, other = sparsity.state(model), copy.deepcopy(model)
    want = gradients(synapse.convolution, layer, x)
    sparsity.plan_of(other[0][0]).load(sparsity.SparsityPlan().state())
    sparsity.load(other, saved)
    assert all(
        torch.equal(a, b)
        for a, b in zip(gradients(synapse.convolution, other[0][0], x)[2:], want[2:])
    )
    assert sparsity.plan_of(other[0][0]) == plan
    assert plan.forward == "gather"
    assert f"forward sparse (spikes {100 * plan.spikes:.2g} %)" in bs.explain(model)
    with torch.no_grad():
        before = sparsity.state(model)
        synapse.convolution(torch.ones(8, 32, 16, 16), layer)
    assert sparsity.state(model) == before


# ----------------------------------------------------------------------------------- whole networks


def network(memory):
    from backspike.models.residual import SEWBasic

    torch.manual_seed(3)
    return bs.Sequential(
        bs.OverTime(nn.Conv2d(3, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)),
        bs.LIF(memory=memory),
        SEWBasic(24, 24, 1, lambda channels: bs.LIF(memory=memory)),
        SEWBasic(24, 40, 2, lambda channels: bs.LIF(memory=memory)),
        bs.OverTime(nn.AvgPool2d(2)),
        bs.OverTime(nn.Conv2d(40, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)),
        bs.LIF(memory=memory),
        bs.OverTime(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)),
    )


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("memory", ["exact", "checkpoint"])
def test_gradients_of_a_residual_network(memory, memory_format, always_sparse, monkeypatch):
    """Sparse and dense convolutions agree for spikes, sums and averages on a grid that is exact."""
    x, results = torch.randn(4, 3, 3, 16, 16, generator=torch.Generator().manual_seed(4)), []
    for events in (True, False):
        if not events:
            monkeypatch.setattr(sparsity, "WORTH_IT", math.inf)
        model = network(memory)
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 4:
                    p.copy_((256 * p).round() / 256)
        model = model.to(memory_format=memory_format)
        y = model(x)
        y.square().mean().backward()
        model.eval()
        with torch.no_grad():
            results.append([y.detach(), *(p.grad for p in model.parameters()), model(x)])
        if memory == "exact":
            assert sum(plan.forward == "gather" for _, plan in sparsity.plans(model)) == (
                6 if events else 0
            )
    for a, b in zip(*results, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_batch_norm_is_folded_into_events(always_sparse, monkeypatch):
    layers = bs.OverTime(nn.Conv2d(20, 34, 3, padding=1), nn.BatchNorm2d(34))
    x = (torch.rand(2, 3, 20, 8, 8) < 0.2).float()
    layers(x)
    layers.eval()
    calls = []
    convolved = Events.convolved
    monkeypatch.setattr(
        Events, "convolved", lambda self, *a: calls.append(self) or convolved(self, *a)
    )
    with torch.no_grad():
        y = layers(x)
    assert len(calls) == 1
    torch.testing.assert_close(
        y, nn.Sequential(*layers)(x.flatten(0, 1)).unflatten(0, (2, 3)), rtol=1e-4, atol=1e-5
    )
