"""Neurons with equations of their own, compiled: every rule, option and shape against torch."""

import sys
import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from helpers.own_neurons import LIF, SHIPPED, beside_torch, deviation, outcome
from helpers.surrogates import FAMILIES
from helpers.threads import on_threads
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import backspike as bs
from backspike.kernel import compiler
from backspike.kernel.cpu import library
from backspike.kernel.own import rules, trace

pytestmark = pytest.mark.skipif(compiler.find() is None, reason="there is no C compiler here")
r = torch.Generator().manual_seed(9)


def subclass(**body):
    return type("Mine", (bs.Neuron,), {"states": {"v": 0.0}, **body})


X = torch.randn(9, 3, 4, 5, generator=r, dtype=torch.float64) * 0.7 + 0.4

# ---- the rules -----------------------------------------------------------------------------------

STEPS = {
    "arithmetic": lambda c, x, v: (
        (
            (v - x) * c
            + x / c
            - c / (2 + v * v)
            + (3 - v) * 0.1
            + torch.add(x, v) * torch.neg(v)
            - -x
        )
        * 0.3
    ),
    "names": lambda c, x, v: (
        (
            torch.subtract(v, x).mul(c)
            + x.div(c)
            + torch.rsub(v, 2)
            + v.square()
            + torch.multiply(x, c)
        )
        / (v.detach() * v.detach() + 2)
        + v.clone()
        + x.reciprocal() * 0.01
    ),
    "powers": lambda c, x, v: (
        (
            (x * x + 0.5) ** 0.5
            + x**2
            + 0.1 * v**3
            + (v * v + 1) ** -1
            + (x * x + 1).pow(-2)
            + (v * v + 1) ** -0.5
            + torch.pow(x * x + 0.3, c)
            + torch.pow(c, v)
            + 0.1 * (v * v + 1) ** 1.7
            - v**1
        )
        * 0.3
    ),
    "functions": lambda c, x, v: (
        (
            torch.exp(-v * v)
            + torch.expm1(0.1 * x)
            + (x * x + 0.2).log()
            + torch.log1p(v * v)
            + torch.sqrt(x * x + c)
            + (v * v + c).rsqrt()
            + torch.sin(x)
            + torch.cos(v)
            + torch.tanh(c * x)
            + torch.atan(v)
            + torch.sigmoid(v - c)
            + functional.softplus(x)
            + functional.softplus(40 * x) * 0.01
        )
        * 0.3
    ),
    "choices": lambda c, x, v: (
        (
            torch.where(v > c, x, 2 * x)
            + torch.where(x.le(0.5) & (v < 1) | ~(x >= 0), torch.zeros_like(x), x * v)
            + torch.where(torch.logical_and(x != 0.1, x == x), c, v)
            + (v > 0.2) * x
            + (x > 1).to(x.dtype)
            + torch.relu(v - 0.1)
            + torch.ones_like(v) * 0.1
        )
        * 0.4
    ),
    "bounds": lambda c, x, v: (
        (
            x.clamp(-0.5, 0.9)
            + torch.clamp(v, min=-0.2)
            + x.clamp(max=c)
            + torch.maximum(x, v)
            + torch.minimum(x * c, v)
            + torch.maximum(x, x * 1)
            + (x - v).abs()
            + torch.sign(v) * x
            + torch.floor(v * 3) * x
            + v.clip(-1, 1)
        )
        * 0.4
    ),
}


@pytest.mark.parametrize("steps", STEPS)
def test_every_rule_gives_the_values_and_gradients_of_torch(steps):
    def step(self, x, v):
        u = STEPS[steps](self.c, x, v)
        return u, u * 0.5

    kind = subclass(step=step, c=0.7, __annotations__={"c": float})
    surrogate = bs.SuperSpike(2.0)
    varied = beside_torch(kind, X, learn="c", channels=4, surrogate=surrogate)
    assert deviation(*varied) <= 1e-12
    assert deviation(*beside_torch(kind, X.float(), learn="c", surrogate=surrogate)) <= 3e-5


def test_each_rule_is_used_by_the_test_above():
    used = set()
    for step in STEPS.values():
        tracer = trace.Tracer(torch.float64)
        c, x, v = torch.tensor(0.7), tracer.row("x"), tracer.row("state", 0)
        step(c, x, v)
        used |= {node[0] for node in tracer.nodes.nodes}
    unused = {*rules.RULES} - used - {"base", "replacement", "xor"}
    assert unused == set()


