"""Libraries for other machines give the same bits as the one that is used here.

The calls of a few networks are recorded and repeated by replay.c with a library that zig compiled,
with the OpenMP runtime of openmp.c: for this processor, for ARM under qemu-user and for Windows
under wine. `make wheels` installs zig; BACKSPIKE_ZIG names its command. What is missing is skipped.
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.kernel_calls import recorded, write
from helpers.paths import ROOT, TESTS
from helpers.surrogates import FAMILIES
from torch import nn

import backspike as bs
from backspike.kernel import cpu, pack
from backspike.kernel.cpu import conv, conv_lookup, library, pool, sparse, stream, winograd
from backspike.models.residual import MSBasic

CSRC = Path(cpu.__file__).parents[1] / "csrc"
TOOLS = ROOT / ".venv-wheels/bin/python"
ZIG = os.environ.get("BACKSPIKE_ZIG") or (f"{TOOLS} -m ziglang" if TOOLS.exists() else "")
# platform of the wheel: zig's target, the program that runs it, endings of library and program
MACHINES = {
    "linux_x86_64": ("x86_64-linux-gnu.2.17", "", ".so", ""),
    "linux_aarch64": ("aarch64-linux-gnu.2.17", "qemu-aarch64", ".so", ""),
    "win_amd64": ("x86_64-windows-gnu", "wine64", ".dll", ".exe"),
}
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
OPTIONS = (
    {"v_reset": None},
    {"v_reset": -0.2, "reset_gradient": 0.0, "decay_input": False},
    {"memory": "bfloat16", "v_reset": None},
    {"memory": "8bit"},
    {"memory": "recompute", "temporal_gradient": False},
    {"learn": ("tau", "threshold"), "channels": 6},
)
pytestmark = pytest.mark.skipif(
    not library.available() or platform.machine() != "x86_64" or sys.platform != "linux",
    reason="records calls of the C kernels on Linux and x86-64",
)


def backward(model, x):
    y = model(x.detach().requires_grad_())
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype))


def use_neurons(dtype):
    x = torch.randn(4, 5, 6, 7, 3, generator=torch.Generator().manual_seed(1)).to(dtype) + 0.5
    state = torch.float64 if dtype == torch.float64 else torch.float32
    for i, surrogate in enumerate(FAMILIES):
        for options in (OPTIONS[i % len(OPTIONS)], OPTIONS[(i + 1) % len(OPTIONS)]):
            backward(bs.LIF(surrogate=surrogate, **options).to(state), x)
    for surrogate in (bs.Masked(bs.ATan(), p=0.4), bs.Parametric(bs.Sigmoid())):
        backward(bs.LIF(surrogate=surrogate).to(state), x)
    backward(bs.LIF(surrogate=bs.Rectangle(), v_reset=None, memory="1bit").to(state), x)
    backward(bs.CLIF().to(state), x)
    for options in ({}, {"learn": ("tau", "a", "b"), "channels": 6}, {"memory": "8bit"}):
        backward(bs.AdaptiveLIF(v_threshold=0.4, **options).to(state), x)


def use_blocks(dtype):
    x = torch.randn(3, 4, 5, 7, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    state = torch.float64 if dtype == torch.float64 else torch.float32
    for pooling in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        for layout in (torch.contiguous_format, torch.channels_last):
            y = x.flatten(0, 1).contiguous(memory_format=layout).unflatten(0, (3, 4))
            norm = bs.OverTime(nn.BatchNorm2d(5).to(state))
            backward(
                bs.Sequential(norm, bs.LIF(v_threshold=0.5).to(state), bs.OverTime(pooling)), y
            )
    for function in (pool.max_pool, pool.avg_pool):
        backward(lambda leaf, f=function: f(leaf, 2), x.flatten(0, 1))


def use_sparse(dtype):
    r = torch.Generator().manual_seed(4)
    weight, bias, g = (torch.randn(s, generator=r).to(dtype) for s in ((70, 100), 70, (150, 70)))
    for density in (0.2, 0.02):  # the weight gradient of few spikes is scattered
        packed = pack.pack((torch.rand(150, 100, generator=r) < density).float())
        spikes = sparse.Spikes(packed.codes, 150, 100, packed.nonzero)
        for how in ("gather", "lookup"):
            spikes.times(weight, bias, how)
            spikes.gradients(g, how)
    sparse.sampled(g, weight, spikes.bits, torch.float32)
    for step in (1, 2):
        codes = torch.randint(0, 5, (3, 9, 8, 7), generator=r) / (4 if step == 2 else 1) % 2
        codes = codes.contiguous(memory_format=torch.channels_last)
        packed = pack.pack(codes)
        events = conv.Events(packed.codes, packed.bits, codes.shape)
        weight = torch.randn(20, 9, 3, 3, generator=r).to(dtype)
        geometry = conv.Geometry((step, step), (1, 1), (1, 1))
        y = events.convolved(weight, torch.randn(20, generator=r), geometry)
        events.weight_gradient(torch.randn(y.shape, generator=r).to(y), weight, geometry)


def use_winograd(dtype):
    r = torch.Generator().manual_seed(7)
    weight, x = torch.randn(19, 70, 3, 3, generator=r), torch.randn(3, 70, 9, 6, generator=r)
    y = winograd.convolve(x.to(dtype), weight, torch.randn(19, generator=r))
    assert winograd.input_gradient(y, weight) is not None
    assert winograd.weight_gradient(x.to(dtype), y) is not None
    assert winograd.convolve(x.to(dtype) / 0, weight) is None


def use_lookup(dtype):
    r = torch.Generator().manual_seed(8)
    packed = pack.pack((torch.rand(3, 9, 6, 37, generator=r) < 0.3).float())
    spikes = conv.Events(packed.codes, packed.bits, torch.Size((3, 37, 9, 6)))
    g, weight = torch.randn(3, 19, 9, 6, generator=r).to(dtype), torch.empty(19, 37, 3, 3)
    assert conv_lookup.weight_gradient(spikes, g, weight, 1) is not None
    assert conv_lookup.weight_gradient(spikes, g / 0, weight, 1) is None


def use_recurrence(dtype):
    x = torch.randn(5, 9, 20, generator=torch.Generator().manual_seed(5)).to(dtype) + 0.5
    narrow, masked = bs.Triangle(4.0), bs.Masked(bs.ATan(), p=0.4)
    learn = ("tau", "tau_adaptation", "a", "b")
    for neuron in (
        bs.LIF(surrogate=narrow),
        bs.PLIF(surrogate=masked),
        bs.CubaLIF(memory="8bit"),
        bs.AdaptiveLIF(v_threshold=0.3, learn=learn),
    ):
        backward(bs.Recurrent(nn.Linear(20, 20), neuron).to(dtype), x)
        backward(bs.Recurrent(nn.Linear(16, 16), neuron).to(dtype), x[..., :16].contiguous())


def use_streams(dtype):
    x = (torch.rand(3, 2, 2, 7, 6, generator=torch.Generator().manual_seed(6)) < 0.3).to(dtype)
    norm = nn.BatchNorm2d(16)
    nn.init.normal_(norm.weight)
    over_time, same = bs.OverTime, nn.Conv2d(16, 16, 3, padding=1)
    front = over_time(nn.Conv2d(2, 16, 3, padding=1)), bs.LIF(v_threshold=0.2)
    pools = over_time(nn.MaxPool2d(2, 1), norm, nn.AvgPool2d(2), same), bs.MPBN(channels=16)
    head = over_time(nn.Flatten(), nn.Linear(96, 6)), bs.Recurrent(nn.Linear(6, 6), bs.CubaLIF())
    model = bs.Sequential(*front, MSBasic(16, 16, 1, bs.LIF), *pools, *head)
    with torch.no_grad():
        for t in x:
            bs.stream(model.to(dtype), t).step(t)


def use_packs():
    for dtype in (*DTYPES, torch.float16):
        for divisor, count in ((1, 2), (4, 16), (4, 256)):
            x = torch.arange(10000).remainder(count).to(dtype) / divisor
            assert torch.equal(pack.pack(x).unpack(), x)
        assert pack.pack(x.bool().float()).total(5).shape == (2000,)
        pack.pack(torch.full((9000,), 0.3).to(dtype))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A file of calls of every kernel, on three threads, with the library for all x86-64."""
    before = torch.get_num_threads(), library.GRAIN
    path = tmp_path_factory.mktemp("calls") / "calls"
    with library.level("baseline"), recorded() as calls:
        torch.set_num_threads(3)
        library.GRAIN = conv._GRAIN = sparse._GRAIN = pack._GRAIN = winograd._GRAIN = 64
        conv_lookup._GRAIN = 64
        torch.manual_seed(0)
        for dtype in DTYPES:
            use_neurons(dtype)
            use_blocks(dtype)
            use_recurrence(dtype)
        for dtype in sparse.DTYPES:
            use_sparse(dtype)
            use_winograd(dtype)
            use_lookup(dtype)
        for dtype in stream.DTYPES:
            use_streams(dtype)
        use_packs()
    torch.set_num_threads(before[0])
    library.GRAIN = before[1]
    write(calls, path)
    return path, calls


