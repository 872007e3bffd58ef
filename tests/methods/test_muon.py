"""Muon against torch's, and its orthogonalisation against the plain iteration."""

import copy

import pytest
import torch
from torch import nn

import backspike as bs
from backspike.methods.muon import COEFFICIENTS, Muon, orthogonalise, split
from backspike.recipes import values
from backspike.train.schedule import parameter_groups

SHAPES = [(4, 4), (3, 40), (40, 3), (1, 7), (7, 1), (32, 27)]


def plain(x, steps):
    """Newton-Schulz iterations as the authors state them."""
    a, b, c = COEFFICIENTS
    wide = x if len(x) <= x.shape[1] else x.T
    wide = wide / wide.norm()
    for _ in range(steps):
        s = wide @ wide.T
        wide = a * wide + (b * s + c * s @ s) @ wide
    return wide if len(x) <= x.shape[1] else wide.T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_it_equals_the_plain_iteration(shape, steps):
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(orthogonalise(x, steps), plain(x, steps), rtol=1e-10, atol=1e-12)


def test_small_singular_values_keep_their_directions_in_float32():
    """In the product of x with itself they are below the rounding errors."""
    x = torch.randn(20, 60, dtype=torch.float64) * torch.logspace(0, -6, 60, dtype=torch.float64)
    torch.testing.assert_close(orthogonalise(x.float()).double(), plain(x, 5), rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay_and_singular_values_become_one(shape):
    x = torch.randn(shape, dtype=torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inside = u.T @ orthogonalise(x) @ v.T
    diagonal = inside.diagonal()
    torch.testing.assert_close(inside, torch.diag(diagonal), rtol=0, atol=1e-10)
    assert 0.3 < diagonal.min() <= diagonal.max() < 1.3


def test_zero_stays_zero():
    assert not orthogonalise(torch.zeros(3, 5)).any()


@pytest.mark.parametrize(("decay", "momentum"), [(0.0, 0.0), (0.0, 0.95), (0.3, 0.6)])
@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_matrices_move_as_by_torch(shape, decay, momentum):
    """torch computes in bfloat16: the way after six steps agrees to 3 %, and not without decay."""
    start = torch.randn(shape)
    gradients = [torch.randn(shape) for _ in range(6)]

    def moved(kind, group, **options):
        p = nn.Parameter(start.clone())
        optimizer = kind([{"params": [p], **group}], lr=0.1, momentum=momentum, **options)
        for g in gradients:
            p.grad = g.clone()
            optimizer.step()
        return p.detach() - start

    ours = moved(Muon, {"matrices": True}, weight_decay=decay)
    torch_own = moved(torch.optim.Muon, {}, weight_decay=decay)
    assert (ours - torch_own).norm() < 0.03 * torch_own.norm()
    if decay:
        other = moved(torch.optim.Muon, {}, weight_decay=0.0)
        assert (ours - other).norm() > 0.06 * torch_own.norm()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_a_matrix_in_any_memory_layout(layout):
    weight, g = torch.randn(8, 3, 3, 3), torch.randn(8, 3, 3, 3)

    def stepped(p, grad):
        p.grad = grad
        Muon([{"params": [p], "matrices": True}], lr=0.5).step()
        return p.detach()

    conv = stepped(nn.Parameter(weight.to(memory_format=layout)), g.to(memory_format=layout))
    matrix = stepped(nn.Parameter(weight.flatten(1)), g.flatten(1))
    torch.testing.assert_close(conv, matrix.view_as(conv), rtol=0, atol=1e-6)


def network():
    neuron = values.PLIF(tau=2.0)
    return bs.models.ConvNet("4-P-6", in_channels=1, size=8).build(neuron)


def test_vectors_neurons_and_the_last_layer_are_trained_by_sgd():
    model = network()
    by_sgd = {n for n, _ in model.named_parameters()} - {
        "features.0.0.weight",
        "features.3.0.weight",
    }
    other = copy.deepcopy(model)
    ours = values.Muon(lr=0.03, sgd_lr=0.2).build(parameter_groups(model, bs.recipes.digits()))
    for group in ours.param_groups:
        group["lr"] = 0.03 * group["lr_scale"]
    weights, neurons = parameter_groups(other, bs.recipes.digits())
    groups = [{**weights, "lr": 0.2}, {**neurons, "lr": 0.02}]
    torch_own = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    x, y = torch.rand(2, 5, 1, 8, 8), torch.randint(10, (5,))
    for seed in range(3):
        for m, optimizer in ((model, ours), (other, torch_own)):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            nn.functional.cross_entropy(m(x).mean(0), y).backward()
            optimizer.step()
        pairs = zip(model.named_parameters(), other.parameters())
        for (name, a), b in pairs:
            if name in by_sgd:
                torch.testing.assert_close(a, b, msg=name)
                assert a.grad is not None
            else:
                assert not torch.allclose(a, b)
            b.data.copy_(a.data)  # the next gradients are those of the same network


def test_a_network_with_one_layer_has_no_matrix():
    model = nn.Linear(3, 2)
    groups = split([{"params": list(model.parameters()), "lr_scale": 1.0}], 2.0)
    assert [(g["lr_scale"], "matrices" in g) for g in groups] == [(2.0, False)]


def test_it_trains_digits_better_than_not_at_all(tmp_path):
    """And the result depends on its learning rate."""
    recipe = bs.recipes.digits().replace({"epochs": 3, "ema": 0.0})
    results = [
        bs.fit(recipe.replace({"optimizer": f"Muon(lr={lr})"}), tmp_path / str(lr), report=False)
        for lr in (0.03, 1e-6)
    ]
    assert results[0].test_accuracy > 0.9
    assert results[0].test_accuracy > results[1].test_accuracy
