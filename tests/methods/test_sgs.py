"""Masked and scaled weight gradients against their definitions, written here as explicit loops;
and all methods together."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from helpers.compiled import needs_compile
from torch import nn
from torch.nn import functional as F

import backspike as bs
from backspike.methods import sgs

EXACT = {"rtol": 1e-12, "atol": 1e-13}
PRE_POST = sgs._Rule("pre_post", "layer", False, False)


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def spikes(*shape, rate=0.3, seed=0):
    return (
        torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        < rate
    ).double()


# --------------------------------------------------------------------------- the weight site of MSG


def weights():
    torch.manual_seed(0)
    conv = bs.OverTime(nn.Conv2d(2, 24, 3, padding=1), nn.BatchNorm2d(24))
    neuron = bs.LIF(v_threshold=0.5, surrogate=bs.Parametric(bs.ATan()))
    return nn.Sequential(
        conv, neuron, bs.OverTime(nn.Flatten(), nn.Linear(24 * 20, 30)), neuron
    ).double()


def gradients(model, x=None, seed=1):
    torch.manual_seed(seed)
    model.zero_grad()
    y = model(numbers(3, 4, 2, 4, 5, scale=2.0) if x is None else x)
    (y * numbers(*y.shape, seed=9)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


MASKED = {"0.0.weight", "2.1.weight"}


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_only_weights_are_masked_at_rate_p(p):
    model = weights()
    whole = gradients(model)
    with bs.mask_weight_gradients(model, p) as handle:
        got = gradients(model)
        assert handle.p == p
    assert all(torch.equal(got[name], whole[name]) for name in whole.keys() - MASKED)
    for name in MASKED:
        g, want = (a[name][whole[name] != 0] for a in (got, whole))
        kept = g == want
        assert torch.equal(g[~kept], torch.zeros_like(g[~kept]))
        n, share = kept.numel(), 1 - kept.double().mean().item()
        assert n > 400
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / n)
    assert all(
        torch.equal(a, b) for a, b in zip(gradients(model).values(), whole.values())
    )  # removed


def test_each_mask_is_new_and_reproducible_by_seed():
    model = weights()
    with bs.mask_weight_gradients(model) as handle:
        first, again, other = gradients(model), gradients(model), gradients(model, seed=2)
        assert all(torch.equal(first[n], again[n]) for n in MASKED)
        assert not any(torch.equal(first[n] == 0, other[n] == 0) for n in MASKED)
        handle.p = 0.0
        assert all((gradients(model)[n] != 0).sum() > (first[n] != 0).sum() * 1.5 for n in MASKED)
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            handle.p = 1.5


def test_the_mask_is_that_of_the_hash():
    layer = nn.Linear(5, 7).double()
    x = numbers(3, 5)
    with bs.mask_weight_gradients(layer, 0.4):
        torch.manual_seed(6)
        layer(x).sum().backward()
    torch.manual_seed(6)
    gone = bs.dropped(bs.kernel.draw_seed(torch.device("cpu")), (7, 5), 0.4)
    assert 0 < gone.sum() < 35
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(7, 5) * ~gone, **EXACT)
    torch.testing.assert_close(layer.bias.grad, torch.full((7,), 3.0, dtype=torch.float64))


def test_each_backward_draws_its_own_mask():
    layer, x = nn.Linear(40, 50), torch.ones(2, 40)
    with bs.mask_weight_gradients(layer):
        for _ in range(2):
            layer(x).sum().backward()
    assert set(layer.weight.grad.unique().tolist()) == {0.0, 2.0, 4.0}  # neither, one, both


def test_a_shared_weight_has_one_mask():
    a, b = nn.Linear(30, 30, bias=False), nn.Linear(30, 30, bias=False)
    b.weight = a.weight
    with bs.mask_weight_gradients(nn.Sequential(a, b)):
        (a(torch.ones(2, 30)).sum() + b(torch.ones(2, 30)).sum()).backward()
    assert set(a.weight.grad.unique().tolist()) == {0.0, 4.0}
    assert 0.4 < (a.weight.grad == 0).double().mean() < 0.6


def test_mask_errors_name_the_argument():
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        bs.mask_weight_gradients(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        bs.mask_weight_gradients(nn.Linear(2, 3).requires_grad_(False))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got -0.1"):
        bs.mask_weight_gradients(nn.Linear(2, 3), -0.1)
    for attach in (bs.mask_weight_gradients, bs.scale_gradients):
        with pytest.raises(ValueError, match="layer '0': its weight is computed"):
            attach(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))))


# ----------------------------------------------------------------------------------- SGS, one layer


def patches(layer, x):
    """Return the inputs of each output position, `[B, groups, K, L]`; also for Linear."""
    if isinstance(layer, nn.Linear):
        return x.reshape(-1, 1, layer.in_features, 1)
    cut = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return cut.view(x.shape[0], layer.groups, -1, cut.shape[-1])


def correlation(layer, x, g):
    """The sum over batch and positions of (input of a weight) * (value at its output)."""
    p = patches(layer, x)
    g = g.reshape(p.shape[0], p.shape[1], -1, p.shape[-1])
    return torch.einsum("bgkl,bgol->gok", p, g).reshape(layer.weight.shape)


def scaled_by_hand(
    layer, x, post, g, alpha, pair="pre_post", normalise="layer", mean_preserving=False
):
    total, factors = torch.zeros_like(layer.weight), []
    for t in range(len(x)):
        trace = [sum(math.exp(-(t - k)) * a[k] for k in range(t + 1)) for a in (x, post)]
        C = correlation(layer, trace[0], trace[0] if pair == "pre_pre" else trace[1])
        A = torch.ones_like(C)
        for o in [slice(None)] if normalise == "layer" else range(len(C)):
            if C[o].max() > 0:
                A[o] = (1 - alpha) + alpha * C[o] / C[o].max()
        factors.append(A / A.mean() if mean_preserving else A)
        total += factors[-1] * correlation(layer, x[t], g[t])
    return total.detach(), torch.stack(factors)


LAYERS = [
    (nn.Linear(6, 5), (6,)),
    (nn.Conv2d(4, 6, 3, padding=1), (4, 5, 7)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1)), (4, 7, 6)),
    (nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 5, 7)),
    (nn.Conv2d(4, 6, 1, groups=2), (4, 3, 5)),
]
OPTIONS = [
    {},
    {"normalise": "channel"},
    {"mean_preserving": True},
    {"normalise": "channel", "mean_preserving": True},
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer) for layer, _ in LAYERS])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_scaled_gradient_of_a_layer(layer, shape, options):
    layer = copy.deepcopy(layer).double()
    x = spikes(4, 3, *shape)
    with torch.no_grad():
        out = torch.stack([layer(step) for step in x])
    post, g = spikes(*out.shape, seed=1, rate=0.2), numbers(*out.shape, seed=2)
    post[:2] = 0  # silent at first
    rule = sgs._Rule(
        "pre_post", *{"normalise": "layer", "mean_preserving": False, **options}.values(), False
    )
    got = sgs.scaled_weight_gradient(layer, x, post, g, 0.4, rule)
    want, A = scaled_by_hand(layer, x, post, g, 0.4, **options)
    torch.testing.assert_close(got.detach(), want, **EXACT)
    assert torch.equal(A[:2], torch.ones_like(A[:2]))
    assert A[2:].std() > 0.01


def test_pre_pre_uses_the_input_trace_twice():
    layer, x, g = (
        nn.Conv2d(4, 4, 3, padding=1).double(),
        spikes(4, 3, 4, 5, 6),
        numbers(4, 3, 4, 5, 6),
    )
    rule = sgs._Rule("pre_pre", "layer", False, False)
    got = sgs.scaled_weight_gradient(layer, x, spikes(4, 3, 4, 5, 6, seed=3), g, 0.5, rule)
    torch.testing.assert_close(got, scaled_by_hand(layer, x, x, g, 0.5, "pre_pre")[0], **EXACT)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("normalise", ["layer", "channel"])
def test_factor_lies_between_one_minus_alpha_and_one(alpha, normalise):
    C = spikes(6, 4, 3, 3, rate=0.5) * numbers(6, 4, 3, 3).abs()
    C[2] = 0  # a silent channel
    rule = sgs._Rule("pre_post", normalise, False, False)
    A = sgs.scale(C, alpha, rule)
    assert A.min() >= 1 - alpha - 1e-15
    assert A.max() == pytest.approx(1)
    assert torch.equal(A[2], torch.ones_like(A[2])) == (normalise == "channel" or alpha == 0)
    assert torch.equal(sgs.scale(torch.zeros_like(C), alpha, rule), torch.ones_like(C))
    if alpha == 0:
        assert torch.equal(A, torch.ones_like(A))


@pytest.mark.parametrize("silent", ["pre", "post"])
def test_a_silent_layer_keeps_its_gradient(silent):
    layer, x, post, g = nn.Linear(6, 5).double(), spikes(4, 3, 6), spikes(4, 3, 5), numbers(4, 3, 5)
    (x if silent == "pre" else post).zero_()
    got = sgs.scaled_weight_gradient(layer, x, post, g, 0.5, PRE_POST)
    torch.testing.assert_close(got, sum(correlation(layer, x[t], g[t]) for t in range(4)), **EXACT)


def test_ranks_sum_their_correlation(monkeypatch):
    """Two halves of a batch, each with the summed C, equal the whole batch on one machine."""
    layer, x, post, g = (
        nn.Linear(6, 5).double(),
        spikes(3, 8, 6),
        spikes(3, 8, 5, seed=1),
        numbers(3, 8, 5),
    )
    whole = sgs.scaled_weight_gradient(layer, x, post, g, 0.5, PRE_POST)

    def correlations(a, b):
        return [
            correlation(layer, *(sum(math.exp(k - t) * s[k] for k in range(t + 1)) for s in (a, b)))
            for t in range(3)
        ]

    halves = [[a[:, :4], a[:, 4:]] for a in (x, post, g)]
    total = 0
    for rank in (0, 1):
        others = iter(correlations(halves[0][1 - rank], halves[1][1 - rank]))
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(
            torch.distributed, "all_reduce", lambda C, others=others: C.add_(next(others))
        )
        total = total + sgs.scaled_weight_gradient(layer, *(h[rank] for h in halves), 0.5, PRE_POST)
    torch.testing.assert_close(total, whole, **EXACT)


# ------------------------------------------------------------------------------ SGS, whole networks


def lif(**options):
    return bs.LIF(v_threshold=0.2, surrogate=bs.ATan(), **options)


class Residual(nn.Module):
    """A block with its neuron after the addition, norms per timestep, and an in-place addition."""

    def __init__(self, channels, stride=1, inplace=True):
        super().__init__()
        self.conv1 = bs.OverTime(nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(channels)
        self.lif1 = lif()
        self.conv2 = bs.OverTime(nn.Conv2d(channels, channels, 3, padding=1))
        self.shortcut = (
            bs.OverTime(nn.Conv2d(channels, channels, 1, stride)) if stride > 1 else nn.Identity()
        )
        self.lif2 = lif()

    def forward(self, x):
        y = self.lif1(torch.stack([self.norm(step) for step in self.conv1(x)]))
        y = self.conv2(y)
        y += self.shortcut(x)
        return self.lif2(y)


def residual_net():
    torch.manual_seed(0)
    stem = bs.OverTime(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4))
    head = bs.OverTime(nn.Flatten(), nn.Linear(4 * 2 * 3, 6))
    return nn.Sequential(
        stem, lif(), Residual(4), Residual(4, stride=2), head, lif(), bs.OverTime(nn.Linear(6, 3))
    ).double()


RESIDUAL_SCALED = {"2.conv1.0": "2.lif1", "2.conv2.0": "2.lif2", "3.conv2.0": "3.lif2", "4.1": "5"}


def run(model, x, task=True):
    """Run one pass; also return input, output spikes and output gradient of every layer.

    All are `[T, B, ...]`.
    """
    seen, hooks = {}, []

    def keep(name):
        def hook(layer, args, y):
            y.register_hook(lambda g: seen.setdefault(name, {}).update(x=args[0].detach(), g=g))

        return hook

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            hooks.append(layer.register_forward_hook(keep(name), prepend=True))
    model.zero_grad()
    with bs.record(model) as recorded:
        y = model(x)
    if task:
        (y * numbers(*y.shape, seed=9)).sum().backward()
    for hook in hooks:
        hook.remove()
    return seen, {name: out.spikes.detach() for name, out in recorded.items()}


def parameter_gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def over_time(a, T):
    return a.unflatten(0, (T, -1))


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_gradients_of_a_network_match_the_loop(alpha):
    """The first pass, which finds the layers, and a second one with other data and another T."""
    model = residual_net()
    with bs.scale_gradients(model, alpha) as handle:
        assert "first forward pass" in str(handle)
        for T, seed in ((4, 5), (3, 6)):
            x = numbers(T, 3, 2, 4, 6, seed=seed, scale=2.0).requires_grad_()
            seen, fired = run(model, x)
            got, x_grad = parameter_gradients(model), x.grad.clone()
            handle_names, x.grad = handle.scaled, None
            handle.alpha = 0.0
            run(model, x)
            plain = parameter_gradients(model)
            assert torch.equal(x.grad, x_grad)
            handle.alpha = alpha
            assert handle_names == RESIDUAL_SCALED
            for name, post in RESIDUAL_SCALED.items():
                layer = model.get_submodule(name)
                want, _ = scaled_by_hand(
                    layer,
                    over_time(seen[name]["x"], T),
                    fired[post],
                    over_time(seen[name]["g"], T),
                    alpha,
                )
                torch.testing.assert_close(got[name + ".weight"], want, **EXACT)
                assert not torch.allclose(want, plain[name + ".weight"], rtol=0.01)
            for name in got.keys() - {n + ".weight" for n in RESIDUAL_SCALED}:
                assert torch.equal(got[name], plain[name]), name
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_alpha_zero_changes_nothing_bit_for_bit():
    for dtype in (torch.float64, torch.float32):
        model, x = residual_net().to(dtype), numbers(4, 3, 2, 4, 6, scale=2.0).to(dtype)
        twin = copy.deepcopy(model)
        with bs.scale_gradients(twin, 0.0):
            for _ in range(2):
                a, b = gradients(model, x), gradients(twin, x)
                assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_first_pass_gives_the_same_gradients_as_later_ones(monkeypatch):
    """So a resumed run, which starts with a first pass, continues as if never interrupted."""
    model, x = residual_net().eval(), numbers(4, 3, 2, 4, 6, scale=2.0)
    with bs.scale_gradients(model):
        a = gradients(model, x)
        monkeypatch.delattr(sgs, "_Trace")  # the layers are searched for only once
        b = gradients(model, x)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_handle_prints_a_table():
    model = residual_net()
    with bs.scale_gradients(model) as handle:
        with torch.no_grad():
            model(numbers(2, 3, 2, 4, 6))
        assert "first forward pass" in str(handle)
        model(numbers(2, 3, 2, 4, 6))
    assert str(handle).splitlines() == [
        "0.0           not scaled  its input is not spikes",
        "2.conv1.0     scaled      using the spikes of 2.lif1",
        "2.conv2.0     scaled      using the spikes of 2.lif2",
        "3.conv1.0     not scaled  its input and its output differ in size, [4, 6] and [2, 3]",
        "3.conv2.0     scaled      using the spikes of 3.lif2",
        "3.shortcut.0  not scaled  its input and its output differ in size, [4, 6] and [2, 3]",
        "4.1           scaled      using the spikes of 5",
        "6.0           not scaled  no spiking layer follows it directly",
    ]


class Odd(nn.Module):
    """A model with one layer for each reason not to be scaled."""

    def __init__(self):
        super().__init__()
        self.stem, self.lif0 = bs.OverTime(nn.Linear(4, 4)), lif()
        self.summed, self.lif1 = nn.Linear(4, 4), lif()
        self.branch, self.lif2, self.lif3 = nn.Linear(4, 4), lif(), lif()
        self.twice, self.lif4 = nn.Linear(4, 4), lif()
        self.dropped, self.lif5 = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 4)), lif()
        self.mixed, self.lif6 = nn.Linear(8, 4), lif()
        self.gated, self.lif7 = nn.Linear(4, 4), lif()
        self.wide, self.lif8 = nn.Linear(4, 8), lif()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.cat, self.lif9 = nn.Linear(8, 4), lif()
        self.cast, self.lif10 = nn.Linear(4, 4), lif()
        self.reused, self.lif11 = nn.Linear(4, 4), lif()

    def forward(self, x):
        s = self.lif0(self.stem(x))
        a = self.lif1(self.summed(s + s.roll(1, 1)))
        b = self.branch(s)
        c = self.lif2(b) + self.lif3(-b)
        d = self.lif4(self.twice(self.twice(s)))
        e = self.lif5(self.dropped(s))
        f = self.lif6(self.mixed(torch.cat([s, x], -1)))
        g = self.lif7(self.gated(s).sigmoid())
        h = self.lif8(self.wide(s)).unflatten(-1, (2, 4)).sum(-2)
        i = self.second(self.first(s))
        j = self.lif9(self.cat(torch.cat([s, self.lif0.surrogate.primitive(s) * 0 + s], -1)))
        k = self.lif10(self.cast(s.to(torch.float32).to(x.dtype)[:, :, [0, 1, 2, 3]].contiguous()))
        l = self.lif11(self.lif11(self.reused(s)))
        return a + c + d + e + f + g + h + i + j + k + l


def test_unscaled_layers_have_a_reason():
    model = Odd().double()
    x = numbers(3, 2, 4, scale=2.0)
    with bs.scale_gradients(model) as handle:
        model(x).sum().backward()
    assert handle.scaled == {"wide": "lif8"}
    assert handle.not_scaled == {
        "stem.0": "its input is not spikes",
        "summed": "Add lies between the spikes and its input",
        "branch": "it feeds several spiking layers: lif2, lif3",
        "twice": "it runs more than once in a forward pass",
        "dropped.1": "Mul lies between the spikes and its input",
        "mixed": "only a part of its input is spikes",
        "gated": "Sigmoid lies between it and the spiking layer lif7",
        "first": "no spiking layer follows it directly",
        "second": "its input is not spikes",
        "unused": "it did not run",
        "cat": "Add lies between the spikes and its input",
        "cast": "Index lies between the spikes and its input",
        "reused": "the spiking layer lif11 runs more than once in a forward pass",
    }
    assert model.unused.weight.grad is None
    plain = copy.deepcopy(model)
    plain.zero_grad()
    with bs.scale_gradients(plain, alpha=0.0):
        torch.manual_seed(1)
        plain(x).sum().backward()
    model.zero_grad()
    torch.manual_seed(1)
    model(x).sum().backward()
    assert torch.equal(model.twice.weight.grad, plain.twice.weight.grad)


def pooled_net():
    torch.manual_seed(0)
    pool, conv = nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1)
    after = bs.OverTime(nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2))
    valid = bs.OverTime(nn.Conv2d(4, 5, 2))
    first = bs.OverTime(nn.Conv2d(2, 4, 3, padding=1))
    return nn.Sequential(
        first, lif(), bs.OverTime(pool, conv), lif(), after, lif(), valid, lif()
    ).double()


def test_pooled_spikes_are_scaled_with_pool_pre():
    model, x = pooled_net(), numbers(4, 3, 2, 8, 12, scale=3.0)
    with (
        bs.scale_gradients(model),
        pytest.raises(RuntimeError, match="no layer of this model can be scaled") as e,
    ):
        model(x)
    assert "2.1: Pool lies between the spikes and its input; pool_pre=True allows that" in str(
        e.value
    )
    assert "4.0: Pool lies between it and the spiking layer 5" in str(e.value)
    assert "6.0: its input and its output differ in size, [2, 3] and [1, 2]" in str(e.value)
    with bs.scale_gradients(model, pool_pre=True) as handle:
        seen, fired = run(model, x)
    assert handle.scaled == {"2.1": "3"}
    pooled = torch.stack([F.avg_pool2d(step, 2) for step in fired["1"]])
    torch.testing.assert_close(over_time(seen["2.1"]["x"], 4), pooled, **EXACT)
    want, _ = scaled_by_hand(model[2][1], pooled, fired["3"], over_time(seen["2.1"]["g"], 4), 0.5)
    torch.testing.assert_close(model[2][1].weight.grad, want, **EXACT)


@pytest.mark.parametrize(
    "mode", [{"padding": "same"}, {"padding": 1, "padding_mode": "circular"}], ids=str
)
def test_string_padding_and_padding_modes(mode):
    conv = nn.Conv2d(3, 3, 3, **mode).double()
    x, g = numbers(2, 3, 5, 6).requires_grad_(), numbers(2, 3, 5, 6, seed=1)
    conv(x).backward(g)
    torch.testing.assert_close(sgs.weight_gradient(conv, x.detach(), g), conv.weight.grad, **EXACT)


def test_pre_pre_needs_as_many_outputs():
    model = nn.Sequential(
        nn.Linear(3, 4), lif(), nn.Linear(4, 4), lif(), nn.Linear(4, 5), lif()
    ).double()
    with bs.scale_gradients(model, pair="pre_pre") as handle:
        model(numbers(3, 2, 3))
    assert handle.scaled == {"2": "3"}
    assert handle.not_scaled["4"] == "pair='pre_pre' needs as many outputs as inputs"


def test_spikes_without_a_graph_are_found():
    """An encoding layer: its spikes are not in the graph, but they are spikes."""
    model = nn.Sequential(lif(), nn.Linear(4, 5), lif()).double()
    with bs.scale_gradients(model) as handle:
        for _ in range(2):
            model.zero_grad()
            seen, fired = run(model, numbers(3, 2, 4, scale=2.0))
            want, _ = scaled_by_hand(model[1], fired["0"], fired["2"], seen["1"]["g"], 0.5)
            torch.testing.assert_close(model[1].weight.grad, want, **EXACT)
    assert handle.scaled == {"1": "2"}


def test_scaling_works_with_states_streaming_and_no_grad():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.lif0, self.lif1 = nn.Linear(3, 4), nn.Linear(4, 5), lif(), lif()

        def forward(self, x):
            s = self.lif0(self.a(x), torch.zeros_like(x[0, :, :1]).expand(-1, 4)).spikes
            return self.lif1(self.b(s), torch.zeros_like(x[0, :, :1]).expand(-1, 5)).spikes

    model, x = Stateful().double(), numbers(3, 2, 3, scale=3.0)
    with bs.scale_gradients(model) as handle:
        model(x).sum().backward()
        assert handle.scaled == {"b": "lif1"}
        want = model(x).detach()
        with torch.no_grad(), bs.streaming(model):
            assert torch.equal(model(x), want)


def test_a_layer_that_raises_keeps_its_weight():
    model = nn.Sequential(nn.Linear(3, 4), lif(), nn.Linear(4, 4), lif())
    weight = model[0].weight
    with bs.scale_gradients(model):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            model(torch.zeros(2, 2, 5))
        assert model[0].weight is weight
        model(torch.zeros(2, 2, 3))
        assert model[0].weight is weight


def test_copies_and_averages_are_not_scaled():
    model, x = residual_net(), numbers(4, 3, 2, 4, 6, scale=2.0)
    plain = gradients(copy.deepcopy(model), x)
    with bs.scale_gradients(model) as handle:
        gradients(model, x)
        twin = gradients(copy.deepcopy(model), x)
        assert all(torch.equal(plain[name], twin[name]) for name in plain)
        handle.alpha = 0.0
    assert all(torch.equal(plain[name], g) for name, g in gradients(model, x).items())


def test_scaled_gradients_accumulate():
    model, x = residual_net().eval(), numbers(4, 6, 2, 4, 6, scale=2.0)
    with bs.scale_gradients(model):
        parts = [gradients(model, half) for half in x.split(3, dim=1)]
        model.zero_grad()
        for half in x.split(3, dim=1):
            y = model(half)
            (y * numbers(*y.shape, seed=9)).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, parts[0][name] + parts[1][name], **EXACT)


def test_scaling_errors_name_the_argument():
    model = residual_net()
    for options, message in (
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\], got 1.5"),
        ({"alpha": math.nan}, "alpha must lie in"),
        ({"pair": "post_pre"}, "pair must be 'pre_post' or 'pre_pre', got 'post_pre'"),
        ({"normalise": "batch"}, "normalise must be 'layer' or 'channel', got 'batch'"),
    ):
        with pytest.raises(ValueError, match=message):
            bs.scale_gradients(model, **options)
    with pytest.raises(ValueError, match="no linear or convolution layer"):
        bs.scale_gradients(nn.ConvTranspose2d(2, 2, 3))
    with (
        bs.scale_gradients(model),
        pytest.raises(RuntimeError, match="the first forward pass must run the whole model"),
    ):
        model[0](numbers(2, 3, 2, 4, 6))


# ------------------------------------------------------------------------------- the parts together


PSG = bs.Parametric(bs.ATan(alpha=2.5))
SURROGATES = {
    "": bs.ATan(alpha=2.5),
    "MSG": bs.Masked(bs.ATan(alpha=2.5), 0.4),
    "PSG": PSG,
    "MSG+PSG": bs.Masked(PSG, 0.4),
}


def network(surrogate, **options):
    return bs.models.convnet(
        "4-4-P-6",
        3,
        2,
        size=6,
        neuron=lambda channels: bs.LIF(v_threshold=0.4, surrogate=surrogate, **options),
    ).double()


def step(model, *, pda=None, task=1.0, seed=4):
    """Gradients of task * L + pda.loss(), with masks drawn from `seed`."""
    torch.manual_seed(seed)
    model.zero_grad()
    loss = task * F.cross_entropy(
        model(numbers(3, 5, 2, 6, 6, scale=2.0)).mean(0), torch.tensor([0, 1, 2, 0, 1])
    )
    (loss if pda is None else loss + pda.loss()).backward()
    bs.check_gradients(model)
    return parameter_gradients(model)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_pda_adds_its_gradient(name, backend):
    model = network(SURROGATES[name], backend=backend, learn="threshold")
    task = step(model)
    with bs.PotentialAdjustment(model, 0.3) as pda:
        both, alone = step(model, pda=pda), step(model, pda=pda, task=0.0)
    assert alone["features.0.0.weight"].abs().max() > 1e-4
    for n in task:
        torch.testing.assert_close(both[n], task[n] + alone[n], **EXACT)


@pytest.mark.parametrize("name", SURROGATES)
@pytest.mark.parametrize("pda", [False, True])
def test_sgs_scales_the_gradients_of_all_other_methods(name, pda):
    """With any surrogate and with PDA, SGS scales the weight gradients and changes no others."""
    model = network(SURROGATES[name])
    with bs.PotentialAdjustment(model, 0.3) as adjustment:
        loss = adjustment if pda else None
        plain = step(model, pda=loss)
        with bs.scale_gradients(model) as handle:
            got = step(model, pda=loss)
            torch.manual_seed(4)
            seen = {}
            conv = model.features[2][0]
            hook = conv.register_forward_hook(
                lambda _, args, y: (
                    y.register_hook(lambda g: seen.update(x=args[0].detach(), g=g)) and None
                )
            )
            with bs.record(model) as recorded:
                step(model, pda=loss)
            hook.remove()
    assert handle.scaled == {"features.2.0": "features.3"}
    want, _ = scaled_by_hand(
        conv,
        over_time(seen["x"], 3),
        recorded["features.3"].spikes.detach(),
        over_time(seen["g"], 3),
        0.5,
    )
    torch.testing.assert_close(got["features.2.0.weight"], want, **EXACT)
    assert not torch.allclose(want, plain["features.2.0.weight"], rtol=0.01)
    for n in set(got) - {"features.2.0.weight"}:
        torch.testing.assert_close(got[n], plain[n], **EXACT)


@pytest.mark.parametrize("name", SURROGATES)
def test_the_weight_mask_comes_last(name):
    model = network(SURROGATES[name])
    with bs.scale_gradients(model):
        scaled = step(model)
        with bs.mask_weight_gradients(model, 0.5):
            got = step(model)
    for n, g in got.items():
        masked = g.dim() > 1
        assert torch.equal(g, scaled[n] * (g != 0)) if masked else torch.equal(g, scaled[n])
        assert not masked or 0.2 < (g == 0).double().mean() < 0.8


@pytest.mark.parametrize(
    ("msg", "psg", "pda", "sgs", "mask"),
    [c for c in itertools.product([False, True], repeat=5) if sum(c) == 2 or all(c)],
)
@pytest.mark.parametrize("kind", ["float64", "float32", "bf16"])
def test_all_combinations_of_methods_train(msg, psg, pda, sgs, mask, kind):
    torch.manual_seed(3)
    model = network(
        SURROGATES["+".join(n for n, on in (("MSG", msg), ("PSG", psg)) if on)], reset_gradient=0.5
    )
    model = model if kind == "float64" else model.float()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x, y = numbers(3, 4, 2, 6, 6, scale=2.0), torch.tensor([0, 1, 2, 0])
    x = x if kind == "float64" else x.float()
    adjustment = bs.PotentialAdjustment(model, 0.01) if pda else None
    handles = [bs.scale_gradients(model, 0.5)] if sgs else []
    handles += [bs.mask_weight_gradients(model, 0.3)] if mask else []
    for _ in range(2):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        for half in (slice(0, 2), slice(2, 4)):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "bf16"):
                loss = F.cross_entropy(model(x[:, half]).mean(0), y[half])
                loss = loss + adjustment.loss() if adjustment else loss
            loss.backward()
        bs.check_gradients(model)
        optimizer.step()
        for p, old in zip(model.parameters(), before):
            assert p.grad.isfinite().all()
            assert p.grad.dtype == p.dtype
            assert not torch.equal(p, old)
    for handle in (*handles, *([adjustment] if adjustment else [])):
        handle.remove()
    assert not any(
        m._forward_hooks or m._forward_pre_hooks or getattr(m, "watchers", None)
        for m in model.modules()
    )


@needs_compile
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_refused():
    model = bs.models.convnet("2-2", size=4)
    bs.scale_gradients(model)
    with pytest.raises(RuntimeError, match=r"without torch\.compile"):
        torch.compile(model, backend="eager")(torch.ones(2, 1, 1, 4, 4))


@pytest.mark.parametrize(
    "between", [lambda: bs.Integrator(), lambda: bs.Recurrent(nn.Linear(6, 6), bs.LIF())]
)
def test_a_spiking_operator_in_between_is_an_obstacle(between):
    model = nn.Sequential(
        *(bs.OverTime(nn.Linear(6, 6)), bs.LIF(), bs.OverTime(nn.Linear(6, 6)), bs.LIF()),
        *(bs.OverTime(nn.Linear(6, 6)), between(), bs.OverTime(nn.Linear(6, 3)), bs.LIF()),
    )
    with bs.scale_gradients(model) as scaling:
        model(torch.rand(3, 2, 6)).sum().backward()
    assert scaling.scaled == {"2.0": "3"}


def test_graph_nodes_of_neurons_have_the_expected_names():
    x = torch.rand(3, 2, 6, requires_grad=True)
    assert bs.lif(x).spikes.grad_fn.name()
    assert bs.block(x, nn.Linear(6, 6), nn.BatchNorm1d(6), bs.LIF()).grad_fn.name()


def test_a_model_with_scaled_gradients_can_be_pickled():
    model = nn.Sequential(
        bs.OverTime(nn.Linear(4, 6)), bs.LIF(), bs.OverTime(nn.Linear(6, 6)), bs.LIF()
    )
    x = torch.rand(3, 2, 4)
    with bs.scale_gradients(model):
        expected = model(x)
        again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(x), expected)