def test_exp_is_exact_to_a_few_units_in_the_last_place():
    class Exp(bs.Neuron):
        states: ClassVar = {"v": 0.0}

        def step(self, x, v):
            u = torch.exp(x)
            return u, u

    for dtype, ulp in ((torch.float32, 2.0**-23), (torch.float64, 2.0**-52)):
        limit = 88.7 if dtype == torch.float32 else 709.7
        x = torch.linspace(-limit * 0.98, limit, 40001, dtype=dtype).view(1, 1, -1)
        want = torch.from_numpy(np.exp(x.numpy().astype(np.longdouble)).astype(x.numpy().dtype))
        with bs.record(layer := Exp(backend="cpu")) as seen:
            layer(x)
        assert ((seen[""].membrane - want) / want).abs().max() < 3 * ulp
        ends = torch.tensor(
            [-2000, -limit * 1.1, -torch.inf, torch.inf, limit * 1.01, torch.nan, 0]
        )
        with bs.record(layer) as seen:
            layer(ends.to(dtype).view(1, 1, -1))
        got = seen[""].membrane.flatten()
        assert got.isnan().tolist() == [False] * 5 + [True, False]
        assert got[3:5].tolist() == [torch.inf] * 2
        assert got[6] == 1
        assert torch.equal(got[:3], ends[:3].to(dtype).exp())


# ---- surrogates, masks, memory -------------------------------------------------------------------


@pytest.mark.parametrize("surrogate", FAMILIES, ids=lambda s: type(s).__name__)
def test_every_surrogate_masked_or_not(surrogate):
    learned = beside_torch(LIF, X, surrogate=surrogate, learn=("tau", "threshold"))
    assert deviation(*learned) <= 1e-12
    other = bs.Masked(bs.Triangle(1.0), p=0.4, replace=surrogate)
    assert deviation(*beside_torch(LIF, X, surrogate=other, reset_gradient=1.0)) <= 1e-12


@pytest.mark.parametrize("kind", SHIPPED)
@pytest.mark.parametrize("memory", ["exact", "recompute", "checkpoint"])
@pytest.mark.parametrize("start", [False, True], ids=["rest", "v0"])
def test_the_shipped_neurons_are_those_of_torch(kind, memory, start):
    make, size = SHIPPED[kind]
    x = size * torch.rand(40, 3, 2, 5, generator=r, dtype=torch.float64)
    states = [torch.rand(3, 2, 5, generator=r, dtype=torch.float64) for _ in make.states]
    if kind in ("AdEx", "Izhikevich"):
        states[0] -= 65
    if kind == "Izhikevich":
        states[1] -= 14
    v0 = None if not start else torch.stack(states) if len(states) > 1 else states[0]
    surrogate = bs.Masked(bs.Parametric(bs.SuperSpike(4.0), per_channel=True), p=0.2, rescale=True)
    options = {"channels": 2, "learn": make.learnable, "surrogate": surrogate, "memory": memory}
    assert deviation(*beside_torch(make, x, v0=v0, reset_gradient=0.5, **options)) <= 1e-12


