"""bs.convert and bs.convert_state_dict beside stand-ins for other libraries' neurons."""

import re

import pytest
import torch
from helpers import foreign
from torch import nn
from torch.nn import functional as F

import backspike as bs
from backspike.errors import ExchangeError
from backspike.exchange.foreign_neuron import NoAutapses
from backspike.neuron.shifted import DelayedReset, DelayedResetCuba, Shifted

T, B, N = 30, 4, 8


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def inputs(*shape):
    return torch.randn(T, B, *(shape or (N,)), dtype=torch.float64, requires_grad=True)


def row(make):
    layers = [nn.Linear(N, N), make(), nn.Linear(N, 5), make()]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, 0.2, 1.0)
    return nn.Sequential(*layers).double()


def run(net, x):
    for m in net.modules():
        for reset in ("reset", "reset_mem"):
            getattr(m, reset, lambda: None)()
    if any(getattr(m, "step_mode", "s") == "m" for m in net.modules()):
        return net(x)
    return torch.stack([net(x_t) for x_t in x])


def gradients(y, x, *parameters):
    weights = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
    return torch.autograd.grad((y * weights).sum(), [x, *parameters])


NEURONS = {
    "IFNode": lambda: foreign.IFNode(v_reset=None),
    "LIFNode": lambda: foreign.LIFNode(tau=1.7, v_reset=-0.2),
    "LIFNode-step": lambda: foreign.LIFNode(tau=1.7, detach=True, step_mode="s"),
    "LIFNode-input": lambda: foreign.LIFNode(tau=3.0, decay_input=False, v_reset=None),
    "Leaky": lambda: foreign.Leaky(beta=0.8, threshold=0.7),
    "Leaky-zero": lambda: foreign.Leaky(beta=0.8, reset="zero"),
}


@pytest.mark.parametrize("name", NEURONS)
def test_spikes_and_gradients_are_the_originals(name):
    net, x = row(NEURONS[name]), inputs()
    ours = bs.convert(net, x)
    y, z = run(net, x), ours(x)
    assert 0.05 < y.mean() < 0.95
    assert torch.equal(y, z)
    for a, b in zip(
        gradients(y, x, *net.parameters()), gradients(z, x, *ours.parameters()), strict=True
    ):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12 * float(a.abs().max()))
    assert torch.equal(bs.convert(net)(x), z)  # without a sample too
    assert re.search(r"in float64: \d+ spikes in 2 spiking layers, all equal", ours.notes[-1])


def test_a_row_is_fused_and_the_original_stays():
    net = row(NEURONS["LIFNode"])
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ours = bs.convert(net)
    assert type(ours) is bs.Sequential
    assert type(ours[1]) is bs.LIF
    assert [type(block.product) for block in ours.spiking_blocks()] == [nn.Linear, nn.Linear]
    assert isinstance(net[1], foreign.LIFNode)
    ours[0][0].weight.data.zero_()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_learned_constants_become_parameters_with_the_originals_gradients():
    net, x = row(lambda: foreign.Leaky(beta=0.8, threshold=0.7, learn=True)), inputs()
    ours = bs.convert(net, x)
    y, z = run(net, x), ours(x)
    for a, b in ((net[1], ours[1]), (net[3], ours[3])):
        want = gradients(y, a.beta, a.threshold)
        beta = a.beta.detach()
        got = gradients(z, b.log_tau_minus_1, b.threshold)
        torch.testing.assert_close(got[0] / (beta * (1 - beta)), want[0], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got[1], want[1], rtol=1e-9, atol=1e-9)
        y, z = run(net, x), ours(x)


