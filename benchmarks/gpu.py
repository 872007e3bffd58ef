"""The GPU scripts, called by gpu.sh: `check`, `bench` and `cifar10`.

    check     spikes and gradients of the Triton kernels against the reference for every option and
              dtype, alone and with BatchNorm and pooling; steps that never wait for the device; a
              run captured as a CUDA graph against one that is not, weights bit for bit;
              torch.compile without a graph break
    bench     `backspike bench --device cuda`, with SpikingJelly's Triton kernels in turn
    cifar10   CIFARNet, T = 4, MSG and TWO with crops and flips: the accuracy after a fixed time,
              its curve, and what 300 epochs would take

Exit code 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_check import check, small_recipe

import backspike as bs
from backspike.errors import RunError

# what is recorded of each epoch
CURVE = ("epoch", "loss", "train_accuracy", "validation_accuracy", "lr", "samples_per_second")


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
        "--minutes", type=float, default=8.0, help="cifar10: training time (default: 8)"
    )
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="small sizes, to check that the script runs; figures mean nothing",
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu.py: no CUDA device found; to try the script: --device cpu --tiny",
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


# ---- bench ---------------------------------------------------------------------------------------


def bench(options: argparse.Namespace) -> dict[str, Any]:
    from rich.console import Console

    from backspike.bench import page, run
    from backspike.bench.workers import installed
    from backspike.errors import BenchError

    try:
        peer: str | None = sys.executable if installed(sys.executable) else None
    except BenchError as e:
        print(f"no other libraries: {e}")
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


# ---- cifar10 -------------------------------------------------------------------------------------


def cifar10(options: argparse.Namespace) -> dict[str, Any]:
    """Trains as many epochs of the recipe as fit into the time, with its schedule over them.

    Two epochs are timed first.
    """
    base = bs.recipes.cifar10_crop_flip()
    if options.data:
        base = base.replace({"root": options.data})
    if options.tiny:
        base = small_recipe(readout="TWO(start_epoch=1)")
    run, budget = Path(options.out) / "cifar10", 60 * options.minutes
    times: list[float] = []
    epochs = 2
    try:
        _train(base.replace({"epochs": epochs, "warmup_epochs": 0.0}), run, options.device, times)
    except RunError as e:
        return {"passed": False, "error": str(e)}
    each = times[-1]  # the first epoch plans and compiles
    epochs = max(1, int((budget - sum(times)) / each))
    if options.tiny:
        epochs = 2
    print(
        f"{each:.1f} s per epoch with validation: {epochs} epochs in {options.minutes:g} minutes",
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
    hours = 300 * seconds / epochs / 3600
    print(f"300 epochs at this speed: {hours:.2f} hours; published SNNs of this kind: 94-95 %")
    return {
        "test_accuracy": result.test_accuracy,
        "epochs": epochs,
        "training_seconds": seconds,
        "hours_of_300_epochs": hours,
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
            point = {key: event[key] for key in CURVE}
            if curve is not None:
                curve.append(point)
            shown = {
                k: round(v, 4) if isinstance(v, float) and math.isfinite(v) else v
                for k, v in point.items()
            }
            print("  ".join(f"{k} {v}" for k, v in shown.items()), flush=True)
        elif event["event"] == "cuda_graph":
            print(event["text"], flush=True)

    return bs.fit(what, run, force=True, device=device, report=False, listen=tell)


if __name__ == "__main__":
    sys.exit(main())
