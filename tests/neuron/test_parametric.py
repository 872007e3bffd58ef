"""PSG: a learned width against finite differences and an exact scaling; and `check_gradients`.

The primitive path, written here in numpy: spikes keep their values, and their small changes follow
the primitive P(z/w). Nothing in it is differentiated by hand.
"""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import backspike as bs
from backspike.neuron.lif import WIDTH_RANGE, neuron_parameters

SEED = 20240
PRIMITIVE = {  # of width 1, independent of the library
    bs.Sigmoid(alpha=3.0): lambda z: 1 / (1 + np.exp(-3 * z)),
    bs.ATan(alpha=2.5): lambda z: np.arctan(math.pi / 2 * 2.5 * z) / math.pi,
    bs.Triangle(alpha=0.6): lambda z: np.where(
        abs(z) < 1 / 0.6, 0.6 * z - 0.5 * 0.36 * z * abs(z), 0.5 * np.sign(z)
    ),
}


def path(x, v0, w, frozen=None, *, P, tau, theta, v_reset, rho, keep):
    """Smooth spikes `[T, B, C, R]` of the primitive path around the trajectory `frozen`.

    None stands for its own trajectory.
    """
    v, spikes, trajectory = v0, [], []
    for t in range(len(x)):
        u = (1 - 1 / tau) * v + (v_reset or 0) / tau + x[t] / tau
        p = P((u - theta) / w)
        s0, p0 = ((u >= theta).astype(float), p) if frozen is None else frozen[t]
        trajectory.append((s0, p0))
        change = (p - p0) * keep[t]
        spikes.append(s0 + change)
        s = s0 + rho * change
        v = u - theta * s if v_reset is None else (1 - s) * u + s * v_reset
    return np.stack(spikes), v, trajectory


@pytest.mark.parametrize("surrogate", PRIMITIVE, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
@pytest.mark.parametrize("p", [None, 0.4])
@pytest.mark.parametrize("backend", ["eager", "reference"])
def test_gradient_of_width_by_finite_differences(surrogate, v_reset, p, backend):
    shape = 6, 3, 4, 2
    rng = np.random.default_rng(5)
    x, v0 = rng.normal(1.2, 1.5, shape), rng.normal(0, 0.5, shape[1:])
    r, r_v = rng.normal(size=shape), rng.normal(size=shape[1:])
    w = np.array([0.6, 1.0, 1.7, 2.4])
    keep = np.ones(shape) if p is None else 1.0 - bs.dropped(SEED, shape, p).numpy()
    options = {
        "P": PRIMITIVE[surrogate],
        "tau": 2.3,
        "theta": 0.8,
        "v_reset": v_reset,
        "rho": 0.7,
        "keep": keep,
    }
    s, _, frozen = path(x, v0, w[:, None], **options)
    assert 0.1 < s.mean() < 0.6

    def loss(width):
        spikes, v, _ = path(x, v0, width[:, None], frozen, **options)
        return (r * spikes).sum() + (r_v * v).sum()

    eps = 1e-6
    want = [(loss(w + eps * e) - loss(w - eps * e)) / (2 * eps) for e in np.eye(4)]

    psg = bs.Parametric(surrogate, per_channel=True)
    width = torch.tensor(w, requires_grad=True)
    out = bs.lif(
        torch.tensor(x),
        torch.tensor(v0),
        tau=2.3,
        v_threshold=0.8,
        v_reset=v_reset,
        decay_input=True,
        reset_gradient=0.7,
        surrogate=psg if p is None else bs.Masked(psg, p),
        width=width,
        seed=None if p is None else SEED,
        backend=backend,
    )
    np.testing.assert_array_equal(out.spikes.detach().numpy(), s)
    ((torch.tensor(r) * out.spikes).sum() + (torch.tensor(r_v) * out.state).sum()).backward()
    np.testing.assert_allclose(width.grad.numpy(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("v_reset", [0.0, -0.3, None])
@pytest.mark.parametrize("mask", [False, True])
def test_width_w_equals_width_one_after_scaling(v_reset, mask):
    """Dividing current, threshold, rest and v0 by w gives the same spikes and weight gradients."""
    w = 1.75
    g = torch.Generator().manual_seed(3)
    a, weight, v0, r = (
        2 * torch.randn(s, generator=g, dtype=torch.float64)
        for s in ((7, 5, 4), (6, 4), (5, 6), (7, 5, 6))
    )

    def gradient(scale, width):
        W = weight.clone().requires_grad_()
        psg = bs.Parametric(bs.Triangle(alpha=0.5))
        out = bs.lif(
            (a @ W.T) / scale,
            v0 / scale,
            tau=3.0,
            v_threshold=0.6 / scale,
            v_reset=None if v_reset is None else v_reset / scale,
            surrogate=bs.Masked(psg, 0.5) if mask else psg,
            width=torch.tensor(width, dtype=torch.float64),
            seed=11 if mask else None,
        )
        (r * out.spikes).sum().backward()
        return out.spikes, W.grad

    (s, got), (s_scaled, want) = gradient(1.0, w), gradient(w, 1.0)
    assert torch.equal(s, s_scaled)
    assert 0.1 < s.mean() < 0.6
    assert want.abs().max() > 0.1
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def network(surrogate=bs.Parametric(bs.ATan()), **options):  # noqa: B008  (a frozen value)
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), bs.LIF(surrogate=surrogate, **options), nn.Linear(5, 2))


def frames():
    return torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(1)) * 2


