"""BatchNorm, neuron and pool as one op against torch's batch_norm, the definition of the neuron and torch's pools, one by one.

`apart` is that statement, differentiated by autograd in float64. Spikes are held to it bit for bit in every dtype, with the
normalised current written as y scale + shift.
"""

import itertools
import logging
import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from test_cpu import LAYOUTS, Own
from test_kernel import LEARNED, MASKS, RESETS, close

import backspike as bs
from backspike import ATan, Masked, Parametric, Sigmoid
from backspike.kernel import Result, cpu, dispatch
from backspike.kernel import norm as fused
from backspike.kernel.norm import Norm, norm_lif
from backspike.neuron import _call

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the C kernel was not built here")
SEED = 2**50 + 33
SHAPE = (3, 4, 2, 5, 7)  # odd images, more than a block
CONSTANTS = {"tau": 2.3, "v_threshold": 0.9, "width": 0.8}
RULE = {
    "tau": 2.3,
    "v_threshold": 0.9,
    "v_reset": -0.3,
    "decay_input": True,
    "surrogate": ATan(alpha=3.0),
    "reset_gradient": 0.37,
    "temporal_gradient": True,
}


# ------------------------------------------------------------------------------------------------------- the statements


def folded(x, layer):
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def pooled(spikes, pool):
    pools = {None: lambda s: s, "avg": lambda s: F.avg_pool2d(s, 2), "max": lambda s: F.max_pool2d(s, 2)}
    return folded(spikes, pools[pool])


def apart(call, norm, pool=None, backend="reference", want_state=True):
    """torch's batch_norm, the neuron, torch's pool; of a repeated input all timesteps."""
    y = call.x.expand(call.repeats, *call.x.shape[1:]) if call.repeats > 1 else call.x
    arguments = (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, norm.momentum, norm.eps)
    x = folded(y, lambda y: F.batch_norm(y, *arguments))
    result = dispatch(backend, replace(call, x=x, repeats=1))
    return result._replace(spikes=pooled(result.spikes, pool))


def exact(call, norm, pool=None):
    """The spikes and the state in the same order of operations, constants and currents rounded once to the state's dtype."""
    dtype = torch.float64 if call.x.dtype == torch.float64 else torch.float32
    y = call.x.expand(call.repeats, *call.x.shape[1:]).double() if call.repeats > 1 else call.x.double()
    across = [d for d in range(y.dim()) if d != 2]
    variance, mean = torch.var_mean(y, across, correction=0)
    if not norm.training:
        variance, mean = norm.running_var.double(), norm.running_mean.double()
    scale = (norm.weight.double() * (1 / (variance + norm.eps).sqrt())).to(dtype)
    shift = (norm.bias.double() - mean * scale.double()).to(dtype)
    scale, shift = (p.view(-1, *[1] * (y.dim() - 3)) for p in (scale, shift))
    result = dispatch("reference", replace(call, x=y.to(dtype) * scale + shift, repeats=1))
    return pooled(result.spikes, pool).to(call.x.dtype), result.state


# ------------------------------------------------------------------------------------------------------------ one case


@dataclass(frozen=True)
class Case:
    """What is computed, beside the input."""

    rule: dict
    learned: dict  # of CONSTANTS, tensors
    training: bool = True
    pool: str | None = None
    repeats: int = 1
    moments: bool = False
    affine: bool = True


def values(size, seed, low=0.5, high=1.5):
    return torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * (high - low) + low


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_norm(C, training=True, affine=True, dtype=torch.float64):
    mean, variance = values(C, 1, -0.3, 0.3).to(dtype), values(C, 2).to(dtype)
    weight, bias = (values(C, 3, 0.7, 2.0).to(dtype), values(C, 4, 0.2, 0.9).to(dtype)) if affine else (None, None)
    return Norm(weight, bias, mean, variance, training, 0.3, 1e-3)


def make_call(y, v0=None, rule=None, learned=None, **others):
    return _call(y, v0, **{**RULE, "seed": SEED, **(rule or {}), **(learned or {}), **others})


def gradients(run, case, y, v0, arrange=lambda g: g):
    """Outputs, statistics and the gradients of all that learns, from random gradients of every output."""
    norm = make_norm(y.shape[2], case.training, case.affine)
    leaves = {"y": y, "v0": v0, **case.learned, "weight": norm.weight, "bias": norm.bias}
    leaves = {name: p.detach().requires_grad_() for name, p in leaves.items() if p is not None}
    norm = replace(norm, weight=leaves.get("weight"), bias=leaves.get("bias"))
    learned = {name: leaves[name] for name in case.learned}
    call = make_call(leaves["y"], leaves.get("v0"), case.rule, learned, record_moments=case.moments, repeats=case.repeats)
    result = run(call, norm, case.pool)
    outputs = [result.spikes, result.state, *(result.moments or ())]
    upstream = [arrange(normal(outputs[0].shape, 5)), *(normal(o.shape, 6) for o in outputs[1:])]
    torch.autograd.backward(outputs, [u.to(o.dtype) for u, o in zip(upstream, outputs)])
    found = {"spikes": result.spikes, "state": result.state, "mean": norm.running_mean, "variance": norm.running_var}
    found |= dict(zip(("first", "second"), outputs[2:]))
    return {name: o.detach() for name, o in found.items()} | {f"d{name}": p.grad for name, p in leaves.items()}


def assert_same(got, want, tolerance=1e-10):
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value is None:  # autograd finds no path
            assert not got[name].any()
        elif name == "spikes":
            assert torch.equal(got[name], value)
        else:
            assert got[name].dtype == value.dtype, name
            assert close(got[name].double(), value.double(), tolerance=tolerance), name


