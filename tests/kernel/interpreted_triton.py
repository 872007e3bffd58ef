"""The Triton kernels in Triton's interpreter, which runs them on the CPU with numpy.

test_triton.py runs this file with TRITON_INTERPRET=1 in a separate process. The interpreter is
slow, so only a sample of the combinations is tested. The tests that all backends share take longer:
`TRITON_INTERPRET=1 pytest tests/kernel/test_backends.py tests/kernel/test_saved.py -k triton`.
"""

import itertools
import math
import random
from importlib import import_module

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from helpers.layouts import Own, assert_same
from helpers.masks import is_dropped
from helpers.neurons import (
    LEARNED,
    MASKS,
    RESETS,
    SHAPE,
    check_case,
    close,
    draw,
    grid,
    prepare,
    run,
)
from helpers.saved import channels_last, flags, membranes
from helpers.surrogates import FAMILIES, with_scale

import backspike as bs
from backspike import ATan, Masked, Parametric, Rectangle, Sigmoid, Triangle
from backspike.kernel import ops, saved
from backspike.kernel.mask import dropped_at
from backspike.kernel.pack import pack
from backspike.kernel.triton import lif as kernels
from backspike.kernel.triton import step
from backspike.neuron.lif import compute

SEED = 2**50 + 33
SEED_OF_CASES = 2**41 + 17  # the seed of check_case
STEP = (3, 2, 5, 3, 4)  # 120 elements per timestep
CONSTANTS = {"tau": 2.3, "v_threshold": 0.9, "width": 0.8}


def slow_after_first(*values):
    """Values for parametrize, of which all but the first are marked slow."""
    return [values[0], *(pytest.param(value, marks=pytest.mark.slow) for value in values[1:])]


def both(x, v0=None, backends=("triton", "reference"), **options):
    return [run(backend, x, v0, **options) for backend in backends]


# ----------------------------------------------------------------------------------- every gradient

COMBINATIONS = list(
    itertools.product(
        RESETS.values(), (True, False), (0.0, 0.37, 1.0), (True, False), FAMILIES, MASKS, LEARNED
    )
)


@pytest.mark.parametrize("part", slow_after_first(*range(4)))
def test_backward_matches_numpy(part):
    """24 of the 4,608 combinations of test_backends.py, with every value of each option."""
    chosen = random.Random(3).sample(COMBINATIONS, 24)
    for i, values in enumerate(zip(*chosen)):
        assert set(values) == {c[i] for c in COMBINATIONS}
    x, v0, upstream = draw()
    masks = {
        p: np.array([is_dropped(SEED_OF_CASES, i, p) for i in range(x.numel())]).reshape(SHAPE)
        for p in (0.5, 0.35)
    }
    bad = {}
    for case in chosen[part::4]:
        if found := check_case(x, v0, upstream, *case, masks, backends=("triton",)):
            bad[case] = found
    assert not bad


@pytest.mark.parametrize("scale", slow_after_first(1.7, 1.0))
@pytest.mark.parametrize("surrogate", FAMILIES, ids=lambda s: type(s).__name__)
def test_formulas_match_python(surrogate, scale):
    """h(z) as dL/dx of one timestep without leak and reset; rational formulas match exactly."""
    surrogate = with_scale(surrogate, scale)
    for dtype, tolerance in ((torch.float64, 4e-15), (torch.float32, 2e-6)):
        far = torch.tensor([-1e30, -1e4, -300.0, -40.0, 0.0, 40.0, 300.0, 1e4, 1e30], dtype=dtype)
        x = (
            torch.cat([torch.linspace(-5, 5, 800, dtype=dtype), far]).view(1, -1) + 1.0
        ).requires_grad_()
        rule = {"tau": math.inf, "decay_input": False, "reset_gradient": 0.0}
        bs.lif(x, surrogate=surrogate, backend="triton", **rule).spikes.sum().backward()
        want = surrogate.derivative(x.detach() - 1.0)
        if isinstance(surrogate, Triangle | ATan | Rectangle | bs.SuperSpike):
            assert torch.equal(x.grad, want)
        torch.testing.assert_close(x.grad, want, rtol=30 * tolerance, atol=tolerance * 1e-6)


