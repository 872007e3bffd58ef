"""Networks of snnTorch, SpikingJelly and Norse, for tests in the peers' environment (peers.py).

`CASES` has a function for each; it returns the network in float64, a function that runs it from
rest on x `[T, B, ...]`, and, where x has no N features, the shape of a sample.
"""

import sys
import types

import torch
from torch import nn
from torch.nn import functional as F

T, B, N, K = 40, 5, 12, 10


def inputs(*shape):
    return torch.randn(T, B, *(shape or (N,)), dtype=torch.float64)


def dense(neuron, *more):
    """A linear layer with enough drive to fire, and a neuron, twice."""
    layers = [nn.Linear(N, N), neuron, nn.Linear(N, K), *more]
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0.2, 1.0)
    return layers


# ---- how each library runs a network on x [T, B, ...] --------------------------------------------


def by_step(net, x):
    return torch.stack([first(net(x_t)) for x_t in x])


def first(y):
    while isinstance(y, (tuple, list)):
        y = y[0]
    return y


def norse_steps(net, x):
    state, out = None, []
    for x_t in x:
        y, state = net(x_t, state)
        out.append(y)
    return torch.stack(out)


def whole(net, x):
    return first(net(x))


# ---- snnTorch ------------------------------------------------------------------------------------


def snntorch(kind, **options):
    import snntorch as snn

    if kind in ("RLeaky", "RSynaptic"):
        options = {"linear_features": N} | options
        if "V" in options:
            options |= {"linear_features": None, "all_to_all": False}

    def make(output=False):
        return getattr(snn, kind)(init_hidden=True, output=output, **options)

    torch.manual_seed(1)
    layers = dense(make())
    if kind in ("RLeaky", "RSynaptic"):
        layers = layers[:2]
    else:
        layers.append(make(True))
    return nn.Sequential(*layers).double(), by_step


def snntorch_loop(functional=False, cnn=False):
    """The tutorial's own class, which passes membranes and loops over time."""
    import snntorch as snn
    from snntorch import surrogate

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            grad = surrogate.fast_sigmoid(slope=25)
            if cnn:
                self.conv1 = nn.Conv2d(2, 4, 3)
                self.lif1 = snn.Leaky(beta=0.9, spike_grad=grad)
                nn.init.normal_(self.conv1.weight, 0.2, 0.5)
            self.fc1 = nn.Linear(16 if cnn else N, K)
            self.lif2 = snn.Leaky(beta=0.8, learn_beta=True, spike_grad=grad)
            nn.init.normal_(self.fc1.weight, 0.2, 0.5)

        def forward(self, x):
            mem1, mem2 = None, self.lif2.reset_mem()
            spikes, membranes = [], []
            for x_t in x:
                if cnn:
                    y = F.max_pool2d(self.conv1(x_t), 2) if functional else self.conv1(x_t)
                    x_t, mem1 = self.lif1(y, mem1)
                spk2, mem2 = self.lif2(self.fc1(x_t.flatten(1)), mem2)
                spikes.append(spk2)
                membranes.append(mem2)
            return torch.stack(spikes), torch.stack(membranes)

    torch.manual_seed(1)
    return Net().double(), whole


# ---- SpikingJelly --------------------------------------------------------------------------------


def spikingjelly_modules():
    try:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate
    except ImportError:
        from spikingjelly.clock_driven import functional, layer, neuron, surrogate
    return functional, layer, neuron, surrogate


def spikingjelly(kind, mode="m", surrogate="ATan", constants=(), **options):
    functional, _, neuron, surrogates = spikingjelly_modules()

    def make():
        f = getattr(surrogates, surrogate)(*constants)
        return getattr(neuron, kind)(surrogate_function=f, **options)

    torch.manual_seed(1)
    net = nn.Sequential(*dense(make()), make()).double()
    if hasattr(functional, "set_step_mode"):
        functional.set_step_mode(net, mode)
    elif not kind.startswith("MultiStep"):
        mode = "s"
    run = whole if mode == "m" else by_step
    return net, lambda net, x: (functional.reset_net(net), run(net, x))[1]


