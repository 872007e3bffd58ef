"""What is saved for backward: exact or rounded as saved.py defines it, and of the documented size.

Also inputs that represent several timesteps, and the bits that mark nonzero surrogate derivatives.
"""

import itertools
import math

import pytest
import torch
from helpers.neurons import MASKS, RESETS, close, draw, prepare, run
from helpers.saved import channels_last, flags, membranes
from helpers.surrogates import FAMILIES

import backspike as bs
from backspike import (
    ATan,
    Dspike,
    Erf,
    Masked,
    Parametric,
    PiecewiseExponential,
    Rectangle,
    Sigmoid,
    SuperSpike,
    Triangle,
)
from backspike.kernel import ops, saved
from backspike.kernel.cpu import library

SEED = 2**50 + 33
HAND_WRITTEN = [b for b in bs.backends() if b != "reference"]
each_backend = pytest.mark.parametrize("backend", HAND_WRITTEN)
needs_c = pytest.mark.skipif(not library.available(), reason="the C kernel was not built here")
SHAPE = (5, 3, 4, 7, 9)  # 756 elements per timestep: more than a block, not a multiple of 8
LEARNED = {"tau": 2.3, "v_threshold": 0.9, "width": 0.8}


def learned(names, channels=None):
    return {
        n: torch.tensor(LEARNED[n], dtype=torch.float64).expand(channels or ()).clone()
        for n in names
    }


def differing(got, want, keys=None):
    """The names of the results that are not the same bits."""
    found = []
    for key in keys or want:
        a, b = got[key], want[key]
        if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
            found.append(key)
    return found


# ----------------------------------------------------------------------------------- exact memories


