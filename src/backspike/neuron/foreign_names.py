"""Names that users of snnTorch and SpikingJelly look for, with what to use here instead."""

from __future__ import annotations

_WHOLE = "a layer takes the whole sequence [T, B, ...], so leave it out"
_REST = (
    "a layer starts each call from rest, so there is nothing to reset; "
    "`with bs.streaming(model)` carries the state from call to call, "
    "and layer(x, v0) takes and returns one"
)
_LAYER = "the layer is bs.{}, and bs.convert turns a whole network of that library into one of ours"

INSTEAD = {
    # arguments of neurons
    "beta": "give tau = 1 / (1 - beta), so that beta = 0.9 is tau = 10",
    "alpha": "give tau_synapse = 1 / (1 - alpha) to bs.CubaLIF",
    "threshold": "it is called v_threshold",
    "init_tau": "it is called tau",
    "reset_mechanism": 'give v_reset=None for "subtract" or v_reset=0.0 for "zero"',
    "detach_reset": "give reset_gradient=0.0 to detach the reset, 1.0 to keep its gradient",
    "spike_grad": "give surrogate=, such as bs.ATan()",
    "surrogate_function": "give surrogate=, such as bs.ATan()",
    "learn_beta": 'give learn="tau"',
    "learn_threshold": 'give learn="threshold"',
    "step_mode": _WHOLE,
    "init_hidden": _WHOLE,
    "output": "layer(x, v0) returns the state as well",
    "store_v_seq": "bs.record(model) gives the membranes",
    # methods and attributes of layers, and functions
    "mem": "bs.record(model) gives the membranes",
    "v": "bs.record(model) gives the membranes",
    "init_leaky": _REST,
    "init_synaptic": _REST,
    "reset": _REST,
    "reset_mem": _REST,
    "reset_hidden": _REST,
    "reset_net": _REST,
    "functional": _REST,
    # layers and modules
    "Leaky": _LAYER.format("LIF"),
    "Synaptic": _LAYER.format("CubaLIF"),
    "Lapicque": _LAYER.format("LIF"),
    "RLeaky": _LAYER.format("Recurrent"),
    "LIFNode": _LAYER.format("LIF"),
    "IFNode": _LAYER.format("IF"),
    "ParametricLIFNode": _LAYER.format("PLIF"),
    "spikegen": "bs.encode has rate, latency and delta; without it an image repeats over time",
}


def hint(name: str) -> str:
    """The end of a message about an unknown name: what to do here; empty if it is not known."""
    return f"; {INSTEAD[name]}" if name in INSTEAD else ""
