"""Runs many short trainings on two ranks and counts how they end.

    python benchmarks/two_ranks.py [--runs N] [--kill 0|1] [--minutes M] [--out FOLDER]

A run is `backspike train digits` on 64 samples, one thread per rank, in the environment that
torchrun gives its ranks. The ranks and the process that serves their store, as torchrun does, are
forked from this one with everything imported, so that a run takes a second or two. Without --kill
all ranks must end with exit code 0 and print one test accuracy and nothing on standard error. With
--kill, that rank is killed at a random moment of the training and the other gets SIGTERM, as from
torchrun; the other must say so in one line within 30 s, after which torchrun would kill it, and
end. Of every run that ends differently, the output is kept in the folder, with the stacks of ranks
that hang (py-spy, gdb) or of a core (gdb). Exit code 1 if there is one. Linux.
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
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

os.environ |= {  # before torch is imported
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # as the command line sets it under torchrun
}

# once, for all forks: what a training imports late
import torch.distributed

from backspike import report, train  # noqa: F401
from backspike.cli import main as command_line

FIELDS = ("--model=ConvNet('4-P', size=8)", "--limit=64", "--batch_size=16", "--T=2")
PATIENCE = 120  # seconds
KILLED_AFTER = 30  # seconds that torchrun gives the ranks that are left
GOOD = "as it should"


def main() -> int:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--kill", type=int, choices=(0, 1), help="a rank")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no run after that time")
    parser.add_argument("--out", type=Path, default=Path("two-ranks"), help="a folder")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    deadline = time.monotonic() + 60 * options.minutes
    ends: Counter[str] = Counter()
    for number in range(options.runs):
        if time.monotonic() > deadline:
            break
        folder = options.out.resolve() / str(number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        end = run(folder, options.kill)
        ends[end] += 1
        print(f"run {number}: {end}", flush=True)
        if end == GOOD:
            shutil.rmtree(folder)
    print(dict(ends))
    return int(set(ends) != {GOOD})


def run(folder: Path, kill: int | None) -> str:
    parent, store = os.getpid(), fork(serve, folder)
    try:
        while not (folder / "port").exists():
            time.sleep(0.01)
        ranks = [fork(work, folder, rank, 1 if kill is None else 10_000) for rank in (0, 1)]
        return undisturbed(folder, ranks) if kill is None else killed(folder, ranks, kill)
    finally:
        if os.getpid() == parent:  # the ranks leave through here as well
            os.kill(store, signal.SIGKILL)
            os.waitpid(store, 0)


def undisturbed(folder: Path, ranks: list[int]) -> str:
    codes = [ended(rank, 300) for rank in ranks]
    if None in codes:
        return hung(folder, ranks)
    stacks(folder)
    if any(codes):
        return f"exit codes {codes}"
    if (folder / "err").read_text():
        return "words on standard error"
    return GOOD if (folder / "out").read_text().count("test accuracy") == 1 else "no result"


def killed(folder: Path, ranks: list[int], kill: int) -> str:
    log = folder / "run" / "log.jsonl"
    deadline = time.monotonic() + 300
    while not log.exists() or log.read_bytes().count(b"\n") < 3:
        time.sleep(0.02)
        if time.monotonic() > deadline:
            return hung(folder, ranks)
    time.sleep(random.uniform(0, 0.5))
    other = ranks[1 - kill]
    os.kill(ranks[kill], signal.SIGKILL)
    os.waitpid(ranks[kill], 0)
    time.sleep(random.choice((0, 0.001, 0.01, 0.1)))  # torchrun looks every 0.1 s
    os.kill(other, signal.SIGTERM)
    begun, said = time.monotonic(), folder / "err"
    while not said.read_text() and time.monotonic() < begun + PATIENCE:
        time.sleep(0.01)
    seconds = time.monotonic() - begun
    code = ended(other, PATIENCE)
    if code is None:
        return hung(folder, [other])
    stacks(folder)
    print(f"the other rank said so after {seconds:.1f} s")
    if seconds > KILLED_AFTER:
        return "too late for torchrun"
    said = said.read_text().splitlines()
    if code != 1 or len(said) != 1:
        return f"exit code {code}, {len(said)} lines"
    return GOOD if said[0].startswith("backspike: another rank ended") else said[0]


# ---- processes -----------------------------------------------------------------------------------


def fork(function: object, *arguments: object) -> int:
    pid = os.fork()
    if pid:
        return pid
    function(*arguments)  # type: ignore[operator]
    os._exit(0)


def serve(folder: Path) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    (folder / "port.tmp").write_text(str(store.port))
    (folder / "port.tmp").rename(folder / "port")
    time.sleep(3600)


def work(folder: Path, rank: int, epochs: int) -> NoReturn:
    """Ends as a process of its own would: through the interpreter's clean-up."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": (folder / "port").read_text(),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RUN_ID": "two-ranks",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_MAX_RESTARTS": "0",
    }
    os.chdir(folder)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    report.write = lambda run: run  # most of the time, and it concerns rank 0 alone
    words = ["train", "digits", "--out", "run", f"--epochs={epochs}", *FIELDS]
    sys.argv = ["backspike", *words]
    sys.exit(command_line(words))


def ended(pid: int, patience: float) -> int | None:
    """The exit code of a process; None if it still runs after so many seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def hung(folder: Path, ranks: list[int]) -> str:
    """Stores the stacks of these processes and ends them."""
    dump = (["py-spy", "dump", "--pid"], ["gdb", "-batch", "-ex", "thread apply all bt", "-p"])
    for rank in ranks:
        with open(folder / f"stack-{rank}", "wb") as out:
            for words in dump:
                if shutil.which(words[0]):
                    subprocess.run([*words, str(rank)], stdout=out, stderr=subprocess.STDOUT)
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(rank, signal.SIGKILL)
            os.waitpid(rank, 0)
    return "hung"


def stacks(folder: Path) -> None:
    """Stores the stack of every core."""
    for core in folder.glob("core*"):
        if shutil.which("gdb"):
            words = ["gdb", "-batch", "-ex", "thread apply all bt", sys.executable, str(core)]
            with open(folder / f"stack-of-{core.name}", "wb") as out:
                subprocess.run(words, stdout=out, stderr=subprocess.STDOUT)
        core.unlink()


if __name__ == "__main__":
    sys.exit(main())
