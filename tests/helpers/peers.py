"""Run scripts in an environment that has the other libraries.

`BACKSPIKE_PEER_PYTHON` names its python; without it these tests are skipped. They are slow tests.
The environment is made once, with the CPU build of torch:

    python3.11 -m venv peers && peers/bin/pip install torch==2.13.0 \
        numpy snntorch==1.0.0 norse==1.1.0 sinabs==3.1.3 spikingjelly==2.0.0 nir==1.0.8 snn-mlir

torchvision is not needed. Older versions of SpikingJelly live in folders of their own, which
`extra=` puts first on the path; `BACKSPIKE_PEER_FOLDERS` lists them, separated by colons:

    pip install --no-deps --target sj12 spikingjelly==0.0.0.0.12
    pip install --no-deps --target sj14 spikingjelly==0.0.0.0.14
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from helpers.paths import ROOT, TESTS

PYTHON = os.environ.get("BACKSPIKE_PEER_PYTHON", "")


def run(script, *arguments, extra=None, seconds=600):
    """Run a Python file with the peers' python and return the JSON of its last line of output.

    Our src and tests are on its path, behind the folder `extra` if given. The test fails with the
    script's own words if it does.
    """
    if not PYTHON:
        pytest.skip("BACKSPIKE_PEER_PYTHON names no python with the other libraries")
    path = [*([extra] if extra else []), str(ROOT / "src"), str(TESTS)]
    done = subprocess.run(
        [PYTHON, str(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if done.returncode:
        pytest.fail(f"{script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def folder(version):
    """The folder of another version of SpikingJelly, such as "0.0.0.0.12"; skip without it."""
    for path in filter(None, os.environ.get("BACKSPIKE_PEER_FOLDERS", "").split(os.pathsep)):
        if (Path(path) / f"spikingjelly-{version}.dist-info").is_dir():
            return path
    pytest.skip(f"BACKSPIKE_PEER_FOLDERS has no folder with spikingjelly {version}")
