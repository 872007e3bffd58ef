"""Cached arrays: the narrowest integers, detection of damage, and preparation in processes."""

import io
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backspike import data
from backspike.data import DataError, Events, binning, frames, packed
from backspike.data.formats import atis
from backspike.data.progress import progress
from backspike.data.samples import Sample, one_per_file
from backspike.system import workers


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recordings(folder, n=12, events=30, classes=2):
    rng = np.random.default_rng(0)
    for part, count in (("Train", n), ("Test", 4)):
        for i in range(count):
            x, y, p = (
                rng.integers(0, 34, events),
                rng.integers(0, 34, events),
                rng.integers(0, 2, events),
            )
            path = folder / part / str(i % classes) / f"{i:05d}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(atis.encode(Events(x, y, np.arange(events), p)))


# the file


@pytest.mark.parametrize("highest", [255, 256, 65535, 65536])
def test_rows_in_any_order_are_stored_as_the_narrowest_integers(tmp_path, highest):
    x = np.random.default_rng(0).integers(0, 200, (7, 3, 5))
    x[3, 1, 2] = highest
    path = tmp_path / "x.npy"
    packed.write(
        path, x.shape, [(first, packed.narrowest(x[first : first + 2])) for first in (4, 0, 2, 6)]
    )
    back = packed.read(path, x.shape)
    assert (
        back.dtype == {255: np.uint8, 256: np.uint16, 65535: np.uint16, 65536: np.uint32}[highest]
    )
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(np.load(path), x)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def test_changing_the_array_changes_no_file(tmp_path):
    path = tmp_path / "x.npy"
    packed.write(path, (2, 3), [(0, np.ones((2, 3), np.uint8))])
    content = path.read_bytes()
    packed.read(path, (2, 3))[:] = 7
    assert path.read_bytes() == content


def test_every_flipped_bit_truncation_and_addition_is_detected(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "BLOCK_BYTES", 16)
    path = tmp_path / "x.npy"
    packed.write(path, (5, 8), [(0, np.arange(40, dtype=np.uint8).reshape(5, 8))])
    good = path.read_bytes()
    assert len(good) == 128 + 40 + 4 * 3 + 4
    for i in range(len(good)):
        for content in (good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :], good[:i]):
            path.write_bytes(content)
            with pytest.raises(DataError):
                packed.read(path, (5, 8))
    path.write_bytes(good + b"\0")
    with pytest.raises(DataError):
        packed.read(path, (5, 8))
    path.write_bytes(good[:150] + b"\xff" + good[151:])
    with pytest.raises(DataError, match="byte 144: the checksum of a block of frames is wrong"):
        packed.read(path, (5, 8))
    path.write_bytes(good)
    assert packed.read(path, (5, 8)).sum() == sum(range(40))
    with pytest.raises(DataError, match=r"expected \(5, 9\), got uint8 \(5, 8\)"):
        packed.read(path, (5, 9))


@pytest.mark.parametrize("where", [0.001, 0.3, 0.999])
def test_cached_frames_with_a_flipped_bit_are_binned_again(tmp_path, own_cache, caplog, where):
    recordings(tmp_path)
    good = data.load("nmnist", tmp_path, T=2).train.x.copy()
    (path,) = own_cache.iterdir()
    content = path.read_bytes()
    at = int(where * len(content))
    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    np.testing.assert_array_equal(data.load("nmnist", tmp_path, T=2).train.x, good)
    assert path.read_bytes() == content
    assert ["is damaged" in message for message in caplog.messages] == [True]


# processes


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 7))
def test_chunks_cover_all_samples_and_keep_files_together(sizes, limit):
    samples = [Sample(f"file{i}", 0, j) for i, n in enumerate(sizes) for j in range(n)]
    chunks = list(binning._chunks(samples, limit))
    assert [i for chunk in chunks for i in range(*chunk)] == list(range(len(samples)))
    for first, stop in chunks:
        assert 0 < stop - first <= limit
        # only files larger than a chunk are divided
        if stop < len(samples) and samples[stop].path == samples[stop - 1].path:
            assert sizes[int(samples[stop].path[4:])] > limit


@pytest.fixture
def in_processes(monkeypatch):
    monkeypatch.setattr(binning, "SERIAL_BYTES", 0)
    monkeypatch.setattr(binning, "CHUNK_ROWS", 3)
    monkeypatch.setattr(binning, "CHUNK_BYTES", 0)
    monkeypatch.setattr(binning, "processors", lambda: 2)