# ------------------------------------------------------------------------------------- bits, dtypes


@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
@pytest.mark.parametrize("decay_input", slow_after_first(True, False))
def test_spikes_and_membranes_equal_the_reference(v_reset, decay_input):
    """On a grid of 1/64, which has ties with the threshold, and for arbitrary values."""
    rule = {
        "v_threshold": 0.75,
        "v_reset": v_reset,
        "decay_input": decay_input,
        "record_membrane": True,
    }
    for x, tau in (
        (grid((16, 3, 101)).float(), 2.0),
        (draw((6, 3, 101), dtype=torch.float32)[0], 2.7),
    ):
        want = bs.lif(x, tau=tau, backend="reference", **rule)
        assert tau != 2.0 or (want.membrane == 0.75).any()
        for got, other in zip(bs.lif(x, tau=tau, backend="triton", **rule), want):
            assert torch.equal(got, other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(dtype, tolerance):
    x, v0, upstream = draw((4, 3, 5), seed=8, dtype=dtype)
    rule = {"surrogate": Masked(Sigmoid(alpha=3.0), p=0.4), "v_reset": None, "reset_gradient": 0.37}
    learned = {"v_threshold": torch.tensor(0.9)}
    got, want = both(x, v0, rule=rule, learned=learned, upstream=upstream, seed=SEED)
    assert {k: got[k].dtype for k in got} == {k: want[k].dtype for k in want}
    assert_same(got, want, tolerance[dtype])


def test_gradients_are_rounded_to_nearest_even():
    gu = torch.tensor(
        [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-9, -1 - 2**-8, math.inf, math.nan, 3e38, 1e-40]
    ).view(1, -1)
    x = torch.zeros(1, 8, dtype=torch.bfloat16, requires_grad=True)
    out = bs.lif(
        x,
        backend="triton",
        tau=math.inf,
        decay_input=False,
        surrogate=Rectangle(0.1),
        record_membrane=True,
    )
    out.membrane.backward(gu)
    torch.testing.assert_close(x.grad, gu.bfloat16(), rtol=0, atol=0, equal_nan=True)


def test_nan_and_infinity_are_propagated():
    x = torch.tensor([math.nan, math.inf, -math.inf, 1e38, 2.0]).expand(2, 5)
    for reset in RESETS.values():
        for a, b in zip(
            *(
                bs.lif(x, backend=b, v_reset=reset, record_membrane=True)
                for b in ("triton", "eager")
            )
        ):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        spikes = bs.lif(x, backend="triton", v_reset=reset).spikes
        assert spikes.isnan()[0].tolist() == [True, True, True, False, False]


# ----------------------------------------------------------------------------------- sizes, layouts


@pytest.mark.parametrize(
    ("shape", "change"),
    [
        ((1, 1, 1), {}),
        ((1, 5, 3, 2), {"v_reset": None}),
        ((2, 3, 1031), {"v_reset": -0.25, "decay_input": False}),
        ((3, 4), {"temporal_gradient": False, "surrogate": Masked(ATan(), p=0.5)}),
        ((3,), {}),
        ((3, 0, 4), {}),
    ],
    ids=str,
)
def test_unusual_shapes(shape, change, tolerance):
    x, v0, upstream = draw(shape, seed=2, dtype=torch.float32)
    rule = {"tau": 2.3, "v_threshold": 0.9, "surrogate": ATan(alpha=3.0)} | change
    learned = {"v_threshold": torch.tensor(0.9), "tau": torch.tensor(2.3)}
    got, want = both(x, v0, rule=rule, learned=learned, upstream=upstream, seed=SEED)
    for name in learned:
        assert close(
            got.pop(name),
            want.pop(name),
            size=max(x.numel(), 1),
            tolerance=tolerance[torch.float32],
        )
    assert_same(got, want, tolerance[torch.float32])


LAYOUTS = {
    "channels last": channels_last,
    "height and width swapped": lambda x: x.transpose(3, 4).contiguous().transpose(3, 4),
    "time last": lambda x: x.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3),
    "every second column": lambda x: x.repeat_interleave(2, 4)[..., ::2],
    "stride 0 over T": lambda x: x[:1].expand(x.shape),
}