def check(case, y, v0=None, arrange=lambda g: g):
    """The op in one against the statement."""
    assert fused.refuses(make_call(y, v0, case.rule, case.learned), make_norm(y.shape[2])) is None
    want = gradients(apart, case, y.contiguous(), v0)
    assert 0 < want["spikes"].mean() < 1, "a case that shows nothing"
    assert_same(gradients(norm_lif, case, y, v0, arrange), want)


def per_channel(C):
    return {name: values(C, i, low, low + 0.6) for i, (name, low) in enumerate((("tau", 2.1), ("v_threshold", 0.4), ("width", 0.7)))}


def tensors(kind, C):
    if kind == "all per channel":
        return per_channel(C)
    return {name: torch.tensor(v, dtype=torch.float64) for name, v in LEARNED[kind].items()}


# ------------------------------------------------------------------------------------------------------------ gradients


@pytest.mark.parametrize("pool", fused.POOLS)
@pytest.mark.parametrize("kind", ["floats", "scalars", "all per channel"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("training", [True, False])
def test_gradients(training, reset, kind, pool):
    """Every mask, with the reset path in part, whole or not at all, and with nothing through time."""
    y, v0 = LAYOUTS["channels last"](normal(SHAPE, 7)), normal(SHAPE[1:], 8).mul(0.3)
    for mask, (rho, temporal, decay) in zip(MASKS.values(), [(0.37, True, True), (0.0, True, False), (1.0, False, True), (1.0, True, True)]):
        base = Parametric(Sigmoid(alpha=3.0)) if kind != "floats" else Sigmoid(alpha=3.0)
        rule = {"v_reset": RESETS[reset], "surrogate": mask(base), "reset_gradient": rho}
        rule |= {"temporal_gradient": temporal, "decay_input": decay}
        check(Case(rule, tensors(kind, SHAPE[2]), training, pool), y, v0)


@pytest.mark.parametrize("pool", fused.POOLS)
@pytest.mark.parametrize("kind", ["floats", "all per channel"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, kind, pool):
    """y in one layout and gradients in another; masks follow the logical index."""
    y, v0 = normal(SHAPE, 9), normal(SHAPE[1:], 10).mul(0.3)
    base = Parametric(ATan(alpha=3.0)) if kind != "floats" else ATan(alpha=3.0)
    case = Case({"surrogate": Masked(base, p=0.5)}, tensors(kind, SHAPE[2]), pool=pool)
    for other in {"contiguous", "channels last", layout}:
        check(case, LAYOUTS[layout](y), LAYOUTS[other](v0[None])[0], LAYOUTS[other])


SHAPES = [
    (1, 3, 1),
    (4, 1, 3, 5),
    (2, 3, 600),
    (3, 2, 1030),
    (2, 1, 130, 3, 5),
    (2, 3, 1, 4, 6),
    (3, 1, 5, 2, 2),
    (1, 1, 2, 33, 31),
    (2, 3, 513, 1, 2),
    (2, 2, 3, 2, 3, 5),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, layout):
    """One timestep, one sample, one channel, more channels than a block, images that blocks do not divide."""
    y = normal(shape, 11).add(0.3)
    if layout == "channels last":
        y = y.movedim(2, -1).contiguous().movedim(-1, 2)
    for pool in fused.POOLS if len(shape) == 5 and min(shape[3:]) > 1 else (None,):
        for learned, training in (({}, True), ({}, False), (per_channel(shape[2]), True)):
            surrogate = Masked(Parametric(ATan()) if learned else ATan(), p=0.35, rescale=True)
            check(Case({"surrogate": surrogate, "v_threshold": 0.5}, learned, training, pool), y, normal(shape[1:], 12))


@pytest.mark.parametrize("pool", fused.POOLS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("kind", ["floats", "scalars", "all per channel"])
def test_an_input_that_stands_for_equal_timesteps(kind, layout, pool):
    """One copy, whose gradient is the sum over time; the running variance counts every timestep. Also a single value."""
    y = LAYOUTS[layout](normal((1, *SHAPE[1:]), 13))
    base = Parametric(ATan()) if kind != "floats" else ATan()
    for training in (True, False):
        check(Case({"surrogate": Masked(base, 0.5)}, tensors(kind, SHAPE[2]), training, pool, repeats=5), y, normal(SHAPE[1:], 14))
    if pool is None:
        y = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
        assert_same(*(gradients(run, Case({"v_threshold": 0.5}, {}, repeats=3), y, None) for run in (norm_lif, apart)), 1e-6)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "batch last"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("pool", fused.POOLS)
def test_moments_of_the_membrane(pool, repeats, layout):
    y = LAYOUTS[layout](normal((1 if repeats > 1 else 3, *SHAPE[1:]), 15))
    for learned in ({}, per_channel(SHAPE[2])):
        rule = {"surrogate": Masked(Parametric(ATan()) if learned else ATan(), 0.5), "v_reset": None}
        check(Case(rule, learned, pool=pool, repeats=repeats, moments=True), y)


def test_without_weights_and_with_frozen_ones():
    y = normal(SHAPE, 16)
    for training in (True, False):
        check(Case({}, {}, training, affine=False), y)
    for frozen in ("weight", "bias", "y"):
        found = []
        for run in (norm_lif, apart):
            norm, leaf = make_norm(SHAPE[2], training=False), y.clone()
            for name, p in (("weight", norm.weight), ("bias", norm.bias), ("y", leaf)):
                p.requires_grad_(name != frozen)
            run(make_call(leaf), norm).spikes.square().sum().backward()
            found.append([p.grad for p in (leaf, norm.weight, norm.bias)])
        for got, want in zip(*found):
            assert (got is None) == (want is None)
            if want is not None:
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
