"""Fluctuation-driven initialisation, against simulations of the membrane in float64."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import backspike as bs
from backspike.models.init import fluctuation_driven

T = 12


def spikes(*shape, rate=0.1, seed=0):
    r = torch.Generator().manual_seed(seed)
    return (torch.rand(T, *shape, generator=r) < rate).float()


def free_membrane(current, tau, gain, rest=0.0):
    """u of neurons that never fire, in NumPy."""
    current, u = current.detach().double().numpy(), []
    for x in current:
        before = u[-1] if u else rest
        u.append((1 - 1 / tau) * before + rest / tau + gain * x)
    return np.stack(u)


def spread(u, mu):
    return math.sqrt(((u - mu) ** 2).mean())


OPTIONS = {
    "default": {},
    "decaying input": {"tau": 5.0, "decay_input": True, "v_reset": 0.0},
    "soft reset": {"tau": 20.0, "decay_input": False, "v_reset": None, "v_threshold": 0.5},
    "rest below 0": {"tau": 3.0, "decay_input": True, "v_reset": -0.3},
    "learned threshold": {"learn": ("threshold", "tau"), "v_threshold": 1.5},
}


@pytest.mark.parametrize("mu", [0.0, 0.1])
@pytest.mark.parametrize("xi", [1.0, 2.5])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_membrane_of_a_linear_layer_has_the_wanted_spread(name, xi, mu):
    torch.manual_seed(0)
    neuron = bs.LIF(**OPTIONS[name])
    linear = nn.Linear(200, 300)
    x = spikes(16, 200)
    assert fluctuation_driven(nn.Sequential(bs.OverTime(linear), neuron), x, mu=mu, xi=xi) == {
        "0.0": "1"
    }
    current = F.linear(x.double(), linear.weight.double())
    assert not linear.bias.any()
    tau, decays, rest = neuron.tau, neuron.decay_input, neuron.v_reset or 0.0
    u = free_membrane(current, tau, 1 / tau if decays else 1.0, rest)
    sigma = (neuron.v_threshold - mu) / xi
    assert spread(u, mu) == pytest.approx(sigma, rel=1e-5)
    # the mean over 300 neurons is known up to its sampling error
    if mu or not rest:
        assert abs(u.mean() - mu) < 4 * sigma / math.sqrt(300)
    # other input of the same rate
    other = F.linear(spikes(64, 200, seed=1).double(), linear.weight.double())
    u = free_membrane(other, tau, 1 / tau if decays else 1.0, rest)
    assert spread(u, mu) == pytest.approx(sigma, rel=0.05)


def test_sparse_spikes_give_the_scale_of_the_paper():
    """sigma_W^2 = sigma^2 / (n nu e), e = gain^2 / (1 - lam^2), for Poisson spikes of rate nu.

    The paper counts fluctuations over time, we count all, so it holds at low rates.
    """
    torch.manual_seed(0)
    tau, n, nu, steps = 5.0, 400, 0.002, 400
    linear = nn.Linear(n, 200, bias=False)
    x = (torch.rand(steps, 32, n) < nu).float()
    neuron = bs.LIF(tau, decay_input=True, v_reset=0.0, v_threshold=1.0)
    fluctuation_driven(nn.Sequential(bs.OverTime(linear), neuron), x, xi=2.0)
    squared_kernel = (1 / tau) ** 2 / (1 - (1 - 1 / tau) ** 2)
    want = 0.5 / math.sqrt(n * nu * squared_kernel)
    assert float(linear.weight.detach().std()) == pytest.approx(want, rel=0.03)


def test_weights_are_normal():
    torch.manual_seed(0)
    linear = nn.Linear(300, 300)
    neuron = bs.LIF(tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=False)
    fluctuation_driven(nn.Sequential(bs.OverTime(linear), neuron), spikes(8, 300), mu=0.4)
    mean_kernel = np.mean([2 * (1 - 0.5 ** (t + 1)) for t in range(T)])
    mu_w = 0.4 / (300 * 0.1 * mean_kernel)
    assert float(linear.weight.detach().mean()) == pytest.approx(mu_w, rel=0.25)
    z = linear.weight.detach().flatten().double()
    z = (z - z.mean()) / z.std()
    assert float(z.mean()) == pytest.approx(0, abs=1e-3)
    assert float((z**3).mean()) == pytest.approx(0, abs=0.05)
    assert float((z**4).mean()) == pytest.approx(3, abs=0.1)


def network():
    torch.manual_seed(0)
    return bs.Sequential(
        bs.OverTime(nn.Conv2d(1, 8, 3, padding=1)),
        bs.LIF(tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True),
        bs.OverTime(nn.AvgPool2d(2), nn.Conv2d(8, 16, 3, stride=2, bias=False)),
        bs.LIF(tau=4.0, v_threshold=0.7, v_reset=None, decay_input=False),
        bs.OverTime(nn.Flatten(), nn.Linear(16, 12)),
        bs.CubaLIF(tau=3.0, tau_synapse=4.0, v_threshold=1.0, v_reset=0.0, decay_input=True),
        bs.OverTime(nn.Linear(12, 5)),
    )


def test_convolutions_pools_and_synapses_are_accounted_for():
    """Each layer, with the spikes that the layers before it send now."""
    model, images = network(), torch.rand(32, 1, 8, 8)
    x = images.expand(T, *images.shape)
    last = model[6][0].weight.clone()
    assert fluctuation_driven(model, x) == {"0.0": "1", "2.1": "3", "4.1": "5"}
    assert torch.equal(model[6][0].weight, last)
    with torch.no_grad():
        first = torch.stack([F.conv2d(i, model[0][0].weight, padding=1) for i in x])
        u = free_membrane(first, 2.0, 0.5)
        assert spread(u, 0) == pytest.approx(1.0, rel=1e-5)
        s = model[:2](x)
        pooled = [F.conv2d(F.avg_pool2d(s_t, 2), model[2][1].weight, stride=2) for s_t in s]
        u = free_membrane(torch.stack(pooled), 4.0, 1.0)
        assert spread(u, 0) == pytest.approx(0.7, rel=1e-5)
        current = F.linear(model[:4](x).flatten(2), model[4][1].weight)
        synapse = torch.from_numpy(free_membrane(current, 4.0, 0.25))
        assert spread(free_membrane(synapse, 3.0, 1 / 3), 0) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 0.9])
def test_a_recurrent_layer_shares_the_variance(alpha):
    torch.manual_seed(0)
    forward, back = nn.Linear(100, 400), nn.Linear(400, 400)
    neuron = bs.LIF(tau=5.0, v_threshold=1.0, v_reset=0.0, decay_input=True)
    model = nn.Sequential(bs.OverTime(forward), bs.Recurrent(back, neuron))
    x = spikes(32, 100, rate=0.3)
    assert fluctuation_driven(model, x, alpha=alpha, xi=2.0) == {"0.0": "1"}
    assert not back.bias.any()
    current = F.linear(x.double(), forward.weight.double())
    u = free_membrane(current, 5.0, 0.2)
    assert spread(u, 0) == pytest.approx(0.5 * math.sqrt(alpha), rel=1e-5)
    with torch.no_grad():
        s = neuron(current.float())
        assert s.any()
        returned = F.linear(torch.cat([0 * s[:1], s[:-1]]).double(), back.weight.double())
    assert spread(free_membrane(returned, 5.0, 0.2), 0) == pytest.approx(
        0.5 * math.sqrt(1 - alpha), rel=1e-5
    )
    together = free_membrane(current + returned, 5.0, 0.2)
    assert spread(together, 0) == pytest.approx(0.5, rel=0.1)


def test_alpha_1_leaves_the_recurrent_weights_alone():
    torch.manual_seed(0)
    back = nn.Linear(20, 20)
    model = nn.Sequential(bs.OverTime(nn.Linear(30, 20)), bs.Recurrent(back, bs.LIF()))
    before = back.weight.clone()
    fluctuation_driven(model, spikes(8, 30), alpha=1.0)
    assert torch.equal(back.weight, before)


def test_layers_before_a_norm_keep_their_weights_and_the_norm_its_statistics():
    torch.manual_seed(0)
    model = bs.Sequential(
        bs.OverTime(nn.Linear(30, 20), nn.BatchNorm1d(20)),
        bs.LIF(),
        bs.OverTime(nn.Linear(20, 10)),
        bs.LIF(),
        bs.OverTime(nn.Linear(10, 10)),
        bs.MPBN(channels=10),
    )
    before = copy.deepcopy(model.state_dict())
    assert fluctuation_driven(model, spikes(8, 30, rate=0.3)) == {"2.0": "3"}
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"2.0.weight", "2.0.bias"}
    assert model.training
    assert all(not m._forward_pre_hooks for m in model.modules())


def test_the_spikes_that_bypass_a_layer_count():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.neuron = bs.OverTime(nn.Linear(50, 50)), bs.LIF(2.0, v_reset=None)

        def forward(self, x):
            return self.neuron(self.linear(x) + 0.2 * x)

    torch.manual_seed(0)
    model, x = Residual(), spikes(16, 50)
    fluctuation_driven(model, x)
    current = F.linear(x.double(), model.linear[0].weight.double()) + 0.2 * x.double()
    gain = 0.5 if model.neuron.decay_input else 1.0
    assert spread(free_membrane(current, 2.0, gain), 0) == pytest.approx(1.0, rel=1e-5)


def test_a_silent_network_fires_afterwards():
    torch.manual_seed(0)
    neuron = {"v_threshold": 1.0, "decay_input": True, "v_reset": 0.0}
    model = bs.Sequential(
        *(bs.OverTime(nn.Linear(40, 40)), bs.LIF(**neuron)),
        *(bs.OverTime(nn.Linear(40, 40)), bs.LIF(**neuron)),
    )
    x = spikes(16, 40)
    assert not model(x).any()
    fluctuation_driven(model, x)
    with bs.record(model) as outputs:
        model(x)
    assert all(0.02 < float(o.spikes.detach().mean()) < 0.3 for o in outputs.values())


def test_a_model_made_spiking_is_initialised():
    torch.manual_seed(0)
    model = bs.from_torch(nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 5)))
    assert fluctuation_driven(model, spikes(8, 30)) == {"0": "1.neuron"}
    assert model(spikes(8, 30)).shape == (T, 8, 5)


def layers(*modules):
    return nn.Sequential(*modules)


@pytest.mark.parametrize(
    ("make", "x", "options", "message"),
    [
        (lambda: layers(bs.OverTime(nn.Linear(9, 4)), bs.LIF()), (2, 9), {"xi": 0.0}, "xi must"),
        (lambda: layers(bs.OverTime(nn.Linear(9, 4)), bs.LIF()), (2, 9), {"alpha": 0}, "alpha"),
        (
            lambda: layers(bs.OverTime(nn.Linear(9, 4)), bs.LIF(v_threshold=0.5)),
            (2, 9),
            {"mu": 0.5},
            "mu must be below the threshold of 1, 0.5, got 0.5",
        ),
        (
            lambda: layers(bs.OverTime(nn.Linear(9, 4)), bs.LIF()),
            (1, 9),
            {"mu": 0.9, "xi": 50.0},
            "0.0: mu = 0.9 alone spreads the membrane",
        ),
        (lambda: layers(bs.OverTime(nn.Linear(9, 4))), (2, 9), {}, "no linear or convolutional"),
        (
            lambda: layers(bs.OverTime(nn.Linear(9, 4), nn.Linear(4, 4)), bs.LIF()),
            (2, 9),
            {},
            "0.0 and 0.1 both run before 1",
        ),
        (
            lambda: layers(
                bs.OverTime(nn.Linear(9, 4)), bs.Recurrent(nn.Identity(), bs.LIF()), nn.Identity()
            ),
            (2, 9),
            {},
            "1.layer must contain one layer with weights, got 0",
        ),
    ],
)
def test_what_cannot_be_initialised_is_named(make, x, options, message):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=message) as error:
        fluctuation_driven(make(), spikes(*x, rate=0.5), **options)
    assert "\n" not in str(error.value)


def test_a_layer_without_input_is_named():
    model = nn.Sequential(bs.OverTime(nn.Linear(9, 4)), bs.LIF())
    with pytest.raises(ValueError, match=r"0.0 gets no input from this sample"):
        fluctuation_driven(model, torch.zeros(T, 2, 9))


def test_a_layer_that_feeds_two_neurons_is_named():
    linear = bs.OverTime(nn.Linear(9, 9))
    model = nn.Sequential(linear, bs.LIF(), linear, bs.LIF())
    with pytest.raises(ValueError, match=r"0.0 feeds several spiking layers"):
        fluctuation_driven(model, spikes(2, 9))
