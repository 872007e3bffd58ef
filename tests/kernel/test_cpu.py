"""The C kernel: its formulas against surrogate.py and its results against `eager` and `reference`.

All memory layouts and processor levels are covered. What holds for every backend is tested in
test_backends.py.
"""

import ctypes
import itertools
import logging
import math
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.layouts import LAYOUTS, Own, assert_same
from helpers.neurons import LEARNED, MASKS, RESETS, close, draw, grid, prepare, run
from helpers.norms import make_call
from helpers.paths import ROOT, TESTS
from helpers.surrogates import FAMILIES, with_scale

import backspike as bs
from backspike import ATan, Masked, Parametric, Rectangle, Sigmoid, SuperSpike, Triangle
from backspike.kernel import cpu, ops
from backspike.kernel.cpu import conv, library, norm, pool
from backspike.kernel.mask import dropped_at
from backspike.neuron.lif import compute

SOURCES = sorted(map(str, Path(cpu.__file__).parents[1].joinpath("csrc").glob("*.c")))
pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
SEED = 2**50 + 33


def both(x, v0=None, backends=("cpu", "eager"), **options):
    return [run(backend, x, v0, **options) for backend in backends]


# ----------------------------------------------------------------------------------------- formulas


def kernel_derivative(surrogate, z, **options):
    """h(z) as the kernel computes it: one step without leak and reset path, threshold 1."""
    theta = 1.0
    x = (z + theta).requires_grad_()
    rule = {"tau": math.inf, "decay_input": False, "v_threshold": theta, "reset_gradient": 0.0}
    bs.lif(x, surrogate=surrogate, backend="cpu", **rule, **options).spikes.sum().backward()
    return (x.detach() - theta), x.grad


@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize("surrogate", FAMILIES, ids=lambda s: type(s).__name__)
def test_formulas_match_python(surrogate, scale):
    surrogate = with_scale(surrogate, scale)
    for dtype, tolerance in ((torch.float64, 4e-15), (torch.float32, 2e-6)):
        far = torch.tensor([-1e30, -1e4, -300.0, -40.0, 0.0, 40.0, 300.0, 1e4, 1e30], dtype=dtype)
        z, h = kernel_derivative(
            surrogate, torch.cat([torch.linspace(-5, 5, 4001, dtype=dtype), far]).view(1, -1)
        )
        # tails are compared relative to their size; what underflows in float32 is flushed to zero
        torch.testing.assert_close(
            h, surrogate.derivative(z), rtol=30 * tolerance, atol=tolerance * 1e-6
        )
        assert h.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "surrogate", [Triangle(1.5), ATan(3.0, scale=1.7), Rectangle(0.8), SuperSpike(2.5)], ids=str
)
def test_rational_formulas_match_bit_for_bit(surrogate, dtype):
    z, h = kernel_derivative(surrogate, torch.linspace(-2, 2, 4001, dtype=dtype).view(1, -1))
    assert torch.equal(h, surrogate.derivative(z))


@pytest.mark.parametrize("surrogate", FAMILIES, ids=lambda s: type(s).__name__)
def test_edges_and_nan_match_python(surrogate):
    """Compact supports end at the same float, and NaN is propagated if it is in Python."""
    edges = torch.tensor(FAMILIES[surrogate][2] + (0.0, 0.25), dtype=torch.float64)
    at = torch.cat(
        [edges, torch.nextafter(edges, edges - 1), torch.nextafter(edges, edges + 1)]
    ).view(1, -1)
    z, h = kernel_derivative(surrogate, at)
    assert torch.equal(h == 0, surrogate.derivative(z) == 0)
    _, h = kernel_derivative(surrogate, torch.full((1, 3), math.nan))
    if not isinstance(surrogate, Rectangle | bs.Dspike):
        assert h.isnan().all()


@pytest.mark.parametrize("replace", [None, Rectangle(0.3, 1.5)])
def test_surrogates_are_decoded_from_numbers(replace):
    masked = Masked(Triangle(1.5), replace=replace)
    flags, numbers = map(
        tuple, ops.encode(make_call(torch.zeros(1, 1), rule={"surrogate": masked}))
    )
    assert ops.surrogates(flags, numbers) == [Triangle(1.5), replace]


