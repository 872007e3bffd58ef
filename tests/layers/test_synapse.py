"""Convolutions and linear layers that save spikes as bits equal torch's, forward and backward.

Sparse sums are compared with float64 results, the rest with the layer itself.
"""

import copy
import itertools
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.compiled import needs_compile
from torch import nn

from backspike.kernel.call import Result, SpikeInfo
from backspike.kernel.cpu import library, sparse
from backspike.kernel.pack import Packed, pack
from backspike.layers import sparsity, synapse

pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
SIZES = [
    (1, 1, 1),
    (3, 70, 65),
    (257, 101, 77),
    (64, 64, 64),
    (2100, 130, 17),
    (31, 1100, 200),
    (5, 8, 0),
    (0, 8, 5),
    (5, 0, 8),
]
DENSITIES = [0.0, 0.01, 0.3, 1.0]
HOWS = ["gather", "lookup"]


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch):
    """The density limits of most processors, without AMX."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def draw(M, K, N, density, dtype=torch.float32, seed=0):
    """Return spikes [M, K] with their bits, weight [N, K], bias [N], output gradient [M, N]."""
    r = torch.Generator().manual_seed(seed)
    x = (torch.rand(M, K, generator=r) < density).to(dtype)
    weight, bias, g = (
        torch.randn(shape, generator=r).to(dtype) for shape in ((N, K), (N,), (M, N))
    )
    packed = pack(x)
    return x, sparse.Spikes(packed.codes, M, K, packed.nonzero), weight, bias, g


def near(got, want, dtype, tolerance):
    size = max(float(want.abs().max()), 1e-30) if want.numel() else 1.0
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    assert (
        float((got.double() - want).abs().max() if want.numel() else 0.0) <= tolerance[dtype] * size
    )


# ----------------------------------------------------------------------------------------- products


@pytest.mark.parametrize("dtype", sparse.DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sparse_sums_match_dense_ones(size, dtype, tolerance):
    for density, how in itertools.product(DENSITIES, HOWS):
        x, spikes, weight, bias, g = draw(*size, density, dtype)
        near(
            spikes.times(weight, bias, how),
            x.double() @ weight.double().t() + bias.double(),
            dtype,
            tolerance,
        )
        near(spikes.times(weight, None, how), x.double() @ weight.double().t(), dtype, tolerance)
        gradient = spikes.weight_gradient(g, how)
        assert gradient.dtype == torch.float32
        near(gradient, g.double().t() @ x.double(), torch.float32, tolerance)


@pytest.mark.parametrize("how", HOWS)
def test_sums_on_a_grid_are_exact(how):
    x, spikes, weight, bias, g = draw(300, 200, 100, 0.4)
    weight, bias, g = ((64 * a).round() / 64 for a in (weight, bias, g))
    assert torch.equal(spikes.times(weight, bias, how), x @ weight.t() + bias)
    assert torch.equal(spikes.weight_gradient(g, how), g.t() @ x)
    weight = weight.t().contiguous().t()  # non-contiguous
    assert torch.equal(spikes.times(weight, bias, how), x @ weight.t() + bias)


@pytest.mark.parametrize("dtype", sparse.DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_sampled_product_is_computed_only_at_active_places(size, dtype, tolerance):
    for density in DENSITIES:
        mask, spikes, weight, _, g = draw(*size, density, dtype)
        want = (g.double() @ weight.double()) * mask.double()
        for out in (None, torch.float32):
            x = sparse.sampled(g, weight, spikes.bits, out)
            assert x.dtype == (out or dtype)
            near(x, want, dtype, tolerance)
            assert torch.equal(x != 0, mask.bool() & (x != 0))
        assert torch.equal(
            sparse.sampled(g.t().contiguous().t(), weight, spikes.bits, torch.float32), x
        )


@pytest.mark.parametrize("dtype", sparse.DTYPES)
def test_results_are_bit_identical_for_any_number_of_threads(dtype):
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rows = []
            sizes = (
                (700, 300, 130),
                (130, 1500, 40),
                (3000, 40, 70),
                (70, 9000, 20),
                (9000, 70, 20),
            )
            for size, density in itertools.product(sizes, (0.02, 0.2)):
                _, spikes, weight, bias, g = draw(*size, density, dtype)
                rows += [spikes.times(weight, bias, how) for how in HOWS]
                rows += [
                    t for how in HOWS for t in spikes.gradients(g, how)[: 1 + (how == "gather")]
                ]
                rows.append(sparse.sampled(g, weight, spikes.bits))
            results.append(rows)
    finally:
        torch.set_num_threads(before)
    for rows in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(rows, results[0]))


@pytest.mark.parametrize("dtype", sparse.DTYPES)
@pytest.mark.parametrize("density", [0.02, 0.2])
def test_the_gradient_of_the_bias_comes_with_that_of_the_weight(density, dtype, tolerance):
    for how, size in itertools.product(HOWS, ((700, 300, 130), (61, 70, 20))):
        _, spikes, _, _, g = draw(*size, density, dtype)
        weight, bias = spikes.gradients(g, how)
        assert torch.equal(weight, spikes.weight_gradient(g, how))
        near(bias, g.double().sum(0), torch.float32 if how == "gather" else dtype, tolerance)


def test_lists_of_few_spikes_replace_their_bits():
    _, spikes, weight, bias, g = draw(700, 300, 130, 0.02)
    listed = replace(spikes.listed(), bits=None)
    start, index = listed.lists
    assert torch.equal(listed.listed().lists[0], start)
    assert torch.equal(listed.times(weight, bias, "gather"), spikes.times(weight, bias, "gather"))
    got, want = (a.weight_gradient(g, "gather") for a in (listed, spikes))
    assert torch.equal(got, want)
    assert (len(start), len(index)) == (701, spikes.ones)


def test_scattered_and_gathered_weight_gradients_are_bit_identical(monkeypatch):
    for size in ((700, 300, 130), (9000, 70, 20), (64, 64, 1)):
        _, spikes, _, _, g = draw(*size, 0.1)
        gathered = spikes.weight_gradient(g, "gather")
        with monkeypatch.context() as patch:
            patch.setattr(sparse, "SCATTER_BELOW", 2.0)
            assert torch.equal(spikes.weight_gradient(g, "gather"), gathered)


LEVEL = """
import sys, torch
from backspike.kernel.cpu import sparse
torch.set_num_threads(1)
rows = []
for bits, M, K, ones, weight, bias, g in torch.load(sys.argv[1]):
    spikes = sparse.Spikes(bits, M, K, ones)
    for how in ("gather", "lookup"):
        rows += [spikes.times(weight, bias, how), spikes.weight_gradient(g, how)]
    rows.append(sparse.sampled(g, weight, bits, torch.float32))
