"""Fast convolutions on the numbers of a trained network, as the gate of the bench compares them."""

import pytest
import torch

from backspike.bench import gate, operands, plan
from backspike.bench.plan import Implementation
from backspike.bench.worker.task import Settings
from backspike.kernel.cpu import conv_lookup, winograd

pytestmark = pytest.mark.skipif(not winograd.available(), reason="the C kernel was not built here")


def test_operands_are_those_of_a_trained_network():
    (numbers,) = operands.operands("digits", 20).values()
    assert [t.shape for t in (numbers.x, numbers.weight, numbers.g)] == [
        (20, 32, 4, 4),
        (64, 32, 3, 3),
        (20, 64, 4, 4),
    ]
    assert 0 < (numbers.x != 0).float().mean() < 1
    exact, full = numbers.exact(), numbers.fast(torch.float32)
    for product, got in full.items():
        want = exact[product]
        weight = 2e-4 if conv_lookup.available() else 1e-5
        assert operands.error(got, want) < (weight if product == "weight gradient" else 1e-3)
        assert operands.error(numbers.bfloat16()[product], want) > 1e-3


def test_fast_convolutions_are_nearer_than_torch_in_bfloat16(monkeypatch):
    operands.why_not_accurate.cache_clear()
    assert operands.why_not_accurate() == ""
    monkeypatch.setattr(operands, "LIMIT", 0.5)
    operands.why_not_accurate.cache_clear()
    assert "fast output of model.features.3.0: off by" in operands.why_not_accurate()
    operands.why_not_accurate.cache_clear()


def test_the_gate_asks_for_it(tmp_path, monkeypatch):
    verdict = gate.Verdict(0.0, 1.0, None, gate.Neuron(), "")
    monkeypatch.setattr(gate, "_exact", lambda *_: verdict)
    monkeypatch.setattr(gate, "why_not_accurate", lambda: "off")
    work = plan.workloads("vgg", quick=True)[0]
    for fast in (True, False):
        row = Implementation("ours", Settings("ours", fast=fast))
        assert gate.judge(None, row, work, tmp_path).reason == ("off" if fast else "")
