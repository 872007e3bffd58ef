"""Which convolutions are computed by Winograd's algorithm and by looking up, and what networks
make of it."""

import copy
import math

import pytest
import torch
from helpers.training import Stop, fit, same, stop_after, tiny, weights
from torch import nn

import backspike as bs
from backspike.errors import RecipeError
from backspike.kernel.cpu import conv_lookup, library, winograd
from backspike.kernel.cpu.conv import Geometry
from backspike.layers import sparsity, synapse
from backspike.layers.fast_convolution import Costs, costs
from backspike.models.residual import SEWBasic
from backspike.run import Run
from backspike.train import checkpoint
from backspike.train.fit import resume

LAST = torch.channels_last
SAME = Geometry((1, 1), (1, 1), (1, 1))
pytestmark = pytest.mark.skipif(
    not library.available() or winograd.block() < 16, reason="needs the C kernel with AVX2"
)


@pytest.fixture(autouse=True)
def zen(monkeypatch):
    """A processor with AVX-512 VNNI and bfloat16, without tile multiplication."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)


@pytest.fixture
def always_fast(monkeypatch):
    """Every supported convolution is computed by the fast ways, whatever its size."""
    monkeypatch.setattr(sparsity, "WORTH_IT", 0)
    monkeypatch.setattr(sparsity, "FAST_BELOW", 1e9)
    monkeypatch.setattr(sparsity, "EVENTS_BELOW", dict.fromkeys(winograd.DTYPES, (-1.0, -1.0)))
    monkeypatch.setattr(sparsity, "LOOKUP_FROM", -1.0)


def layer_of(C=64, N=64, how="fast", **options):
    torch.manual_seed(0)
    layer = nn.Conv2d(C, N, 3, **{"padding": 1, **options})
    bs.set_convolution(layer, how)
    return layer


def spikes(*shape, density=0.3):
    r = torch.Generator().manual_seed(1)
    return (torch.rand(shape, generator=r) < density).float().contiguous(memory_format=LAST)


def gradients(layer, x, autocast=False, call=synapse.convolution):
    layer.zero_grad()
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = call(x, layer)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    y.backward(g.to(y.dtype))
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def weight_of_spikes():
    """The fast way of the weight gradient on this processor."""
    return "lookup" if conv_lookup.available() else "winograd"


def difference(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("format", [torch.contiguous_format, LAST], ids=str)
def test_a_fast_layer_matches_torch(format, autocast, always_fast):
    layer, x = layer_of(20, 34), spikes(4, 20, 9, 8).contiguous(memory_format=format)
    got = gradients(layer, x, autocast)
    want = gradients(layer, x, call=lambda x, layer: layer(x))
    plan = sparsity.plan_of(layer)
    weight = weight_of_spikes()
    assert (plan.forward, plan.weight, plan.input) == ("winograd", weight, "winograd")
    assert got[0].dtype == (torch.bfloat16 if autocast else torch.float32)
    for a, b in zip(got[:2], want[:2]):
        assert 0 < difference(a, b) < (2.5e-3 if autocast else 1.2e-3)
    for a, b, bound in zip(got[2:], want[2:], (2e-4, 1e-5)):
        assert difference(a, b) < (1e-2 if autocast else bound)
    assert (difference(got[2], want[2]) > 1e-5) == (weight == "lookup" or autocast)
    assert difference(got[2], want[2]) > 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(synapse.convolution(x, layer), got[0])


def test_exact_is_the_default_and_can_be_set_again(always_fast):
    layer, x = nn.Conv2d(64, 64, 3, padding=1), spikes(2, 64, 8, 8)
    want = gradients(layer, x, call=lambda x, layer: layer(x))
    for how in (None, "fast", "exact"):
        if how:
            bs.set_convolution(layer, how)
        same = [torch.equal(a, b) for a, b in zip(gradients(layer, x), want)]
        assert all(same) == (how != "fast")
    with pytest.raises(ValueError, match="exact or fast, got 'quick'"):
        bs.set_convolution(layer, "quick")


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (layer_of(stride=2), "only 3x3 with stride 1 and padding 1"),
        (layer_of(padding=0), "only 3x3 with stride 1 and padding 1"),
        (layer_of(padding=2, dilation=2), "only 3x3 with stride 1 and padding 1"),
    ],
    ids=["stride", "padding", "dilation"],
)
def test_other_convolutions_stay_exact(layer, why, always_fast):
    x = spikes(2, 64, 8, 8)
    for a, b in zip(gradients(layer, x), gradients(layer, x, call=lambda x, layer: layer(x))):
        assert torch.equal(a, b)
    assert why in str(sparsity.plan_of(layer))


@pytest.mark.parametrize("place", ["x", "weight", "g"])
def test_numbers_that_are_not_finite_are_computed_as_torch_does(place, always_fast):
    layer, x = layer_of(), spikes(2, 64, 8, 8)
    with torch.no_grad():
        if place == "weight":
            layer.weight[3, 4, 1, 1] = math.inf
        elif place == "x":
            x[0, 0, 0, 0] = math.nan
    y, z = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = synapse.convolution(y, layer), layer(z)
    g = torch.ones_like(got)
    g[0, 0, 0, 0] = math.nan if place == "g" else 1
    got.backward(g)
    weight, layer.weight.grad = layer.weight.grad, None
    want.backward(g)
    assert torch.equal(weight.isfinite(), layer.weight.grad.isfinite())
    assert torch.equal(y.grad.isfinite(), z.grad.isfinite())
    assert torch.equal(got.isfinite(), want.isfinite())
    plan = sparsity.plan_of(layer)
    assert plan.forward == ("winograd" if place == "g" else "dense")
    assert plan.input == ("winograd" if place == "x" else "dense")
    assert plan.weight == (weight_of_spikes() if place == "weight" else "dense")
    assert "dense where numbers are not finite" in str(plan)


# -------------------------------------------------------------------------------------------- costs


# channels, side, images; as many times as fast as torch's bfloat16, see `fast_convolution.py`
LOOKED_UP = {
    torch.float32: [(64, 32, 64, 1.6), (128, 16, 64, 1.8), (256, 8, 64, 2.2)],
    torch.bfloat16: [(64, 32, 64, 2.4), (128, 16, 64, 2.3), (256, 8, 64, 2.5), (512, 4, 64, 2.5)],
}
MEASURED = [(64, 32, 64, 1.77), (128, 16, 64, 2.03), (256, 8, 64, 2.04), (512, 4, 64, 1.16)]


@pytest.mark.skipif(winograd.available() and winograd.block() < 64, reason="needs AVX-512")
@pytest.mark.parametrize(("C", "side", "images", "gain"), MEASURED)
def test_the_cost_model_matches_what_was_measured(C, side, images, gain, monkeypatch):
    monkeypatch.setattr(winograd, "has_vnni", lambda: True)
    layer = layer_of(C, C)
    made = costs(layer, images, (side, side), torch.bfloat16, SAME)
    assert 1 / made.forward == pytest.approx(gain, rel=0.1)
    assert costs(layer, images, (side, side), torch.float32, SAME).forward < made.forward


@pytest.mark.skipif(not conv_lookup.available(), reason="needs AVX-512")
@pytest.mark.parametrize("dtype", LOOKED_UP)
def test_the_cost_of_looking_up_matches_what_was_measured(dtype, monkeypatch):
    monkeypatch.setattr(winograd, "has_vnni", lambda: True)
    for C, side, images, gain in LOOKED_UP[dtype]:
        made = costs(layer_of(C, C), images, (side, side), dtype, SAME)
        assert 1 / made.lookup == pytest.approx(gain, rel=0.1)


# channels of input and output, side, images; times as fast as torch on one core, which vary by 20 %
WEIGHTS = [
    (32, 64, 16, 256, 2.2),
    (64, 128, 8, 256, 2.8),
    (128, 256, 4, 256, 3.6),
    (64, 64, 32, 64, 3.3),
    (128, 128, 16, 64, 3.4),
    (256, 256, 8, 64, 3.3),
    (512, 512, 4, 64, 2.0),
]


@pytest.mark.parametrize(("C", "N", "side", "images", "gain"), WEIGHTS)
def test_the_cost_of_winograds_weight_gradient_is_near_what_was_measured(C, N, side, images, gain):
    with library.level("v3"):
        made = costs(layer_of(C, N), images, (side, side), torch.float32, SAME)
    assert 1 / made.weight == pytest.approx(gain, rel=0.2)
    assert f"the weight gradient {1 / made.weight:.1f} times" in made.why


def test_the_tile_multiplication_of_amx_is_left_to_onednn(monkeypatch):
    layer = layer_of()
    sizes = 64, (32, 32)
    assert costs(layer, *sizes, torch.bfloat16, SAME).forward < 0.9
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    made = costs(layer, *sizes, torch.bfloat16, SAME)
    assert (made.forward, made.input, made.weight, made.lookup) == (math.inf,) * 4
    assert "AMX" in made.why
    assert costs(layer, *sizes, torch.float32, SAME).forward < 0.9
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx512_core_amx")
    assert "AMX" in costs(layer, *sizes, torch.bfloat16, SAME).why
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    assert costs(layer, *sizes, torch.bfloat16, SAME).forward < 0.9


def test_a_processor_without_avx2_stays_exact():
    with library.level("baseline"):
        made = costs(layer_of(), 64, (32, 32), torch.float32, SAME)
    assert made == Costs(why="fast only with AVX2 or AVX-512")


def test_odd_sizes_and_few_channels_cost_more():
    def cost(C, N, size, images=64):
        return costs(layer_of(C, N), images, size, torch.float32, SAME).forward

    assert cost(64, 64, (32, 32)) < cost(64, 64, (33, 33)) < cost(64, 64, (29, 29))
    assert cost(64, 64, (32, 32)) < cost(48, 50, (32, 32)) < cost(16, 16, (32, 32))
    assert cost(512, 512, (4, 4)) < cost(512, 512, (4, 4), images=4)
    assert cost(16, 64, (5, 5), images=1) > 0.9


@pytest.mark.skipif(not conv_lookup.available(), reason="needs AVX-512")
def test_odd_sizes_and_few_channels_cost_more_to_look_up():
    def cost(C, N, size, images=64):
        return costs(layer_of(C, N), images, size, torch.float32, SAME).lookup

    assert cost(64, 64, (32, 32)) == cost(64, 64, (64, 16))
    assert cost(64, 64, (32, 32)) < cost(64, 64, (32, 30)) < cost(64, 64, (32, 25))
    assert cost(64, 64, (31, 4)) < cost(64, 64, (31, 3))
    assert cost(64, 64, (32, 32)) < cost(50, 60, (32, 32)) < cost(17, 17, (32, 32))
    assert cost(512, 512, (4, 4)) < cost(512, 512, (4, 4), images=4)


def test_the_processor_decides_about_the_weight_gradient():
    for level in set(library.levels()) - {"baseline"}:
        with library.level(level):
            made = costs(layer_of(), 64, (32, 32), torch.float32, SAME)
        assert (made.lookup < math.inf) == (level == "v4")
        assert (made.weight < math.inf) == (level == "v3")
        assert ("weight gradient of spikes" in made.why) == (level == "v4")


def test_odd_sizes_and_few_channels_cost_more_in_the_weight_gradient():
    def cost(C, N, size, images=64):
        with library.level("v3"):
            return costs(layer_of(C, N), images, size, torch.float32, SAME).weight

    assert cost(64, 64, (32, 32)) < cost(64, 64, (33, 33)) < cost(64, 64, (29, 29))
    assert cost(64, 64, (32, 32)) < cost(60, 50, (32, 32)) < cost(16, 16, (32, 32))
    assert cost(512, 512, (4, 4)) < cost(512, 512, (4, 4), images=4)
    assert cost(64, 64, (5, 5), images=1) > 0.9


def test_events_are_left_where_the_fast_way_is_cheaper():
    """Half the dense time halves the density up to which events are faster, with hysteresis. Where
    the weight gradient is looked up, the density alone decides."""
    forward = sparsity.EVENTS_BELOW[torch.float32][0]
    plan, half = sparsity.SparsityPlan(), Costs(0.5, 0.5)
    for part, way in ((1.2, "winograd"), (0.95, "winograd"), (0.85, "gather"), (1.05, "gather")):
        plan.decide_events(torch.float32, True, part * forward / 2, half)
        assert (plan.forward, plan.input) == (way, "winograd")
    for part, way in ((1.2, "lookup"), (0.95, "lookup"), (0.85, "gather"), (1.05, "gather")):
        plan.decide_events(torch.float32, True, part * sparsity.LOOKUP_FROM, Costs(lookup=0.5))
        assert (plan.forward, plan.weight, plan.input) == ("gather", way, "dense")
    for binary, cost, way in ((True, 0.5, "lookup"), (False, 0.5, "dense"), (True, 0.95, "dense")):
        plan.decide_events(torch.float32, binary, 0.9, Costs(lookup=cost))
        assert plan.weight == way
    weight, plan = sparsity.EVENTS_BELOW[torch.float32][1], sparsity.SparsityPlan()
    for part, way in ((1.2, "winograd"), (0.95, "winograd"), (0.85, "gather"), (1.05, "gather")):
        plan.decide_events(torch.float32, True, part * weight / 2, Costs(weight=0.5))
        assert plan.weight == way
    for binary, density in ((False, 0.9), (False, None), (True, None)):
        plan.decide_events(torch.float32, binary, density, Costs(weight=0.5), product=True)
        assert plan.weight == "winograd"
    plan.decide_events(torch.float32, True, 0.9, Costs(weight=0.95))
    assert plan.weight == "dense"
    plan = sparsity.SparsityPlan(forward="winograd", input="winograd")
    plan.decide_events(torch.float32, True, 1.2 * forward / 2, half)
    assert (plan.forward, plan.weight) == ("winograd", "gather")
    plan.decide_events(torch.float32, True, None, half)
    assert (plan.forward, plan.weight) == ("winograd", "dense")
    plan.decide_events(torch.float32, True, 0.9, Costs(0.95, 2.0))
    assert (plan.forward, plan.input) == ("dense", "dense")


# ----------------------------------------------------------------------------------------- networks


def network():
    torch.manual_seed(3)
    block = SEWBasic(64, 64, 1, lambda channels: bs.LIF())
    front = bs.OverTime(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64))
    head = bs.OverTime(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5))
    model = bs.Sequential(front, bs.LIF(), block, head).to(memory_format=LAST)
    bs.set_convolution(model, "fast")
    return model


def test_a_network_chooses_explains_and_copies(monkeypatch):
    monkeypatch.setattr(sparsity, "EVENTS_BELOW", dict.fromkeys(winograd.DTYPES, (-1.0, -1.0)))
    calls = []
    convolve = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *a: calls.append(a[0].shape) or convolve(*a))
    model = network()
    x = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    model(x).square().mean().backward()
    assert len(calls) == 2
    assert [p.forward for _, p in sparsity.plans(model)].count("winograd") == 2
    assert [p.weight for _, p in sparsity.plans(model)].count(weight_of_spikes()) == 2
    text = bs.explain(model)
    assert "forward fast (spikes" in text
    way = {"lookup": "by lookup", "winograd": "fast"}[weight_of_spikes()]
    assert f"weight gradient {way}, input gradient fast; calculated" in text
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        twin(x)
    assert len(calls) == 4


def test_gradients_of_a_network_are_as_close_as_in_bfloat16(monkeypatch):
    """To those of float32 on the same spikes, which one threshold decides for all."""
    monkeypatch.setattr(sparsity, "EVENTS_BELOW", dict.fromkeys(winograd.DTYPES, (-1.0, -1.0)))
    torch.manual_seed(5)
    convolutions = [nn.Conv2d(64, 64, 3, padding=1, bias=False) for _ in range(3)]
    model = bs.OverTime(*convolutions).to(memory_format=LAST)
    x = spikes(8, 64, 16, 16)[None]
    results = []
    for how, autocast in (("exact", False), ("exact", True), ("fast", False), ("fast", True)):
        bs.set_convolution(model, how)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(x).float().sin().sum().backward()
        results.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    exact, bfloat16, fast, fast_bfloat16 = results
    assert 0 < difference(fast, exact) < 0.5 * difference(bfloat16, exact)
    assert difference(fast_bfloat16, exact) < 1.05 * difference(bfloat16, exact)


def test_a_fast_run_and_its_resume_are_the_same(tmp_path, always_fast):
    model = "ConvNet('16-32-P-32', size=8)"
    recipe = tiny(convolution="fast", model=model, precision="float32", checkpoint_seconds=0)
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "parts", listen=stop_after(5))
    stored = checkpoint.read(Run.open(tmp_path / "parts"), "last.ckpt")["ranks"][0]["products"]
    assert "winograd" in {plan["forward"] for plan in stored.values()}
    weights_by = {plan["weight"] for plan in stored.values()}
    assert weight_of_spikes() in weights_by
    resume(tmp_path / "parts", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    fit(recipe.replace({"convolution": "exact"}), tmp_path / "exact")
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "exact"))
    loaded = bs.load(tmp_path / "parts")
    assert {m.convolution for m in loaded.modules() if isinstance(m, nn.Conv2d)} == {"fast"}
    with pytest.raises(RecipeError, match="convolution must be exact or fast, got quick"):
        tiny(convolution="quick")
