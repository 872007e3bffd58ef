"""Fuzzes the readers: `python fuzz/run.py --seconds 60` gives each target a minute.

It prints one line per target and writes fuzz.json. Each target runs in its own process with limited
memory. With atheris (pip install atheris), coverage guides the inputs; otherwise targets.py mutates
valid ones. A crash is anything but a result or a documented error, including a process that dies; a
hang is an input that takes more than 5 seconds of CPU time. --keep saves such inputs. The exit code
is 1 if there are any.
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
# bytes of address space that inputs may take in addition to the valid ones
MEMORY = 1 << 30
# a target whose process dies this often is given up
DEATHS = 20
# in the file `now`: number of the input, its length; then the input
STATE = struct.Struct("<QQ")


class Hang(BaseException):
    """An input took too long."""


@dataclass
class Findings:
    """The result of one target. crashes, hangs: place in the code -> file of an input."""

    target: str
    driver: str
    inputs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: int = 0
    crashes: dict[str, str] = field(default_factory=dict)
    hangs: dict[str, str] = field(default_factory=dict)


# ---- the process of one target -----------------------------------------------------------------


def child(name: str, driver: str, seconds: float, seed: int, folder: Path) -> None:
    """Runs inputs until time is up. Writes findings to files in `folder`."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, str(Path(__file__).parent))
    if driver == "atheris":
        import atheris

        with atheris.instrument_imports(include=["backspike"]):
            target, seeds = _prepare(name)
    else:
        target, seeds = _prepare(name)
    now = os.open(folder / "now", os.O_CREAT | os.O_RDWR)
    stored = os.read(now, STATE.size)
    number = STATE.unpack(stored)[0] if stored else 0
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def on_timeout(signum: int, frame: Any) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, on_timeout)

    def run_one(data: bytes) -> None:
        nonlocal number
        number += 1
        os.pwrite(now, STATE.pack(number, len(data)) + data, 0)
        signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
        try:
            target(data)
        except (Exception, Hang) as e:
            signal.setitimer(signal.ITIMER_PROF, 0)
            _save(
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
            "-verbosity=0",
            f"-artifact_prefix={folder}/",
            # this file has its own limits
            "-timeout=100000",
            "-rss_limit_mb=0",
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], run_one)
        atheris.Fuzz()
        return
    end = time.monotonic() + seconds
    from targets import mutants

    for data in mutants(seeds, random.Random(f"{name} {seed}")):
        if time.monotonic() > end:
            break
        run_one(data)


def _prepare(name: str) -> tuple[Any, list[bytes]]:
    """The target and its seeds, after all imports."""
    from targets import TARGETS

    target = TARGETS[name]
    seeds = target.seeds()
    for data in seeds:
        target(data)
    return target, seeds


def _place(error: BaseException) -> str:
    """Identifies a finding: the error and the last line of our code in its traceback."""
    lines = traceback.extract_tb(error.__traceback__)
    ours = [line for line in lines if "backspike" in line.filename or "fuzz" in line.filename]
    last = (ours or lines)[-1]
    text = " ".join(str(error).split())[:120]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.lineno}: {text}"


def _save(folder: Path, kind: str, data: bytes, place: str, text: str) -> None:
    key = hashlib.sha256(place.split(": ")[0].encode()).hexdigest()[:10]
    path = folder / f"{kind}-{key}"
    if not path.with_suffix(".json").exists():
        path.with_suffix(".bin").write_bytes(data)
        path.with_suffix(".txt").write_text(text, errors="replace")
        path.with_suffix(".json").write_text(
            json.dumps({"kind": kind, "place": place, "input": str(path.with_suffix(".bin"))})
        )


# ---- all targets -----------------------------------------------------------------------------


def hunt(name: str, driver: str, seconds: float, seed: int, folder: Path) -> Findings:
    """Runs one target for this many seconds; restarts a process that dies."""
    folder.mkdir(parents=True, exist_ok=True)
    found = Findings(name, driver)
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
            why = _watch(process, folder / "now", found)
        if why is None:
            break
        number, data = _read_state(folder / "now")
        if not number:
            raise SystemExit(f"{name} cannot be started: {log.read_text(errors='replace')[-2000:]}")
        _save(
            folder,
            "hang" if why == "hang" else "crash",
            data,
            f"{why}, input {hashlib.sha256(data).hexdigest()[:10]}",
            why,
        )
    found.seconds = round(time.monotonic() - start, 1)
    found.inputs = _read_state(folder / "now")[0]
    for path in sorted(folder.glob("*-*.json")):
        saved = json.loads(path.read_text())
        kind = found.hangs if saved["kind"] == "hang" else found.crashes
        kind[saved["place"]] = saved["input"]
    return found


def _watch(process: subprocess.Popen[bytes], now: Path, found: Findings) -> str | None:
    """Waits for the process: None if it succeeded, else the reason. Kills code that hangs."""
    seen = -1
    since = used = 0.0
    before = found.cpu_seconds
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
        number = _read_state(now)[0]
        if number != seen:
            seen, since = number, used
        elif number and used - since > 4 * HANG_SECONDS:
            process.kill()
            process.wait()
            return "hang"
    return None if process.returncode == 0 else f"exit code {process.returncode}"


def _read_state(path: Path) -> tuple[int, bytes]:
    stored = path.read_bytes() if path.exists() else b""
    if len(stored) < STATE.size:
        return 0, b""
    number, length = STATE.unpack_from(stored)
    return number, stored[STATE.size : STATE.size + length]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="for each target")
    parser.add_argument("--target", action="append", help="only this one; may be repeated")
    parser.add_argument(
        "--driver", choices=("atheris", "own"), help="default: atheris if installed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--keep", type=Path, help="folder for inputs that crash or hang (default: temporary)"
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
        f"driver: {driver}, {options.seconds:g} s per target, seed {options.seed}; "
        f"inputs that fail are saved in {keep}"
    )
    print(
        f"{'target':18s} {'inputs':>9s} {'crashes':>8s} {'hangs':>6s} "
        f"{'seconds':>8s} {'of CPU':>7s} {'peak MB':>8s}"
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
