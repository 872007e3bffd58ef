"""`bs.ms`: time constants in milliseconds, and the exact solution of the leak."""

import copy
import math
import pickle

import pytest
import torch

import backspike as bs
from backspike.errors import ExchangeError, RecipeError


@pytest.mark.parametrize(("tau", "dt"), [(20, 1), (5, 0.1), (0.5, 1)])
def test_the_exact_leak_is_an_exponential(tau, dt):
    """dv/dt = -v/tau from v = 0.9: v(t) = 0.9 exp(-t/tau)."""
    layer = bs.LIF(bs.ms(tau, dt), v_threshold=2.0, decay_input=False)
    x = torch.zeros(50, 1, dtype=torch.float64)
    with bs.record(layer) as outputs:
        layer(x, torch.full((1,), 0.9, dtype=torch.float64))
    times = dt * torch.arange(1, 51, dtype=torch.float64)
    want = 0.9 * torch.exp(-times / tau)
    torch.testing.assert_close(outputs[""].membrane[:, 0], want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("current", [1.05, 1.5, 4.0])
def test_spike_times_of_the_exact_neuron_have_a_closed_form(current):
    """tau dv/dt = -v + I reaches 1 at tau log(I / (I - 1)), rounded up to the next timestep."""
    tau, dt, T = 20.0, 0.5, 4000
    x = torch.full((T, 1), current, dtype=torch.float64)
    spikes = bs.LIF(bs.ms(tau, dt), v_reset=0.0, decay_input=True)(x)[:, 0]
    period = math.ceil(tau * math.log(current / (current - 1)) / dt - 1e-9)
    assert spikes.nonzero().flatten().tolist() == list(range(period - 1, T, period))


def test_euler_takes_the_step_of_its_name():
    assert bs.ms(20, dt=0.5, exact=False) == 40
    assert 1 - 1 / bs.ms(20) == pytest.approx(math.exp(-1 / 20), rel=1e-15)


def test_milliseconds_are_shown_copied_and_stored():
    tau = bs.ms(20, dt=0.5)
    for twin in (copy.deepcopy(tau), pickle.loads(pickle.dumps(tau))):
        assert repr(twin) == "ms(tau=20, dt=0.5, exact=True)"
        assert twin == tau
    assert "tau=ms(tau=20, dt=0.5, exact=True)" in repr(bs.LIF(tau))
    recipe = bs.recipes.yinyang().replace(
        {"neuron.tau": "ms(20, dt=0.5)", "neuron.tau_synapse": "ms(5, 0.5, exact=False)"}
    )
    stored = recipe.to_dict()
    assert stored["fields"]["neuron.tau"] == "ms(tau=20, dt=0.5, exact=True)"
    assert repr(bs.Recipe.from_dict(stored).neuron.tau_synapse).startswith("ms(tau=5, dt=0.5")
    layer = bs.LIF(tau, learn="tau")
    assert float(1 + layer.log_tau_minus_1.detach().exp()) == pytest.approx(float(tau))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: bs.ms(0), "ms: tau and dt must be positive, got 0 and 1"),
        (lambda: bs.ms(20, dt=-1), "positive"),
        (lambda: bs.ms(1, dt=1, exact=False), "must be above dt=1"),
        (lambda: bs.recipes.digits().replace({"neuron.tau": "ms(-2)"}), "neuron.tau: ms: tau"),
    ],
)
def test_wrong_times_are_refused_in_one_line(make, words):
    with pytest.raises((ValueError, RecipeError), match=words) as e:
        make()
    assert "\n" not in str(e.value)


def test_nir_files_have_the_timestep_of_the_network(tmp_path):
    nir = pytest.importorskip("nir")
    model = bs.Sequential(torch.nn.Linear(3, 4), bs.LIF(bs.ms(20, dt=0.5), v_reset=0.0))
    sample = 9 * torch.rand(20, 2, 3)
    assert bs.nir.write(model, tmp_path / "a.nir", sample).dt == 0.0005
    node = next(n for n in nir.read(tmp_path / "a.nir").nodes.values() if hasattr(n, "v_leak"))
    assert node.tau == pytest.approx(float(bs.ms(20, dt=0.5)) * 0.0005)
    model.append(bs.Integrator(bs.ms(20, dt=1)))
    with pytest.raises(ExchangeError, match="different dt"):
        bs.nir.write(model, tmp_path / "b.nir", sample)
