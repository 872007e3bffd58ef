"""The layers LIF, IF and Integrator: learning, seeds, streaming, `explain`, errors."""

import copy
import math
from contextlib import suppress

import pytest
import torch
from helpers.compiled import needs_compile
from torch import nn

import backspike as bs
from backspike import ATan, Masked, Parametric, Sigmoid, Triangle

CURRENTS = torch.randn(8, 3, 2, 5, generator=torch.Generator().manual_seed(0)) + 0.9
WEIGHTS = torch.randn(8, 3, 2, 5, generator=torch.Generator().manual_seed(1))
each_backend = pytest.mark.parametrize("backend", bs.backends())


def network():
    """Two spiking layers with a linear layer in between; T is the first dimension throughout."""
    torch.manual_seed(3)
    return nn.Sequential(
        bs.LIF(tau=2.0), nn.Linear(5, 4), bs.LIF(tau=3.0, v_reset=None, v_threshold=0.05)
    )


# ----------------------------------------------------------------------------------------- learning


def test_learned_constants_are_parameters():
    layer = bs.LIF(
        tau=3.0, v_threshold=0.8, surrogate=Parametric(ATan()), learn=("tau", "threshold")
    )
    assert {n: p.item() for n, p in layer.named_parameters()} == pytest.approx(
        {"log_tau_minus_1": math.log(2), "threshold": 0.8, "log_width": 0.0}
    )
    assert not list(bs.LIF(surrogate=Masked(ATan())).parameters())
    assert [n for n, _ in bs.LIF(learn="tau").named_parameters()] == ["log_tau_minus_1"]
    assert bs.LIF(surrogate=Parametric(ATan(), per_channel=True), channels=7).log_width.shape == (
        7,
    )


def test_the_state_dict_contains_only_weights():
    layer = bs.LIF(surrogate=Masked(Parametric(ATan()), p=0.3), learn=("tau", "threshold"))
    with bs.streaming(layer):
        layer(CURRENTS)
        assert set(layer.state_dict()) == {"log_tau_minus_1", "threshold", "log_width"}
    assert not bs.LIF(surrogate=Masked(ATan())).state_dict()
    assert not bs.Integrator(tau=2.0).state_dict()