# ------------------------------------------------------------------------------------- every layout


SHAPE = (3, 4, 5, 6, 7)  # 840 elements per timestep: more than a block


@pytest.mark.parametrize("learned", ["floats", "scalars", "all per channel"])
@pytest.mark.parametrize("mask", ["no mask", "p=0.5", "replace"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_the_memory_layout(layout, mask, learned):
    """x in one layout, gradients and state in another: results are those of contiguous tensors."""
    x, v0, upstream = draw(SHAPE, seed=1)
    base = Parametric(Sigmoid(alpha=3.0)) if learned != "floats" else Sigmoid(alpha=3.0)
    values = {"floats": {}, "scalars": {"tau": 2.3, "v_threshold": 0.9, "width": 0.8}}.get(learned)
    if values is None:
        values = {
            name: np.linspace(low, low + 0.7, 5)
            for name, low in (("tau", 2.1), ("v_threshold", 0.6), ("width", 0.8))
        }
    rule = {"surrogate": MASKS[mask](base), "v_reset": -0.25, "reset_gradient": 0.37}
    options = {
        "rule": rule,
        "learned": {k: torch.tensor(v, dtype=torch.float64) for k, v in values.items()},
        "seed": SEED,
    }
    want = run("reference", x, v0, upstream=upstream, **options)
    for other in ("contiguous", "channels last", layout):
        in_layout = {
            name: LAYOUTS[other](u if name != "c" else u[None]) for name, u in upstream.items()
        }
        in_layout["c"] = in_layout["c"][0]
        got = run(
            "cpu", LAYOUTS[layout](x), LAYOUTS[other](v0[None])[0], upstream=in_layout, **options
        )
        assert_same(got, want, 1e-12)


def test_outputs_have_the_strides_of_the_input():
    x, _, _ = draw(SHAPE, dtype=torch.float32)
    for name in ("contiguous", "channels last", "height and width swapped", "batch last"):
        y = LAYOUTS[name](x).requires_grad_()
        out = bs.lif(y, backend="cpu", record_membrane=True)
        assert out.spikes.stride() == out.membrane.stride() == y.stride()
        assert out.state.stride() == y.stride()[1:]
        assert torch.autograd.grad(out.spikes, y, torch.ones_like(y))[0].stride() == y.stride()


def test_an_input_repeated_over_time_is_not_copied(monkeypatch):
    x = LAYOUTS["channels last"](draw(SHAPE)[0])[:1].expand(SHAPE).requires_grad_()
    upstream = torch.randn(SHAPE[1:], dtype=torch.float64).expand(SHAPE)
    allocated = []
    original = torch.empty_strided
    monkeypatch.setattr(
        torch,
        "empty_strided",
        lambda shape, *a, **k: allocated.append(shape) or original(shape, *a, **k),
    )
    tau = torch.tensor(2.3, requires_grad=True)
    out = bs.lif(x, backend="cpu", tau=tau)
    # spikes, the one state, membrane
    assert [tuple(shape) for shape in allocated] == [SHAPE, (1, *SHAPE[1:]), SHAPE]
    want = torch.autograd.grad(bs.lif(x, backend="reference", tau=tau).spikes, (x, tau), upstream)
    for a, b in zip(torch.autograd.grad(out.spikes, (x, tau), upstream), want):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "shape",
    [
        (4,),
        (4, 3),
        (1, 1),
        (5, 3, 2),
        (2, 1, 1030),
        (2, 1030, 1),
        (3, 7, 600, 3),
        (2, 0, 3),
        (2, 3, 0),
    ],
)
def test_any_shape(shape):
    """One element to more than a block; channels inside, outside and across blocks."""
    x, v0, upstream = draw(shape, seed=2)
    C = shape[2] if len(shape) > 2 else 0
    for per_channel, reset in itertools.product({False, C > 0}, RESETS.values()):
        learned = {"tau": 2.3, "v_threshold": 0.9, "width": 0.8}
        learned = {
            k: torch.full((C,) if per_channel else (), v, dtype=torch.float64)
            for k, v in learned.items()
        }
        rule = {"surrogate": Masked(Parametric(ATan()), p=0.35, rescale=True), "v_reset": reset}
        got, want = both(x, v0, rule=rule, learned=learned, upstream=upstream, seed=SEED)
        assert_same(got, want, 1e-12)


# -------------------------------------------------------------------------------- values and dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("reset", RESETS)
def test_rational_gradients_match_bit_for_bit(dtype, reset):
    x, v0, upstream = draw((6, 3, 5, 67), seed=3, dtype=dtype)
    for rho, mask, temporal in itertools.product((0.0, 0.37, 1.0), MASKS.values(), (True, False)):
        rule = {"tau": 2.3, "v_threshold": 0.9, "v_reset": RESETS[reset], "reset_gradient": rho}
        rule |= {"temporal_gradient": temporal, "surrogate": mask(ATan(alpha=3.0))}
        got, want = both(x, v0, rule=rule, upstream=upstream, seed=SEED)
        assert_same(got, want)


@pytest.mark.parametrize("surrogate", FAMILIES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("learned", LEARNED)
def test_float32_is_accurate(surrogate, learned, tolerance):
    x, v0, upstream = draw((5, 3, 2, 301), seed=4, dtype=torch.float32)
    rule = {
        "surrogate": Parametric(surrogate) if "width" in LEARNED[learned] else surrogate,
        "reset_gradient": 0.37,
    }
    values = {name: torch.tensor(v) for name, v in LEARNED[learned].items()}
    got, want = both(
        x, v0, rule=rule, learned=values, upstream=upstream, backends=("cpu", "reference")
    )
    for name in values:  # sums with cancellation
        assert close(got.pop(name), want.pop(name), size=3000.0, tolerance=tolerance[torch.float32])
    assert_same(got, want, tolerance[torch.float32])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reset", RESETS)
def test_membranes_are_identical_on_all_backends(dtype, reset):
    rule = {"tau": 2.0, "v_threshold": 0.75, "v_reset": -0.25 if RESETS[reset] else RESETS[reset]}
    for x in (grid((16, 5, 301)).to(dtype), draw((16, 5, 301), seed=5, dtype=dtype)[0]):
        results = both(x, rule=rule, backends=("cpu", "eager", "reference"))
        assert_same(results[0], results[1])
        assert_same(results[0], results[2])


def test_bfloat16_gradients_are_rounded_to_nearest_even():
    """A silent neuron with gain 1 passes on its membrane gradients, some of which are ties."""
    gu = torch.tensor(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-9, -1 - 2**-8, math.inf, math.nan, 3e38, 1e-40]
    ).view(1, -1)
    x = torch.zeros(1, 8, dtype=torch.bfloat16, requires_grad=True)
    out = bs.lif(
        x,
        backend="cpu",
        tau=math.inf,
        decay_input=False,
        surrogate=Rectangle(0.1),
        record_membrane=True,
    )
    out.membrane.backward(gu)
    torch.testing.assert_close(x.grad, gu.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_nan_and_infinity_are_propagated():
    x = torch.tensor([math.nan, math.inf, -math.inf, 1e38, 2.0]).expand(4, 5)
    for reset in RESETS.values():
        for a, b in zip(
            *(bs.lif(x, backend=b, v_reset=reset, record_membrane=True) for b in ("cpu", "eager"))
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_an_integrator_has_an_infinite_threshold():
    x, v0, upstream = draw((5, 3, 4), seed=6)
    rows = []
    for backend in ("cpu", "reference"):
        leaf = x.clone().requires_grad_()
        out = bs.Integrator(tau=3.0, backend=backend)(leaf, v0)
        out.membrane.backward(upstream["g"])
        rows.append((out.membrane, out.state, leaf.grad))
    for a, b in zip(*rows):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4), (5, 2, 3, 7, 41), (2, 3, 700)])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_moments_and_their_gradient(shape, reset, layout):
    C = shape[2] if len(shape) > 2 else 1
    r = torch.Generator().manual_seed(7)
    k = torch.rand(2, shape[0], C, generator=r, dtype=torch.float64)
    rows = []
    for backend in ("cpu", "reference"):
        x, v0, upstream = draw(shape, seed=8)
        x = LAYOUTS[layout](x) if len(shape) == 5 else x
        leaves = (
            x.requires_grad_(),
            v0.requires_grad_(),
            torch.tensor(2.3, dtype=torch.float64, requires_grad=True),
        )
        options = {
            "v_threshold": 0.9,
            "v_reset": RESETS[reset],
            "decay_input": True,
            "surrogate": Masked(Sigmoid(), 0.3),
        }
        options |= {
            "reset_gradient": 0.37,
            "temporal_gradient": True,
            "seed": 7,
            "record_moments": True,
        }
        out, moments = compute(prepare(x, v0, tau=leaves[2], **options), backend)
        (
            (k[0] * moments.mean).sum()
            + (k[1] * moments.square).sum()
            + (upstream["g"] * out.spikes).sum()
        ).backward()
        rows.append((moments.mean, moments.square, *(leaf.grad for leaf in leaves)))
        with torch.no_grad():
            _, again = compute(prepare(x, v0, tau=leaves[2], **options), backend)
        assert torch.equal(again.mean, moments.mean)
    for a, b in zip(*rows):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("start", [0, 2**31 - 20, 2**32 - 20, 2**32 + 5, 3 * 2**33 - 7, 2**45 - 20])
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_mask_indices_beyond_32_bits(start, kind):
    """Calls only the masking part of the kernel, because no tensor here can be that large."""
    real = {"f32": torch.float32, "f64": torch.float64}[kind]
    values, order = (
        torch.ones(40, dtype=real),
        torch.arange(40, dtype=torch.int32).flip(0).contiguous(),
    )
    job = library.Job(seed=SEED, limit=2**23)
    pointers = [ctypes.c_void_p(a.data_ptr()) for a in (order, values)]
    getattr(library._c, f"lif_mask_{kind}")(
        ctypes.byref(job), ctypes.c_int64(start), *pointers, None, 40
    )
    dropped = dropped_at(torch.tensor(SEED), start, (40,), torch.tensor(0.5, dtype=torch.float64))
    assert torch.equal(values == 0, dropped.flip(0))


