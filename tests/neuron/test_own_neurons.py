"""Neurons with equations of their own: against the built-in ones, and wherever `bs.LIF` works."""

import copy
import inspect
import pickle
import re
from typing import ClassVar

import pytest
import torch
from helpers.own_neurons import LIF, PAIRS, SHIPPED, CubaLIF, outcome
from torch import nn

import backspike as bs
from backspike.errors import BackspikeError
from backspike.neuron.lif import check_gradients, neuron_parameters

r = torch.Generator().manual_seed(4)
X = torch.randn(12, 3, 2, 5, generator=r, dtype=torch.float64) + 0.7
G = torch.randn(12, 3, 2, 5, generator=r, dtype=torch.float64)
each_pair = pytest.mark.parametrize("kind", PAIRS)
each_shipped = pytest.mark.parametrize("kind", SHIPPED)
each_memory = pytest.mark.parametrize("memory", ["exact", "recompute"])


def close(got, want):
    size = max(1.0, float(want.abs().max()))
    return got.shape == want.shape and float((got - want).abs().max()) <= 1e-12 * size


@each_pair
@each_memory
@pytest.mark.parametrize("backend", ["cpu", "eager", "reference"])
@pytest.mark.parametrize(
    "options",
    [
        {"reset_gradient": 0.0},
        {"reset_gradient": 0.4, "surrogate": bs.Parametric(bs.Triangle(1.0))},
        {"reset_gradient": 1.0, "surrogate": bs.Masked(bs.Parametric(bs.ATan()), p=0.3)},
        {"surrogate": bs.Masked(bs.ATan(), p=0.3, replace=bs.Rectangle(0.5))},
        {"temporal_gradient": False, "surrogate": bs.Masked(bs.ATan(), p=0.3, rescale=True)},
    ],
    ids=["detached", "width", "masked", "replace", "no time"],
)
def test_the_built_in_neurons_can_be_written(kind, memory, backend, options):
    """Spikes bit for bit, in both types; gradients to 1e-12 in float64."""
    if backend not in bs.backends():
        pytest.skip("there is no C kernel here")
    built_in, own, names = PAIRS[kind]
    if kind == "CubaLIF" and "temporal_gradient" in options:
        options = {**options, "temporal_gradient": True}  # there, it applies to the membrane alone
    a, b = built_in(**options).double(), own(**options, memory=memory, backend=backend).double()
    for theirs, ours in names.items():  # rounded alike
        getattr(b, ours).data.copy_(getattr(a, theirs).data)
    states = 1 if kind in ("LIF", "PLIF") else 2
    v0 = torch.rand(*([2] if states == 2 else []), 3, 2, 5, generator=r, dtype=torch.float64)
    for start in (None, v0):
        want, got = outcome(a, X, G, start), outcome(b, X, G, start)
        assert torch.equal(got["s"], want["s"])
        assert 0.1 < got["s"].mean() < 0.9
        same = {"log_width": "log_width", "s": "s", "u": "u", "v": "v", "x": "x", "v0": "v0"}
        for theirs, ours in {**names, **same}.items():
            if theirs in want:
                assert close(got[ours], want[theirs]), ours
    assert torch.equal(a.float()(X.float()), b.float()(X.float()))


@each_shipped
@each_memory
@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_the_backward_pass_is_that_of_autograd_over_all_timesteps(kind, memory, backend):
    make, size = SHIPPED[kind]
    x = size * torch.rand(30, 3, 2, 5, generator=r, dtype=torch.float64)
    g = torch.randn(30, 3, 2, 5, generator=r, dtype=torch.float64)
    options = {"channels": 2, "learn": make.learnable, "reset_gradient": 0.5}
    options["surrogate"] = bs.Masked(bs.Parametric(bs.SuperSpike(4.0)), p=0.2)
    layers = make(**options, memory=memory, backend=backend), make(**options, backend="reference")
    got, want = (outcome(layer.double(), x, g) for layer in layers)
    assert want["s"].sum() > 5
    for name in want:
        assert close(got[name], want[name]), name
        assert name in ("s", "constant_w_rest") or want[name].abs().max() > 0


