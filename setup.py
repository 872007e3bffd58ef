"""Compiles the C kernels as shared libraries, one per level; the rest is in pyproject.toml.

They use no part of Python, so a wheel serves every Python 3. Each is optional: if it cannot be
compiled, the installation succeeds without it and the slower backend "eager" runs instead.

CC, CFLAGS and LDFLAGS are read from the environment. If CC compiles for another machine, set
BACKSPIKE_PLATFORM to the platform of the wheel (`make wheels` does); then all must be compiled.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# flags and how the compiler is found, as for what the package compiles later
spec = importlib.util.spec_from_file_location("compiler", "src/backspike/kernel/compiler.py")
compiler = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compiler)

SOURCES, HEADERS = (
    sorted(map(str, Path("src/backspike/kernel/csrc").glob(f"*.{ending}"))) for ending in "ch"
)
# kernel/cpu/library.py compares it, to find libraries that were compiled from other sources
DIGEST = zlib.crc32(b"".join(Path(name).read_bytes() for name in SOURCES + HEADERS))
FLAG = f"-DDIGEST={DIGEST}u"

CURE = "install gcc or clang, or name one with CC=, and install again"
TARGET = os.environ.get("BACKSPIKE_PLATFORM", "")
PLATFORM = TARGET or sysconfig.get_platform()
ENDING = {"win": ".dll", "mac": ".dylib"}.get(PLATFORM[:3], ".so")  # as in kernel/cpu/library.py
LEVELS = {"_lif": "baseline"}
if (TARGET or platform.machine().lower()).endswith(("x86_64", "amd64")):
    LEVELS |= {"_lif_v3": "v3", "_lif_v4": "v4"}


class Build(build_ext):
    """Compiles all sources in parallel, with the flags that the compiler accepts."""

    def get_ext_filename(self, name):
        return str(Path(*name.split("."))) + ENDING

    def build_extensions(self):
        command = compiler.find()
        if command is None:
            self.leave_out(f"there is no C compiler: the kernels are left out; {CURE}")
            return
        flags, openmp = compiler.accepted(command)
        flags = [*flags, FLAG, *openmp]
        of_level = {name: compiler.level_flags(command, level) for name, level in LEVELS.items()}
        jobs = [(level, source) for level in LEVELS for source in SOURCES]
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
        self.announce(f"compiling {len(jobs)} C files, {processors} at a time", level=3)
        with ThreadPoolExecutor(processors) as pool:
            objects = list(
                pool.map(
                    lambda job: self.compile([*command, *flags, *of_level[job[0]]], *job), jobs
                )
            )
        link = [*command, *shlex.split(os.environ.get("LDFLAGS", "")), *openmp, "-shared"]
        for extension in self.extensions:
            level = extension.name.rpartition(".")[2]
            self.link(link, [o for (of, _), o in zip(jobs, objects) if of == level], extension.name)

    def compile(self, command, level, source):
        """Compiles a source for a level and returns the object file, or None if that failed."""
        target = Path(self.build_temp, level, f"{Path(source).stem}.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        words = [*command, "-c", source, "-o", str(target)]
        return str(target) if self.succeeds(words) else None

    def link(self, command, objects, name):
        """Links a library, if all its object files could be compiled."""
        target = Path(self.get_ext_fullpath(name))
        made = Path(self.build_temp, target.name)  # some linkers write more files beside it
        if ENDING == ".dylib":  # otherwise it would bear the name of that folder
            command = [*command, f"-Wl,-install_name,@rpath/{target.name}"]
        if all(objects) and self.succeeds([*command, *objects, "-o", str(made), "-lm"]):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made, target)
        else:
            self.leave_out(
                f"{name} could not be compiled and is left out (pip -v shows why); {CURE}"
            )

    def leave_out(self, message):
        if TARGET:
            raise CompileError(message)
        self.warn(message)

    def succeeds(self, words):
        done = subprocess.run(words, capture_output=True, text=True)
        self.announce(f"{shlex.join(words)}\n{done.stderr}", level=2 if done.returncode else 1)
        return done.returncode == 0


class Wheel(bdist_wheel):
    """A wheel for every Python 3, but one platform."""

    def get_tag(self):
        return "py3", "none", TARGET or super().get_tag()[2]


setup(
    ext_modules=[
        Extension(f"backspike.kernel.{name}", SOURCES, depends=HEADERS, optional=True)
        for name in LEVELS
    ],
    cmdclass={"build_ext": Build, "bdist_wheel": Wheel},
)
