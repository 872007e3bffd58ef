"""NaN and infinity: every backend returns a spike of NaN where the reference does.

A membrane that is not finite has no spike that is right, and one of 0 would hide it. NaN is the
expected value by the definition: the line of slope h through u, at u = NaN.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from helpers.layouts import LAYOUTS
from helpers.neurons import RESETS, draw, run
from helpers.norms import make_call
from torch import nn

import backspike as bs
from backspike import ATan, Masked, Triangle
from backspike.kernel.cpu import library
from backspike.kernel.norm import Norm, norm_lif
from backspike.layers import sparsity, synapse

SHAPE = (5, 3, 4, 7, 9)  # 756 elements per timestep: more than a block, not a multiple of 8
HAND_WRITTEN = [b for b in bs.backends() if b != "reference"]
each_backend = pytest.mark.parametrize("backend", HAND_WRITTEN)
needs_c = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")


def poisoned(dtype=torch.float32, shape=SHAPE):
    """Currents of which a few are NaN or infinite, at first and later steps."""
    x = draw(shape, dtype=dtype)[0]
    for k, bad in enumerate((math.nan, math.inf, -math.inf)):
        x[k].view(-1)[11 * k + 1] = bad
        x[k + 1].view(-1)[-11 * k - 1] = bad
    return x


def same_spikes(got, want):
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@each_backend
@pytest.mark.parametrize("memory", ["exact", "8bit", "bfloat16", "recompute"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_spikes_and_states_are_not_finite_where_those_of_the_reference_are(
    backend, memory, reset, layout
):
    for dtype, surrogate, record in itertools.product(
        (torch.float32, torch.float64, torch.bfloat16, torch.float16),
        (ATan(), Masked(Triangle(), p=0.4)),
        (True, False),
    ):
        x = LAYOUTS[layout](poisoned(dtype)).requires_grad_()
        options = {"v_reset": RESETS[reset], "surrogate": surrogate, "record_membrane": record}
        want = bs.lif(x, backend="reference", **options)
        got = bs.lif(x, backend=backend, memory=memory, **options)
        assert want.spikes.isnan().sum() > 10
        same_spikes(got.spikes, want.spikes)
        assert torch.equal(got.state.isfinite(), want.state.isfinite())
        if record:
            assert torch.equal(got.membrane.isfinite(), want.membrane.isfinite())


@each_backend
def test_other_elements_keep_their_gradients(backend):
    clean, _, upstream = draw(SHAPE, dtype=torch.float32)
    x = poisoned()
    touched = (x != clean).any(0)
    rule = {"surrogate": ATan(), "memory": "8bit"}
    want = run(backend, clean, rule=rule, upstream=upstream)["x"]
    got = run(backend, x, rule=rule, upstream=upstream)["x"]
    assert torch.equal(got[:, ~touched], want[:, ~touched])
    assert 0 < touched.sum() < 10


@each_backend
def test_a_stream_stays_nan(backend):
    """A state that is not finite, as the next call of a stream gets it."""
    x = torch.zeros(1, 3)
    for reset in RESETS.values():
        v = torch.tensor([[math.nan, math.inf, 0.0]])
        for _ in range(3):
            spikes, v, _ = bs.lif(x[None], v, backend=backend, v_reset=reset)
            assert spikes.isnan().flatten().tolist() == [True, True, False]


@each_backend
def test_neurons_with_two_states_and_the_integrator(backend):
    x = poisoned(shape=(5, 3, 40))
    for kind in (bs.CLIF, bs.AdaptiveLIF) if backend in ("cpu", "eager") else ():
        layers = [kind(backend=b) for b in (backend, "reference")]
        (got, state), (want, expected) = (
            (layer(x), layer.compute(x, None)[0].state) for layer in layers
        )
        same_spikes(got, want)
        assert torch.equal(state.isfinite(), expected.isfinite())
    rule = {"v_threshold": math.inf, "backend": backend}
    same_spikes(bs.lif(x, **rule).spikes, bs.lif(x, **rule | {"backend": "reference"}).spikes)


@needs_c
@pytest.mark.parametrize("pool", [None, "avg", "max"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_a_norm_and_a_pool_keep_nan(pool, layout):
    """A weight of NaN in one channel; in another only one pixel is infinite in evaluation."""
    for dtype, training in itertools.product(
        (torch.float32, torch.float64, torch.bfloat16), (True, False)
    ):
        y = torch.randn(3, 4, 3, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
        y[1, 2, 1, 2, 3] = math.inf
        y = LAYOUTS[layout](y)
        kind = torch.float64 if dtype == torch.float64 else torch.float32
        weight = torch.tensor([1.0, 1.0, math.nan], dtype=kind)
        norm = Norm(
            weight, None, torch.zeros(3, dtype=kind), torch.ones(3, dtype=kind), training, 0.1, 1e-5
        )
        z = F.batch_norm(
            y.flatten(0, 1).to(kind),
            norm.running_mean.clone(),
            norm.running_var.clone(),
            weight,
            None,
            training,
        )
        want = bs.lif(z.unflatten(0, (3, 4)), backend="reference").spikes.to(dtype)
        if pool:
            pooled = F.avg_pool2d if pool == "avg" else F.max_pool2d
            want = pooled(want.flatten(0, 1), 2).unflatten(0, (3, 4))
        got = norm_lif(make_call(y, None, {"v_reset": 0.0}), norm, pool).spikes
        assert want.isnan()[:, :, 2].all()
        assert torch.equal(got.isnan(), want.isnan())


def sparse_linear():
    layer = nn.Linear(512, 256)
    return layer, layer.weight, (lambda x: synapse.linear(x, layer)), (512,)


def sparse_convolution():
    layer = nn.Conv2d(64, 64, 3, padding=1)
    return layer, layer.weight, (lambda x: synapse.convolution(x, layer)), (64, 12, 12)


@needs_c
@pytest.mark.parametrize("make", [sparse_linear, sparse_convolution])
@pytest.mark.parametrize("learns", [True, False])
def test_a_weight_of_nan_that_no_spike_selects_is_seen(make, learns):
    """Where spikes select the weights that are added, no sum contains this weight."""
    layer, weight, call, shape = make()
    x = torch.zeros(256, *shape)
    x[:, 3:20:4] = 1
    with torch.set_grad_enabled(learns):
        if learns:
            call(x)
            assert sparsity.plan_of(layer).forward != "dense"
        assert call(x).isfinite().all()
        for bad in (math.nan, math.inf):
            with torch.no_grad():
                weight[0, 0] = bad  # input 0 has no spikes
            same_where_finite = call(x).isfinite()
            assert torch.equal(same_where_finite, layer(x).isfinite())
            assert not same_where_finite[:, 0].all()
