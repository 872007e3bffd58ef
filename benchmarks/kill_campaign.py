"""Kills training, cache building and studies at random moments and checks that nothing is lost.

    python benchmarks/kill_campaign.py [--kills N] [--only PART[,PART]] [--seed N]
                                       [--out kills.json]

Every part first runs once undisturbed. Then it is started, killed (SIGKILL) at a random moment,
alone or with its whole process group, and started again with the command a user would give, until
it finishes; this repeats until the requested number of kills is reached. After each kill every file
under its final name is read, and torn ones are counted. Whenever the part finishes, weights,
averaged weights, optimizer, losses and outputs must be bit-identical to those of the undisturbed
one; a difference or a failed attempt counts as a loss. Exit code 1 if there is any. Processes are
forked from this one, with everything imported, so that kills hit the work itself. Linux or macOS.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

# before torch is imported: a process that has had threads cannot be forked safely
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from safetensors.torch import load as load_safetensors

import backspike
from backspike import data, run
from backspike.cli import main as command_line
from backspike.data import Events, binning, simulated
from backspike.data.formats import atis
from backspike.data.sets.digits import DIGITS
from backspike.study import page  # noqa: F401  (once, for all forks)
from backspike.system.table import Table, left, right
from backspike.train import checkpoint

# keys that differ between equal runs: times and paths
TIMES = {"seconds", "seconds_per_epoch", "samples_per_second", "run"}
PATIENCE = 600  # seconds that processes get to end on a shared machine
NETWORK = [
    "--model=ConvNet('6-P-8-P', size=8)",
    "--limit=120",
    "--batch_size=32",
    "--checkpoint_seconds=0",
]
EVENTS = [
    "--model=ConvNet('4-P-4-P', in_channels=2, size=17)",
    "--T=4",
    "--batch_size=6",
    "--workers=2",
]


# ---- the work, in its own process, and its result ------------------------------------------------


def train_digits(folder: Path) -> int:
    more = ["--epochs=4", "--ema=0.9", "--accumulate=2", "--mask_p_end=0.1"]
    return _begin_or_resume(folder, ["train", "digits", *NETWORK, *more])


def train_events(folder: Path) -> int:
    """With checkpoints within an epoch; samples are loaded in two processes."""
    _few_digits()
    os.environ["BACKSPIKE_CACHE"] = str(folder.parent / "events-cache")
    return _begin_or_resume(
        folder, ["train", "digits-dvs", *EVENTS, "--epochs=2", "--checkpoint_seconds=0"]
    )


def _begin_or_resume(folder: Path, words: list[str]) -> int:
    there = (folder / "recipe.json").exists()
    return command_line(["resume", str(folder)] if there else [*words, "--out", str(folder)])


def study(folder: Path) -> int:
    words = ["study", "reset-gradient", "--seeds=1", "--epochs=1", "--jobs=1", *NETWORK]
    return command_line([*words, "--out", str(folder)])


def study_in_processes(folder: Path) -> int:
    words = ["study", "reset-gradient", "--seeds=2", "--epochs=1", "--jobs=2", *NETWORK]
    return command_line([*words, "--out", str(folder)])


def caches(folder: Path) -> int:
    """Simulates recordings and counts others, both in worker processes."""
    _few_digits()
    os.environ["BACKSPIKE_CACHE"] = str(folder)
    simulated.SERIAL_IMAGES, binning.SERIAL_BYTES = 0, 0
    binning.CHUNK_ROWS, binning.CHUNK_BYTES = 8, 0
    data.load("digits-dvs", T=5)
    data.load("nmnist", folder.parent / "recordings", T=40)
    return 0


def _few_digits() -> None:
    whole = data.load("digits")
    parts = (whole.train, whole.validation, whole.test)
    few = [split.take(np.flatnonzero(split.y < 2)[:18]) for split in parts]
    vars(DIGITS)["read"] = lambda source, place: few


def _recordings(folder: Path) -> None:
    """Writes random events as files in N-MNIST's format."""
    random = np.random.default_rng(0)
    for part in ("Train", "Test"):
        for i in range(60):
            x, y, p = (random.integers(0, size, 2000) for size in (34, 34, 2))
            path = folder / part / str(i % 10) / f"{i:05d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(atis.encode(Events(x, y, np.arange(2000), p)))