def evaluate_norms(net):
    """Running statistics; 0.0.0.0.14 gives no gradients if its neurons are in evaluation mode."""
    for m in net.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    return net


def spikingjelly_cnn(mode="m", own=False):
    """Wrapped layers, BatchNorm and pools, in a row or in a class with a residual connection."""
    functional, layer, neuron, surrogates = spikingjelly_modules()

    def make():
        return neuron.LIFNode(tau=2.0, surrogate_function=surrogates.ATan(), v_threshold=0.3)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = layer.Conv2d(4, 4, 3, padding=1, bias=False)
            self.bn = layer.BatchNorm2d(4)
            self.sn = make()

        def forward(self, x):
            return self.sn(self.bn(self.conv(x))) + x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(
                layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), make()
            )
            self.block = Block()
            self.head = nn.Sequential(
                layer.AvgPool2d(2), layer.Flatten(), layer.Linear(36, K), make()
            )

        def forward(self, x):
            return self.head(self.block(self.stem(x)))

    torch.manual_seed(1)
    net = (
        Net()
        if own
        else nn.Sequential(
            *Net().stem, layer.MaxPool2d(2), layer.Flatten(), layer.Linear(36, K), make()
        )
    )
    for m in net.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(m.weight, 0.1, 0.5)
    net = evaluate_norms(net.double())
    functional.set_step_mode(net, mode)
    run = whole if mode == "m" else by_step
    return net, lambda net, x: (functional.reset_net(net), run(net, x))[1]


def spikingjelly_containers():
    functional, layer, neuron, _ = spikingjelly_modules()
    old = not hasattr(functional, "set_step_mode")
    lif = neuron.MultiStepLIFNode(tau=2.0) if old else neuron.LIFNode(tau=2.0, step_mode="m")
    torch.manual_seed(1)
    net = nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)),
        lif,
        layer.SeqToANNContainer(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, K)),
        layer.MultiStepContainer(neuron.IFNode(v_reset=None), nn.Linear(K, K), neuron.IFNode()),
    )
    nn.init.normal_(net[2][2].weight, 0.3, 0.5)
    nn.init.normal_(net[3][1].weight, 0.3, 0.5)
    net = evaluate_norms(net.double())
    return net, lambda net, x: (functional.reset_net(net), whole(net, x))[1]


def sew_resnet18():
    """A network of the library. Its module imports a function from torchvision, which is absent."""
    stub = types.ModuleType("torchvision.models.utils")
    stub.load_state_dict_from_url = None
    for name in ("torchvision", "torchvision.models", stub.__name__):
        sys.modules.setdefault(name, stub)
    from spikingjelly.activation_based.model import sew_resnet

    functional, _, neuron, surrogates = spikingjelly_modules()
    torch.manual_seed(1)
    net = sew_resnet.sew_resnet18(
        cnf="ADD",
        num_classes=K,
        spiking_neuron=neuron.ParametricLIFNode,
        surrogate_function=surrogates.ATan(),
        v_threshold=0.3,
    )
    functional.set_step_mode(net, "m")
    net = evaluate_norms(net.double())
    return net, lambda net, x: (functional.reset_net(net), net(x))[1]


# ---- Norse ---------------------------------------------------------------------------------------


def norse(kind, cell=True, method="super", alpha=100.0, **p):
    import norse.torch as norse
    from norse.torch.functional.iaf import IAFParameters
    from norse.torch.functional.leaky_integrator import LIParameters
    from norse.torch.functional.leaky_integrator_box import LIBoxParameters
    from norse.torch.functional.lif import LIFParameters
    from norse.torch.functional.lif_box import LIFBoxParameters
    from norse.torch.module.iaf import IAFCell
    from norse.torch.module.leaky_integrator_box import LIBoxCell

    kinds = {"IAFCell": IAFCell, "LIBoxCell": LIBoxCell}
    parameters = {
        "LIFBox": LIFBoxParameters,
        "LIF": LIFParameters,
        "IAF": IAFParameters,
        "LIBox": LIBoxParameters,
        "LI": LIParameters,
    }
    parameters = next(v for name, v in parameters.items() if kind.startswith(name))
    if "v_th" in parameters._fields:
        p |= {"method": method, "alpha": torch.as_tensor(alpha)}
    p = parameters(**{k: torch.as_tensor(v) if isinstance(v, float) else v for k, v in p.items()})
    make = kinds.get(kind) or getattr(norse, kind)
    torch.manual_seed(1)
    if "Recurrent" in kind or "Linear" in kind:
        layers = [make(N, K, p=p)]
        for weight in layers[0].parameters():
            nn.init.normal_(weight, 0.3, 0.5)
        if "Recurrent" in kind:
            with torch.no_grad():
                layers[0].recurrent_weights.fill_diagonal_(0.0)
    elif kind.startswith("LIF") or kind.startswith("IAF"):
        layers = [*dense(make(p=p)), make(p=p)]
    else:
        layers = dense(make(p=p))[:2]
    net = norse.SequentialState(*layers).double()
    return net, norse_steps if cell else whole


