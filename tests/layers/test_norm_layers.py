"""TDBN and TEBN against their equations in float64, wherever BatchNorm can be used."""

import copy
import math

import pytest
import torch
from torch import nn

import backspike as bs
from backspike.errors import RecipeError
from backspike.recipes.recipe import Recipe
from backspike.recipes.text import parse
from backspike.recipes.values import TDBN, TEBN

SHAPE = (3, 4, 2, 7, 6)  # T, B, C, H, W


def currents(shape=SHAPE, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def varied(norm):
    """The norm with distinct parameters."""
    generator = torch.Generator().manual_seed(3)
    for p in norm.parameters():
        p.data.copy_(torch.rand(p.shape, generator=generator) + 0.5)
    return norm.double()


def statement(x, norm, mean, variance):
    """The equations of norm.py, written independently for `[T, B, C, H, W]`."""
    channel = (1, 1, -1, 1, 1)
    z = (x - mean.view(channel)) / torch.sqrt(variance.view(channel) + norm.eps)
    if isinstance(norm, bs.TDBN):
        return norm.weight.view(channel) * norm.v_threshold / math.sqrt(
            norm.branches
        ) * z + norm.bias.view(channel)
    return norm.scale.view(-1, 1, 1, 1, 1) * (
        norm.weight.view(channel) * z + norm.bias.view(channel)
    )


NORMS = {
    "TDBN": lambda C: bs.TDBN(C, v_threshold=0.6, eps=1e-2),
    "TDBN of two branches": lambda C: bs.TDBN(C, branches=2, v_threshold=1.5, momentum=0.4),
    "TEBN": lambda C: bs.TEBN(C, 3, eps=1e-2, momentum=0.4),
}
norms = pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)