def kernels():
    """The functions that Python calls, by their definitions in C."""
    found = set()
    for source in CSRC.glob("*.c"):
        text = source.read_text()
        kinds = {
            "pack.c": ("f64", "f32", "bf16", "f16"),
            "stream.c": ("f64", "f32"),
        }.get(source.name, ("f64", "f32", "bf16"))
        for templated, plain in re.findall(
            r"^(?:void|int64_t) (?:NAME\((\w+)\)|(\w+))\(", text, re.M
        ):
            found |= {f"{templated}_{kind}" for kind in kinds} if templated else {plain}
    return found


def test_every_kernel_is_recorded(recording):
    missing = kernels() - {call.name for call in recording[1]}
    sizes = {name for name in missing if name.endswith(("_size", "_block", "_digest"))}
    assert missing - sizes <= {"lif_mask_f64", "lif_mask_f32", "lif_mask_bf16", "pack_count"}


def compile_replay(words, folder, ending=""):
    program = folder / f"replay{ending}"
    source = str(TESTS / "kernel/replay.c")
    done = subprocess.run([*words, source, "-o", str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_installed_library_repeats_its_own_calls(recording, tmp_path):
    path, calls = recording
    replay = compile_replay(["gcc"], tmp_path)
    kernels_ = Path(cpu.__file__).parents[1] / "_lif.so"
    words = [str(replay), str(kernels_), str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    number, buffer = next((i, b) for i, b in enumerate(calls[0].buffers) if b.compared)
    flipped = bytes([buffer.after[0] ^ 1]) + buffer.after[1:]
    buffers = list(calls[0].buffers)
    buffers[number] = replace(buffer, after=flipped)
    write([replace(calls[0], buffers=buffers)], tmp_path / "damaged")
    words[-1] = str(tmp_path / "damaged")
    assert subprocess.run(words, capture_output=True).returncode == 1


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="needs setuptools")
@pytest.mark.parametrize("machine", MACHINES)
def test_a_library_for_another_machine_gives_the_same_bits(machine, recording, tmp_path):
    target, emulator, ending, program_ending = MACHINES[machine]
    if not ZIG:
        pytest.skip("needs zig: make wheels")
    if emulator and not (
        found := shutil.which(emulator) or shutil.which(f"/usr/lib/wine/{emulator}")
    ):
        pytest.skip(f"needs {emulator}")
    compiler = [*shlex.split(ZIG), "cc", "-target", target]
    words = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib")]
    words += ["--build-temp", str(tmp_path / "temp")]
    environment = {**os.environ, "CC": shlex.join(compiler), "BACKSPIKE_PLATFORM": machine}
    subprocess.run(words, env=environment, cwd=ROOT, check=True, capture_output=True)
    kernels = tmp_path / f"lib/backspike/kernel/_lif{ending}"
    replay = compile_replay(compiler, tmp_path, program_ending)
    for file in (kernels, replay, recording[0]):  # wine needs paths without a drive
        if file.parent != tmp_path:
            shutil.copy(file, tmp_path / file.name)
    run = [found] if emulator else []
    run += [f"./{replay.name}", f"./{kernels.name}", recording[0].name]
    environment = {**os.environ, "WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all"}
    if machine == "linux_aarch64":
        environment["QEMU_LD_PREFIX"] = "/usr/aarch64-linux-gnu"
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" calls: the same bits\n")
