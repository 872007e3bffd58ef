"""`bs.block` against its separate layers.

All kinds and modes of norms, 16 bits, hooks, frozen layers and odd inputs.
"""

import copy

import pytest
import torch
from torch import nn

import backspike as bs

SHAPE = (3, 4, 2, 7, 6)


def norm_2d(**changed):
    norm = nn.BatchNorm2d(5)
    for name, value in changed.items():
        setattr(norm, name, value)
    return norm


NORMS = {
    "BatchNorm": norm_2d,
    "average of all batches": lambda: nn.BatchNorm2d(5, momentum=None),
    "momentum 0": lambda: nn.BatchNorm2d(5, momentum=0.0),
    "no statistics": lambda: nn.BatchNorm2d(5, track_running_stats=False),
    "statistics no longer tracked": lambda: norm_2d(track_running_stats=False),
    "batches not counted": lambda: norm_2d(num_batches_tracked=None),
    "no weights": lambda: nn.BatchNorm2d(5, affine=False),
    "frozen": lambda: nn.BatchNorm2d(5).requires_grad_(False),
    "GroupNorm": lambda: nn.GroupNorm(5, 5),
    "InstanceNorm": lambda: nn.InstanceNorm2d(5, track_running_stats=True),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(5),
}
POOLS = {
    "none": lambda: None,
    "avg": lambda: nn.AvgPool2d(2),
    "max": lambda: nn.MaxPool2d((2, 2)),
    "a last part of a window": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "with gaps": lambda: nn.MaxPool2d(2, dilation=2),
    "over another number": lambda: nn.AvgPool2d(2, divisor_override=3),
}


def layers(norm, product=None, pool=None, train=True, memory="exact", dtype=torch.float64):
    torch.manual_seed(0)
    made = [
        product or nn.Conv2d(2, 5, 3, padding=1, bias=False),
        norm,
        bs.LIF(v_threshold=0.4, memory=memory),
        pool,
    ]
    for m in made:
        if isinstance(m, nn.Module):
            m.train(train).to(dtype)
            for p in m.parameters() if m is norm else ():
                nn.init.uniform_(p, 0.5, 1.5)
    return made


def one_by_one(x, *layers):
    for layer in layers:
        if isinstance(layer, bs.LIF):
            x = layer(x)
        elif layer is not None:
            x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return x


def outcome(run, made, x, passes=2):
    """Return spikes, gradients of input and parameters, and buffers, after more than one pass."""
    made, leaf = copy.deepcopy(made), x.clone().requires_grad_()
    for _ in range(passes):
        y = run(leaf, *made)
        (y * torch.linspace(-1, 1, y[0].numel()).view(y[0].shape).to(y)).sum().backward()
    modules = [m for m in made if m is not None]
    gradients = [leaf.grad, *(p.grad for m in modules for p in m.parameters())]
    return [y.detach(), *gradients, *(b for m in modules for b in m.buffers())]


def assert_same(got, want, bound=1e-9):
    assert want[0].any() or not want[0].numel()
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=bound, atol=bound)


