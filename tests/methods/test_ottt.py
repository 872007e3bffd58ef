"""SLTT and OTTT against their definitions in NumPy, and in torch for convolutions."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import backspike as bs

T, B, K = 7, 2, 3
THETA, TAUS = 0.4, (2.0, 3.0)
SURROGATE = bs.SuperSpike()


def lif(tau, **options):
    return bs.LIF(tau, surrogate=SURROGATE, v_threshold=THETA, **options)


def numpy_rule(x, weights, y, *, traces, v_reset, decay_input):
    """dL/dW of L = mean_t CE(o[t], y) for two spiking layers and a classifier without neurons."""
    h = lambda z: 1 / (1 + np.abs(z)) ** 2  # noqa: E731  (SuperSpike, alpha = 1)
    v = [np.zeros((B, len(w))) for w in weights[:2]]
    trace = [np.zeros((B, w.shape[1])) for w in weights]
    found = [np.zeros_like(w) for w in weights]
    for t in range(T):
        a, z, gains = [x[t]], [], []
        for i, tau in enumerate(TAUS):
            gain = 1 / tau if decay_input else 1.0
            u = (1 - 1 / tau) * v[i] + gain * a[-1] @ weights[i].T
            s = (u >= THETA).astype(float)
            v[i] = u - THETA * s if v_reset is None else np.where(s > 0, v_reset, u)
            a, z, gains = [*a, s], [*z, u - THETA], [*gains, gain]
        for i, leak in enumerate([1 - 1 / tau for tau in TAUS] + [0.0]):
            trace[i] = leak * trace[i] * traces + a[i]
        o = a[-1] @ weights[2].T
        p = np.exp(o) / np.exp(o).sum(1, keepdims=True)
        d = (p - np.eye(K)[y]) / (B * T)
        for i in (2, 1, 0):
            found[i] += d.T @ trace[i]
            if i:
                d = (d @ weights[i]) * h(z[i - 1]) * gains[i - 1]
    return found


def each(y):
    return lambda o: F.cross_entropy(o.flatten(0, 1), y.repeat(len(o)), reduction="sum") / (B * T)


@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", [None, 0.0])
@pytest.mark.parametrize("traces", [False, True], ids=["SLTT", "OTTT"])
def test_the_gradients_are_those_of_the_definition(traces, v_reset, decay_input):
    rng = np.random.default_rng(3)
    weights = [rng.normal(size=s) for s in ((6, 4), (5, 6), (K, 5))]
    x, y = rng.normal(size=(T, B, 4)), np.array([0, 2])
    options = {"v_reset": v_reset, "decay_input": decay_input}
    layers = [bs.OverTime(nn.Linear(w.shape[1], w.shape[0], bias=False)) for w in weights]
    model = bs.Sequential(
        layers[0], lif(TAUS[0], **options), layers[1], lif(TAUS[1], **options), layers[2]
    ).double()
    with torch.no_grad():
        for layer, w in zip(layers, weights):
            layer[0].weight.copy_(torch.from_numpy(w))
    wanted = numpy_rule(x, weights, y, traces=traces, **options)
    loss, x_all = each(torch.from_numpy(y)), torch.from_numpy(x)
    for _ in range(2):  # the traces start anew
        if traces:
            with bs.ottt(model):
                bs.backward_in_chunks(model, x_all, loss, 1, truncate=True)
        else:
            bs.backward_in_chunks(model, x_all, loss, 1, truncate=True)
        for layer, w in zip(layers, wanted):
            assert float((layer[0].weight.grad - torch.from_numpy(w)).abs().max()) < 1e-12
        model.zero_grad()
    if traces:  # a loop of one's own
        with bs.streaming(model), bs.ottt(model):
            for x_t in x_all.split(1):
                loss(model(x_t)).backward()
        for layer, w in zip(layers, wanted):
            assert float((layer[0].weight.grad - torch.from_numpy(w)).abs().max()) < 1e-12


def test_convolutions_have_traces_of_their_inputs():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(bs.OverTime(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)), lif(2.0)),
        *(bs.OverTime(nn.AvgPool2d(2), nn.Conv2d(4, 3, 2, groups=1)), bs.IF(v_threshold=THETA)),
        bs.OverTime(nn.Flatten(), nn.Linear(3, K)),
    ).double()
    model.eval()
    x = torch.randn(T, B, 2, 8, 8, dtype=torch.float64)
    loss = each(torch.tensor([1, 0]))
    first, second, last = model[0][0], model[2][1], model[4][1]
    inputs, outputs = {first: [], second: []}, {first: [], second: []}

    def see(layer, args, y):
        inputs[layer].append(args[0].detach())
        y.retain_grad()
        outputs[layer].append(y)

    hooks = [layer.register_forward_hook(see) for layer in (first, second)]
    with bs.streaming(model):
        for x_t in x.split(1):
            loss(model(x_t)).backward()
    for hook in hooks:
        hook.remove()
    wanted = {last: last.weight.grad}
    for layer, leak in ((first, 0.5), (second, 1.0)):
        trace, total = 0, 0
        for a, y in zip(inputs[layer], outputs[layer], strict=True):
            trace = leak * trace + a
            total = total + torch.nn.grad.conv2d_weight(
                trace, layer.weight.shape, y.grad, layer.stride, layer.padding
            )
        wanted[layer] = total
    biases = first.bias.grad, second.bias.grad
    model.zero_grad()
    with bs.ottt(model):
        bs.backward_in_chunks(model, x, loss, 1, truncate=True)
    for layer, g in wanted.items():
        assert float((layer.weight.grad - g).abs().max()) < 1e-12
    assert all(torch.allclose(a.bias.grad, b) for a, b in zip((first, second), biases))


def test_an_integrator_behind_a_layer_makes_ottt_exact():
    """With one linear layer, the gradient of a leaky readout is that of back-propagation."""
    torch.manual_seed(0)
    model = nn.Sequential(bs.OverTime(nn.Linear(4, K, bias=False)), bs.Integrator(tau=3.0)).double()
    x, loss = torch.randn(T, B, 4, dtype=torch.float64), each(torch.tensor([1, 0]))
    loss(model(x)).backward()
    wanted = model[0][0].weight.grad.clone()
    model.zero_grad()
    with bs.ottt(model):
        bs.backward_in_chunks(model, x, loss, 1, truncate=True)
    assert float((model[0][0].weight.grad - wanted).abs().max()) < 1e-14


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (lambda: [bs.CubaLIF()], "layer '1' is a CubaLIF"),
        (lambda: [bs.Recurrent(nn.Linear(6, 6), bs.LIF())], "layer '1' is a Recurrent"),
        (lambda: [], "no learned linear or convolution layer feeds a spiking layer"),
    ],
)
def test_other_networks_are_refused(layers, words):
    with pytest.raises(ValueError, match=words):
        bs.ottt(nn.Sequential(bs.OverTime(nn.Linear(4, 6)), *layers()))


def test_transposed_convolutions_are_refused():
    with pytest.raises(ValueError, match=r"no transposed convolutions, such as layer .0\.0."):
        bs.ottt(nn.Sequential(bs.OverTime(nn.ConvTranspose2d(1, 1, 3)), bs.LIF()))


def test_other_calls_are_refused():
    model = nn.Sequential(bs.OverTime(nn.Linear(4, 6)), bs.LIF())
    with bs.ottt(model):
        with pytest.raises(ValueError, match=r"got shape \[1, 2, 4\] outside of it"):
            model(torch.rand(1, 2, 4))
        with bs.streaming(model), pytest.raises(ValueError, match=r"got shape \[3, 2, 4\]$"):
            model(torch.rand(3, 2, 4))
        with bs.streaming(model, detach=False), pytest.raises(ValueError, match="outside of it"):
            model(torch.rand(1, 2, 4))
    model(torch.rand(3, 2, 4)).sum().backward()  # the handle is gone
