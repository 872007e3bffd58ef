"""The C kernel as plain shared libraries, one per level of the processor; everything else stands in pyproject.toml.

Each is optional: where it cannot be compiled the install succeeds without it, and backend "eager" computes.
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

# no fused multiply-add and no fast-math: they would change membranes, and with them spikes
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-g0",
    "-fno-fast-math",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]
GCC = [
    "-fno-thread-jumps"
]  # else it threads the conditions of a loop into branches, which it then vectorises badly
SOURCES, HEADERS = (
    sorted(map(str, Path("src/backspike/kernel/csrc").glob(f"*.{ending}"))) for ending in "ch"
)
FLAGS += [
    f"-DDIGEST={zlib.crc32(b''.join(Path(name).read_bytes() for name in SOURCES + HEADERS))}u"
]  # kernel/cpu/library.py compares it
LEVELS = {"_lif": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    LEVELS |= {"_lif_v3": ["-march=x86-64-v3"], "_lif_v4": ["-march=x86-64-v4"]}


class Build(build_ext):
    def build_extensions(self):
        if self.compiler.compiler_type == "unix":
            openmp = ["-fopenmp"] if self.works("-fopenmp", "#include <omp.h>") else []
            flags = [*FLAGS, *(flag for flag in GCC if self.works(flag)), *openmp]
            self.force = True  # their digest counts, not how old the files are
            for extension in self.extensions:
                extension.extra_compile_args = [*flags, *LEVELS[extension.name.rpartition(".")[2]]]
                extension.extra_link_args = openmp
                extension.libraries = ["m"]
            self.compile_in_parallel()
        super().build_extensions()

    def compile_in_parallel(self):
        """Compiles every source of every level at once, as many as there are processors.

        What fails here is compiled again by setuptools, which reports it.
        """
        jobs = [(extension, source) for extension in self.extensions for source in SOURCES]
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4
        self.announce(f"compiling {len(jobs)} C files, {processors} at a time", level=3)
        with ThreadPoolExecutor(processors) as pool:
            done = list(pool.map(lambda job: self.compiled(*job), jobs))
        for extension in self.extensions:
            objects = [o for (of, _), o in zip(jobs, done) if of is extension]
            if all(objects):
                extension.sources, extension.extra_objects = [], objects

    def compiled(self, extension, source):
        """The object file of a source, None where it does not compile."""
        folder = Path(self.build_temp, extension.name)
        folder.mkdir(parents=True, exist_ok=True)
        target = str(folder / f"{Path(source).stem}.o")
        command = [*self.compiler.compiler_so, "-c", source, "-o", target]
        done = subprocess.run([*command, *extension.extra_compile_args], capture_output=True)
        return target if done.returncode == 0 else None

    def works(self, flag, header=""):
        """Whether the compiler takes the flag, and has the header that it is for."""
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
