"""Stand-ins for neurons of other libraries: their names, attributes and documented equations.

Tests with the libraries themselves need an environment (`helpers/peers.py`); these do not.
"""

import torch
from torch import nn


def _class_of(module):
    """A decorator: the class belongs to that module."""

    def decorate(cls):
        cls.__module__ = module
        return cls

    return decorate


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, derivative, ties):
        ctx.save_for_backward(derivative(z))
        return (z >= 0 if ties else z > 0).to(z)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None, None


def spike(z, derivative, ties):
    return _Spike.apply(z, derivative, ties)


# ---- SpikingJelly: v + (x - (v - v_reset)) / tau, v >= v_threshold -------------------------------


@_class_of("spikingjelly.activation_based.surrogate")
class ATan(nn.Module):
    def __init__(self, alpha=2.0):
        super().__init__()
        self.alpha, self.spiking = alpha, True

    def forward(self, z):
        h = self.alpha / 2
        return spike(z, lambda z: h / (1 + (torch.pi * h * z) ** 2), ties=True)


@_class_of("spikingjelly.activation_based.surrogate")
class S2NN(ATan):
    pass


@_class_of("spikingjelly.activation_based.neuron")
class BaseNode(nn.Module):
    def __init__(self, v_threshold=1.0, v_reset=0.0, surrogate=None, step_mode="m", detach=False):
        super().__init__()
        self.v_threshold, self.v_reset, self.step_mode = v_threshold, v_reset, step_mode
        self.surrogate_function, self.detach_reset = surrogate or ATan(), detach
        self._memories = {"v": None}

    def reset(self):
        self._memories["v"] = None

    def forward(self, x):
        return self.one(x) if self.step_mode == "s" else torch.stack([self.one(x_t) for x_t in x])

    def one(self, x):
        v = self._memories["v"]
        v = torch.full_like(x, self.v_reset or 0.0) if v is None else v
        u = self.charge(v, x)
        s = self.surrogate_function(u - self.v_threshold)
        r = s.detach() if self.detach_reset else s
        v = u - r * self.v_threshold if self.v_reset is None else (1 - r) * u + r * self.v_reset
        self._memories["v"] = v
        return s


@_class_of("spikingjelly.activation_based.neuron")
class IFNode(BaseNode):
    def charge(self, v, x):
        return v + x


@_class_of("spikingjelly.activation_based.neuron")
class LIFNode(BaseNode):
    def __init__(self, tau=2.0, decay_input=True, **rest):
        super().__init__(**rest)
        self.tau, self.decay_input = tau, decay_input

    def charge(self, v, x):
        rest = self.v_reset or 0.0
        return v - (v - rest) / self.tau + (x / self.tau if self.decay_input else x)


@_class_of("spikingjelly.activation_based.neuron")
class EIFNode(BaseNode):
    pass


@_class_of("spikingjelly.activation_based.layer")
class Conv2d(nn.Conv2d):
    step_mode = "m"

    def forward(self, x):
        if self.step_mode == "s":
            return super().forward(x)
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@_class_of("spikingjelly.activation_based.layer")
class SynapseFilter(nn.Module):
    def __init__(self):
        super().__init__()
        self._memories = {"out_i": 0.0}


# ---- snnTorch: u[t] = beta u[t-1] + x[t] - theta [u[t-1] > theta], u > theta ---------------------


@_class_of("snntorch.surrogate")
def fast_sigmoid(slope=25.0):
    def inner(z):
        return spike(z, lambda z: 1 / (slope * z.abs() + 1) ** 2, ties=False)

    return inner


@_class_of("snntorch._neurons.neurons")
class SpikingNeuron(nn.Module):
    inhibition = state_quant = surrogate_disable = False

    def __init__(self, beta=0.9, threshold=1.0, learn=False, reset="subtract", init_hidden=True):
        super().__init__()
        values = {"beta": beta, "threshold": threshold}
        for name, value in values.items():
            value = torch.as_tensor(value)
            (self.register_parameter if learn else self.register_buffer)(
                name, nn.Parameter(value) if learn else value
            )
        self.register_buffer("graded_spikes_factor", torch.tensor(1.0))
        self.register_buffer("reset_mechanism_val", torch.tensor(0 if reset == "subtract" else 1))
        self.spike_grad, self.reset_mechanism = fast_sigmoid(), reset
        self.init_hidden, self.reset_delay, self.mem = init_hidden, True, None

    def reset_mem(self):
        self.mem = None


@_class_of("snntorch._neurons.leaky")
class Leaky(SpikingNeuron):
    def forward(self, x, mem=None):
        u = mem if mem is not None else self.mem if self.mem is not None else torch.zeros_like(x)
        fired = self.spike_grad(u - self.threshold).detach()
        if self.reset_mechanism == "subtract":
            u = self.beta * u + x - fired * self.threshold
        else:
            u = self.beta * (1 - fired) * u + x
        self.mem = u
        s = self.spike_grad(u - self.threshold)
        return s if self.init_hidden else (s, u)


@_class_of("snntorch._neurons.alpha")
class Alpha(SpikingNeuron):
    pass