def run_result(folder: Path) -> dict[str, str]:
    """Checksums of the parts of a finished run."""
    last, best = (checkpoint.read(run.Run(folder), name) for name in ("last.ckpt", "best.ckpt"))
    found = {name: _sum(last[name]) for name in ("network", "averaged", "optimizer", "position")}
    found["generator"] = _sum(last["ranks"][0]["generators"]["torch"])
    found |= {"best": _sum(best), "log": _sum(run.Run(folder).log())}
    found["model.safetensors"] = _sum((folder / "model.safetensors").read_bytes())
    with np.load(folder / "evaluation.npz") as arrays:
        found["evaluation.npz"] = _sum(
            {name: torch.from_numpy(v) for name, v in arrays.items() if v.dtype.kind in "biuf"}
        )
    return found


def study_result(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.glob("runs/*/*/last.ckpt")):
        of = path.parent.relative_to(folder)
        found |= {f"{of}/{name}": value for name, value in run_result(path.parent).items()}
    return found | {"study.json": _sum(json.loads((folder / "study.json").read_bytes()))}


def cache_result(folder: Path) -> dict[str, str]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not _unfinished(p, folder))
    return {_name(p, folder): _sum(p.read_bytes()) for p in paths}


def _name(path: Path, folder: Path) -> str:
    """The relative path without a cache entry's key, which depends on file times."""
    return re.sub(r"-[0-9a-f]{16}", "", str(path.relative_to(folder)))


def _sum(value: Any) -> str:
    digest = hashlib.sha256()

    def take(value: Any) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                if k not in TIMES:
                    digest.update(repr(k).encode())
                    take(v)
        elif isinstance(value, list | tuple):
            digest.update(str(len(value)).encode())
            for v in value:
                take(v)
        elif isinstance(value, torch.Tensor):
            digest.update(
                f"{value.dtype} {tuple(value.shape)}".encode()
                + value.contiguous().numpy().tobytes()
            )
        else:
            digest.update(value if isinstance(value, bytes) else repr(value).encode())

    take(value)
    return digest.hexdigest()


def torn(folder: Path, whole: dict[str, str]) -> list[str]:
    """The files under their final names that cannot be read completely.

    In a cache, also those that differ from the undisturbed one's.
    """
    bad = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not _unfinished(path, folder):
            try:
                _read(path, whole.get(_name(path, folder)))
            except Exception as e:
                bad.append(f"{path}: {e}")
    return bad


def _read(path: Path, wanted: str | None) -> None:
    content = path.read_bytes()
    match path.suffix:
        case ".ckpt":
            checkpoint.read(run.Run(path.parent), path.name)
        case ".json":
            json.loads(content)
        case ".jsonl":
            lines = content.split(b"\n")
            for line in lines[:-1]:  # a kill may cut the last one; a resume repairs it
                json.loads(line)
        case ".safetensors":
            load_safetensors(content)
        case ".npz":
            with np.load(io.BytesIO(content)) as arrays:
                _ = [arrays[name] for name in arrays]
        case ".html" | ".svg":
            if not content.rstrip().endswith((b"</html>", b"</svg>")):
                raise ValueError("ends too early")
        case ".npy" | ".bin" | "":
            if path.name != ".lock" and wanted is not None and _sum(content) != wanted:
                raise ValueError("differs from the undisturbed one")


def _unfinished(path: Path, folder: Path) -> bool:
    return any(part.endswith(".tmp") for part in path.relative_to(folder).parts)


@dataclass(frozen=True)
class Part:
    about: str
    work: Callable[[Path], int]
    result: Callable[[Path], dict[str, str]]
    share: int  # of the kills


PARTS = {
    "training": Part("a run with EMA, accumulation and mask", train_digits, run_result, 4),
    "workers": Part("a run that loads data in two processes", train_events, run_result, 2),
    "cache": Part("simulating and counting recordings", caches, cache_result, 3),
    "study": Part("three runs and their page", study, study_result, 2),
    "study in processes": Part("six runs, two at once", study_in_processes, study_result, 1),
}


# ---- killing -------------------------------------------------------------------------------------


@dataclass
class Tally:
    kills: int = 0
    alone: int = 0  # kills of the process without its children
    writing: int = 0  # kills that left a half-written temporary file
    went_on: int = 0  # attempts that continued earlier work
    ends: int = 0
    equal: int = 0
    torn: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)