torch.save(rows, sys.argv[2])
"""


def test_every_processor_level_gives_the_same_result(tmp_path):
    cases = []
    for dtype in sparse.DTYPES:
        for density in (0.02, 0.3):
            _, spikes, *numbers = draw(300, 200, 130, density, dtype)
            cases.append((spikes.bits, spikes.M, spikes.K, spikes.ones, *numbers))
    torch.save(cases, tmp_path / "cases.pt")  # random numbers differ between processor levels
    results = []
    for level in ("default", "avx2", None):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": level} if level else os.environ
        words = [sys.executable, "-c", LEVEL, str(tmp_path / "cases.pt"), str(tmp_path / "rows.pt")]
        subprocess.run(words, env=environment, check=True, capture_output=True)
        results.append(torch.load(tmp_path / "rows.pt"))
    for rows in results[1:]:
        for i, (a, b) in enumerate(zip(rows, results[0])):
            if i % 5 < 4:  # these sum in a fixed order
                assert torch.equal(a, b)
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------- layers

CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 8, 3, padding=1), (5, 3, 7, 9)),
    "stride, dilation": (nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=(1, 2)), (2, 4, 11, 12)),
    "groups, no bias": (nn.Conv2d(4, 8, 3, groups=2, bias=False), (3, 4, 6, 6)),
    "depthwise": (nn.Conv2d(6, 6, 3, padding=1, groups=6), (3, 6, 6, 6)),
    "same": (nn.Conv2d(3, 5, 3, padding="same"), (2, 3, 6, 5)),
    "same, uneven": (nn.Conv2d(3, 5, 4, padding="same"), (2, 3, 6, 5)),
    "valid": (nn.Conv2d(3, 5, 3, padding="valid"), (2, 3, 6, 5)),
    "reflect": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), (2, 3, 6, 5)),
    "one": (nn.Conv1d(3, 5, 3, padding=1), (4, 3, 17)),
    "three": (nn.Conv3d(2, 4, 3, padding=1), (2, 2, 5, 4, 6)),
    "pointwise": (nn.Conv2d(8, 16, 1), (2, 8, 4, 4)),
    "no batch": (nn.Conv2d(3, 5, 3), (3, 6, 5)),
    "turned": (nn.ConvTranspose2d(3, 5, 3), (2, 3, 6, 5)),
}
INPUTS = {
    "spikes": lambda x: x > 0.3,
    "pooled": lambda x: (x.clamp(0, 3) * 4).round() / 4,
    "summed": lambda x: (x.clamp(0, 3) * 7).round(),
    "reals": lambda x: x,
}


def gradients(call, layer, x, autocast=False, g=None):
    """Return the output and the gradients of x, if it needs one, and of all parameters."""
    layer.zero_grad()
    x = x.detach().requires_grad_(x.requires_grad)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = call(x, layer)
    y.backward(
        torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
        if g is None
        else g
    )
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


def itself(x, layer):
    return layer(x)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_match_torch(name, input, autocast):
    layer, shape = CONVOLUTIONS[name]
    layer, x = copy.deepcopy(layer), torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x = INPUTS[input](x).float().requires_grad_()
    for a, b in zip(
        gradients(synapse.convolution, layer, x, autocast),
        gradients(itself, layer, x, autocast),
        strict=True,
    ):
        assert (a is None) == (b is None)
        if b is not None:
            assert a.dtype == b.dtype
            assert a.stride() == b.stride()
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "formats",
    list(itertools.product([torch.contiguous_format, torch.channels_last], repeat=2)),
    ids=str,
)
def test_convolutions_in_any_memory_format(dtype, formats):
    layer = nn.Conv2d(8, 16, 3, padding=1).to(dtype, memory_format=formats[0])
    x = (torch.rand(4, 8, 9, 7) < 0.3).to(dtype, memory_format=formats[1]).requires_grad_()
    for a, b in zip(
        gradients(synapse.convolution, layer, x), gradients(itself, layer, x), strict=True
    ):
        assert a.stride() == b.stride()
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "frozen", [(), ("weight",), ("bias",), ("weight", "bias"), ("x",), ("x", "bias")]
)
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_only_needed_gradients_are_computed(kind, frozen, tolerance):
    layer = nn.Conv2d(3, 5, 3) if kind == "convolution" else nn.Linear(6, 5)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name not in frozen)
    x = (torch.rand(4, 3, 7, 6) < 0.3).float().requires_grad_("x" not in frozen)
    for a, b in zip(
        gradients(getattr(synapse, kind), layer, x), gradients(itself, layer, x), strict=True
    ):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def linear_case(M, K, N, density, bias=True, lead=(), dtype=torch.float32, seed=3):
    x, _, weight, b, g = draw(M, K, N, density, dtype, seed)
    layer = nn.Linear(K, N, bias=bias, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(weight / K**0.5)
        if bias:
            layer.bias.copy_(b)
    return x.view(*(lead or (M,)), K).requires_grad_(), layer, g.view(*(lead or (M,)), N)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_match_torch(density, bias, autocast, tolerance):
    x, layer, g = linear_case(768, 256, 96, density, bias, lead=(3, 256))
    dtype = torch.bfloat16 if autocast else torch.float32
    got = gradients(synapse.linear, layer, x, autocast, g.to(dtype))
    want = gradients(itself, layer, x, autocast, g.to(dtype))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        near(a, b.double(), dtype, tolerance)
    made = sparsity.plan_of(layer)
    expected = "gather" if density < 0.1 else "lookup"
    assert (made.forward, made.weight, made.input, made.spikes) == (
        expected,
        expected,
        "dense",
        pytest.approx(density, abs=0.01),
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        near(synapse.linear(x, layer), want[0].double(), dtype, tolerance)


@pytest.mark.parametrize("T", [2, 300])
@pytest.mark.parametrize("inputs", [24, 30, 256])
@pytest.mark.parametrize("spikes", [True, False])
def test_a_gradient_that_repeats_over_time_is_used_once(spikes, inputs, T, monkeypatch):
    x, layer, _ = linear_case(T * 9, inputs, 20, 0.1, lead=(T, 9))
    x = x if spikes else (x.detach() + 0.3).requires_grad_()
    got, calls = [], []
    monkeypatch.setattr(Packed, "total", lambda p, T, f=Packed.total: calls.append(T) or f(p, T))
    for call in (synapse.linear, itself):
        for loss in (lambda y: y.mean(0).pow(2).sum(), lambda y: y[1:].pow(2).sum()):
            got.append(torch.autograd.grad(loss(call(x, layer)), [x, *layer.parameters()]))
    assert calls == [T]  # only in the first of the four
    for a, b in zip(got[0] + got[1], got[2] + got[3], strict=True):
        near(a, b.double(), torch.float32, {torch.float32: 1e-5})


@pytest.mark.parametrize("input", INPUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_linear_layers_accept_any_dtype(dtype, input, tolerance):
    layer = nn.Linear(96, 80).to(dtype)
    x = (
        INPUTS[input](torch.randn(800, 96, generator=torch.Generator().manual_seed(1)))
        .to(dtype)
        .requires_grad_()
    )
    for a, b in zip(gradients(synapse.linear, layer, x), gradients(itself, layer, x), strict=True):
        assert a.dtype == b.dtype
        near(a, b.double(), dtype, tolerance)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_input_gradient_is_correct_where_the_neuron_uses_it(autocast, tolerance):
    x, layer, g = linear_case(900, 128, 200, 0.1)
    dtype = torch.bfloat16 if autocast else torch.float32
    for density in (0.0, 0.1, 0.2, 0.9):
        mask = torch.rand(x.shape) < density
        active = pack(mask.float()).codes if density < 1 else None

        def call(x, layer, active=active):
            return synapse.linear(x, layer, active)

        got = gradients(call, layer, x, autocast, g.to(dtype))
        want = gradients(itself, layer, x, autocast, g.to(dtype))
        near(got[1] * mask, (want[1] * mask).double(), dtype, tolerance)
        made = sparsity.plan_of(layer)
        assert made.input == ("sample" if density < 0.5 else "dense")
        assert made.h == pytest.approx(float(mask.float().mean()))
        if made.input == "sample":
            assert not got[1][~mask].any()
        else:
            near(got[1], want[1].double(), dtype, tolerance)
        near(got[2], want[2].double(), dtype, tolerance)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_spikes_given_as_bits_are_not_packed_again(kind, autocast, monkeypatch):
    """The given bits are saved for backward; outputs and gradients equal torch's."""
    x, layer, _ = linear_case(64, 24, 16, 0.3)
    call = synapse.linear
    if kind == "convolution":
        x, layer, call = (
            x.detach().view(8, 8, 24, 1).movedim(2, 1).requires_grad_(),
            nn.Conv2d(24, 16, 1),
            synapse.convolution,
        )
    bits = pack(x).codes
    kept = []
    monkeypatch.setattr(
        synapse,
        "_save",
        lambda ctx, packed, *o, save=synapse._save: (kept.append(packed), save(ctx, packed, *o)),
    )
    monkeypatch.setattr(synapse, "pack", lambda x: pytest.fail("packed again"))
    for a, b in zip(
        gradients(lambda x, m: call(x, m, bits=bits), layer, x, autocast),
        gradients(itself, layer, x, autocast),
    ):
        assert torch.equal(a, b)
    assert kept[0].codes is bits