@each_backend
def test_gradients_of_learned_constants_are_correct(backend):
    """d/dlog(tau - 1) = (tau - 1) d/dtau and d/dlog w = w d/dw, with derivatives of `bs.lif`."""
    x = CURRENTS.double()
    layer = bs.LIF(
        tau=3.0,
        surrogate=Parametric(Sigmoid(), per_channel=True),
        learn=("tau", "threshold"),
        per="layer",
        channels=2,
        backend=backend,
    ).double()
    nn.init.constant_(layer.log_width, math.log(0.5))
    (layer(x) * WEIGHTS).sum().backward()
    tau, theta, width = (
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, 1.0, [0.5, 0.5])
    )
    out = bs.lif(
        x,
        tau=tau,
        v_threshold=theta,
        width=width,
        surrogate=Parametric(Sigmoid()),
        backend="reference",
    )
    (out.spikes * WEIGHTS).sum().backward()
    torch.testing.assert_close(layer.log_tau_minus_1.grad, 2 * tau.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(layer.threshold.grad, theta.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(layer.log_width.grad, 0.5 * width.grad, rtol=1e-6, atol=1e-9)
    assert (width.grad != 0).all()
    assert tau.grad != 0
    assert theta.grad != 0


def test_parameters_are_clamped_to_their_ranges():
    layer = bs.LIF(
        surrogate=Parametric(ATan(), per_channel=True),
        learn=("threshold", "tau"),
        per="layer",
        channels=2,
    )
    with torch.no_grad():
        layer.log_width.copy_(torch.tensor([-9.0, 9.0]))
        layer.threshold.fill_(-3.0)
        layer(CURRENTS)
        assert layer.threshold.item() == -3.0  # inference changes no weights
    layer(CURRENTS)
    assert layer.log_width.exp().tolist() == pytest.approx([0.2, 4.0])
    assert layer.threshold.item() == pytest.approx(1e-3)
    tau, _, _ = layer.constants()
    assert tau > 1


def test_a_learning_layer_can_run_twice_before_backward():
    """Shared layers, or chunks of a sequence: clamping in the second call keeps the first graph."""
    x = CURRENTS.clone().requires_grad_()
    layer = bs.LIF(surrogate=Parametric(ATan()), learn=("tau", "threshold"))
    (layer(x[:4]).sum() + layer(x[4:]).sum()).backward()
    together = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x[:4]).sum().backward()
    layer(x[4:]).sum().backward()
    for a, p in zip(together, layer.parameters()):
        torch.testing.assert_close(a, p.grad)


def test_a_copy_is_independent():
    layer = bs.LIF(surrogate=Masked(Parametric(ATan())), learn="threshold")
    layer(CURRENTS).sum().backward()
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.threshold.fill_(0.5)
    assert layer.threshold.item() == 1.0


# -------------------------------------------------------------------------------------------- seeds


def test_a_seed_is_drawn_with_and_without_mask():
    """The generator advances equally, so that the variants in a study see the same shuffles."""
    states = []
    for surrogate in (ATan(), Masked(ATan(), p=0.5), Masked(Triangle(), p=0.0), Parametric(ATan())):
        torch.manual_seed(11)
        bs.LIF(surrogate=surrogate)(CURRENTS.clone().requires_grad_()).sum().backward()
        states.append(torch.get_rng_state())
    torch.manual_seed(11)
    assert not torch.equal(torch.get_rng_state(), states[0])
    for state in states:
        assert torch.equal(state, states[0])


def test_no_seed_is_drawn_in_evaluation():
    torch.manual_seed(11)
    before = torch.get_rng_state()
    layer = bs.LIF(surrogate=Masked(ATan()))
    with torch.no_grad():
        bs.lif(CURRENTS, surrogate=Masked(ATan()))
    with torch.inference_mode():
        layer(CURRENTS)
    with torch.no_grad():
        layer.eval()(CURRENTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_of_a_layer_shows_its_mask():
    """Without temporal gradient dL/dx is 0 exactly at the mask; each call and layer has its own."""
    x = CURRENTS.double().requires_grad_()
    masks = []
    layers = [bs.LIF(surrogate=Masked(ATan(), p=0.4), temporal_gradient=False) for _ in range(2)]
    for layer in (*layers, layers[0]):
        (g,) = torch.autograd.grad(layer(x).sum(), x)
        masks.append(bs.dropped(layer.seed, x.shape, 0.4))
        assert torch.equal(g == 0, masks[-1])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


def test_mask_p_can_be_annealed():
    layer = bs.LIF(surrogate=Masked(ATan(), p=0.4), temporal_gradient=False)
    x = CURRENTS.double().requires_grad_()
    for p in (0.0, 0.7, 1.0):
        layer.mask_p.fill_(p)
        (g,) = torch.autograd.grad(layer(x).sum(), x)
        assert torch.equal(g == 0, bs.dropped(layer.seed, x.shape, p))


def test_manual_seed_makes_runs_reproducible():
    runs = []
    for _ in range(2):
        torch.manual_seed(21)
        model = nn.Sequential(
            nn.Linear(5, 6), bs.LIF(surrogate=Masked(ATan())), nn.Linear(6, 2), bs.LIF()
        )
        for _ in range(3):
            model(CURRENTS).sum().backward()
        runs.append([p.grad for p in model.parameters()])
    for a, b in zip(*runs):
        assert torch.equal(a, b)
    assert runs[0][0].any()


# ---------------------------------------------------------------------------------------- streaming


@pytest.mark.parametrize("splits", [(1, 7), (3, 5), (2, 2, 4), (1,) * 8])
def test_streaming_equals_one_long_call(splits):
    model = network()
    whole = model(CURRENTS)
    assert 0.05 < whole.mean() < 0.95
    with bs.streaming(model):
        parts = torch.cat([model(x) for x in CURRENTS.split(splits)])
    assert torch.equal(parts, whole)


def test_streaming_carries_an_integrator_too():
    layer = bs.Integrator(tau=3.0)
    with bs.streaming(layer):
        parts = torch.cat([layer(x) for x in CURRENTS.split((3, 5))])
    assert torch.equal(parts, layer(CURRENTS))


def test_every_with_block_starts_from_rest():
    model = network()
    first = model(CURRENTS[:4])
    with bs.streaming(model) as same:
        assert same is model
        assert torch.equal(model(CURRENTS[:4]), first)
        assert not torch.equal(model(CURRENTS[:4]), first)
        with bs.streaming(model):
            assert torch.equal(model(CURRENTS[:4]), first)
    assert torch.equal(model(CURRENTS[:4]), first)
    with bs.streaming(model):
        assert torch.equal(model(CURRENTS[:4]), first)
    with suppress(KeyError), bs.streaming(model):
        model(CURRENTS[:4])
        raise KeyError
    assert torch.equal(model(CURRENTS[:4]), first)


def test_gradients_stop_at_the_start_of_a_call():
    x = CURRENTS.clone().requires_grad_()
    layer = bs.LIF()
    with bs.streaming(layer):
        layer(x[:4])
        layer(x[4:]).sum().backward()
    assert not x.grad[:4].any()
    assert x.grad[4:].all()


def test_a_given_state_overrides_the_carried_one():
    layer = bs.LIF()
    v0 = torch.full((3, 2, 5), 0.5)
    want = layer(CURRENTS, v0)
    with bs.streaming(layer):
        layer(CURRENTS)
        got = layer(CURRENTS, v0)
    assert torch.equal(got.spikes, want.spikes)
    assert torch.equal(got.state, want.state)


def test_state_passed_by_hand_keeps_the_gradient():
    """layer(x, v0) on two halves equals one call: same spikes, same gradients."""
    layer = bs.LIF(v_reset=None)
    whole, halves = CURRENTS.double().requires_grad_(), CURRENTS.double().requires_grad_()
    (layer(whole) * WEIGHTS).sum().backward()
    first = layer(halves[:3], torch.zeros(3, 2, 5))
    second = layer(halves[3:], first.state)
    assert isinstance(second, bs.Output)
    assert second.membrane is None
    (torch.cat([first.spikes, second.spikes]) * WEIGHTS).sum().backward()
    torch.testing.assert_close(halves.grad, whole.grad, rtol=1e-12, atol=1e-14)


# -------------------------------------------------------------------------------- IF and Integrator


def test_integrate_and_fire_counts():
    """Without leak and with gain 1, four currents of 1/4 make a spike."""
    x = torch.full((9, 1, 1), 0.25)
    assert bs.IF()(x).flatten().tolist() == [0, 0, 0, 1, 0, 0, 0, 1, 0]
    assert bs.IF(v_threshold=0.5, v_reset=None)(x).flatten().tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]


@each_backend
def test_integrator_is_a_cumulative_sum(backend):
    x = CURRENTS.double().requires_grad_()
    y = bs.Integrator(backend=backend)(x)
    torch.testing.assert_close(y, x.cumsum(0), rtol=1e-12, atol=1e-13)
    (y * WEIGHTS).sum().backward()
    torch.testing.assert_close(
        x.grad, WEIGHTS.double().flip(0).cumsum(0).flip(0), rtol=1e-12, atol=1e-13
    )


@each_backend
@pytest.mark.parametrize("decay_input", [True, False])
def test_integrator_with_a_leak(backend, decay_input):
    x, again = CURRENTS.double().requires_grad_(), CURRENTS.double().requires_grad_()
    v0 = torch.full((3, 2, 5), 0.5, dtype=torch.float64)
    out = bs.Integrator(tau=3.0, decay_input=decay_input, backend=backend)(x, v0)
    v, want = v0, []
    for current in again:
        v = v * 2 / 3 + (current / 3 if decay_input else current)
        want.append(v)
    want = torch.stack(want)
    assert out.spikes is None
    torch.testing.assert_close(out.membrane, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(out.state, want[-1], rtol=1e-12, atol=1e-13)
    (out.membrane * WEIGHTS).sum().backward()
    (want * WEIGHTS).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-12, atol=1e-13)


def test_integrator_keeps_the_dtype():
    assert bs.Integrator()(CURRENTS.bfloat16()).dtype == torch.bfloat16


# ------------------------------------------------------------------------------- explain and record


def test_explain_shows_the_backend_of_every_layer():
    model = nn.Sequential(
        bs.LIF(), nn.Linear(5, 4), bs.LIF(surrogate=Masked(ATan()), backend="eager")
    )
    model.append(bs.IF(backend="reference"))
    model.append(bs.LIF(surrogate=Parametric(ATan(), per_channel=True), channels=4, learn="tau"))
    model.append(bs.Integrator(backend="eager"))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    lines = [line.split() for line in bs.explain(model).splitlines()]
    assert [line[:2] for line in lines] == [
        ["0", "LIF"],
        ["2", "LIF"],
        ["3", "IF"],
        ["4", "LIF"],
        ["5", "Integrator"],
    ]
    assert [line[2] for line in lines][1:3] == ["eager", "reference"]
    assert lines[4][2] == "eager"
    assert all(line[2] in bs.backends() and len(line) > 3 for line in lines)
    assert torch.equal(torch.get_rng_state(), before)
    assert bs.explain(bs.LIF(memory="8bit")).endswith(
        "saves the distance to the threshold in 8 bits"
    )
    assert "no spiking layer" in bs.explain(nn.Linear(2, 2))


def test_record_returns_the_outputs_of_all_layers():
    model = network()
    plain = model(CURRENTS)
    with bs.record(model) as seen:
        assert torch.equal(model(CURRENTS), plain)
    assert list(seen) == ["0", "2"]
    want = bs.lif(CURRENTS, tau=2.0, record_membrane=True)
    assert torch.equal(seen["0"].spikes, want.spikes)
    assert torch.equal(seen["0"].membrane, want.membrane)
    assert torch.equal(seen["2"].spikes, plain)
    seen.clear()
    model(CURRENTS)
    assert not seen


def test_repr_shows_the_surrogate():
    text = repr(bs.LIF(tau=3.0, v_reset=0.0, surrogate=Masked(Triangle(), p=0.25), learn="tau"))
    for part in (
        "tau=3.0",
        "v_reset=0.0",
        "surrogate=Masked(base=Triangle(), p=0.25)",
        "learn=('tau',)",
    ):
        assert part in text


# ------------------------------------------------------------------------------------------ compile


@needs_compile
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_equals_the_eager_one():
    """One graph, same spikes, mask and generator state; annealing p does not recompile."""
    plain, twin = (
        nn.Sequential(
            bs.OverTime(nn.Linear(5, 6)),
            bs.LIF(
                surrogate=Masked(Parametric(ATan())), learn=("tau", "threshold"), v_threshold=0.3
            ),
        )
        for _ in range(2)
    )
    twin.load_state_dict(plain.state_dict())
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    x = CURRENTS[:4, :, 0]
    for step, p in enumerate((0.5, 0.9, 0.0)):
        results = []
        for model, run in ((plain, plain), (twin, compiled)):
            model[1].mask_p.fill_(p)
            torch.manual_seed(step)
            y = run(x)
            y.mul(x.cumsum(2).sum(2, True)).sum().backward()
            results.append([y.detach(), torch.get_rng_state(), model[1].seed])
        for a, b in zip(*results):
            assert torch.equal(a, b)
        for a, b in zip(plain.parameters(), twin.parameters()):
            torch.testing.assert_close(a.grad, b.grad)
        assert plain[0][0].weight.grad.any()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@needs_compile
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("memory", ["8bit", "bfloat16", "recompute"])
def test_every_memory_compiles(memory):
    layer = bs.LIF(memory=memory, surrogate=Masked(Parametric(ATan())), learn="threshold")
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = CURRENTS[:1]
    rows = []
    for call in (layer, compiled):
        torch.manual_seed(0)
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        y = call(leaf, repeats=3)
        (y * torch.arange(y.numel()).view(y.shape)).sum().backward()
        rows.append([y.detach(), leaf.grad, layer.threshold.grad, layer.log_width.grad])
    for a, b in zip(*rows):
        torch.testing.assert_close(a, b)


# ------------------------------------------------------------------------------------------- errors


X = CURRENTS


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: bs.LIF(tau=1.0), ValueError, "tau must be above 1 timestep .* got 1.0"),
        (lambda: bs.lif(X, tau=0.5), ValueError, "tau must be above 1"),
        (lambda: bs.LIF(tau=math.nan), ValueError, "tau must be above 1"),
        (
            lambda: bs.LIF(tau=math.inf, decay_input=True),
            ValueError,
            "set decay_input=False",
        ),
        (
            lambda: bs.LIF(tau=math.inf, decay_input=False, learn="tau"),
            ValueError,
            "an IF neuron has none",
        ),
        (lambda: bs.LIF(v_threshold=0.0), ValueError, "v_threshold must be positive, got 0"),
        (lambda: bs.LIF(tau="2"), TypeError, "tau must be a number, got '2'"),
        (lambda: bs.LIF(v_threshold=None), TypeError, "v_threshold must be a number, got None"),
        (
            lambda: bs.LIF(v_reset="soft"),
            TypeError,
            "v_reset must be a number, or None for the soft reset, got 'soft'",
        ),
        (lambda: bs.LIF(reset_gradient=None), TypeError, "reset_gradient must be a number"),
        (lambda: bs.LIF(v_reset=1.0), ValueError, "v_reset must lie below v_threshold=1.0"),
        (lambda: bs.LIF(v_reset=-math.inf), ValueError, "v_reset must be a finite number, or None"),
        (
            lambda: bs.LIF(reset_gradient=1.5),
            ValueError,
            r"reset_gradient must lie in \[0, 1\], got 1.5",
        ),
        (
            lambda: bs.LIF(learn=("tau", "width")),
            ValueError,
            r"learn may contain .* got \['width'\]",
        ),
        (
            lambda: bs.LIF(backend="cuda9"),
            ValueError,
            "unknown backend 'cuda9'; choose one of auto, ",
        ),
        (lambda: bs.lif(X, backend="cuda9"), ValueError, "unknown backend 'cuda9'"),
        (lambda: bs.LIF()(X[:0]), ValueError, r"T >= 1, got shape \[0, 3, 2, 5\]"),
        (lambda: bs.LIF()(torch.tensor(1.0)), ValueError, r"x must be \[T, B, ...\]"),
        (
            lambda: bs.LIF()(X.long()),
            TypeError,
            "x must be a tensor of float16, .* got torch.int64",
        ),
        (
            lambda: bs.LIF()(X, torch.zeros(3, 2, 4)),
            ValueError,
            r"v0 .* \[3, 2, 5\], got \[3, 2, 4\]",
        ),
        (
            lambda: bs.LIF()(X, torch.zeros(8, 3, 2, 5)),
            ValueError,
            "v0 must have the shape of one timestep",
        ),
        (
            lambda: bs.lif(X, surrogate=Masked(ATan()), mask_p=0.5, seed=-1),
            ValueError,
            "seed must lie in",
        ),
        (
            lambda: bs.lif(X, mask_p=torch.tensor(0.5)),
            ValueError,
            "mask_p= needs a Masked surrogate",
        ),
        (lambda: bs.lif(X, surrogate=Masked(ATan(), p=1.5)), ValueError, r"p .* \[0, 1\], got 1.5"),
        (
            lambda: bs.lif(X, surrogate=Masked(ATan()), mask_p=1.5),
            ValueError,
            r"p .* \[0, 1\], got 1.5",
        ),
        (
            lambda: bs.lif(X, surrogate=Parametric(ATan())),
            ValueError,
            "a Parametric surrogate needs width=",
        ),
        (lambda: bs.lif(X, width=torch.ones(())), ValueError, "width= would get no gradient"),
        (
            lambda: bs.LIF(surrogate=Parametric(ATan(), per_channel=True)),
            ValueError,
            "needs channels=",
        ),
        (
            lambda: bs.LIF(surrogate=Parametric(ATan(), per_channel=True), channels=3)(X),
            ValueError,
            r"width must be 0-dim or \[C\] with C = 2 .* got shape \[3\]",
        ),
        (
            lambda: bs.lif(X, tau=torch.full((3,), 2.0)),
            ValueError,
            r"tau must be 0-dim or \[C\] with C = 2",
        ),
        (
            lambda: bs.lif(X, v_threshold=torch.ones(2, 6)),
            ValueError,
            "v_threshold must be 0-dim or",
        ),
        (lambda: bs.Integrator(tau=1.0), ValueError, "tau must be above 1"),
    ],
)
def test_errors_name_the_argument(call, error, text):
    with pytest.raises(error, match=text) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_nested_stream_does_not_change_the_outer_one():
    layer, x = bs.LIF(v_threshold=10.0), torch.ones(3, 1, 1)
    with bs.streaming(layer), torch.no_grad():
        layer(x)
        carried = layer.carried.clone()
        with bs.streaming(layer):
            layer(x * 5)
        assert torch.equal(layer.carried, carried)
    assert layer.carried is None