def test_several_processes_give_the_result_of_one(tmp_path, in_processes, monkeypatch):
    recordings(tmp_path, n=31)
    started = []
    original = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(original(*a, **k)) or started[-1]
    )
    parallel = data.load("nmnist", tmp_path, T=3).train
    assert len(started) == 2
    assert [process.poll() is None for process in started] == [False, False]
    monkeypatch.setattr(binning, "processors", lambda: 1)
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "other"))
    alone = data.load("nmnist", tmp_path, T=3).train
    assert len(started) == 2
    np.testing.assert_array_equal(parallel.x, alone.x)
    np.testing.assert_array_equal(parallel.ids, alone.ids)


def test_an_error_in_a_worker_names_the_damaged_recording(tmp_path, own_cache, in_processes):
    recordings(tmp_path, n=31)
    path = tmp_path / "Train" / "1" / "00021.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"1/00021\.bin: byte 145: truncated"):
        data.load("nmnist", tmp_path, T=3)
    assert list(own_cache.iterdir()) == []


def test_a_killed_worker_is_reported_in_one_line(tmp_path, own_cache, in_processes, monkeypatch):
    recordings(tmp_path, n=31)
    original = workers.Worker.send

    def send(worker, function, first, chunk):
        original(worker, function, first, chunk)
        if first >= 9:
            worker.process.kill()

    monkeypatch.setattr(workers.Worker, "send", send)
    with pytest.raises(
        DataError, match=r"^a process that prepares recordings ended early.*run it again$"
    ):
        data.load("nmnist", tmp_path, T=3)
    assert list(own_cache.iterdir()) == []


SCRIPT = """
import sys
from backspike import data
from backspike.data import binning
binning.SERIAL_BYTES, binning.processors = 0, lambda: 2
binning.CHUNK_ROWS, binning.CHUNK_BYTES = 2, 0
sets = data.load("nmnist", sys.argv[1], T=200)
print(sum(int(split.x.sum()) for split in (sets.train, sets.validation, sets.test)), flush=True)
"""  # without `if __name__ == "__main__"`: the workers must not run the script


def run(tmp_path, **options):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, **options
    )


def test_a_script_without_main_guard_can_use_workers(tmp_path):
    recordings(tmp_path, n=10)
    out, _ = run(tmp_path).communicate(timeout=60)
    assert out.split() == [str(30 * 14).encode()]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for children in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_kill_leaves_no_process_and_no_incomplete_entry(tmp_path, own_cache, how):
    recordings(tmp_path, n=140, events=2000)
    process = run(tmp_path, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while (
        not (own_cache.is_dir() and any(own_cache.iterdir()))
        or len(children := _children(process.pid)) < 2
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)
    process.send_signal(how)
    _, said = process.communicate()
    # our own traceback; the workers print none
    assert said.count(b"Traceback") == (how == signal.SIGINT)
    assert [
        path.name for path in own_cache.iterdir() if not path.name.startswith(".backspike-")
    ] == []
    assert how == signal.SIGKILL or list(own_cache.iterdir()) == []
    while any(os.path.exists(f"/proc/{child}") and _state(child) != "Z" for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    out, _ = run(tmp_path).communicate(timeout=60)
    assert out.split() == [str(2000 * 144).encode()]


def _children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as stream:
        return stream.read().split()


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:
            return stream.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_error_for_a_missing_recording_names_it(tmp_path):
    samples = [Sample(tmp_path / "1.bin", 0, 1)]
    task = binning.Binning("nmnist", samples, partial(frames, T=1), one_per_file(atis.decode))
    with pytest.raises(DataError, match=r"1\.bin cannot be read: No such file"):
        task.rows()


# progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, seconds):
    """The output for 4 steps of this many seconds each."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", stream)
    with progress("counting", 8) as advance:
        for _ in range(4):
            now[0] += seconds
            advance(2)
    return stream.getvalue()


def test_progress_on_a_terminal_is_a_bar(monkeypatch):
    steps = shown(monkeypatch, Terminal(), 1.5).split("\r")
    assert steps[1] == f"{'█' * 6}{'░' * 18}  25 %  counting: 2 of 8, 4 s left\x1b[K"
    assert steps[-1] == f"{'█' * 24} 100 %  counting: 8 of 8, 6 s\x1b[K\n"
    assert len(steps) == 5


def test_progress_elsewhere_is_plain_lines(monkeypatch):
    assert shown(monkeypatch, io.StringIO(), 4.0) == (
        "counting: 2 of 8, 12 s left\ncounting: 8 of 8, 16 s\n"
    )


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_short_tasks_show_no_progress(monkeypatch, stream):
    assert shown(monkeypatch, stream(), 0.1) == ""
