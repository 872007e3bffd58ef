"""Checks of the GPU backend, called by gpu.py.

The inputs of the first check are multiples of 1/64, for which float32 is exact.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import backspike as bs
from backspike.kernel import Constants, dispatch
from backspike.kernel.call import SpikeInfo
from backspike.kernel.norm import Norm, norm_lif
from backspike.layers import synapse
from backspike.neuron.prepare import prepare
from backspike.options import LIF
from backspike.surrogate import FAMILIES
from backspike.train import step

SEED = 2**50 + 33
SURROGATES = tuple(kind() for kind in FAMILIES)
FLAGS: dict[str, list[dict[str, Any]]] = {
    "surrogate": [{"surrogate": s} for s in SURROGATES],
    "mask": [
        {"surrogate": bs.Masked(bs.ATan(), p=0.3)},
        {"surrogate": bs.Masked(bs.ATan(), p=0.3, rescale=True)},
        {"surrogate": bs.Masked(bs.ATan(), p=0.3, replace=bs.Rectangle(1.5))},
    ],
    "reset": [{"v_reset": None}, {"v_reset": -0.25}],
    "leak": [{"decay_input": False}, {"tau": 4.0}],
    "paths": [{"reset_gradient": 0.0}, {"reset_gradient": 0.5}, {"temporal_gradient": False}],
    "memory": [{"memory": m} for m in ("recompute", "bfloat16", "8bit")],
    "one bit": [{"memory": "1bit", "surrogate": bs.Rectangle(), "v_reset": None}],
}
# relative error of gradients: rounding of the dtype, or the cost of saving fewer bits
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
SAVED = {"bfloat16": 0.01, "8bit": 0.05}


def check(options: argparse.Namespace) -> dict[str, Any]:
    backend = "triton" if "triton" in bs.backends() else "cpu"
    parts: list[Callable[..., Iterator[dict[str, Any]]]] = [
        check_neurons,
        check_recurrent,
        check_norms,
        check_bits,
        check_waiting,
        check_cuda_graph,
        check_compile,
    ]
    rows: list[dict[str, Any]] = []
    for part in parts:
        try:
            for row in part(torch.device(options.device), backend, options):
                show(row)
                rows.append(row)
        except Exception as e:  # run the other checks as well
            text = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]}"
            rows.append({"name": part.__name__, "passed": False, "said": text})
            show(rows[-1])
    failed = sum(not row["passed"] for row in rows)
    print(f"{len(rows)} checks, {failed} failed")
    return {"rows": rows, "passed": not failed}


def show(row: dict[str, Any]) -> None:
    state = "ok    " if row["passed"] else "FAILED"
    print(f"{state} {row['name']:58s} {row['said']}", flush=True)


def grid(shape: tuple[int, ...], seed: int, device: torch.device) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * 64).round().div(64).to(device)


def check_neurons(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Every option in every dtype and layout against the reference.

    Spikes must be equal bit for bit, gradients up to rounding.
    """
    dtypes = [torch.float32] if options.tiny else list(TOLERANCE)
    shape = (3, 2, 3, 4, 5) if options.tiny else (4, 8, 24, 15, 17)
    for (name, values), dtype, last in itertools.product(FLAGS.items(), dtypes, (False, True)):
        worst, different, problem = 0.0, 0, ""
        for flags in values:
            x = grid(shape, 1, device).to(dtype)
            x = (
                x.flatten(0, 1)
                .contiguous(memory_format=torch.channels_last)
                .unflatten(0, shape[:2])
                if last
                else x
            )
            g, memory = grid(shape, 2, device).to(dtype), flags.get("memory", "")
            (s, gx), (s_ref, gx_ref) = (
                _lif(x, g, {**flags, **change})
                for change in ({"backend": backend}, {"backend": "reference", "memory": "exact"})
            )
            different += int((s != s_ref).sum())
            error = float(
                (gx.double() - gx_ref.double()).norm() / gx_ref.double().norm().clamp(min=1e-30)
            )
            if error > SAVED.get(memory, TOLERANCE[dtype]):
                problem = f", above the limit with {flags}"
            worst = max(worst, error)
        layout = ", channels last" if last else ""
        text = f"{different} spikes differ, gradients off by {worst:.1e} at most{problem}"
        yield {
            "name": f"{backend}: {name}, {str(dtype).removeprefix('torch.')}{layout}",
            "passed": not different and not problem,
            "said": text,
            "error": worst,
            "different": different,
        }


