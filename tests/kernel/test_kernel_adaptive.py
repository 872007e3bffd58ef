"""The adaptive LIF neuron: all outputs and gradients against numpy, on every backend.

`numpy_reference` is the recursion of the paper (SE-adLIF), differentiated by hand. It shares no
code with the library; `reference` is differentiated by autograd.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.neurons import close, over_axes
from helpers.surrogates import FAMILIES

import backspike as bs
from backspike import ATan, Masked, Parametric, Rectangle, Sigmoid, kernel
from backspike.kernel import Constants, Record
from backspike.kernel.mask import dropped_at
from backspike.neuron.prepare import prepare
from backspike.options import AdaptiveLIF

SEED = 2**41 + 7
ON_CPU = [b for b in bs.backends() if b != "triton"]  # which refuses this neuron
FORMS = [(b, m) for b in ON_CPU for m in ("exact", "recompute") if b != "reference" or m == "exact"]
NAMES = ("tau", "theta", "w", "lam_w", "by_v", "by_s")
VALUES = {
    "tau": [2.3, 1.6], "theta": [0.9, 0.6], "w": [0.7, 1.4], "lam_w": [0.8, 0.93],
    "by_v": [0.4, 0.15], "by_s": [0.2, 0.5],
}  # fmt: skip


def numpy_reference(
    x, state, *, tau, theta, w, lam_w, by_v, by_s, v_reset, decay_input, h, rho, temporal, m, up
):
    """Outputs, and the gradients of sum(g s) + sum(gu u) + sum(gv state); learned ones unsummed."""
    T, gain, rest = len(x), 1 / tau if decay_input else 1.0, v_reset or 0.0
    U, S, V, A = (np.empty((T + 1, *x.shape[1:])) for _ in range(4))
    V[0], A[0] = state
    for t in range(1, T + 1):
        U[t] = (1 - 1 / tau) * V[t - 1] + rest / tau + gain * (x[t - 1] - A[t - 1])
        S[t] = U[t] >= theta
        V[t] = U[t] - theta * S[t] if v_reset is None else np.where(S[t] == 1, v_reset, U[t])
        A[t] = lam_w * A[t - 1] + by_v * (V[t] - rest) + by_s * S[t]
    terms = {name: np.empty_like(x) for name in ("x", *NAMES)}
    dV, dA = up["gv"]
    for t in range(T, 0, -1):
        z = U[t] - theta
        h_masked = h(z / w) / w * (1 if m is None else 1 - m[t - 1])
        dv = dV + by_v * dA
        jump = -theta if v_reset is None else v_reset - U[t]  # of v by a spike
        ds = up["g"][t - 1] + by_s * dA + rho * dv * jump
        du = up["gu"][t - 1] + ds * h_masked + dv * (1 if v_reset is None else 1 - S[t])
        terms["x"][t - 1] = gain * du
        terms["tau"][t - 1] = (
            du * (V[t - 1] - rest - (x[t - 1] - A[t - 1] if decay_input else 0)) / tau**2
        )
        terms["theta"][t - 1] = -ds * h_masked - (dv * S[t] if v_reset is None else 0)
        terms["w"][t - 1] = -ds * h_masked * z / w
        terms["lam_w"][t - 1] = dA * A[t - 1]
        terms["by_v"][t - 1] = dA * (V[t] - rest)
        terms["by_s"][t - 1] = dA * S[t]
        dV, dA = temporal * du * (1 - 1 / tau), temporal * (lam_w * dA - gain * du)
    outputs = {"s": S[1:], "u": U[1:], "state": np.stack((V[T], A[T])), "v0": np.stack((dV, dA))}
    return outputs | terms


def run(backend, x, v0, up, learned, *, seed, record=Record(membrane=True), **options):  # noqa: B008
    """One forward and backward pass; learned: values, or tensors whose gradients are computed."""
    leaves = {n: p.detach().clone().requires_grad_() for n, p in learned.items()}
    leaves |= {"x": x.detach().requires_grad_(), "v0": v0.detach().requires_grad_()}
    values = {n: leaves.get(n, VALUES[n][0]) for n in NAMES}
    parametric = isinstance(options["surrogate"], Parametric) or (
        isinstance(options["surrogate"], Masked)
        and isinstance(options["surrogate"].base, Parametric)
    )
    constants = Constants(values["tau"], values["theta"], values["w"] if parametric else None)
    neuron = AdaptiveLIF(**options)
    call = prepare(leaves["x"], leaves["v0"], neuron, constants, seed, None, 1, record)
    adaptation = tuple(values[n] for n in ("lam_w", "by_v", "by_s"))
    out = kernel.dispatch(backend, replace(call, adaptation=adaptation))
    torch.autograd.backward(
        (out.spikes, out.state, out.membrane)[: 2 + record.membrane],
        (up["g"], up["gv"], up["gu"])[: 2 + record.membrane],
    )
    result = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in leaves.items()}
    membrane = None if out.membrane is None else out.membrane.detach()
    return result | {"s": out.spikes.detach(), "u": membrane, "state": out.state.detach()}


def draw(shape=(6, 3, 2, 5), seed=3, dtype=torch.float64):
    r = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=r, dtype=torch.float64).to(dtype)

    state = torch.float64 if dtype == torch.float64 else torch.float32
    up = {"g": normal(*shape), "gu": normal(*shape).to(state), "gv": normal(2, *shape[1:])}
    return (
        normal(*shape) + 1.2,
        normal(2, *shape[1:]).abs().to(state),
        up | {"gv": up["gv"].to(state)},
    )


def tensors(per_channel, names=NAMES, dtype=torch.float64):
    return {n: torch.tensor(VALUES[n] if per_channel else VALUES[n][0], dtype=dtype) for n in names}


@pytest.mark.parametrize("surrogate", FAMILIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(("backend", "memory"), FORMS)
def test_every_combination_of_options(backend, memory, surrogate):
    x, v0, up = draw()
    dropped = dropped_at(torch.tensor(SEED), 0, x.shape, torch.tensor(0.4)).numpy()
    options = list(
        itertools.product(
            (0.0, -0.3, None), (True, False), (0.0, 0.6, 1.0), (True, False), (False, True),
            (False, True),
        )
    )  # fmt: skip
    # the formula of h does not interact with the other options
    if not isinstance(surrogate, Sigmoid):
        options = options[::23]
    for v_reset, decay_input, rho, temporal, masked, per_channel in options:
        wrapped = Masked(Parametric(surrogate), p=0.4) if masked else Parametric(surrogate)
        form = {"v_reset": v_reset, "decay_input": decay_input}
        got = run(
            backend, x, v0, up, tensors(per_channel), seed=SEED if masked else None,
            surrogate=wrapped, memory=memory, reset_gradient=rho, temporal_gradient=temporal,
            **form,
        )  # fmt: skip
        values = {n: np.array(v)[:, None] if per_channel else v[0] for n, v in VALUES.items()}
        want = numpy_reference(
            x.numpy(), v0.numpy(), **values, **form, h=FAMILIES[surrogate][0], rho=rho,
            temporal=float(temporal), m=dropped if masked else None,
            up={k: u.numpy() for k, u in up.items()},
        )  # fmt: skip
        assert 0.1 < got["s"].mean() < 0.9
        assert np.array_equal(got["s"].numpy(), want["s"])
        for key in ("u", "state", "x", "v0"):
            assert close(got[key], want[key]), (key, v_reset, decay_input, rho, temporal)
        for key in NAMES:
            terms = over_axes(want[key], got[key].shape)
            assert close(got[key], terms, size=np.abs(want[key]).sum()), (key, v_reset, rho)


@pytest.mark.parametrize("memory", ["bfloat16", "8bit", "1bit"])
@pytest.mark.parametrize("v_reset", [0.0, None])
@pytest.mark.skipif("cpu" not in ON_CPU, reason="needs the C kernel")
def test_rounded_membranes_give_the_same_gradients_in_c_and_torch(memory, v_reset):
    if memory == "1bit" and v_reset is not None:
        pytest.skip("1bit needs the soft reset")
    x, v0, up = draw((6, 3, 40, 9))
    learned = tensors(False, ("lam_w", "by_v", "by_s") if memory == "bfloat16" else ())
    options = {"surrogate": Rectangle(1.0), "v_reset": v_reset, "memory": memory, "seed": None}
    record = Record()
    got, want = (run(b, x, v0, up, learned, record=record, **options) for b in ("cpu", "eager"))
    exact = run("eager", x, v0, up, learned, record=record, **(options | {"memory": "exact"}))
    for key in ("x", "v0", *learned):
        assert close(got[key], want[key]), key
        if memory == "1bit":
            assert close(got[key], exact[key]), key
    assert (exact["x"] != 0).double().mean() > 0.2


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_spikes_in_every_dtype_are_those_of_the_reference(backend, dtype):
    x, v0, up = draw((7, 4, 3, 90), dtype=dtype)
    options = {"surrogate": ATan(), "seed": None, "v_reset": 0.0}
    got, want = (run(b, x, v0, up, {}, **options) for b in (backend, "reference"))
    for key in ("s", "u", "state"):
        assert torch.equal(got[key], want[key]), key
    for key in ("x", "v0"):
        assert got[key].dtype == want[key].dtype
        tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]
        assert close(got[key].double(), want[key].double(), tolerance=tolerance), key


@pytest.mark.parametrize("backend", [b for b in ON_CPU if b != "reference"])
def test_moments_and_channels_last_inputs(backend):
    x, v0, _ = draw((5, 2, 3, 4, 6))
    last = x.movedim(2, -1).contiguous().movedim(-1, 2).requires_grad_()
    plain = x.clone().requires_grad_()
    gradients = []
    for leaf, name in ((last, backend), (plain, "reference")):
        layer = bs.AdaptiveLIF(
            v_threshold=0.6, learn=("a", "b", "tau_adaptation"), channels=3, backend=name
        ).double()
        call = layer.prepare(leaf, v0, record=Record(moments=True))
        out = kernel.dispatch(name, call)
        (out.moments.mean.square().sum() + out.moments.square.sum() + out.spikes.sum()).backward()
        gradients.append([leaf.grad, *(p.grad for p in layer.parameters()), out.spikes.detach()])
    for got, want in zip(*gradients):
        assert close(got, want)


@pytest.mark.parametrize("backend", [b for b in ON_CPU if b != "reference"])
@pytest.mark.parametrize("memory", ["exact", "recompute"])
def test_a_repeated_input(backend, memory):
    x, results = draw((1, 3, 2, 5))[0], []
    for y, repeats in ((x, 4), (x.expand(4, *x.shape[1:]), 1)):
        leaf = y.clone().requires_grad_()
        layer = bs.AdaptiveLIF(
            v_threshold=0.4, learn=("tau", "a"), memory=memory, backend=backend
        ).double()
        s = layer(leaf, repeats=repeats)
        s.sum().backward()
        results.append((s.detach(), leaf.grad.sum(0, True), *(p.grad for p in layer.parameters())))
    assert results[0][0].shape[0] == 4
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-14)


@pytest.mark.skipif("cpu" not in ON_CPU, reason="needs the C kernel")
def test_gradients_do_not_depend_on_threads():
    x, v0, up = draw((5, 8, 2, 300), dtype=torch.float32)
    learned, results = tensors(True, ("lam_w", "by_v", "by_s")), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run("cpu", x, v0, up, learned, seed=None, surrogate=ATan()))
    finally:
        torch.set_num_threads(before)
    for key in results[0]:
        assert torch.equal(results[0][key], results[1][key]), key