# -------------------------------------------------------------------------------- threads, networks


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_results_do_not_depend_on_the_number_of_threads(layout):
    x, v0, upstream = draw((4, 5, 6, 31, 37), seed=9, dtype=torch.float32)
    rule = {"surrogate": Masked(Parametric(Sigmoid()), p=0.5), "v_reset": None}
    results, moments = [], []
    before = torch.get_num_threads()
    try:
        for threads, channels in itertools.product((1, 2, 3), ((), (6,))):
            torch.set_num_threads(threads)
            learned = {
                name: torch.full(channels, v)
                for name, v in (("tau", 2.3), ("v_threshold", 0.9), ("width", 0.8))
            }
            results.append(
                run(
                    "cpu",
                    LAYOUTS[layout](x),
                    v0,
                    rule=rule,
                    learned=learned,
                    upstream=upstream,
                    seed=SEED,
                )
            )
            options = {
                "tau": 2.3,
                "v_threshold": 0.9,
                "v_reset": 0.0,
                "decay_input": True,
                "surrogate": ATan(),
            }
            call = prepare(
                x, v0, **options, reset_gradient=1.0, temporal_gradient=True, record_moments=True
            )
            moments.append(torch.cat(compute(call, "cpu")[1][:2]))
    finally:
        torch.set_num_threads(before)
    for i in (2, 4):
        assert_same(results[i], results[0])
        assert_same(results[i + 1], results[1])
        assert torch.equal(moments[i], moments[0])
    for name in ("s", "u", "x"):  # one constant or one per channel: the same results
        assert torch.equal(results[0][name], results[1][name])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("surrogate", "options"),
    [
        (ATan(), {}),
        (
            Masked(Parametric(Triangle(alpha=0.8), per_channel=True), p=0.4),
            {"learn": ("tau", "threshold"), "v_reset": None},
        ),
    ],
    ids=["plain", "masked, learned"],
)
def test_gradients_of_a_whole_network(surrogate, options, memory):
    x = grid((4, 3, 2, 8, 8)).requires_grad_()
    rows = []
    for backend in ("cpu", "eager"):
        torch.manual_seed(0)

        def neuron(channels, backend=backend):
            return bs.LIF(
                surrogate=surrogate, v_threshold=0.5, channels=channels, backend=backend, **options
            )

        model = bs.models.convnet(
            "8-12-P-12-P", num_classes=10, in_channels=2, size=8, neuron=neuron
        ).double()
        model = model.to(memory_format=memory)
        y = model(x)
        y.square().mean().backward()
        rows.append([y.detach(), x.grad.clone(), *(p.grad for p in model.parameters())])
        x.grad = None
    for a, b in zip(*rows):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels last", "time last", "every second column"]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_operators_pass_opcheck(layout, dtype):
    """The schema and the fake outputs for torch.compile are correct, including strides."""
    x = LAYOUTS[layout](draw(SHAPE, dtype=dtype)[0])
    call = prepare(
        x,
        None,
        tau=2.0,
        v_threshold=1.0,
        v_reset=None,
        decay_input=True,
        surrogate=Masked(Rectangle()),
        reset_gradient=1.0,
        temporal_gradient=True,
        seed=1,
    )
    constants, rule = ops.constants(call), ops.encode(call)
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    for form, repeats, record in (
        (-1, 1, False),
        (0, 1, True),
        (1, 3, False),
        (2, 1, True),
        (3, 1, False),
        (4, 3, False),
    ):
        frames = x[:1] if repeats > 1 else x
        forward = (
            frames,
            None,
            constants,
            call.seed,
            call.p,
            *rule,
            repeats,
            form,
            [*[record] * 3, False, form != 2],
        )
        torch.library.opcheck(torch.ops.backspike.lif_forward, forward, **checks)
        spikes, _, *others = torch.ops.backspike.lif_forward(*forward)
        if form >= 0:
            # the membrane, or what follows membrane and moments
            saved_u = {0: others[:1], 2: others[2:]}.get(form, others)
            backward = (
                *saved_u[:1],
                *[None] * (2 - len(saved_u[:1])),
                frames,
                constants,
                call.seed,
                call.p,
                spikes,
                None,
                None,
                None,
            )
            backward += (
                spikes.shape,
                spikes.stride()[1:],
                *rule,
                repeats,
                form,
                0 if form == 3 else 2,
                dtype,
                True,
                form != 1,
            )
            torch.library.opcheck(torch.ops.backspike.lif_backward, backward, **checks)


