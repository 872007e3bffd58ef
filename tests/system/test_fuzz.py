"""Readers on damaged and random bytes: a documented error or arrays that fit the bytes, quickly.

The targets and mutations are those of fuzz/, which can run them for any time. `-m slow` runs the
same tests for minutes.
"""

import contextlib
import importlib.util
import itertools
import random
import sys
import time
import tracemalloc

import pytest
from helpers.paths import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backspike.data import DataError
from backspike.data.formats import hdf5

sys.path.insert(0, str(ROOT / "fuzz"))
from targets import KINDS, READERS, TARGETS, _spoken, _trained, changed, mutants

changes = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(KINDS), st.integers(0, 2**32 - 1)), max_size=6
)


def damaged(data, steps):
    """The bytes after some changes, at places given as fractions of the length."""
    for step in steps:
        data = changed(data, *step)
    return data


def check(name, data):
    decode, _, fits = READERS[name]
    refusal = None
    start = time.monotonic()
    tracemalloc.start()
    try:
        fits(decode(data, "f"), data)
    except DataError as error:
        refusal = str(error)
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 5_000_000 + 1200 * len(data)
    assert time.monotonic() - start < 5
    if refusal:
        assert refusal.startswith("f: byte ")
        assert "\n" not in refusal
        assert int(refusal.split("byte ")[1].split(":")[0]) <= len(data)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(steps=changes)
def test_damaged_bytes(name, steps):
    check(name, damaged(READERS[name][1], steps))


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(noise=st.binary(max_size=300), keep=st.integers(0, 200))
def test_random_bytes_after_a_valid_beginning(name, noise, keep):
    check(name, READERS[name][1][:keep] + noise)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@settings(max_examples=8_000, suppress_health_check=list(HealthCheck), deadline=None)
@given(steps=changes, noise=st.binary(max_size=60))
def test_damaged_bytes_for_minutes(name, steps, noise):
    check(name, damaged(READERS[name][1] + noise, steps))


@pytest.mark.parametrize("name", READERS)
def test_the_undamaged_bytes_are_valid(name):
    decode, data, fits = READERS[name]
    decoded = decode(data)
    assert decoded is not None
    fits(decoded, data)


# every target, with a fixed seed

OTHERS = [name for name in TARGETS if name not in READERS]
NEEDS = {"shd": "h5py", "event hdf5": "h5py", "nir": "nir", "nir values": "nir"}


@pytest.mark.parametrize("name", OTHERS)
def test_valid_files_are_accepted(name):
    target = TARGETS[name]
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    edits = name in ("recipe values", "checkpoint values", "report", "nir values")
    for data in target.seeds()[: 1 if edits else None]:
        target.run(data)


def test_no_target_changes_the_valid_files_of_others():
    good = {path.name: path.read_bytes() for path in _trained().iterdir() if path.is_file()}
    for name in ("log", "weights"):
        TARGETS[name](b"\xff\x00")
    assert {path.name: path.read_bytes() for path in _trained().iterdir() if path.is_file()} == good


@pytest.mark.parametrize("name", OTHERS)
def test_a_short_fuzzing_run_finds_nothing(name):
    assert short_run(name, 60) < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_a_longer_fuzzing_run_finds_nothing(name):
    assert short_run(name, 2000) < 5


def short_run(name, inputs):
    """The seconds of the slowest of so many mutants, each of which is read or refused."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    target = TARGETS[name]
    seeds = target.seeds()
    target(seeds[0])  # setup is not part of the time of an input
    seconds = []
    for data in itertools.islice(
        mutants(seeds, random.Random(name)), round(inputs * target.share) + 1
    ):
        start = time.process_time()
        target(data)
        seconds.append(time.process_time() - start)
    return max(seconds)


# a C library reads HDF5 in its own process, which may end: that is an answer too


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("h5py") is None, reason="no h5py: pip install 'backspike[events]'"
)
def test_damaged_hdf5(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "SECONDS", 10)
    good, rng, path = _spoken(), random.Random(0), tmp_path / "bad.h5"
    for trial in range(60):
        data = bytearray(good)
        for _ in range(1 + trial % 4):
            data[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(data[: len(data) if trial % 3 else rng.randrange(len(data))]))
        with contextlib.suppress(DataError):
            assert (
                sum(len(events) for events in hdf5.decode(path, range(len(hdf5.labels(path, 20)))))
                >= 0
            )