@pytest.mark.parametrize("learned", slow_after_first("all per channel", "scalars"))
@pytest.mark.parametrize("layout", slow_after_first(*LAYOUTS))
def test_results_do_not_depend_on_the_memory_layout(layout, learned):
    """All inputs in this layout: values and mask are those of a contiguous call."""
    x, v0, upstream = draw(STEP, seed=1)
    x = LAYOUTS[layout](x)
    values = {
        k: torch.tensor(v if learned == "scalars" else np.linspace(v, v + 0.7, 5)).double()
        for k, v in CONSTANTS.items()
    }
    rule = {
        "surrogate": Masked(Parametric(Sigmoid(alpha=3.0)), p=0.5),
        "v_reset": -0.25,
        "reset_gradient": 0.37,
    }
    options = {"rule": rule, "learned": values, "seed": SEED}
    in_layout = {
        name: LAYOUTS[layout](u if name != "c" else u[None].expand(STEP))
        for name, u in upstream.items()
    }
    in_layout["c"] = in_layout["c"][0]
    got = run("triton", x, LAYOUTS[layout](v0.expand(STEP))[0], upstream=in_layout, **options)
    plain = {name: u.contiguous() for name, u in in_layout.items()}
    assert_same(got, run("reference", x.contiguous(), v0, upstream=plain, **options), 1e-12)


def test_outputs_have_the_strides_of_the_input():
    for name in ("channels last", "height and width swapped"):
        y = LAYOUTS[name](draw(STEP, dtype=torch.float32)[0]).requires_grad_()
        out = bs.lif(y, backend="triton", record_membrane=True)
        assert out.spikes.stride() == out.membrane.stride() == y.stride()
        assert torch.autograd.grad(out.spikes, y, torch.ones_like(y))[0].stride() == y.stride()


@pytest.mark.parametrize("to_layout", slow_after_first(channels_last, torch.clone))
def test_partly_filled_blocks_and_tiles(to_layout, monkeypatch, tolerance):
    """Several blocks, also in tiles of rows and channels; every call gives identical results."""
    monkeypatch.setattr(kernels, "_BLOCK", 64)
    monkeypatch.setattr(kernels, "_SMALL_BLOCK", 64)
    x, v0, upstream = draw(STEP, seed=4, dtype=torch.float32)
    rule = {"surrogate": Masked(Parametric(Sigmoid(alpha=3.0)), p=0.5)}
    for channels in ((), (5,)):
        learned = {name: torch.full(channels, v) for name, v in CONSTANTS.items()}
        inputs = {"rule": rule, "learned": learned, "upstream": upstream, "seed": SEED}
        got, again, want = (
            run(b, to_layout(x), v0, **inputs) for b in ("triton", "triton", "reference")
        )
        assert_same(again, got)
        for name in learned:
            assert close(
                got.pop(name), want.pop(name), size=300.0, tolerance=tolerance[torch.float32]
            )
        assert_same(got, want, tolerance[torch.float32])


@pytest.mark.parametrize("to_layout", [torch.clone, channels_last])
def test_spikes_are_also_returned_as_bits(to_layout):
    """In memory order, as pack.c packs them; unpacking restores the spikes."""
    x = to_layout(draw((3, 2, 4, 3, 7), seed=5, dtype=torch.float32)[0]).requires_grad_()
    rule = {
        "tau": 2.0,
        "v_threshold": 0.4,
        "v_reset": 0.0,
        "decay_input": True,
        "surrogate": ATan(),
        "record_bits": True,
    }
    rule |= {"reset_gradient": 0.0, "temporal_gradient": True}
    result = bs.kernel.dispatch("triton", prepare(x, None, **rule))
    spikes = result.spikes.detach()
    assert 0 < spikes.mean() < 1
    assert torch.equal(result.bits, pack(spikes).codes)
    again = torch.empty_like(spikes)
    kernels.unpack(result.bits, again)
    assert torch.equal(again, spikes)
    # 126 elements do not fill whole bytes
    assert bs.kernel.dispatch("triton", prepare(x[:, :, :3], None, **rule)).bits is None
    with torch.no_grad():
        assert torch.equal(bs.kernel.dispatch("triton", prepare(x, None, **rule)).bits, result.bits)