def test_the_layer_learns_the_logarithm_of_the_width():
    layer = bs.LIF(surrogate=bs.Parametric(bs.ATan())).double()
    with torch.no_grad():
        layer.log_width.fill_(math.log(1.6))
    x = frames().double()
    layer(x).square().sum().backward()
    width = torch.tensor(1.6, dtype=torch.float64, requires_grad=True)
    bs.lif(x, surrogate=bs.Parametric(bs.ATan()), width=width).spikes.square().sum().backward()
    torch.testing.assert_close(layer.log_width.grad, 1.6 * width.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("far", [-10.0, 10.0])
def test_width_is_clamped(far):
    layer = bs.LIF(surrogate=bs.Parametric(bs.ATan()))
    with torch.no_grad():
        layer.log_width.fill_(far)
    layer(frames())
    assert layer.log_width.exp().item() == pytest.approx(WIDTH_RANGE[far > 0])


def test_neuron_parameters_are_listed_once():
    model = network(learn=("tau", "threshold"))
    assert {id(p) for p in neuron_parameters(model)} == {id(p) for p in model[1].parameters()}
    assert len(neuron_parameters(model)) == 3
    model[1].threshold.requires_grad_(False)
    assert len(neuron_parameters(model)) == 2
    assert len(neuron_parameters(nn.Sequential(model[1], model[1]))) == 2
    assert neuron_parameters(nn.Linear(2, 2)) == []


def test_check_gradients_covers_the_time_since_the_last_check():
    model = network(learn=("tau", "threshold"))
    bs.check_gradients(model)  # nothing ran
    with torch.no_grad():
        model(frames())
    bs.check_gradients(model)  # nothing ran with gradients
    model(frames()).sum().backward()
    bs.check_gradients(model)
    model.zero_grad()
    bs.check_gradients(model)  # nothing ran since


def test_check_gradients_names_parameters_without_gradient():
    model = network(learn=("tau", "threshold"))
    model[2](model[1](model[0](frames())).detach()).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"no gradient reached 1\.log_tau_minus_1, 1\.threshold, 1\.log_width: "
    ) as error:
        bs.check_gradients(model)
    assert "\n" not in str(error.value)
    bs.check_gradients(model)  # it reports once

    model[1].log_tau_minus_1.requires_grad_(False)
    model[1].log_width.requires_grad_(False)
    model(frames())
    with pytest.raises(RuntimeError, match=r"no gradient reached 1\.threshold: "):
        bs.check_gradients(model)


def test_check_gradients_works_on_a_single_layer_and_a_copy():
    layer = bs.LIF(surrogate=bs.Parametric(bs.ATan()))
    layer(frames())
    for model in (copy.deepcopy(layer), layer):
        with pytest.raises(RuntimeError, match="no gradient reached log_width: "):
            bs.check_gradients(model)


@pytest.mark.parametrize(
    ("surrogate", "threshold"),
    [
        (bs.Masked(bs.Parametric(bs.ATan()), p=1.0), 1.0),
        (bs.Parametric(bs.Rectangle(width=0.01)), 900.0),
    ],
    ids=["all masked", "nothing under the rectangle"],
)
def test_a_gradient_of_zero_passes_the_check(surrogate, threshold):
    model = network(surrogate, v_threshold=threshold)
    model(frames()).sum().backward()
    assert model[1].log_width.grad.item() == 0
    bs.check_gradients(model)


def test_width_gradients_accumulate_and_work_in_bfloat16():
    model, halves = network(bs.Masked(bs.Parametric(bs.ATan()), 0.5)), frames().split(3, dim=1)
    parts = []
    for half in halves:
        torch.manual_seed(2)
        model.zero_grad()
        model(half).sum().backward()
        parts.append(model[1].log_width.grad.clone())
    model.zero_grad()
    for half in halves:
        torch.manual_seed(2)
        model(half).sum().backward()
    torch.testing.assert_close(model[1].log_width.grad, parts[0] + parts[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(frames()).float().sum()
    loss.backward()
    bs.check_gradients(model)
    assert model[1].log_width.grad.isfinite()
    assert model[1].log_width.grad.dtype == torch.float32
