"""BatchNorm, neuron and pool as one operator, against separate ones.

`run_separately` chains torch's batch_norm, the reference neuron and torch's pool; autograd
differentiates it in float64. In every dtype, spikes must match bit for bit with the normalised
current computed as y scale + shift.
"""

import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.layouts import LAYOUTS, Own
from helpers.neurons import LEARNED, MASKS, RESETS, close
from helpers.norms import (
    Case,
    assert_same,
    exact_outputs,
    gradients,
    make_call,
    make_norm,
    normal,
    per_channel,
    run_separately,
    values,
)

import backspike as bs
from backspike import ATan, Masked, Parametric, Sigmoid
from backspike.kernel import norm as fused
from backspike.kernel import norm_ops, ops
from backspike.kernel.cpu import library
from backspike.kernel.norm import Norm, norm_lif

pytestmark = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
SHAPE = (3, 4, 2, 5, 7)  # odd images, more than a block


# ----------------------------------------------------------------------------------------- one case


def check(case, y, v0=None, to_layout=lambda g: g):
    """Compare the fused operator with `run_separately`."""
    assert fused.refuses(make_call(y, v0, case.rule, case.learned), make_norm(y.shape[2])) is None
    want = gradients(run_separately, case, y.contiguous(), v0)
    assert 0 < want["spikes"].mean() < 1, "a case that shows nothing"
    assert_same(gradients(norm_lif, case, y, v0, to_layout), want)


def tensors(kind, C):
    if kind == "all per channel":
        return per_channel(C)
    return {name: torch.tensor(v, dtype=torch.float64) for name, v in LEARNED[kind].items()}


