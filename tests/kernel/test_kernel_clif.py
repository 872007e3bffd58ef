"""The complementary LIF neuron: traces computed by hand, and all gradients against numpy.

`numpy_reference` is the paper's recursion, differentiated by hand with the chain rule written out
path by path. It shares no code with the library. The backend `reference` is differentiated by
autograd, so four derivations are compared here, with `eager` and `cpu`.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.neurons import close, draw, over_axes, prepare
from helpers.surrogates import FAMILIES

import backspike as bs
from backspike import ATan, Masked, Parametric, Rectangle, Sigmoid
from backspike.kernel.cpu import clif, library
from backspike.kernel.mask import dropped_at
from backspike.neuron.lif import compute

each_backend = pytest.mark.parametrize("backend", bs.backends())
FORMS = [
    (b, m)
    for b in bs.backends()
    for m in ("exact", "recompute")
    if b != "reference" or m == "exact"
]
SEED = 2**41 + 7


def sig(x):
    return 1 / (1 + np.exp(-x))


def numpy_reference(
    x, state, *, tau, theta, decay_input, h, rho, temporal, w=1.0, m=None, g, gu, gv
):
    """Spikes, membrane, state, and the gradients of sum(g s) + sum(gu u) + sum(gv state).

    x: `[T, B, C, R]`. m: where elements of h are dropped.
    """
    T, gain = len(x), 1 / tau if decay_input else 1.0
    u, s, V, M = (np.empty((T + 1, *x.shape[1:])) for _ in range(4))
    V[0], M[0] = state
    for t in range(1, T + 1):
        u[t] = (1 - 1 / tau) * V[t - 1] + gain * x[t - 1]
        s[t] = u[t] >= theta
        M[t] = M[t - 1] * sig(u[t] / tau) + s[t]
        V[t] = u[t] - s[t] * (theta + sig(M[t]))
    dx, dtau, dtheta, dw = (np.empty_like(x) for _ in range(4))
    dV, dM = gv
    for t in range(T, 0, -1):
        h_masked = h((u[t] - theta) / w) / w * (1 if m is None else 1 - m[t - 1])
        dM = dM - dV * s[t] * sig(M[t]) * sig(-M[t])
        dS = g[t - 1] + dM - rho * dV * (theta + sig(M[t]))
        d_ratio = dM * M[t - 1] * sig(u[t] / tau) * sig(-u[t] / tau)  # gradient of u / tau
        dU = gu[t - 1] + dS * h_masked + dV + d_ratio / tau
        dx[t - 1] = dU * gain
        dtheta[t - 1] = -dS * h_masked - dV * s[t]
        dw[t - 1] = -dS * h_masked * (u[t] - theta) / w
        dtau[t - 1] = (dU * (V[t - 1] - (x[t - 1] if decay_input else 0)) - d_ratio * u[t]) / tau**2
        dV, dM = temporal * dU * (1 - 1 / tau), temporal * dM * sig(u[t] / tau)
    outputs = {
        "s": s[1:],
        "u": u[1:],
        "state": np.stack((V[T], M[T])),
        "x": dx,
        "v0": np.stack((dV, dM)),
    }
    return outputs | {"tau": dtau, "theta": dtheta, "w": dw}


def run(backend, x, v0, upstream, *, tau, theta, w=None, memory="exact", **options):
    """One forward and backward pass, with the gradients of the learned tensors tau, theta and w."""
    x, v0 = x.detach().requires_grad_(), v0.detach().requires_grad_()
    learned = {"tau": tau.detach().requires_grad_(), "theta": theta.detach().requires_grad_()}
    if w is not None:
        learned["w"] = w.detach().requires_grad_()
    call = prepare(
        x, v0, tau=learned["tau"], v_threshold=learned["theta"], width=learned.get("w"),
        v_reset=None, complementary=True, memory=memory, record_membrane=True,
        **{"reset_gradient": 1.0, "temporal_gradient": True, **options},
    )  # fmt: skip
    out, _ = compute(call, backend)
    pairs = zip(
        (out.spikes, out.state, out.membrane), (upstream["g"], upstream["gv"], upstream["gu"])
    )
    sum((a * b).sum() for a, b in pairs).backward()
    gradients = {
        k: torch.zeros_like(p) if p.grad is None else p.grad
        for k, p in {"x": x, "v0": v0, **learned}.items()
    }
    return {
        "s": out.spikes.detach(),
        "u": out.membrane.detach(),
        "state": out.state.detach(),
        **gradients,
    }


def draw_inputs(shape=(6, 3, 2, 5), seed=0, dtype=torch.float64):
    r = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=r, dtype=dtype)

    x, v0 = normal(*shape) + 0.8, normal(2, *shape[1:]).abs()
    return x, v0, {"g": normal(*shape), "gu": normal(*shape), "gv": normal(2, *shape[1:])}


def check(x, v0, upstream, got, want, tolerance=1e-12):
    assert np.array_equal(got["s"].numpy(), want["s"])
    for key in ("u", "state", "x", "v0"):
        assert close(got[key], torch.from_numpy(np.array(want[key])), tolerance=tolerance), key
    for key in ("tau", "theta", "w"):
        if key in got:
            terms = want[key]
            assert close(
                got[key],
                over_axes(terms, got[key].shape),
                size=abs(terms).sum(),
                tolerance=tolerance,
            ), key


@pytest.mark.parametrize("surrogate", FAMILIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("backend", "memory"), FORMS)
def test_every_combination_of_options(backend, memory, surrogate):
    x, v0, upstream = draw_inputs(seed=3)
    dropped = dropped_at(torch.tensor(SEED), 0, x.shape, torch.tensor(0.4)).numpy()
    options = list(
        itertools.product(
            (True, False), (0.0, 0.6, 1.0), (True, False), (False, True), (False, True)
        )
    )
    # the formula of h does not interact with the other options
    if not isinstance(surrogate, Sigmoid):
        options = [options[0], options[11], options[-4], options[-1]]
    for decay_input, rho, temporal, masked, per_channel in options:
        constants = {"tau": [2.3, 1.6], "theta": [0.9, 0.6], "w": [0.7, 1.4]}
        if not per_channel:
            constants = {k: v[0] for k, v in constants.items()}
        learned = {k: torch.tensor(v, dtype=torch.float64) for k, v in constants.items()}
        wrapped = Masked(Parametric(surrogate), p=0.4) if masked else Parametric(surrogate)
        form = {"decay_input": decay_input, "reset_gradient": rho, "temporal_gradient": temporal}
        got = run(
            backend,
            x,
            v0,
            upstream,
            **learned,
            memory=memory,
            surrogate=wrapped,
            seed=SEED if masked else None,
            **form,
        )
        broadcast = {k: np.array(v)[:, None] if per_channel else v for k, v in constants.items()}
        want = numpy_reference(
            x.numpy(), v0.numpy(), **broadcast,
            decay_input=decay_input, rho=rho, temporal=float(temporal),
            h=FAMILIES[surrogate][0], m=dropped if masked else None,
            **{k: u.numpy() for k, u in upstream.items()},
        )  # fmt: skip
        assert 0.1 < got["s"].mean() < 0.9
        check(x, v0, upstream, got, want)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_trace_computed_by_hand(backend, dtype):
    """tau 2, theta 1, input not decayed: an immediate spike, then a reset by 1 + sig(m)."""
    x = torch.tensor([1.5, 1.0, 0.25], dtype=dtype).view(3, 1, 1).expand(3, 2, 3)
    layer = bs.CLIF(backend=backend)
    with bs.record(layer) as records, torch.no_grad():
        spikes = layer(x)
    v, m = 1.5 - (1 + sig(1)), 1.0  # m = 0 sig(0.75) + 1
    u = [1.5]
    for current in (1.0, 0.25):
        u.append(0.5 * v + current)
        fired = u[-1] >= 1
        m = m * sig(u[-1] / 2) + fired
        v = u[-1] - fired * (1 + sig(m))
    assert spikes[:, 1, 2].tolist() == [1, 0, 0]
    (out,) = records.values()
    assert out.membrane[:, 1, 2].tolist() == pytest.approx(u, rel=1e-6)
    assert out.state[:, 1, 2].tolist() == pytest.approx([v, m], rel=1e-6)
    assert spikes.dtype == dtype


def test_the_numpy_formulas_include_the_complementary_path():
    """Without spikes m is 0 and the neuron is LIF; after a spike, gradients also pass through m."""
    x, v0, upstream = draw_inputs(seed=5)
    rule = {
        "tau": 2.0,
        "theta": 0.8,
        "decay_input": False,
        "h": lambda z: np.ones_like(z),
        "rho": 0.0,
        "temporal": 1.0,
    }
    gradients = {k: u.numpy() for k, u in upstream.items()}
    with_m = numpy_reference(x.numpy(), v0.numpy(), **rule, **gradients)
    only_s = numpy_reference(x.numpy(), v0.numpy() * 0, **rule, **gradients)
    assert not np.allclose(with_m["x"], only_s["x"])
    silent = x.clamp(max=0.1).requires_grad_()
    a, b = (
        bs.CLIF(tau=2.0),
        bs.LIF(
            tau=2.0, v_reset=None, decay_input=False, surrogate=Rectangle(0.1), reset_gradient=0.0
        ),
    )
    assert not a(silent).any()
    assert torch.equal(
        a(silent, torch.zeros(2, *x.shape[1:])).state[0], b(silent, torch.zeros(x.shape[1:])).state
    )


@pytest.mark.parametrize(("backend", "memory"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(backend, memory, dtype, tolerance):
    x, v0, upstream = draw_inputs((8, 3, 2, 70), seed=7)
    x, upstream["g"] = (x * 64).round().to(dtype) / 64, upstream["g"].to(dtype)
    state, theta = v0.float(), torch.tensor(0.75)
    upstream_32 = {"g": upstream["g"], "gu": upstream["gu"].float(), "gv": upstream["gv"].float()}
    rule = {"surrogate": Sigmoid(3.0), "decay_input": True}
    got = run(
        backend, x, state, upstream_32, tau=torch.tensor(2.0), theta=theta, memory=memory, **rule
    )
    upstream_64 = {k: u.double() for k, u in upstream_32.items()}
    want = run(
        "reference",
        x.double(),
        state.double(),
        upstream_64,
        tau=torch.tensor(2.0).double(),
        theta=theta.double(),
        **rule,
    )
    assert torch.equal(got["s"].double(), want["s"])
    assert (got["s"].dtype, got["x"].dtype, got["u"].dtype, got["state"].dtype) == (
        dtype,
        dtype,
        torch.float32,
        torch.float32,
    )
    for key in ("u", "state", "v0"):
        assert close(got[key].double(), want[key], tolerance=tolerance[torch.float32]), key
    assert close(got["x"].double(), want["x"], tolerance=tolerance[dtype])
    for key in ("tau", "theta"):
        assert close(got[key].double(), want[key], size=1e3, tolerance=tolerance[torch.float32])


@each_backend
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 2), (5, 1, 1), (4, 3, 129), (2, 2, 3, 1, 43), (2, 3, 700)]
)
def test_unusual_shapes(backend, shape):
    x, v0, upstream = draw_inputs(shape, seed=8)
    learned = {
        "tau": torch.tensor(2.3, dtype=torch.float64),
        "theta": torch.tensor(0.8, dtype=torch.float64),
    }
    rule = {"surrogate": ATan(), "decay_input": False}
    got, want = (run(b, x, v0, upstream, **learned, **rule) for b in (backend, "reference"))
    for key in ("s", "u", "state", "x", "v0", "tau", "theta"):
        assert close(got[key], want[key], size=1e3 if key in learned else None), key


@each_backend
def test_empty_batch(backend):
    x = torch.zeros(3, 0, 4, requires_grad=True)
    out = bs.CLIF(backend=backend)(x, torch.zeros(2, 0, 4))
    out.spikes.sum().backward()
    assert (out.spikes.shape, out.state.shape, x.grad.shape) == ((3, 0, 4), (2, 0, 4), (3, 0, 4))


@each_backend
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "stride 0 over T"])
def test_results_do_not_depend_on_the_memory_layout(backend, layout):
    x, v0, upstream = draw_inputs((4, 3, 2, 5, 6), seed=9)
    if layout == "channels_last":
        x, v0, upstream = (
            x.movedim(2, -1).contiguous().movedim(-1, 2),
            v0.movedim(2, -1).contiguous().movedim(-1, 2),
            {k: u.movedim(2, -1).contiguous().movedim(-1, 2) for k, u in upstream.items()},
        )
    elif layout == "transposed":
        x, v0 = (
            x.transpose(0, 3).contiguous().transpose(0, 3),
            v0.transpose(0, 1).contiguous().transpose(0, 1),
        )
    else:
        x = x[:1].expand(x.shape)
    learned = {
        "tau": torch.tensor([2.3, 1.7], dtype=torch.float64),
        "theta": torch.tensor(0.8, dtype=torch.float64),
    }
    rule = {"surrogate": Masked(ATan(), p=0.5), "decay_input": True, "seed": SEED}
    plain = {k: u.contiguous() for k, u in upstream.items()}
    got = run(backend, x, v0, upstream, **learned, **rule)
    want = run("reference", x.contiguous(), v0.contiguous(), plain, **learned, **rule)
    for key in ("s", "u", "state", "x", "v0", "tau", "theta"):
        assert close(got[key], want[key], size=1e3 if key in learned else None), key


@pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
def test_cpu_results_do_not_depend_on_threads_and_streaming_stores(monkeypatch):
    x, v0, upstream = draw_inputs((5, 4, 3, 1500), seed=10, dtype=torch.float32)
    learned = {"tau": torch.tensor(2.3), "theta": torch.tensor(0.8)}
    results = []
    try:
        for threads, grain, stream in ((1, 16384, 2**24), (2, 1, 2**24), (3, 1, 0)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(library, "GRAIN", grain)
            monkeypatch.setattr(library, "STREAM", stream)
            results.append(
                run("cpu", x, v0, upstream, **learned, surrogate=ATan(), decay_input=True)
            )
    finally:
        torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(other[key], results[0][key]) for key in other)


@pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
def test_cpu_scratch_has_as_many_rows_as_the_c_kernel():
    source = Path(clif.__file__).parents[1] / "csrc" / "clif.c"
    with open(source, encoding="utf8") as f:
        (line,) = [line for line in f if "PASTS }" in line]
    assert len(line.split("{")[1].split("}")[0].split(",")) - 1 == clif._PASTS


@each_backend
def test_moments_and_their_gradient(backend):
    """E(u) and E(u^2) per timestep and channel, and the gradient through them alone."""
    x, v0, _ = draw_inputs(seed=11)
    leaf = x.clone().requires_grad_()
    options = {
        "tau": 2.0,
        "v_threshold": 0.8,
        "v_reset": None,
        "decay_input": False,
        "surrogate": ATan(),
    }
    options |= {"reset_gradient": 1.0, "temporal_gradient": True, "complementary": True}
    _, moments = compute(prepare(leaf, v0, record_moments=True, **options), backend)
    weights = draw((2, 6, 2), seed=12)[0]
    (weights[0] * moments.mean + weights[1] * moments.square).sum().backward()
    other = x.clone().requires_grad_()
    u = compute(prepare(other, v0, record_membrane=True, **options), "reference")[0].membrane
    (weights[0] * u.mean((1, 3)) + weights[1] * (u**2).mean((1, 3))).sum().backward()
    torch.testing.assert_close(moments.mean, u.mean((1, 3)).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moments.square, (u**2).mean((1, 3)).detach(), rtol=1e-12, atol=1e-12)
    assert close(leaf.grad, other.grad)


@each_backend
def test_no_grad_saves_nothing_and_the_default_state_is_zero(backend):
    x, v0, _ = draw_inputs(seed=13)
    layer = bs.CLIF(backend=backend)
    assert not layer(x).requires_grad
    assert torch.equal(layer(x), layer(x, torch.zeros_like(v0)).spikes)
    if backend != "reference":
        with pytest.raises(RuntimeError, match="double backward"):
            torch.autograd.grad(layer(x.requires_grad_()).sum(), x, create_graph=True)


@pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
def test_large_potentials_do_not_overflow_in_cpu():
    x = torch.tensor([-1e30, -3e4, -200.0, 0.0, 200.0, 3e4, 1e30]).view(1, 1, -1).expand(3, 2, 7)
    leaf = x.clone().requires_grad_()
    layer, reference = (
        bs.CLIF(backend="cpu", surrogate=ATan()),
        bs.CLIF(backend="reference", surrogate=ATan()),
    )
    out = layer(leaf, torch.zeros(2, 2, 7))
    out.spikes.sum().backward()
    assert leaf.grad.isfinite().all()
    want = reference(x, torch.zeros(2, 2, 7))
    assert torch.equal(out.spikes, want.spikes)
    torch.testing.assert_close(out.state, want.state, rtol=1e-5, atol=1e-6)
    assert math.isfinite(out.state.sum().item())
