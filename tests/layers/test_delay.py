"""Learned delays: outputs and gradients against the equations in numpy, and against DCLS."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from helpers.paths import ROOT, TESTS
from torch import nn

import backspike as bs

r = torch.Generator().manual_seed(4)
D, C, O = 5, 3, 2
X = torch.randn(11, 2, C, generator=r, dtype=torch.float64)


def make(**options):
    torch.manual_seed(6)
    return bs.Delay(C, D, **options).double()


def kernel(d, sigma):
    """The kernel of one delay: Gaussian in training, one timestep in evaluation (sigma=None)."""
    n = np.arange(D + 1)
    if sigma is None:
        return (n == np.round(d)).astype(float)
    k = np.exp(-(((n - d) / sigma) ** 2) / 2)
    return k / k.sum()


def delayed(x, k):
    """y[t] = sum_n k[n] x[t - n] for a sequence x `[T, ...]`."""
    y = np.zeros_like(x)
    for t in range(len(x)):
        for n in range(min(t, D) + 1):
            y[t] += k[n] * x[t - n]
    return y


def numpy_delay(layer, x, sigma):
    delay, x = layer.delay.detach().numpy(), x.numpy()
    if layer.weight is None:
        return np.stack([delayed(x[:, :, c], kernel(delay[c], sigma)) for c in range(C)], 2)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    return np.stack(
        [
            bias[o]
            + sum(weight[o, i] * delayed(x[:, :, i], kernel(delay[o, i], sigma)) for i in range(C))
            for o in range(O)
        ],
        2,
    )


@pytest.mark.parametrize("options", [{}, {"out_features": O}], ids=["channels", "synapses"])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_the_equations(options, training):
    layer = make(sigma=1.3, **options).train(training)
    want = numpy_delay(layer, X, layer.sigma.item() if training else None)
    np.testing.assert_allclose(layer(X).detach(), want, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"out_features": O}], ids=["channels", "synapses"])
def test_gradients_are_those_of_finite_differences(options):
    layer, h = make(sigma=1.1, **options), 1e-6
    weights = torch.randn(layer(X).shape, generator=r, dtype=torch.float64)
    (layer(X) * weights).sum().backward()
    for p in layer.parameters():
        for i in range(p.numel()):
            ends = []
            for step in (h, -h):
                with torch.no_grad():
                    p.view(-1)[i] += step
                    ends.append((numpy_delay(layer, X, layer.sigma.item()) * weights.numpy()).sum())
                    p.view(-1)[i] -= step
            assert p.grad.view(-1)[i].item() == pytest.approx(
                (ends[0] - ends[1]) / (2 * h), rel=1e-6, abs=1e-8
            )


def test_images_are_delayed_channel_by_channel():
    layer = make(sigma=0.8)
    x = torch.randn(7, 2, C, 4, 5, generator=r, dtype=torch.float64)
    for training in (True, False):
        layer.train(training)
        y = layer(x)
        for row in range(4):
            for column in range(5):
                torch.testing.assert_close(
                    y[..., row, column], layer(x[..., row, column]), rtol=0, atol=1e-14
                )


@pytest.mark.parametrize("options", [{}, {"out_features": O}], ids=["channels", "synapses"])
@pytest.mark.parametrize("training", [True, False])
def test_streamed_chunks_equal_one_pass_and_no_output_sees_the_future(options, training):
    layer = make(**options).train(training)
    whole = layer(X)
    with bs.streaming(layer):
        parts = [layer(x) for x in X.split((1, 3, 7))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-14)
    changed = X.clone()
    changed[6:] += 1
    torch.testing.assert_close(layer(changed)[:6], whole[:6], rtol=0, atol=1e-14)
    assert not torch.allclose(layer(changed)[6:], whole[6:])


def test_spikes_stay_spikes_in_evaluation():
    layer = bs.Delay(C, D).eval()
    x = (torch.rand(11, 4, C, generator=r) < 0.3).float()
    y = layer(x)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    layer.delay.data = torch.tensor([0.0, 2.4, 5.0])
    assert torch.equal(layer(x)[:, :, 0], x[:, :, 0])
    assert torch.equal(layer(x)[2:, :, 1], x[:-2, :, 1])
    assert torch.equal(layer(x)[5:, :, 2], x[:-5, :, 2])


def test_sigma_narrows_in_the_first_quarter_and_is_saved():
    layer = bs.Delay(C, 20)
    assert layer.sigma == 10.0
    seen = []
    for progress in (0.0, 0.125, 0.25, 1.0):
        layer.anneal(progress)
        seen.append(layer.sigma.item())
    assert seen == pytest.approx([10.0, 5**0.5, 0.5, 0.5])
    other = bs.Delay(C, 20)
    other.load_state_dict(layer.state_dict())
    assert other.sigma == 0.5


def test_a_delay_is_learned():
    """One channel must become as late as another one: 6 timesteps, from a start at 1."""
    torch.manual_seed(0)
    x = (torch.rand(60, 8, 1) < 0.2).float()
    target = torch.cat((torch.zeros(6, 8, 1), x[:-6]))
    layer = bs.Delay(1, 12)
    layer.delay.data.fill_(1.0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.2)
    for step in range(120):
        layer.anneal(step / 120)
        optimizer.zero_grad()
        (layer(x) - target).square().mean().backward()
        optimizer.step()
    assert layer.delay.item() == pytest.approx(6, abs=0.3)
    assert torch.equal(layer.eval()(x), target)


def test_learned_delays_stay_in_their_range():
    layer = make()
    layer.delay.data.copy_(torch.tensor([-3.0, 2.0, 9.0]))
    layer(X)
    assert layer.delay.tolist() == [0.0, 2.0, 5.0]


def test_fit_narrows_the_gaussians(tmp_path):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.delay = bs.Delay(64, 4)
            self.linear = bs.OverTime(nn.Linear(64, 10))
            self.neuron = bs.LIF()

        def forward(self, x):
            return self.neuron(self.linear(self.delay(x.flatten(2))))

    recipe = bs.recipes.digits().replace({"epochs": 2, "T": 3})
    model = Network()
    bs.fit(recipe, tmp_path / "run", model=model, report=False)
    assert model.delay.sigma == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: bs.Delay(3, 0), "max_delay must be a positive integer, got 0"),
        (lambda: bs.Delay(3, 2, sigma=0.0), "sigma must be a positive number"),
        (lambda: bs.Delay(3, 2)(torch.rand(4, 2, 5)), r"C = 3, got \[4, 2, 5\]"),
        (lambda: bs.Delay(3, 2)(torch.rand(4, 3)), r"\[T, B, C, ...\] with C = 3"),
        (
            lambda: bs.Delay(3, 2, out_features=1)(torch.rand(4, 2, 3, 5)),
            r"\[T, B, C\] with C = 3, got \[4, 2, 3, 5\]",
        ),
    ],
)
def test_errors_are_one_line(run, words):
    with pytest.raises(ValueError, match=words) as error:
        run()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_dcls_computes_the_same():
    """`BACKSPIKE_DCLS_PYTHON` names a python with torch and `pip install dcls==0.1.1`."""
    python = os.environ.get("BACKSPIKE_DCLS_PYTHON")
    if not python:
        pytest.skip("BACKSPIKE_DCLS_PYTHON names no python with DCLS")
    done = subprocess.run(
        [python, str(TESTS / "helpers/beside_dcls.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, result in json.loads(done.stdout.splitlines()[-1]).items():
        assert result["size"] > 0.1, name
        assert result["outputs"] < 1e-6, name
        assert result["gradients"] < 1e-5, name
