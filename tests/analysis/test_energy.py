"""Counted operations agree with counts by hand and by brute force; their energy; the report."""

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.reports import Page, make_run
from torch import nn

import backspike as bs
from backspike import errors, report
from backspike.analysis import energy, op_count
from backspike.layers.norm import batch_norm
from backspike.models.residual import SEWBasic
from backspike.report import activity, read
from backspike.train import Network

T, B = 3, 2
FIELDS = (
    "kind",
    "steps",
    "macs",
    "additions",
    "products",
    "spikes",
    "weights",
    "inputs",
    "outputs",
    "bits",
)


def counted(model, x):
    """The counts of one batch x `[T, B, ...]` by layer (nan as None), and their arrays."""
    batches = types.SimpleNamespace(
        recipe=types.SimpleNamespace(T=len(x)), in_order=lambda at_most: iter([(x, None)])
    )
    arrays = op_count.count(Network(model, bs.readout.Mean()), batches)
    rows = zip(arrays["op_name"], *(arrays[f"op_{key}"].tolist() for key in FIELDS))
    return {
        name: dict(zip(FIELDS, (None if v != v else v for v in values))) for name, *values in rows
    }, arrays


def memoryless():
    """A neuron that fires whenever its input current is at least 1."""
    return bs.LIF(1 + 1e-9, decay_input=False, v_reset=0.0)


@pytest.fixture
def small():
    """Linear 3 -> 2, neurons, linear 2 -> 4. One neuron always fires, the other never does."""
    first, second = nn.Linear(3, 2, bias=False), nn.Linear(2, 4)
    first.weight.data = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    model = nn.Sequential(bs.OverTime(first), memoryless(), bs.OverTime(second))
    return model, torch.tensor([[0.5, 0.5, 0.5], [0.25, 0.5, 0.75]]).expand(T, B, 3)


def test_counts_agree_with_a_count_by_hand(small):
    """3 spikes per sample, one per timestep, reach 4 outputs each; the first layer runs once."""
    rows, arrays = counted(*small)
    assert list(rows) == ["0.0", "1", "2.0"]
    assert rows["0.0"] == dict(zip(FIELDS, ("linear", 1, 6, None, 6, None, 6, 3, 2, 32)))
    assert rows["1"] == dict(zip(FIELDS, ("neurons", 3, 2, None, 6, 3, 0, 2, 2, 1)))
    assert rows["2.0"] == dict(zip(FIELDS, ("linear", 3, 8, 12, 12, 3, 8, 2, 4, 1)))
    assert arrays["op_samples"] == B


def test_energy_agrees_with_a_calculation_by_hand(small):
    first, neurons, second = energy.layers(counted(*small)[1], T)
    assert (first.ann, second.ann) == (energy.Cost(6, 0, 6 + 3 + 2), energy.Cost(8, 0, 8 + 2 + 4))
    # weights and inputs are read once; its two currents are written once and read three times
    assert first.snn == energy.Cost(6, 0, 6 + 3 + 2 + 3 * 2)
    assert (neurons.ann, neurons.snn) == (
        energy.Cost(),
        energy.Cost(3 * 2, 0, 3 * (2 * 2 + 2 / 32)),
    )
    assert second.snn == energy.Cost(0, 12, 3 * (8 + 2 / 32))
    ann, snn = (
        energy.total(getattr(layer, which) for layer in (first, neurons, second))
        for which in ("ann", "snn")
    )
    assert ann.arithmetic == pytest.approx(14 * 4.6)
    assert snn.arithmetic == pytest.approx(12 * 4.6 + 12 * 0.9)
    assert snn.with_memory(5.0) - snn.arithmetic == pytest.approx(5 * (17 + 12.1875 + 24.1875))


def test_a_changing_input_is_multiplied_at_every_timestep(small):
    model, x = small
    rows, arrays = counted(model, x + torch.rand(T, 1, 1) / 100)
    assert (rows["0.0"]["steps"], rows["0.0"]["macs"], rows["0.0"]["products"]) == (3, 6, 18)
    assert energy.layers(arrays, T)[0].snn.macs == 18


def test_events_are_added_and_real_numbers_multiplied(small):
    model, _ = small
    events = torch.tensor([[0.0, 2.0, 1.0]]).repeat(T, B, 1)
    rows, _ = counted(model, events)
    assert (rows["0.0"]["additions"], rows["0.0"]["products"], rows["0.0"]["bits"]) == (
        3 * 3 * 2,
        3 * 2 * 2,
        2,
    )
    rows, _ = counted(model, events / 2)
    assert rows["0.0"]["additions"] is None


GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "groups": 2},
    {"kernel_size": (1, 2), "dilation": 2, "padding": "same"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_connections_of_a_convolution_agree_with_brute_force(geometry):
    """With gradients and weights of 1, dL/dx counts the outputs that each input reaches."""
    m = nn.Conv2d(4, 6, bias=False, **geometry)
    counts = torch.randint(0, 3, (2, 4, 5, 7), generator=torch.Generator().manual_seed(0)).float()
    nn.init.ones_(m.weight)
    x = torch.zeros_like(counts).requires_grad_()
    m(x).sum().backward()
    assert op_count._connections(m, counts) == (x.grad * counts).sum().item()
    assert op_count._connections(m, torch.ones_like(counts)) == x.grad.sum().item()


def test_spikes_behind_an_average_pool_are_counted_one_by_one():
    """4 spikes in a window count as 4; if summing them first is cheaper, they are multiplied."""
    s = (
        torch.tensor([1.0, 1, 1, 1, 0, 0, 1, 0])
        .view(1, 1, 1, 2, 4)
        .expand(T, 1, 1, 2, 4)
        .contiguous()
    )
    for outputs, pool in ((3, nn.AvgPool2d(2)), (50, nn.AdaptiveAvgPool2d(1))):
        last = nn.Linear(2 if outputs == 3 else 1, outputs)
        rows, arrays = counted(
            nn.Sequential(memoryless(), bs.OverTime(pool, nn.Flatten(), last)), s
        )
        row = rows["1.2"]
        spikes = float(s.sum())
        assert (row["spikes"], row["additions"]) == (spikes, spikes * outputs)
    assert (row["products"], row["bits"]) == (T * 50, 3)
    # 5 additions take 4.5 pJ, a multiplication 4.6
    assert energy.layers(arrays, T)[1].snn.acs == spikes * 50
    # 7 of 8 inputs are spikes
    s[..., 1, :3] = 1
    *_, last = energy.layers(
        counted(nn.Sequential(memoryless(), bs.OverTime(pool, nn.Flatten(), last)), s)[1], T
    )
    assert (last.snn.acs, last.snn.macs) == (0, T * 50)


def test_spikes_behind_pools_of_other_sizes_are_counted():
    for size in (1, 5, 7):
        s = (
            torch.rand(T, B, 2, size, size, generator=torch.Generator().manual_seed(1)) < 0.4
        ).float()
        head = bs.OverTime(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))
        rows, _ = counted(nn.Sequential(memoryless(), head), s)
        assert rows["1.2"]["spikes"] == s.sum().item() / B


def test_residual_blocks_and_folded_norms_are_counted():
    """Summed spikes of two branches count twice; hooks record each convolution's input."""
    torch.manual_seed(0)
    model = nn.Sequential(
        bs.OverTime(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)), bs.LIF(v_threshold=0.3)
    )
    neuron = lambda channels: bs.LIF(v_threshold=0.02)  # noqa: E731
    model = nn.Sequential(
        *model, SEWBasic(4, 4, 1, neuron, batch_norm), SEWBasic(4, 8, 2, neuron, batch_norm)
    ).eval()
    x = torch.rand(1, B, 2, 6, 6).expand(T, B, 2, 6, 6)
    got, expected = {}, {}
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(
                lambda m, args, y, name=name: got.__setitem__(name, (m, args[0]))
            )
    with torch.no_grad():
        model(x)
    for name, (m, a) in got.items():
        reached = F.conv2d(
            a, torch.ones_like(m.weight), None, m.stride, m.padding, m.dilation, m.groups
        )
        expected[name] = reached.sum().item() / B
    rows, _ = counted(model, x)
    convolutions = {name: row for name, row in rows.items() if row["kind"] == "convolution"}
    assert convolutions.keys() == expected.keys()
    assert convolutions.pop("0.0")["additions"] is None
    assert {name: row["additions"] for name, row in convolutions.items()} == pytest.approx(
        {k: expected[k] for k in convolutions}
    )
    assert rows["3.conv1"]["bits"] == 2
    assert {"1", "2.sn1", "2.sn2", "3.sn1", "3.sn2"} < rows.keys()


def test_attention_is_counted():
    """Each encoder multiplies spikes with spikes twice; counted by hand from recorded spikes."""
    torch.manual_seed(0)
    model = bs.models.spikformer(
        dim=16, depth=1, heads=2, neuron=lambda channels: bs.LIF(v_threshold=0.1)
    ).eval()
    x = torch.rand(1, 1, 3, 16, 16).expand(2, 1, 3, 16, 16)
    with bs.record(model) as sent, torch.no_grad():
        model(x)
    parts = [sent[f"encoders.0.attention.{part}.1"].spikes for part in "qkv"]
    q, k, v = (s.flatten(3).unflatten(2, (2, 8)) for s in parts)
    rows, _ = counted(model, x)
    pairs = (v[..., :, None, :] * k[..., None, :, :]).sum()
    assert rows["matmul 1"]["additions"] == pairs.item() > 0
    assert rows["matmul 1"]["macs"] == rows["matmul 2"]["macs"] == 2 * 8 * 8 * v.shape[-1]
    attended = torch.einsum("tbhdn,tbhen->tbhde", v, k)
    expected = torch.einsum("tbhde,tbhen->", (attended != 0).float(), q)
    assert rows["matmul 2"]["additions"] == expected.item() > 0


def test_counting_does_not_change_the_model(small):
    model, x = small
    counted(model, x)
    assert not any(m._forward_hooks for m in model.modules())
    assert not model[1].watchers


def test_the_report_shows_the_energy_and_warns_if_spikes_cost_more(small, tmp_path):
    run, arrays = make_run(tmp_path / "run", T=T), counted(*small)[1]
    measured = dict(np.load(run / "evaluation.npz"))
    np.savez(run / "evaluation.npz", **measured | arrays)
    page = Page(report.write(run))
    text = " ".join(page.text.split())
    assert {"energy", "fig-energy"} <= {*page.ids}
    assert (
        "The spiking network costs more than the equal network without spikes: "
        "arithmetic alone 1.02 times as much" in text
    )
    assert "64.4 pJ 66 pJ 1.02 ×" in text
    assert "0.0 is computed once" in text
    # many inputs, single bits in the spiking network, and a last layer that is large for 3 spikes
    cheap = {"op_inputs": np.array([1000, 2, 1000]), "op_macs": arrays["op_macs"] * [1, 1, 1000]}
    np.savez(run / "evaluation.npz", **measured | arrays | cheap)
    assert "costs more" not in str(activity.energy_section(read.load_run(run)).body)


def test_arrays_of_different_lengths_are_reported_as_damage(small, tmp_path):
    run = make_run(tmp_path / "run", T=T)
    arrays = counted(*small)[1] | {"op_bits": np.array([1, 2])}
    np.savez(run / "evaluation.npz", **dict(np.load(run / "evaluation.npz")) | arrays)
    with pytest.raises(errors.ReportError, match="op_bits has 2 along E, other arrays have 3"):
        report.write(run)


@pytest.mark.parametrize("missing", ["op_name", "op_outputs", "op_samples"])
def test_the_report_shows_no_energy_if_an_array_is_missing(missing, small, tmp_path):
    run = make_run(tmp_path / "run", T=T)
    arrays = dict(np.load(run / "evaluation.npz")) | counted(*small)[1]
    np.savez(
        run / "evaluation.npz", **{name: array for name, array in arrays.items() if name != missing}
    )
    page = Page(report.write(run))
    assert "energy" not in page.ids
