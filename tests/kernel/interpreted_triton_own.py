"""Own neurons in Triton's interpreter; test_triton_own.py runs this file.

The interpreter is slow: all neurons are tested with one set of options, and LIF with all; the other
combinations are marked slow.
"""

import pytest
import torch
from helpers.own_neurons import LIF, PAIRS, SHIPPED, beside_torch, deviation

import backspike as bs

r = torch.Generator().manual_seed(3)
NEURONS = {"LIF": (LIF, 2.0), **SHIPPED}


OPTIONS = {
    "width": {
        "surrogate": bs.Masked(bs.Parametric(bs.Sigmoid()), p=0.3),
        "channels": 2,
        "memory": "recompute",
    },
    "plain": {"surrogate": bs.ATan(), "reset_gradient": 1.0},
    "replace": {"surrogate": bs.Masked(bs.Triangle(1.0), p=0.4, replace=bs.Rectangle())},
    "no time": {
        "surrogate": bs.Masked(bs.ATan(), p=0.3, rescale=True),
        "temporal_gradient": False,
    },
}


def with_slow(kinds, others, always):
    """All pairs; those without LIF and without `always` are marked slow."""
    return [
        pytest.param(
            kind, other, marks=() if kind == "LIF" or other == always else pytest.mark.slow
        )
        for kind in kinds
        for other in others
    ]


@pytest.mark.parametrize(("kind", "options"), with_slow(NEURONS, OPTIONS, "width"))
def test_all_gradients_are_those_of_torch(kind, options):
    make, size = NEURONS[kind]
    x = size * torch.rand(16, 3, 2, 5, generator=r, dtype=torch.float64)
    found = beside_torch(make, x, "triton", learn=make.learnable, **OPTIONS[options])
    assert deviation(*found) <= 1e-12


@pytest.mark.parametrize(
    ("kind", "dtype"),
    with_slow(
        ["LIF", "QIF", "Izhikevich", "BRF"],
        [torch.float32, torch.bfloat16, torch.float16],
        torch.float32,
    ),
)
def test_lower_precisions(kind, dtype):
    make, size = NEURONS[kind]
    x = (size * torch.rand(20, 2, 3, 5, generator=r)).to(dtype)
    assert deviation(*beside_torch(make, x, "triton")) <= (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("kind", PAIRS)
def test_the_spikes_are_those_of_the_built_in_neurons(kind):
    built_in, own, names = PAIRS[kind]
    a, b = built_in(backend="reference"), own(backend="triton")
    for theirs, ours in names.items():
        getattr(b, ours).data.copy_(getattr(a, theirs).data)
    x = torch.randn(12, 3, 2, 5, generator=r) + 0.7
    assert torch.equal(a(x), b(x))


def test_states_strides_and_sizes():
    x = 2 * torch.rand(5, 3, 4, 6, 7, generator=r, dtype=torch.float64)
    v0 = torch.stack([-65 + torch.rand(3, 4, 6, 7, dtype=torch.float64) for _ in range(2)])
    last = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (5, 3))
    found = beside_torch(bs.Izhikevich, last, "triton", v0, learn=("a", "d"), channels=4)
    assert deviation(*found) <= 1e-12
    found = beside_torch(LIF, x[..., :1, :1].contiguous(), "triton", learn="tau")
    assert deviation(*found) <= 1e-12
    assert LIF(backend="triton")(torch.rand(3, 0, 4)).shape == (3, 0, 4)


def test_what_triton_lacks_is_named():
    class Tanh(bs.Neuron):
        states = {"v": 0.0}  # noqa: RUF012

        def step(self, x, v):
            u = torch.tanh(v) + x
            return u, u

    with pytest.raises(bs.Unsupported, match="there is no rule in Triton for tanh"):
        Tanh(backend="triton")(torch.rand(3, 2, requires_grad=True))
    text = bs.explain(bs.AdEx(backend="triton"))
    assert "triton" in text
    assert text.endswith("saves v")