@each_backend
@pytest.mark.parametrize("memory", ["recompute", "checkpoint"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_recomputing_gives_identical_results(backend, memory, reset, layout):
    to_layout = channels_last if layout == "channels last" else torch.clone
    for dtype, per_channel in itertools.product(
        (torch.float64, torch.float32, torch.bfloat16, torch.float16), (None, 4)
    ):
        x, v0, upstream = draw(SHAPE, dtype=dtype)
        rule = {
            "surrogate": Masked(Parametric(Sigmoid(alpha=3.0)), p=0.4),
            "v_reset": RESETS[reset],
            "reset_gradient": 0.37,
        }
        inputs = {"learned": learned(LEARNED, per_channel), "upstream": upstream, "seed": SEED}
        want = run(backend, to_layout(x), v0, rule=rule, **inputs)
        got = run(backend, to_layout(x), v0, rule=rule | {"memory": memory}, **inputs)
        assert not differing(got, want)


@each_backend
@pytest.mark.parametrize("mask", ["no mask", "p=0.5", "rescale"])
@pytest.mark.parametrize("rho", [0.0, 0.37, 1.0])
def test_one_bit_is_exact(backend, mask, rho):
    for dtype, temporal in itertools.product(
        (torch.float64, torch.float32, torch.bfloat16), (True, False)
    ):
        x, v0, upstream = draw(SHAPE, dtype=dtype)
        rule = {
            "surrogate": MASKS[mask](Rectangle(0.7, scale=1.3)),
            "v_reset": None,
            "tau": 2.3,
            "v_threshold": 0.9,
        }
        rule |= {"reset_gradient": rho, "temporal_gradient": temporal}
        for a in (x, channels_last(x)):
            want = run(backend, a, v0, rule=rule, upstream=upstream, seed=SEED)
            assert not differing(
                run(backend, a, v0, rule=rule | {"memory": "1bit"}, upstream=upstream, seed=SEED),
                want,
            )
            assert want["x"].count_nonzero() > 100


@needs_c
@pytest.mark.parametrize("memory", ["exact", "bfloat16", "8bit", "recompute"])
@pytest.mark.parametrize(
    "surrogate",
    [Triangle(1.3), ATan(2.0), Rectangle(0.7), SuperSpike(10.0)],
    ids=lambda s: type(s).__name__,
)
def test_the_fast_loop_over_timesteps_gives_identical_results(memory, surrogate):
    """Equal thresholds for all channels disable the fast loop of fused.h, for comparison."""
    resets = itertools.product((0.1, None), (0.0, 0.4))
    for dtype, (v_reset, rho) in itertools.product((torch.float32, torch.bfloat16), resets):
        x, v0, upstream = draw(SHAPE, dtype=dtype)
        rule = {
            "surrogate": surrogate,
            "memory": memory,
            "v_reset": v_reset,
            "reset_gradient": rho,
            "tau": 2.3,
        }
        results = []
        for theta in (0.9, torch.full((4,), 0.9)):
            inputs = x.clone().requires_grad_(), v0.clone().requires_grad_()
            out = bs.lif(*inputs, v_threshold=theta, backend="cpu", **rule)
            gradients = torch.autograd.grad(
                [out.spikes, out.state], inputs, [upstream["g"], upstream["c"]]
            )
            results.append({"s": out.spikes, "v": out.state, "x": gradients[0], "v0": gradients[1]})
        assert not differing(*results)
        assert results[0]["x"].count_nonzero() > 100


# --------------------------------------------------------------------------------- rounded memories


def to_element_order(code):
    """The 8-bit codes of the C kernel, `[T, ..., N]`, in element order.

    saved.h stores them in groups of 16 words.
    """
    rows, block = code.flatten(1).clone(), library._c.lif_block()
    complete = rows.shape[1] // block * block
    groups = rows[:, :complete].view(len(rows), -1, 16, 4)
    rows[:, :complete] = groups.transpose(2, 3).reshape(len(rows), -1)
    return rows.view(code.shape)


@needs_c
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory", saved.ROUNDED)
@pytest.mark.parametrize("width", [None, 0.7])
@pytest.mark.parametrize("base", [ATan(alpha=3.0), Triangle(alpha=0.5)], ids=str)
def test_codes_in_c_equal_those_in_torch(dtype, memory, width, base):
    x = membranes(dtype)
    w = None if width is None else torch.tensor(width, dtype=dtype)
    surrogate = base if width is None else Parametric(base)
    rule = {
        "tau": math.inf,
        "decay_input": False,
        "v_threshold": 1.0,
        "v_reset": 0.0,
        "surrogate": surrogate,
    }
    rule |= {"width": w, "memory": memory, "reset_gradient": 1.0, "temporal_gradient": True}
    # if u is not requested, one loop computes a complete timestep
    outputs, without_u = [], prepare(x, None, **rule)
    for call in (prepare(x, None, record_membrane=True, **rule), without_u):
        encoded = (ops.constants(call), *ops.encode(call), ops.SAVED_FORMS.index(memory))
        outputs.append(ops.forward("lif", call, *encoded))
    spikes, _, u, _, code, *_ = outputs[0]
    assert torch.equal(code.view(torch.uint8), outputs[1][4].view(torch.uint8))
    torch.testing.assert_close(spikes, outputs[1][0], rtol=0, atol=0, equal_nan=True)
    code = to_element_order(code) if memory == "8bit" else code
    eight_bits = saved.eight_bits(base)
    want = saved.encode(memory, u, 1.0, w, eight_bits)
    torch.testing.assert_close(code, want, rtol=0, atol=0, equal_nan=True)
    assert memory == "8bit" or torch.equal(code.signbit(), want.signbit())
    back = saved.decode(memory, code, 1.0, w, eight_bits, dtype)
    assert torch.equal(back >= 1.0, spikes == 1)


# the codes with a unit of 1/64, and half a step of each at the distance z
CODES = {
    "uniform": ("8bit", saved.EightBits(1 / 64, False), lambda z: 0 * z + 1 / 128),
    "logarithmic": ("8bit", saved.EightBits(1 / 64, True), lambda z: (z.abs() + 1 / 64) / 24),
    "bfloat16": ("bfloat16", None, lambda z: z.abs() / 256),
}


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("theta", [0.25, 1.0, 1e6])
def test_codes_preserve_the_spike_and_the_distance(kind, theta):
    """The distance to half a step, the spike even if rounding absorbs the distance in theta."""
    memory, code, half_a_step = CODES[kind]
    for dtype in (torch.float32, torch.float64):
        z = torch.cat(
            [
                torch.linspace(-1.98, 1.98, 4001, dtype=dtype),
                torch.tensor([-1e-6, -1e-30, 0, 1e-30], dtype=dtype),
            ]
        )
        u = z + theta
        back = saved.decode(
            memory, saved.encode(memory, u, theta, None, code), theta, None, code, dtype
        )
        assert torch.equal(back >= theta, u >= theta)
        if theta <= 1:
            z, error = u - theta, (back - u).abs()
            assert (error <= 1.001 * half_a_step(z) + 1e-6).all()


def test_each_code_stands_for_its_own_interval():
    """Every code is decoded to a distance that is encoded as this code."""
    for code in (saved.EightBits(1 / 64, False), saved.EightBits(1 / 64, True)):
        all_codes = torch.arange(256, dtype=torch.uint8)
        u = saved.decode("8bit", all_codes, 0.0, None, code, torch.float64)
        assert torch.equal(saved.encode("8bit", u, 0.0, None, code), all_codes)
        assert (u.diff() > 0).all()
        assert torch.equal(u, -u.flip(0))


def test_the_last_logarithmic_code_stands_for_all_beyond():
    code = saved.EightBits(1 / 64, True)
    u = torch.tensor([1600, 1619, 1621, 1e4, 1e12], dtype=torch.float64) / 64
    codes = saved.encode("8bit", torch.cat((-u, u)), 0.0, None, code)
    assert codes.tolist() == [1, 1, 0, 0, 0, 254, 254, 255, 255, 255]
    last = saved.decode("8bit", codes[[2, 7]], 0.0, None, code, torch.float64)
    assert (last.abs() > 1621 * 2**15 / 64).all()


@each_backend
@pytest.mark.parametrize("memory", saved.ROUNDED)
def test_codes_preserve_the_spike_where_the_distance_is_lost(backend, memory):
    """The gradient of the state passes if no spike reset it, even just below a threshold of 1e8."""
    theta = torch.tensor(1e8)
    x = (
        torch.stack([theta, torch.nextafter(theta, 0 * theta), torch.nextafter(theta, 2 * theta)])
        .view(1, 1, 3)
        .requires_grad_()
    )
    rule = {
        "tau": math.inf,
        "decay_input": False,
        "v_reset": 0.0,
        "v_threshold": 1e8,
        "reset_gradient": 0.0,
        "memory": memory,
    }
    bs.lif(x, backend=backend, **rule).state.sum().backward()
    assert x.grad.flatten().tolist() == [0, 1, 0]


def test_the_code_follows_the_surrogate():
    assert saved.eight_bits(ATan()) == (2 / 24, True)
    assert saved.eight_bits(ATan(alpha=0.25)) == (16 / 24, True)
    assert saved.eight_bits(SuperSpike()) == (8 / 24, True)
    for compact in (Triangle(), Rectangle(0.9), Dspike(), Triangle(alpha=1e-5)):
        code = saved.eight_bits(compact)
        assert code == (compact.support / 127, False)
        ends = torch.tensor([-126.5, 126.5, -127.5, 127.5], dtype=torch.float64) * code.unit
        assert (compact.derivative(ends) > 0).tolist() == [True, True, False, False]
    wide, narrow = Rectangle(3.0), Rectangle(0.1)
    assert saved.eight_bits(wide, narrow) == saved.eight_bits(narrow, wide) == (1.5 / 127, False)
    # one of them has no end, or its distance is not in units of the width
    assert saved.eight_bits(ATan(), narrow).logarithmic
    assert saved.eight_bits(narrow, ATan()).logarithmic
    assert saved.eight_bits(wide, narrow, parametric=True).logarithmic
    assert not saved.eight_bits(wide, None, parametric=True).logarithmic


@needs_c
@pytest.mark.parametrize("memory", saved.ROUNDED)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("reset", RESETS)
def test_gradients_from_codes_in_c_equal_those_in_torch(memory, mask, reset):
    for dtype, rho in itertools.product(
        (torch.float64, torch.float32, torch.bfloat16), (0.0, 0.37)
    ):
        x, v0, upstream = draw(SHAPE, dtype=dtype)
        rule = {
            "tau": 2.3,
            "v_threshold": 0.9,
            "v_reset": RESETS[reset],
            "surrogate": MASKS[mask](ATan(alpha=3.0)),
        }
        rule |= {"reset_gradient": rho, "memory": memory}
        rows = [run(b, x, v0, rule=rule, upstream=upstream, seed=SEED) for b in ("cpu", "eager")]
        assert not differing(*rows)
        last = run("cpu", channels_last(x), v0, rule=rule, upstream=upstream, seed=SEED)
        assert not differing(last, rows[1])


@needs_c
@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("memory", [*saved.ROUNDED, "recompute"])
def test_gradients_of_learned_constants(memory, channels):
    """C matches torch, and the exact gradient up to the rounding error."""
    x, v0, upstream = draw(SHAPE, mean=1.0)
    names = ("v_threshold", "width") if memory == "8bit" else ("tau", "v_threshold", "width")
    for reset in RESETS.values():
        rule = {"surrogate": Parametric(Sigmoid(alpha=3.0)), "v_reset": reset, "memory": memory}
        rule |= {"decay_input": True, "reset_gradient": 1.0}
        inputs = {"learned": learned(names, channels), "upstream": upstream}
        got, want = (run(b, x, v0, rule=rule, **inputs) for b in ("cpu", "eager"))
        exact = run("reference", x, v0, rule=rule, **inputs)
        for name in (*names, "x", "v0"):
            assert close(
                got[name], want[name], tolerance=1e-10, size=1000.0 if name in names else None
            )
            # the terms of sums over all elements cancel
            size = max(exact[name].norm(), exact["x"].norm())
            error = (got[name] - exact[name]).norm() / size
            assert error < {"8bit": 0.06, "bfloat16": 0.01, "recompute": 1e-10}[memory], name


# --------------------------------------------------------------------------------- what it is worth


def gradient_error(backend, memory, surrogate, z, g, **rule):
    """The error of dL/dx relative to its norm for a single timestep with z = u - 1, and dL/dx."""
    rule = {"tau": math.inf, "decay_input": False, "surrogate": surrogate} | rule
    gradients = []
    for kind in ("exact", memory):
        x = (z + 1).requires_grad_()
        bs.lif(x, backend=backend, memory=kind, **rule).spikes.backward(g)
        gradients.append(x.grad.double())
    exact, got = gradients
    return ((got - exact).norm() / exact.norm()).item(), exact, got


# errors of dL/dx in percent with 8 bits and bfloat16: for z around -0.3 (standard deviation 0.5),
# as after batch normalisation; around -1 (0.05), a layer without input; around -3 (0.2)
ERRORS = {
    ATan(): ((1.5, 0.12), (3.1, 0.4), (4.5, 0.4)),
    ATan(alpha=8.0): ((1.7, 0.12), (3.3, 0.4), (4.4, 0.4)),
    SuperSpike(): ((1.8, 0.12), (2.7, 0.3), (3.5, 0.3)),
    SuperSpike(10.0): ((1.7, 0.12), (3.2, 0.4), (4.4, 0.4)),
    SuperSpike(25.0): ((1.9, 0.12), (3.3, 0.4), (4.4, 0.4)),
    SuperSpike(100.0): ((1.9, 0.12), (3.5, 0.4), (4.4, 0.4)),
    Sigmoid(): ((1.5, 0.13), (6.6, 0.7), (25.0, 2.3)),
    PiecewiseExponential(): ((1.3, 0.1), (2.7, 0.3), (7.2, 0.6)),
    Erf(): ((1.8, 0.15), (14.0, 1.3), (50.0, 12.0)),
    Triangle(): ((0.5, 0.2), None, None),
    Dspike(): ((0.4, 1.2), None, None),
    Rectangle(): ((0.1, 4.5), None, None),
}
LAYERS = ((-0.3, 0.5), (-1.0, 0.05), (-3.0, 0.2))


@each_backend
@pytest.mark.parametrize("memory", ["8bit", "bfloat16"])
@pytest.mark.parametrize("surrogate", ERRORS, ids=str)
def test_gradient_errors_are_those_of_the_documentation(backend, memory, surrogate):
    """docs/speed-and-memory.md; None: the surrogate is 0 there, and so is the gradient."""
    r = torch.Generator().manual_seed(5)
    for (mean, deviation), bounds in zip(LAYERS, ERRORS[surrogate]):
        z, g = (torch.randn(1, 30, 1000, generator=r) for _ in range(2))
        error, exact, got = gradient_error(backend, memory, surrogate, z * deviation + mean, g)
        if bounds is None:
            assert not exact.any()
            assert not got.any()
        else:
            assert error < bounds[memory == "bfloat16"] / 100


@each_backend
@pytest.mark.parametrize("surrogate", [SuperSpike(100.0), ATan(200.0)], ids=str)
def test_gradients_beyond_the_last_code_vanish(backend, surrogate):
    """At -6 to -5, beyond 67 times the reach, the exact h is below 1e-5 of its maximum."""
    z, g = torch.linspace(-6, -5, 500).view(1, 1, -1), torch.ones(1, 1, 500)
    for wrapped, rule in ((surrogate, {}), (Parametric(surrogate), {"width": torch.ones(())})):
        error, exact, got = gradient_error(backend, "8bit", wrapped, z, g, **rule)
        assert exact.max() < 1e-5 * surrogate.derivative(torch.zeros(()))
        assert (got.abs() < 1e-3 * exact.abs()).all()
        assert error <= 1


BYTES = {"exact": 4, "bfloat16": 2, "8bit": 1, "1bit": 1 / 8, "recompute": 4}


@each_backend
@pytest.mark.parametrize("repeats", [1, 6])
@pytest.mark.parametrize("memory", BYTES)
def test_saved_tensors_have_the_documented_size(backend, memory, repeats):
    """The total of all saved tensors; "recompute" saves one timestep of a repeated input."""
    x = draw((6, 4, 1000), dtype=torch.float32)[0][: 1 if repeats > 1 else 6].requires_grad_()
    sizes = []

    def pack(a):
        sizes.append(a.numel() * a.element_size() if a.numel() > 100 else 0)
        return a

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda a: a):
        options = {"surrogate": Rectangle(), "v_reset": None, "memory": memory, "repeats": repeats}
        bs.lif(x, backend=backend, **options)
    assert sum(sizes) == BYTES[memory] * (4000 if repeats > 1 and memory == "recompute" else 24000)


@each_backend
@pytest.mark.parametrize("memory", saved.MEMORIES)
def test_recording_the_membrane_changes_nothing(backend, memory):
    """A recorded membrane is exact for every `memory` and does not change the spike gradients."""
    x, v0, upstream = draw(SHAPE)
    rule = {"surrogate": Masked(Rectangle(), p=0.3), "v_reset": None, "memory": memory}
    gradients, outs = [], []
    for record in (True, False):
        leaf = x.clone().requires_grad_()
        outs.append(bs.lif(leaf, v0, backend=backend, record_membrane=record, seed=SEED, **rule))
        outs[-1].spikes.backward(upstream["g"], retain_graph=record)
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
    want = bs.lif(x, v0, backend="reference", record_membrane=True, seed=SEED, **rule)
    assert torch.equal(outs[0].membrane, want.membrane)


# ---------------------------------------------------------------------------------- repeated inputs


@pytest.mark.parametrize("backend", bs.backends())
@pytest.mark.parametrize("memory", ["exact", "8bit", "recompute"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_one_timestep_can_represent_many(backend, memory, layout):
    to_layout = channels_last if layout == "channels last" else torch.clone
    for reset, names in itertools.product(
        RESETS.values(), ((), ("v_threshold", "width"), ("tau",))
    ):
        if memory == "8bit" and "tau" in names:
            continue
        x, v0, upstream = draw(SHAPE, seed=3)
        surrogate = Parametric(ATan(alpha=3.0)) if "width" in names else ATan(alpha=3.0)
        rule = {"surrogate": Masked(surrogate, p=0.4), "v_reset": reset, "memory": memory}
        inputs = {"learned": learned(names), "upstream": upstream, "seed": SEED}
        want = run(backend, x[:1].expand(SHAPE), v0, rule=rule, **inputs)
        got = run(backend, to_layout(x[:1]), v0, rule=rule | {"repeats": SHAPE[0]}, **inputs)
        assert not differing(got, want, ("s", "u", "v"))
        assert got["x"].shape == (1, *SHAPE[1:])
        assert close(got["x"][0], want["x"].sum(0) if want["x"].shape[0] > 1 else want["x"][0])
        for name in names:
            assert close(got[name], want[name], size=100.0)


@each_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_gradient_of_a_repeated_input_is_rounded_once(backend, dtype):
    x, _, upstream = draw((7, 3, 50), dtype=dtype)
    rule = {"surrogate": ATan(alpha=3.0), "repeats": 7}
    got = run(backend, x[:1], rule=rule, upstream=upstream)
    wide = {k: u.float() for k, u in upstream.items()}
    want = run(backend, x[:1].float(), rule=rule, upstream=wide)
    assert got["x"].dtype == dtype
    assert torch.equal(got["x"], want["x"].to(dtype))


def test_a_layer_repeats_one_timestep():
    x = draw((1, 3, 2, 5), dtype=torch.float32)[0]
    layer = bs.LIF()
    assert torch.equal(layer(x, repeats=6), layer(x.expand(6, 3, 2, 5)))
    for repeats, frames in ((3, x.expand(2, 3, 2, 5)), (0, x)):
        with pytest.raises(
            ValueError,
            match=rf"repeats={repeats} needs an x of one timestep, \[1, B, ...\], got shape",
        ) as error:
            layer(frames, repeats=repeats)
        assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------------- active bits


@pytest.mark.parametrize("backend", bs.backends())
@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (2, 3, 8)])
@pytest.mark.parametrize("mask", MASKS)
def test_active_bits_mark_nonzero_h(backend, shape, mask):
    x, _, _ = draw(shape, seed=4)
    for surrogate, parametric, memory in itertools.product(
        FAMILIES, (False, True), ("exact", "8bit", "bfloat16", "recompute")
    ):
        if backend == "reference" and memory != "exact":
            continue
        w = torch.tensor(0.6, dtype=torch.float64, requires_grad=True) if parametric else None
        wrapped = MASKS[mask](Parametric(surrogate) if parametric else surrogate)
        rule = {
            "tau": 2.3,
            "v_threshold": 0.9,
            "v_reset": 0.0,
            "decay_input": True,
            "reset_gradient": 1.0,
        }
        rule |= {
            "temporal_gradient": False,
            "surrogate": wrapped,
            "width": w,
            "seed": SEED,
            "memory": memory,
        }
        leaf = x.clone().requires_grad_()
        result = bs.kernel.dispatch(
            backend, prepare(leaf, None, record_active=True, record_membrane=True, **rule)
        )
        # without temporal gradient dL/dx = gain h g
        result.spikes.sum().backward()
        assert torch.equal(flags(result.active, shape), leaf.grad != 0)
        if memory in ("exact", "recompute"):
            z = result.membrane.detach() - 0.9
            h = surrogate.derivative(z if w is None else z / w.detach())
            dropped = (
                bs.dropped(SEED, shape, wrapped.p)
                if isinstance(wrapped, Masked)
                else torch.zeros(shape, dtype=torch.bool)
            )
            other = wrapped.replace.derivative(z) if mask == "replace" else torch.zeros_like(z)
            assert torch.equal(flags(result.active, shape), torch.where(dropped, other, h) != 0)


@each_backend
def test_active_bits_with_1bit_memory_and_other_layouts(backend):
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
        "surrogate": Masked(Rectangle(0.7), p=0.3),
        "memory": "1bit",
        "record_active": True,
    }
    x = draw(SHAPE)[0].requires_grad_()
    result = bs.kernel.dispatch(backend, prepare(x, None, **rule))
    result.spikes.sum().backward()
    assert torch.equal(flags(result.active, SHAPE), x.grad != 0)
    assert bs.kernel.dispatch(backend, prepare(channels_last(x), None, **rule)).active is None
    assert bs.kernel.dispatch(backend, prepare(x.detach(), None, **rule)).active is None
    assert (
        bs.kernel.dispatch(backend, prepare(x, None, **rule | {"record_active": False})).active
        is None
    )


