"""Worker processes: answers, events, exceptions, crashes, time limits, and no orphans."""

import os
import signal
import subprocess
import sys
import time
import traceback

import pytest
from helpers import jobs

from backspike.errors import DataError
from backspike.system import workers
from backspike.system.workers import Worker, WorkerFailed


def gone(*pids, seconds=20.0):
    """Whether all processes end within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_every_job_runs_once_and_events_come_before_its_result(capfd):
    found = list(workers.run(jobs.square, [(x,) for x in range(7)], 2))
    results = {job: value for job, kind, value in found if kind == "result"}
    assert {job: square for job, (square, _) in results.items()} == {(x,): x * x for x in range(7)}
    assert len({pid for _, pid in results.values()}) == 2
    for x in range(7):
        assert [kind for job, kind, _ in found if job == (x,)] == ["event", "result"]
        assert ((x,), "event", f"squaring {x}") in found
    out, err = capfd.readouterr()
    assert (out, err.count("printed")) == ("", 7)


def test_workers_have_their_places_in_turn_and_keep_them():
    found = list(workers.run(jobs.placed, [(x,) for x in range(9)], 2, places=[("a",), ("b",)]))
    results = [value for _, kind, value in found if kind == "result"]
    places = {pid: place for place, pid in results}
    assert all(places[pid] == place for place, pid in results)
    assert set(places.values()) == {"a", "b"}
    # the worker that died was replaced by one in its place
    assert len(places) == 3
    assert len(results) == 8


def test_without_jobs_no_process_starts(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert list(workers.run(jobs.square, [], 2)) == []


def test_an_exception_keeps_its_class_and_traceback():
    with Worker() as worker:
        with pytest.raises(DataError, match=r"^a damaged file$") as e:
            worker.call(jobs.fails, "a damaged file")
        assert "in fails" in "".join(traceback.format_exception(e.value))
        assert worker.call(jobs.exits, 3) == 3  # the worker continues


def test_an_exception_or_a_break_ends_all_workers(monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    with pytest.raises(DataError, match="broken"):
        list(workers.run(jobs.fails, [("broken",)] * 5, 2))
    for _ in workers.run(jobs.waits, [()] * 2, 2):
        break
    assert len(started) == 4
    assert all(process.poll() is not None for process in started)


def test_a_crashed_worker_is_replaced_and_the_other_jobs_run():
    found = {
        x: (kind, value)
        for (x,), kind, value in workers.run(jobs.exits, [(x,) for x in range(5)], 1, quiet=True)
    }
    assert {x: kind for x, (kind, _) in found.items()} == {
        x: "failed" if x in (1, 2) else "result" for x in range(5)
    }
    reason, code = found[1][1], found[1][1].code
    assert (str(reason), code) == ("ended by signal 9 (probably out of memory)", -9)
    with pytest.raises(WorkerFailed, match=r"^ended with exit code 3$"), Worker() as worker:
        worker.call(os._exit, 3)
    with Worker(start="raise SystemExit('no more')", quiet=True) as worker:
        worker.process.wait()
        with pytest.raises(WorkerFailed, match=r"^no more$"):
            worker.call(jobs.exits, 3)


def test_a_call_over_its_time_limit_ends_the_process():
    with Worker() as worker:
        assert worker.call(jobs.exits, 3, timeout=60) == 3
        with pytest.raises(WorkerFailed, match=r"^no answer within 1 s$"):
            worker.call(jobs.loops, timeout=1)


def test_patience_gives_workers_time_to_stop(capfd):
    for _ in workers.run(jobs.waits, [()], 1, patience=20):
        break
    assert "stopped" in capfd.readouterr().err
    for _ in workers.run(jobs.waits, [()], 1):
        break
    assert "stopped" not in capfd.readouterr().err


SCRIPT = """
import sys
from backspike.system import workers
from helpers import jobs
for _, _, pid in workers.run(jobs.waits, [()] * 2, 2, patience=20):
    print(pid, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_worker_outlives_its_parent(how):
    """Ctrl-C reaches the whole process group; the workers ignore it and end with their pipe."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        env=workers.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pids = [int(process.stdout.readline()) for _ in range(2)]
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
    else:
        process.kill()
    errors = process.communicate(timeout=30)[1]
    assert gone(*pids)
    assert errors.count("stopped") == 2
    assert errors.count("Traceback") == (how == signal.SIGINT)  # the script's own
