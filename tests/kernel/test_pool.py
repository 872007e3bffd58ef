"""2x2 pools against torch's, values and gradients bit for bit, in every layout; what they keep."""

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
# one window; odd sides; channels about a block and above; rows above a block; many images, for more than a thread
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
    """(values, gradient) of ours and of torch's."""
    found = []
    for f in PAIRS[kind]:
        leaf = x.detach().requires_grad_()
        y = f(leaf, 2)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, g)))
    return found


def assert_same(got, want):
    for a, b in zip(got, want):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_torchs(shape, dtype, layout, kind):
    """A tie goes to the first of the window; what no window holds gets nothing."""
    for values in ("spikes", "ties", "any"):
        x = LAYOUTS[layout](draw(shape, values, dtype))
        size = (*shape[:2], shape[2] // 2, shape[3] // 2)
        for given in ("contiguous", layout):
            got, want = both(kind, x, LAYOUTS[given](draw(size, "any", dtype, seed=1)))
            assert_same(got, want)
        with torch.no_grad():
            assert torch.equal(PAIRS[kind][0](x), want[0])


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_every_window_of_extremes(layout, dtype, kind):
    """All windows of these numbers, NaN among them: which element wins is which gets the gradient."""
    numbers = [-math.inf, -1.0, -0.0, 0.0, 1.0, math.inf, math.nan]
    windows = torch.tensor(list(itertools.product(numbers, repeat=4)), dtype=dtype)
    x = LAYOUTS[layout](windows.view(-1, 1, 2, 2).expand(-1, 3, 2, 2))
    assert_same(*both(kind, x, torch.ones(len(x), 3, 1, 1, dtype=dtype)))


@pytest.mark.parametrize("kind", PAIRS)
def test_results_lie_like_the_input_and_repeat_on_threads(kind):
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


def test_a_byte_per_window_is_kept_or_nothing():
    x = draw((2, 3, 8, 8), "spikes", torch.float32).requires_grad_()
    for kind, sizes in (("max", [2 * 3 * 4 * 4]), ("avg", [0])):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t
        ):
            PAIRS[kind][0](x)
        assert kept == sizes


@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_torchs_own(kind, monkeypatch):
    """Other windows, dtypes, shapes and devices, under torch's name for each argument."""
    ours, torchs = PAIRS[kind]
    x = draw((2, 3, 9, 8), "any", torch.float32)
    monkeypatch.setattr(pool, "_call", None)  # ours would fail
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
        monkeypatch.setattr(F, f"{kind}_pool2d", None)  # torch's would
        ours(x, **options)
        monkeypatch.undo()
        assert torch.equal(ours(x, **options), torchs(x, **{"kernel_size": 2} | options))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_second_derivative_is_refused_in_one_line(kind):
    x = draw((2, 3, 4, 4), "any", torch.float32).requires_grad_()
    with pytest.raises(
        RuntimeError, match=r"double backward .* is not defined; use create_graph=False"
    ):
        torch.autograd.grad(PAIRS[kind][0](x).sum(), x, create_graph=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_operators_keep_their_promises(dtype, layout):
    """Schema and shapes as torch.compile is told them, strides included."""
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    for shape, maximum in itertools.product(((2, 3, 5, 6), (2, 3, 2, 2)), (True, False)):
        x = LAYOUTS[layout](draw(shape, "any", dtype))
        torch.library.opcheck(torch.ops.backspike.pool_forward, (x, maximum), **checks)
        y, codes = torch.ops.backspike.pool_forward(x, maximum)
        torch.library.opcheck(
            torch.ops.backspike.pool_backward, (y, codes, *shape[2:], maximum), **checks
        )


def test_pools_of_a_network_are_these(monkeypatch):
    """`OverTime` hands torch's 2x2 pools over, unless someone watches them."""
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
