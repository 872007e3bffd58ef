"""Every kind of neuron matches its equations and works wherever `bs.LIF` does."""

import copy
import dataclasses
import inspect
import itertools
import math
from functools import partial

import pytest
import torch
from helpers.compiled import needs_compile
from torch import nn

import backspike as bs
from backspike import ATan, Masked, Parametric, Rectangle, Triangle, options
from backspike.neuron.lif import neuron_parameters

r = torch.Generator().manual_seed(0)
CURRENTS = torch.randn(8, 3, 2, 5, generator=r, dtype=torch.float64) + 0.9
WEIGHTS = torch.randn(8, 3, 2, 5, generator=r, dtype=torch.float64)
KINDS = {"PLIF": bs.PLIF, "CubaLIF": bs.CubaLIF, "CLIF": bs.CLIF}
KINDS |= {"AdaptiveLIF": partial(bs.AdaptiveLIF, tau_adaptation=5.0)}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
each_backend = pytest.mark.parametrize("backend", bs.backends())


def gradients(f, *leaves):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad((y * WEIGHTS).sum(), leaves)]


# --------------------------------------------------------------------------------------------- PLIF


def test_plif_is_lif_with_tau_learned():
    options = {"tau": 3.0, "surrogate": Parametric(ATan()), "v_reset": 0.0, "decay_input": True}
    a, b = bs.PLIF(**options).double(), bs.LIF(**options, learn="tau").double()
    assert a.state_dict().keys() == b.state_dict().keys()
    assert bs.PLIF(learn=("threshold", "tau")).learn == ("tau", "threshold")
    for layer in (a, b):
        (layer(CURRENTS) * WEIGHTS).sum().backward()
    for p, q in zip(a.parameters(), b.parameters()):
        assert torch.equal(p.grad, q.grad)
        assert p.grad != 0
    w = -a.log_tau_minus_1.item()  # the parameter of the paper
    assert 1 / (1 + math.exp(-w)) == pytest.approx(1 / 3)


@each_backend
def test_plif_matches_the_equation_of_its_paper(backend):
    """u[t] = v[t-1] + sig(w) (x[t] - (v[t-1] - rest)) with w = -log_tau_minus_1."""
    options = {"v_threshold": 0.7, "v_reset": 0.1, "surrogate": Rectangle(2.0)}
    layer = bs.PLIF(3.0, **options, reset_gradient=1.0, backend=backend).double()
    w = -layer.log_tau_minus_1.detach()

    def statement(x, w):
        v, out = torch.full_like(x[0], 0.1), []
        for x_t in x:
            u = v + torch.sigmoid(w) * (x_t - (v - 0.1))
            z = u - 0.7
            s = (z >= 0).double() + (z - z.detach()) * (z.abs() < 1).double() / 2
            v = (1 - s) * u + 0.1 * s
            out.append(s)
        return torch.stack(out)

    def ours(x, w):
        return torch.func.functional_call(layer, {"log_tau_minus_1": -w}, (x,))

    got, want = gradients(ours, CURRENTS, w), gradients(statement, CURRENTS, w)
    assert torch.equal(got[0], want[0].round())
    assert 0.1 < got[0].mean() < 0.9
    for a, c in zip(got[1:], want[1:]):
        torch.testing.assert_close(a, c, rtol=1e-11, atol=1e-13)


def test_plif_fuses_with_norm_and_pool():
    x = (
        torch.randn(4, 2, 6, 6, 3).permute(0, 1, 4, 2, 3).requires_grad_()
    )  # channels-last, as pools are joined
    layers = nn.Conv2d(3, 4, 3, padding=1).to(memory_format=torch.channels_last), nn.BatchNorm2d(4)
    s = bs.block(x, *layers, bs.PLIF(v_threshold=0.3), nn.AvgPool2d(2))
    assert type(s.grad_fn).__name__ == "_NormLIFBackward"


# ------------------------------------------------------------------------------------------ CubaLIF


def synapse(x, i0, tau, gain):
    i, out = i0, []
    for x_t in x:
        i = (1 - 1 / tau) * i + gain * x_t
        out.append(i)
    return torch.stack(out)


