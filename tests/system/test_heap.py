"""The heap that is kept: fewer page faults, given back when asked, and only where the C library can."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from backspike.study import runner
from backspike.study.spec import Job
from backspike.system import heap, workers

linux = pytest.mark.skipif(heap._glibc() is None, reason="only glibc keeps its heap")

# takes and frees 40 MB sixty times; prints the page faults, MB held after all is freed, whether it was released, and MB then
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
def test_a_kept_heap_takes_no_fresh_pages_and_gives_them_back_when_asked():
    faults, kept, released, after = churn("keep")
    fresh, *_ = churn()
    assert fresh > 1000  # 2.4 GB of fresh pages, of 2 MB each at most
    assert faults < fresh / 5  # the heap grows at first
    assert released
    assert after < kept - 35


# frees a third of many blocks of 1 MB between others that live: prints the MB that stay beyond the living
HOLES = """
import sys
import numpy as np
import backspike as bs
if "lean" in sys.argv:
    assert bs.lean_heap()
np.ones(2_500_000).sum()  # 20 MB, freed: glibc now puts smaller blocks on the heap
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
def test_a_lean_heap_gives_back_what_is_freed_between_what_lives():
    assert holes("lean") > 38  # of 40 MB
    assert holes() < 5


# MB of addresses, of memory, and of memory in large pages: at first, kept, with 40 MB, and with 40 MB after all was given back
PAGES = """
import pathlib, re, resource, sys
import numpy as np
import backspike as bs
from backspike.system import heap
def said(file, name):
    return int(re.search(name + ":[ \t]+([0-9]+)", pathlib.Path("/proc/self", file).read_text())[1]) // 1024
def now():
    print(said("status", "VmSize"), said("status", "VmRSS"), said("smaps_rollup", "AnonHugePages"))
now()
if "limit" in sys.argv:
    resource.setrlimit(getattr(resource, sys.argv[2]), (2**40, resource.RLIM_INFINITY))
if "dear" in sys.argv:
    heap._counted = lambda: True
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
    not THP.exists() or "[never]" in THP.read_text(), reason="this kernel has no large pages"
)
def test_a_kept_heap_lies_on_large_pages_and_reserves_no_memory():
    first, kept, full, again = pages()
    assert kept[0] > first[0] + 900  # addresses
    assert kept[1] < first[1] + 5
    assert full[2] > kept[2] + 34
    assert again[2] > kept[2] + 34  # after all was given back, too


@linux
@pytest.mark.parametrize("words", [("limit", "RLIMIT_AS"), ("limit", "RLIMIT_DATA"), ("dear",)])
def test_where_addresses_are_counted_none_are_reserved(words):
    first, kept, *_ = pages(*words)
    assert kept[0] < first[0] + 5


def test_elsewhere_it_says_that_it_did_not_work(monkeypatch):
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    assert heap.keep_heap() is False
    assert heap.lean_heap() is False
    assert heap.mode() == ""
    assert heap.release_heap() is False


class Libc:
    """A C library that refuses what it is told to refuse."""

    def __init__(self, *refused):
        self.refused, self.asked = refused, []

    def mallopt(self, option, value):
        self.asked.append(option)
        return int(option not in self.refused)


@pytest.mark.parametrize(
    ("refused", "worked"), [((), True), ((-3,), True), ((-3, -4), False), ((-1,), False)]
)
def test_what_mallopt_refuses_is_not_called_kept(monkeypatch, refused, worked):
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
def test_what_mallopt_refuses_is_not_called_lean(monkeypatch, refused, worked):
    monkeypatch.setattr(heap, "_glibc", lambda: Libc(*refused))
    monkeypatch.setattr(heap, "_mode", "")
    assert heap.lean_heap() is worked
    assert heap.mode() == "lean" * worked


@linux
@pytest.mark.parametrize(
    ("setting", "mode"), [(None, "kept"), ("1", "kept"), ("0", ""), ("lean", "lean")]
)
def test_the_command_line_keeps_it_unless_told(setting, mode):
    code = "from backspike.system import heap; from backspike.cli import main; main([]); print('mode', heap.mode() or 'none')"
    environment = {k: v for k, v in os.environ.items() if k != "BACKSPIKE_HEAP"} | (
        {"BACKSPIKE_HEAP": setting} if setting else {}
    )
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert f"mode {mode or 'none'}" in out


@pytest.mark.parametrize("mode", ["kept", "lean", ""])
def test_processes_of_a_study_do_as_theirs_does(monkeypatch, mode):
    seen = []
    monkeypatch.setattr(heap, "keep_heap", lambda: seen.append("kept"))
    monkeypatch.setattr(heap, "lean_heap", lambda: seen.append("lean"))
    monkeypatch.setattr(runner, "_attempt", lambda *job: None)
    monkeypatch.setattr(heap, "mode", lambda: mode)
    monkeypatch.setattr(
        workers, "run", lambda f, jobs, n, **_: [(j, "result", f(*j)) for j in jobs]
    )
    clock = SimpleNamespace(over=lambda *_: {})
    runner._in_processes([Job("arm", 0, None, None)], 1, 1, None, clock)
    assert seen == [mode] * bool(mode)