class Loop(nn.Module):
    """A class that passes membranes and loops over time, as in snnTorch's tutorials."""

    def __init__(self, between=lambda y: F.max_pool2d(y, 2)):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.lif1 = foreign.Leaky(beta=0.9, init_hidden=False)
        self.fc = nn.Linear(12, 5)
        self.lif2 = foreign.Leaky(beta=0.7, init_hidden=False)
        self.between = between
        nn.init.normal_(self.fc.weight, 0.3, 1.0)

    def forward(self, x):
        mem1 = mem2 = None
        out = []
        for x_t in x:
            s, mem1 = self.lif1(self.between(self.conv(3 * x_t)), mem1)
            s, mem2 = self.lif2(self.fc(s.flatten(1)), mem2)
            out.append(s)
        return torch.stack(out), mem2


def test_a_loop_over_time_becomes_a_row_of_the_layers_it_calls():
    net, x = Loop().double(), inputs(2, 6, 6)
    ours = bs.convert(net, x)
    assert [type(m).__name__ for m in ours] == [
        "OverTime", "OverTime", "DelayedReset", "OverTime", "OverTime", "DelayedReset",
    ]  # fmt: skip
    assert torch.equal(net(x)[0], ours(3 * x))  # it takes what the first layer takes
    assert [type(m[0]) for m in (ours[1], ours[3])] == [nn.MaxPool2d, nn.Flatten]


def test_a_loop_that_does_something_else_between_layers_is_refused():
    net = Loop(lambda y: F.max_pool2d(y, 2) * 2).double()
    with pytest.raises(ExchangeError, match=r"lif1 does not get the output of conv.*write it as"):
        bs.convert(net, inputs(2, 6, 6))
    with pytest.raises(ExchangeError, match=r"Loop has code of its own.*give sample="):
        bs.convert(net)


class Residual(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.conv1, self.conv2 = foreign.Conv2d(2, 3, 3), foreign.Conv2d(3, 3, 3, padding=1)
        self.sn1 = foreign.LIFNode(v_threshold=0.4, step_mode=mode)
        self.sn2 = foreign.LIFNode(v_threshold=0.4, step_mode=mode)
        for conv in (self.conv1, self.conv2):
            conv.step_mode = mode
            nn.init.normal_(conv.weight, 0.1, 0.5)

    def forward(self, x):
        y = self.sn1(self.conv1(x))
        return y + self.sn2(self.conv2(y))


@pytest.mark.parametrize("mode", ["s", "m"])
def test_code_of_its_own_runs_with_our_layers(mode):
    net, x = Residual(mode).double(), inputs(2, 6, 6)
    ours = bs.convert(net, x)
    y, z = run(net, x), ours(x)
    assert torch.equal(y, z)
    assert y.unique().tolist() == [0, 1, 2]
    for a, b in zip(
        gradients(y, x, *net.parameters()), gradients(z, x, *ours.parameters()), strict=True
    ):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)
    assert not any(type(m).__module__.startswith("spikingjelly") for m in ours.modules())


def test_a_tie_is_named():
    """Fires at 1 here, not in snnTorch; both need the exact threshold, so no proof can pass."""
    net = nn.Sequential(foreign.Leaky(beta=0.5)).double()
    x = torch.ones(3, 1, 1, dtype=torch.float64)
    with pytest.raises(
        ExchangeError, match=r"differ first at 0, timestep 0: 1 of 1 .* a tie fires"
    ):
        bs.convert(net, x)
    assert any("fires here, but not in snnTorch" in note for note in bs.convert(net).notes)


class Own(foreign.LIFNode):
    """A user's subclass, whose charge is its own."""


def broken():
    """A neuron that is not what its name says."""
    node = foreign.LIFNode(tau=2.0)
    node.charge = lambda v, x: v + x
    return node


