"""The loader: which file it takes on which system and processor, and why it takes none."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

from backspike.kernel.cpu import library

FOLDER = Path(library.__file__).parents[1]
pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The loader in an empty folder on another system, with these files and no C sources."""

    def load(system, **files):
        (tmp_path / "cpu").mkdir()
        shutil.copy(library.__file__, tmp_path / "cpu")
        for name, data in files.items():
            (tmp_path / name.replace("__", ".")).write_bytes(data)
        monkeypatch.setattr(sys, "platform", system)
        spec = importlib.util.spec_from_file_location(
            "backspike.kernel.cpu.moved", tmp_path / "cpu/library.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def built():
    path = next(FOLDER.glob("_lif.*"))
    assert path.suffix in (".so", ".dll", ".dylib")
    return path.read_bytes()


@pytest.mark.parametrize(("system", "ending"), [("win32", "dll"), ("darwin", "dylib")])
def test_each_system_has_its_file_name(system, ending, built, installed):
    moved = installed(system, **{f"_lif__{ending}": built, "_lif__so": b"not read"})
    if sys.platform == "win32" and ending != "dll":
        pytest.skip("other endings are not loaded on Windows")
    assert (moved.missing(), moved.levels()) == (None, ("baseline",))


@pytest.mark.parametrize("capability", ["DEFAULT", "NO AVX", "SVE256", "anything"])
def test_other_processors_use_the_library_for_all(capability, built, installed, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    moved = installed("linux", _lif__so=built, _lif_v3__so=b"not read", _lif_v4__so=b"not read")
    assert (moved.missing(), moved.levels()) == (None, ("baseline",))


def test_a_level_that_cannot_be_loaded_leaves_the_next(built, installed, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    moved = installed("linux", _lif__so=built, _lif_v3__so=built, _lif_v4__so=b"")
    assert (moved.missing(), moved.levels()) == (None, ("v3", "baseline"))


def test_the_reason_is_given_if_there_is_no_library(installed):
    assert installed("linux").missing() == (
        "the C kernel was not compiled during installation; "
        "install a C compiler (gcc or clang), then reinstall backspike"
    )


def test_the_reason_is_given_if_the_library_cannot_be_loaded(installed):
    moved = installed("linux", _lif__so=b"for another machine")
    assert moved.levels() == ()
    reason = moved.missing()
    assert reason.startswith("the C kernel cannot be loaded (")
    assert reason.endswith("; reinstall backspike for this machine")
    assert "_lif.so" in reason


def test_a_library_from_other_sources_is_not_used(monkeypatch):
    assert library._digest() in (None, library._c.lif_digest())
    assert library.missing() is None
    monkeypatch.setattr(library, "_digest", lambda: 1)
    assert list(library._built()) == []
    monkeypatch.setattr(library, "_c", None)
    assert library.missing() == (
        "the C kernel was compiled from different sources; reinstall backspike"
    )
