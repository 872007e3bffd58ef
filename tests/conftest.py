"""What all tests share: one thread (pytest -n uses more cores), tolerances, and Windows."""

import contextlib
import errno
import os
import shutil
import signal
import sys

import pytest
import torch

from backspike.certify.axes import TOLERANCE

torch.set_num_threads(1)
# a shell that starts pytest in the background has Ctrl-C ignored, also by what pytest starts
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--windows", action="store_true", help="use the fixture windows in all tests")


@pytest.fixture
def tolerance():
    """Relative to the largest expected value, or to the sum of absolute terms for a scalar sum."""
    return TOLERANCE


@pytest.fixture
def windows(monkeypatch):
    """As on Windows, there is no fcntl and folders cannot be opened."""
    open_ = os.open

    def files_only(path, *rest, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return open_(path, *rest, **options)

    with contextlib.suppress(ImportError):
        import filelock  # noqa: F401  (of huggingface-hub; warns when imported without fcntl)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(os, "open", files_only)
    # shutil.rmtree opens folders, except on Windows
    monkeypatch.setattr(shutil, "_use_fd_functions", False)


@pytest.fixture(autouse=True)
def everywhere(request):
    """With --windows, every test runs on the simulation of Windows."""
    if request.config.getoption("--windows"):
        request.getfixturevalue("windows")