@pytest.mark.parametrize("kind", ["QIF", "Izhikevich", "BRF"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_without_exp_all_bits_are_those_of_torch_in_lower_precision(kind, dtype):
    make, size = SHIPPED[kind]
    x = (size * torch.rand(60, 3, 2, 5, generator=r)).to(dtype)
    found = []
    for backend in ("cpu", "eager"):
        layer, x_ = make(backend=backend), x.clone().requires_grad_()
        with bs.record(layer) as seen:
            layer(x_).float().cumsum(0).sum().backward()
        found.append((seen[""].spikes, seen[""].membrane, seen[""].state, x_.grad))
    assert found[0][0].sum() > 20
    for a, b in zip(*found):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def bytes_saved(layer, x):
    sizes = {}

    def pack(t):
        sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x)
    return sum(size for size in sizes.values() if size > 1000), {*sizes}


@pytest.mark.parametrize(
    ("layer", "rows", "words"),
    [
        (LIF(), 1, "saves v"),
        (LIF(learn="tau"), 1, "saves v"),
        (bs.AdEx(), 1, "saves v"),
        (bs.AdEx(learn="a"), 1, "saves v"),
        (bs.AdEx(learn="tau_w"), 2, "saves v, w"),
        (bs.Izhikevich(), 1, "saves v"),
        (bs.BRF(), 3, "saves v, w, q"),
        (bs.QIF(learn="gain"), 1, "saves v, its input"),
        (bs.AdEx(memory="recompute"), 0, "saves its input"),
    ],
    ids=repr,
)
def test_no_more_is_saved_than_the_backward_pass_needs(layer, rows, words):
    x = torch.rand(50, 4, 60, requires_grad=True)
    size, where = bytes_saved(layer, x)
    keeps_x = x.untyped_storage().data_ptr() in where
    assert (size - keeps_x * 4 * x.numel()) / (4 * x.numel()) == rows
    assert keeps_x == ("its input" in words)
    assert words in bs.explain(layer)


@pytest.mark.parametrize("memory", ["exact", "recompute"])
def test_within_a_checkpoint_the_gradients_are_the_same(memory):
    layer = bs.QIF(backend="cpu", memory=memory, learn="gain").double()
    x = X.clone().requires_grad_()
    leaves = [x, *layer.parameters()]
    want = torch.autograd.grad(layer(x).cumsum(0).sum(), leaves)
    again = checkpoint(layer, x, use_reentrant=False)
    got = torch.autograd.grad(again.cumsum(0).sum(), leaves)
    assert want[0].abs().sum() > 0
    assert all(map(torch.equal, got, want))


# ---- shapes, layouts, threads --------------------------------------------------------------------


class Varied(bs.Neuron):
    """Constants of each kind: of a layer, of channels and of neurons."""

    states: ClassVar = {"v": "start", "w": 0.0}
    start: float = 0.1
    lam: float = 0.8

    def __init__(self, shape, **options):
        super().__init__(**options)
        self.weight = nn.Parameter(
            torch.linspace(0.5, 1.5, shape[0]).view(-1, *[1] * (len(shape) - 1))
        )
        self.own = nn.Parameter(torch.linspace(-0.2, 0.3, shape.numel()).view(shape))

    def step(self, x, v, w):
        u = self.lam * v + self.weight.to(x.dtype) * x - w
        return u, u, 0.9 * w + self.own.to(x.dtype) * v

    def reset(self, s, v, w):
        return v - s * self.v_threshold, w + 0.1 * s


@pytest.mark.parametrize("shape", [(6, 3, 4, 5, 3), (6, 3, 4, 7), (6, 3, 4)], ids=str)
@pytest.mark.parametrize("learn", [("lam", "start"), ("lam", "start", "threshold")], ids=len)
def test_constants_of_layers_channels_and_neurons_have_exact_gradients(shape, learn):
    x = torch.randn(shape, generator=r, dtype=torch.float64) + 0.5

    def make(**options):
        torch.manual_seed(0)
        return Varied(x.shape[2:], **options)

    for channels in (None, 4):
        options = {"learn": learn, "channels": channels, "surrogate": bs.Masked(bs.ATan(), p=0.3)}
        got, want = beside_torch(make, x, reset_gradient=0.3, **options)
        assert deviation(got, want) <= 1e-12
        assert all(got[name].abs().sum() > 0 for name in got if name not in ("s", "u", "v"))


def test_memory_layouts_and_strides_change_nothing():
    x = torch.randn(5, 3, 4, 6, 7, generator=r, dtype=torch.float64)
    g = torch.randn(5, 3, 4, 6, 7, generator=r, dtype=torch.float64)
    layer = bs.AdEx(
        backend="cpu", current=3000.0, learn=("a", "b"), channels=4, surrogate=bs.Masked(bs.ATan())
    ).double()
    want = outcome(layer, x, g)
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (5, 3))
    got = outcome(layer, last, g)
    assert deviation(got, want) <= 1e-12
    assert torch.equal(got["u"], want["u"])
    slow = torch.empty(7, 6, 4, 3, 5, dtype=torch.float64).permute(4, 3, 2, 1, 0).copy_(x)
    assert deviation(outcome(layer, slow, g), want) <= 1e-12
    layer(last).permute(0, 1, 3, 4, 2).contiguous().sum().backward()


