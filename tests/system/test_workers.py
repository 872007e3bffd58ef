"""Worker processes: answers, events, errors with their tracebacks, deaths, time limits, and no process that is left behind."""

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
    """Whether none of the processes is left after so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(os.path.exists(f"/proc/{pid}") for pid in pids):
            return True
        time.sleep(0.02)
    return False


def test_every_job_is_done_once_and_events_come_before_its_result(capfd):
    found = list(workers.run(jobs.square, [(x,) for x in range(7)], 2))
    results = {job: value for job, kind, value in found if kind == "result"}
    assert {job: square for job, (square, _) in results.items()} == {(x,): x * x for x in range(7)}
    assert len({pid for _, pid in results.values()}) == 2
    for x in range(7):
        assert [kind for job, kind, _ in found if job == (x,)] == ["event", "result"]
        assert ((x,), "event", f"squaring {x}") in found
    out, err = capfd.readouterr()
    assert (out, err.count("printed")) == ("", 7)


def test_no_jobs_start_no_process(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    assert list(workers.run(jobs.square, [], 2)) == []


def test_an_exception_keeps_its_class_and_shows_where_it_was_raised():
    with Worker() as worker:
        with pytest.raises(DataError, match=r"^a damaged file$") as e:
            worker.call(jobs.fails, "a damaged file")
        assert "in fails" in "".join(traceback.format_exception(e.value))
        assert worker.call(jobs.exits, 3) == 3  # it goes on


def test_an_exception_and_a_break_end_all_workers(monkeypatch):
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


def test_a_worker_that_dies_is_replaced_and_the_other_jobs_go_on():
    found = {
        x: (kind, value)
        for (x,), kind, value in workers.run(jobs.exits, [(x,) for x in range(5)], 1, quiet=True)
    }
    assert {x: kind for x, (kind, _) in found.items()} == {
        x: "failed" if x in (1, 2) else "result" for x in range(5)
    }
    said, code = found[1][1], found[1][1].code
    assert (str(said), code) == ("ended by signal 9, which an exhausted memory sends", -9)
    with pytest.raises(WorkerFailed, match=r"^ended with exit code 3$"), Worker() as worker:
        worker.call(os._exit, 3)
    with Worker(start="raise SystemExit('no more')", quiet=True) as worker:
        worker.process.wait()
        with pytest.raises(WorkerFailed, match=r"^no more$"):
            worker.call(jobs.exits, 3)


def test_a_call_that_takes_too_long_ends_the_process():
    with Worker() as worker:
        assert worker.call(jobs.exits, 3, timeout=60) == 3
        with pytest.raises(WorkerFailed, match=r"^gave no answer within 1 s$"):
            worker.call(jobs.loops, timeout=1)


def test_patience_lets_workers_end_by_themselves(capfd):
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
    """Ctrl-C reaches the whole group, as in a terminal; the workers ignore it and end when asked."""
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
    assert errors.count("Traceback") == (how == signal.SIGINT)  # that of the script