def test_half_precision_does_not_round_the_mask_probability():
    layer = bs.LIF(surrogate=Masked(Triangle(), p=0.3)).half().bfloat16()
    assert layer.mask_p.dtype == torch.float64
    assert layer.mask_p.item() == 0.3


@pytest.mark.parametrize("backend", bs.backends())
def test_rescale_with_p_1_gives_a_gradient_of_zero(backend):
    x = torch.rand(3, 2, 4, dtype=torch.float64, requires_grad=True)
    surrogate = Masked(ATan(), p=0.5, rescale=True)
    out = bs.lif(
        x,
        surrogate=surrogate,
        seed=1,
        mask_p=torch.tensor(1.0, dtype=torch.float64),
        backend=backend,
    )
    out.spikes.sum().backward()
    assert (x.grad == 0).all()


@pytest.mark.parametrize("neuron", [bs.LIF, bs.CubaLIF, bs.CLIF, bs.AdaptiveLIF])
def test_the_state_is_computed_only_when_needed(neuron):
    layer, x = neuron(), torch.randn(5, 3, 40, generator=torch.Generator().manual_seed(5))
    whole, _ = layer.compute(x, None)
    spared, _ = layer.compute(x, None, want_state=False)
    assert torch.equal(spared.spikes, whole.spikes)
    assert torch.equal(layer(x, torch.zeros_like(whole.state)).state, whole.state)
    if neuron is bs.LIF and "cpu" in bs.kernel.backends():
        assert spared.state.numel() == 0
    with bs.streaming(layer):
        halves = torch.cat((layer(x[:2]), layer(x[2:])))
        assert torch.equal(layer.carried, whole.state)
    assert torch.equal(halves, whole.spikes)


