"""Encoders against hand calculation."""

import math

import pytest
import torch

import backspike as bs
from backspike import encode


def test_rates_are_the_values():
    x = torch.tensor([[0.0, 0.2], [0.9, 1.0]])
    s = encode.rate(x, 20_000, seed=1)
    assert s.shape == (20_000, 2, 2)
    assert s.dtype == x.dtype
    assert set(s.unique().tolist()) == {0.0, 1.0}
    assert (s.mean(0) - x).abs().max() < 0.015  # four standard deviations
    assert not s[:, 0, 0].any()
    assert s[:, 1, 1].all()


def test_rate_spikes_are_independent_over_time_and_batch():
    s = encode.rate(torch.full((2,), 0.5), 20_000, seed=2) - 0.5
    assert abs(float((s[1:, 0] * s[:-1, 0]).mean())) < 0.01
    assert abs(float((s[:, 0] * s[:, 1]).mean())) < 0.01


def test_a_seed_decides_the_spikes_and_leaves_the_default_generator_alone():
    x = torch.rand(50, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    first = encode.rate(x, 10, seed=7)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.rand(1) == after
    assert torch.equal(first, encode.rate(x, 10, seed=7))
    assert not torch.equal(first, encode.rate(x, 10, seed=8))
    torch.manual_seed(4)
    without = encode.rate(x, 10)
    torch.manual_seed(4)
    assert torch.equal(without, encode.rate(x, 10))


def test_latency_is_linear_in_the_value():
    x = torch.tensor([[1.0, 0.75, 0.5], [0.2, 0.01, 0.0]], dtype=torch.float64)
    s = encode.latency(x, 5)
    assert s.shape == (5, 2, 3)
    assert s.dtype == torch.float64
    assert s[:, 0].argmax(0).tolist() == [0, 1, 2]
    assert s[:, 1].argmax(0).tolist()[0] == 3  # 0.8 x 4 = 3.2
    assert s.sum(0).tolist() == [[1, 1, 1], [1, 0, 0]]  # at most the threshold: none


def test_latency_with_tau_is_when_a_charging_membrane_reaches_the_threshold():
    """v(t) = x (1 - exp(-t/tau)), in small steps, until it exceeds the threshold."""
    tau, threshold, fine = 6.0, 0.3, 1000
    x = torch.tensor([1.0, 0.7, 0.5, 0.35, 0.3, 0.1], dtype=torch.float64)
    s = encode.latency(x, 30, tau=tau, threshold=threshold)
    t = torch.arange(30 * fine, dtype=torch.float64)[:, None] / fine
    reached = x * (1 - torch.exp(-t / tau)) >= threshold
    for n in range(4):
        assert s[:, n].argmax() == round(float(t[reached[:, n].int().argmax(), 0]))
    assert s.sum(0).tolist() == [1, 1, 1, 1, 0, 0]
    assert not encode.latency(x[3:4], 5, tau=tau, threshold=threshold).any()  # after the end


def test_delta_follows_a_signal_by_hand():
    x = torch.tensor([0.0, 0.3, 0.5, 2.5, 2.5, 0.4], dtype=torch.float64)[:, None]
    s = encode.delta(x, 0.5)
    assert s.shape == (6, 1, 2)
    # levels 0, 0, 0.5, 1, 1.5, 1
    assert s[:, 0, 0].tolist() == [0, 0, 1, 1, 1, 0]
    assert s[:, 0, 1].tolist() == [0, 0, 0, 0, 0, 1]


def test_a_signal_can_be_read_back_from_its_delta_spikes():
    t = torch.arange(200, dtype=torch.float64)
    x = torch.stack([torch.sin(t / 15), torch.cos(t / 40)], 1)[:, None].expand(-1, 3, -1)
    s = encode.delta(x, 0.1)
    assert s.shape == (200, 3, 2, 2)
    read = x[0] + 0.1 * (s[:, :, 0] - s[:, :, 1]).cumsum(0)
    assert (read - x).abs().max() < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: encode.rate(x, 0), "T must be at least 1"),
        (lambda x: encode.rate(x + 1, 3), "divide by the largest"),
        (lambda x: encode.latency(x - 1, 3), r"must lie in \[0, 1\]"),
        (lambda x: encode.rate(x / 0 * 0, 3), r"must lie in \[0, 1\]"),
        (lambda x: encode.rate(x.long(), 3), "must hold floats"),
        (lambda x: encode.latency(x, 3, tau=0.0), "tau must be a positive number"),
        (lambda x: encode.latency(x, 3, tau=math.inf), "tau must be a positive number"),
        (lambda x: encode.latency(x, 3, threshold=-1.0), "threshold must be positive"),
        (lambda x: encode.latency(x, 3, tau=1.0, threshold=0.0), "threshold must be positive"),
        (lambda x: encode.delta(x, 0.0), "threshold must be positive"),
        (lambda x: encode.delta(x[0], 0.1), r"expected a signal \[T, B, ...\], got \[4\]"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.full((3, 4), 0.5))


def test_a_network_takes_the_spikes():
    x = torch.rand(5, 1, 8, 8)
    layer = bs.Sequential(bs.OverTime(torch.nn.Flatten(), torch.nn.Linear(64, 10)), bs.LIF())
    assert layer(bs.encode.rate(x, 4)).shape == (4, 5, 10)
    assert layer(bs.encode.latency(x, 4)).shape == (4, 5, 10)
