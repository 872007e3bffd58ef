"""What has to be seen on a GPU: `check` that all is right, `bench` how fast it is, `cifar10` how far eight minutes go.

    check     spikes and gradients of the Triton kernels against the reference for every flag and dtype, alone and with
              BatchNorm and pool; steps that never wait for the device; a run recorded as a CUDA graph against one that is
              not, weights bit for bit; torch.compile without a graph break
    bench     `backspike bench --device cuda` with SpikingJelly's Triton kernels in turn
    cifar10   CIFARNet, T = 4, MSG and TWO with crops and flips: the accuracy after a fixed time, its curve, and what 300
              epochs would take

Called by gpu.sh. Exit code 1 where a check failed. Inputs of the first check lie on a grid of 1/64, on which float32 is exact.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import backspike as bs
from backspike.kernel import dispatch
from backspike.kernel.call import Sent
from backspike.kernel.norm import Norm, norm_lif
from backspike.layers import synapse
from backspike.neuron.prepare import prepare
from backspike.train import step

SEED = 2**50 + 33
SURROGATES = (
    *(bs.Triangle(), bs.ATan(), bs.Rectangle(), bs.Sigmoid(), bs.SuperSpike()),
    *(bs.PiecewiseExponential(), bs.Erf(), bs.Dspike()),
)
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
# gradients to the dtype's rounding; those of a membrane kept in fewer bits to what it costs
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
KEPT = {"bfloat16": 0.01, "8bit": 0.05}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("check", "bench", "cifar10"))
    parser.add_argument("--out", default="gpu", help="folder for the results (default: gpu)")
    parser.add_argument("--device", default="cuda", help="cuda (default) or cpu")
    parser.add_argument(
        "--data", default="", help="cifar10: the folder that holds cifar-10-batches-py"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="cifar10: of training (default: 8)"
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="small sizes, to see that the script runs; figures mean nothing",
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu.py: no CUDA device can be used here; to try the script: --device cpu --tiny",
            file=sys.stderr,
        )
        return 2
    started, out = time.monotonic(), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    result = {"check": check, "bench": bench, "cifar10": cifar10}[options.what](options)
    result |= {
        "machine": machine(options.device),
        "seconds": round(time.monotonic() - started, 1),
        "command": sys.argv,
    }
    result["tiny"] = options.tiny
    file = out / f"{options.what}.json"
    file.write_text(json.dumps(result, indent=1, default=str))
    print(f"{options.what}: {file}, {result['seconds']} s on {result['machine']['device']}")
    return 0 if result.get("passed", True) else 1


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "device": "cpu",
        "backends": bs.backends(),
    }
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
    return found


def table(rows: list[dict[str, Any]]) -> None:
    """One line for each, and at once."""
    for row in rows:
        state = "ok    " if row["passed"] else "FAILED"
        print(f"{state} {row['name']:58s} {row['said']}", flush=True)


# ------------------------------------------------------------------------------------------------------------------ check


def check(options: argparse.Namespace) -> dict[str, Any]:
    backend = "triton" if "triton" in bs.backends() else "cpu"
    parts: list[Callable[..., Iterator[dict[str, Any]]]] = [
        neurons,
        norms,
        bits,
        waits,
        recorded,
        compiled,
    ]
    rows: list[dict[str, Any]] = []
    for part in parts:
        try:
            for row in part(torch.device(options.device), backend, options):
                table([row])
                rows.append(row)
        except Exception as e:  # the other parts are still worth knowing
            text = (str(e).splitlines() or [""])[0]
            rows.append(
                {"name": part.__name__, "passed": False, "said": f"{type(e).__name__}: {text}"}
            )
            table(rows[-1:])
    failed = sum(not row["passed"] for row in rows)
    print(f"{len(rows)} checks, {failed} failed")
    return {"rows": rows, "passed": not failed}


def grid(shape: tuple[int, ...], seed: int, device: torch.device) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x * 64).round().div(64).to(device)


def neurons(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Every flag in every dtype and layout against the reference: spikes bit for bit, gradients to rounding."""
    dtypes = [torch.float32] if options.tiny else list(TOLERANCE)
    shape = (3, 2, 3, 4, 5) if options.tiny else (4, 8, 24, 15, 17)
    for (name, values), dtype, last in itertools.product(FLAGS.items(), dtypes, (False, True)):
        worst, different, said = 0.0, 0, ""
        for flags in values:
            x = grid(shape, 1, device).to(dtype)
            x = (
                x.flatten(0, 1)
                .contiguous(memory_format=torch.channels_last)
                .unflatten(0, shape[:2])
                if last
                else x
            )
            g, kept = grid(shape, 2, device).to(dtype), flags.get("memory", "")
            (s, gx), (s_ref, gx_ref) = (
                _lif(x, g, {**flags, **change})
                for change in ({"backend": backend}, {"backend": "reference", "memory": "exact"})
            )
            different += int((s != s_ref).sum())
            error = float(
                (gx.double() - gx_ref.double()).norm() / gx_ref.double().norm().clamp(min=1e-30)
            )
            if error > KEPT.get(kept, TOLERANCE[dtype]):
                said = f", too far with {flags}"
            worst = max(worst, error)
        label = f"{backend}: {name}, {str(dtype).removeprefix('torch.')}{', channels last' if last else ''}"
        text = f"{different} spikes differ, gradients off by {worst:.1e} at most{said}"
        yield {
            "name": label,
            "passed": not different and not said,
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


def norms(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """BatchNorm, neuron and pool as one op against torch's BatchNorm, the reference in float64 and torch's pool."""
    shape = (3, 2, 3, 5, 6) if options.tiny else (4, 8, 24, 15, 17)
    cases = itertools.product(
        (True, False), (None, "avg", "max"), (torch.float64, torch.float32, torch.bfloat16), (1, 3)
    )
    for train, pool, dtype, repeats in cases:
        steps = (1 if repeats > 1 else shape[0], *shape[1:])
        y = grid(steps, 3, device).to(dtype)
        y = y.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, steps[:2])
        found = _norm(y, train, pool, repeats, norm_lif, backend)
        wanted = _norm(y.double(), train, pool, repeats, _apart, "reference")
        different = float((found[0].double() != wanted[0]).double().mean())
        errors = [
            float((a.double() - b).norm() / b.norm().clamp(min=1e-30))
            for a, b in zip(found[1:], wanted[1:])
        ]
        # where a rounded membrane falls on the other side of the threshold, spikes and gradients differ
        exact = dtype == torch.float64
        passed = different <= (0 if exact else 1e-3) and max(errors) <= (1e-9 if exact else 0.03)
        name = f"{backend}: BatchNorm {'training' if train else 'evaluating'}, pool {pool}, repeats {repeats}, {dtype}"
        said = f"{different:.2%} of the spikes differ, gradients off by {max(errors):.1e} at most"
        yield {
            "name": name.replace("torch.", ""),
            "passed": passed,
            "said": said,
            "error": max(errors),
            "different": different,
        }


def _apart(call: Any, norm: Norm, pool: str | None, backend: str) -> Any:
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
    """Spikes, and the gradients of input, weight and bias."""
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
    options: dict[str, Any] = {
        "tau": 2.0,
        "v_threshold": 0.75,
        "v_reset": 0.0,
        "decay_input": True,
        "reset_gradient": 0.5,
    }
    options |= {
        "surrogate": bs.Masked(bs.ATan(), p=0.3),
        "temporal_gradient": True,
        "seed": SEED,
        "repeats": repeats,
    }
    y = y.detach().requires_grad_()
    spikes = run(prepare(y, None, **options), norm, pool, backend).spikes
    spikes.backward(grid(tuple(spikes.shape), 4, y.device).to(spikes.dtype))
    return [spikes.detach(), *(p.grad for p in (y, weight, bias) if p.grad is not None)]


def bits(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Two blocks whose second convolution keeps its input as bits, against the same without them; and what is kept."""
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
    seen: list[bool] = []
    found, keep = {}, synapse._pack  # noqa: SLF001  (counted from outside)
    synapse._pack = lambda x, dtype, bits: (seen.append(bits is not None), keep(x, dtype, bits))[1]  # type: ignore[assignment,func-returns-value]  # noqa: SLF001  (counted from outside)
    try:
        for name, change in (("bits", Sent.bits_of), ("none", lambda self, x: None)):
            Sent.bits_of, usual = change, Sent.bits_of  # type: ignore[method-assign,assignment]
            try:
                model.zero_grad()
                model(x).float().square().sum().backward()
            finally:
                Sent.bits_of = usual  # type: ignore[method-assign]
            found[name] = [p.grad.double() for p in model.parameters() if p.grad is not None]
    finally:
        synapse._pack = keep  # noqa: SLF001  (counted from outside)
    errors = [
        float((a - b).norm() / b.norm().clamp(min=1e-30))
        for a, b in zip(found["bits"], found["none"])
    ]
    used = any(seen) or backend != "triton"  # the C kernels write none
    said = f"gradients off by {max(errors):.1e} at most, {sum(seen)} convolutions kept bits"
    yield {
        "name": f"{backend}: spikes kept as bits",
        "passed": used and max(errors) < 1e-3,
        "said": said,
    }


def recipe(**changes: Any) -> Any:
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
    """Within it a training step that waits for the device is an error."""
    compute = step.Step.compute

    def watched(self: Any, *batch: torch.Tensor) -> None:
        steps.append(1)
        strict = device.type == "cuda" and len(steps) > 3  # libraries wait when they are first used
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


def waits(
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
                recipe(cuda_graph=False, **change),
                Path(options.out) / "run",
                force=True,
                device=device,
                report=False,
            )
        said = (
            f"{len(steps)} steps"
            if device.type == "cuda"
            else f"{len(steps)} steps; waiting is not watched on a CPU"
        )
        yield {"name": f"no step waits for the device: {name}", "passed": True, "said": said}


def recorded(
    device: torch.device, backend: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    torch.backends.cudnn.deterministic = True
    runs, on_gpu = {}, device.type == "cuda"
    for name, graph in (("plain", False), ("recorded", True if on_gpu else None)):
        said: list[dict[str, Any]] = []
        run = Path(options.out) / name
        bs.fit(
            recipe(cuda_graph=graph),
            run,
            force=True,
            device=device,
            report=False,
            listen=said.append,
        )
        runs[name] = bs.load(run).state_dict()
    different = [k for k, v in runs["plain"].items() if not torch.equal(v, runs["recorded"][k])]
    text = f"different: {', '.join(different)}" if different else "weights equal bit for bit"
    where = "" if on_gpu else " (nothing is recorded on a CPU)"
    yield {"name": "a run recorded as a CUDA graph", "passed": not different, "said": text + where}


def compiled(
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


# ------------------------------------------------------------------------------------------------------------------ bench


def bench(options: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from backspike.bench import page, run
    from backspike.bench.workers import installed
    from backspike.errors import BenchError

    try:
        peer: str | None = sys.executable if installed(sys.executable) else None
    except BenchError as e:
        print(f"without other libraries: {e}")
        peer = None

    def tell(event: dict[str, Any]) -> None:
        if event["event"] in ("start", "failed"):
            print({k: v for k, v in event.items() if k != "event"}, flush=True)

    names = "neuron-gpu,resnet-32px,vggsnn,resnet-224px"
    only = (
        ("backspike", "SpikingJelly", "plain loop")
        if not options.tiny
        else ("backspike, bf16", "SpikingJelly", "plain loop")
    )
    measured = run(
        names,
        rounds=1 if options.tiny else 5,
        peer_python=peer,
        only=only,
        device=options.device,
        quick=options.tiny,
        listen=tell,
    )
    page.write(measured, Path(options.out) / "bench", " ".join(sys.argv))
    console = Console(highlight=False, width=160)
    for shown in page.terminal(measured):
        console.print(shown)
    return measured.complete(" ".join(sys.argv))


# ---------------------------------------------------------------------------------------------------------------- cifar10


def cifar10(options: argparse.Namespace) -> dict[str, Any]:
    """As many epochs of the recipe as fit into the minutes, found by timing two; its own schedule over them."""
    base = bs.recipes.cifar10_crop_flip()
    if options.data:
        base = base.replace({"root": options.data})
    if options.tiny:
        base = recipe(readout="TWO(start_epoch=1)")
    run, budget = Path(options.out) / "cifar10", 60 * options.minutes
    times: list[float] = []
    epochs = 2
    try:
        _train(base.replace({"epochs": epochs, "warmup_epochs": 0.0}), run, options.device, times)
    except bs.train.RunError as e:
        return {"passed": False, "said": str(e)}
    each = times[-1]  # the first epoch makes plans and compiles
    epochs = max(1, int((budget - sum(times)) / each))
    if options.tiny:
        epochs = 2
    print(
        f"{each:.1f} s an epoch with its validation: {epochs} epochs in {options.minutes:g} minutes",
        flush=True,
    )
    curve: list[dict[str, Any]] = []
    started = time.monotonic()
    result = _train(
        base.replace({"epochs": epochs, "warmup_epochs": min(1.0, epochs / 10)}),
        run,
        options.device,
        times,
        curve,
    )
    seconds = time.monotonic() - started
    print(f"test accuracy {result.test_accuracy:.2%} after {epochs} epochs, {seconds:.0f} s")
    print(
        f"300 epochs at this pace: {300 * seconds / epochs / 3600:.2f} hours; by published results of SNNs of this kind 94-95 %"
    )
    return {
        "test_accuracy": result.test_accuracy,
        "epochs": epochs,
        "training_seconds": seconds,
        "hours_of_300_epochs": 300 * seconds / epochs / 3600,
        "peak_bytes": torch.cuda.max_memory_allocated() if options.device == "cuda" else None,
        "curve": curve,
        "recipe": base.to_dict(),
    }


def _train(
    what: Any, run: Path, device: str, times: list[float], curve: list[dict[str, Any]] | None = None
) -> Any:
    last = [time.monotonic()]

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "epoch":
            now = time.monotonic()
            times.append(now - last[0])
            last[0] = now
            kept = {
                k: event[k]
                for k in (
                    "epoch",
                    "loss",
                    "train_accuracy",
                    "validation_accuracy",
                    "lr",
                    "samples_per_second",
                )
            }
            if curve is not None:
                curve.append(kept)
            said = {
                k: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v
                for k, v in kept.items()
            }
            print("  ".join(f"{k} {v}" for k, v in said.items()), flush=True)
        elif event["event"] == "cuda_graph":
            print(event["text"], flush=True)

    return bs.fit(what, run, force=True, device=device, report=False, listen=tell)


if __name__ == "__main__":
    sys.exit(main())
