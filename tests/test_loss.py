"""Losses against hand calculation."""

import math

import pytest
import torch

from backspike import loss

LN2, LN3 = math.log(2), math.log(3)
# T = 2, B = 1, K = 2: logits (0, ln 3) and (0, 0), so probabilities (1/4, 3/4) and (1/2, 1/2)
Y = torch.tensor([[[0.0, LN3]], [[0.0, 0.0]]], dtype=torch.float64)
ONE = torch.tensor([1])


def test_cross_entropy_of_the_mean():
    y_seq = torch.tensor([[[0.0, 2 * LN3]], [[0.0, 0.0]]], dtype=torch.float64)
    assert loss.cross_entropy(y_seq, ONE).item() == pytest.approx(math.log(4 / 3))
    smoothed = 0.9 * math.log(4 / 3) + 0.1 * math.log(4)  # smoothing 0.2: target (0.1, 0.9)
    assert loss.cross_entropy(y_seq, ONE, label_smoothing=0.2).item() == pytest.approx(smoothed)


def test_tet():
    each = (math.log(4 / 3) + LN2) / 2
    assert loss.tet(Y, ONE, lam=0.0).item() == pytest.approx(each)
    square = (3 + (LN3 - 1) ** 2) / 4
    assert loss.tet(Y, ONE).item() == pytest.approx(0.95 * each + 0.05 * square)
    square = (3 * 0.5**2 + (LN3 - 0.5) ** 2) / 4
    assert loss.tet(Y, ONE, lam=0.3, phi=0.5).item() == pytest.approx(0.7 * each + 0.3 * square)
    smoothed = (0.9 * math.log(4 / 3) + 0.1 * math.log(4) + LN2) / 2
    assert loss.tet(Y, ONE, lam=0.0, label_smoothing=0.2).item() == pytest.approx(smoothed)


def test_tet_pairs_every_timestep_with_its_sample():
    """The loss vanishes for 3 samples of different classes, all confidently correct at every t."""
    target = torch.tensor([2, 0, 1])
    sure = 50.0 * torch.nn.functional.one_hot(target).double().expand(4, 3, 3)
    assert loss.tet(sure, target, lam=0.0).item() < 1e-9
    assert loss.tet(sure, target.roll(1), lam=0.0).item() == pytest.approx(50)


def test_spike_count_mse():
    """Rates (1/2, 0) and (1, 1/2) for the targets 0 and 1; desired rates 0.8 and 0.1."""
    spikes = torch.tensor([[[1.0, 0], [1, 0]], [[0, 0], [1, 1]]])
    want = ((0.5 - 0.8) ** 2 + (0 - 0.1) ** 2 + (1 - 0.1) ** 2 + (0.5 - 0.8) ** 2) / 4
    assert loss.spike_count_mse(spikes, torch.tensor([0, 1])).item() == pytest.approx(want)
    want = ((0.5 - 1) ** 2 + 0 + 1 + (0.5 - 1) ** 2) / 4
    assert loss.spike_count_mse(
        spikes, torch.tensor([0, 1]), correct=1.0, wrong=0.0
    ).item() == pytest.approx(want)


def test_spike_count_cross_entropy():
    """Counts (2, 0) and (1, 1): the softmax of counts, e^2 / (e^2 + 1) and 1/2."""
    spikes = torch.tensor([[[1.0, 0], [1, 0]], [[1, 0], [0, 1]]], dtype=torch.float64)
    want = (math.log(1 + math.exp(-2)) + LN2) / 2
    target = torch.tensor([0, 1])
    assert loss.spike_count_cross_entropy(spikes, target).item() == pytest.approx(want)
    weighted = (0.5 * math.log(1 + math.exp(-2)) + 3 * LN2) / 2
    value = loss.spike_count_cross_entropy(spikes, target, weight=(0.5, 3.0))
    assert value.item() == pytest.approx(weighted)


def test_firing_rate_penalty():
    """Rates over T = 2 and B = 2 of 0, 1/4, 1 with the range [0.1, 0.5]."""
    spikes = torch.zeros(2, 2, 3, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        spikes[0, 1, 1] = 1
        spikes[:, :, 2] = 1
    value = loss.firing_rate_penalty(spikes, low=0.1, high=0.5)
    assert value.item() == pytest.approx((0.1**2 + 0 + 0.5**2) / 3)
    value.backward()
    # d/ds = 2 (rate - limit) / (3 neurons x 4 elements)
    assert spikes.grad[0, 0].tolist() == pytest.approx([-0.2 / 12, 0, 1 / 12])
    assert loss.firing_rate_penalty(spikes).item() == 0
    for bad in ({"low": -0.1}, {"low": 0.5, "high": 0.4}, {"high": 1.5}):
        with pytest.raises(ValueError, match="expected rates 0 <= low <= high <= 1"):
            loss.firing_rate_penalty(spikes, **bad)
    with pytest.raises(ValueError, match=r"expected spikes \[T, B, ...\], got \[2\]"):
        loss.firing_rate_penalty(torch.zeros(2))


@pytest.mark.parametrize(
    "f",
    [loss.cross_entropy, loss.tet, loss.spike_count_mse, loss.spike_count_cross_entropy],
)
def test_shapes_and_gradients(f):
    y_seq = torch.randn(3, 4, 5, requires_grad=True)
    value = f(y_seq, torch.tensor([0, 4, 2, 2]))
    assert value.dim() == 0
    value.backward()
    assert y_seq.grad.all()
    for bad in (
        (y_seq[0], torch.zeros(4).long()),
        (y_seq, torch.zeros(3).long()),
        (y_seq, torch.zeros(4, 6)),
    ):
        with pytest.raises(
            ValueError, match=r"expected y_seq \[T, B, K\] and target \[B\] or \[B, K\], got"
        ):
            f(*bad)