# ------------------------------------------------------------------------------ choice and refusals


def test_refusals_give_a_reason():
    x = torch.rand(3, 2, 4)
    for surrogate in (Own(), Parametric(Own()), Masked(Own()), Masked(ATan(), replace=Own())):
        with pytest.raises(
            bs.Unsupported,
            match="backend 'cpu': it has no formula in C for Own; use backend='auto'",
        ):
            bs.LIF(surrogate=surrogate, backend="cpu")(x)
    with pytest.raises(bs.Unsupported, match="the input is on meta"):
        bs.lif(x.to("meta"), backend="cpu")


def test_auto_logs_a_slower_backend_once(caplog, monkeypatch):
    monkeypatch.setattr(import_module("backspike.kernel.dispatch"), "_announced", set())
    with caplog.at_level(logging.WARNING, logger="backspike"):
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            bs.lif(torch.rand(3, 2, 4).to(dtype))
        assert not caplog.records
        for _ in range(2):
            bs.lif(torch.rand(3, 2, 4), surrogate=Own())
    assert [r.getMessage() for r in caplog.records] == [
        "backspike: using the slower 'eager' backend (cpu: it has no formula in C for Own)"
    ]
    assert bs.backends()[0] == "cpu"
    assert "cpu  the fastest on this machine" in bs.explain(bs.LIF())