@pytest.mark.parametrize("memory", slow_after_first("8bit", "recompute", "exact"))
def test_one_timestep_can_represent_many(memory):
    x, v0, upstream = draw(STEP, seed=3)
    learned = {"v_threshold": torch.tensor(0.9, dtype=torch.float64)}
    if memory == "recompute":
        learned["tau"] = torch.tensor(2.3, dtype=torch.float64)
    inputs = {"learned": learned, "upstream": upstream, "seed": SEED}
    rule = {"surrogate": Masked(ATan(alpha=3.0), p=0.4), "memory": memory, "repeats": 3}
    got, want = both(channels_last(x[:1]), v0, rule=rule, backends=("triton", "eager"), **inputs)
    assert got["x"].shape == (1, *STEP[1:])
    assert_same(got, want, 1e-12)


def test_the_gradient_of_a_repeated_input_is_rounded_once():
    x, _, upstream = draw((5, 3, 20), dtype=torch.bfloat16)
    rule = {"surrogate": ATan(alpha=3.0), "repeats": 5}
    got = run("triton", x[:1], rule=rule, upstream=upstream)["x"]
    want = run(
        "triton", x[:1].float(), rule=rule, upstream={k: u.float() for k, u in upstream.items()}
    )["x"]
    assert torch.equal(got, want.bfloat16())


# ----------------------------------------------------------------------------------------- the mask