def _start(work: Callable[[Path], int], folder: Path, output: Path) -> int:
    """Forks a process, in its own group, that does the work with its output in a file."""
    sys.stdout.flush()
    pid = os.fork()
    with suppress(PermissionError):  # parent and child both set it; the second call may fail
        os.setpgid(pid, pid)
    if pid:
        return pid
    code = 70
    try:
        out = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = work(folder)
    except BaseException as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    """The exit code, or None if the process did not end in that time."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(0.0005)


def _kill(pid: int, alone: bool) -> bool:
    """Whether the kill hit, rather than the process having ended before."""
    (os.kill if alone else os.killpg)(pid, signal.SIGKILL)
    killed = _wait(pid, PATIENCE) == -signal.SIGKILL
    end = time.monotonic() + PATIENCE
    while _alive(pid):  # its children end on their own
        if time.monotonic() > end:
            raise SystemExit(f"processes of group {pid} outlived their parent by {PATIENCE} s")
        time.sleep(0.01)
    return killed


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False


def campaign(part: Part, kills: int, folder: Path, random: Random) -> Tally:
    """Kills one part that many times, in folders within `folder`."""
    tally, output = Tally(), folder / "output.txt"
    started = time.monotonic()
    if _wait(_start(part.work, folder / "whole", output), 3600) != 0:
        raise SystemExit(f"the undisturbed run failed: {output.read_text().strip()}")
    seconds, whole = time.monotonic() - started, part.result(folder / "whole")
    while tally.kills < kills:
        place = folder / f"round-{tally.ends}-{len(tally.losses)}"
        while True:
            tally.went_on += place.is_dir() and any(place.iterdir())
            pid = _start(part.work, place, output)
            enough = tally.kills >= kills
            # attempts continue each other: many short ones spread the kills over the whole work
            code = _wait(pid, 3600 if enough else 1.2 * seconds * random.random() ** 3)
            if code is None:
                alone = random.random() < 0.3
                if _kill(pid, alone):
                    tally.kills, tally.alone = tally.kills + 1, tally.alone + alone
                    tally.writing += place.is_dir() and any(
                        p.name.endswith(".tmp") for p in place.rglob(".*")
                    )
                    tally.torn += torn(place, whole) if place.is_dir() else []
                continue
            if code == 0:
                tally.ends += 1
                differing = [
                    name for name, value in part.result(place).items() if value != whole.get(name)
                ]
                differing += [name for name in whole if name not in part.result(place)]
                tally.equal += not differing
                tally.losses += [f"{place}: {', '.join(differing)} differ"] if differing else []
            else:
                tally.losses.append(
                    f"{place}: exit code {code}: {output.read_text().strip()[-300:]}"
                )
            break
        print(f"{place.parent.name}: {tally.kills} of {kills} kills", file=sys.stderr, flush=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=120, help="in total (default: 120)")
    parser.add_argument(
        "--only", default=",".join(PARTS), help=f"parts, by commas: {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--seed", type=int, default=None, help="for the moments of the kills (default: random)"
    )
    parser.add_argument("--out", type=Path, help="a JSON file for the counts")
    options = parser.parse_args()
    parts = {name: PARTS[name] for name in options.only.split(",") if name in PARTS}
    if unknown := set(options.only.split(",")) - set(PARTS):
        parser.error(f"unknown part {unknown.pop()!r}; choose from: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(4), "little")
    random, shares = Random(seed), sum(part.share for part in parts.values())
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        for name, part in parts.items():
            place = Path(folder) / name.replace(" ", "-")
            place.mkdir()
            if name == "cache":
                _recordings(place / "recordings")
            tallies[name] = tally = campaign(
                part, -(-options.kills * part.share // shares), place, random
            )
            if tally.losses or tally.torn:
                print("\n".join([*tally.losses, *tally.torn]), file=sys.stderr)
    print(_table(tallies, seed))
    if options.out:
        versions = {
            "backspike": backspike.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        record = {
            "seed": seed,
            "versions": versions,
            "parts": {name: vars(tally) for name, tally in tallies.items()},
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n")
    return int(any(tally.losses or tally.torn for tally in tallies.values()))


def _table(tallies: dict[str, Tally], seed: int) -> str:
    counts = Counter[str]()
    rows = []
    for name, t in tallies.items():
        numbers = {k: v if isinstance(v, int) else len(v) for k, v in vars(t).items()}
        counts.update(numbers)
        rows.append(_row(f"{name}: {PARTS[name].about}", numbers))
    heads = ("during a write", "continued", "finished", "equal", "torn files", "losses")
    columns = [*left("killed"), *right("kills (process alone)", *heads)]
    return f"seed {seed}\n\n{Table(columns, [*rows, _row('all', counts)]).to_markdown()}"


def _row(name: str, n: dict[str, int]) -> list[object]:
    kinds = ("writing", "went_on", "ends", "equal", "torn", "losses")
    return [name, f"{n['kills']} ({n['alone']})", *(n[kind] for kind in kinds)]


if __name__ == "__main__":
    sys.exit(main())
