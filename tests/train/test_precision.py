"""Precision and memory layout: chosen once for a run, with a stated reason."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

import backspike as bs
from backspike.run import Run
from backspike.train import checkpoint, precision
from backspike.train.precision import choose, multiply_adds

TINY = {
    "limit": 60,
    "epochs": 2,
    "ema": 0.0,
    "batch_size": 30,
    "model": "ConvNet('4-P-6-P', size=8)",
}


def tiny(**changes):
    return bs.recipes.digits().replace({**TINY, **changes})


@pytest.fixture
def bf16(monkeypatch):
    """Hardware with bfloat16, which pays off for networks of any size."""
    monkeypatch.setattr(precision, "bfloat16_unit", lambda device: "a test")
    monkeypatch.setattr(precision, "WORTH_CASTING", 0)


def test_multiply_adds_are_those_of_convolutions_and_linear_layers():
    model = nn.Sequential(
        bs.OverTime(nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)),
        bs.LIF(),
        bs.OverTime(nn.Conv2d(5, 3, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(3 * 3 * 4, 7)),
    )
    first, second, last = 6 * 7 * 5 * 2 * 9, 3 * 4 * 3 * 5 * 9, 36 * 7
    x = torch.rand(2, 1, 1, 2, 6, 7)[0]
    assert multiply_adds(model, x.repeat(4, 1, 1, 1, 1)) == 4 * (first + second + last)
    static = x.expand(4, -1, -1, -1, -1)
    assert multiply_adds(model, static) == first + 4 * (second + last)
    assert model.training


def test_a_transposed_convolution_counts_at_its_input():
    layer = nn.ConvTranspose2d(3, 4, 2, stride=2, groups=1)
    assert multiply_adds(layer, torch.rand(2, 3, 5, 6)) == 2 * 5 * 6 * 3 * (4 * 2 * 2)


def test_the_precision_follows_processor_and_size(monkeypatch, bf16):
    recipe, model, x = tiny(batch_size=10), nn.Linear(6, 5), torch.zeros(4, 1, 6)
    assert choose(recipe, model, x).recipe.precision == "bfloat16"
    monkeypatch.setattr(precision, "WORTH_CASTING", 4 * 6 * 5 * 10)  # multiply-adds of a step
    assert choose(recipe, model, x).recipe.precision == "bfloat16"
    chosen = choose(replace(recipe, batch_size=9), model, x)
    assert chosen.recipe.precision == "float32"
    assert "too few" in chosen.reasons["precision"]
    monkeypatch.setattr(precision, "bfloat16_unit", lambda device: None)
    chosen = choose(recipe, model, x)
    assert chosen.recipe.precision == "float32"
    assert "no hardware support" in chosen.reasons["precision"]


def test_the_layout_follows_the_network():
    x = torch.zeros(4, 1, 2, 6, 6)
    convolutions = bs.OverTime(nn.Conv2d(2, 3, 3))
    assert choose(tiny(), convolutions, x).recipe.channels_last is True
    assert (
        choose(tiny(), bs.OverTime(nn.Flatten(), nn.Linear(72, 3)), x).recipe.channels_last is False
    )


def test_given_values_are_not_changed(bf16):
    recipe = tiny(precision="float32", channels_last=False)
    chosen = choose(recipe, bs.OverTime(nn.Conv2d(1, 3, 3)), torch.zeros(4, 1, 1, 8, 8))
    assert chosen.recipe is recipe
    assert chosen.reasons == {}


@pytest.mark.parametrize(
    ("bits", "machine"), [((True, False), "x86_64"), ((False, True), "x86_64"), (None, "aarch64")]
)
def test_processors_with_bfloat16(monkeypatch, bits, machine):
    """x86: AVX-512 BF16 or AMX, but no emulation; other processors: as oneDNN reports."""
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(bits and bits[0]))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: bool(bits and bits[1]))
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: machine == "aarch64")
    assert precision.bfloat16_unit(torch.device("cpu"))
    bits = bits and (False, False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: machine != "aarch64")
    assert precision.bfloat16_unit(torch.device("cpu")) is None


def test_a_run_keeps_its_precision_when_resumed_on_another_machine(tmp_path, monkeypatch, bf16):
    said = []

    def stop(event):
        said.append(event)
        if event["event"] == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bs.fit(tiny(), tmp_path / "run", listen=stop, report=False)
    assert said[0]["chosen"]["precision"].startswith("a test supports it")
    fields = json.loads((tmp_path / "run/recipe.json").read_text())["fields"]
    assert (fields["precision"], fields["channels_last"]) == ("bfloat16", True)
    assert "a test" in json.loads((tmp_path / "run/env.json").read_text())["precision_because"]
    monkeypatch.setattr(precision, "bfloat16_unit", lambda device: None)
    bs.resume(tmp_path / "run", listen=said.append, report=False)
    start = [e for e in said if e["event"] == "start"][1]
    assert start["chosen"] == {}
    assert start["recipe"]["fields"]["precision"] == "bfloat16"
    bs.fit(tiny(precision="bfloat16"), tmp_path / "given", report=False)
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "given"))
    assert a == b


def final_weights(folder):
    return checkpoint.read(Run.open(folder), "last.ckpt")["network"]


def test_the_layout_changes_the_result_by_rounding_only(tmp_path):
    for name, last in (("planes", False), ("pixels", True)):
        changes = {
            "channels_last": last,
            "epochs": 1,
            "optimizer": "AdamW(lr=0.001, weight_decay=0.1)",
            "augment": "()",
        }
        bs.fit(tiny(**changes, **{"neuron.surrogate": "ATan()"}), tmp_path / name, report=False)
    planes, pixels = (final_weights(tmp_path / name) for name in ("planes", "pixels"))
    weight = "model.features.3.0.weight"
    assert pixels[weight].is_contiguous(memory_format=torch.channels_last)
    assert planes[weight].is_contiguous()
    for name, value in planes.items():
        torch.testing.assert_close(pixels[name], value, rtol=1e-3, atol=1e-4)


class Volumes(nn.Module):
    """Convolutions over images and over volumes, [T, B, 1, 8, 8] -> [T, B, 10]."""

    def __init__(self):
        super().__init__()
        self.image = bs.OverTime(nn.Conv2d(1, 2, 3, padding=1))
        self.neuron = bs.LIF()
        self.volume = nn.Conv3d(2, 3, 3, padding=1)
        self.out = bs.OverTime(nn.Flatten(), nn.Linear(3 * 64, 10))

    def forward(self, x):
        s = self.neuron(self.image(x))
        return self.out(self.volume(s.permute(1, 2, 0, 3, 4)).permute(2, 0, 1, 3, 4))


def test_layers_of_other_dimensions_are_left_alone(tmp_path):
    sets = bs.data.load("digits")
    result = bs.fit(
        tiny(epochs=1),
        tmp_path / "run",
        Volumes(),
        sets.train.take(range(60)),
        sets.test,
        report=False,
    )
    assert result.test_accuracy is not None
