"""Fuzzes the readers: `python fuzz/run.py --seconds 60` gives each target so long, prints a line for each, writes fuzz.json.

Every target runs in a process of its own whose memory is limited. With atheris (pip install atheris) inputs are bred by the
code they reach, else made by the changes in targets.py. A crash is any outcome but a result or a clean refusal, a process that
dies counted; a hang is an input that takes more than 5 seconds of processor time. Inputs that did either are kept in --keep.
Exit code 1 where there was one.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HANG_SECONDS = 5
MEMORY = 1 << 30  # bytes of address space that inputs may take beyond what the good ones took
DEATHS = 20  # a target that dies so often is given up
STATE = struct.Struct("<QQ")  # in the file `now`: number of the input, its length; then the input


class Hang(BaseException):
    """An input took too long."""


@dataclass
class Found:
    """What came of one target. crashes, hangs: one line for each place in the code, with the file of its input."""

    target: str
    driver: str
    inputs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: int = 0
    crashes: dict[str, str] = field(default_factory=dict)
    hangs: dict[str, str] = field(default_factory=dict)


# ---- the process of a target ---------------------------------------------------------------------------------------------


def child(name: str, driver: str, seconds: float, seed: int, folder: Path) -> None:
    """Runs inputs until the time is over. What is found goes to files in `folder`."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).parent))
    if driver == "atheris":
        import atheris

        with atheris.instrument_imports(include=["backspike"]):
            target, seeds = _ready(name)
    else:
        target, seeds = _ready(name)
    now = os.open(folder / "now", os.O_CREAT | os.O_RDWR)
    held = os.read(now, STATE.size)
    number = STATE.unpack(held)[0] if held else 0
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def late(signum: int, frame: Any) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, late)

    def one(data: bytes) -> None:
        nonlocal number
        number += 1
        os.pwrite(now, STATE.pack(number, len(data)) + data, 0)
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        try:
            target(data)
        except (Exception, Hang) as e:
            signal.setitimer(signal.ITIMER_PROF, 0)
            _keep(
                folder,
                "hang" if isinstance(e, Hang) else "crash",
                data,
                _place(e),
                traceback.format_exc(),
            )
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    if driver == "atheris":
        corpus = folder / "corpus"
        corpus.mkdir(exist_ok=True)
        for i, data in enumerate(seeds):
            (corpus / f"seed-{i}").write_bytes(data)
        longest = max(4096, 2 * max(map(len, seeds)))
        options = [
            f"-max_total_time={max(1, round(seconds))}",
            f"-seed={seed + 1}",
            f"-max_len={longest}",
        ]
        options += [
            "-timeout=100000",
            "-rss_limit_mb=0",
            "-verbosity=0",
            f"-artifact_prefix={folder}/",
        ]  # limits are ours
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()
        return
    end = time.monotonic() + seconds
    from targets import mutants

    for data in mutants(seeds, random.Random(f"{name} {seed}")):
        if time.monotonic() > end:
            break
        one(data)


def _ready(name: str) -> tuple[Any, list[bytes]]:
    """The target, everything that it imports imported."""
    from targets import TARGETS

    target = TARGETS[name]
    seeds = target.seeds()
    for data in seeds:
        target(data)
    return target, seeds


def _place(error: BaseException) -> str:
    """What tells one finding from another: the error and the last line of ours that it came from."""
    lines = traceback.extract_tb(error.__traceback__)
    ours = [line for line in lines if "backspike" in line.filename or "fuzz" in line.filename]
    last = (ours or lines)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {' '.join(str(error).split())[:120]}"


def _keep(folder: Path, kind: str, data: bytes, place: str, text: str) -> None:
    key = hashlib.sha256(place.split(": ")[0].encode()).hexdigest()[:10]
    path = folder / f"{kind}-{key}"
    if not path.with_suffix(".json").exists():
        path.with_suffix(".bin").write_bytes(data)
        path.with_suffix(".txt").write_text(text, errors="replace")
        path.with_suffix(".json").write_text(
            json.dumps({"kind": kind, "place": place, "input": str(path.with_suffix(".bin"))})
        )


# ---- all of them ---------------------------------------------------------------------------------------------------------


