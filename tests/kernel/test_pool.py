"""2x2 pools: values and gradients equal torch's bit for bit in every layout; what is saved."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import backspike as bs
from backspike.kernel.cpu import library, pool

pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
PAIRS = {"max": (pool.max_pool, F.max_pool2d), "avg": (pool.avg_pool, F.avg_pool2d)}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every second column": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "one image expanded": lambda x: x[:1].expand(x.shape),
}
# one window; odd sides; about a block of channels and more; rows longer than a block; enough images
# for several threads
SHAPES = [
    (1, 1, 2, 2),
    (2, 3, 5, 7),
    (1, 300, 3, 2),
    (2, 255, 2, 3),
    (1, 2, 3, 1030),
    (3, 1, 4, 515),
    (2, 5, 2, 2),
    (4, 16, 33, 34),
]


def draw(shape, values, dtype, seed=0):
    r = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=r, dtype=torch.float64)
    x = {"spikes": (x > 0.3).double(), "ties": x.round(), "any": x}[values]
    return x.to(dtype)


def both(kind, x, g):
    """(values, gradient) of our pool and of torch's."""
    results = []
    for f in PAIRS[kind]:
        leaf = x.detach().requires_grad_()
        y = f(leaf, 2)
        results.append((y.detach(), *torch.autograd.grad(y, leaf, g)))
    return results


def assert_same(got, want):
    for a, b in zip(got, want):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_equal_torch(shape, dtype, layout, kind):
    """The first of equal elements wins; elements outside all windows get no gradient."""
    for values in ("spikes", "ties", "any"):
        x = LAYOUTS[layout](draw(shape, values, dtype))
        size = (*shape[:2], shape[2] // 2, shape[3] // 2)
        for g_layout in ("contiguous", layout):
            got, want = both(kind, x, LAYOUTS[g_layout](draw(size, "any", dtype, seed=1)))
            assert_same(got, want)
        with torch.no_grad():
            assert torch.equal(PAIRS[kind][0](x), want[0])


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_every_window_of_special_values(layout, dtype, kind):
    """All 2x2 windows of these values, including NaN: the gradient shows which element wins."""
    numbers = [-math.inf, -1.0, -0.0, 0.0, 1.0, math.inf, math.nan]
    windows = torch.tensor(list(itertools.product(numbers, repeat=4)), dtype=dtype)
    x = LAYOUTS[layout](windows.view(-1, 1, 2, 2).expand(-1, 3, 2, 2))
    assert_same(*both(kind, x, torch.ones(len(x), 3, 1, 1, dtype=dtype)))


@pytest.mark.parametrize("kind", PAIRS)
def test_results_keep_the_layout_on_any_number_of_threads(kind):
    x = draw((5, 16, 34, 35), "any", torch.float32)
    before = torch.get_num_threads()
    for layout, memory_format in (
        ("contiguous", torch.contiguous_format),
        ("channels last", torch.channels_last),
    ):
        leaf = LAYOUTS[layout](x).requires_grad_()
        results = []
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                y = PAIRS[kind][0](leaf)
                results.append((y.detach(), *torch.autograd.grad(y, leaf, torch.ones_like(y))))
        finally:
            torch.set_num_threads(before)
        assert all(a.is_contiguous(memory_format=memory_format) for a in results[0])
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


def test_a_byte_per_window_or_nothing_is_saved():
    x = draw((2, 3, 8, 8), "spikes", torch.float32).requires_grad_()
    for kind, sizes in (("max", [2 * 3 * 4 * 4]), ("avg", [0])):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t
        ):
            PAIRS[kind][0](x)
        assert saved == sizes


@pytest.mark.parametrize("kind", PAIRS)
def test_everything_else_is_passed_to_torch(kind, monkeypatch):
    """Other windows, dtypes, shapes and devices; arguments have torch's names."""
    ours, torchs = PAIRS[kind]
    x = draw((2, 3, 9, 8), "any", torch.float32)
    monkeypatch.setattr(pool, "_call", None)  # ours would raise
    for options in (
        {"kernel_size": 3},
        {"stride": 1},
        {"padding": 1},
        {"kernel_size": (2, 1)},
        {"stride": (2, 1)},
        {"padding": [0, 1]},
    ):
        options = {"kernel_size": 2} | options
        assert torch.equal(ours(x, **options), torchs(x, **options))
    for other in (x[0], x.half(), x.to("meta"), x[:0]):
        assert ours(other).shape == torchs(other, 2).shape
    with pytest.raises(RuntimeError, match="too small"):
        ours(x[..., :1])
    monkeypatch.undo()
    for options in (
        {"kernel_size": [2, 2]},
        {"stride": (2, 2)},
        {"stride": []},
        {"padding": (0, 0)},
    ):
        monkeypatch.setattr(F, f"{kind}_pool2d", None)  # torch's would raise
        ours(x, **options)
        monkeypatch.undo()
        assert torch.equal(ours(x, **options), torchs(x, **{"kernel_size": 2} | options))


@pytest.mark.parametrize("kind", PAIRS)
def test_double_backward_is_refused(kind):
    x = draw((2, 3, 4, 4), "any", torch.float32).requires_grad_()
    with pytest.raises(
        RuntimeError, match=r"double backward .* is not defined; use create_graph=False"
    ):
        torch.autograd.grad(PAIRS[kind][0](x).sum(), x, create_graph=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_pass_opcheck(dtype, layout):
    """The schema and the fake outputs for torch.compile are correct, including strides."""
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    for shape, maximum in itertools.product(((2, 3, 5, 6), (2, 3, 2, 2)), (True, False)):
        x = LAYOUTS[layout](draw(shape, "any", dtype))
        torch.library.opcheck(torch.ops.backspike.pool_forward, (x, maximum), **checks)
        y, codes = torch.ops.backspike.pool_forward(x, maximum)
        torch.library.opcheck(
            torch.ops.backspike.pool_backward, (y, codes, *shape[2:], maximum), **checks
        )


def test_networks_use_these_pools(monkeypatch):
    """`OverTime` replaces torch's 2x2 pools unless they have hooks."""
    seen = []
    monkeypatch.setattr(
        pool._Pool, "apply", lambda x, maximum: seen.append(maximum) or F.max_pool2d(x, 2)
    )
    x = draw((3, 2, 4, 6, 6), "spikes", torch.float32).requires_grad_()
    layers = (
        bs.OverTime(torch.nn.MaxPool2d(2)),
        bs.OverTime(torch.nn.AvgPool2d(2, 2)),
        bs.OverTime(torch.nn.MaxPool2d(3, 2)),
    )
    for layer in layers:
        layer(x)
    assert seen == [True, False]
    with layers[0][0].register_forward_hook(lambda *_: None):
        layers[0](x)
    assert seen == [True, False]
