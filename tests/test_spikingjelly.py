"""Weights of SpikingJelly load strictly, and give here what they give there (SpikingJelly 2.0.0, tests/golden)."""

import json

import pytest
import torch
from golden import spikingjelly

import backspike as bs

GOLDEN = json.loads(spikingjelly.FILE.read_text())["networks"]
NAMES = [pytest.param(name, marks=() if name.endswith("18") else pytest.mark.slow) for name in GOLDEN]


def build(name, **options):
    factory = getattr(bs.models, name.replace("spiking_", ""))
    return factory(spikingjelly.CLASSES, neuron=lambda channels: bs.IF(reset_gradient=0.0), **options)


@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_shapes_are_the_same(name):
    with torch.device("meta"):
        state = build(name).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == GOLDEN[name]["shapes"]


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_give_the_same_outputs(name):
    golden = GOLDEN[name]
    model = build(name).double()
    model.load_state_dict(spikingjelly.weights(golden["shapes"]), strict=True)
    for mode in ("eval", "train"):
        model.train(mode == "train")
        want = torch.tensor(golden[mode], dtype=torch.float64)
        assert want.std() > 0
        with torch.no_grad():
            got = model(spikingjelly.image()).flatten(1)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
