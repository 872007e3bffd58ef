"""Refractory periods against loops in numpy, closed forms and Brian2."""

import json
import math
import os
import subprocess

import numpy as np
import pytest
import torch

import backspike as bs

T, N = 300, 8
CURRENT = np.repeat(np.random.default_rng(3).uniform(-0.05, 0.5, (T // 5, N)), 5, axis=0)


def spikes_of(layer, current=CURRENT):
    return layer(torch.from_numpy(current)[:, None])[:, 0].numpy()


def loop(current, refractory, rise=0.0, tau_rise=10.0, tau_synapse=None, v_reset=0.0):
    """One neuron at a time, with the time of its last spike."""
    out = np.zeros_like(current)
    for n in range(current.shape[1]):
        v, raised, i, last = v_reset, 0.0, 0.0, -math.inf
        for t, x in enumerate(current[:, n]):
            i = x if tau_synapse is None else i * (1 - 1 / tau_synapse) + x
            threshold, raised = 1.0 + raised, raised * (1 - 1 / tau_rise)
            if t - last <= refractory:
                continue
            v += (v_reset - v) / 10.0 + i
            if v >= threshold:
                out[t, n], v, last, raised = 1, v_reset, t, raised + rise
    return out


@pytest.mark.parametrize("refractory", [0, 1, 2, 7])
def test_an_absolute_period(refractory):
    got, want = spikes_of(bs.RefractoryLIF(refractory=refractory)), loop(CURRENT, refractory)
    assert np.array_equal(got, want)
    assert want.sum() > 5 * N
    every = spikes_of(bs.RefractoryLIF(refractory=refractory), np.full((40, 1), 9.0))[:, 0]
    assert np.flatnonzero(every).tolist() == list(range(0, 40, refractory + 1))


def test_a_relative_period():
    layer = bs.RefractoryLIF(refractory=1, threshold_rise=0.8, tau_rise=6.0)
    want = loop(CURRENT, 1, rise=0.8, tau_rise=6.0)
    assert np.array_equal(spikes_of(layer), want)
    assert N < want.sum() < 0.8 * loop(CURRENT, 1).sum()


def test_a_synapse_filters_during_the_period():
    layer = bs.RefractoryCubaLIF(refractory=4, tau_synapse=3.0, v_reset=-0.2)
    want = loop(CURRENT, 4, tau_synapse=3.0, v_reset=-0.2)
    assert np.array_equal(spikes_of(layer), want)
    assert want.sum() > 5 * N


def test_without_periods_it_is_the_lif_neuron():
    options = {"tau": 10.0, "v_reset": 0.0, "reset_gradient": 1.0}
    x = torch.from_numpy(CURRENT)[:, None]
    results = []
    for layer in (bs.RefractoryLIF(refractory=0, reset_gradient=1.0), bs.LIF(**options)):
        leaf = x.clone().requires_grad_()
        s = layer(leaf)
        (s * torch.arange(T).view(-1, 1, 1)).sum().backward()
        results.append((s, leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-10, atol=1e-12)


def test_the_rate_under_a_constant_current_is_the_closed_form():
    """v[n] = c tau (1 - lam^n) reaches 1 after ceil(log(1 - 1/(c tau)) / log(lam)) timesteps."""
    for c in (0.11, 0.15, 0.3):
        for period in (0, 3):
            n = math.ceil(math.log(1 - 1 / (10 * c)) / math.log(0.9))
            s = spikes_of(bs.RefractoryLIF(refractory=period), np.full((T, 1), c))[:, 0]
            assert np.flatnonzero(s).tolist() == list(range(n - 1, T, n + period))


def test_no_gradient_reaches_an_input_in_the_absolute_period():
    x = torch.zeros(12, 1, 1, dtype=torch.float64)
    x[2], x[9] = 1.5, 0.7
    x.requires_grad_()
    s = bs.RefractoryLIF(refractory=4, surrogate=bs.ATan())(x)
    assert s.flatten().nonzero().flatten().tolist() == [2]
    (s * torch.arange(1.0, 13).view(-1, 1, 1)).sum().backward()
    gradient = x.grad.flatten()
    assert (gradient[3:7] == 0).all()
    assert (gradient[:3] != 0).all()
    assert (gradient[7:] != 0).all()


BRIAN = """
import json, sys
import numpy as np
from brian2 import *
prefs.codegen.target = "numpy"
refractory, current = json.load(sys.stdin)
defaultclock.dt = 1 * ms
current = np.array(current)
drive = TimedArray(current, dt=1 * ms)
group = NeuronGroup(
    current.shape[1], "dv/dt = (-v / 10 + drive(t, i)) / ms : 1 (unless refractory)",
    threshold="v >= 1", reset="v = 0", method="euler", refractory=(refractory + 1) * ms)
monitor = SpikeMonitor(group)
run(len(current) * ms)
json.dump([[int(round(s / ms)), int(i)] for s, i in zip(monitor.t, monitor.i)], sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize("refractory", [1, 2, 7])
def test_spike_times_are_those_of_brian2(refractory):
    """`BACKSPIKE_BRIAN2_PYTHON` names a python with it: brian2==2.9.0 and numpy<2."""
    python = os.environ.get("BACKSPIKE_BRIAN2_PYTHON")
    if not python:
        pytest.skip("BACKSPIKE_BRIAN2_PYTHON names no python with Brian2")
    done = subprocess.run(
        [python, "-c", BRIAN],
        input=json.dumps([refractory, CURRENT.tolist()]),
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    want = {tuple(event) for event in json.loads(done.stdout)}
    got = bs.RefractoryLIF(refractory=refractory)(torch.from_numpy(CURRENT)[:, None])[:, 0]
    assert {tuple(event) for event in got.nonzero().tolist()} == want
    assert len(want) > 5 * N
