"""SpikingJelly's weights load strictly and give the same outputs (version 2.0.0, tests/golden)."""

import json
from functools import partial

import pytest
import torch
from golden import spikingjelly

import backspike as bs

GOLDEN = json.loads(spikingjelly.FILE.read_text())["networks"]
NAMES = [pytest.param(name, marks=() if "18" in name else pytest.mark.slow) for name in GOLDEN]


def build(name):
    kind = partial(bs.PLIF, **spikingjelly.PLIF) if name.endswith("_plif") else bs.IF
    options = {"v_reset": 0.0, "reset_gradient": 0.0}
    factory = getattr(bs.models, name.removeprefix("spiking_").removesuffix("_plif"))
    return factory(spikingjelly.CLASSES, neuron=lambda channels: kind(**options))


@pytest.mark.parametrize("name", GOLDEN)
def test_names_and_shapes_are_the_same(name):
    with torch.device("meta"):
        state = build(name).state_dict()
    renamed = {".downsample.2.log_tau_minus_1": ".downsample_sn.w", ".log_tau_minus_1": ".w"}
    for key in list(state):
        for ours, theirs in renamed.items():
            if key.endswith(ours):
                state[key.removesuffix(ours) + theirs] = state.pop(key)
                break
    assert {key: list(value.shape) for key, value in state.items()} == GOLDEN[name]["shapes"]


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_give_the_same_outputs(name):
    golden = GOLDEN[name]
    model = build(name).double()
    model.load_state_dict(spikingjelly.weights(golden["shapes"]), strict=True)
    for mode in ("eval", "train"):
        model.train(mode == "train")
        want = torch.tensor(golden[mode], dtype=torch.float64)
        assert (want.std(0) > 0).all()
        with torch.no_grad():
            got = model(spikingjelly.image()).flatten(1)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_the_w_of_plif_loads_as_log_tau_minus_1():
    """1/tau = sig(w)."""
    layer, w = bs.PLIF(), torch.tensor(0.7)
    read = {"w": w}
    layer.load_state_dict(read)
    assert read == {"w": w}  # unchanged
    assert 1 / layer.constants()[0].item() == pytest.approx(torch.sigmoid(w).item())
    layer.load_state_dict(layer.state_dict())
    for wrong in ({"w": w, "log_tau_minus_1": w}, {"v": w}, {}):
        with pytest.raises(RuntimeError, match=r"Unexpected key|Missing key"):
            layer.load_state_dict(wrong)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"w"'):
        bs.LIF().load_state_dict(read)