# ---------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("pool", norm_ops.POOLS)
@pytest.mark.parametrize("kind", ["floats", "scalars", "all per channel"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_match_separate_operators(training, reset, kind, pool):
    """Every mask, with partial, full and no gradient through the reset, and none through time."""
    y, v0 = LAYOUTS["channels last"](normal(SHAPE, 7)), normal(SHAPE[1:], 8).mul(0.3)
    for mask, (rho, temporal, decay) in zip(
        MASKS.values(),
        [(0.37, True, True), (0.0, True, False), (1.0, False, True), (1.0, True, True)],
    ):
        base = Parametric(Sigmoid(alpha=3.0)) if kind != "floats" else Sigmoid(alpha=3.0)
        rule = {"v_reset": RESETS[reset], "surrogate": mask(base), "reset_gradient": rho}
        rule |= {"temporal_gradient": temporal, "decay_input": decay}
        check(Case(rule, tensors(kind, SHAPE[2]), training, pool), y, v0)


@pytest.mark.parametrize("pool", norm_ops.POOLS)
@pytest.mark.parametrize("kind", ["floats", "all per channel"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_do_not_depend_on_the_memory_layout(layout, kind, pool):
    """y in one layout and gradients in another; masks depend on the logical index."""
    y, v0 = normal(SHAPE, 9), normal(SHAPE[1:], 10).mul(0.3)
    base = Parametric(ATan(alpha=3.0)) if kind != "floats" else ATan(alpha=3.0)
    case = Case({"surrogate": Masked(base, p=0.5)}, tensors(kind, SHAPE[2]), pool=pool)
    for other in {"contiguous", "channels last", layout}:
        check(case, LAYOUTS[layout](y), LAYOUTS[other](v0[None])[0], LAYOUTS[other])


SHAPES = [
    (1, 40, 1),
    (4, 1, 3, 5),
    (2, 3, 600),
    (3, 2, 1030),
    (2, 1, 130, 3, 5),
    (2, 3, 1, 4, 6),
    (3, 1, 5, 2, 2),
    (1, 1, 2, 33, 31),
    (2, 3, 513, 1, 2),
    (2, 2, 3, 2, 3, 5),
]


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(shape, layout):
    """One timestep, sample or channel; more channels than a block; sizes blocks do not divide."""
    y = normal(shape, 11).add(0.3)
    if layout == "channels last":
        y = y.movedim(2, -1).contiguous().movedim(-1, 2)
    for pool in norm_ops.POOLS if len(shape) == 5 and min(shape[3:]) > 1 else (None,):
        for learned, training in (({}, True), ({}, False), (per_channel(shape[2]), True)):
            surrogate = Masked(Parametric(ATan()) if learned else ATan(), p=0.35, rescale=True)
            check(
                Case({"surrogate": surrogate, "v_threshold": 0.3}, learned, training, pool),
                y,
                normal(shape[1:], 12),
            )


@pytest.mark.parametrize("pool", norm_ops.POOLS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("kind", ["floats", "scalars", "all per channel"])
def test_one_timestep_can_represent_many(kind, layout, pool):
    """The gradient is summed over time; the running variance counts every timestep.

    Also for a single value per channel.
    """
    y = LAYOUTS[layout](normal((1, *SHAPE[1:]), 13))
    base = Parametric(ATan()) if kind != "floats" else ATan()
    for training in (True, False):
        check(
            Case(
                {"surrogate": Masked(base, 0.5)}, tensors(kind, SHAPE[2]), training, pool, repeats=5
            ),
            y,
            normal(SHAPE[1:], 14),
        )
    if pool is None:
        y = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
        assert_same(
            *(
                gradients(run, Case({"v_threshold": 0.5}, {}, repeats=3), y, None)
                for run in (norm_lif, run_separately)
            ),
            1e-6,
        )


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "batch last"])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("pool", norm_ops.POOLS)
def test_moments_of_the_membrane(pool, repeats, layout):
    y = LAYOUTS[layout](normal((1 if repeats > 1 else 3, *SHAPE[1:]), 15))
    for learned in ({}, per_channel(SHAPE[2])):
        rule = {
            "surrogate": Masked(Parametric(ATan()) if learned else ATan(), 0.5),
            "v_reset": None,
        }
        check(Case(rule, learned, pool=pool, repeats=repeats, moments=True), y)


def test_missing_and_frozen_parameters():
    y = normal(SHAPE, 16)
    for training in (True, False):
        check(Case({}, {}, training, affine=False), y)
    for frozen in ("weight", "bias", "y"):
        found = []
        for run in (norm_lif, run_separately):
            norm, leaf = make_norm(SHAPE[2], training=False), y.clone()
            for name, p in (("weight", norm.weight), ("bias", norm.bias), ("y", leaf)):
                p.requires_grad_(name != frozen)
            run(make_call(leaf), norm).spikes.square().sum().backward()
            found.append([p.grad for p in (leaf, norm.weight, norm.bias)])
        for got, want in zip(*found):
            assert (got is None) == (want is None)
            if want is not None:
                torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------ spikes, bit for bit


def grid(shape, seed, dtype):
    """Multiples of 1/4, exact in bfloat16, whose sums and sums of squares are exact in float32."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype) / 4


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("training", [True, False])
def test_spikes_match_bit_for_bit(training, dtype, layout):
    """In training for inputs with exact statistics, in evaluation for any inputs.

    With all kinds of constants, repeated or not.
    """
    T, *step = 3, 2, 40, 5, 3
    norm = make_norm(40, training, dtype=torch.float32 if dtype != torch.float64 else dtype)
    for pool, repeats, learned, reset in itertools.product(
        norm_ops.POOLS, (1, 3), ({}, per_channel(40)), RESETS.values()
    ):
        shape = (1 if repeats > 1 else T, *step)
        y = LAYOUTS[layout](grid(shape, 20, dtype) if training else normal(shape, 21).to(dtype))
        surrogate = Parametric(ATan()) if learned else ATan()
        call = make_call(
            y,
            normal(step, 22),
            {"v_reset": reset, "surrogate": surrogate},
            learned,
            repeats=repeats,
        )
        want, state = exact_outputs(call, norm, pool)
        got = norm_lif(call, norm, pool)
        assert got.spikes.dtype == dtype
        assert torch.equal(got.spikes, want)
        torch.testing.assert_close(
            got.state, state, rtol=0, atol=1e-14 if dtype == torch.float64 else 0
        )
        assert 0 < want.float().mean() < 1


def test_a_membrane_at_the_threshold_fires():
    """Without leak, u = x is exactly theta."""
    norm = Norm(None, None, torch.zeros(1), torch.ones(1), False, 0.1, 0.0)
    y = torch.tensor([0.75, math.nextafter(0.75, 0)], dtype=torch.float64).view(1, 2, 1)
    call = make_call(
        y, rule={"tau": math.inf, "decay_input": False, "v_threshold": 0.75, "v_reset": 0.0}
    )
    assert norm_lif(call, norm).spikes.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("pool", norm_ops.POOLS)
def test_gradients_in_lower_precision(dtype, pool, tolerance):
    """The spikes equal those of float64 for the same input, and the gradients are close."""
    for layout, training in itertools.product(("contiguous", "channels last"), (True, False)):
        y = LAYOUTS[layout](grid(SHAPE, 23, dtype))
        case = Case(
            {"surrogate": Masked(Parametric(ATan()), 0.5)}, per_channel(SHAPE[2]), training, pool
        )
        got, want = (
            gradients(norm_lif, case, y, None),
            gradients(run_separately, case, y.double(), None),
        )
        assert torch.equal(got["spikes"].double(), want["spikes"])
        for name, value in want.items():
            bound = tolerance[dtype if name == "dy" else torch.float32]
            assert close(got[name].double(), value, tolerance=bound), name
        assert got["dy"].dtype == dtype


# --------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_statistics_match_torch(dtype, layout):
    """Also after several calls, for inputs far from zero, where the naive variance would cancel."""
    shape, bound = (4, 3, 70, 9, 8), 1e-12 if dtype == torch.float64 else 5e-7
    for momentum, repeats in ((0.1, 1), (1.0, 1), (0.3, 4)):
        ours, torchs = (
            [torch.zeros(70, dtype=torch.float64), torch.ones(70, dtype=torch.float64)]
            for _ in range(2)
        )
        for seed, mean in enumerate((0.0, 1000.0)):
            y = normal((1 if repeats > 1 else 4, *shape[1:]), seed).add(mean).to(dtype)
            norm = Norm(None, None, *ours, True, momentum, 1e-5)
            norm_lif(make_call(LAYOUTS[layout](y), repeats=repeats), norm)
            full = y.double().expand(4, -1, -1, -1, -1).flatten(0, 1)
            F.batch_norm(full, *torchs, training=True, momentum=momentum)
            torch.testing.assert_close(ours[0], torchs[0], rtol=1e-14, atol=bound)
            torch.testing.assert_close(ours[1], torchs[1], rtol=bound, atol=0.0)
    assert (ours[0] != 0).all()


def test_evaluation_leaves_the_statistics_unchanged():
    y = normal(SHAPE, 24)
    norm = make_norm(SHAPE[2], training=False)
    norm_lif(make_call(y), norm)
    want = make_norm(SHAPE[2])
    assert torch.equal(norm.running_mean, want.running_mean)
    assert torch.equal(norm.running_var, want.running_var)
    without_running = replace(norm, running_mean=None, running_var=None, training=True)
    assert torch.equal(
        norm_lif(make_call(y), without_running).spikes,
        norm_lif(make_call(y), make_norm(SHAPE[2])).spikes,
    )


def test_nan_and_infinity_stay_in_their_channel():
    y = normal(SHAPE, 25)
    want = norm_lif(make_call(y), make_norm(2)).spikes
    for bad in (math.nan, math.inf):
        y[1, 2, 0, 3, 3] = bad
        norm = make_norm(2)
        assert torch.equal(norm_lif(make_call(y), norm).spikes[:, :, 1], want[:, :, 1])
        assert norm.running_var.isfinite().tolist() == [False, True]


def test_a_constant_input_has_zero_variance():
    y = torch.full(SHAPE, 0.1)
    norm = make_norm(2, dtype=torch.float32)
    want = make_norm(2, dtype=torch.float32).running_var * (1 - norm.momentum)
    leaf = y.requires_grad_()
    norm_lif(make_call(leaf), norm).spikes.sum().backward()
    torch.testing.assert_close(norm.running_var, want)
    assert leaf.grad.isfinite().all()


# ----------------------------------------------------------------------- threads, memory, operators


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_results_do_not_depend_on_the_number_of_threads(layout, monkeypatch):
    y = LAYOUTS[layout](normal((4, 5, 6, 21, 22), 26).float())
    before = torch.get_num_threads()
    for pool, learned, streams in itertools.product(
        norm_ops.POOLS, ({}, per_channel(6)), (1, 2**24)
    ):
        monkeypatch.setattr(library, "STREAM", streams)
        case, results = (
            Case(
                {"surrogate": Masked(Parametric(ATan()) if learned else ATan())},
                learned,
                True,
                pool,
            ),
            [],
        )
        try:
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                results.append(gradients(norm_lif, case, y, None))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            assert all(torch.equal(other[name], value) for name, value in results[0].items())


@pytest.mark.parametrize("pool", norm_ops.POOLS)
def test_streaming_stores_give_identical_results(pool, monkeypatch):
    """With pieces that do not start or end at cache lines."""
    for dtype, shape in itertools.product(
        (torch.float32, torch.bfloat16), (SHAPE, (2, 3, 37, 5, 5))
    ):
        y, results = LAYOUTS["channels last"](normal(shape, 27).to(dtype)), []
        for learned in ({}, per_channel(shape[2])):
            case = Case(
                {"surrogate": Masked(Parametric(ATan()) if learned else ATan())},
                learned,
                True,
                pool,
            )
            for bytes_ in (1, 2**24):
                monkeypatch.setattr(library, "STREAM", bytes_)
                results.append(gradients(norm_lif, case, y, None))
            assert all(torch.equal(results[-1][name], value) for name, value in results[-2].items())


def test_only_input_constants_and_seed_are_saved():
    y = LAYOUTS["channels last"](normal(SHAPE, 28)).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        for pool, memory in itertools.product(norm_ops.POOLS, bs.kernel.MEMORIES):
            surrogate = bs.Rectangle() if memory == "1bit" else Masked(ATan())
            rule = {"memory": memory, "surrogate": surrogate, "v_reset": None}
            norm_lif(make_call(y, rule=rule), make_norm(SHAPE[2]), pool)
    assert {t.data_ptr() for t in saved if t.numel() > 50} == {y.data_ptr()}


def test_a_retained_graph_and_a_missing_state():
    y = normal(SHAPE, 29).requires_grad_()
    result = norm_lif(make_call(y), make_norm(SHAPE[2]), want_state=False)
    assert result.state.numel() == 0
    want = torch.autograd.grad(norm_lif(make_call(y), make_norm(SHAPE[2])).spikes.sum(), y)[0]
    for loss in (result.spikes.sum(), result.spikes.sum() + result.state.sum()):
        assert torch.equal(torch.autograd.grad(loss, y, retain_graph=True)[0], want)
    with pytest.raises(
        RuntimeError, match=r"double backward .* is not defined; use create_graph=False"
    ):
        torch.autograd.grad(result.spikes.sum(), y, create_graph=True)
    state = norm_lif(make_call(y), make_norm(SHAPE[2])).state  # the spikes get no gradient
    want = torch.autograd.grad(run_separately(make_call(y), make_norm(SHAPE[2])).state.sum(), y)[0]
    torch.testing.assert_close(torch.autograd.grad(state.sum(), y)[0], want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels last", "batch last", "every second column"]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_operators_pass_opcheck(layout, dtype):
    """The schema and the fake outputs for torch.compile are correct, including strides."""
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    norm = make_norm(SHAPE[2], dtype=torch.float32)
    for pool, repeats, state, moments in (
        (0, 1, True, True),
        (1, 1, False, False),
        (2, 3, True, False),
    ):
        pool = pool if layout == "channels last" else 0
        y = LAYOUTS[layout](normal((1 if repeats > 1 else SHAPE[0], *SHAPE[1:]), 30).to(dtype))
        call = make_call(y, rule={"surrogate": Masked(ATan())}, repeats=repeats)
        constants, rule = ops.constants(call), ops.encode(call)
        add = None if pool or repeats > 1 else normal(y.shape, 38).to(dtype)
        others = (y, None, norm.weight, norm.bias, None, None, add)
        forward = (*others, constants, *rule, norm.eps, pool, repeats, state, moments, False)
        torch.library.opcheck(torch.ops.backspike.norm_lif_forward, forward, **checks)
        spikes, _, _, rows, _ = torch.ops.backspike.norm_lif_forward(*forward)
        for v0 in (None, normal(SHAPE[1:], 31).float()):
            backward = (
                y,
                v0,
                rows,
                constants,
                call.seed,
                call.p,
                spikes,
                None,
                None,
                *rule,
                True,
                pool,
                repeats,
                0,
                v0 is not None,
            )
            torch.library.opcheck(torch.ops.backspike.norm_lif_backward, backward, **checks)


# -------------------------------------------------------------------- one after the other, refusals


REASONS = {
    "reference": ({}, {}, None),
    "eager": ({}, {}, None),
    "no formula": (
        {"surrogate": Own()},
        {},
        "backend 'eager' runs them one after the other (cpu: it has no formula in C for Own)",
    ),
    "membrane": (
        {},
        {"membrane": True},
        "the membrane is recorded, which one operator does not store",
    ),
    "active": ({}, {"active": True}, "it is recorded where the surrogate is active"),
}


@pytest.mark.parametrize("pool", norm_ops.POOLS)
@pytest.mark.parametrize("name", REASONS)
@pytest.mark.parametrize("repeats", [1, 3])
def test_separate_operators_match(repeats, name, pool):
    """Requested by backend, or because one operator does not support it: results are the same."""
    rule, others, reason = REASONS[name]
    backend = "auto" if reason else name
    y = LAYOUTS["channels last"](normal((1 if repeats > 1 else 3, *SHAPE[1:]), 32))

    def parts(call, norm, pool):
        call = replace(call, record=call.record._replace(**others))
        assert fused.refuses(call, norm) == reason
        return norm_lif(call, norm, pool, backend)

    for training in (True, False):
        case = Case(rule, {}, training, pool, repeats)
        assert_same(
            gradients(parts, case, y, normal(SHAPE[1:], 33)),
            gradients(run_separately, case, y, normal(SHAPE[1:], 33)),
        )


def test_currents_are_not_rounded_to_16_bits():
    """In bfloat16, one operator and separate ones give the same spikes."""
    y, norm = (
        normal((3, 4, 40, 5, 7), 34).bfloat16(),
        make_norm(40, training=False, dtype=torch.float32),
    )
    for pool in norm_ops.POOLS:
        one, parts = (
            norm_lif(make_call(y), norm, pool, backend).spikes for backend in ("auto", "reference")
        )
        assert torch.equal(one, parts)


@pytest.mark.parametrize("repeats", [1, 3])
def test_empty_batch(repeats):
    """As in torch, the statistics do not change."""
    norm, y = make_norm(2), torch.zeros(1 if repeats > 1 else 3, 0, 2, 4, 4, requires_grad=True)
    result = norm_lif(make_call(y, repeats=repeats), norm, "max")
    assert result.spikes.shape == (3, 0, 2, 2, 2)
    result.spikes.sum().backward()
    assert y.grad.shape == y.shape
    assert torch.equal(norm.running_mean, make_norm(2).running_mean)
    assert torch.equal(norm.running_var, make_norm(2).running_var)


def test_invalid_arguments():
    y = normal(SHAPE, 35)
    norm = make_norm(2)
    for y_given, arguments, message in (
        (
            y[:, :, 0, 0, 0],
            (norm,),
            r"BatchNorm needs an input \[T, B, C, ...\], got shape \[3, 4\]",
        ),
        (y, (make_norm(3),), r"weight of BatchNorm must be \[C\] with C = 2, got shape \[3\]"),
        (
            y,
            (replace(norm, running_var=values(1, 0)),),
            r"running_var of BatchNorm must be \[C\] with C = 2, got shape \[1\]",
        ),
        (
            y,
            (replace(norm, running_var=None, training=False),),
            "without running statistics needs training=True",
        ),
        (
            y[:1, :1, :, 0, 0],
            (norm,),
            r"more than one value per channel in training, got shape \[1, 1, 2\]",
        ),
        (y, (norm, "min"), "pool must be None, 'avg' or 'max', got 'min'"),
        (
            y[..., 0],
            (norm, "max"),
            r"images of at least 2x2, \[T, B, C, H, W\], got shape \[3, 4, 2, 5\]",
        ),
        (
            y[..., :1],
            (norm, "avg"),
            r"images of at least 2x2, \[T, B, C, H, W\], got shape \[3, 4, 2, 5, 1\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            norm_lif(make_call(y_given), *arguments)
