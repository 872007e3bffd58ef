"""The defaults of neurons are those with which a first network learns (docs/methods.md, 16)."""

import dataclasses

import pytest
import torch
from helpers.training import fit
from torch import nn

import backspike as bs
from backspike import options

FORMER = {"v_reset": 0.0, "decay_input": True, "reset_gradient": 1.0}


def first_network(activation, spiking_output=True):
    """64-100-10, as somebody who starts would write it."""
    torch.manual_seed(0)
    layers = [bs.OverTime(nn.Flatten(), nn.Linear(64, 100)), activation()]
    layers += [bs.OverTime(nn.Linear(100, 10))] + [activation()] * spiking_output
    return nn.Sequential(*layers)


def test_a_first_network_learns_as_well_as_with_relu(tmp_path):
    """Ten epochs of the default recipe."""
    spiking, former, relu = (
        fit(bs.Recipe(), tmp_path / name, model=model).test_accuracy
        for name, model in {
            "spiking": first_network(bs.LIF),
            "former": first_network(lambda: bs.LIF(**FORMER)),
            "relu": first_network(nn.ReLU, spiking_output=False),
        }.items()
    )
    assert spiking > relu - 0.03
    assert spiking > former + 0.1


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (options.LIF, {"v_reset": None, "decay_input": False, "reset_gradient": 0.0}),
        (options.CubaLIF, {"v_reset": None, "decay_input": False, "reset_gradient": 0.0}),
        (options.PLIF, {"v_reset": 0.0, "decay_input": True, "reset_gradient": 0.0}),
        (options.MPBN, {"v_reset": 0.0, "decay_input": False, "reset_gradient": 0.0}),
        (options.AdaptiveLIF, {"v_reset": None, "decay_input": False, "reset_gradient": 0.0}),
        (options.CLIF, {"v_reset": None, "decay_input": False, "reset_gradient": 1.0}),
    ],
)
def test_defaults_are_the_documented_ones(kind, own):
    fields = {f.name: f.default for f in dataclasses.fields(kind)}
    assert {name: fields[name] for name in own} == own
    assert (fields["tau"], fields["v_threshold"], fields["temporal_gradient"]) == (2.0, 1.0, True)
    surrogate = bs.Rectangle() if kind is options.CLIF else bs.ATan(alpha=2.0)
    assert fields["surrogate"] == surrogate