# ----------------------------------------------------------------------------------------- refusals


THETA = torch.tensor(1.0, requires_grad=True)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"memory": "4bit"},
            "memory='4bit' must be one of exact, bfloat16, 8bit, 1bit, recompute, checkpoint",
        ),
        ({"memory": "1bit"}, "memory='1bit' needs surrogate=Rectangle"),
        (
            {"memory": "1bit", "surrogate": Rectangle(), "v_reset": 0.0},
            "and v_reset=None; choose",
        ),
        (
            {
                "memory": "1bit",
                "surrogate": Masked(Rectangle(), replace=Rectangle(0.1)),
                "v_reset": None,
            },
            "without replace",
        ),
        ({"memory": "8bit", "v_threshold": math.inf}, "needs a finite v_threshold"),
    ],
)
def test_requirements_of_each_memory(options, text):
    calls = [lambda: bs.lif(torch.rand(3, 2, 4), **options)]
    if not math.isinf(options.get("v_threshold", 1)):
        calls.append(lambda: bs.LIF(**options))
    for call in calls:
        with pytest.raises(ValueError, match=text) as error:
            call()
        assert "\n" not in str(error.value)


def test_gradients_that_a_memory_cannot_provide():
    soft = {"surrogate": Rectangle(), "v_reset": None}
    for learn, memory, options in (
        ("tau", "8bit", {}),
        ("tau", "1bit", soft),
        ("threshold", "1bit", soft),
    ):
        with pytest.raises(ValueError, match=f"memory='{memory}' gives no gradient for .*; choose"):
            bs.LIF(learn=learn, memory=memory, **options)
    with pytest.raises(ValueError, match="memory='1bit' gives no gradient for v_threshold"):
        bs.lif(torch.rand(3, 2, 4), v_threshold=THETA, memory="1bit", **soft)
    layer = bs.LIF(memory="8bit")
    with bs.PotentialAdjustment(layer), pytest.raises(ValueError, match="moments of the membrane"):
        layer(torch.rand(3, 2, 4))
    bs.LIF(memory="8bit", learn="threshold", surrogate=Parametric(ATan()))
    assert "memory='8bit'" in repr(layer)
    assert bs.recipes.digits().neuron.memory == "exact"


