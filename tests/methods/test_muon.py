"""Muon against torch's, and its orthogonalisation against the plain iteration."""

import copy

import pytest
import torch
from torch import nn

import backspike as bs
from backspike.methods import muon
from backspike.methods.muon import COEFFICIENTS, Muon, orthogonalise
from backspike.recipes import values
from backspike.train.schedule import parameter_groups
from backspike.train.setup import set_up

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


def with_singular_values(singular, columns=1152):
    """A random matrix with these singular values, one per row."""
    rows = len(singular)
    u = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64))[0]
    v = torch.linalg.qr(torch.randn(columns, rows, dtype=torch.float64))[0]
    return u * singular.double() @ v.T


SINGULAR_VALUES = {
    "over six decades": torch.logspace(0, -6, 200),
    "nearly of rank 1": torch.tensor([1.0] + 199 * [1e-5]),
}


@pytest.mark.parametrize("singular", SINGULAR_VALUES.values(), ids=SINGULAR_VALUES)
def test_rounding_errors_do_not_grow_where_singular_values_are_tiny(singular):
    """Squared, most of these are below the rounding errors of float32."""
    x = with_singular_values(singular)
    found = orthogonalise(x.float()).double()
    assert torch.linalg.matrix_norm(found - plain(x, 5), 2) < 0.01


@pytest.mark.parametrize("singular", SINGULAR_VALUES.values(), ids=SINGULAR_VALUES)
@pytest.mark.parametrize("how", ["bfloat16", "high", "by torch.backends"])
def test_products_of_lower_precision_use_the_plain_iteration(singular, how, monkeypatch):
    """The other one would give singular values of 7 and 1,900."""

    def precision():
        if how == "high":
            return how
        raise RuntimeError("mix of the legacy and new APIs")  # as torch 2.9 and later

    x = with_singular_values(singular).float()
    if how == "bfloat16":
        found = orthogonalise(x.bfloat16())
    else:
        monkeypatch.setattr(torch, "get_float32_matmul_precision", precision)
        monkeypatch.setattr(muon, "_by_small_side", None)
        found = orthogonalise(x)
    assert torch.linalg.matrix_norm(found.float(), 2) < 1.3


def test_the_size_of_the_gradient_does_not_matter():
    x = torch.randn(5, 9)
    for size in (1e-12, 1e12):
        torch.testing.assert_close(orthogonalise(size * x), orthogonalise(x))


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
    assert orthogonalise(torch.zeros(3, 0)).shape == (3, 0)


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
        Muon([{"params": [p], "matrices": True}], lr=0.5, momentum=0.9).step()
        return p.detach()

    conv = stepped(nn.Parameter(weight.to(memory_format=layout)), g.to(memory_format=layout))
    matrix = stepped(nn.Parameter(weight.flatten(1)), g.flatten(1))
    torch.testing.assert_close(conv, matrix.view_as(conv), rtol=0, atol=1e-6)


def network():
    neuron = values.PLIF(tau=2.0)
    return bs.models.ConvNet("4-P-6", in_channels=1, size=8).build(neuron)


def groups_of(model, optimizer):
    return parameter_groups(model, bs.recipes.digits().replace({"optimizer": optimizer}))


def by_muon(model):
    """The names of the parameters that Muon trains."""
    groups = groups_of(model, values.Muon())
    ids = {id(p) for group in groups if group.get("matrices") for p in group["params"]}
    return [name for name, p in model.named_parameters() if id(p) in ids]


def test_vectors_neurons_and_the_last_layer_are_trained_by_sgd():
    model = network()
    assert by_muon(model) == ["features.0.0.weight", "features.3.0.weight"]
    other = copy.deepcopy(model)
    optimizer = values.Muon(lr=0.05, sgd_scale=4.0)
    ours = optimizer.build(groups_of(model, optimizer))
    for group in ours.param_groups:
        group["lr"] = 0.05 * group["lr_scale"]
    weights, neurons = groups_of(other, values.SGD())
    groups = [{**weights, "lr": 0.2}, {**neurons, "lr": 0.02}]
    torch_own = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    x, y = torch.rand(2, 5, 1, 8, 8), torch.randint(10, (5,))
    for seed in range(3):
        for m, optimizer in ((model, ours), (other, torch_own)):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            nn.functional.cross_entropy(m(x).mean(0), y).backward()
            optimizer.step()
        for (name, a), b in zip(model.named_parameters(), other.parameters()):
            assert a.grad is not None
            if name in by_muon(model):
                assert not torch.allclose(a, b)
            else:
                torch.testing.assert_close(a, b, msg=name)
            b.data.copy_(a.data)  # the next gradients are those of the same network


def test_a_network_with_one_layer_has_no_matrix():
    groups = groups_of(nn.Linear(3, 2), values.Muon(sgd_scale=2.0))
    assert [(g["lr_scale"], "matrices" in g) for g in groups] == [(2.0, False)]


def test_a_frozen_last_layer_is_still_the_last():
    model = network()
    model.classifier.requires_grad_(False)
    assert by_muon(model) == ["features.0.0.weight", "features.3.0.weight"]


def test_weights_over_time_and_delays_are_no_matrices():
    model = nn.Sequential(
        bs.Recurrent(nn.Linear(4, 4), bs.LIF()),
        bs.PSN(T=5),
        bs.Delay(4, max_delay=3, out_features=4),
        nn.Linear(4, 2),
    )
    (name,) = by_muon(model)
    assert name.endswith("weight")
    assert name.startswith("0.")


def test_a_scheduler_keeps_the_ratio_of_the_rates():
    """And OneCycleLR leaves the momenta alone."""
    recipe = bs.recipes.digits().replace(
        {
            "epochs": 1,
            "limit": 128,
            "warmup_epochs": 0.0,
            "optimizer": "Muon(sgd_scale=3.0)",
            "schedule": "OneCycleLR(cycle_momentum=False)",
        }
    )
    setup = set_up(recipe)
    for number in range(2):
        setup.rates.before_step(number)
        muons, rest = setup.optimizer.param_groups
        assert rest["lr"] == pytest.approx(3 * muons["lr"])
        assert (muons["momentum"], rest["momentum"]) == (0.6, 0.9)
        setup.optimizer.step()
        setup.rates.after_step()


def test_it_trains_digits(tmp_path):
    """And the result depends on its learning rate."""
    recipe = bs.recipes.digits().replace({"epochs": 3, "ema": 0.0})
    results = [
        bs.fit(recipe.replace({"optimizer": f"Muon(lr={lr})"}), tmp_path / str(lr), report=False)
        for lr in (0.05, 1e-6)
    ]
    assert results[0].test_accuracy > 0.9
    assert results[0].test_accuracy > results[1].test_accuracy
