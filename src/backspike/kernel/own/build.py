"""Compiling a function once, and finding it again in the cache folder.

An entry is a folder, named by the digest of the sources, with the C source, the library and the
library's checksum: a damaged library, whose loading could end the process, is not loaded but
compiled anew. Nor is one that belongs to another user.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ...errors import DataError, Unsupported
from .. import compiler
from ..cpu.library import ENDING, Job, active_level
from .c import FOLDERS, HEADERS

SECONDS = 600  # a compiler that takes longer is stopped
OPENMP = "openmp.c"
CURE = "install gcc or clang, or name one with CC="


def function(text: str, name: str) -> Callable[[Any], object]:
    """The function of this name in a C source. Raises Unsupported if it cannot be compiled."""
    library = _library(text, active_level())
    if isinstance(library, str):
        raise Unsupported(library)
    c_function = getattr(library, name)
    c_function.restype, c_function.argtypes = None, [ctypes.POINTER(Job)]
    return c_function


@lru_cache(maxsize=1024)
def _library(text: str, level: str) -> ctypes.CDLL | str:
    """The library, or why there is none; a compiler that failed is not asked again."""
    from ...data import cache as folder  # imports readers that most programs do not need

    machine = platform.machine(), sys.platform
    digest = hashlib.sha256("\n".join((text, *_ingredients(), level, *machine)).encode())
    entry = f"neurons/{digest.hexdigest()[:32]}"
    try:
        return folder.cached(entry, _read, lambda path: _write(path, text, level))
    except (DataError, Unsupported) as error:
        return str(error)


@cache
def _ingredients() -> tuple[str, ...]:
    """What every library is compiled from and with, besides its text."""
    paths = (folder / name for name in (*HEADERS, OPENMP) for folder in FOLDERS)
    return *compiler.FLAGS, *(path.read_text() for path in paths if path.is_file())


def _read(path: Path) -> ctypes.CDLL:
    """Load the library of an entry. Raises OSError or ValueError if it is damaged."""
    library = path / f"neuron{ENDING}"
    content = library.read_bytes()
    if hashlib.sha256(content).hexdigest() != (path / "sha256").read_text():
        raise ValueError("its checksum differs")
    if hasattr(os, "getuid") and library.stat().st_uid not in (0, os.getuid()):
        raise ValueError("it belongs to another user")
    return ctypes.CDLL(str(library))


def _write(path: Path, text: str, level: str) -> None:
    """Make an entry. Raises Unsupported."""
    command, flags, openmp = _compiler()
    path.mkdir()
    source, library = path / "neuron.c", path / f"neuron{ENDING}"
    source.write_text(text)
    sources = [str(source)]
    if "-DOWN_OPENMP" in flags:
        sources.append(str(FOLDERS[0] / OPENMP))
    words = [*command, *flags, *openmp, *compiler.level_flags(command, level), "-shared"]
    words += [f"-I{folder}" for folder in FOLDERS] + sources + ["-o", str(library), "-lm"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unsupported(f"the C compiler {command[0]} failed: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
        raise Unsupported(f"the C compiler {command[0]} failed: {lines[0]}")
    (path / "sha256").write_text(hashlib.sha256(library.read_bytes()).hexdigest())


def _compiler() -> tuple[list[str], list[str], list[str]]:
    """The command of the compiler, its flags, and those for OpenMP."""
    command = compiler.find()
    if command is None:
        raise Unsupported(f"there is no C compiler; {CURE}")
    return command, *_flags(tuple(command))


@cache
def _flags(command: tuple[str, ...]) -> tuple[list[str], list[str]]:
    return compiler.accepted(list(command))
