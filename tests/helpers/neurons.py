"""A reference neuron in numpy, and inputs, options and comparisons for tests of backends."""

import numpy as np
import torch

import backspike as bs
from backspike import Masked, Parametric, Rectangle
from backspike.kernel import Constants, Record
from backspike.neuron import prepare as checked
from backspike.options import CLIF, LIF
from helpers.surrogates import FAMILIES

# the backends that accept every option used in this file
EXACT = tuple(b for b in ("cpu", "eager", "reference") if b in bs.backends())


def numpy_reference(
    x,
    v0,
    *,
    tau,
    theta,
    v_reset,
    decay_input,
    h,
    rho,
    temporal,
    w=1.0,
    m=None,
    h2=None,
    keep=1.0,
    g,
    gu,
    c,
):
    """Spikes, membrane, state, and the gradients of sum(g s) + sum(gu u) + sum(c v[T-1]).

    x: `[T, B, C, R]`. tau, theta, w: numbers, or arrays that broadcast against `[B, C, R]`. h: the
    derivative for width 1. m: where elements are dropped. h2: the derivative used there. keep: the
    other elements are divided by it. dtau, dtheta and dw are returned unsummed, `[T, B, C, R]`.
    """
    T, soft = len(x), v_reset is None
    rest = 0.0 if soft else v_reset
    lam, offset, gain = 1 - 1 / tau, rest / tau, 1 / tau if decay_input else 1.0
    u, s, before = np.empty_like(x), np.empty_like(x), np.empty_like(x)
    v = np.full_like(x[0], rest) if v0 is None else v0
    for t in range(T):
        before[t] = v
        u[t] = (lam * v + offset) + gain * x[t]
        s[t] = u[t] >= theta
        v = u[t] - theta * s[t] if soft else (1 - s[t]) * u[t] + s[t] * v_reset
    dx, dtau, dtheta, dw = (np.empty_like(x) for _ in range(4))
    for t in reversed(range(T)):
        z = u[t] - theta
        h_base = h(z / w) / w
        if m is not None:
            h_base = h_base * (1 - m[t]) / keep
        full = h_base if h2 is None else h_base + m[t] * h2(z)
        G = g[t] - rho * c * theta if soft else g[t] + rho * c * (v_reset - u[t])
        delta = gu[t] + G * full + (c if soft else c * (1 - s[t]))
        dx[t] = gain * delta
        dtheta[t] = -G * full - (c * s[t] if soft else 0)
        dtau[t] = delta * (before[t] - rest - (x[t] if decay_input else 0)) / tau**2
        dw[t] = G * -(z / w) * h_base
        c = lam * delta * temporal
    return {"s": s, "u": u, "v": v, "x": dx, "v0": c, "tau": dtau, "theta": dtheta, "w": dw}


def prepare(
    x,
    v0,
    *,
    tau,
    v_threshold,
    width=None,
    seed=None,
    mask_p=None,
    repeats=1,
    complementary=False,
    **options,
):
    """A call of a kernel; record_...: what is recorded."""
    record = Record(
        **{
            name: options.pop(f"record_{name}")
            for name in Record._fields
            if f"record_{name}" in options
        }
    )
    neuron, constants = (
        (CLIF if complementary else LIF)(**options),
        Constants(tau, v_threshold, width),
    )
    return checked.prepare(x, v0, neuron, constants, seed, mask_p, repeats, record)


def run(backend, x, v0=None, *, rule, learned=None, upstream=None, seed=None):
    """One forward and backward pass: the dict of `numpy_reference`, with summed gradients."""
    x = x.clone().requires_grad_() if x.is_contiguous() else x.detach().requires_grad_()
    v0 = None if v0 is None else v0.clone().requires_grad_()
    learned = {name: p.clone().requires_grad_() for name, p in (learned or {}).items()}
    out = bs.lif(x, v0, backend=backend, record_membrane=True, seed=seed, **{**rule, **learned})
    result = {"s": out.spikes, "u": out.membrane, "v": out.state}
    if upstream is not None:
        torch.autograd.backward(
            [out.spikes, out.state, out.membrane], [upstream["g"], upstream["c"], upstream["gu"]]
        )
        result |= {"x": x.grad, "v0": None if v0 is None else v0.grad}
        result |= {name: p.grad for name, p in learned.items()}
    return {k: None if v is None else v.detach() for k, v in result.items()}


RESETS = {"hard 0": 0.0, "hard -0.3": -0.3, "soft": None}


NARROW = Rectangle(width=0.5)


