"""The neurons of neuroscience against their equations in numpy, and against Brian2."""

import json
import math
import os
import subprocess

import numpy as np
import pytest
import torch

import backspike as bs

T, N = 400, 6
RNG = np.random.default_rng(7)


def slow_noise(low, high):
    """A current `[T, N]` that changes every 5 timesteps."""
    return np.repeat(RNG.uniform(low, high, (T // 5, N)), 5, axis=0)


def adex(x, dt=1.0):
    """Brette & Gerstner 2005, in pA, mV, ms."""
    v, w, out = np.full(N, -70.6), np.zeros(N), []
    for current in x:
        dv = (-30.0 * (v + 70.6) + 30.0 * 2.0 * np.exp((v + 50.4) / 2.0) - w + current) / 281.0
        dw = (4.0 * (v + 70.6) - w) / 144.0
        v, w = v + dt * dv, w + dt * dw
        fired = v >= -40.4
        v, w = np.where(fired, -70.6, v), w + 80.5 * fired
        out.append(fired)
    return np.array(out)


def izhikevich(x, dt=0.5, a=0.02, b=0.2, c=-65.0, d=8.0):
    v, u, out = np.full(N, -70.0), np.full(N, -14.0), []
    for current in x:
        dv, du = 0.04 * v**2 + 5 * v + 140 - u + current, a * (b * v - u)
        v, u = v + dt * dv, u + dt * du
        fired = v >= 30
        v, u = np.where(fired, c, v), u + d * fired
        out.append(fired)
    return np.array(out)


def qif(x):
    v, out = np.zeros(N), []
    for current in x:
        v = v + v * (v - 0.5) / 10 + current
        out.append(v >= 1)
        v = np.where(out[-1], 0.0, v)
    return np.array(out)


def eif(x):
    v, out = np.zeros(N), []
    for current in x:
        v = v + (-v + 0.1 * np.exp((v - 0.7) / 0.1)) / 10 + current
        out.append(v >= 1)
        v = np.where(out[-1], 0.0, v)
    return np.array(out)


def brf(x, dt=0.01, omega=10.0, damping=1.0):
    """With the membrane as a complex number, as resonate-and-fire neurons are usually written."""
    z, q, out = np.zeros(N, complex), np.zeros(N), []
    p = (-1 + math.sqrt(1 - (dt * omega) ** 2)) / dt
    for current in x:
        z = z + dt * ((p - damping - q + 1j * omega) * z + current)
        out.append(z.real - q >= 1)
        q = 0.9 * q + out[-1]
    return np.array(out)


CASES = {
    "AdEx": (bs.AdEx, adex, slow_noise(200.0, 1800.0), 1000.0),
    "Izhikevich": (bs.Izhikevich, izhikevich, slow_noise(-5.0, 25.0), 10.0),
    "QIF": (bs.QIF, qif, slow_noise(-0.02, 0.12), 1.0),
    "EIF": (bs.EIF, eif, slow_noise(-0.02, 0.18), 1.0),
    "BRF": (bs.BRF, brf, 60 * np.sin(np.arange(T)[:, None] * 0.1 + np.arange(N)), 1.0),
}


@pytest.mark.parametrize("kind", CASES)
def test_spike_times_are_those_of_the_equations(kind):
    make, statement, current, unit = CASES[kind]
    want = statement(current)
    got = make()(torch.from_numpy(current / unit)[:, None])[:, 0].numpy()
    assert 5 * N < want.sum() < 0.4 * want.size
    assert np.array_equal(got, want)


def test_an_adex_neuron_adapts_and_a_chattering_neuron_bursts():
    spikes = bs.AdEx()(torch.full((600, 1, 1), 1.0))[:, 0, 0]
    gaps = spikes.nonzero().flatten().diff()
    assert gaps[-1] > 1.5 * gaps[0]
    chattering = bs.Izhikevich(c=-50.0, d=2.0)(torch.full((600, 1, 1), 1.0))[:, 0, 0]
    gaps = chattering.nonzero().flatten().diff()
    assert gaps.max() > 3 * gaps.min()


def test_a_resonator_answers_best_to_its_own_frequency():
    t = torch.arange(2000.0)[:, None, None] * 0.01
    omegas = torch.tensor([4.0, 7.0, 10.0, 14.0, 20.0])
    layer = bs.BRF(omega=10.0)
    counts = layer(12 * torch.sin(omegas * t)).sum((0, 1))
    assert counts.argmax() == 2
    assert counts[2] > 2 * counts[0]


BRIAN = """
import json, sys
import numpy as np
from brian2 import *
prefs.codegen.target = "numpy"
kind, dt, current = json.load(sys.stdin)
defaultclock.dt = dt * ms
current = np.array(current)
if kind == "AdEx":
    drive = TimedArray(current * pA, dt=dt * ms)
    C, g, E, VT, D, tw, a = 281*pF, 30*nS, -70.6*mV, -50.4*mV, 2*mV, 144*ms, 4*nS
    group = NeuronGroup(current.shape[1], '''
        dv/dt = (-g*(v - E) + g*D*exp((v - VT)/D) - w + drive(t, i))/C : volt
        dw/dt = (a*(v - E) - w)/tw : amp''',
        threshold="v >= -40.4*mV", reset="v = E; w += 80.5*pA", method="euler")
    group.v = E
else:
    drive = TimedArray(current, dt=dt * ms)
    group = NeuronGroup(current.shape[1], '''
        dv/dt = (0.04*v**2 + 5*v + 140 - u + drive(t, i))/ms : 1
        du/dt = 0.02*(0.2*v - u)/ms : 1''',
        threshold="v >= 30", reset="v = -65; u += 8", method="euler")
    group.v, group.u = -70, -14
monitor = SpikeMonitor(group)
run(len(current) * dt * ms)
steps = np.rint(np.asarray(monitor.t / ms) / dt).astype(int)
json.dump([[int(s), int(i)] for s, i in zip(steps, monitor.i)], sys.stdout)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AdEx", "Izhikevich"])
def test_spike_times_are_those_of_brian2(kind):
    """`BACKSPIKE_BRIAN2_PYTHON` names a python with it: brian2==2.9.0 and numpy<2."""
    python = os.environ.get("BACKSPIKE_BRIAN2_PYTHON")
    if not python:
        pytest.skip("BACKSPIKE_BRIAN2_PYTHON names no python with Brian2")
    make, _, current, unit = CASES[kind]
    task = json.dumps([kind, make().dt, current.tolist()])
    done = subprocess.run(
        [python, "-c", BRIAN],
        input=task,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    want = {tuple(event) for event in json.loads(done.stdout)}
    got = make()(torch.from_numpy(current / unit)[:, None])[:, 0].nonzero().tolist()
    assert {tuple(event) for event in got} == want
    assert len(want) > 5 * N
