"""The Triton kernels of recurrent layers in Triton's interpreter, against the reference.

test_triton.py runs this file with TRITON_INTERPRET=1 in a separate process.
"""

import math

import pytest
import torch
from helpers.recurrent import OPTIONS, assert_gradients_equal, drive, gradients, make
from torch import nn

import backspike as bs
from backspike.kernel.triton import recurrent
from backspike.surrogate import Masked, Rectangle, Triangle

KINDS = (bs.LIF, bs.IF, bs.PLIF, bs.CubaLIF)
NAMES = [*OPTIONS]
# every option with one kind of neuron, every kind with some options; the others are slow
CASES = [
    pytest.param(
        kind,
        OPTIONS[name],
        id=f"{kind.__name__}, {name}",
        marks=() if NAMES.index(name) % 4 == i else pytest.mark.slow,
    )
    for i, kind in enumerate(KINDS)
    for name in NAMES
    if not (kind is bs.IF and OPTIONS[name].get("decay_input") is False)
]


def both(n, kind, x, g, to=torch.float64, **options):
    """The gradients of the kernel and of the reference."""
    layers = [make(n, kind, backend=b, **options).to(to) for b in ("triton", "reference")]
    assert layers[0].why_step_by_step(x) is None
    return [gradients(layer, x, g) for layer in layers]


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_the_kernel_equals_autograd_through_the_reference(kind, options):
    """17 samples and 18 neurons: two programs, and several blocks of rows of the weight."""
    got, want = both(18, kind, *drive(4, 17, 18), **options)
    assert 0.02 < got[0].mean() < 0.98
    assert_gradients_equal(got, want)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (bs.PLIF, {"learn": ("tau", "threshold")}),
        (bs.PLIF, {"v_reset": None, "surrogate": Masked(Triangle(), p=0.5)}),
        (bs.CubaLIF, {"learn": ("tau", "tau_synapse")}),
        (bs.CubaLIF, {"learn": ("tau_synapse",), "decay_input": False, "v_reset": -0.1}),
    ],
)
def test_learned_constants(kind, options):
    assert_gradients_equal(*both(5, kind, *drive(6, 3, 5), **options))


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 3, 5, 4)])
def test_learned_constants_of_each_channel(shape):
    """Channels are the neurons of the linear layer, or come before them."""
    x, g = drive(6, 3, math.prod(shape[2:]))
    constants = {"tau": torch.linspace(2.0, 4.0, 5), "learn": ("tau", "threshold")}
    got, want = both(shape[-1], bs.LIF, x.view(shape), g.view(shape), **constants)
    assert got[-1].shape == (5,)
    assert_gradients_equal(got, want)


@pytest.mark.parametrize("memory", ["bfloat16", "8bit", "1bit"])
def test_rounded_membranes_give_the_gradients_of_the_loop(memory):
    options = {"surrogate": Rectangle(2.0), "v_reset": None, "memory": memory}
    layer, (x, g) = make(7, bs.LIF, backend="triton", **options), drive(4, 3, 7)
    got = gradients(layer, x, g)
    hook = layer.layer.register_forward_hook(lambda *_: None)
    assert "hooks" in layer.why_step_by_step(x)
    want = gradients(layer, x, g)
    hook.remove()
    assert_gradients_equal(got, want)


@pytest.mark.parametrize("kind", [bs.LIF, bs.CubaLIF])
def test_gradients_reach_the_recorded_membrane_its_moments_and_the_state(kind):
    results = []
    for backend in ("triton", "reference"):
        layer, (x, g) = make(6, kind, backend=backend), drive(4, 3, 6)
        x = x.requires_grad_()
        pda = bs.PotentialAdjustment(layer, 1.0)
        with bs.record(layer) as seen:
            s = layer(x)
        out = seen["neuron"]
        (s * g).sum().backward(retain_graph=True)
        (out.membrane**2).sum().backward(retain_graph=True)
        (out.state**2).sum().backward(retain_graph=True)
        pda.loss().backward()
        results.append([s.detach(), out.membrane.detach(), x.grad, layer.layer.weight.grad])
    assert_gradients_equal(*results)


@pytest.mark.parametrize(("kind", "learn"), [(bs.LIF, ()), (bs.CubaLIF, ("tau", "tau_synapse"))])
def test_a_streamed_chunk_continues_from_the_spikes_before(kind, learn):
    x, g = drive(6, 5, 9)
    results = []
    for backend in ("triton", "reference"):
        layer = make(9, kind, backend=backend, learn=learn)
        with bs.streaming(layer):
            layer(x[:3])
            results.append(gradients(layer, x[3:], g[3:]))
    assert_gradients_equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_differ_only_where_the_membrane_is_at_the_threshold(dtype):
    x, g = (a.to(dtype) for a in drive(6, 5, 20))
    got, want = both(20, bs.LIF, x, g, to=dtype, v_reset=None)
    assert [a.dtype for a in got] == [a.dtype for a in want]
    assert (got[0] == want[0]).double().mean() > (0.999 if dtype == torch.float32 else 0.93)
    if dtype == torch.float32:
        assert_gradients_equal(got[1:], want[1:], 1e-5)


def test_the_layer_acts_on_the_last_dimension():
    x, g = drive(4, 12, 7)
    layer = make(7, bs.LIF, backend="triton")
    got = gradients(layer, x.view(4, 4, 3, 7), g.view(4, 4, 3, 7))
    want = gradients(layer, x, g)
    assert_gradients_equal([a.view_as(b) for a, b in zip(got, want)], want)


def test_what_is_not_finite_shows_where_the_reference_shows_it():
    x, _ = drive(4, 4, 9)
    x[1, 1, 3], x[2, 2, 0] = torch.nan, torch.inf
    layers = [make(9, bs.LIF, backend=b) for b in ("triton", "reference")]
    got, want = (layer(x).isnan() for layer in layers)
    assert torch.equal(got, want)
    assert 0 < got.sum() < got.numel() / 2
    with torch.no_grad():  # used from the second timestep on, as no spikes come before the first
        layers[0].layer.weight[0, 0] = torch.nan
    assert layers[0](x)[1:, :, 0].isnan().all()


def test_what_does_not_fit_runs_step_by_step_and_says_why(monkeypatch):
    wide = bs.Recurrent(nn.Linear(1024, 1024), bs.LIF(backend="triton"))
    assert "1024 neurons are too many" in wide.why_step_by_step(torch.zeros(1, 1, 1024))
    assert "1024 neurons are too many" in bs.explain(wide)
    adaptive = bs.Recurrent(nn.Linear(4, 4), bs.AdaptiveLIF(backend="triton"))
    assert "adaptive" in adaptive.why_step_by_step(torch.zeros(1, 1, 4))
    monkeypatch.setitem(recurrent._broken, (torch.float32, 4), ["its kernel does not compile"])
    layer = bs.Recurrent(nn.Linear(4, 4), bs.LIF(backend="triton"))
    assert "does not compile" in layer.why_step_by_step(torch.zeros(1, 1, 4))
    assert layer(torch.zeros(2, 1, 4)).shape == (2, 1, 4)