@each_shipped
def test_streaming_equals_the_whole_sequence(kind):
    make, size = SHIPPED[kind]
    layer, x = make(), size * torch.rand(60, 2, 3, generator=r)
    with torch.no_grad():
        whole = layer(x)
        with bs.streaming(layer):
            parts = [layer(part) for part in x.split((1, 20, 39))]
        out = layer(x[:30], layer(x[:1], rest(layer, x)).state)
    assert whole.sum() > 0
    assert torch.equal(torch.cat(parts), whole)
    assert out.spikes.shape == (30, 2, 3)


def rest(layer, x):
    """The states at rest."""
    numbers = (layer.numbers.get(v, v) for v in layer.states.values())
    states = [torch.full_like(x[0], v) for v in numbers]
    return torch.stack(states) if len(states) > 1 else states[0]


def test_gradients_flow_through_streaming_without_detach():
    layer, x = CubaLIF(), X.clone().requires_grad_()
    (want,) = torch.autograd.grad((layer(x) * G).sum(), x)
    with bs.streaming(layer, detach=False):
        y = torch.cat([layer(part) for part in x.split(4)])
    (got,) = torch.autograd.grad((y * G).sum(), x)
    assert torch.equal(got, want)


def bytes_saved(layer, x):
    sizes = {}

    def pack(t):
        sizes[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        layer(x.requires_grad_()).sum()
    return sum(sizes.values()) - x.untyped_storage().nbytes()


def test_few_states_are_saved_with_recompute():
    x = torch.rand(100, 4, 50)
    exact, few = (
        bytes_saved(bs.AdEx(memory=m, backend="eager"), x) for m in ("exact", "recompute")
    )
    step = x[0].numel() * 4
    assert exact == 2 * 101 * step  # v and w before each timestep, and the last ones
    assert few == 2 * 11 * step


def test_a_network_trains_with_everything_that_watches_layers():
    torch.manual_seed(0)
    model = bs.Sequential(
        bs.OverTime(nn.Linear(4, 6), nn.BatchNorm1d(6)),
        bs.AdEx(current=3000.0, learn=("b", "threshold"), surrogate=bs.Parametric(bs.ATan())),
        bs.Recurrent(nn.Linear(6, 6), LIF(tau=3.0, learn="tau")),
        bs.OverTime(nn.Linear(6, 3)),
    )
    x = torch.rand(60, 8, 4)
    pda = bs.PotentialAdjustment(model, 1.0)
    with bs.record(model) as outputs:
        o = model(x)
    assert set(outputs) == {"1", "2.neuron"}
    assert outputs["1"].membrane.shape == (60, 8, 6)
    assert outputs["1"].state.shape == (2, 8, 6)
    (o.mean(0).logsumexp(1).sum() + pda.loss()).backward()
    check_gradients(model)
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)] for p in neuron_parameters(model)}
    assert found == {
        *("1.constant_b", "1.threshold", "1.log_width", "2.neuron.constant_tau"),
    }
    text = bs.explain(model)
    assert re.search(r"AdEx +cpu +compiled from its equations +saves v;", text)
    assert "step by step: a LIF has no such kernel" in text


def test_recurrent_equals_its_recursion():
    torch.manual_seed(1)
    loop = bs.Recurrent(nn.Linear(5, 5), LIF(reset_gradient=1.0)).double()
    built_in = bs.Recurrent(loop.layer, bs.LIF(2.0, reset_gradient=1.0)).double()
    got, want = (
        torch.autograd.grad((m(X[:, :, 0]) * G[:, :, 0]).sum(), [*loop.layer.parameters()])
        for m in (loop, built_in)
    )
    assert all(close(a, b) for a, b in zip(got, want))


def test_learned_constants_are_saved_bounded_and_copied():
    layer = bs.AdEx(learn=("tau_w", "a"), channels=3)
    assert {*layer.state_dict()} == {"constant_tau_w", "constant_a"}
    layer.constant_tau_w.data.fill_(-5.0)
    x = torch.rand(4, 2, 3)
    with torch.no_grad():
        assert torch.isfinite(layer(x)).all()
    assert (layer.constant_tau_w == -5).all()  # without gradients nothing is changed
    layer(x)
    assert (layer.constant_tau_w > 0).all()
    layer.constant_a.data.uniform_(1, 3)
    other = bs.AdEx(learn=("tau_w", "a"), channels=3)
    other.load_state_dict(layer.state_dict())
    for again in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(40 * x), layer(40 * x))
    assert "constant_a" in str(layer.state_dict())
    assert repr(bs.AdEx(a=3.0, v_threshold=0.5)) == "AdEx(a=3, v_threshold=0.5)"
    layer.a = 2.5
    assert (layer.a == 2.5).all()
    fixed = bs.AdEx()
    fixed.a = 7
    assert fixed.a == 7.0