def norse_loop():
    """The README's own class: cells with states passed in a loop."""
    import norse.torch as norse

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif, self.readout = nn.Linear(N, N), norse.LIFCell(), norse.LICell()
            nn.init.normal_(self.fc.weight, 0.3, 0.5)

        def forward(self, x):
            s, si, out = None, None, []
            for x_t in x:
                z, s = self.lif(self.fc(x_t), s)
                v, si = self.readout(z, si)
                out.append(v)
            return torch.stack(out)

    torch.manual_seed(1)
    return Net().double(), whole


def snntorch_channels():
    beta = torch.linspace(0.5, 0.95, N)
    import snntorch as snn

    torch.manual_seed(1)
    layers = dense(snn.Leaky(beta=beta, learn_beta=True, init_hidden=True))
    return nn.Sequential(*layers[:2]).double(), by_step


def snntorch_surrogate(name):
    from snntorch import surrogate

    return snntorch("Leaky", beta=0.85, spike_grad=getattr(surrogate, name)(5.0))


def norse_soft():
    from norse.torch.functional.reset import reset_subtract

    return norse("LIFBoxCell", tau_mem_inv=400.0, reset_method=reset_subtract)


# ---- cases ---------------------------------------------------------------------------------------

IMAGES = (2, 6, 6)
AT_ONCE = {"reset_mechanism": "zero", "reset_delay": False}
LEARNED = {"learn_beta": True, "learn_threshold": True}
SNNTORCH = {
    "Leaky": lambda: snntorch("Leaky", beta=0.85),
    "Leaky-threshold": lambda: snntorch("Leaky", beta=0.6, threshold=0.7),
    "Leaky-beta-1": lambda: snntorch("Leaky", beta=1.0),
    "Leaky-zero": lambda: snntorch("Leaky", beta=0.85, reset_mechanism="zero"),
    "Leaky-zero-at-once": lambda: snntorch("Leaky", beta=0.85, **AT_ONCE),
    "Leaky-learned": lambda: snntorch("Leaky", beta=0.85, **LEARNED),
    "Leaky-channels": snntorch_channels,
    "Lapicque": lambda: snntorch("Lapicque", R=1.3, C=2.5),
    "Synaptic": lambda: snntorch("Synaptic", alpha=0.6, beta=0.8, learn_alpha=True, **LEARNED),
    "Synaptic-zero-at-once": lambda: snntorch("Synaptic", alpha=0.6, beta=0.8, **AT_ONCE),
    "RLeaky": lambda: snntorch("RLeaky", beta=0.85),
    "RLeaky-one-to-one": lambda: snntorch("RLeaky", beta=0.85, V=0.4),
    "RSynaptic": lambda: snntorch("RSynaptic", alpha=0.5, beta=0.85),
    "loop": lambda: snntorch_loop(),
    "loop-cnn": lambda: (*snntorch_loop(cnn=True), (2, 4, 4)),
    "loop-cnn-functions": lambda: (*snntorch_loop(cnn=True, functional=True), IMAGES),
    "atan": lambda: snntorch_surrogate("atan"),
    "fast_sigmoid": lambda: snntorch_surrogate("fast_sigmoid"),
    "sigmoid": lambda: snntorch_surrogate("sigmoid"),
}
NODES = {
    "IFNode": {},
    "IFNode-soft": {"v_reset": None, "surrogate": "Sigmoid"},
    "IFNode-reset": {"v_reset": -0.3, "detach_reset": True},
    "LIFNode": {"tau": 1.7},
    "LIFNode-soft": {"tau": 1.7, "v_reset": None, "detach_reset": True},
    "LIFNode-input": {"tau": 3.0, "decay_input": False, "v_reset": 0.1},
    "ParametricLIFNode": {"init_tau": 1.6},
    "ParametricLIFNode-soft": {"init_tau": 2.5, "decay_input": False, "v_reset": None},
}
SURROGATES = {
    "ATan": (3.0,),
    "Erf": (1.5,),
    "PiecewiseExp": (2.0,),
    "PiecewiseLeakyReLU": (0.8, 0.0),
    "PiecewiseQuadratic": (1.2,),
    "QPseudoSpike": (2.0,),
    "Rect": (0.9,),
    "Sigmoid": (5.0,),
    "SoftSign": (3.0,),
    "SuperSpike": (1.5,),
}


