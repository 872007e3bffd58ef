"""A recurrent layer with the options of its neuron, and its gradients, for tests of kernels."""

import torch
from torch import nn

import backspike as bs
from backspike.surrogate import ATan, Masked, Parametric, Rectangle, SuperSpike, Triangle

OPTIONS = {
    "defaults": {},
    "soft reset": {"v_reset": None},
    "reset to -0.2": {"v_reset": -0.2},
    "detached reset": {"reset_gradient": 0.0, "surrogate": SuperSpike()},
    "no temporal gradient": {"temporal_gradient": False},
    "undecayed input": {"decay_input": False},
    "compact surrogate": {"surrogate": Triangle(1.0)},
    "narrow surrogate": {"surrogate": Rectangle(0.02)},
    "masked": {"surrogate": Masked(Rectangle(1.0), p=0.5)},
    "masked and rescaled": {"surrogate": Masked(ATan(), p=0.3, rescale=True)},
    "mask with replacement": {"surrogate": Masked(Triangle(), p=0.5, replace=ATan())},
    "learned width": {"surrogate": Parametric(Triangle())},
    "learned threshold": {"learn": "threshold", "v_reset": None},
    "computed again": {"memory": "recompute"},
}


def make(n, kind, **options):
    torch.manual_seed(1)
    layer = bs.Recurrent(nn.Linear(n, n), kind(v_threshold=0.3, **options)).double()
    with torch.no_grad():
        layer.layer.weight *= 1.5
    return layer


def drive(T, B, n):
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(T, B, n, dtype=torch.float64, generator=generator)
    return x, torch.randn(T, B, n, dtype=torch.float64, generator=generator)


def gradients(layer, x, g):
    """Spikes, and the gradients of the input and of all parameters."""
    layer.zero_grad()
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    s = layer(x)
    s.backward(g)
    return [s.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]


def assert_gradients_equal(got, want, tolerance=1e-12):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert (a - b).abs().max() <= tolerance * b.abs().max()