def _lif(
    x: torch.Tensor, g: torch.Tensor, flags: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.detach().requires_grad_()
    spikes = bs.lif(x, seed=SEED, **flags).spikes
    assert spikes is not None
    spikes.backward(g)
    assert x.grad is not None
    return spikes.detach(), x.grad


def check_recurrent(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Recurrent layers in one kernel against the reference, with learned constants.

    In float64 spikes must be equal, and gradients up to rounding; in narrower types spikes differ
    where the order of a sum moves a membrane across the threshold.
    """
    kinds: dict[str, Callable[..., Any]] = {"PLIF": bs.PLIF, "CubaLIF": bs.CubaLIF}
    masked = bs.Masked(bs.ATan(), p=0.3)
    dtypes = [torch.float64] if options.tiny else list(TOLERANCE)
    sizes = [(5, 17, 18)] if options.tiny else [(20, 33, 100), (50, 128, 128), (10, 20, 362)]
    for (name, kind), dtype, (T, B, n) in itertools.product(kinds.items(), dtypes, sizes):
        if n > 256 and dtype == torch.float64:
            continue  # too wide for one program
        found, ways = [], []
        for chosen in (backend, "reference"):
            torch.manual_seed(5)
            neuron = kind(v_threshold=0.5, v_reset=None, surrogate=masked, backend=chosen)
            layer = bs.Recurrent(torch.nn.Linear(n, n), neuron).to(device, dtype)
            x, g = (grid((T, B, n), seed, device).to(dtype) for seed in (6, 7))
            ways.append(layer.why_step_by_step(x))
            torch.manual_seed(8)  # of the masks
            s = layer(x.requires_grad_())
            s.backward(g)
            gradients = (x.grad, *(p.grad for p in layer.parameters()))
            found.append([s.detach().double(), *(a.double() for a in gradients if a is not None)])
        different = float((found[0][0] != found[1][0]).double().mean())
        error = max(
            float((a - b).norm() / b.norm().clamp(min=1e-30))
            for a, b in zip(found[0][1:], found[1][1:])
        )
        exact = dtype == torch.float64
        close = different <= (0 if exact else 1e-3 if dtype == torch.float32 else 0.07)
        passed = ways[0] is None and close and (not exact or error < TOLERANCE[dtype])
        text = f"{different:.2%} of the spikes differ, gradients off by {error:.1e} at most"
        yield {
            "name": f"{backend}: recurrent {name}, {n} neurons, {dtype}".replace("torch.", ""),
            "passed": passed,
            "said": text if ways[0] is None else f"step by step: {ways[0]}",
            "error": error,
            "different": different,
        }


def check_norms(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """BatchNorm, neuron and pooling as one operator against separate ones.

    Those are torch's BatchNorm, the reference in float64 and torch's pooling.
    """
    shape = (3, 2, 3, 5, 6) if options.tiny else (4, 8, 24, 15, 17)
    cases = itertools.product(
        (True, False), (None, "avg", "max"), (torch.float64, torch.float32, torch.bfloat16), (1, 3)
    )
    for train, pool, dtype, repeats in cases:
        steps = (1 if repeats > 1 else shape[0], *shape[1:])
        y = grid(steps, 3, device).to(dtype)
        y = y.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, steps[:2])
        found = _norm(y, train, pool, repeats, norm_lif, backend)
        wanted = _norm(y.double(), train, pool, repeats, _separate, "reference")
        different = float((found[0].double() != wanted[0]).double().mean())
        errors = [
            float((a.double() - b).norm() / b.norm().clamp(min=1e-30))
            for a, b in zip(found[1:], wanted[1:])
        ]
        # spikes and gradients differ where rounding moves a membrane across the threshold
        exact = dtype == torch.float64
        passed = different <= (0 if exact else 1e-3) and max(errors) <= (1e-9 if exact else 0.03)
        mode = "training" if train else "evaluation"
        name = f"{backend}: BatchNorm in {mode}, pool {pool}, repeats {repeats}, {dtype}"
        text = f"{different:.2%} of the spikes differ, gradients off by {max(errors):.1e} at most"
        yield {
            "name": name.replace("torch.", ""),
            "passed": passed,
            "said": text,
            "error": max(errors),
            "different": different,
        }


def _separate(call: Any, norm: Norm, pool: str | None, backend: str) -> Any:
    y = call.x.expand(call.repeats, *call.x.shape[1:]) if call.repeats > 1 else call.x
    given = (
        norm.running_mean,
        norm.running_var,
        norm.weight,
        norm.bias,
        norm.training,
        norm.momentum,
        norm.eps,
    )
    x = torch.nn.functional.batch_norm(y.flatten(0, 1), *given).unflatten(0, y.shape[:2])
    result = dispatch(backend, replace(call, x=x, repeats=1))
    pools: dict[str | None, Callable[[torch.Tensor], torch.Tensor]] = {
        None: lambda s: s,
        "avg": lambda s: torch.nn.functional.avg_pool2d(s, 2),
        "max": lambda s: torch.nn.functional.max_pool2d(s, 2),
    }
    return result._replace(
        spikes=pools[pool](result.spikes.flatten(0, 1)).unflatten(0, y.shape[:2])
    )


def _norm(
    y: torch.Tensor,
    train: bool,
    pool: str | None,
    repeats: int,
    run: Callable[..., Any],
    backend: str,
) -> list[torch.Tensor]:
    """The spikes, and the gradients of input, weight and bias."""
    C = y.shape[2]
    wide: dict[str, Any] = {
        "dtype": torch.float64 if y.dtype == torch.float64 else torch.float32,
        "device": y.device,
    }
    weight, bias = (
        torch.linspace(*ends, C, **wide).requires_grad_() for ends in ((0.8, 1.6), (0.1, 0.7))
    )
    norm = Norm(
        weight,
        bias,
        torch.linspace(-0.2, 0.2, C, **wide),
        torch.linspace(0.5, 1.5, C, **wide),
        train,
        0.1,
        1e-5,
    )
    neuron = LIF(surrogate=bs.Masked(bs.ATan(), p=0.3), reset_gradient=0.5)
    y = y.detach().requires_grad_()
    call = prepare(y, None, neuron, Constants(2.0, 0.75), SEED, repeats=repeats)
    spikes = run(call, norm, pool, backend).spikes
    spikes.backward(grid(tuple(spikes.shape), 4, y.device).to(spikes.dtype))
    return [spikes.detach(), *(p.grad for p in (y, weight, bias) if p.grad is not None)]


def check_bits(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Two blocks whose second convolution saves its input as bits, against the same without."""
    neuron = bs.LIF(v_threshold=0.5, surrogate=bs.ATan())
    blocks = [
        (torch.nn.Conv2d(c, 32, 3, padding=1, bias=False), torch.nn.BatchNorm2d(32))
        for c in (3, 32)
    ]
    model = bs.Sequential(
        *(layer for block in blocks for layer in (bs.OverTime(*block), copy.deepcopy(neuron)))
    )
    model = model.to(device, memory_format=torch.channels_last)
    x = (
        grid((4 * 8, 3, 16, 16), 5, device)
        .float()
        .contiguous(memory_format=torch.channels_last)
        .unflatten(0, (4, 8))
    )
    saved_bits: list[bool] = []
    found, pack = {}, synapse._pack  # noqa: SLF001  (counted from outside)

    def count(x: torch.Tensor, dtype: torch.dtype, bits: Any) -> Any:
        saved_bits.append(bits is not None)
        return pack(x, dtype, bits)

    synapse._pack = count  # noqa: SLF001  (counted from outside)
    try:
        for name, change in (("bits", SpikeInfo.bits_of), ("none", lambda self, x: None)):
            SpikeInfo.bits_of, usual = change, SpikeInfo.bits_of  # type: ignore[method-assign,assignment]
            try:
                model.zero_grad()
                model(x).float().square().sum().backward()
            finally:
                SpikeInfo.bits_of = usual  # type: ignore[method-assign]
            found[name] = [p.grad.double() for p in model.parameters() if p.grad is not None]
    finally:
        synapse._pack = pack  # noqa: SLF001  (counted from outside)
    errors = [
        float((a - b).norm() / b.norm().clamp(min=1e-30))
        for a, b in zip(found["bits"], found["none"])
    ]
    used = any(saved_bits) or backend != "triton"  # the C kernels do not write bits
    text = f"gradients off by {max(errors):.1e} at most, {sum(saved_bits)} saved as bits"
    yield {
        "name": f"{backend}: spikes saved as bits",
        "passed": used and max(errors) < 1e-3,
        "said": text,
    }


def small_recipe(**changes: Any) -> Any:
    small = {
        "limit": 300,
        "epochs": 2,
        "batch_size": 32,
        "model": "ConvNet('8-P-16-P', size=8)",
        "optimizer": "SGD(lr=0.05)",
    }
    return bs.recipes.digits().replace({**small, **changes})


@contextmanager
def no_waiting(device: torch.device, steps: list[int]) -> Iterator[None]:
    """Makes a training step that waits for the device an error."""
    compute = step.Step.compute

    def watched(self: Any, *batch: torch.Tensor) -> None:
        steps.append(1)
        strict = device.type == "cuda" and len(steps) > 3  # libraries wait on first use
        if strict:
            torch.cuda.set_sync_debug_mode("error")
        try:
            compute(self, *batch)
        finally:
            if strict:
                torch.cuda.set_sync_debug_mode("default")

    step.Step.compute = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        step.Step.compute = compute  # type: ignore[method-assign]


def check_waiting(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    changes: dict[str, dict[str, Any]] = {
        "digits": {},
        "clip, EMA, two parts": {"clip": 1.0, "ema": 0.9, "accumulate": 2},
        "learned width, PDA": {"neuron.surrogate": "Parametric(Triangle())", "potential": "PDA()"},
    }
    for name, change in changes.items():
        steps: list[int] = []
        with no_waiting(device, steps):
            bs.fit(
                small_recipe(cuda_graph=False, **change),
                Path(options.out) / "run",
                force=True,
                device=device,
                report=False,
            )
        text = (
            f"{len(steps)} steps"
            if device.type == "cuda"
            else f"{len(steps)} steps; waiting is not detected on a CPU"
        )
        yield {"name": f"no step waits for the device: {name}", "passed": True, "said": text}


def check_cuda_graph(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    torch.backends.cudnn.deterministic = True
    runs, on_gpu = {}, device.type == "cuda"
    for name, graph in (("plain", False), ("captured", True if on_gpu else None)):
        run = Path(options.out) / name
        bs.fit(small_recipe(cuda_graph=graph), run, force=True, device=device, report=False)
        runs[name] = bs.load(run).state_dict()
    different = [k for k, v in runs["plain"].items() if not torch.equal(v, runs["captured"][k])]
    text = f"different: {', '.join(different)}" if different else "weights bit-identical"
    where = "" if on_gpu else " (nothing is captured on a CPU)"
    yield {"name": "a run captured as a CUDA graph", "passed": not different, "said": text + where}


def check_compile(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    model = bs.Sequential(
        bs.OverTime(torch.nn.Conv2d(2, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8)),
        bs.LIF(v_threshold=0.5, surrogate=bs.Masked(bs.Triangle(), p=0.5)),
        bs.OverTime(torch.nn.Flatten(), torch.nn.Linear(8 * 64, 10)),
    ).to(device)
    x = grid((4, 6, 2, 8, 8), 5, device).float()
    how: dict[str, Any] = {} if device.type == "cuda" else {"backend": "aot_eager"}
    found = []
    for run in (model, torch.compile(model, fullgraph=True, **how)):
        model.zero_grad()
        torch.manual_seed(3)
        o = run(x)
        o.square().sum().backward()
        found.append(
            [o.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        )
    error = max(float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in zip(*found))
    yield {
        "name": "torch.compile(fullgraph=True)",
        "passed": error < 1e-3,
        "said": f"off by {error:.1e} at most",
        "error": error,
    }