# --------------------------------------------------------------------------- processors, sanitizers


LEVEL = """
import json, sys, torch
import backspike as bs
from backspike.kernel.cpu import library
torch.set_num_threads(1)
torch.manual_seed(0)
x = torch.load(sys.argv[1]).requires_grad_()
result = {}
cases = [(bs.ATan(), memory) for memory in ("exact", "8bit", "bfloat16")]
for surrogate, memory in (*cases, (bs.Sigmoid(), "exact")):
    library.STREAM = 0 if memory == "8bit" else 2**24
    options = {"surrogate": bs.Masked(surrogate), "memory": memory, "seed": 5}
    options |= {"tau": 2.7, "v_reset": None}
    out = bs.lif(x, backend="cpu", record_membrane=True, **options)
    out.spikes.backward(torch.arange(x.numel()).view(x.shape).to(x) % 7 - 3)
    result[type(surrogate).__name__ + memory] = out.membrane.detach(), x.grad
    x.grad = None
normed = []
y = torch.randint(-8, 9, (3, 2, 70, 5, 4)) / 4  # statistics without rounding
y = y.flatten(0, 1).contiguous(memory_format=torch.channels_last)
y = y.unflatten(0, (3, 2)).requires_grad_()
for pool in (torch.nn.AvgPool2d(2), torch.nn.MaxPool2d(2)):
    s = bs.block(y, norm=torch.nn.BatchNorm2d(70), neuron=bs.LIF(v_threshold=0.5), pool=pool)
    assert type(s.grad_fn).__name__ == "_NormLIFBackward"
    (gy,) = torch.autograd.grad((s * torch.arange(70).view(-1, 1, 1)).sum(), y)
    normed += [s.detach(), gy]
torch.save((result, normed), sys.argv[2])
print(library._c._name)
"""


