"""MPBN against its equations, written here in float64, and its norm folded into the threshold."""

import pytest
import torch
from torch import nn

import backspike as bs
from backspike.recipes.recipe import Recipe
from backspike.recipes.values import MPBN

SHAPE = (4, 3, 2, 5, 6)  # T, B, C, H, W
CURRENTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.4
WEIGHTS = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Step(torch.autograd.Function):
    """The Heaviside step whose derivative is a triangle of peak 1 and half width 1."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z >= 0).double()

    @staticmethod
    def backward(ctx, g):
        (z,) = ctx.saved_tensors
        return g * (1 - z.abs()).clamp(min=0)


def statement(x, weight, bias, statistics=None, tau=3.0, theta=0.6, rest=0.1, eps=1e-5):
    """Return (spikes, means, variances), with hard reset to `rest` and input divided by tau."""
    v, channel = torch.full_like(x[0], rest), (1, -1, 1, 1)
    spikes, means, variances = [], [], []
    for current in x:
        u = v + (current - (v - rest)) / tau
        samples = u.transpose(0, 1).flatten(1)
        mean, variance = statistics or (samples.mean(1), samples.var(1, correction=0))
        means.append(samples.mean(1).detach())
        variances.append(samples.var(1).detach())
        n = weight.view(channel) * (u - mean.view(channel)) / (
            variance.view(channel) + eps
        ).sqrt() + bias.view(channel)
        s = Step.apply(n - theta)
        v = torch.where(s.detach() == 1, rest, u) + (rest - u.detach()) * (s - s.detach())
        spikes.append(s)
    return torch.stack(spikes), means, variances


def neuron(**options):
    fixed = {"v_threshold": 0.6, "v_reset": 0.1, "decay_input": True, "reset_gradient": 1.0}
    surrogate = bs.Triangle(alpha=1.0)
    layer = bs.MPBN(3.0, surrogate=surrogate, channels=2, **fixed, **options).double()
    layer.norm.weight.data = torch.tensor([0.7, 1.4]).double()
    layer.norm.bias.data = torch.tensor([0.1, 0.3]).double()
    layer.norm.running_mean.copy_(torch.tensor([0.2, 0.1]))
    layer.norm.running_var.copy_(torch.tensor([0.3, 0.5]))
    return layer


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_mpbn_matches_its_equations(train):
    layer, x, again = (
        neuron().train(train),
        CURRENTS.clone().requires_grad_(),
        CURRENTS.clone().requires_grad_(),
    )
    before = layer.norm.running_mean.clone(), layer.norm.running_var.clone()
    learned = layer.norm.weight, layer.norm.bias
    spikes, (want, means, variances) = (
        layer(x),
        statement(again, *learned, None if train else before),
    )
    assert torch.equal(spikes, want)
    assert 0.1 < spikes.mean() < 0.9
    got = torch.autograd.grad((spikes * WEIGHTS).sum(), [x, *learned])
    wanted = torch.autograd.grad((want * WEIGHTS).sum(), [again, *learned])
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    running = list(before)
    for mean, variance in zip(means, variances) if train else ():
        running = [0.9 * running[0] + 0.1 * mean, 0.9 * running[1] + 0.1 * variance]
    torch.testing.assert_close([layer.norm.running_mean, layer.norm.running_var], running)


def test_the_norm_folds_into_a_threshold_per_channel_in_evaluation():
    layer = neuron().eval()
    with torch.no_grad():
        n = layer.norm
        want, *_ = statement(CURRENTS, n.weight, n.bias, (n.running_mean, n.running_var))
        assert torch.equal(layer(CURRENTS), want)
        theta = (0.6 - n.bias) * (n.running_var + n.eps).sqrt() / n.weight + n.running_mean
        lif = bs.lif(CURRENTS, tau=3.0, v_threshold=theta, v_reset=0.1, decay_input=True)
        assert torch.equal(lif.spikes, want)
        out = layer(CURRENTS, torch.full_like(CURRENTS[0], 0.1))
        assert torch.equal(out.state, lif.state)
    assert "saves the membrane" in bs.explain(layer)


def test_a_negative_weight_is_not_folded():
    layer = neuron().eval()
    layer.norm.weight.data[1] = -1.0
    with torch.no_grad():
        want, *_ = statement(
            CURRENTS,
            layer.norm.weight,
            layer.norm.bias,
            (layer.norm.running_mean, layer.norm.running_var),
        )
        assert torch.equal(layer(CURRENTS), want)
    assert 0 < want[:, :, 1].mean() < 1


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_streaming_recording_and_repeats(train):
    layer, T = neuron().train(train), len(CURRENTS)
    whole = layer(CURRENTS)
    layer = neuron().train(train)
    with bs.streaming(layer):
        pieces = torch.cat([layer(CURRENTS[:1]), layer(CURRENTS[1:])])
    assert torch.equal(pieces, whole)
    layer = neuron().train(train)
    with bs.record(layer) as recorded, torch.no_grad():
        assert torch.equal(layer(CURRENTS), whole)
    assert torch.equal(
        recorded[""].membrane >= 0.6, whole == 1
    )  # the membrane is the normalised one
    layer = neuron().train(train)
    repeated = layer(CURRENTS[:1], None, T)
    assert torch.equal(repeated, neuron().train(train)(CURRENTS[:1].expand(SHAPE).contiguous()))


def test_the_mask_drops_the_elements_of_bs_dropped():
    layer, x = neuron(), CURRENTS[:1].clone().requires_grad_()
    layer.surrogate = bs.Masked(bs.Rectangle(width=50.0), p=0.5)
    layer.mask_p = torch.tensor(0.5, dtype=torch.float64)
    layer.eval()(x).sum().backward()
    assert torch.equal(x.grad == 0, bs.dropped(layer.seed, x.shape, 0.5))


def test_a_recipe_with_mpbn_learns():
    recipe = Recipe(neuron=MPBN())
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    network = recipe.network()
    layers = [m for m in network.modules() if isinstance(m, bs.MPBN)]
    assert [m.channels for m in layers] == [32, 64]
    network(torch.rand(2, 3, 1, 28, 28)).sum().backward()
    assert all(m.norm.weight.grad.abs().sum() > 0 for m in layers)
    bs.check_gradients(network)


def test_errors():
    with pytest.raises(ValueError, match="channels="):
        bs.MPBN()
    with pytest.raises(ValueError, match="hard reset"):
        bs.MPBN(channels=2, v_reset=None)
    with pytest.raises(ValueError, match="'exact', got '8bit'"):
        bs.MPBN(channels=2, memory="8bit")
    with pytest.raises(ValueError, match=r"\[N, C, ...\]"):
        bs.MPBN(channels=2)(torch.rand(3, 2))
    assert isinstance(nn.Sequential(bs.MPBN(channels=2))[0], bs.LIF)
