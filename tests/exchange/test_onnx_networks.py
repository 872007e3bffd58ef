"""Every network of `bs.models` passes torch.export, and becomes an equal ONNX file."""

import pytest
import torch
from torch import nn

import backspike as bs
from backspike.models import NETWORKS

QUICK = ("ConvNet", "MLP")
SMALL = {
    "ConvNet": {"layout": "4-P-6", "size": 8},
    "MLP": {"in_channels": 6, "hidden": (7, 5), "recurrent": True, "dropout": 0.2},
    "Spikformer": {"dim": 16, "heads": 2, "depth": 1},
}
NETS = [
    pytest.param(net, id=net.__name__, marks=() if net.__name__ in QUICK else pytest.mark.slow)
    for net in NETWORKS
]


def network(value):
    """With norms as after training, so that every layer fires; and a sample for it."""
    torch.manual_seed(0)
    net = value(num_classes=3, **SMALL.get(value.__name__, {}))
    model = net.build(bs.LIF).eval()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(m.weight, 2, 0.5)
            nn.init.normal_(m.bias, 0.5, 0.3)
    side = {"ConvNet": 8, "Spikformer": 16, "VGGSNN": 48}.get(value.__name__, 32)
    shape = () if value.__name__ == "MLP" else (side, side)
    return model, torch.randn(3, 2, net.in_channels, *shape) * 2


@pytest.mark.parametrize("value", NETS)
def test_torch_export_of_every_network(value):
    """As it is, with this package's operators in the graph, for any batch."""
    model, x = network(value)
    model, x = model.double(), x.double()  # in float32 a membrane at the threshold may round
    shapes = ({1: torch.export.Dim.DYNAMIC},)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
        x = torch.randn(3, 3, *x.shape[2:], dtype=torch.float64) * 2
        expected = model(x)
        torch.testing.assert_close(program.module()(x), expected)
    assert any("backspike.lif_forward" in str(node.target) for node in program.graph.nodes)
    assert expected.std(1).max() > 0  # the last layer depends on the sample


@pytest.mark.parametrize("value", NETS)
@pytest.mark.parametrize("step", [False, True], ids=["sequence", "step"])
def test_every_network_becomes_an_onnx_file(value, step, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model, x = network(value)
    made = bs.onnx.write(model, tmp_path / "net.onnx", x, step=step)
    assert made.spikes > 0
    assert made.layers == sum(isinstance(m, bs.LIF) for m in model.modules())