@triton.jit
def _dropped_kernel(p_seed, p_p, p_out, start, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    dropped = step.dropped(i.to(tl.int64) + start, tl.load(p_seed), step.drop_limit(tl.load(p_p)))
    tl.store(p_out + i, dropped.to(tl.int8))


@pytest.mark.parametrize("p", slow_after_first(0.37, 0.0, 0.5, 1.0))
def test_mask_equals_bs_dropped(p):
    """Including indices beyond 2^32, which no tensor here can have."""
    p, out = torch.tensor(p, dtype=torch.float64), torch.empty(64, dtype=torch.int8)
    for seed, start in itertools.product(
        (0, 3, 2**40 + 11, 2**63 - 1), (0, 2**31 - 20, 2**32 - 20, 2**45 - 20)
    ):
        seed = torch.tensor(seed)
        with np.errstate(all="ignore"):
            _dropped_kernel[(1,)](seed, p, out, start, BLOCK=64)
        assert torch.equal(out.bool(), dropped_at(seed, start, (64,), p))


def test_exactly_the_elements_of_bs_dropped_are_dropped():
    """Without temporal gradient dL/dx = gain h g is zero exactly where elements are dropped.

    The probability can be a tensor.
    """
    x = draw((3, 4, 101), seed=15)[0].requires_grad_()
    rule = {
        "surrogate": Masked(ATan(), p=0.9),
        "mask_p": torch.tensor(0.3),
        "seed": SEED,
        "temporal_gradient": False,
    }
    bs.lif(x, backend="triton", **rule).spikes.sum().backward()
    assert torch.equal(x.grad == 0, bs.dropped(SEED, x.shape, torch.tensor(0.3)))


# ------------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("width", [None, 0.7])
@pytest.mark.parametrize("memory", saved.ROUNDED)
@pytest.mark.parametrize("base", [ATan(alpha=3.0), Triangle(alpha=0.5)], ids=str)
def test_codes_equal_those_in_torch(memory, width, base):
    for dtype in (torch.float32, torch.float64):
        x, w = membranes(dtype), None if width is None else torch.tensor(width, dtype=dtype)
        surrogate = base if width is None else Parametric(base)
        rule = {
            "tau": math.inf,
            "decay_input": False,
            "v_threshold": 1.0,
            "v_reset": 0.0,
            "surrogate": surrogate,
        }
        rule |= {"reset_gradient": 1.0, "temporal_gradient": True, "record_membrane": True}
        call = prepare(x, None, width=w, memory=memory, **rule)
        inputs = ops.constants(call), *ops.encode(call), ops.SAVED_FORMS.index(memory)
        _, _, u, _, code, *_ = ops.forward("triton_lif", call, *inputs)
        want = saved.encode(memory, u, 1.0, w, saved.eight_bits(base))
        torch.testing.assert_close(code, want, rtol=0, atol=0, equal_nan=True)
        assert memory == "8bit" or torch.equal(code.signbit(), want.signbit())


@pytest.mark.parametrize("mask", slow_after_first("replace", "no mask"))
@pytest.mark.parametrize("memory", slow_after_first("bfloat16", "8bit", "recompute"))
def test_gradients_from_codes_match_torch(memory, mask):
    """Including those of a width and a threshold per channel, and of tau where it is supported."""
    x, v0, upstream = draw(STEP)
    names = ("v_threshold", "width") if memory == "8bit" else tuple(CONSTANTS)
    learned = {n: torch.full((5,), CONSTANTS[n], dtype=torch.float64) for n in names}
    rule = {
        "v_reset": None if mask == "no mask" else -0.3,
        "memory": memory,
        "reset_gradient": 0.37,
    }
    rule |= {"surrogate": MASKS[mask](Parametric(ATan(alpha=3.0)))}
    inputs = {"rule": rule, "learned": learned, "upstream": upstream, "seed": SEED}
    got, want = both(x, v0, backends=("triton", "eager"), **inputs)
    assert_same(got, want, 1e-11)


@pytest.mark.parametrize("mask", slow_after_first("rescale", "no mask"))
@pytest.mark.parametrize("memory", ["1bit", "recompute"])
def test_exact_memories_give_identical_results(memory, mask):
    for dtype, temporal in ((torch.float64, True), (torch.bfloat16, False)):
        # 525 elements per timestep: not a multiple of 8
        x, v0, upstream = draw((3, 3, 5, 5, 7), dtype=dtype)
        rule = {
            "surrogate": MASKS[mask](Rectangle(0.7, scale=1.3)),
            "v_reset": None,
            "temporal_gradient": temporal,
        }
        inputs = {"upstream": upstream, "seed": SEED}
        want = run("triton", channels_last(x), v0, rule=rule, **inputs)
        assert_same(
            run("triton", channels_last(x), v0, rule=rule | {"memory": memory}, **inputs), want
        )
        assert want["x"].count_nonzero() > 100


# ------------------------------------------------------------------------ what the seam asks beside


@pytest.mark.parametrize("to_layout", slow_after_first(channels_last, torch.clone))
def test_moments_and_their_gradient(to_layout):
    k = torch.rand(2, 3, 5, dtype=torch.float64)
    rows = []
    for backend in ("triton", "reference"):
        x, v0, upstream = draw(STEP, seed=8)
        leaves = (
            to_layout(x).requires_grad_(),
            v0.requires_grad_(),
            torch.tensor(2.3, dtype=torch.float64, requires_grad=True),
        )
        options = {
            "v_threshold": 0.9,
            "v_reset": None,
            "decay_input": True,
            "surrogate": Masked(Sigmoid(), 0.3),
        }
        options |= {
            "reset_gradient": 0.37,
            "temporal_gradient": True,
            "seed": 7,
            "record_moments": True,
        }
        out, moments = compute(prepare(leaves[0], v0, tau=leaves[2], **options), backend)
        (
            (k[0] * moments.mean).sum()
            + (k[1] * moments.square).sum()
            + (upstream["g"] * out.spikes).sum()
        ).backward()
        rows.append((moments.mean, moments.square, *(leaf.grad for leaf in leaves)))
    for a, b in zip(*rows):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("memory", slow_after_first("8bit", "exact", "bfloat16", "1bit"))
def test_active_bits_mark_nonzero_h(memory):
    x = draw((2, 3, 5, 7), seed=4)[0].requires_grad_()
    rule = {
        "tau": 2.3,
        "v_threshold": 0.9,
        "v_reset": None,
        "decay_input": True,
        "reset_gradient": 1.0,
        "seed": SEED,
    }
    rule |= {
        "temporal_gradient": False,
        "surrogate": Masked(Rectangle(), p=0.3),
        "memory": memory,
        "record_active": True,
    }
    result = bs.kernel.dispatch("triton", prepare(x, None, **rule))
    result.spikes.sum().backward()
    assert torch.equal(flags(result.active, x.shape), x.grad != 0)
    assert bs.kernel.dispatch("triton", prepare(x.detach(), None, **rule)).active is None


def test_an_integrator_has_an_infinite_threshold():
    x, v0, upstream = draw((3, 3, 4), seed=6)
    rows = []
    for backend in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        out = bs.Integrator(tau=3.0, backend=backend)(leaf, v0)
        out.membrane.backward(upstream["g"])
        rows.append((out.membrane, out.state, leaf.grad))
    for a, b in zip(*rows):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


def test_no_grad_saves_nothing_and_double_backward_is_refused():
    x = torch.rand(2, 2, 4, requires_grad=True)
    out = bs.lif(x, backend="triton")
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(out.spikes.sum(), x, create_graph=True)
    with torch.no_grad():
        assert not bs.lif(x, backend="triton").spikes.requires_grad


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_layer_matches_eager():
    """Without a graph break, and with identical results."""
    torch.manual_seed(0)
    layer = bs.LIF(
        surrogate=Masked(Parametric(ATan()), p=0.4), learn=("tau", "threshold"), backend="triton"
    )
    rows = []
    torch._dynamo.reset()
    for f in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(1)
        x = draw((3, 2, 7), dtype=torch.float32)[0].requires_grad_()
        f(x).square().sum().backward()
        rows.append([x.grad, *(p.grad.clone() for p in layer.parameters())])
        layer.zero_grad()
    for a, b in zip(*rows):
        assert a.any()
        assert torch.equal(a, b)


@pytest.mark.slow
def test_operators_pass_opcheck():
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    for to_layout, dtype in ((torch.clone, torch.float16), (channels_last, torch.float32)):
        x = to_layout(draw((3, 2, 3, 2, 2), dtype=dtype)[0])
        surrogate, rule = (
            Masked(Rectangle()),
            {"reset_gradient": 1.0, "temporal_gradient": True, "decay_input": True},
        )
        call = prepare(
            x, None, tau=2.0, v_threshold=1.0, v_reset=None, surrogate=surrogate, seed=1, **rule
        )
        constants, encoded = ops.constants(call), ops.encode(call)
        for form, repeats, record in ((0, 1, True), (1, 3, False), (3, 1, False), (4, 3, False)):
            frames = x[:1] if repeats > 1 else x
            records = [*[record] * 3, not record, form != 3]
            forward = (
                frames,
                None,
                constants,
                call.seed,
                call.p,
                *encoded,
                repeats,
                form,
                records,
            )
            torch.library.opcheck(torch.ops.backspike.triton_lif_forward, forward, **checks)
            spikes, _, *others = torch.ops.backspike.triton_lif_forward(*forward)
            others = others if record else others[:-1]  # the bits
            saved_u = (*others[:1], *[None] * (2 - len(others[:1])))
            inputs = (*saved_u, frames, constants, call.seed, call.p, spikes, None, None, None)
            shape, strides, learns = spikes.shape, spikes.stride()[1:], 0 if form == 3 else 2
            inputs += (shape, strides, *encoded, repeats, form, learns, dtype, True, form != 1)
            torch.library.opcheck(torch.ops.backspike.triton_lif_backward, inputs, **checks)


# ------------------------------------------------------------------------------ choice and refusals


def test_the_interpreter_is_used_only_if_requested_by_name():
    assert (
        bs.backends()[:2] == ("cpu", "triton")
        if "cpu" in bs.backends()
        else bs.backends()[0] == "triton"
    )
    assert "triton  requested" in bs.explain(bs.LIF(backend="triton"))
    assert bs.explain(bs.LIF()).split()[2] != "triton"


def test_refusals_give_a_reason():
    x = torch.rand(3, 2, 4)
    for surrogate in (Own(), Masked(ATan(), replace=Own())):
        with pytest.raises(
            bs.Unsupported,
            match="backend 'triton': it has no formula in Triton for Own; use backend='auto'",
        ):
            bs.LIF(surrogate=surrogate, backend="triton")(x)
    with pytest.raises(
        bs.Unsupported, match="no kernel for the complementary neuron; use backend='auto'"
    ):
        bs.CLIF(backend="triton")(x)
    with pytest.raises(bs.Unsupported, match="no kernel for the adaptive neuron"):
        bs.AdaptiveLIF(backend="triton")(x)
    with pytest.raises(bs.Unsupported, match="interpreter, on the CPU, but the input is on meta"):
        bs.lif(x.to("meta"), backend="triton")


class Broken:
    def __getitem__(self, grid):
        raise triton.runtime.errors.OutOfResources(300000, 232448, "shared memory")


@pytest.fixture
def preferred(monkeypatch):
    """Triton's backend in the place of the fastest one on a CPU; nothing is broken or said yet."""
    dispatch = import_module("backspike.kernel.dispatch")
    backends = {**dispatch._BACKENDS, "cpu": dispatch._BACKENDS["triton"]}
    monkeypatch.setattr(dispatch, "_BACKENDS", backends)
    monkeypatch.setattr(dispatch, "_announced", set())
    monkeypatch.setattr(kernels, "_broken", [])


def test_a_kernel_that_does_not_compile_on_first_use_is_replaced_by_eager_with_one_word(
    preferred, monkeypatch, caplog
):
    monkeypatch.setattr(kernels, "lif_fwd_kernel", Broken())
    x = torch.rand(3, 2, 4) * 2
    with caplog.at_level("WARNING", logger="backspike"):
        for _ in range(2):
            a = x.clone().requires_grad_()
            spikes = bs.lif(a).spikes
            spikes.sum().backward()
    b = x.clone().requires_grad_()
    expected = bs.lif(b, backend="eager").spikes
    expected.sum().backward()
    assert torch.equal(spikes, expected)
    assert torch.equal(a.grad, b.grad)
    (record,) = caplog.records
    assert "using the slower 'eager' backend" in record.getMessage()
    assert "does not compile here" in record.getMessage()


def test_a_fused_kernel_that_does_not_compile_is_replaced_too(preferred, monkeypatch):
    norms = import_module("backspike.kernel.norm")
    # the operators of triton under the name of the fastest on a CPU
    monkeypatch.setitem(norms._OPERATORS, "cpu", "triton_norm_lif")
    kernels_of_norms = import_module("backspike.kernel.triton.norm")
    monkeypatch.setattr(kernels_of_norms, "statistics_kernel", Broken())
    torch.manual_seed(0)
    model = bs.Sequential(bs.OverTime(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)), bs.LIF())
    x = torch.rand(3, 2, 2, 6, 6)
    found = model(x)
    assert len(kernels._broken) == 1
    model[1].backend = "eager"
    torch.testing.assert_close(found, model(x))


def test_a_backward_pass_that_does_not_compile_is_found_before_it_is_needed(preferred, monkeypatch):
    monkeypatch.setattr(kernels, "lif_bwd_kernel", Broken())
    kernels._try_to_compile.cache_clear()
    kernels._try_to_compile(torch.device("cpu"))
    assert len(kernels._broken) == 1
    x = torch.rand(3, 2, 4, requires_grad=True)
    bs.lif(x).spikes.sum().backward()  # by eager
    kernels._try_to_compile.cache_clear()


def test_a_machine_that_compiles_is_not_called_broken(preferred):
    kernels._try_to_compile.cache_clear()
    kernels._try_to_compile(torch.device("cpu"))
    assert kernels._broken == []


def test_a_kernel_that_does_not_compile_says_what_to_do(monkeypatch):
    monkeypatch.setattr(kernels, "_broken", [])
    monkeypatch.setattr(kernels, "lif_fwd_kernel", Broken())
    with pytest.raises(
        bs.Unsupported, match=r"does not compile here .*shared memory.*use backend='eager'"
    ) as error:
        bs.lif(torch.rand(3, 2, 4), backend="triton")
    assert "\n" not in str(error.value)
