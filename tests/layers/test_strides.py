"""Gradients do not depend on the memory layout: views, dimensions of size 1, static inputs."""

import copy

import pytest
import torch
from torch import nn

import backspike as bs

T = 3


def network(neuron, channels=3):
    torch.manual_seed(1)
    layers = []
    for inputs in (2, channels):
        convolution = nn.Conv2d(inputs, channels, 3, padding=1)
        layers += [bs.OverTime(convolution, nn.BatchNorm2d(channels)), neuron()]
    return bs.Sequential(*layers).double()


def gradients(model, x, recorded=False):
    model = copy.deepcopy(model)
    if recorded:
        with bs.record(model):
            y = model(x)
    else:
        y = model(x)
    (y * torch.linspace(0, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return [p.grad for p in model.parameters()]


def lif(backend="auto"):
    return lambda: bs.LIF(v_threshold=0.5, backend=backend)


NEURONS = {
    "default": (lif(), False),
    "recorded": (lif(), True),
    "eager": (lif("eager"), False),
    "reference": (lif("reference"), False),
    "MPBN": (lambda: bs.MPBN(v_threshold=0.5, channels=3), False),
}


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (2, 2, 1, 4), (2, 2, 4, 1), (1, 2, 1, 4)])
@pytest.mark.parametrize("name", NEURONS)
@pytest.mark.parametrize("static", [True, False])
def test_dimensions_of_size_one_do_not_change_gradients(name, shape, static):
    neuron, recorded = NEURONS[name]
    model = network(neuron)
    x = torch.randn(1 if static else T, *shape, dtype=torch.float64)
    x = x.expand(T, *shape)
    plain = gradients(model, x.clone(memory_format=torch.contiguous_format), recorded)
    last = x[:1] if static else x
    last = last.movedim(2, -1).contiguous().movedim(-1, 2).expand(T, *shape)
    view = gradients(model.to(memory_format=torch.channels_last), last, recorded)
    for a, b in zip(plain, view):
        torch.testing.assert_close(b, a, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("memory", ["exact", "checkpoint"])
def test_a_learned_static_input_gets_the_gradient_of_each_timestep(memory):
    torch.manual_seed(0)
    model = bs.Sequential(bs.OverTime(nn.Linear(4, 6)), bs.LIF(memory=memory))
    step = torch.randn(1, 2, 4)
    static = step.expand(T, 2, 4).detach().requires_grad_()
    copies = step.repeat(T, 1, 1).requires_grad_()
    model(static).sum().backward()
    model(copies).sum().backward()
    torch.testing.assert_close(static.grad, copies.grad)
    assert static.grad[1:].any()


def test_recorded_spikes_have_their_full_gradient():
    torch.manual_seed(0)
    surrogate = bs.surrogate.Masked(bs.surrogate.Triangle(alpha=4.0), p=0.9)
    model = bs.Sequential(
        bs.OverTime(nn.Linear(64, 1024)),
        bs.LIF(surrogate=surrogate),
        bs.OverTime(nn.Linear(1024, 1024)),
        bs.LIF(),
    )
    x = torch.randn(8, 128, 64)

    def gradient(model):
        with bs.record(model) as layers:
            y = model(x)
        return torch.autograd.grad(y.sum(), layers["1"].spikes)[0]

    torch.manual_seed(1)
    ours = gradient(model)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, gradient(nn.Sequential(*model)))


def test_checkpointing_records_the_membrane():
    model = bs.Sequential(bs.OverTime(nn.Linear(4, 6)), bs.LIF(memory="checkpoint"))
    with bs.record(model) as layers:
        model(torch.randn(T, 2, 4))
    assert layers["1"].membrane.shape == (T, 2, 6)