def test_bits_of_a_noncontiguous_input_are_ignored():
    """A linear layer reads rows in C order."""
    x = linear_case(6, 24, 16, 0.3)[0].detach().view(2, 3, 24).transpose(0, 1)
    layer = nn.Linear(24, 16)
    x = x.requires_grad_()
    bits = pack(x).codes  # in the order of memory
    for a, b in zip(
        gradients(lambda x, m: synapse.linear(x, m, bits=bits), layer, x),
        gradients(itself, layer, x),
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_bits_are_used_only_for_the_spikes_they_belong_to():
    """A view of the spikes is recognised, a copy or a part of them is not."""
    spikes = (torch.rand(3, 4, 8, 2, 5) < 0.5).float()
    sent = SpikeInfo.from_result(Result(spikes, spikes[0], bits=pack(spikes).codes))
    for x in (spikes, spikes.flatten(0, 1), spikes.flatten(0, 1).flatten(1)):
        assert sent.bits_of(x) is sent.bits
    for x in (spikes.clone(), spikes[:2], spikes[..., ::2], spikes.flatten(0, 1).clone()):
        assert sent.bits_of(x) is None


def test_a_transposed_input():
    x, layer, g = linear_case(300, 128, 200, 0.1)
    turned = x.detach().t().contiguous().t().requires_grad_()
    for a, b in zip(
        gradients(synapse.linear, layer, turned, g=g),
        gradients(synapse.linear, layer, x, g=g),
        strict=True,
    ):
        assert torch.equal(a, b)


# -------------------------------------------------------------------------------- the whole network


class Residual(nn.Module):
    """Spikes, their sums and their averages all enter synaptic layers here."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (
            nn.Conv2d(2, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
        )
        self.hidden, self.last = nn.Linear(8 * 4 * 4, 256), nn.Linear(256, 10)

    def forward(self, x, convolution, linear):
        import backspike as bs

        def spikes(x):
            T = 4
            return bs.lif(
                x.unflatten(0, (T, -1)), seed=1, v_threshold=0.3, backend="eager"
            ).spikes.flatten(0, 1)

        a = spikes(convolution(x, self.first))
        b = a + spikes(convolution(a, self.second))
        c = b + spikes(convolution(b, self.third))
        d = nn.functional.avg_pool2d(c, 2).flatten(1)
        return linear(spikes(linear(d, self.hidden)), self.last)


def test_gradients_of_a_residual_network():
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(4 * 128, 2, 8, 8)
    grads = []
    for ways in ((synapse.convolution, synapse.linear), (itself, itself)):
        model.zero_grad()
        model(x, *ways).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("autocast", [False, True])
def test_saved_memory_has_the_expected_size(autocast):
    """The graph saves spikes as bits, other inputs in the compute dtype, and no copy of weights."""
    for layer, call in (
        (nn.Conv2d(64, 64, 3, padding=1), synapse.convolution),
        (nn.Linear(16, 64), synapse.linear),
    ):
        x, sizes = torch.rand(8, 64, 16, 16, requires_grad=True), []

        def note(t, sizes=sizes, known=(layer.weight, x)):
            sizes.append(0 if any(t is a for a in known) else t.nbytes)
            return t

        for values, size in (
            ((x < 0.2).float().requires_grad_(), x.numel() / 8),
            (x, (2 if autocast else 4) * x.numel()),
        ):
            sizes.clear()
            with (
                torch.autograd.graph.saved_tensors_hooks(note, lambda t: t),
                torch.autocast("cpu", enabled=autocast),
            ):
                y = call(values, layer)
            assert sum(sizes) == size
            assert y.grad_fn.packed.codes is None


# ------------------------------------------------------------------------------------ calls as such


def test_layers_with_hooks_are_called():
    x = (torch.rand(2, 3, 6, 6) < 0.3).float().requires_grad_()
    for layer, call in (
        (nn.Conv2d(3, 4, 3), synapse.convolution),
        (nn.Linear(6, 4), synapse.linear),
    ):
        calls = []
        handles = [layer.register_forward_hook(lambda *_, calls=calls: calls.append("forward"))]
        call(x, layer)
        assert calls == ["forward"]
        handles.append(
            layer.register_full_backward_hook(lambda *_, calls=calls: calls.append("backward"))
        )
        call(x, layer).sum().backward()
        assert calls == ["forward", "forward", "backward"]
        for handle in handles:
            handle.remove()
        everywhere = nn.modules.module.register_module_forward_hook(
            lambda *_, calls=calls: calls.append("everywhere")
        )
        call(x, layer)
        everywhere.remove()
        assert calls[3:] == ["everywhere"]
        call(x, layer)
        assert len(calls) == 4
        torch.nn.utils.parametrizations.weight_norm(layer)
        assert torch.equal(call(x, layer), layer(x))
        call(x, layer).sum().backward()
        assert layer.parametrizations.weight.original0.grad.any()

    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    layer = Own(6, 4)
    assert torch.equal(synapse.linear(x, layer), layer(x))


def test_in_place_changes_before_backward_are_detected():
    for layer, call, shape in (
        (nn.Conv2d(3, 4, 3), synapse.convolution, (2, 3, 6, 6)),
        (nn.Linear(6, 4), synapse.linear, (5, 6)),
    ):
        x = torch.randn(shape, requires_grad=True)
        y = call(x, layer)
        with torch.no_grad():
            layer.weight.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_double_backward_is_refused():
    x = (torch.rand(5, 6) < 0.5).float().requires_grad_()
    with pytest.raises(
        RuntimeError,
        match="double backward through a layer with packed input is not defined; use create_graph",
    ):
        torch.autograd.grad(synapse.linear(x, nn.Linear(6, 4)).square().sum(), x, create_graph=True)


def test_in_place_changes_of_the_output_are_allowed():
    x, layer, _ = linear_case(400, 128, 96, 0.1)
    convolution, image = nn.Conv2d(1, 1, 3), x.view(1, 1, 400, 128)
    for y, usual, weight in (
        (synapse.linear(x, layer), layer(x), layer.weight),
        (synapse.convolution(image, convolution), convolution(image), convolution.weight),
    ):
        (expected,) = torch.autograd.grad(usual.relu().sum(), weight)
        (found,) = torch.autograd.grad(y.relu_().sum(), weight)
        torch.testing.assert_close(found, expected)


@needs_compile
def test_compile_and_functorch_call_the_layer():
    layer = nn.Linear(128, 96)
    x = (torch.rand(400, 128) < 0.1).float()
    compiled = torch.compile(
        lambda x: synapse.linear(x, layer), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), layer(x))
    jacobian = torch.func.jacrev(lambda v: synapse.linear(v, layer).sum())(x)
    torch.testing.assert_close(jacobian, layer.weight.sum(0).expand(400, 128))


def test_active_must_have_one_bit_per_input():
    for active in (torch.zeros(3, dtype=torch.uint8), torch.zeros(4 * 64)):
        with pytest.raises(ValueError, match="uint8 with one bit for each of 256 inputs"):
            synapse.linear(torch.zeros(4, 64), nn.Linear(64, 64), active)


# ------------------------------------------------------------------------------------------- choice


def test_decisions_have_hysteresis():
    """A density that fluctuates around a limit changes nothing; one that moves away does."""
    made, limit = sparsity.SparsityPlan(), sparsity.GATHER_BELOW
    for part, way in (
        (1.05, "lookup"),
        (0.95, "lookup"),
        (0.85, "gather"),
        (1.05, "gather"),
        (1.2, "lookup"),
        (0.95, "lookup"),
    ):
        assert made.decide(torch.float32, 1024, 256, 256, part * limit, None).forward == way
    limit = sparsity.SAMPLE_BELOW * 256 / (256 + sparsity.START)
    for part, way in (
        (1.05, "dense"),
        (0.95, "dense"),
        (0.85, "sample"),
        (1.05, "sample"),
        (1.2, "dense"),
    ):
        assert made.decide(torch.float32, 1024, 256, 256, None, part * limit).input == way
        assert made.forward == made.weight == "dense"


def test_a_way_that_a_smaller_batch_does_not_offer_is_left():
    made = sparsity.SparsityPlan().decide(torch.float32, 1024, 1024, 256, 0.5, None)
    assert (made.forward, made.weight) == ("lookup", "lookup")
    made.decide(torch.float32, 128, 128, 256, 0.5, None)
    assert (made.forward, made.weight) == ("dense", "dense")


def test_limits_depend_on_size_dtype_and_processor(monkeypatch):
    for M, K, ways in (
        (1024, 1024, ("lookup", "lookup")),
        (1024, 128, ("lookup", "dense")),
        (128, 1024, ("dense", "lookup")),
    ):
        made = sparsity.SparsityPlan().decide(torch.float32, M, K, 256, 0.5, 0.5)
        assert (made.forward, made.weight, made.input) == (*ways, "dense")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    for dtype, density, ways in (
        (torch.float32, 0.1, ("gather", "gather", "sample")),
        (torch.bfloat16, 0.1, ("dense", "dense", "dense")),
        (torch.bfloat16, 0.02, ("gather", "gather", "sample")),
    ):
        made = sparsity.SparsityPlan().decide(dtype, 1024, 1024, 256, density, density)
        assert (made.forward, made.weight, made.input) == ways


@pytest.mark.parametrize(
    "case",
    [
        (torch.float64, 1024, 256, 256),
        (torch.float32, 16, 256, 256),
        (torch.float32, 1024, 256, 10),
    ],
)
def test_small_and_float64_layers_stay_dense(case):
    made = sparsity.SparsityPlan().decide(*case, 0.01, 0.01)
    assert (made.forward, made.weight, made.input) == ("dense", "dense", "dense")


def test_sparsity_plans_are_saved_and_restored():
    x, layer, g = linear_case(
        1024, 256, 96, 0.132
    )  # just above the limit: which way depends on the way before
    model = nn.Sequential(layer)
    sparsity.plan_of(layer).load(
        {"forward": "gather", "weight": "gather", "input": "sample", "spikes": 0.1, "h": 0.2}
    )
    saved = sparsity.state(model)
    twin = copy.deepcopy(model)
    assert sparsity.state(twin) == saved
    fresh = nn.Sequential(nn.Linear(256, 96))
    fresh.load_state_dict(model.state_dict())
    sparsity.load(fresh, copy.deepcopy(saved))
    want = gradients(synapse.linear, layer, x, g=g)
    for other in (twin[0], fresh[0]):
        assert all(
            torch.equal(a, b) for a, b in zip(gradients(synapse.linear, other, x, g=g), want)
        )
        assert sparsity.plan_of(other) == sparsity.plan_of(layer)
    assert sparsity.plan_of(layer).forward == "gather"
    with torch.no_grad():
        before = sparsity.state(model)
        synapse.linear((torch.rand(1024, 256) < 0.9).float(), layer)
    assert sparsity.state(model) == before


def test_a_plan_prints_in_words():
    made = sparsity.SparsityPlan()
    assert str(made) == "forward dense (no spikes), weight gradient dense, input gradient dense"
    made.decide(torch.float32, 1024, 256, 256, 0.09, 0.101)
    assert (
        str(made)
        == "forward sparse (spikes 9 %), weight gradient sparse, input gradient sampled (h 10 %)"
    )