def nodes(mode, prefix=""):
    return {
        name: lambda name=name, options=options: spikingjelly(
            prefix + name.partition("-")[0], mode, **options
        )
        for name, options in NODES.items()
    }


def spikingjelly_surrogate(name, constants):
    return spikingjelly("LIFNode", tau=2.0, surrogate=name, constants=constants)


SPIKINGJELLY = {
    **nodes("m"),
    **{f"{name}-step": make for name, make in nodes("s").items()},
    **{
        name: lambda name=name, constants=constants: spikingjelly_surrogate(name, constants)
        for name, constants in SURROGATES.items()
    },
    "cnn": lambda: (*spikingjelly_cnn(), IMAGES),
    "cnn-step": lambda: (*spikingjelly_cnn("s"), IMAGES),
    "residual": lambda: (*spikingjelly_cnn(own=True), IMAGES),
    "residual-step": lambda: (*spikingjelly_cnn("s", own=True), IMAGES),
    "containers": lambda: (*spikingjelly_containers(), IMAGES),
    "sew_resnet18": lambda: (*sew_resnet18(), (3, 32, 32)),
}
# SpikingJelly 0.0.0.0.12: the package has another name, and a class for neurons on sequences
CLOCK_DRIVEN = {
    **nodes("s"),
    **{f"MultiStep{name}": make for name, make in nodes("m", "MultiStep").items()},
    "containers": SPIKINGJELLY["containers"],
}
BOX = {"tau_mem_inv": 400.0}
NORSE = {
    "LIFCell": lambda: norse("LIFCell"),
    "LIFCell-rest": lambda: norse("LIFCell", v_leak=0.2, v_reset=-0.1, v_th=0.8),
    "LIF": lambda: norse("LIF", cell=False),
    "LIFBoxCell": lambda: norse("LIFBoxCell", **BOX),
    "LIFBoxCell-rest": lambda: norse("LIFBoxCell", **BOX, v_leak=0.1, v_reset=-0.2),
    "LIFBoxCell-soft": lambda: norse_soft(),
    "LIFRecurrentCell": lambda: norse("LIFRecurrentCell"),
    "LIFRecurrent": lambda: norse("LIFRecurrent", cell=False),
    "IAFCell": lambda: norse("IAFCell", v_reset=-0.1),
    "LICell": lambda: norse("LICell"),
    "LIBoxCell": lambda: norse("LIBoxCell"),
    "LILinearCell": lambda: norse("LILinearCell"),
    "loop": norse_loop,
    "super": lambda: norse("LIFBoxCell", **BOX),
    "tanh": lambda: norse("LIFBoxCell", **BOX, method="tanh", alpha=3.0),
    "triangle": lambda: norse("LIFBoxCell", **BOX, method="triangle", alpha=0.3),
    "heavi_erfc": lambda: norse("LIFBoxCell", **BOX, method="heavi_erfc", alpha=2.0),
}
CASES = {
    "snntorch": SNNTORCH,
    "spikingjelly": SPIKINGJELLY,
    "clock_driven": CLOCK_DRIVEN,
    "norse": NORSE,
}