def hunt(name: str, driver: str, seconds: float, seed: int, folder: Path) -> Found:
    """One target for so many seconds; a process that dies is started again."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Found(name, driver)
    start = time.monotonic()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
    }
    for attempt in range(DEATHS):
        left = seconds - (time.monotonic() - start)
        if left < 1 and attempt:
            break
        words = [
            sys.executable,
            __file__,
            "--child",
            name,
            "--driver",
            driver,
            "--seed",
            str(seed + attempt),
        ]
        log = folder / f"log-{attempt}.txt"
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [*words, "--seconds", str(left), "--keep", str(folder)],
                stdout=out,
                stderr=out,
                env=environment,
            )
            why = _watched(process, folder / "now", found)
        if why is None:
            break
        number, data = _now(folder / "now")
        if not number:
            raise SystemExit(f"{name} cannot be started: {log.read_text(errors='replace')[-2000:]}")
        _keep(
            folder,
            "hang" if why == "hang" else "crash",
            data,
            f"{why}, input {hashlib.sha256(data).hexdigest()[:10]}",
            why,
        )
    found.seconds = round(time.monotonic() - start, 1)
    found.inputs = _now(folder / "now")[0]
    for path in sorted(folder.glob("*-*.json")):
        said = json.loads(path.read_text())
        (found.hangs if said["kind"] == "hang" else found.crashes)[said["place"]] = said["input"]
    return found


def _watched(process: subprocess.Popen[bytes], now: Path, found: Found) -> str | None:
    """None once the process ended well, else why not. Code that never comes back to Python is ended here."""
    seen, since, used, before = -1, 0.0, 0.0, found.cpu_seconds
    while process.poll() is None:
        time.sleep(0.2)
        try:
            fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except OSError:
            continue
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        found.cpu_seconds = round(before + used, 1)
        found.peak_mb = max(found.peak_mb, pages * resource.getpagesize() >> 20)
        number = _now(now)[0]
        if number != seen:
            seen, since = number, used
        elif number and used - since > 4 * HANG_SECONDS:
            process.kill()
            process.wait()
            return "hang"
    return None if process.returncode == 0 else f"exit code {process.returncode}"


def _now(path: Path) -> tuple[int, bytes]:
    held = path.read_bytes() if path.exists() else b""
    if len(held) < STATE.size:
        return 0, b""
    number, length = STATE.unpack_from(held)
    return number, held[STATE.size : STATE.size + length]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="for each target")
    parser.add_argument("--target", action="append", help="only this one; may be given again")
    parser.add_argument(
        "--driver", choices=("atheris", "own"), help="default: atheris where it is installed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, help="folder for inputs that crash or hang (default: a temporary one)"
    )
    parser.add_argument("--out", type=Path, default=Path("fuzz.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    driver = options.driver or ("atheris" if importlib.util.find_spec("atheris") else "own")
    if options.child:
        child(options.child, driver, options.seconds, options.seed, options.keep)
        return 0
    sys.path.insert(0, str(Path(__file__).parent))
    from targets import TARGETS

    if unknown := set(options.target or ()) - set(TARGETS):
        parser.error(f"no target {', '.join(unknown)}; there are: {', '.join(TARGETS)}")
    keep = options.keep or Path(tempfile.mkdtemp(prefix="fuzz-"))
    print(
        f"driver: {driver}, {options.seconds:g} s a target, seed {options.seed}; inputs that fail go to {keep}"
    )
    print(
        f"{'target':18s} {'inputs':>9s} {'crashes':>8s} {'hangs':>6s} {'seconds':>8s} {'of CPU':>7s} {'peak MB':>8s}"
    )
    all_found = []
    for name in options.target or TARGETS:
        found = hunt(name, driver, options.seconds, options.seed, keep / name.replace(" ", "-"))
        all_found.append(found)
        counts = f"{found.inputs:9,d} {len(found.crashes):8d} {len(found.hangs):6d}"
        print(
            f"{name:18s} {counts} {found.seconds:8.1f} {found.cpu_seconds:7.1f} {found.peak_mb:8d}",
            flush=True,
        )
        for place, path in {**found.crashes, **found.hangs}.items():
            print(f"    {place}\n        {path}", flush=True)
        options.out.write_text(
            json.dumps({"driver": driver, "targets": [asdict(f) for f in all_found]}, indent=1)
            + "\n"
        )
    return int(any(found.crashes or found.hangs for found in all_found))


if __name__ == "__main__":
    sys.exit(main())