MASKS = {
    "no mask": lambda b: b,
    "p=0.5": lambda b: Masked(b, p=0.5),
    "replace": lambda b: Masked(b, p=0.5, replace=NARROW),
    "rescale": lambda b: Masked(b, p=0.35, rescale=True),
}


SHAPE = (T, B, C, R) = (5, 3, 2, 4)


SEED = 2**41 + 17


CHANNELS = {"tau": [2.3, 3.1], "v_threshold": [0.9, 0.7], "width": [0.8, 1.7]}


LEARNED = {
    "floats": {},
    "scalars": {name: values[0] for name, values in CHANNELS.items()},
    "width per channel": {"width": CHANNELS["width"]},
    "all per channel": CHANNELS,
}


def draw(shape=SHAPE, seed=0, dtype=torch.float64, mean=1.6):
    """x, v0 and the gradients of the spikes (g), the membrane (gu) and the state (c)."""
    r = torch.Generator().manual_seed(seed)
    x, g, gu = (torch.randn(shape, generator=r, dtype=torch.float64) for _ in range(3))
    v0, c = (torch.randn(shape[1:], generator=r, dtype=torch.float64) for _ in range(2))
    state = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        (x + mean).to(dtype),
        v0.mul(0.3).to(state),
        {"g": g.to(dtype), "gu": gu.to(state), "c": c.to(state)},
    )


def close(got, want, size=None, tolerance=1e-12):
    """Whether all differences are within the tolerance, relative to `size`.

    size: by default the largest expected value.
    """
    got, want = np.asarray(got), np.asarray(want)
    size = max(1e-3, np.abs(want).max()) if size is None else size
    return got.shape == want.shape and bool((np.abs(got - want) <= tolerance * size).all())


def over_axes(terms, shape):
    return terms.sum((0, 1, 3)) if shape else terms.sum()


def check_case(
    x,
    v0,
    upstream,
    v_reset,
    decay_input,
    rho,
    temporal,
    surrogate,
    mask,
    learned,
    masks,
    backends=EXACT,
):
    """Compare every gradient of every backend with numpy; return the names of those that differ."""
    base = Parametric(surrogate) if "width" in LEARNED[learned] else surrogate
    tensors = {name: torch.tensor(v, dtype=torch.float64) for name, v in LEARNED[learned].items()}
    wrapped = MASKS[mask](base)
    rule = {
        "tau": 2.3,
        "v_threshold": 0.9,
        "v_reset": v_reset,
        "decay_input": decay_input,
        "surrogate": wrapped,
    }
    rule |= {"reset_gradient": rho, "temporal_gradient": temporal}
    numbers = {"tau": 2.3, "v_threshold": 0.9, "width": 1.0} | {
        name: np.array(v)[:, None] if np.ndim(v) else v for name, v in LEARNED[learned].items()
    }
    want = numpy_reference(
        x.numpy(),
        v0.numpy(),
        tau=numbers["tau"],
        theta=numbers["v_threshold"],
        w=numbers["width"],
        v_reset=v_reset,
        decay_input=decay_input,
        h=FAMILIES[surrogate][0],
        rho=rho,
        temporal=temporal,
        m=None if mask == "no mask" else masks[wrapped.p],
        h2=(lambda z: (np.abs(z) < 0.25) / 0.5) if mask == "replace" else None,
        keep=0.65 if mask == "rescale" else 1.0,
        **{k: u.numpy() for k, u in upstream.items()},
    )
    bad = []
    for backend in backends:
        got = run(backend, x, v0, rule=rule, learned=tensors, upstream=upstream, seed=SEED)
        bad += [
            f"{backend} {k}" for k in ("s", "u", "v") if not close(got[k], want[k], tolerance=1e-14)
        ]
        bad += [f"{backend} dx"] if not close(got["x"], want["x"]) else []
        # without temporal gradient, autograd has no path to v0
        g_v0 = torch.zeros_like(v0) if got["v0"] is None else got["v0"]
        bad += [f"{backend} dv0"] if not close(g_v0, want["v0"]) else []
        for name, key in (("tau", "tau"), ("v_threshold", "theta"), ("width", "w")):
            if name in tensors:
                size = over_axes(np.abs(want[key]), tensors[name].shape)
                if not close(got[name], over_axes(want[key], tensors[name].shape), size=size):
                    bad.append(f"{backend} d{name}")
    return bad


def grid(shape, seed=0, low=-64, high=192):
    """Currents on a grid of 1/64, for which float32 membranes are exact (tau 2, T <= 16)."""
    r = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=r).double() / 64