@norms
def test_training_matches_the_equation(make):
    norm, x = varied(make(2)), currents().requires_grad_()
    y = bs.OverTime(norm)(x)
    samples = x.transpose(0, 2).reshape(2, -1)
    want = statement(x, norm, samples.mean(1), samples.var(1, correction=0))
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    weights, learned = currents(seed=1), [x, *norm.parameters()]
    got = torch.autograd.grad((y * weights).sum(), learned)
    torch.testing.assert_close(
        got, torch.autograd.grad((want * weights).sum(), learned), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(norm.running_mean, norm.momentum * samples.mean(1).detach())
    torch.testing.assert_close(
        norm.running_var, 1 - norm.momentum + norm.momentum * samples.var(1).detach()
    )


@norms
@pytest.mark.parametrize("gradients", [True, False], ids=["with gradients", "folded"])
def test_evaluation_matches_the_equation_with_running_statistics(make, gradients):
    convolution, norm = nn.Conv2d(2, 5, 3).double(), varied(make(5)).eval()
    norm.running_mean, norm.running_var = torch.rand(5).double(), torch.rand(5).double() + 0.5
    with torch.set_grad_enabled(gradients):
        x = convolution(currents().flatten(0, 1)).unflatten(0, SHAPE[:2])
        want = statement(x, norm, norm.running_mean, norm.running_var)
        torch.testing.assert_close(
            bs.OverTime(convolution, norm)(currents()), want, rtol=1e-11, atol=1e-11
        )


def deviation(y):
    return y.transpose(0, 2).flatten(1).std(1, correction=0)


def test_the_output_of_tdbn_starts_with_the_right_standard_deviation():
    y = bs.OverTime(bs.TDBN(2, branches=2, v_threshold=0.5, eps=0.0)).double()(currents() * 7 + 3)
    torch.testing.assert_close(deviation(y), torch.full((2,), 0.5 / math.sqrt(2)).double())


@norms
@pytest.mark.parametrize("pool", [None, nn.AvgPool2d(2)], ids=["", "pool"])
@pytest.mark.parametrize("memory", ["exact", "checkpoint"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_block_equals_its_separate_layers(make, pool, memory, train):
    torch.manual_seed(0)
    convolution, neuron = (
        nn.Conv2d(2, 5, 3, padding=1).double(),
        bs.LIF(v_threshold=0.4, memory=memory),
    )
    norm = varied(make(5)).train(train)
    again = copy.deepcopy(norm)
    x, weights = (
        currents().requires_grad_(),
        currents((3, 4, 5, 3, 3) if pool else (3, 4, 5, 7, 6), 1),
    )
    y = bs.block(x, convolution, norm, neuron, pool)
    parts = bs.OverTime(again)(convolution(x.flatten(0, 1)).unflatten(0, SHAPE[:2]))
    want = bs.LIF(v_threshold=0.4, backend="reference")(parts)
    want = bs.OverTime(pool)(want) if pool else want
    assert 0 < want.mean() < 1
    assert torch.equal(y, want)
    got = torch.autograd.grad((y * weights).sum(), [x, convolution.weight, *norm.parameters()])
    wanted = torch.autograd.grad(
        (want * weights).sum(), [x, convolution.weight, *again.parameters()]
    )
    for g, w in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9 * float(w.abs().max()))
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(buffer, again.get_buffer(name))


@norms
def test_a_sequential_with_a_repeated_input(make):
    torch.manual_seed(0)
    model = bs.Sequential(
        bs.OverTime(nn.Conv2d(2, 5, 3), varied(make(5))), bs.LIF(v_threshold=0.5)
    ).double()
    again, x = copy.deepcopy(model), currents((1, *SHAPE[1:]))
    spikes = model(x.expand(SHAPE))
    assert 0 < spikes.mean() < 1
    assert torch.equal(spikes, nn.Sequential(*again)(x.expand(SHAPE).contiguous()))
    torch.testing.assert_close(model[0][1].running_var, again[0][1].running_var, rtol=1e-12, atol=0)


def test_tdbn_fuses_with_the_neuron_and_folds_into_the_convolution():
    model = bs.Sequential(bs.OverTime(nn.Conv2d(2, 5, 3), bs.TDBN(5)), bs.LIF())
    backend = "cpu" in bs.backends()
    assert ("fused with TDBN 0.1" in bs.explain(model)) == backend
    model[1] = bs.LIF(backend="eager")
    assert "backend eager fuses nothing" in bs.explain(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@norms
def test_16_bits_under_autocast_are_close_to_float32(make, dtype):
    norm = varied(make(2)).float()
    x = currents().to(dtype)
    y = bs.OverTime(copy.deepcopy(norm))(x).float()
    torch.testing.assert_close(y, bs.OverTime(norm)(x.float()), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("shape", [(3, 8, 2), (3, 8, 2, 4), (3, 2, 2, 4, 3, 2)], ids=str)
@norms
def test_any_number_of_dimensions(make, shape):
    norm, x = varied(make(2)), currents(shape)
    samples = x.transpose(0, 2).reshape(2, -1)
    want = statement(
        x.reshape(*shape[:3], -1, 1), norm, samples.mean(1), samples.var(1, correction=0)
    )
    torch.testing.assert_close(bs.OverTime(norm)(x), want.view(shape), rtol=1e-12, atol=1e-12)


def test_errors():
    with pytest.raises(ValueError, match=r"T=3 timesteps, got 4: shape \[4, 5, 2, 3, 3\]"):
        bs.OverTime(bs.TEBN(2, 3))(torch.rand(4, 5, 2, 3, 3))
    with pytest.raises(TypeError, match="TEBN needs the time dimension"):
        bs.OverTime(nn.ModuleList([bs.TEBN(2, 3)]))
    with pytest.raises(ValueError, match="v_threshold must be positive"):
        bs.TDBN(2, v_threshold=0.0)
    with pytest.raises(ValueError, match=r"\[N, C, ...\], got shape \[3\]"):
        bs.TDBN(2)(torch.rand(3))


# ----------------------------------------------------------------------------------------- networks


def count(model, kind):
    return sum(type(m) is kind for m in model.modules())


SMALL = [
    *(bs.models.ConvNet("4-P-6", 3, 2, 8), bs.models.Spikformer(3, 2, dim=16, depth=1, heads=2)),
    *(
        bs.models.ResNet18(3, 2),
        bs.models.ResNet50(3, 2, "cifar"),
        bs.models.SEWResNet18(3, 2),
        bs.models.SEWResNet50(3, 2),
    ),
    *(
        bs.models.MSResNet18(3, 2),
        bs.models.ResNet20(3, 2),
        bs.models.ResNet19(3, 2),
        bs.models.VGG11(3, 2),
    ),
    bs.models.MLP(3, 2, (5, 4), recurrent=True),
]


@pytest.mark.parametrize("model", SMALL, ids=str)
def test_every_network_accepts_a_norm(model):
    recipe = Recipe(model=model, norm=TEBN(), T=2)
    plain, tebn = Recipe(model=model).network(), recipe.network()
    tdbn = recipe.replace({"norm": "TDBN()", "neuron.v_threshold": "0.5"}).network()
    kind = nn.BatchNorm1d if isinstance(model, bs.models.MLP) else nn.BatchNorm2d
    assert count(tebn, bs.TEBN) == count(tdbn, bs.TDBN) == count(plain, kind) > 0
    assert count(tebn, kind) == count(tdbn, kind) == 0
    assert {m.v_threshold for m in tdbn.modules() if isinstance(m, bs.TDBN)} == {0.5}
    tdbn.load_state_dict(plain.state_dict())  # names are those of BatchNorm
    place = [] if kind is nn.BatchNorm1d else [32 if "VGG" in str(model) else 8] * 2
    x = torch.rand(2, 2, 2, *place)
    for network in (tdbn, tebn):
        network(x).sum().backward()
    assert all(p.grad is not None for p in tebn.parameters())


def test_two_added_currents_have_half_the_variance_each():
    network = Recipe(model=bs.models.ResNet18(3, stem="cifar"), norm=TDBN()).network()
    branches = {name: m.branches for name, m in network.named_modules() if isinstance(m, bs.TDBN)}
    assert {name for name, n in branches.items() if n == 2} == {
        *(f"layer{i}.{j}.bn2" for i in range(1, 5) for j in range(2)),
        *(f"layer{i}.0.downsample.1" for i in (2, 3, 4)),
    }
    sew = Recipe(model=bs.models.SEWResNet18(3), norm=TDBN()).network()
    assert {m.branches for m in sew.modules() if isinstance(m, bs.TDBN)} == {1}  # spikes are added


def test_a_recipe_and_its_file_contain_the_norm():
    recipe = Recipe(norm=TDBN())
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert parse("TEBN()") == TEBN()
    with pytest.raises(
        RecipeError, match=r"norm must be a value such as TDBN\(\) or None, got Mean\(\)"
    ):
        Recipe(norm=parse("Mean()"))