def test_layers_in_reentrant_checkpoints_have_different_masks():
    from torch.utils.checkpoint import checkpoint

    layers = [bs.LIF(surrogate=Masked(ATan(), p=0.5)) for _ in range(3)]
    seeds = set()
    for _ in range(2):
        x = torch.randn(4, 2, 5, requires_grad=True)
        for layer in layers:
            x = checkpoint(layer, 2 * x, use_reentrant=True)
            seeds.add(int(layer.seed))
        x.sum().backward()
        assert {int(layer.seed) for layer in layers} <= seeds  # recomputed with the same mask
    assert len(seeds) == 6


def test_a_learned_threshold_below_its_minimum_is_clamped_when_used():
    layer = bs.LIF(learn="threshold")
    layer.threshold.data.fill_(-5.0)
    with torch.no_grad():
        assert not layer.eval()(torch.zeros(2, 1, 1)).any()


def test_a_new_batch_size_while_streaming_is_an_error():
    for layer in (
        bs.LIF(),
        bs.CLIF(),
        bs.CubaLIF(),
        bs.AdaptiveLIF(),
        bs.PSN(order=3),
        bs.Delay(4, 2),
        bs.Integrator(),
        bs.Recurrent(nn.Linear(4, 4), bs.LIF()),
    ):
        with bs.streaming(layer):
            layer(torch.rand(3, 2, 4))
            with pytest.raises(ValueError, match="start a new"):
                layer(torch.rand(3, 3, 4))


@pytest.mark.parametrize("backend", bs.kernel.backends())
def test_double_backward_is_refused(backend):
    x = torch.rand(3, 2, 4, requires_grad=True)
    spikes = bs.lif(x, backend=backend).spikes
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(spikes.sum(), x, create_graph=True)
