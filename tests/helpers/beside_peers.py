"""Networks of snnTorch, SpikingJelly and Norse beside what `bs.convert` makes of them, in float64.

A script for the peers' python (helpers/peers.py): `beside_peers.py LIBRARY`. The last line of its
output is JSON: for each case the number of spikes, the largest difference of the outputs, and that
of the gradients of weights, constants and input, relative to the largest; and what is refused.
"""

import copy
import json
import sys

import torch
from torch import nn

import backspike as bs
from helpers.peer_networks import CASES, inputs, spikingjelly_modules


def gradients(y, x, module):
    """Of a weighted sum of the outputs, by name: of the input and of every parameter."""
    weights = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).reshape(y.shape)
    found = torch.autograd.grad(
        (y * weights).sum(), [x, *module.parameters()], allow_unused=True, retain_graph=True
    )
    return dict(zip(["input", *(name for name, _ in module.named_parameters())], found))


# ---- what is refused -----------------------------------------------------------------------------


def refused_snntorch():
    import snntorch as snn
    from snntorch import surrogate

    def leaky(**options):
        return snn.Leaky(beta=0.9, init_hidden=True, **options)

    return {
        "Alpha": lambda: snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True),
        "SLSTM": lambda: snn.SLSTM(3, 3, init_hidden=True),
        "LeakyParallel": lambda: snn.LeakyParallel(3, 3, beta=0.9),
        "reset_mechanism='none'": lambda: leaky(reset_mechanism="none"),
        "inhibition": lambda: leaky(inhibition=True),
        "surrogate_disable": lambda: leaky(surrogate_disable=True),
        "graded_spikes_factor": lambda: leaky(graded_spikes_factor=2.0),
        "Lapicque zero": lambda: snn.Lapicque(beta=0.9, reset_mechanism="zero"),
        "Synaptic zero": lambda: snn.Synaptic(alpha=0.8, beta=0.9, reset_mechanism="zero"),
        "RLeaky zero": lambda: snn.RLeaky(beta=0.9, linear_features=3, reset_mechanism="zero"),
        "RSynaptic reset_delay=False": lambda: snn.RSynaptic(
            alpha=0.8, beta=0.9, linear_features=3, reset_delay=False
        ),
        "SFS": lambda: leaky(spike_grad=surrogate.SFS()),
        "triangular": lambda: leaky(spike_grad=surrogate.triangular()),
        "straight_through_estimator": lambda: leaky(
            spike_grad=surrogate.straight_through_estimator()
        ),
    }


def refused_spikingjelly():
    _, layer, neuron, surrogate = spikingjelly_modules()
    return {
        "EIFNode": lambda: neuron.EIFNode(),
        "QIFNode": lambda: neuron.QIFNode(),
        "IzhikevichNode": lambda: neuron.IzhikevichNode(),
        "PSN": lambda: neuron.PSN(T=4),
        "KLIFNode": lambda: neuron.KLIFNode(),
        "GatedLIFNode": lambda: neuron.GatedLIFNode(T=4),
        "NonSpikingLIFNode": lambda: neuron.NonSpikingLIFNode(),
        "LinearRecurrentContainer": lambda: layer.LinearRecurrentContainer(neuron.IFNode(), 3, 3),
        "SynapseFilter": lambda: nn.Sequential(layer.SynapseFilter(), neuron.IFNode()),
        "S2NN": lambda: neuron.IFNode(surrogate_function=surrogate.S2NN()),
        "LeakyKReLU": lambda: neuron.IFNode(surrogate_function=surrogate.LeakyKReLU()),
    }


def refused_norse():
    import norse.torch as norse
    from norse.torch.module.izhikevich import IzhikevichCell

    return {
        "LSNNCell": lambda: norse.LSNNCell(),
        "LIFAdExCell": lambda: norse.LIFAdExCell(),
        "LIFRefracCell": lambda: norse.LIFRefracCell(),
        "LIFExCell": lambda: norse.LIFExCell(),
        "IzhikevichCell": lambda: IzhikevichCell(norse.tonic_spiking),
        "adjoint": lambda: norse.LIFCell(norse.LIFParameters(method="adjoint")),
        "circ": lambda: norse.LIFBoxCell(norse.LIFBoxParameters(method="circ")),
    }


