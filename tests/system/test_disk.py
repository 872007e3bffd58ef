"""File systems without locks or fsync of folders, and Windows."""

import errno
import fcntl
import os
import platform
import subprocess
import sys

import pytest

from backspike import recipes, train
from backspike.errors import RunError
from backspike.run import Run
from backspike.system import disk
from backspike.system.files import write_atomic

NO_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@pytest.fixture
def no_locks(monkeypatch, request):
    """A file system that refuses every lock with an error seen on clusters."""

    def refuse(file, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def dead_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.parametrize("no_locks", NO_LOCKS, indirect=True)
def test_without_locks_an_owner_file_names_the_process(no_locks, tmp_path):
    run = Run(tmp_path)
    with run.locked():
        assert (tmp_path / ".lock.owner").read_text() == f"{os.getpid()}@{platform.node()}"
        with pytest.raises(RunError, match=f"in use by process {os.getpid()}"), run.locked():
            pass
    assert not (tmp_path / ".lock.owner").exists()


@pytest.mark.parametrize("no_locks", NO_LOCKS[:1], indirect=True)
def test_without_locks_a_dead_owner_is_recognised(no_locks, tmp_path):
    owner = tmp_path / ".lock.owner"
    owner.write_text(f"{dead_process()}@{platform.node()}")
    with Run(tmp_path).locked():
        pass
    owner.write_text("17@elsewhere")
    with (
        pytest.raises(
            RunError, match=f"process 17 on elsewhere; if that process has ended, delete {owner}"
        ),
        Run(tmp_path).locked(),
    ):
        pass
    owner.write_text("")
    os.utime(owner, (0, 0))  # its creator was killed long ago, before it wrote its name
    with Run(tmp_path).locked():
        pass


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_files_can_be_written_where_folders_cannot_be_flushed(code, monkeypatch, tmp_path):
    fsync = os.fsync

    def files_only(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomic(tmp_path / "file", b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"


def test_the_older_checkpoint_survives_repeated_kills(tmp_path):
    run = Run(tmp_path)
    run.write("last", b"first")
    run.keep("last", "previous")  # killed here, so both names are hard links to one file
    run.keep("last", "previous")
    assert not list(tmp_path.glob(".*.tmp"))
    run.write("last", b"second")
    assert run.read("previous") == b"first"
    # a hard link left under our temporary name is never written to
    os.link(tmp_path / "last", disk.temporary(tmp_path / "previous"))
    run.write("previous", b"third")
    assert run.read("last") == b"second"


def test_leftovers_of_killed_commands_are_removed(tmp_path):
    dead, running = dead_process(), os.getppid()
    gone = [f".report.html.{dead}@{platform.node()}.tmp", f".report.html.{dead}.tmp"]
    stay = [f".report.html.{running}@{platform.node()}.tmp", ".report.html.1@elsewhere.tmp"]
    for name in gone + stay:
        (tmp_path / name).touch()
    write_atomic(tmp_path / "report.html", b"")
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", *stay}
    os.utime(tmp_path / stay[1], (0, 0))
    write_atomic(tmp_path / "report.html", b"")
    assert {p.name for p in tmp_path.iterdir()} == {"report.html", stay[0]}


def test_replacing_a_file_that_is_open_elsewhere_is_retried(monkeypatch, tmp_path):
    (tmp_path / "new").write_text("new")
    replace, refusals = os.replace, [PermissionError(), PermissionError()]

    def busy(source, target):
        if refusals:
            raise refusals.pop()
        replace(source, target)

    monkeypatch.setattr(disk.os, "replace", busy)
    monkeypatch.setattr(disk, "POSIX", False)
    disk.replace(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "new"


def test_training_and_resuming_work_on_windows(windows, tmp_path):
    recipe = recipes.digits().replace({"epochs": 2, "limit": 200})
    first = train.fit(recipe, tmp_path / "run", report=True)
    stopped = []

    def stop(event):
        if event["event"] == "epoch" and not stopped:
            stopped.append(event)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.fit(recipe, tmp_path / "other", listen=stop, report=False)
    again = train.resume(tmp_path / "other", report=False)
    assert again.test_accuracy == first.test_accuracy
    assert not list((tmp_path / "other").glob(".*.tmp"))