def test_half_precision_inputs_have_states_in_float32():
    layer, x = bs.Izhikevich(), 2 * torch.rand(40, 2, 3)
    x = x.bfloat16().requires_grad_()
    out = layer(x, torch.tensor([-70.0, -14.0]).view(2, 1, 1).expand(2, 2, 3))
    out.spikes.sum().backward()
    assert (out.spikes.dtype, out.state.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out.spikes.float(), layer(x.detach().float()))
    assert x.grad.dtype == torch.bfloat16
    with torch.autocast("cpu"):
        assert torch.equal(layer(x.detach()), out.spikes)


class Weighted(bs.Neuron):
    """With a parameter of its own."""

    states: ClassVar = {"v": 0.0}

    def __init__(self, **options):
        super().__init__(**options)
        self.weight = nn.Parameter(torch.tensor([0.5, 1.5]))

    def step(self, x, v):
        u = 0.5 * v + self.weight.view(-1, 1).to(x.dtype) * x
        return u, u


def test_a_parameter_of_a_subclass_is_learned():
    layer, other = Weighted().double(), Weighted(backend="reference").double()
    for m in (layer, other):
        (m(X) * G).sum().backward()
    assert close(layer.weight.grad, other.weight.grad)
    assert layer.weight.grad.abs().sum() > 0
    assert layer.learned() == {}


def test_equal_timesteps_may_be_given_once():
    layer, x = LIF(), X[:1].clone().requires_grad_()
    layer(x, repeats=12).mul(G).sum().backward()
    whole = X[:1].expand(12, 3, 2, 5).clone().requires_grad_()
    layer(whole).mul(G).sum().backward()
    assert close(x.grad, whole.grad.sum(0, keepdim=True))


def test_the_spike_is_nan_where_the_membrane_is():
    x = torch.ones(3, 1, 2)
    x[1, 0, 1] = torch.nan
    assert torch.equal(LIF()(x).isnan(), torch.tensor([[[0, 0]], [[0, 1]], [[0, 1]]]).bool())


class Noisy(LIF):
    def step(self, x, v):
        u = v + x + torch.rand_like(x)
        return u, u


def test_a_step_that_draws_random_numbers_is_refused():
    x = torch.rand(4, 2, 3, requires_grad=True)
    y = Noisy()(x)
    with pytest.raises(RuntimeError, match=r"Noisy computed other states .* no random numbers"):
        y.sum().backward()


def subclass(**body):
    return type("Mine", (bs.Neuron,), {"states": {"v": 0.0}, **body})


