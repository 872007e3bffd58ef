"""Packing spikes as bits: packed values are restored bit for bit, other tensors are not packed."""

import math

import pytest
import torch

from backspike.kernel.cpu import library
from backspike.kernel.pack import count, pack

pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WORD = {8: torch.int64, 4: torch.int32, 2: torch.int16}
SIZES = [0, 1, 7, 8, 63, 64, 65, 4095, 4096, 4097, 200_003]


def same_bits(a, b):
    word = WORD[a.element_size()]
    return (
        a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a.view(word), b.view(word))
    )


def quarters(n, most, seed=0):
    """n values k / 4, containing every k up to `most` if n is large enough."""
    k = torch.randint(0, most + 1, (n,), generator=torch.Generator().manual_seed(seed))
    k[: most + 1] = torch.arange(most + 1)[:n]
    return k.double() / 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", SIZES)
def test_values_that_fit_are_restored(dtype, n):
    spikes = (torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.3).to(dtype)
    for x, bits in ((spikes, 1), (quarters(n, 15).to(dtype), 4), (quarters(n, 255).to(dtype), 8)):
        packed = pack(x)
        if n > 256:
            assert packed.bits == bits
        assert packed.codes.numel() == (n * packed.bits + 7) // 8
        assert packed.nonzero == int(x.count_nonzero())
        assert same_bits(packed.unpack(), x)
        for other in DTYPES:
            assert same_bits(packed.unpack(other), x.to(other))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", [0, 63, 64, 4099, 9001])
@pytest.mark.parametrize("most", [1, 15, 255])
def test_values_that_do_not_fit_are_not_packed(dtype, where, most):
    tiny, eps = torch.finfo(dtype).tiny, torch.finfo(dtype).eps
    strange = (
        -0.0,
        -1.0,
        -0.25,
        math.nan,
        math.inf,
        -math.inf,
        0.3,
        0.125,
        64.0,
        1e4,
        tiny,
        tiny / 4,
        1 + eps,
    )
    for value in strange:
        x = torch.ones(9002, dtype=torch.float64) if most == 1 else quarters(9002, most)
        x = x.to(dtype)
        x[where] = value
        packed = pack(x)
        assert packed.bits == 0
        assert packed.nonzero is None
        assert packed.density is None
        assert packed.codes.data_ptr() == x.data_ptr()
        assert same_bits(packed.unpack(), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack_uses_the_fewest_bits(dtype):
    for values, bits in (
        ([0, 1], 1),
        ([1], 1),
        ([0], 1),
        ([0, 2], 4),
        ([0.5, 1], 4),
        ([3.75], 4),
        ([4], 8),
        ([63.75, 0], 8),
    ):
        x = torch.tensor(values, dtype=dtype).repeat(50)
        assert pack(x).bits == bits


def test_bit_order():
    x = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 0, 1.0])
    assert pack(x).codes.tolist() == [0b1001, 0b10]
    assert pack(x * 2).codes.tolist() == [8, 128, 0, 0, 128]
    assert count(torch.tensor([255, 3, 0] * 7, dtype=torch.uint8)) == 70


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_dense_layout_is_packed(dtype):
    x = (torch.rand(3, 5, 7, 9) < 0.4).to(dtype)
    views = [
        x.to(memory_format=torch.channels_last),
        x.permute(3, 1, 0, 2),
        x.transpose(0, 1),
        x[:, :, :1],
        x[1],
    ]
    views += [x[:1].expand(1, 5, 7, 9), x.unsqueeze(0), x[0, 0, 0, 0]]
    for view in views:
        packed = pack(view)
        dense = (
            view.numel() == view.untyped_storage().nbytes() // view.element_size()
            or view.is_contiguous()
        )
        assert packed.bits == (1 if dense else 0)
        assert same_bits(packed.unpack(), view)
        assert torch.equal(packed.unpack(), view)
    for gaps in (x[..., ::2], x[:1].expand(3, 5, 7, 9)):
        assert pack(gaps).bits == 0
        assert torch.equal(pack(gaps).unpack(), gaps)


def test_packed_values_are_a_copy():
    x = torch.ones(100)
    packed = pack(x)
    x.zero_()
    assert packed.unpack().all()
    assert packed.density == 1
    assert pack(torch.empty(0)).density == 0


def test_results_do_not_depend_on_the_number_of_threads():
    x = [
        (torch.rand(500_001) < 0.2).float(),
        quarters(500_001, 15).float(),
        quarters(500_001, 255).bfloat16(),
    ]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            packed = [pack(a) for a in x]
            assert all(same_bits(p.unpack(), a) for p, a in zip(packed, x))
            results.append([(p.codes.tolist(), p.nonzero) for p in packed])
    finally:
        torch.set_num_threads(before)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("T", [1, 255, 600])
@pytest.mark.parametrize("n", [8, 104, 13])
@pytest.mark.parametrize("divisor", [1, 4])
def test_the_total_over_time_is_exact(divisor, n, T):
    r = torch.Generator().manual_seed(n)
    x = torch.randint(0, 2, (T, n), generator=r).float() / divisor
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        total = pack(x.to(dtype)).total(T)
        assert total.dtype == torch.promote_types(dtype, torch.float32)
        assert torch.equal(total.double(), x.double().sum(0))
