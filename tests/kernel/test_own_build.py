"""The cache of compiled neurons: damage, several processes, no compiler, one that fails."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

import backspike as bs
from backspike.kernel import compiler
from backspike.kernel.cpu import library
from backspike.kernel.own import build

pytestmark = pytest.mark.skipif(
    compiler.find() is None or os.name != "posix", reason="needs a C compiler and a shell"
)
# prints which backend ran, the gradient, and what was logged
PROGRAM = """
import logging, sys
logging.basicConfig(format="%(message)s")
import torch
import backspike as bs
layer, x = bs.QIF(), torch.linspace(0, 1, 60).view(5, 3, 4).requires_grad_()
layer(x).sum().backward()
print(*layer.runs_on(), x.grad.sum().item(), sep="|")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache that this process has not used."""
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    forget()
    yield tmp_path / "cache/neurons"
    forget()


def forget():
    """Whatever this process knows of compilers and libraries."""
    for function in (build._library, build._flags, build._ingredients):
        function.cache_clear()


def start(**environment):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """The backend, the reason, the gradient, and what was logged."""
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return *out.strip().split("|"), errors


def libraries(folder):
    return sorted(folder.glob(f"*/neuron{library.ENDING}"))


def test_processes_that_start_at_once_share_whole_entries(folder):
    results = [finish(process) for process in [start(), start()]]
    assert results[0] == results[1]
    assert results[0][0] == "cpu"
    entries = list(folder.iterdir())
    assert len(entries) == 2  # forward and backward
    for entry in entries:
        names = {path.name for path in entry.iterdir()}
        assert names == {"neuron.c", f"neuron{library.ENDING}", "sha256"}
    times = [path.stat().st_mtime_ns for path in libraries(folder)]
    assert finish(start()) == results[0]
    assert [path.stat().st_mtime_ns for path in libraries(folder)] == times


slow = pytest.mark.slow


@pytest.mark.parametrize(
    "damage",
    ["changed", *(pytest.param(d, marks=slow) for d in ("half", "empty", "missing", "no sum"))],
)
def test_a_damaged_entry_is_compiled_anew(folder, damage):
    want = finish(start())
    for path in libraries(folder):
        data = path.read_bytes()
        path.unlink()
        if damage == "no sum":
            (path.parent / "sha256").unlink()
        if damage != "missing":
            half = data[: len(data) // 2]
            other = {"half": half, "empty": b"", "changed": half + b"0" + data[len(half) + 1 :]}
            path.write_bytes(other.get(damage, data))
    got = finish(start())
    assert got[:3] == want[:3]
    assert got[3].count("is damaged") == 2
    assert finish(start()) == want
    assert len([*folder.iterdir()]) == 2


def test_without_a_compiler_it_runs_in_torch_and_the_reason_is_told(folder):
    backend, why, gradient, _ = finish(start(CC="/nonexistent/cc"))
    assert backend == "eager"
    assert why == (
        "equations of its own run in torch, one timestep after the other: there is no C compiler; "
        "install gcc or clang, or name one with CC="
    )
    assert not folder.exists() or [*folder.iterdir()] == []
    compiled = finish(start())
    assert compiled[0] == "cpu"
    assert float(compiled[2]) == pytest.approx(float(gradient))
    assert finish(start(CC="/nonexistent/cc")) == compiled  # what was compiled before


def test_a_compiler_that_fails_is_named(folder, tmp_path):
    path = tmp_path / "cc"
    path.write_text(
        '#!/bin/sh\ncase "$*" in *-shared*) echo "error: no space" >&2; exit 1;; esac\n'
    )
    path.chmod(0o755)
    backend, why, *_ = finish(start(CC=str(path)))
    assert backend == "eager"
    assert why.endswith(f"the C compiler {path} failed: error: no space")
    assert [*folder.iterdir()] == []


def test_a_compiler_that_is_no_program_is_named(folder, tmp_path):
    path = tmp_path / "cc"
    path.write_text("not a program")
    path.chmod(0o755)
    backend, why, *_ = finish(start(CC=str(path)))
    assert backend == "eager"
    assert f"the C compiler {path} failed: " in why
    assert "cache" not in why


@pytest.mark.parametrize("changed", ["a flag", "a header"])
def test_other_flags_or_headers_make_another_library(folder, tmp_path, monkeypatch, changed):
    layer, x = bs.QIF(backend="cpu"), torch.rand(3, 2)
    want = layer(x)
    forget()
    if changed == "a flag":
        monkeypatch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DANOTHER"))
    else:
        own = tmp_path / "own"
        shutil.copytree(build.FOLDERS[1], own)
        header = own / "loops.h"
        header.write_text(f"{header.read_text()}\n/* of another version */\n")
        monkeypatch.setattr(build, "FOLDERS", (build.FOLDERS[0], own))
    assert torch.equal(layer(x), want)
    assert len(libraries(folder)) == 2


def test_a_cache_that_cannot_be_written_is_replaced_for_this_run(folder):
    folder.parent.write_text("a file")
    backend, *_, errors = finish(start())
    assert backend == "cpu"
    assert "cannot be used" in errors


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="only root can give files away")
def test_a_library_of_another_user_is_not_loaded(folder, caplog):
    layer = bs.QIF(backend="cpu")
    want = layer(x := torch.rand(3, 2))
    build._library.cache_clear()
    (path,) = libraries(folder)
    os.chown(path, 12345, -1)
    assert torch.equal(layer(x), want)
    assert "is damaged (it belongs to another user): writing it again" in caplog.text
    assert path.stat().st_uid == 0


def test_the_source_is_kept_beside_the_library(folder):
    bs.QIF(backend="cpu")(torch.rand(3, 2))
    (path,) = libraries(folder)
    text = path.with_name("neuron.c").read_text()
    assert "#define FORWARD" in text
    assert re.search(r"const REAL n\d+ = n\d+ \* n\d+;", text)


def test_each_level_has_a_library_of_its_own(folder):
    layer, x = bs.QIF(backend="cpu"), torch.rand(3, 2)
    for name in library.levels():
        with library.level(name):
            layer(x)
    assert len(libraries(folder)) == len(library.levels())


def test_torch_compile_takes_the_equations_as_they_are():
    """In a process of its own: here, torch.empty_like is replaced."""
    program = """
import torch
import backspike as bs
layer, x = bs.QIF(), torch.rand(4, 2, 3)
y = torch.compile(layer, fullgraph=True, backend="eager")(x)
assert torch.equal(y, layer(x))
assert layer.runs_on()[0] == "cpu"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_package_without_sources_names_what_is_missing(folder, tmp_path, monkeypatch):
    """As a broken installation."""
    other = tmp_path / "own"
    other.mkdir()
    monkeypatch.setattr(build, "FOLDERS", (other, other))
    build._ingredients.cache_clear()
    assert "lif.h" in bs.QIF().runs_on()[1]