def test_all_processor_levels_agree(tmp_path):
    """Builds for processors with narrower registers give the same results."""
    x = draw((5, 3, 301), seed=10, dtype=torch.float32)[0]
    torch.save(x, tmp_path / "x.pt")
    results, names = [], []
    for level in ("default", "avx2", None):
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": level} if level else os.environ
        command = [sys.executable, "-c", LEVEL, str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        names.append(Path(done.stdout.strip()).name.split(".")[0])
        results.append(torch.load(tmp_path / "y.pt"))
    assert names[0] == "_lif"
    assert Path(library._c._name).name.split(".")[0] == names[2]
    want = bs.lif(x, tau=2.7, v_reset=None, record_membrane=True, backend="reference").membrane
    for result, normed in results:
        for family, (membrane, gx) in result.items():
            assert torch.equal(membrane, want)
            if family.startswith("ATan"):
                assert torch.equal(gx, results[0][0][family][1])
            torch.testing.assert_close(gx, results[0][0][family][1], rtol=1e-5, atol=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(normed, results[0][1], strict=True))
        assert all(a.any() for a in normed)


def test_python_and_c_structs_have_the_same_size():
    jobs = {"lif": library.Job, "norm": norm._Job, "pool": pool._Job, "conv": conv._Job}
    for name, job in jobs.items():
        assert getattr(library._c, f"{name}_job_size")() == ctypes.sizeof(job)


SANITIZED = """
import ctypes, sys, torch, pytest
from backspike.kernel.cpu import library
library._c = ctypes.CDLL(sys.argv[1])
wanted = "(cpu or clif or saved or norm or pack or pool or synapse)"
wanted += " and not eager and not reference and not compiled and not level"
wanted += " and not sanitizers and not sources"
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", wanted, *sys.argv[2:]]))
"""


@pytest.mark.slow
def test_kernels_pass_the_sanitizers(tmp_path):
    """The kernel tests pass with AddressSanitizer and UndefinedBehaviorSanitizer in the C code."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs gcc on Linux")
    library, preload = tmp_path / "lif.so", []
    for name in ("libasan.so", "libubsan.so"):
        preload.append(
            subprocess.run(
                [compiler, f"-print-file-name={name}"], capture_output=True, text=True
            ).stdout.strip()
        )
    flags = "-std=gnu11 -g -O1 -fopenmp -ffp-contract=off -fPIC -shared"
    flags += " -fsanitize=address,undefined -fno-sanitize-recover=all"
    subprocess.run([compiler, *flags.split(), *SOURCES, "-o", str(library), "-lm"], check=True)
    environment = {**os.environ, "LD_PRELOAD": ":".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    names = "cpu backends saved kernel_clif norm pack pool conv"
    files = [
        *(str(TESTS / f"kernel/test_{name}.py") for name in names.split()),
        str(TESTS / "layers/test_synapse.py"),
    ]
    command = [sys.executable, "-c", SANITIZED, str(library), *files]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout
