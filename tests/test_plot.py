"""Plots: what is drawn is what was given."""

import matplotlib
import numpy as np
import pytest
import torch

import backspike as bs
from backspike.report import plot

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def points(ax, i=0):
    return [tuple(p) for p in np.asarray(ax.collections[i].get_offsets()).tolist()]


def test_raster_marks_the_spikes_of_one_sample():
    s = torch.zeros(4, 2, 3)
    s[1, 1, 2] = s[3, 1, 0] = 1
    s[0, 0, 0] = 1
    ax = plot.raster(s, sample=1)
    assert sorted(points(ax)) == [(1, 2), (3, 0)]
    assert ax.get_xlim() == (-0.5, 3.5)
    assert ax.get_xlabel() == "timestep"
    assert points(plot.raster(s)) == [(0, 0)]


def test_raster_shows_some_neurons_of_a_large_layer():
    s = torch.zeros(2, 1, 10, 10)
    s[1, 0, 9, 9] = 1
    ax = plot.raster(s, neurons=4)
    assert points(ax) == [(1, 3)]
    assert ax.get_ylim() == (-0.5, 3.5)
    assert plot.raster(s, neurons=None).get_ylim() == (-0.5, 99.5)


def test_traces_show_membrane_spikes_and_threshold():
    x = torch.full((6, 1, 1), 0.6, dtype=torch.float64)
    out = bs.lif(x, tau=2.0, v_reset=None, decay_input=False, record_membrane=True)
    ax = plot.traces(out, v_threshold=1.0)
    u, theta = ax.lines
    # u: 0.6, 0.9, 1.05, then 0.6 + 0.05 / 2 ...
    assert np.asarray(u.get_ydata())[:4].tolist() == pytest.approx([0.6, 0.9, 1.05, 0.625])
    assert points(ax) == [pytest.approx((t, u), abs=1e-6) for t, u in ((2, 1.05), (5, 1.05625))]
    assert set(theta.get_ydata()) == {1.0}


def test_traces_of_a_model_and_without_spikes():
    model = torch.nn.Sequential(bs.LIF())
    with bs.record(model) as outputs:
        model(torch.rand(5, 2, 7))
    assert len(plot.traces(outputs["0"], neurons=3, sample=1).lines) == 4
    membrane = outputs["0"].membrane
    out = bs.Output(None, membrane[-1], membrane)
    ax = plot.traces(out, neurons=None)
    assert len(ax.lines) == 7
    assert not ax.collections


def test_traces_need_the_membrane():
    with pytest.raises(ValueError, match="the membrane was not recorded; use"):
        plot.traces(bs.lif(torch.rand(5, 2, 7)))


def test_surrogates_are_drawn_as_they_are():
    triangle = bs.Triangle(alpha=2.0)
    ax = plot.surrogate(triangle, bs.Masked(triangle, p=0.75))
    z, h = (np.asarray(v) for v in ax.lines[0].get_data())
    assert h == pytest.approx(np.maximum(0, 2 - 4 * abs(z)), abs=1e-6)
    assert np.asarray(ax.lines[1].get_ydata()) == pytest.approx(0.25 * h)
    assert ax.get_legend().get_texts()[0].get_text() == "Triangle(alpha=2.0)"
    rescaled = plot.surrogate(bs.Masked(triangle, p=0.75, rescale=True))
    assert np.asarray(rescaled.lines[0].get_ydata()) == pytest.approx(h)
    narrow = bs.Triangle(alpha=4.0)
    replaced = plot.surrogate(bs.Masked(triangle, p=0.75, replace=narrow))
    want = 0.25 * h + 0.75 * np.maximum(0, 4 - 16 * abs(z))
    assert np.asarray(replaced.lines[0].get_ydata()) == pytest.approx(want, abs=1e-5)


def test_the_primitive_has_the_derivative_as_slope():
    ax = plot.surrogate(bs.ATan(), primitive=True, limits=(-1.0, 1.0))
    z, y = (np.asarray(v) for v in ax.lines[0].get_data())
    slope = np.gradient(y.astype(float), z.astype(float))
    h = bs.ATan().derivative(torch.from_numpy(z)).numpy()
    assert slope[5:-5] == pytest.approx(h[5:-5], abs=2e-3)
    assert ax.get_legend().get_texts()[1].get_text() == "spike"


def test_timestep_weights_are_bars():
    two = bs.readout.TWO(3, beta=0.0, start_epoch=0)
    o = torch.zeros(3, 4, 2)
    o[1:, :, 1] = 1
    two.observe(o, torch.ones(4, dtype=torch.long))
    two.end_epoch()
    ax = plot.timestep_weights(two)
    assert [bar.get_height() for bar in ax.patches] == [0.0, 1.5, 1.5]
    same = plot.timestep_weights(torch.tensor([0.0, 1.5, 1.5]), ax=ax)
    assert same is ax


def test_a_plot_goes_into_given_axes():
    ax = matplotlib.pyplot.subplots()[1]
    out = bs.lif(torch.rand(5, 2, 7), record_membrane=True)
    assert plot.raster(out.spikes, ax=ax) is ax
    assert plot.traces(out, ax=ax) is ax
    assert plot.surrogate(bs.ATan(), ax=ax) is ax
    assert plot.raster(out.spikes) is not ax


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.raster(torch.zeros(3)), r"expected \[T, B, ...\] or \[T, N\], got \[3\]"),
        (lambda: plot.surrogate(), "give at least one surrogate"),
        (lambda: plot.timestep_weights(torch.ones(2, 2)), r"expected weights \[T\]"),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
