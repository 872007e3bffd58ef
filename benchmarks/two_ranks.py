"""Runs many short trainings on two ranks and counts how they end.

    python benchmarks/two_ranks.py [--runs N] [--kill none|0|1] [--minutes M] [--out FOLDER]

Every run is `torchrun --nproc-per-node=2 -m backspike train digits` on 64 samples, one thread per
rank. Without --kill it must end with exit code 0, print its test accuracy once and nothing on
standard error. With --kill, that rank is killed at a random moment of the training; the other must
say so in one line and all must end within 20 s, before torchrun kills what is left. The output, the
Python stack of ranks that hang (needs py-spy) and the stack of a core (needs gdb) of every run that
ends differently are stored in the folder. Exit code 1 if there is one. Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

FIELDS = ("--model=ConvNet('4-P', size=8)", "--limit=64", "--batch_size=16", "--T=2")
PATIENCE = 20  # seconds; torchrun kills the ranks that are left after 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--kill", choices=("none", "0", "1"), default="none", help="a rank")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after that time")
    parser.add_argument("--out", type=Path, default=Path("two-ranks"), help="a folder")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    deadline = time.monotonic() + 60 * options.minutes
    ends: Counter[str] = Counter()
    for number in range(options.runs):
        if time.monotonic() > deadline:
            break
        folder = options.out / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        end = run(folder) if options.kill == "none" else killed(folder, options.kill)
        ends[end] += 1
        print(f"run {number}: {end}", flush=True)
        if end == "as it should":
            shutil.rmtree(folder)
    print(dict(ends))
    return int(set(ends) != {"as it should"})


def start(folder: Path, epochs: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words += ["-m", "backspike", "train", "digits", "--out", "run", f"--epochs={epochs}", *FIELDS]
    path = [str(Path(p).resolve()) for p in os.environ.get("PYTHONPATH", "").split(":") if p]
    environment = {
        **os.environ,
        "PYTHONPATH": ":".join(path),
        "OMP_NUM_THREADS": "1",
        "PYTHONFAULTHANDLER": "1",
        "TORCH_DISABLE_ADDR2LINE": "1",
    }
    with open(folder / "out", "wb") as out, open(folder / "err", "wb") as err:
        return subprocess.Popen(words, cwd=folder, env=environment, stdout=out, stderr=err)


def run(folder: Path) -> str:
    """One undisturbed run."""
    process = start(folder, epochs=1)
    try:
        code = process.wait(300)
    except subprocess.TimeoutExpired:
        return hung(process, folder)
    stacks(folder)
    if code:
        return f"exit code {code}"
    if (folder / "out").read_text().count("test accuracy") != 1:
        return "no result"
    return "words on standard error" if (folder / "err").read_text() else "as it should"


def killed(folder: Path, rank: str) -> str:
    """A run of which a rank is killed."""
    process = start(folder, epochs=10_000)
    log = folder / "run" / "log.jsonl"
    begun = time.monotonic()
    while not log.exists() or log.read_text().count("\n") < 3:
        time.sleep(0.05)
        if process.poll() is not None or time.monotonic() > begun + 300:
            return hung(process, folder)
    time.sleep(random.uniform(0, 1))
    os.kill(rank_process(process, rank), signal.SIGKILL)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        return hung(process, folder)
    stacks(folder)
    said = [x for x in (folder / "err").read_text().splitlines() if x.startswith("backspike: ")]
    if len(said) != 1:
        return f"{len(said)} lines"
    return "as it should" if said[0].startswith("backspike: another rank ended") else said[0]


def children(process: subprocess.Popen[bytes]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def rank_process(process: subprocess.Popen[bytes], rank: str) -> int:
    for child in children(process):
        if f"\0RANK={rank}\0" in "\0" + Path(f"/proc/{child}/environ").read_text():
            return child
    raise RuntimeError(f"no rank {rank}")


def hung(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Stores the stacks of all processes and ends them."""
    if process.poll() is not None:
        return f"ended early with exit code {process.returncode}"
    ranks = children(process)
    for child in ranks:
        with open(folder / f"stack-{child}", "wb") as out:
            for words in (["py-spy", "dump", "--pid"], ["gdb", "-batch", "-ex", "thread apply all bt", "-p"]):
                if shutil.which(words[0]):
                    subprocess.run([*words, str(child)], stdout=out, stderr=subprocess.STDOUT)
    for child in (*ranks, process.pid):
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait()
    return "hung"


def stacks(folder: Path) -> None:
    """The C++ stack of every core."""
    for core in folder.glob("core*"):
        words = ["gdb", "-batch", "-ex", "thread apply all bt", sys.executable, str(core)]
        if shutil.which("gdb"):
            with open(folder / f"stack-of-{core.name}", "wb") as out:
                subprocess.run(words, stdout=out, stderr=subprocess.STDOUT)
        core.unlink()


if __name__ == "__main__":
    sys.exit(main())