def images(shape=SHAPE, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("memory", ["exact", "checkpoint"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_every_mode_of_a_norm(norm, train, memory):
    made = layers(NORMS[norm](), train=train, memory=memory)
    assert_same(outcome(bs.block, made, images()), outcome(one_by_one, made, images()))


@pytest.mark.parametrize("pool", POOLS)
def test_pools_equal_the_separate_layers(pool):
    for norm in (nn.BatchNorm2d(5), None):
        made = layers(norm, pool=POOLS[pool]())
        assert_same(outcome(bs.block, made, images()), outcome(one_by_one, made, images()))


@pytest.mark.parametrize("memory", ["exact", "checkpoint"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    ("shape", "product", "norm"),
    [
        ((1, 4, 2, 7, 6), None, nn.BatchNorm2d),
        ((3, 1, 2, 7, 6), None, nn.BatchNorm2d),
        ((3, 0, 2, 7, 6), None, nn.BatchNorm2d),
        ((3, 4, 2, 9), lambda: nn.Conv1d(2, 5, 3, bias=False), nn.BatchNorm1d),
        ((3, 4, 2, 4, 5, 3), lambda: nn.Conv3d(2, 5, 3, padding=1, bias=False), nn.BatchNorm3d),
        ((3, 4, 7), lambda: nn.Linear(7, 5, bias=False), nn.BatchNorm1d),
    ],
    ids=["one timestep", "one sample", "no sample", "signals", "volumes", "vectors"],
)
def test_inputs(shape, product, norm, train, memory):
    pool = nn.MaxPool2d(2) if len(shape) == 5 else None
    made = layers(norm(5), product and product(), pool, train=train, memory=memory)
    assert_same(outcome(bs.block, made, images(shape)), outcome(one_by_one, made, images(shape)))


@pytest.mark.parametrize("memory", ["exact", "checkpoint"])
@pytest.mark.parametrize("frozen", [(0,), (1,), (0, 1)])
def test_frozen_layers_get_no_gradient(frozen, memory):
    """Also with an input that needs no gradient."""
    made = layers(nn.BatchNorm2d(5), memory=memory)
    for i in frozen:
        made[i].requires_grad_(False)
    assert_same(outcome(bs.block, made, images()), outcome(one_by_one, made, images()))
    y = bs.block(images(), *made)
    assert y.requires_grad == (len(frozen) < 2)
    if y.requires_grad:
        y.sum().backward()
    assert all((p.grad is None) == (i in frozen) for i in (0, 1) for p in made[i].parameters())


def test_a_block_refuses_inputs_that_torch_refuses():
    for shape, product, norm, message in (
        (SHAPE, nn.Conv2d(2, 5, 3), nn.BatchNorm1d(5), "expected 2D or 3D input"),
        ((3, 4, 7), nn.Linear(7, 5), nn.BatchNorm2d(5), "expected 4D input"),
        (
            SHAPE,
            nn.Conv2d(2, 5, 3),
            nn.BatchNorm2d(4),
            r"weight of BatchNorm must be \[C\] with C = 5",
        ),
        ((1, 1, 7), nn.Linear(7, 5), nn.BatchNorm1d(5), "more than one value per channel"),
    ):
        with pytest.raises(ValueError, match=message):
            bs.block(images(shape).float(), product, norm, bs.LIF())


def test_recording_under_autocast_does_not_change_spikes():
    made = layers(nn.BatchNorm2d(5), pool=nn.MaxPool2d(2), dtype=torch.float32)
    model, x = (
        bs.Sequential(bs.OverTime(*made[:2]), made[2], bs.OverTime(made[3])),
        images((3, 40, 2, 7, 6)).float(),
    )
    with torch.autocast("cpu", torch.bfloat16):
        want = model(x)
        for layer in made:
            with layer.register_forward_hook(lambda *_: None):
                assert torch.equal(model(x), want)
        with bs.record(model):
            assert torch.equal(model(x), want)
    assert want.dtype == torch.bfloat16
    assert want.any()


def test_recording_a_16_bit_model_changes_less_than_1_percent_of_spikes():
    """With a bfloat16 norm, torch rounds the current to 16 bits; the fused op does not."""
    made = layers(nn.BatchNorm2d(5), dtype=torch.bfloat16)
    model, x = bs.Sequential(bs.OverTime(*made[:2]), made[2]), images((3, 40, 2, 7, 6)).bfloat16()
    want = model(x)
    with bs.record(model) as recorded:
        assert (model(x) != want).float().mean() < 0.01
    assert recorded["1"].spikes.dtype == want.dtype == torch.bfloat16


def test_the_neuron_can_be_any_module():
    conv, norm = nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5)
    x = images().float()
    y = bs.block(x, conv, norm, bs.Integrator(), nn.AvgPool2d(2))
    want = one_by_one(x, conv, norm).cumsum(0)
    torch.testing.assert_close(y, one_by_one(want, nn.AvgPool2d(2)), rtol=1e-5, atol=1e-5)
