"""The C compiler of this machine, and the flags with which kernels are compiled.

setup.py loads this file before the package is installed, so it imports only the standard library.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

# no fused multiply-add and no fast-math: they would change membrane potentials, and thus spikes
FLAGS = (
    "-std=gnu11",
    "-O3",
    "-g0",
    "-fno-fast-math",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
# The first: otherwise gcc threads the conditions in a loop into branches, which it then vectorises
# badly. The second: there is no such thing on Windows.
IF_ACCEPTED = ("-fno-thread-jumps", "-fPIC")
# gcc comes with its runtime, which torch on Linux uses as well; clang's is csrc/openmp.c
GCC_ONLY = "#ifdef __clang__\n#error\n#endif\n"
OWN_OPENMP = ("-Xclang", "-fopenmp", "-DOWN_OPENMP")


def find() -> list[str] | None:
    """The command of the C compiler with CFLAGS, or None if there is none.

    CC and CFLAGS are read from the environment.
    """
    chosen = os.environ.get("CC")
    usual = (sysconfig.get_config_var("CC"), "cc", "gcc", "clang")
    for command in [chosen] if chosen else filter(None, usual):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return [*words, *shlex.split(os.environ.get("CFLAGS", ""))]
    return None


def works(compiler: list[str], flags: tuple[str, ...] | list[str], code: str = "") -> bool:
    """Whether the compiler accepts the flags without a warning, and the code with them."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "try.c")
        source.write_text(f"{code}int main(void) {{ return 0; }}\n")
        words = [*compiler, *flags, "-Werror", "-c", str(source), "-o", str(Path(folder, "try.o"))]
        try:
            return subprocess.run(words, capture_output=True).returncode == 0
        except OSError:  # it is no program of this machine
            return False


def accepted(compiler: list[str]) -> tuple[list[str], list[str]]:
    """The flags to compile with, and those that both compiling and linking need for OpenMP."""
    flags = [*FLAGS, *(flag for flag in IF_ACCEPTED if works(compiler, [flag]))]
    openmp = ["-fopenmp"] if works(compiler, ["-fopenmp"], GCC_ONLY) else []
    if not openmp and works(compiler, OWN_OPENMP):
        flags += OWN_OPENMP
    return flags, openmp


def level_flags(compiler: list[str], level: str) -> list[str]:
    """The flags for a processor level: "v3" or "v4" of x86-64, or "baseline", which needs none."""
    if level == "baseline":
        return []
    ours = works(compiler, ["-march=x86-64-v3"])  # else in zig's spelling
    return [f"-march=x86-64-{level}" if ours else f"-march=x86_64_{level}"]