# --------------------------------------------------------------------------------- streaming stores


@needs_c
@pytest.mark.parametrize("memory", saved.MEMORIES)
@pytest.mark.parametrize("shape", [(3, 1, 2051), (4, 2, 5, 8, 16), (2, 3), (3, 0, 4)])
def test_streaming_stores_give_identical_results(memory, shape, monkeypatch):
    for dtype, repeats in itertools.product((torch.float64, torch.float32, torch.bfloat16), (1, 4)):
        x, v0, upstream = draw(shape, dtype=dtype)
        if repeats > 1:
            x, upstream = (
                x[:1],
                {k: u if k == "c" else u[:1].expand(4, *shape[1:]) for k, u in upstream.items()},
            )
        rule = {"surrogate": Rectangle(1.3), "v_reset": None, "memory": memory, "repeats": repeats}
        rows = []
        for limit in (0, 2**62):
            monkeypatch.setattr(library, "STREAM", limit)
            rows.append(run("cpu", x, v0, rule=rule, upstream=upstream))
        assert not differing(*rows)


@needs_c
@pytest.mark.parametrize("memory", ["8bit", "recompute"])
def test_results_do_not_depend_on_the_number_of_threads(memory):
    x, v0, upstream = draw((4, 5, 6, 31, 37), dtype=torch.float32)
    rows, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            rule = {"surrogate": Masked(Sigmoid(), p=0.4), "memory": memory}
            rows.append(
                run(
                    "cpu",
                    x,
                    v0,
                    rule=rule,
                    learned=learned(["v_threshold"]),
                    upstream=upstream,
                    seed=SEED,
                )
            )
    finally:
        torch.set_num_threads(before)
    assert not differing(rows[1], rows[0])
    assert not differing(rows[2], rows[0])
