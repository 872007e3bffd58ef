"""BatchNorm, neuron and pool as separate operators, and cases, for tests of the fused operator."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from backspike import ATan
from backspike.kernel import dispatch
from backspike.kernel.norm import Norm
from helpers.neurons import close, prepare

SEED = 2**50 + 33


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


def folded(x, layer):
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def pooled(spikes, pool):
    pools = {
        None: lambda s: s,
        "avg": lambda s: F.avg_pool2d(s, 2),
        "max": lambda s: F.max_pool2d(s, 2),
    }
    return folded(spikes, pools[pool])


def run_separately(call, norm, pool=None, backend="reference", want_state=True):
    """torch's batch_norm, the neuron and torch's pool; a repeated input is expanded."""
    y = call.x.expand(call.repeats, *call.x.shape[1:]) if call.repeats > 1 else call.x
    arguments = (
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        norm.momentum,
        norm.eps,
    )
    x = folded(y, lambda y: F.batch_norm(y, *arguments))
    result = dispatch(backend, replace(call, x=x, repeats=1))
    moments = result.moments
    if moments is not None:
        rate = result.spikes.double().transpose(1, 2).flatten(2).mean(2)
        moments = moments._replace(rate=rate.detach())
    return result._replace(spikes=pooled(result.spikes, pool), moments=moments)


def exact_outputs(call, norm, pool=None):
    """The spikes and the state, computed with the kernel's order of operations.

    Constants and currents are rounded once to the dtype of the state.
    """
    dtype = torch.float64 if call.x.dtype == torch.float64 else torch.float32
    y = (
        call.x.expand(call.repeats, *call.x.shape[1:]).double()
        if call.repeats > 1
        else call.x.double()
    )
    across = [d for d in range(y.dim()) if d != 2]
    variance, mean = torch.var_mean(y, across, correction=0)
    if not norm.training:
        variance, mean = norm.running_var.double(), norm.running_mean.double()
    scale = (norm.weight.double() * (1 / (variance + norm.eps).sqrt())).to(dtype)
    shift = (norm.bias.double() - mean * scale.double()).to(dtype)
    scale, shift = (p.view(-1, *[1] * (y.dim() - 3)) for p in (scale, shift))
    result = dispatch("reference", replace(call, x=y.to(dtype) * scale + shift, repeats=1))
    return pooled(result.spikes, pool).to(call.x.dtype), result.state


@dataclass(frozen=True)
class Case:
    """The options of one test."""

    rule: dict
    learned: dict  # the learned ones of CONSTANTS, as tensors
    training: bool = True
    pool: str | None = None
    repeats: int = 1
    moments: bool = False
    affine: bool = True


def values(size, seed, low=0.5, high=1.5):
    return (
        torch.rand(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        * (high - low)
        + low
    )


def normal(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_norm(C, training=True, affine=True, dtype=torch.float64):
    mean, variance = values(C, 1, -0.3, 0.3).to(dtype), values(C, 2).to(dtype)
    weight, bias = (
        (values(C, 3, 0.7, 2.0).to(dtype), values(C, 4, 0.2, 0.9).to(dtype))
        if affine
        else (None, None)
    )
    return Norm(weight, bias, mean, variance, training, 0.3, 1e-3)


def make_call(y, v0=None, rule=None, learned=None, **others):
    return prepare(y, v0, **{**RULE, "seed": SEED, **(rule or {}), **(learned or {}), **others})


def gradients(run, case, y, v0, to_layout=lambda g: g):
    """The outputs, the statistics and all gradients, for random gradients of every output."""
    norm = make_norm(y.shape[2], case.training, case.affine)
    leaves = {"y": y, "v0": v0, **case.learned, "weight": norm.weight, "bias": norm.bias}
    leaves = {name: p.detach().requires_grad_() for name, p in leaves.items() if p is not None}
    norm = replace(norm, weight=leaves.get("weight"), bias=leaves.get("bias"))
    learned = {name: leaves[name] for name in case.learned}
    call = make_call(
        leaves["y"],
        leaves.get("v0"),
        case.rule,
        learned,
        record_moments=case.moments,
        repeats=case.repeats,
    )
    result = run(call, norm, case.pool)
    outputs = [result.spikes, result.state, *(result.moments or ())[:2]]
    # in bfloat16, so that every dtype represents them exactly
    upstream = [
        to_layout(normal(outputs[0].shape, 5)).bfloat16(),
        *(normal(o.shape, 6).bfloat16() for o in outputs[1:]),
    ]
    torch.autograd.backward(outputs, [u.to(o.dtype) for u, o in zip(upstream, outputs)])
    found = {
        "spikes": result.spikes,
        "state": result.state,
        "mean": norm.running_mean,
        "variance": norm.running_var,
    }
    found |= dict(zip(("first", "second"), outputs[2:]))
    if result.moments is not None:
        assert not result.moments.rate.requires_grad
        found["rate"] = result.moments.rate
    return {name: o.detach() for name, o in found.items()} | {
        f"d{name}": p.grad for name, p in leaves.items()
    }


def assert_same(got, want, tolerance=1e-10):
    assert got.keys() == want.keys()
    for name, value in want.items():
        if value is None:  # autograd has no path
            assert not got[name].any()
        elif name == "spikes":
            assert torch.equal(got[name], value)
        else:
            assert got[name].dtype == value.dtype, name
            assert close(got[name].double(), value.double(), tolerance=tolerance), name


def per_channel(C):
    return {
        name: values(C, i, low, low + 0.6)
        for i, (name, low) in enumerate((("tau", 2.1), ("v_threshold", 0.4), ("width", 0.7)))
    }
