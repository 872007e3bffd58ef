"""Kernels run where their input is, whatever torch's default device is."""

import pytest
import torch
from torch import nn

import backspike as bs


def fast():
    """Many spikes, so that the weight gradient is looked up."""
    layers = (
        nn.Unflatten(2, (1, 8, 8)),
        bs.OverTime(nn.Conv2d(1, 64, 3, padding=1)),
        bs.LIF(v_threshold=0.2),
        bs.OverTime(nn.Conv2d(64, 64, 3, padding=1)),
        bs.LIF(),
    )
    model = bs.Sequential(*layers)
    bs.set_convolution(model, "fast")
    return model


LAYERS = {
    "LIF": lambda: bs.LIF(surrogate=bs.Masked(bs.Triangle(), p=0.5), memory="8bit"),
    "PLIF": lambda: bs.PLIF(learn=("tau", "threshold")),
    "CLIF": bs.CLIF,
    "AdaptiveLIF": lambda: bs.AdaptiveLIF(learn=("a", "b", "tau_adaptation")),
    "CubaLIF": bs.CubaLIF,
    "Recurrent": lambda: bs.Recurrent(nn.Linear(64, 64), bs.CubaLIF(surrogate=bs.Triangle())),
    "linear": lambda: bs.Sequential(
        bs.LIF(), bs.OverTime(nn.Linear(64, 64), nn.BatchNorm1d(64)), bs.LIF()
    ),
    "convolution": lambda: bs.Sequential(
        nn.Unflatten(2, (1, 8, 8)),
        bs.OverTime(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32)),
        bs.LIF(),
        bs.OverTime(nn.AvgPool2d(2)),
        bs.OverTime(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64)),
        bs.LIF(),
    ),
    "fast convolution": fast,
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_default_device_of_torch_changes_nothing(layer):
    """As after torch.set_default_device("cuda") in a program that also computes on the CPU."""
    torch.manual_seed(0)
    layer = layer()
    x, results = torch.rand(6, 32, 64, requires_grad=True), []
    for device in ("cpu", "meta"):
        x.grad = None
        torch.manual_seed(1)
        with torch.device(device):
            s = layer(x)
            s.sum().backward()
        results.append([s.detach(), x.grad.clone()])
    for a, b in zip(*results):
        assert a.device.type == b.device.type == "cpu"
        assert torch.equal(a, b)