@each_backend
@pytest.mark.parametrize("decay_input", [True, False])
def test_cuba_equals_a_filter_followed_by_lif(backend, decay_input):
    """Gradients of x, states and learned constants against autograd over the two recursions."""
    options = {
        "tau": 3.0,
        "v_threshold": 0.7,
        "decay_input": decay_input,
        "surrogate": Triangle(1.0),
    }
    layer = bs.CubaLIF(
        tau_synapse=2.5, learn=("tau", "tau_synapse", "threshold"), backend=backend, **options
    ).double()
    state = torch.rand(2, 3, 2, 5, generator=r, dtype=torch.float64)
    got = gradients(lambda x, v0: layer(x, v0).spikes, CURRENTS, state)
    (layer(CURRENTS, state).spikes * WEIGHTS).sum().backward()

    learned = [layer.log_tau_minus_1, layer.log_tau_synapse_minus_1, layer.threshold]
    torch.testing.assert_close(
        [p.item() for p in learned], [math.log(2.0), math.log(1.5), 0.7], rtol=1e-6, atol=0
    )
    *logs, theta = (
        p.detach().clone().requires_grad_() for p in learned
    )  # which were made in float32

    def statement(x, v0):
        tau, tau_s = (1 + log.exp() for log in logs)
        current = synapse(x, v0[1], tau_s, 1 / tau_s if decay_input else 1.0)
        rule = options | {"tau": tau, "v_threshold": theta, "backend": "reference"}
        return bs.lif(current, v0[0], **rule).spikes

    want = gradients(statement, CURRENTS, state)
    assert torch.equal(got[0], want[0])
    assert 0.1 < got[0].mean() < 0.9
    for a, b in zip(got[1:], want[1:]):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    (statement(CURRENTS, state) * WEIGHTS).sum().backward()
    for p, q in zip(learned, [*logs, theta]):
        assert p.grad.item() == pytest.approx(q.grad.item(), rel=1e-10)
    assert set(map(id, neuron_parameters(layer))) == set(map(id, learned))


def test_cuba_state_is_membrane_and_current():
    layer = bs.CubaLIF(tau_synapse=4.0, v_threshold=100.0, decay_input=True).double()
    out = layer(CURRENTS, torch.zeros(2, 3, 2, 5).double())
    current = synapse(CURRENTS, torch.zeros(()), 4.0, 0.25)
    membrane = bs.lif(current, v_threshold=100.0, decay_input=True).state
    torch.testing.assert_close(out.state[1], current[-1])
    torch.testing.assert_close(out.state[0], membrane)


# ------------------------------------------------------------------------------------- what all can


