"""Kept and lean heaps: page faults, memory held and returned, huge pages; glibc only."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from backspike.study import runner
from backspike.study.spec import Job
from backspike.system import heap, workers

linux = pytest.mark.skipif(heap._glibc() is None, reason="needs glibc")

# Allocates and frees 40 MB sixty times. Prints the page faults, the MB held after everything is
# freed, whether release_heap() found any, and the MB held then.
CHURN = """
import resource, sys
import numpy as np
import backspike as bs
if "keep" in sys.argv:
    assert bs.keep_heap()
if "lean" in sys.argv:
    assert bs.lean_heap()
def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() // 2**20
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(60):
    np.ones(10_000_000, np.float32).sum()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = held()
print(faults, kept, bs.release_heap(), held())
"""


def churn(*words):
    out = subprocess.run(
        [sys.executable, "-c", CHURN, *words], check=True, capture_output=True, text=True
    ).stdout.split()
    return int(out[0]), int(out[1]), out[2] == "True", int(out[3])


@linux
def test_a_kept_heap_reuses_pages_until_it_is_released():
    faults, kept, released, after = churn("keep")
    fresh, *_ = churn()
    assert fresh > 1000  # 2.4 GB of fresh pages, of 2 MB each at most
    assert faults < fresh / 5  # the heap grows at first
    assert released
    assert after < kept - 35


# Frees every third of 120 blocks of 1 MB. Prints the MB that were returned to the system.
HOLES = """
import sys
import numpy as np
import backspike as bs
if "lean" in sys.argv:
    assert bs.lean_heap()
np.ones(2_500_000).sum()  # 20 MB, freed; from now on glibc puts smaller blocks on the heap
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
blocks = [np.ones(2**17) for _ in range(120)]
before = held()
del blocks[::3]
print(before - held())
"""


def holes(*words):
    return float(
        subprocess.run(
            [sys.executable, "-c", HOLES, *words], check=True, capture_output=True, text=True
        ).stdout
    )


@linux
def test_a_lean_heap_returns_blocks_freed_between_live_ones():
    assert holes("lean") > 38  # of 40 MB
    assert holes() < 5


# Prints the MB of address space, of memory and of huge pages: at first, after keep_heap(), with
# 40 MB allocated, and with 40 MB allocated again after release_heap().
PAGES = """
import pathlib, re, resource, sys
import numpy as np
import backspike as bs
from backspike.system import heap
def read(file, name):
    text = pathlib.Path("/proc/self", file).read_text()
    return int(re.search(name + ":[ \t]+([0-9]+)", text)[1]) // 1024
def now():
    print(read("status", "VmSize"), read("status", "VmRSS"), read("smaps_rollup", "AnonHugePages"))
now()
if "limit" in sys.argv:
    resource.setrlimit(getattr(resource, sys.argv[2]), (2**40, resource.RLIM_INFINITY))
if "no-overcommit" in sys.argv:
    heap._overcommit_forbidden = lambda: True
assert bs.keep_heap()
now()
for _ in range(2):
    a = np.ones(10_000_000, np.float32)
    now()
    del a
    assert bs.release_heap()
"""


def pages(*words):
    out = subprocess.run(
        [sys.executable, "-c", PAGES, *words], check=True, capture_output=True, text=True
    ).stdout
    return [[int(word) for word in line.split()] for line in out.splitlines()]


THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@linux
@pytest.mark.skipif(
    not THP.exists() or "[never]" in THP.read_text(), reason="this kernel has no huge pages"
)
def test_a_kept_heap_uses_huge_pages_and_reserves_no_memory():
    first, kept, full, again = pages()
    assert kept[0] > first[0] + 900  # address space
    assert kept[1] < first[1] + 5
    assert full[2] > kept[2] + 34
    assert again[2] > kept[2] + 34  # also after everything was released


@linux
@pytest.mark.parametrize(
    "words", [("limit", "RLIMIT_AS"), ("limit", "RLIMIT_DATA"), ("no-overcommit",)]
)
def test_no_address_space_is_reserved_where_it_is_limited(words):
    first, kept, *_ = pages(*words)
    assert kept[0] < first[0] + 5


def test_without_glibc_the_functions_return_false(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    assert heap.keep_heap() is False
    assert heap.lean_heap() is False
    assert heap.mode() == ""
    assert heap.release_heap() is False


class Libc:
    """A C library that refuses some options of mallopt."""

    def __init__(self, *refused):
        self.refused, self.asked = refused, []

    def mallopt(self, option, value):
        self.asked.append(option)
        return int(option not in self.refused)


@pytest.mark.parametrize(
    ("refused", "worked"), [((), True), ((-3,), True), ((-3, -4), False), ((-1,), False)]
)
def test_keep_heap_is_false_if_mallopt_refuses(monkeypatch, refused, worked):
    libc = Libc(*refused)
    reserved = []
    monkeypatch.setattr(heap, "_glibc", lambda: libc)
    monkeypatch.setattr(heap, "_reserve", reserved.append)
    monkeypatch.setattr(heap, "_mode", "")
    assert heap.keep_heap() is worked
    assert reserved == [libc] * worked
    assert heap.mode() == "kept" * worked


@pytest.mark.parametrize(
    ("refused", "worked"), [((), True), ((-3,), False), ((-4,), False), ((-1,), False)]
)
def test_lean_heap_is_false_if_mallopt_refuses(monkeypatch, refused, worked):
    monkeypatch.setattr(heap, "_glibc", lambda: Libc(*refused))
    monkeypatch.setattr(heap, "_mode", "")
    assert heap.lean_heap() is worked
    assert heap.mode() == "lean" * worked


@linux
@pytest.mark.parametrize(
    ("setting", "mode"), [(None, "kept"), ("1", "kept"), ("0", ""), ("lean", "lean")]
)
def test_the_command_line_keeps_the_heap_by_default(setting, mode):
    code = (
        "from backspike.system import heap; from backspike.cli import main; "
        "main([]); print('mode', heap.mode() or 'none')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "BACKSPIKE_HEAP"}
    environment |= {"BACKSPIKE_HEAP": setting} if setting else {}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert f"mode {mode or 'none'}" in out


@pytest.mark.parametrize("mode", ["kept", "lean", ""])
def test_processes_of_a_study_use_the_mode_of_their_parent(monkeypatch, mode):
    seen = []
    monkeypatch.setattr(heap, "keep_heap", lambda: seen.append("kept"))
    monkeypatch.setattr(heap, "lean_heap", lambda: seen.append("lean"))
    monkeypatch.setattr(runner, "_attempt", lambda *job: None)
    monkeypatch.setattr(heap, "mode", lambda: mode)
    monkeypatch.setattr(
        workers,
        "run",
        lambda f, jobs, n, places, **_: [(j, "result", f(*j, *places[0])) for j in jobs],
    )
    clock = SimpleNamespace(over=lambda *_: None)
    runner._in_processes([Job("arm", 0, None, None)], workers.pack({}, ""), 1, 1, [None], clock)
    assert seen == [mode] * bool(mode)
