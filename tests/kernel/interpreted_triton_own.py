"""Own neurons in Triton's interpreter; test_triton_own.py runs this file."""

import pytest
import torch
from helpers.own_neurons import LIF, PAIRS, SHIPPED

import backspike as bs

r = torch.Generator().manual_seed(3)
NEURONS = {"LIF": (LIF, 2.0), **SHIPPED}


def outcome(layer, x, g, v0=None):
    torch.manual_seed(4)
    x = x.clone().requires_grad_()
    with bs.record(layer) as seen:
        layer(x, v0)
    out = seen[""]
    loss = (out.spikes * g).sum() + (out.membrane * g.flip(0)).sum() + out.state.square().sum()
    leaves = [x, *layer.parameters()]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    grads = [torch.zeros_like(p) if g is None else g for g, p in zip(found, leaves)]
    return [a.detach() for a in (out.spikes, out.membrane, out.state, *grads)]


def compare(make, x, tolerance, v0=None, **options):
    layers = [make(backend=backend, **options) for backend in ("triton", "eager")]
    layers = [m.double() if x.dtype == torch.float64 else m for m in layers]
    g = torch.randn(x.shape, generator=r, dtype=torch.float64).to(x.dtype)
    got, want = (outcome(layer, x, g, v0) for layer in layers)
    assert torch.equal(got[0], want[0])
    assert 0 < got[0].float().mean() < 1
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("kind", NEURONS)
@pytest.mark.parametrize(
    "options",
    [
        {"surrogate": bs.ATan(), "reset_gradient": 1.0},
        {
            "surrogate": bs.Masked(bs.Parametric(bs.Sigmoid()), p=0.3),
            "channels": 2,
            "memory": "recompute",
        },
        {"surrogate": bs.Masked(bs.Triangle(1.0), p=0.4, replace=bs.Rectangle())},
        {"surrogate": bs.Masked(bs.ATan(), p=0.3, rescale=True), "temporal_gradient": False},
    ],
    ids=["plain", "width", "replace", "no time"],
)
def test_all_gradients_are_those_of_torch(kind, options):
    make, size = NEURONS[kind]
    x = size * torch.rand(16, 3, 2, 5, generator=r, dtype=torch.float64)
    compare(make, x, 1e-12, learn=make.learnable, **options)


@pytest.mark.parametrize("kind", ["LIF", "QIF", "Izhikevich", "BRF"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precisions(kind, dtype):
    make, size = NEURONS[kind]
    x = (size * torch.rand(20, 2, 3, 5, generator=r)).to(dtype)
    compare(make, x, 1e-2 if dtype != torch.float32 else 1e-5)


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
    compare(bs.Izhikevich, last, 1e-12, v0=v0, learn=("a", "d"), channels=4)
    compare(LIF, x[..., :1, :1].contiguous(), 1e-12, learn="tau")
    assert LIF(backend="triton")(torch.rand(3, 0, 4)).shape == (3, 0, 4)


def test_what_triton_lacks_is_named():
    class Tanh(bs.Neuron):
        states = {"v": 0.0}  # noqa: RUF012

        def step(self, x, v):
            u = torch.tanh(v) + x
            return u, u

    with pytest.raises(bs.Unsupported, match="there is no rule in Triton for tanh"):
        Tanh(backend="triton")(torch.rand(3, 2, requires_grad=True))
    assert "triton" in bs.explain(bs.AdEx(backend="triton"))