@each_kind
def test_streamed_chunks_equal_one_pass(kind):
    layer = kind(v_threshold=0.6).double()
    whole = layer(CURRENTS)
    assert whole.any()
    with bs.streaming(layer):
        parts = [layer(x) for x in CURRENTS.split((1, 3, 4))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(layer(CURRENTS), whole)
    first = layer(CURRENTS[:3], torch.zeros(layer_state(kind), dtype=torch.float64))
    assert torch.equal(layer(CURRENTS[3:], first.state).spikes, whole[3:])


def layer_state(kind):
    return (3, 2, 5) if kind is bs.PLIF else (2, 3, 2, 5)


@pytest.mark.parametrize("kind", [bs.CubaLIF, bs.CLIF, bs.AdaptiveLIF])
def test_a_state_without_both_rows_is_an_error(kind):
    with pytest.raises(
        ValueError, match=r"the 2 states of this neuron, \[2, 3, 2, 5\], got \[3, 2, 5\]"
    ):
        kind()(CURRENTS, torch.zeros(3, 2, 5).double())


@each_kind
def test_recorded_membranes_are_those_before_the_reset(kind):
    layer = kind(v_threshold=0.6).double()
    with bs.record(layer) as seen:
        spikes = layer(CURRENTS)
    (out,) = seen.values()
    assert torch.equal((out.membrane >= 0.6).double(), spikes)
    assert torch.equal(out.spikes, spikes)


@each_kind
def test_networks_of_each_kind_learn(kind):
    """With PDA and SGS, every parameter gets a gradient and a few steps reduce the loss."""
    torch.manual_seed(1)
    surrogate = Masked(Parametric(ATan(), per_channel=True), p=0.2)
    model = bs.models.convnet(
        "8-8-P-8",
        4,
        2,
        size=8,
        neuron=lambda channels: kind(v_threshold=0.5, surrogate=surrogate, channels=channels),
    )
    x, y = torch.rand(4, 8, 2, 8, 8), torch.arange(8) % 4
    scaling, pda = bs.scale_gradients(model), bs.PotentialAdjustment(model, 1e-3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(15):
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(x).mean(0), y) + pda.loss()
        loss.backward()
        bs.check_gradients(model)
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert (
        len(scaling.scaled) == 1
    )  # of the others, one reads the input and one has a pool before it


@each_kind
def test_bfloat16_autocast_and_copies(kind):
    model = nn.Sequential(
        bs.OverTime(nn.Linear(5, 6)), kind(v_threshold=0.2), bs.OverTime(nn.Linear(6, 4))
    )
    x = CURRENTS[:, :, 0].float()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert model[0][0].weight.grad.isfinite().all()
    assert torch.equal(copy.deepcopy(model)(x), model(x))


@needs_compile
@each_kind
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_equal_eager_ones(kind):
    layer = kind(v_threshold=0.6)
    x = CURRENTS.float()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for f in (layer, compiled):
        leaf = x.clone().requires_grad_()
        s = f(leaf)
        s.backward(WEIGHTS.float())
        results.append((s.detach(), leaf.grad))
    for a, b in zip(*results):
        assert torch.equal(a, b)


@each_kind
@pytest.mark.parametrize("memory", ["recompute", "checkpoint"])
def test_memory_does_not_change_gradients(kind, memory):
    x = CURRENTS.transpose(0, 1).contiguous().transpose(0, 1)
    a, b = (gradients(kind(v_threshold=0.6, memory=m).double(), x) for m in ("exact", memory))
    for p, q in zip(a, b):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_explain_lists_all_kinds():
    text = bs.explain(nn.Sequential(*(kind() for kind in KINDS.values())))
    assert [line.split()[1] for line in text.splitlines()] == [*KINDS]
    backend = bs.backends()[0]
    assert all(line.split()[2] == backend for line in text.splitlines())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: bs.CLIF(v_reset=0.0), "leave v_reset out"),
        (lambda: bs.CLIF(memory="8bit"), "must be .exact., .recompute. or .checkpoint."),
        (lambda: bs.CLIF(memory="1bit"), "must be .exact., .recompute. or .checkpoint."),
        (lambda: bs.AdaptiveLIF(tau_adaptation=1.0), "tau must be above 1"),
        (lambda: bs.AdaptiveLIF(decay_input=True, a=-1.1), r"a must lie in \[-1, 117\)"),
        (lambda: bs.AdaptiveLIF(tau_adaptation=4.0, a=10.5), r"a must lie in \[-0.5, 10.5\)"),
        (lambda: bs.AdaptiveLIF(a=-0.6), r"a must lie in \[-0.5, 58.5\)"),
        (lambda: bs.AdaptiveLIF(b=math.nan), "b must be a finite number"),
        (lambda: bs.AdaptiveLIF(learn=("b", "a"), memory="8bit"), "no gradient for a, b, which"),
        (lambda: bs.PLIF(memory="8bit"), "no gradient for tau"),
        (lambda: bs.PLIF(math.inf, decay_input=False), "finite initial tau"),
        (lambda: bs.CubaLIF(tau_synapse=1.0), "tau must be above 1"),
        (lambda: bs.CubaLIF(learn=("tau_s",)), "tau_s"),
        (
            lambda: bs.CubaLIF(tau_synapse=math.inf, decay_input=False, learn="tau_synapse"),
            "finite initial tau_synapse",
        ),
    ],
)
def test_impossible_options_raise_a_one_line_error(make, words):
    with pytest.raises(ValueError, match=words) as refusal:
        make()
    assert "\n" not in str(refusal.value)


# ----------------------------------------------------------------------------- options as arguments


OPTIONS = {bs.LIF: options.LIF, bs.PLIF: options.PLIF, bs.MPBN: options.MPBN}
OPTIONS |= {bs.IF: options.LIF, bs.CubaLIF: options.CubaLIF, bs.CLIF: options.CLIF}
OPTIONS |= {bs.AdaptiveLIF: options.AdaptiveLIF}
OWN = {bs.IF: {"tau", "decay_input"}, bs.CLIF: {"v_reset"}}  # fixed, no arguments


@pytest.mark.parametrize("layer", OPTIONS)
def test_signature_and_attributes_match_the_options(layer):
    """Signature and attributes are read from the dataclass, defaults included."""
    shown = inspect.signature(layer).parameters
    fields = {f.name: f.default for f in dataclasses.fields(OPTIONS[layer])}
    assert set(shown) == {*fields, "channels"} - OWN.get(layer, set())
    assert all(shown[name].default == fields[name] for name in shown if name != "channels")
    keyword = [name for name, p in shown.items() if p.kind is p.KEYWORD_ONLY]
    assert keyword == [name for name in shown if name != "tau"]
    built = layer(channels=3)
    assert built.options == OPTIONS[layer](**{name: getattr(built, name) for name in fields})
    built.reset_gradient = 0.25
    assert built.options.reset_gradient == 0.25
    assert layer(channels=3).reset_gradient == fields["reset_gradient"]
    with pytest.raises(TypeError, match="'v_treshold'"):
        layer(channels=3, v_treshold=1.0)


def test_the_signature_of_lif_matches_the_options():
    shown = inspect.signature(bs.lif).parameters
    fields = {f.name: f.default for f in dataclasses.fields(options.LIF)}
    del fields["learn"], fields["per"]
    others = {"x", "v0", "width", "seed", "mask_p", "record_membrane", "repeats"}
    assert set(shown) == {*fields, *others}
    assert all(shown[n].default == default for n, default in fields.items() if n != "backend")


