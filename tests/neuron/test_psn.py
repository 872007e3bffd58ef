"""The parallel spiking neuron: membranes and gradients against its equations in numpy."""

import numpy as np
import pytest
import torch
from helpers import peers
from helpers.paths import TESTS
from torch import nn

import backspike as bs
from backspike.kernel.mask import dropped_at

r = torch.Generator().manual_seed(2)
X = torch.randn(9, 3, 2, 4, generator=r, dtype=torch.float64)
G = torch.randn(9, 3, 2, 4, generator=r, dtype=torch.float64)
FORMS = {"full": {"T": 9}, "masked": {"T": 9, "order": 4}, "sliding": {"order": 4}}
FORMS |= {"fading": {"T": 9, "order": 3, "masking": 0.3}, "one": {"order": 1}}
each_form = pytest.mark.parametrize("form", FORMS)
each_backend = pytest.mark.parametrize("backend", bs.backends())


def make(form, **options):
    torch.manual_seed(3)
    layer = bs.PSN(**FORMS[form], v_threshold=0.4, **options).double()
    nn.init.normal_(layer.weight, std=0.6), nn.init.normal_(layer.bias, std=0.2)
    return layer


def matrix(form, weight, T=9):
    """The matrix over time, `[T, T]`, entry by entry from the equations."""
    sizes, W = FORMS[form], np.zeros((T, T))
    for t in range(T):
        for i in range(T):
            near = "order" not in sizes or t - sizes["order"] < i <= t
            if "T" in sizes:
                W[t, i] = weight[t, i] * (1 if near else 1 - sizes.get("masking", 1.0))
            elif near:
                W[t, i] = weight[i - t + sizes["order"] - 1]
    return W


@each_form
@each_backend
def test_spikes_and_gradients_are_those_of_the_equations(form, backend):
    surrogate = bs.Masked(bs.Triangle(1.0), p=0.3)
    layer = make(form, surrogate=surrogate, backend=backend)
    x = X.clone().requires_grad_()
    with bs.record(layer) as seen:
        (layer(x) * G).sum().backward()
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    W = matrix(form, weight)
    u = np.einsum("ti,ibcn->tbcn", W, X.numpy()) + bias.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(seen[""].membrane.detach(), u, atol=1e-13)
    assert np.array_equal(seen[""].spikes.detach(), u >= 0.4)
    assert 0.1 < (u >= 0.4).mean() < 0.9
    gone = dropped_at(layer.seed, 0, X.shape, torch.tensor(0.3)).numpy()
    du = G.numpy() * np.maximum(0, 1 - np.abs(u - 0.4)) * ~gone
    assert 0.2 < gone.mean() < 0.4
    np.testing.assert_allclose(x.grad, np.einsum("ti,tbcn->ibcn", W, du), atol=1e-12)
    dW = np.einsum("tbcn,ibcn->ti", du, X.numpy())
    # the parts of the matrix that belong to each weight
    want = np.array(
        [(dW * matrix(form, e.reshape(weight.shape))).sum() for e in np.eye(weight.size)]
    ).reshape(weight.shape)
    np.testing.assert_allclose(layer.weight.grad, want, atol=1e-12)
    np.testing.assert_allclose(
        layer.bias.grad, du.sum((1, 2, 3)) if layer.T else du.sum(), atol=1e-12
    )


def test_long_sequences_are_computed_in_chunks():
    layer, x = make("sliding"), torch.randn(201, 2, 3, generator=r, dtype=torch.float64)
    with bs.record(layer) as seen, torch.no_grad():
        layer(x)
    W = matrix("sliding", layer.weight.detach().numpy(), 201)
    want = np.einsum("ti,ibc->tbc", W, x.numpy()) + layer.bias.item()
    np.testing.assert_allclose(seen[""].membrane, want, atol=1e-13)


def test_the_sliding_form_streams_and_continues_from_a_state():
    layer = make("sliding")
    with bs.record(layer) as seen, torch.no_grad():
        whole = layer(X)
    membrane = seen[""].membrane
    parts = []
    with bs.record(layer) as seen, bs.streaming(layer), torch.no_grad():
        for x in X.split((1, 2, 6)):
            layer(x)
            parts.append(seen[""].membrane)
    torch.testing.assert_close(torch.cat(parts), membrane, rtol=0, atol=1e-13)
    first = layer(X[:5], torch.zeros(3, 3, 2, 4).double())
    assert torch.equal(first.state, X[2:5])
    assert torch.equal(layer(X[5:], first.state).spikes, whole[5:])
    with pytest.raises(ValueError, match=r"the last 3 inputs, \[3, 3, 2, 4\], got \[3, 2, 4\]"):
        layer(X, X[0])


def test_learned_widths_moments_and_weight_groups():
    model = bs.Sequential(
        bs.OverTime(nn.Linear(4, 5)),
        bs.PSN(9, v_threshold=0.2, surrogate=bs.Parametric(bs.ATan())),
        bs.OverTime(nn.Linear(5, 3)),
    )
    pda = bs.PotentialAdjustment(model, 1.0)
    (model(X[:, :, 0].float()).sum() + pda.loss()).backward()
    bs.check_gradients(model)
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    from backspike.neuron.lif import neuron_parameters

    assert [*map(id, neuron_parameters(model))] == [id(model[1].log_width)]
    assert "T=9" in repr(model)
    assert "PSN" in bs.explain(model)


def test_a_network_of_sliding_neurons_learns():
    torch.manual_seed(1)
    model = bs.Sequential(
        bs.OverTime(nn.Linear(6, 20)), bs.PSN(order=3), bs.OverTime(nn.Linear(20, 4))
    )
    x, y = torch.rand(8, 12, 6), torch.arange(12) % 4
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).mean(0), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: bs.PSN(), "needs T, the number of timesteps, or order"),
        (lambda: bs.PSN(0), "T must be a positive integer, got 0"),
        (lambda: bs.PSN(order=2.0), "order must be a positive integer"),
        (lambda: bs.PSN(4, masking=0.5), "needs T and order"),
        (lambda: bs.PSN(4)(torch.rand(5, 2, 3)), r"needs an input \[4, B, ...\], got \[5, 2, 3\]"),
        (lambda: bs.PSN(1)(torch.rand(1, 2, 3), torch.rand(2, 3)), "needs the whole sequence"),
    ],
)
def test_errors_are_one_line(run, words):
    with pytest.raises(ValueError, match=words) as error:
        run()
    assert "\n" not in str(error.value)


def test_no_streaming_without_the_sliding_form():
    layer = bs.PSN(4)
    with bs.streaming(layer), pytest.raises(ValueError, match="can stream"):
        layer(torch.rand(4, 2, 3))


@pytest.mark.slow
def test_spikingjelly_computes_the_same():
    for name, result in peers.run(TESTS / "helpers/psn_beside_peers.py").items():
        assert result["spikes"] > 30, name
        assert result["outputs"] == 0, name
        assert result["gradients"] < 1e-12, name
