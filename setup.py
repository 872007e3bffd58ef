"""Compiles the C kernels as shared libraries, one per level; the rest is in pyproject.toml.

Each is optional: if it cannot be compiled, the installation succeeds without it and the slower
backend "eager" runs instead.
"""

import os
import platform
import subprocess
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES, HEADERS = (
    sorted(map(str, Path("src/backspike/kernel/csrc").glob(f"*.{ending}"))) for ending in "ch"
)
# kernel/cpu/library.py compares it, to find libraries that were compiled from other sources
DIGEST = zlib.crc32(b"".join(Path(name).read_bytes() for name in SOURCES + HEADERS))
# no fused multiply-add and no fast-math: they would change membrane potentials, and thus spikes
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-g0",
    "-fno-fast-math",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    f"-DDIGEST={DIGEST}u",
]
# otherwise gcc threads the conditions in a loop into branches, which it then vectorises badly
GCC = ["-fno-thread-jumps"]
LEVELS = {"_lif": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS |= {"_lif_v3": ["-march=x86-64-v3"], "_lif_v4": ["-march=x86-64-v4"]}


class Build(build_ext):
    """Compiles all sources in parallel, with the flags that the compiler accepts."""

    def build_extensions(self):
        if self.compiler.compiler_type == "unix":
            openmp = ["-fopenmp"] if self.works("-fopenmp", "#include <omp.h>") else []
            flags = [*FLAGS, *(flag for flag in GCC if self.works(flag)), *openmp]
            self.force = True  # the digest decides, not the age of the files
            for extension in self.extensions:
                extension.extra_compile_args = [*flags, *LEVELS[extension.name.rpartition(".")[2]]]
                extension.extra_link_args = openmp
                extension.libraries = ["m"]
            self.compile_in_parallel()
        super().build_extensions()

    def compile_in_parallel(self):
        """Compiles every source for every level, with one process per processor.

        Extensions with a source that failed are left to setuptools, which reports the error.
        """
        jobs = [(extension, source) for extension in self.extensions for source in SOURCES]
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
        self.announce(f"compiling {len(jobs)} C files, {processors} at a time", level=3)
        with ThreadPoolExecutor(processors) as pool:
            done = list(pool.map(lambda job: self.compile_source(*job), jobs))
        for extension in self.extensions:
            objects = [o for (of, _), o in zip(jobs, done) if of is extension]
            if all(objects):
                extension.sources, extension.extra_objects = [], objects

    def compile_source(self, extension, source):
        """Compiles one source and returns its object file, or None if that failed."""
        folder = Path(self.build_temp, extension.name)
        folder.mkdir(parents=True, exist_ok=True)
        target = str(folder / f"{Path(source).stem}.o")
        command = [*self.compiler.compiler_so, "-c", source, "-o", target]
        try:
            done = subprocess.run([*command, *extension.extra_compile_args], capture_output=True)
        except OSError:  # there is no such compiler
            return None
        return target if done.returncode == 0 else None

    def works(self, flag, header=""):
        """Whether the compiler accepts the flag and finds the header that belongs to it."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "try.c")
            source.write_text(f"{header}\nint main(void) {{ return 0; }}\n")
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=[flag]
                )
                self.compiler.link_executable(
                    objects, "try", output_dir=folder, extra_postargs=[flag]
                )
            except Exception:
                return False
        return True


setup(
    ext_modules=[
        Extension(f"backspike.kernel.{name}", SOURCES, depends=HEADERS, optional=True)
        for name in LEVELS
    ],
    cmdclass={"build_ext": Build},
)