@pytest.mark.parametrize(
    "shape", [(4, 3), (4, 0, 5), (1, 2, 3), (3, 1, 300), (2, 5, 1, 1)], ids=str
)
def test_small_and_empty_inputs(shape):
    x = torch.rand(shape, dtype=torch.float64, requires_grad=True)
    found = []
    for backend in ("cpu", "eager"):
        layer = LIF(backend=backend, learn="tau").double()
        y = layer(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), [x, layer.constant_tau])))
    for a, b in zip(*found):
        assert torch.equal(a.nan_to_num(9), b.nan_to_num(9)) or (a - b).abs().max() < 1e-12


def test_the_bits_are_the_same_on_any_number_of_threads_and_level():
    x = torch.randn(6, 40, 16, 30, generator=r)
    g = torch.randn(6, 40, 16, 30, generator=r)
    learn = ("a", "b", "threshold")
    layers = [
        bs.AdEx(backend="cpu", current=3000.0, learn=learn, channels=channels, memory=memory)
        for channels in (None, 16)
        for memory in ("exact", "recompute")
    ]
    for layer in layers:
        want, *others = on_threads(lambda layer=layer: outcome(layer, x, g))
        assert all(deviation(got, want) == 0 for got in others)
        for name in library.levels():
            with library.level(name):
                got = outcome(layer, x, g)
            assert deviation(got, want) == 0, name


@pytest.mark.parametrize("states", [31, 33, 62])
def test_a_neuron_may_have_many_states(states):
    def step(self, x, *v):
        new = [v[0] * 0.5 + x]
        for a in v[1:]:
            new.append(a * a * 0.5 + new[-1])
        return new[-1] * new[0], *new

    kind = subclass(states={f"v{i}": 0.0 for i in range(states)}, step=step)
    x = torch.rand(5, 2, 3, generator=r, dtype=torch.float64) * 0.3
    assert deviation(*beside_torch(kind, x)) <= 1e-12


def test_threads_do_not_disturb_each_other():
    layer, x, got = bs.AdEx(learn="a"), 2 * torch.rand(5, 2, 8, generator=r), []
    want = layer(x).detach()

    def run():
        for _ in range(100):
            got.append(layer(x).detach())

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=run) for _ in range(3)]
        [t.start() for t in threads], [t.join() for t in threads]
    finally:
        sys.setswitchinterval(before)
    assert len(got) == 300
    assert all(torch.equal(a, want) for a in got)
    assert layer.not_compiled == {}
    assert layer.a is layer.constant_a


def test_infinite_and_missing_numbers_spread_as_in_torch():
    x = torch.ones(5, 1, 4)
    x[1] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0])
    for kind in (LIF, bs.QIF):
        a, b = (kind(backend=backend)(x) for backend in ("cpu", "eager"))
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        assert a.isnan().sum() > 3


def test_large_results_are_streamed_with_the_same_bits(monkeypatch):
    x, g = (torch.randn(4, 5, 700, generator=r) for _ in range(2))
    layer = bs.Izhikevich(backend="cpu", learn="a")
    want = outcome(layer, x, g)
    monkeypatch.setattr(library, "STREAM", 1)
    assert deviation(outcome(layer, x, g), want) == 0


def test_explain_speaks_of_the_shapes_that_the_layer_saw():
    x = torch.rand(3, 2, 4, 7)
    layer = Varied(x.shape[2:])
    with torch.no_grad():
        assert "eager" in bs.explain(layer)  # an example has two neurons in each channel
        layer(x)
        assert "compiled from its equations" in bs.explain(layer)
        assert "saves v, its input" in bs.explain(layer)


def test_a_given_state_gives_no_gradient_to_the_states_at_rest():
    x, v0 = X[:4], torch.rand(3, 4, 5, generator=r, dtype=torch.float64)
    found = []
    for backend in ("cpu", "eager"):
        layer = bs.QIF(backend=backend, learn=("v_rest", "gain")).double()
        layer(x, v0).spikes.cumsum(0).sum().backward()
        found.append([p.grad for p in layer.parameters()])
    for a, b in zip(*found):
        assert a.abs() > 0
        assert (a - b).abs() < 1e-12 * b.abs()
