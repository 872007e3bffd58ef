"""The mask against its definition in Python integers, and statistical tests of it."""

import math

import pytest
import torch
from helpers.masks import hash_bits, is_dropped

import backspike as bs
from backspike.kernel.mask import draw_seed, dropped_at

SEEDS = (0, 1, 12345, 2**31, 2**32 - 1, 2**32, 2**32 + 7, 0x1234_5678_9ABC_DEF0, 2**63 - 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("p", [0.5, 0.1, 0.937])
def test_mask_matches_the_formula(seed, p):
    got = bs.dropped(seed, (5, 3, 7), p)
    assert got.shape == (5, 3, 7)
    assert got.dtype == torch.bool
    assert got.flatten().tolist() == [is_dropped(seed, i, p) for i in range(105)]


@pytest.mark.parametrize("start", [1, 2**31 - 20, 2**32 - 20, 2**32 + 5, 3 * 2**33 + 1, 2**45 - 20])
@pytest.mark.parametrize("seed", [3, 2**40 + 11])
def test_indices_beyond_32_bits(start, seed):
    p = torch.tensor(0.5, dtype=torch.float64)
    got = dropped_at(torch.tensor(seed), start, (40,), p)
    assert got.tolist() == [is_dropped(seed, i, 0.5) for i in range(start, start + 40)]


def test_golden_vectors():
    """Must never change: a different mask would break the exact resume of existing runs."""
    golden = {  # seed -> elements 0 to 63 at p = 0.5, element i as bit i
        0: 0xB0696FF6ACB9EDCF,
        1: 0x70969FF95C76DECF,
        42: 0xE6A33FB796E0F99F,
        2**32 + 7: 0x3AEB153EF2352FAA,
        0x1234_5678_9ABC_DEF0: 0x193021D748F9821B,
        2**63 - 1: 0x52D53786F70060A7,
    }
    for seed, bits in golden.items():
        assert sum(bit << i for i, bit in enumerate(bs.dropped(seed, (64,), 0.5).tolist())) == bits
    assert hash_bits(42, 1000) == 0x49C97B45
    assert hash_bits(2**63 - 1, 2**40) == 0x6B4A2761


def test_thresholds_are_exact():
    """The smallest p that drops an element is one step above its 24-bit value."""
    for i in range(50):
        value = hash_bits(9, i) >> 8
        assert not bs.dropped(9, (50,), value / 2**24)[i]
        assert bs.dropped(9, (50,), (value + 1) / 2**24)[i]


def test_p_zero_and_p_one_are_exact():
    """For seed 0 element 0 has the smallest 24-bit value, and element 62,533,353 the largest."""
    least, largest = 0, 62_533_353
    assert hash_bits(0, least) >> 8 == 0
    assert hash_bits(0, largest) >> 8 == 2**24 - 1
    for p, low, high in (
        (0.0, False, False),
        (2**-24, True, False),
        (1 - 2**-24, True, False),
        (1.0, True, True),
    ):
        p = torch.tensor(p, dtype=torch.float64)
        assert dropped_at(torch.tensor(0), least, (1,), p).item() == low
        assert dropped_at(torch.tensor(0), largest, (1,), p).item() == high
    assert not bs.dropped(3, (2**18,), 0.0).any()
    assert bs.dropped(3, (2**18,), 1.0).all()


@pytest.mark.parametrize("p", [0.03, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 77, 2**50 + 1])
def test_dropped_fraction_is_within_four_sigma(p, seed):
    n = 200_000
    share = bs.dropped(seed, (4, n // 4), p).double().mean().item()
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_values_are_uniform():
    """Chi-square test of the hash in 64 buckets (63 degrees of freedom), from masks of rising p."""
    n, buckets = 2**17, 64
    for seed in (0, 1, 2**33 + 5):
        below = torch.stack([bs.dropped(seed, (n,), k / buckets).sum() for k in range(buckets + 1)])
        counts = below.diff().double()
        chi2 = ((counts - n / buckets) ** 2 / (n / buckets)).sum().item()
        assert abs(chi2 - (buckets - 1)) < 4 * math.sqrt(2 * (buckets - 1))


def correlation(a, b):
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    return ((a * b).mean() / (a.std() * b.std())).item()


@pytest.mark.parametrize("p", [0.5, 0.2])
def test_neighbours_are_independent(p):
    T, n = 6, 40_000
    m = bs.dropped(99, (T, n), p).flatten()
    for lag in (1, 2, 3, 4, 8, 16, 32, 64, 256, 1024, n, 2 * n):
        assert abs(correlation(m[:-lag], m[lag:])) < 4 / math.sqrt(len(m) - lag), f"lag {lag}"


@pytest.mark.parametrize("seed", [0, 41, 2**32 - 1, 2**40])
def test_seeds_are_independent(seed):
    n = 100_000
    m = bs.dropped(seed, (n,), 0.5)
    for other in (seed + 1, seed + 2, seed ^ 2**16, seed ^ 2**31, seed ^ 2**32, seed ^ 2**62):
        assert abs(correlation(m, bs.dropped(other, (n,), 0.5))) < 4 / math.sqrt(n), f"seed {other}"


def test_index_follows_c_order():
    flat = bs.dropped(5, (24,), 0.5)
    assert torch.equal(bs.dropped(5, (2, 3, 4), 0.5), flat.view(2, 3, 4))
    seed, p = torch.tensor(5), torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(dropped_at(seed, 12, (3, 4), p), flat.view(2, 3, 4)[1])


def test_seed_may_be_a_tensor():
    assert torch.equal(
        bs.dropped(torch.tensor(2**40 + 3), (50,), 0.4), bs.dropped(2**40 + 3, (50,), 0.4)
    )
    assert torch.equal(bs.dropped(3, (50,), torch.tensor(0.25)), bs.dropped(3, (50,), 0.25))


@pytest.mark.parametrize(
    ("seed", "p", "text"),
    [
        (-1, 0.5, "seed must lie in"),
        (2**63, 0.5, "seed must lie in"),
        (torch.tensor([1, 2]), 0.5, "0-dim int64"),
        (torch.tensor(1.0), 0.5, "0-dim int64"),
        (1, 1.5, r"\[0, 1\]"),
        (1, -0.5, r"\[0, 1\]"),
    ],
)
def test_invalid_arguments(seed, p, text):
    with pytest.raises(ValueError, match=text):
        bs.dropped(seed, (3,), p)


def test_drawn_seeds_are_reproducible_and_uniform():
    torch.manual_seed(0)
    seeds = [draw_seed(torch.device("cpu")) for _ in range(500)]
    assert all(s.dtype == torch.int64 and s.dim() == 0 for s in seeds)
    values = [s.item() for s in seeds]
    assert all(0 <= v < 2**63 for v in values)
    assert len(set(values)) == 500
    # all 63 bits vary and are balanced
    for bit in range(63):
        assert abs(sum(v >> bit & 1 for v in values) - 250) < 5 * math.sqrt(125)
    torch.manual_seed(0)
    assert [draw_seed(torch.device("cpu")).item() for _ in range(500)] == values


def test_draw_seed_passes_opcheck():
    draw = torch.ops.backspike.draw_seed.default
    torch.library.opcheck(draw, (torch.device("cpu"),))
    assert torch.Tag.nondeterministic_seeded in draw.tags