@pytest.mark.parametrize(
    ("run", "kind", "words"),
    [
        (lambda: bs.AdEx(tau=3.0), TypeError, "AdEx has no argument 'tau'"),
        (lambda: bs.AdEx(tauw=3.0), TypeError, "did you mean tau_w"),
        (lambda: bs.AdEx(a="x"), TypeError, "AdEx: a must be a number, got 'x'"),
        (lambda: bs.AdEx(a=torch.ones(3)), TypeError, "for one per channel use learn='a'"),
        (lambda: bs.AdEx(learn="tau"), ValueError, r"learn may contain 'threshold', .*\['tau'\]"),
        (lambda: bs.AdEx(memory="8bit"), ValueError, "AdEx: memory must be one of exact"),
        (lambda: bs.AdEx(backend="none"), ValueError, "unknown backend 'none'"),
        (lambda: bs.AdEx()(torch.rand(3)), ValueError, r"needs x \[T, B, ...\], got \[3\]"),
        (lambda: bs.AdEx()(X, X[0]), ValueError, r"the 2 states of this neuron, \[2, 3, 2, 5\]"),
        (lambda: bs.AdEx(channels=3, learn="a")(X), ValueError, r"a must be 0-dim or \[C\]"),
        (lambda: bs.BRF(omega=100.0), ValueError, "dt omega must be below 1"),
        (lambda: bs.RefractoryLIF(v_reset=1.0), ValueError, "v_reset must be below v_threshold"),
        (lambda: bs.RefractoryLIF(refractory=-1), ValueError, "refractory must be at least 0"),
        (lambda: bs.RefractoryCubaLIF(threshold_rise=-1), ValueError, "CubaLIF: threshold_rise"),
        (lambda: bs.Neuron(), TypeError, "needs states, such as"),
        (lambda: subclass()(), TypeError, r"needs a method step\(self, x"),
        (
            lambda: subclass(__annotations__={"forward": float}, forward=1.0),
            TypeError,
            "Mine: 'forward' is the name of something that every layer has",
        ),
        (
            lambda: subclass(__annotations__={"threshold": float}, threshold=1.0),
            TypeError,
            "Mine: 'threshold' is the name of something that every layer has",
        ),
        (
            lambda: subclass(__annotations__={"adapt": float}, adapt=1.0),
            TypeError,
            "Mine: 'adapt' is the name of something that every layer has",
        ),
        (lambda: subclass(__annotations__={"c": float}), TypeError, "constant c needs a default"),
        (
            lambda: subclass(step=lambda self, x, v: v)()(X),
            ValueError,
            r"Mine.step must return the spike variable and the states, 2 tensors of shape \[3, 2, "
            r"5\] and torch.float64, got \[3, 2, 5\] torch.float64",
        ),
        (
            lambda: subclass(step=lambda self, x, v: (v, None))()(X),
            ValueError,
            "torch.float64, None",
        ),
        (
            lambda: subclass(step=lambda self, x, v: (v, v), reset=lambda self, s, v: v.sum())()(X),
            ValueError,
            r"Mine.reset must return the states, 1 tensors of shape .*, got \[\]",
        ),
    ],
)
def test_errors_are_one_line(run, kind, words):
    with pytest.raises(kind, match=words) as error:
        run()
    assert "\n" not in str(error.value)


def test_other_backends_and_double_backward_are_refused():
    layer = LIF()
    layer.backend = "triton"
    with pytest.raises(bs.Unsupported, match="equations of its own"):
        layer(X)
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad((LIF()(x) * G).sum(), x, create_graph=True)


def test_signature_and_constants_of_subclasses():
    shown = inspect.signature(CubaLIF).parameters
    assert [*shown][:3] == ["tau", "tau_synapse", "channels"]
    assert shown["tau_synapse"].default == 2.0
    assert {"surrogate", "memory"} < {*shown}
    assert not {"v_reset", "decay_input"} & {*shown}
    slow = type("Slow", (LIF,), {"tau": 20.0})  # a new default
    assert slow().tau == 20.0
    assert isinstance(slow.tau, property)
    assert LIF().tau == 2.0


def test_exports_and_initialisation_refuse_it_by_name(tmp_path):
    pytest.importorskip("nir")
    pytest.importorskip("onnx")
    model = nn.Sequential(bs.OverTime(nn.Linear(4, 3)), bs.AdEx())
    x = torch.rand(5, 2, 4)
    with pytest.raises(BackspikeError, match="AdEx"):
        bs.nir.write(model, tmp_path / "a.nir", sample=x)
    with pytest.raises(BackspikeError, match="AdEx"):
        bs.onnx.write(model, tmp_path / "a.onnx", x)
    with pytest.raises(ValueError, match="is a AdEx, whose equations need not be linear"):
        bs.init.fluctuation_driven(model, x)


def test_the_multiplications_of_a_step_are_counted():
    from backspike.analysis.op_count import _multiplications

    # an addition comes with each
    assert _multiplications(LIF()) == 1
    assert _multiplications(LIF(learn="tau", channels=3)) == 1
    assert _multiplications(bs.QIF()) == 3
    square = subclass(step=lambda self, x, v: (torch.addcmul(v, x, x), torch.lerp(v, x, 0.5)))
    assert _multiplications(square()) == 2
    assert _multiplications(bs.AdEx()) == 9