def refused(library):
    found = {}
    makes = {"snntorch": refused_snntorch, "norse": refused_norse}.get(
        library, refused_spikingjelly
    )
    for name, make in makes().items():
        try:
            net = make()
            bs.convert(net if isinstance(net, nn.Sequential) else nn.Sequential(net))
            found[name] = "converted"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


# ---- comparison ----------------------------------------------------------------------------------


def constants_of(name, ours, theirs):
    """Their gradient, made from ours, where ours learns another function of the constant."""
    if name.endswith(("beta", "alpha")):  # ours is logit(beta)
        beta = theirs.detach()
        return ours / (beta * (1 - beta))
    return -ours if name.endswith(".w") else ours  # w = -log(tau - 1)


def case(make):
    net, run, *shape = make()
    x = inputs(*(shape[0] if shape else ()))
    if x[0].numel() > 10_000:  # a large network: few samples and timesteps
        x = x[:3, :2].clone()
    x.requires_grad_()
    ours = bs.convert(net, x)
    assert any("in float64" in note for note in ours.notes), ours.notes
    plain = bs.convert(net) if isinstance(net, nn.Sequential) else None
    if "snntorch" in {type(m).__module__.partition(".")[0] for m in net.modules()}:
        for m in net.modules():  # its spikes are float32 whatever the input is
            if hasattr(m, "reset_mem"):
                m.register_forward_hook(lambda m, a, y: as_double(m, y))
                m.reset_mem()
    y = run(net, x)
    z = ours(x)
    assert y.shape == z.shape, (y.shape, z.shape)
    theirs_g, ours_g = gradients(y, x, net), gradients(z, x, ours)
    theirs_p, worst = dict(net.named_parameters()), 0.0
    theirs_n, ours_n = list(theirs_g), list(ours_g)
    ordered = order(theirs_n)
    ours_o = order(ours_n)
    used = [n for n in ordered if theirs_g[n] is not None]
    ours_used = [n for n in ours_o if ours_g[n] is not None]
    assert len(used) == len(ours_used), (used, ours_used)
    for a, b in zip(used, ours_used):
        want, got = theirs_g[a], constants_of(a, ours_g[b], theirs_p.get(a))
        assert want.numel() == got.numel(), (a, b)
        scale = float(want.abs().max())
        if scale:
            worst = max(worst, float((want.flatten() - got.flatten()).abs().max()) / scale)
    again = copy.deepcopy(ours)
    for p in again.parameters():
        p.data.fill_(0.5)
    again.load_state_dict(bs.convert_state_dict(net.state_dict(), again))
    return {
        "state": bool(torch.equal(again(x), z)),
        "spikes": int((y != 0).sum()),
        "share": float((y != 0).double().mean()),
        "outputs": float((y - z).abs().max()),
        "gradients": worst,
        "compared": used,
        "ran": ours.notes[-1],
        "same": plain is None or bool(torch.equal(plain(x), z)),
    }


def as_double(m, y):
    if hasattr(m, "spk"):
        m.spk = m.spk.double()
    return y.double() if isinstance(y, torch.Tensor) else (y[0].double(), *y[1:])


def order(names):
    """Weights as they come, then constants by kind and place: ours come in another order."""
    place = {
        "beta": 1,
        "log_tau_minus_1": 1,
        "w": 1,
        "alpha": 2,
        "log_tau_synapse_minus_1": 2,
        "threshold": 3,
    }
    return sorted(names, key=lambda n: place.get(n.rpartition(".")[2], 0))


if __name__ == "__main__":
    torch.set_num_threads(1)
    (library,) = sys.argv[1:]
    found = {}
    for name, make in CASES[library].items():
        torch.manual_seed(2)
        try:
            found[name] = case(make)
        except Exception as error:  # the test of this case shows it
            found[name] = f"{type(error).__name__}: {error}"
    if library != "clock_driven":
        found["refused"] = refused(library)
    print(json.dumps(found))
