"""The backends: forward against traces computed by hand, backward against numpy and autograd.

`numpy_reference` implements section 1 of docs/methods.md again, in numpy, and shares no code with
the library. `reference` is differentiated by autograd and `eager` by hand, so three derivations of
every gradient are compared here.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers.masks import is_dropped
from helpers.neurons import (
    EXACT,
    LEARNED,
    MASKS,
    RESETS,
    SEED,
    SHAPE,
    check_case,
    close,
    draw,
    grid,
    numpy_reference,
    run,
)
from helpers.surrogates import FAMILIES

import backspike as bs
from backspike import ATan, Masked, Parametric, Rectangle, Sigmoid, Triangle

each_backend = pytest.mark.parametrize("backend", bs.backends())


# ----------------------------------------------------------------------------------------- backward


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("surrogate", FAMILIES, ids=lambda s: type(s).__name__)
def test_backward_for_every_combination(surrogate, reset):
    """Hand-written gradients, autograd and numpy agree in float64.

    192 combinations per case, 4,608 in total.
    """
    x, v0, upstream = draw()
    masks = {
        p: np.array([is_dropped(SEED, i, p) for i in range(x.numel())]).reshape(SHAPE)
        for p in (0.5, 0.35)
    }
    combinations = itertools.product((True, False), (0.0, 0.37, 1.0), (True, False), MASKS, LEARNED)
    bad = {}
    for decay_input, rho, temporal, mask, learned in combinations:
        case = (decay_input, rho, temporal, surrogate, mask, learned)
        if found := check_case(x, v0, upstream, RESETS[reset], *case, masks):
            bad[case] = found
    assert not bad


def test_the_test_data_exercise_every_option():
    """The data of the test above contain spikes and silence, and every option changes gradients."""
    x, v0, upstream = draw()
    fixed = {
        "theta": 0.9,
        "h": FAMILIES[ATan(alpha=3.0)][0],
        "tau": 2.3,
        **{k: u.numpy() for k, u in upstream.items()},
    }
    base = {"v_reset": -0.3, "decay_input": True, "rho": 1.0, "temporal": True}
    want = numpy_reference(x.numpy(), v0.numpy(), **fixed, **base)
    assert 0.2 < want["s"].mean() < 0.8
    for change in (
        {"v_reset": 0.0},
        {"v_reset": None},
        {"decay_input": False},
        {"rho": 0.37},
        {"temporal": False},
    ):
        other = numpy_reference(x.numpy(), v0.numpy(), **fixed, **(base | change))
        for key in ("x", "tau", "theta", "w"):
            assert np.abs(other[key].sum() - want[key].sum()) > 1e-3, (change, key)


@each_backend
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("outputs", ["g", "gu", "c", "g gu", "gu c"])
def test_gradients_can_enter_at_any_output(backend, reset, outputs):
    """Gradients of only the spikes, the membrane or the state; the missing ones count as zero."""
    shape = (4, 3, 2, 5)
    x, v0, upstream = draw(shape, seed=1)
    want = numpy_reference(
        x.numpy(),
        v0.numpy(),
        tau=2.3,
        theta=0.9,
        v_reset=RESETS[reset],
        decay_input=True,
        h=FAMILIES[ATan(alpha=3.0)][0],
        rho=0.37,
        temporal=True,
        **{k: u.numpy() * (k in outputs.split()) for k, u in upstream.items()},
    )
    x, v0, tau = (
        x.requires_grad_(),
        v0.requires_grad_(),
        torch.tensor(2.3, dtype=torch.float64, requires_grad=True),
    )
    rule = {
        "decay_input": True,
        "v_threshold": 0.9,
        "v_reset": RESETS[reset],
        "surrogate": ATan(alpha=3.0),
        "reset_gradient": 0.37,
    }
    out = run_or_skip(
        bs.lif, x, v0, backend=backend, tau=tau, record_membrane="gu" in outputs, **rule
    )
    named = {"g": out.spikes, "gu": out.membrane, "c": out.state}
    torch.autograd.backward(
        [named[k] for k in outputs.split()], [upstream[k] for k in outputs.split()]
    )
    assert close(x.grad, want["x"])
    assert close(v0.grad, want["v0"])
    assert close(tau.grad, want["tau"].sum(), size=np.abs(want["tau"]).sum())


def run_or_skip(f, *args, **options):
    """Call f; skip the test if the backend refuses, which the exact backends must not do."""
    try:
        return f(*args, **options)
    except bs.Unsupported as refusal:
        assert options["backend"] not in EXACT
        pytest.skip(str(refusal))


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "change"),
    [
        ((1, 1, 1), {}),
        ((1, 5, 3, 2), {"v_reset": None}),
        ((7, 3, 17), {"v_reset": -0.25, "decay_input": False}),
        (
            (6, 5, 3, 7, 11),
            {"surrogate": Masked(Triangle(alpha=1.5), p=0.5), "reset_gradient": 0.37},
        ),
        (
            (4, 2, 67),
            {"surrogate": Masked(Sigmoid(alpha=3.0), p=0.35, rescale=True), "v_reset": None},
        ),
        ((9, 4), {"temporal_gradient": False}),
        ((3, 0, 4), {}),
    ],
    ids=str,
)
def test_unusual_shapes_on_every_backend(backend, shape, change, dtype, tolerance):
    """The spikes and gradients of the reference in the same dtype."""
    x, v0, upstream = draw(shape, seed=2, dtype=dtype)
    rule = {"tau": 2.3, "v_threshold": 0.9, "surrogate": ATan(alpha=3.0)} | change
    want = run("reference", x, v0, rule=rule, upstream=upstream, seed=SEED)
    got = run_or_skip(
        lambda backend: run(backend, x, v0, rule=rule, upstream=upstream, seed=SEED),
        backend=backend,
    )
    assert torch.equal(got["s"], want["s"])
    assert torch.equal(got["u"], want["u"])
    assert torch.equal(got["v"], want["v"])
    if x.numel():
        assert close(got["x"], want["x"], tolerance=tolerance[dtype])
        nothing = torch.zeros_like(v0)  # without temporal gradient, autograd has no path to v0
        a, b = (nothing if r["v0"] is None else r["v0"] for r in (got, want))
        assert close(a, b, tolerance=tolerance[dtype])
    else:
        assert got["x"].shape == shape


# ------------------------------------------------------------------------------------- closed forms


@each_backend
@pytest.mark.parametrize("decay_input", [True, False])
def test_gradient_through_a_silent_membrane(backend, decay_input):
    """Without spikes dL/dx[k] = gain sum_t lam^(t-k) gu[t] and dL/dv0 = sum_t lam^(t+1) gu[t]."""
    tau, shape = 3.7, (6, 2, 3)
    x, v0, upstream = draw(shape, seed=3)
    x, gu = x * 0.01, upstream["gu"].numpy()
    x.requires_grad_(), v0.requires_grad_()
    rule = {
        "tau": tau,
        "v_threshold": 50.0,
        "decay_input": decay_input,
        "surrogate": Rectangle(width=0.5),
    }
    out = run_or_skip(bs.lif, x, v0, backend=backend, record_membrane=True, **rule)
    assert not out.spikes.any()
    out.membrane.backward(upstream["gu"])
    lam, gain = 1 - 1 / tau, 1 / tau if decay_input else 1.0
    for k in range(6):
        assert close(x.grad[k], gain * sum(lam ** (t - k) * gu[t] for t in range(k, 6)))
    assert close(v0.grad, sum(lam ** (t + 1) * gu[t] for t in range(6)))


@each_backend
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
def test_gradient_of_tau_by_finite_differences(backend, decay_input, v_reset):
    """Without spikes the membrane is a smooth function of tau and does not depend on theta."""
    x, v0, upstream = draw((5, 2, 3), seed=4)
    rule = {
        "v_threshold": 50.0,
        "v_reset": v_reset,
        "decay_input": decay_input,
        "surrogate": Rectangle(width=0.5),
    }

    def loss(tau):
        out = run_or_skip(bs.lif, x, v0, backend=backend, tau=tau, record_membrane=True, **rule)
        return (out.membrane * upstream["gu"]).sum() + (out.state * upstream["c"]).sum()

    tau = torch.tensor(2.7, dtype=torch.float64, requires_grad=True)
    loss(tau).backward()

    slope = (loss(2.7 + 1e-5) - loss(2.7 - 1e-5)) / 2e-5
    assert tau.grad.item() == pytest.approx(slope.item(), rel=1e-7)


@each_backend
@pytest.mark.parametrize("reset", RESETS)
def test_width_w_equals_width_one_on_scaled_inputs(backend, reset):
    """Dividing x, theta, v_reset and v0 by w gives the spikes of width 1, and w times its dL/dx."""
    x, v0, upstream = draw(seed=5)
    w, v_reset = 0.5, RESETS[reset]
    width = torch.tensor(w, dtype=torch.float64)
    rule = {
        "tau": 2.0,
        "v_threshold": 0.75,
        "v_reset": v_reset,
        "surrogate": Parametric(Sigmoid(alpha=3.0)),
    }
    scaled = rule | {"v_threshold": 0.75 / w, "v_reset": None if v_reset is None else v_reset / w}
    only_spikes = {"g": upstream["g"], "gu": 0 * upstream["gu"], "c": 0 * upstream["c"]}
    one = torch.ones((), dtype=torch.float64)
    a = run_or_skip(
        lambda backend: run(
            backend, x, v0, rule=rule, learned={"width": width}, upstream=only_spikes
        ),
        backend=backend,
    )
    b = run(backend, x / w, v0 / w, rule=scaled, learned={"width": one}, upstream=only_spikes)
    assert torch.equal(a["s"], b["s"])
    assert close(a["x"], b["x"] / w)
    assert close(a["width"], b["width"] / w, size=upstream["g"].abs().sum().item())


# ------------------------------------------------------------------------------------------ forward


HARD = {"v_reset": 0.0, "decay_input": True}
TRACES = {  # computed by hand: options beside HARD, x, u, s, v[T-1]
    "hard reset to 0": (
        {},
        [1.5, 1.25, 0.5, 3, 0],
        [0.75, 1.0, 0.25, 1.625, 0],
        [0, 1, 0, 1, 0],
        0,
    ),
    "soft reset": (
        {"v_reset": None},
        [1.5, 1.75, 0.5, 3, 0],
        [0.75, 1.25, 0.375, 1.6875, 0.34375],
        [0, 1, 0, 1, 0],
        0.34375,
    ),
    "hard reset to -1/2": (
        {"v_reset": -0.5},
        [3, 2, 1, 5, -0.5],
        [1.0, 0.5, 0.5, 2.5, -0.75],
        [1, 0, 0, 1, 0],
        -0.75,
    ),
    "input not decayed": (
        {"decay_input": False},
        [0.5, 0.75, 0.25, 1],
        [0.5, 1.0, 0.25, 1.125],
        [0, 1, 0, 1],
        0,
    ),
    "tau 4": ({"tau": 4.0}, [2, 2, 4, -1], [0.5, 0.875, 1.65625, -0.25], [0, 0, 1, 0], -0.25),
    "threshold 1/2": (
        {"v_threshold": 0.5, "v_reset": None},
        [1, 1, 3, 0],
        [0.5, 0.5, 1.5, 0.5],
        [1, 1, 1, 1],
        0,
    ),
    "integrate and fire": (
        {"tau": math.inf, "decay_input": False},
        [0.25, 0.5, 0.25, 0.5, 0.75, -0.5],
        [0.25, 0.75, 1.0, 0.5, 1.25, -0.5],
        [0, 0, 1, 0, 1, 0],
        -0.5,
    ),
    "integrate and fire, soft": (
        {"tau": math.inf, "decay_input": False, "v_reset": None},
        [0.75, 0.75, 0.25, 2.5, 0],
        [0.75, 1.5, 0.75, 3.25, 2.25],
        [0, 1, 0, 1, 1],
        1.25,
    ),
}


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("trace", TRACES)
def test_traces_computed_by_hand(backend, dtype, trace):
    options, x, u, s, v = TRACES[trace]
    x = torch.tensor(x, dtype=dtype).view(-1, 1, 1).expand(-1, 3, 2)
    for record in (True, False):
        rule = HARD | options
        out = run_or_skip(bs.lif, x, backend=backend, record_membrane=record, **rule)
        assert out.spikes[:, 2, 1].tolist() == s
        assert out.state[2, 1].item() == v
        assert out.membrane is None if not record else out.membrane[:, 2, 1].tolist() == u


@each_backend
@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
@pytest.mark.parametrize("decay_input", [True, False])
def test_float32_equals_float64_on_the_grid(backend, v_reset, decay_input):
    x = grid((16, 5, 301))
    rule = {
        "tau": 2.0,
        "v_threshold": 0.75,
        "v_reset": v_reset,
        "decay_input": decay_input,
        "record_membrane": True,
    }
    wide = bs.lif(x, backend="reference", **rule)
    ties = wide.membrane == 0.75
    assert ties.sum() > 5
    assert wide.spikes[ties].all()
    narrow = run_or_skip(bs.lif, x.float(), backend=backend, **rule)
    for a, b in zip(narrow, wide):
        assert a.dtype == torch.float32
        assert torch.equal(a.double(), b)


@each_backend
def test_a_membrane_at_the_threshold_fires_and_one_just_below_does_not(backend):
    for dtype in (torch.float32, torch.float64):
        theta = torch.tensor(0.7, dtype=dtype)
        x = torch.stack(
            [torch.nextafter(theta, theta - 1), theta, torch.nextafter(theta, theta + 1)]
        ).view(1, 1, 3)
        for threshold in (0.7, theta):
            out = run_or_skip(
                bs.lif, x, backend=backend, tau=math.inf, decay_input=False, v_threshold=threshold
            )
            assert out.spikes.flatten().tolist() == [0, 1, 1]


@each_backend
@pytest.mark.parametrize("record", [True, False])
def test_forward_is_identical_on_every_backend(backend, record):
    """With constants that need rounding, bit-identical results require the same operation order."""
    for dtype, v_reset in itertools.product((torch.float32, torch.float64), (0.0, -0.3, None)):
        x, v0, _ = draw((12, 3, 257), seed=6, dtype=dtype)
        rule = {"tau": 2.7, "v_threshold": 0.6, "v_reset": v_reset, "record_membrane": record}
        want = bs.lif(x, v0, backend="reference", **rule)
        got = run_or_skip(bs.lif, x, v0, backend=backend, **rule)
        assert torch.equal(got.spikes, want.spikes)
        assert torch.equal(got.state, want.state)
        assert (got.membrane is None) == (not record)
        assert not record or torch.equal(got.membrane, want.membrane)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(backend, dtype, tolerance):
    """Spikes and gradient have the dtype of x, state and membrane float32 or float64.

    The values match those of float64.
    """
    state = torch.float64 if dtype == torch.float64 else torch.float32
    x = grid((8, 3, 5), seed=7).to(dtype)
    _, v0, upstream = draw((8, 3, 5), seed=8, dtype=dtype)
    v0 = (v0 * 64).round() / 64
    rule = {"tau": 2.0, "v_threshold": 0.75, "surrogate": Sigmoid(alpha=3.0)}
    theta = {"v_threshold": torch.tensor(0.75)}
    got = run_or_skip(
        lambda backend: run(backend, x, v0, rule=rule, learned=theta, upstream=upstream),
        backend=backend,
    )
    kinds = {k: got[k].dtype for k in ("s", "x", "u", "v", "v0", "v_threshold")}
    assert kinds == {
        "s": dtype,
        "x": dtype,
        "u": state,
        "v": state,
        "v0": state,
        "v_threshold": torch.float32,
    }
    wide = {k: u.double() for k, u in upstream.items()}
    want = run(
        "reference",
        x.double(),
        v0.double(),
        rule=rule,
        learned={"v_threshold": theta["v_threshold"].double()},
        upstream=wide,
    )
    for key in ("s", "u", "v"):
        assert torch.equal(got[key].double(), want[key])
    assert close(got["x"].double(), want["x"], tolerance=tolerance[dtype])
    assert close(got["v0"].double(), want["v0"], tolerance=tolerance[state])
    size = upstream["g"].double().abs().sum().item()
    assert close(
        got["v_threshold"].double(),
        want["v_threshold"],
        size=size,
        tolerance=tolerance[torch.float32],
    )


@each_backend
@pytest.mark.parametrize(
    "layout", ["transposed", "channels_last", "every second", "stride 0 over T"]
)
def test_results_do_not_depend_on_the_memory_layout(backend, layout):
    """Neither the values nor the mask do: the mask depends on the logical index."""
    shape = (4, 3, 2, 5, 6)
    x, v0, upstream = draw(shape, seed=9)
    if layout == "transposed":
        x = x.transpose(0, 3).contiguous().transpose(0, 3)
    elif layout == "channels_last":
        x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
        upstream = {
            k: u.permute(*range(u.dim() - 3), -2, -1, -3).contiguous() for k, u in upstream.items()
        }
        upstream = {k: u.permute(*range(u.dim() - 3), -1, -3, -2) for k, u in upstream.items()}
    elif layout == "every second":
        x = x.repeat_interleave(2, -1)[..., ::2]
    else:
        x = x[:1].expand(shape)
    assert not x.is_contiguous()
    rule = {"tau": 2.3, "surrogate": Masked(ATan(), p=0.5)}
    learned = {"tau": torch.tensor(2.3, dtype=torch.float64)}
    plain = {k: u.contiguous() for k, u in upstream.items()}
    want = run(
        "reference", x.contiguous(), v0, rule=rule, learned=learned, upstream=plain, seed=SEED
    )
    got = run_or_skip(
        lambda backend: run(
            backend, x, v0, rule=rule, learned=learned, upstream=upstream, seed=SEED
        ),
        backend=backend,
    )
    for key in ("s", "u", "v"):
        assert torch.equal(got[key], want[key])
    assert close(got["x"], want["x"])
    assert close(got["v0"], want["v0"])
    assert close(got["tau"], want["tau"], size=100.0)


@each_backend
@pytest.mark.parametrize("reset", RESETS)
def test_the_default_state_is_rest(backend, reset):
    """Same outputs and gradients as with v0 = v_reset, or 0 for the soft reset."""
    x, _, upstream = draw((4, 3, 2, 5), seed=19)
    v0 = torch.full(x.shape[1:], RESETS[reset] or 0.0, dtype=torch.float64)
    rule = {"v_threshold": 0.9, "v_reset": RESETS[reset]}
    learned = {"tau": torch.tensor(2.3, dtype=torch.float64)}
    want = run("reference", x, v0, rule=rule, learned=learned, upstream=upstream)
    got = run_or_skip(
        lambda backend: run(backend, x, rule=rule, learned=learned, upstream=upstream),
        backend=backend,
    )
    for key in ("s", "u", "v"):
        assert torch.equal(got[key], want[key])
    assert close(got["x"], want["x"])
    assert close(got["tau"], want["tau"], size=100.0)


@each_backend
def test_calls_are_independent(backend):
    """Two forward passes before either backward pass do not affect each other."""
    x, _, upstream = draw((4, 3, 7), seed=10)
    y, _, _ = draw((4, 3, 7), seed=11)
    alone = x.clone().requires_grad_()
    run_or_skip(bs.lif, alone, backend=backend).spikes.backward(upstream["g"])
    x.requires_grad_(), y.requires_grad_()
    first, second = bs.lif(x, backend=backend), bs.lif(y, backend=backend)
    second.spikes.backward(upstream["g"])
    first.spikes.backward(upstream["g"])
    assert torch.equal(x.grad, alone.grad)
    assert not torch.equal(x.grad, y.grad)


# -------------------------------------------------------------------------- the mask in the kernels


def spike_gradient(backend, p, seed, x, *, wrap=Masked, **options):
    x = x.clone().requires_grad_()
    options = {"surrogate": wrap(ATan(), p=p)} | options
    out = run_or_skip(bs.lif, x, backend=backend, seed=seed, **options)
    out.spikes.sum().backward()
    return out.spikes.detach(), x.grad


@each_backend
def test_forward_is_the_same_for_every_p(backend):
    x, _, _ = draw((5, 3, 11), seed=12)
    plain = bs.lif(x, backend=backend)
    for p in (0.0, 0.3, 1.0):
        spikes, _ = spike_gradient(backend, p, 3, x)
        assert torch.equal(spikes, plain.spikes)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_p_zero_equals_no_mask_bit_for_bit(backend, dtype):
    x, _, _ = draw((5, 3, 11), seed=13, dtype=dtype)
    _, masked = spike_gradient(backend, 0.0, 3, x)
    _, plain = spike_gradient(backend, None, 3, x, wrap=lambda s, p: s)
    assert torch.equal(masked, plain)
    assert plain.abs().min() > 0


@each_backend
def test_p_one_blocks_all_gradients_through_spikes(backend):
    x, _, _ = draw((5, 3, 11), seed=14)
    _, masked = spike_gradient(backend, 1.0, 3, x)
    assert not masked.any()


@each_backend
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_exactly_the_elements_of_bs_dropped_are_dropped(backend, p):
    """Without temporal gradient dL/dx = gain h g is zero exactly for the elements of `bs.dropped`.

    Their fraction is p within 4 sigma.
    """
    x, _, _ = draw((5, 16, 1001), seed=15)
    seed = 2**37 + 5
    _, g = spike_gradient(backend, p, seed, x, temporal_gradient=False)
    assert torch.equal(g == 0, bs.dropped(seed, x.shape, p))
    assert abs((g == 0).double().mean().item() - p) < 4 * math.sqrt(p * (1 - p) / x.numel())
    _, other = spike_gradient(backend, p, seed + 1, x, temporal_gradient=False)
    assert not torch.equal(g == 0, other == 0)


@each_backend
def test_dropped_elements_still_pass_gradients_through_the_leak(backend):
    """With p = 1 and a loss on the state only, dv/dx = gain lam^(T-1-t) after the last spike."""
    x = torch.full((4, 1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    rule = HARD | {"seed": 1, "surrogate": Masked(ATan(), p=1.0)}
    out = run_or_skip(bs.lif, x, backend=backend, **rule)
    out.state.sum().backward()
    assert x.grad.flatten().tolist() == [1 / 16, 1 / 8, 1 / 4, 1 / 2]


@each_backend
def test_mask_p_overrides_p_of_the_surrogate(backend):
    x, _, _ = draw((5, 3, 11), seed=16)
    _, want = spike_gradient(backend, 0.8, 3, x)
    _, got = spike_gradient(backend, 0.1, 3, x, mask_p=torch.tensor(0.8, dtype=torch.float64))
    assert torch.equal(got, want)


@each_backend
def test_manual_seed_determines_the_mask(backend):
    x, _, _ = draw((5, 3, 11), seed=17)
    gradients = []
    for start in (4, 4, 5):
        torch.manual_seed(start)
        gradients.append(spike_gradient(backend, 0.5, None, x)[1])
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


@each_backend
def test_a_retained_graph_reuses_its_mask(backend):
    x, _, upstream = draw((5, 3, 11), seed=18)
    x.requires_grad_()
    out = run_or_skip(bs.lif, x, backend=backend, surrogate=Masked(ATan(), p=0.5))
    (first,) = torch.autograd.grad(out.spikes, x, upstream["g"], retain_graph=True)
    torch.rand(3)
    (second,) = torch.autograd.grad(out.spikes, x, upstream["g"])
    assert torch.equal(first, second)


@pytest.mark.parametrize("backend", [b for b in bs.backends() if b != "reference"])
def test_double_backward_is_refused(backend):
    x = torch.rand(3, 2, 4, requires_grad=True)
    out = run_or_skip(bs.lif, x, backend=backend)
    with pytest.raises(RuntimeError, match="double backward") as refusal:
        torch.autograd.grad(out.spikes.sum(), x, create_graph=True)
    assert "\n" not in str(refusal.value)


@each_backend
def test_nothing_is_saved_without_grad(backend):
    x = torch.rand(3, 2, 4)
    assert not run_or_skip(bs.lif, x, backend=backend).spikes.requires_grad
    with torch.no_grad():
        assert not bs.lif(x.requires_grad_(), backend=backend).spikes.requires_grad