@each_backend
def test_complementary_neurons_on_a_repeated_input(backend):
    x, rows = CURRENTS[:1], []
    for y, repeats in ((x, 3), (x.expand(3, *x.shape[1:]), 1)):
        leaf = y.clone().requires_grad_()
        s = bs.CLIF(backend=backend)(leaf, repeats=repeats)
        s.sum().backward()
        rows.append((s.detach(), leaf.grad.sum(0, keepdim=True)))
    assert rows[0][0].shape[0] == 3
    torch.testing.assert_close(rows[0], rows[1])


# ---------------------------------------------------------------------------------------- Recurrent


def recurrent(kind=bs.LIF, **options):
    torch.manual_seed(4)
    return bs.Recurrent(nn.Linear(5, 5), kind(v_threshold=0.5, **options)).double()


@each_backend
def test_recurrent_against_autograd_over_the_recursion(backend):
    """The input of u[t] is x[t] + W s[t-1] + b; a spike has the slope h in backward."""
    layer = recurrent(
        v_reset=0.0,
        decay_input=True,
        reset_gradient=1.0,
        surrogate=Rectangle(2.0),
        backend=backend,
    )
    W, b = (p.detach() for p in layer.layer.parameters())

    def statement(x, W, b):
        v, s, out = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        for x_t in x:
            u = 0.5 * v + 0.5 * (x_t + s @ W.t() + b)
            z = u - 0.5
            s = (z >= 0).double() + (z - z.detach()) * (z.abs() < 1).double() / 2
            v = (1 - s) * u
            out.append(s)
        return torch.stack(out)

    def ours(x, W, b):
        return torch.func.functional_call(layer, {"layer.weight": W, "layer.bias": b}, (x,))

    got, want = gradients(ours, CURRENTS, W, b), gradients(statement, CURRENTS, W, b)
    assert torch.equal(got[0], want[0])
    assert 0.1 < got[0].mean() < 0.9
    for a, c in zip(got[1:], want[1:]):
        torch.testing.assert_close(a, c, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", [bs.LIF, *KINDS.values()])
def test_recurrent_streams_records_and_feeds_pda(kind):
    layer = recurrent(kind)
    whole = layer(CURRENTS)
    with bs.streaming(layer):
        parts = [layer(x) for x in CURRENTS.split((3, 1, 4))]
    assert torch.equal(torch.cat(parts), whole)
    with bs.streaming(layer):
        assert torch.equal(layer(CURRENTS[:2]), whole[:2])  # each block starts from rest
    with bs.record(layer) as seen:
        layer(CURRENTS)
    out = seen["neuron"]
    assert torch.equal((out.membrane >= 0.5).double(), whole)
    pda = bs.PotentialAdjustment(layer, 1.0)
    layer(CURRENTS)
    loss = pda.loss()
    loss.backward()
    assert loss > 0
    assert layer.layer.weight.grad.abs().sum() > 0


def test_recurrent_with_zero_weights_equals_its_neuron():
    layer = recurrent()
    nn.init.zeros_(layer.layer.weight), nn.init.zeros_(layer.layer.bias)
    assert torch.equal(layer(CURRENTS), layer.neuron(CURRENTS))


def test_recurrent_draws_a_new_mask_at_each_timestep():
    layer = recurrent(surrogate=Masked(ATan(), p=0.5), temporal_gradient=False)
    nn.init.zeros_(layer.layer.weight)
    x = CURRENTS.clone().requires_grad_()
    layer(x).sum().backward()
    gone = x.grad == 0
    assert 0.3 < gone.double().mean() < 0.7
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(gone))


def test_recurrent_in_networks_and_its_errors():
    model = bs.Sequential(
        bs.OverTime(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)),
        bs.Recurrent(nn.Conv2d(3, 3, 1), bs.LIF(v_threshold=0.3)),
    )
    x = torch.randn(4, 2, 2, 5, 5)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    scaled = bs.scale_gradients(model)
    with pytest.raises(RuntimeError, match="it runs more than once"):
        model(x)
    scaled.remove()
    with pytest.raises(TypeError, match="must be a spiking layer"):
        bs.Recurrent(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(TypeError, match="must not contain a spiking layer"):
        bs.Recurrent(nn.Sequential(nn.Linear(2, 2), bs.LIF()), bs.LIF())
    with pytest.raises(ValueError, match=r"keep the shape of a timestep \[3, 5\], got \[3, 4\]"):
        bs.Recurrent(nn.Linear(5, 4), bs.LIF())(torch.zeros(2, 3, 5))
    with pytest.raises(TypeError, match="put spiking layers next to it"):
        bs.OverTime(bs.Recurrent(nn.Linear(2, 2), bs.LIF()))