REFUSED = {
    "own class": (lambda: row(Own), r"1 \(Own\): a class of your own"),
    "EIFNode": (lambda: row(foreign.EIFNode), r"1 \(EIFNode of SpikingJelly\): it has no equal"),
    "Alpha": (lambda: row(foreign.Alpha), "difference of two exponentials"),
    "surrogate": (
        lambda: row(lambda: foreign.LIFNode(surrogate=foreign.S2NN())),
        r"its surrogate S2NN has no equal here; give surrogate=, such as bs.ATan\(\)",
    ),
    "no reset": (
        lambda: row(lambda: foreign.Leaky(reset="none")),
        "as a readout use bs.Integrator",
    ),
    "beta 0": (lambda: row(lambda: foreign.Leaky(beta=0.0)), "beta = 0 keeps no membrane"),
    "filter": (
        lambda: nn.Sequential(foreign.SynapseFilter(), foreign.IFNode()),
        r"0 \(SynapseFilter of SpikingJelly\): it has no equal",
    ),
    "no neuron": (lambda: nn.Sequential(nn.ReLU()), "has no neuron.*bs.from_torch"),
    "modes": (
        lambda: nn.Sequential(foreign.IFNode(), foreign.IFNode(step_mode="s")),
        r"1 \(IFNode of SpikingJelly\) runs on single timesteps, unlike others",
    ),
    "twice": (lambda: nn.Sequential(*[foreign.IFNode()] * 2), "0 is used twice"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_equal_is_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(ExchangeError, match=message) as caught:
        bs.convert(make())
    assert "\n" not in str(caught.value)


def test_graded_spikes_and_quantised_states_are_refused():
    net = row(foreign.Leaky)
    net[1].graded_spikes_factor = torch.tensor(2.0)
    with pytest.raises(ExchangeError, match="its spikes are graded"):
        bs.convert(net)
    net[1].graded_spikes_factor = torch.tensor(1.0)
    net[3].state_quant = abs
    with pytest.raises(ExchangeError, match=r"3 \(Leaky of snnTorch\): it is set to state_quant"):
        bs.convert(net)


def test_the_proof_finds_a_neuron_that_is_not_what_its_name_says():
    with pytest.raises(
        ExchangeError, match=r"the networks differ first at 1, timestep \d+: \d+ of"
    ):
        bs.convert(row(broken), inputs())


def test_a_surrogate_is_replaced_on_request():
    ours = bs.convert(
        row(lambda: foreign.LIFNode(surrogate=foreign.S2NN())), surrogate=bs.Sigmoid()
    )
    assert ours[1].surrogate == bs.Sigmoid()


def test_a_wrong_constant_of_a_surrogate_is_found(monkeypatch):
    monkeypatch.setattr(foreign.ATan, "forward", lambda self, z: foreign.spike(z, torch.cos, True))
    with pytest.raises(ExchangeError, match=r"ATan\(alpha=2.0, scale=1.0\) differs by up to"):
        bs.convert(row(foreign.IFNode))


# ---- state dicts ---------------------------------------------------------------------------------


def twin(tau, theta, **options):
    def neuron():
        return DelayedReset(
            tau, v_threshold=theta, decay_input=False, reset_gradient=0.0, **options
        )

    return bs.Sequential(
        bs.OverTime(nn.Linear(N, N)), neuron(), bs.OverTime(nn.Linear(N, 5)), neuron()
    ).double()


@pytest.mark.parametrize("learn", [False, True])
def test_a_state_dict_gives_the_converted_network(learn):
    net, x = row(lambda: foreign.Leaky(beta=0.75, threshold=0.7, learn=learn)), inputs()
    ours = twin(*((2.0, 1.0) if learn else (4.0, 0.7)), learn=("tau", "threshold") if learn else ())
    converted = bs.convert_state_dict(net.state_dict(), ours)
    assert set(converted) == set(ours.state_dict())
    ours.load_state_dict(converted)
    assert torch.equal(ours(x), bs.convert(net, x)(x))
    keys = {"0": "2.0", "1": "3", "2": "0.0", "3": "1"}
    with pytest.raises(ExchangeError, match=r"\[5, 8\] for 2.0.weight of shape \[8, 8\]"):
        bs.convert_state_dict(net.state_dict(), ours, keys=keys)
    named = dict(zip(keys, ("0.0", "1", "2.0", "3")))
    again = bs.convert_state_dict(net.state_dict(), ours, keys=named)
    assert all(torch.equal(again[key], value) for key, value in converted.items())


WRONG = {
    "beta": (twin, (2.0, 0.7), r"1: the leak per timestep is 0.75\d*, .* 0.5; build it with tau=4"),
    "threshold": (twin, (4.0, 1.0), r"1: threshold is 0.7\d*, .*build it with v_threshold=0.7"),
}


@pytest.mark.parametrize("name", WRONG)
def test_another_fixed_constant_is_named(name):
    make, arguments, message = WRONG[name]
    net = row(lambda: foreign.Leaky(beta=0.75, threshold=0.7))
    with pytest.raises(ExchangeError, match=message):
        bs.convert_state_dict(net.state_dict(), make(*arguments))


def test_what_a_state_dict_lacks_or_has_too_much_is_named():
    net, ours = row(lambda: foreign.Leaky(beta=0.75, threshold=0.7)), twin(4.0, 0.7)
    state = net.state_dict()
    with pytest.raises(ExchangeError, match=r"2 layers with entries \(0, 2\), the network 1"):
        bs.convert_state_dict(state, ours[:2])
    hard = bs.Sequential(ours[0], bs.LIF(4.0, v_threshold=0.7, v_reset=0.0), ours[2], ours[3])
    with pytest.raises(ExchangeError, match=r"the reset 'subtract', the network v_reset=0\.0"):
        bs.convert_state_dict(state, hard)
    with pytest.raises(ExchangeError, match="keys= does not name '0'"):
        bs.convert_state_dict(state, ours, keys={})
    del state["0.bias"]
    with pytest.raises(ExchangeError, match=r"the state dict has nothing for 0\.0\.bias"):
        bs.convert_state_dict(state, ours)


def test_the_shifted_neuron_follows_its_equation():
    options = {"v_threshold": 0.8, "v_reset": -0.2, "decay_input": True, "surrogate": bs.ATan()}
    layer = Shifted(3.0, scale=2.0, shift=0.3, start=0.5, **options)
    x = inputs()
    v, spikes = torch.full_like(x[0], 0.5), []
    for x_t in x:
        u = (1 - 1 / 3) * v + (-0.2) / 3 + (2 * x_t + 0.3) / 3
        spikes.append((u >= 0.8).double())
        v = torch.where(u >= 0.8, -0.2, u)
    assert torch.equal(layer(x), torch.stack(spikes))
    with bs.streaming(layer):
        assert torch.equal(torch.cat([layer(x[:7]), layer(x[7:])]), torch.stack(spikes))
    with bs.record(layer) as seen:
        layer(x)
    torch.testing.assert_close(seen[""].state, v)
    torch.testing.assert_close(seen[""].membrane[-1], u)
    assert "scale=2, shift=0.3, start=0.5" in repr(layer)


@pytest.mark.parametrize("autapses", [False, True])
def test_a_delayed_reset_behind_a_synapse_is_recurrent_too(autapses):
    """snnTorch's RSynaptic; a recurrent kernel that knows CubaLIF must not take it for one."""
    options = {"v_threshold": 0.8, "decay_input": False, "reset_gradient": 0.0}
    neuron = DelayedResetCuba(4.0, tau_synapse=2.0, surrogate=bs.ATan(), **options)
    around = (nn.Linear if autapses else NoAutapses)(N, N).double()
    x = inputs()
    s = i = u = torch.zeros_like(x[0])
    spikes = []
    for x_t in x:
        weight = around.weight if autapses else around.weight * (1 - torch.eye(N))
        i = 0.5 * i + x_t + F.linear(s, weight, around.bias)
        u = 0.75 * u + i - 0.8 * s
        s = (u >= 0.8).double()
        spikes.append(s)
    assert torch.equal(bs.Recurrent(around, neuron)(x), torch.stack(spikes))
