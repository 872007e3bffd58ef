"""The kernel of recurrent layers equals the reference, with every option of the neuron."""

import threading
import warnings
from functools import partial

import pytest
import torch
from helpers.recurrent import OPTIONS, assert_gradients_equal, drive, gradients, make
from torch import nn

import backspike as bs
from backspike.kernel.cpu import library
from backspike.kernel.pack import pack
from backspike.surrogate import Masked, Rectangle, Triangle

ADAPTIVE = partial(bs.AdaptiveLIF, tau_adaptation=4.0, a=0.8, b=1.5)
KINDS = {"LIF": bs.LIF, "IF": bs.IF, "PLIF": bs.PLIF, "CubaLIF": bs.CubaLIF}
KINDS |= {"AdaptiveLIF": ADAPTIVE}


def step_by_step(layer):
    """The same layer with a hook, which the kernel does not run."""
    return layer.layer.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("n", "B", "T"), [(5, 3, 7), (70, 17, 6)])
def test_the_kernel_equals_autograd_through_the_reference(kind, options, n, B, T):
    if kind is bs.IF and options.get("decay_input") is False:
        pytest.skip("an IF neuron has no other way")
    layer, reference = make(n, kind, **options), make(n, kind, backend="reference", **options)
    x, g = drive(T, B, n)
    assert layer.why_step_by_step(x) is None
    assert "reference" in reference.why_step_by_step(x)
    got = gradients(layer, x, g)
    assert 0.02 < got[0].mean() < 0.98
    assert_gradients_equal(got, gradients(reference, x, g))


@pytest.mark.parametrize(
    ("kind", "learn"),
    [
        (bs.PLIF, ("tau",)),
        (bs.CubaLIF, ("tau", "tau_synapse")),
        (ADAPTIVE, ("tau", "threshold", "tau_adaptation", "a", "b")),
        (partial(ADAPTIVE, v_reset=None, decay_input=False), ("a",)),
        (partial(ADAPTIVE, channels=300, v_reset=-0.1), ("tau", "tau_adaptation", "b")),
    ],
)
def test_learned_time_constants_and_a_wide_layer(kind, learn):
    x, g = drive(5, 9, 300)
    got, want = (
        gradients(make(300, kind, learn=learn, backend=backend), x, g)
        for backend in ("auto", "reference")
    )
    assert_gradients_equal(got, want)


@pytest.mark.parametrize("memory", ["bfloat16", "8bit", "1bit"])
def test_rounded_membranes_give_the_gradients_of_the_loop(memory):
    options = {"surrogate": Rectangle(2.0), "v_reset": None, "memory": memory}
    layer, (x, g) = make(70, bs.LIF, **options), drive(6, 17, 70)
    got = gradients(layer, x, g)
    hook = step_by_step(layer)
    assert "hooks" in layer.why_step_by_step(x)
    want = gradients(layer, x, g)
    hook.remove()
    assert_gradients_equal(got, want)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_gradients_reach_the_recorded_membrane_and_its_moments(kind):
    results = []
    for backend in ("auto", "reference"):
        layer, (x, g) = make(12, kind, backend=backend), drive(6, 4, 12)
        x = x.requires_grad_()
        pda = bs.PotentialAdjustment(layer, 1.0)
        with bs.record(layer) as seen:
            s = layer(x)
        out = seen["neuron"]
        (s * g).sum().backward(retain_graph=True)
        (out.membrane**2).sum().backward(retain_graph=True)
        (out.state**2).sum().backward(retain_graph=True)
        pda.loss().backward()
        results.append([s.detach(), out.membrane.detach(), x.grad, layer.layer.weight.grad])
    assert_gradients_equal(*results)


@pytest.mark.parametrize("kind", [*KINDS.values(), partial(bs.CubaLIF, learn=("tau_synapse",))])
def test_a_streamed_chunk_has_the_gradients_of_its_own_input(kind):
    x, g = drive(8, 5, 9)
    results = []
    for backend in ("auto", "reference"):
        layer = make(9, kind, backend=backend)
        with bs.streaming(layer):
            layer(x[:3])
            results.append(gradients(layer, x[3:], g[3:]))
    assert_gradients_equal(*results)


@pytest.mark.parametrize("kind", [bs.LIF, bs.CubaLIF])
def test_a_stream_continues_in_another_type(kind):
    x, _ = drive(8, 5, 9)
    layer, again = make(9, kind).float(), make(9, kind)
    with bs.streaming(layer), bs.streaming(again), torch.no_grad():
        layer(x[:3].float())
        again.carried = tuple(state.double() for state in layer.carried)
        assert torch.equal(layer.double()(x[3:]), again(x[3:]))


def test_a_trace_never_holds_the_outputs_of_its_example():
    layer, (x, _) = make(9, bs.LIF).eval(), drive(4, 5, 9)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="Tracing a list of bool type"):
            torch.jit.trace(layer, (x,), check_trace=False)


def test_an_input_of_another_class_is_named():
    class Own(torch.Tensor):
        pass

    layer, (x, _) = make(9, bs.LIF), drive(4, 5, 9)
    assert "the input is a Own" in layer.why_step_by_step(x.as_subclass(Own))
    assert layer.why_step_by_step(nn.Parameter(x)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_differ_only_where_the_membrane_is_at_the_threshold(dtype):
    layer, (x, g) = make(64, bs.LIF, v_reset=None), drive(10, 16, 64)
    want = gradients(layer, x.to(dtype).double(), g)
    layer = layer.to(dtype)
    got = gradients(layer, x.to(dtype), g.to(dtype))
    assert layer.why_step_by_step(x.to(dtype)) is None
    assert got[0].dtype == got[1].dtype == dtype
    equal = (got[0].double() == want[0]).double().mean()
    assert equal > (0.999 if dtype == torch.float32 else 0.93)
    if dtype == torch.float32:
        assert_gradients_equal([a.double() for a in got[1:]], want[1:], 0.05)


@pytest.mark.parametrize("n", [9, 16, 72, 128])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_kernel_writes_the_spikes_as_bits_too(dtype, n):
    layer, (x, _) = make(n, bs.LIF).to(dtype), drive(7, 19, n)
    spikes, info = layer.run(x.to(dtype))
    assert 0 < spikes.mean() < 1
    if n % 8:
        assert info.bits_of(spikes) is None or torch.equal(info.bits, pack(spikes).codes)
    else:
        assert torch.equal(info.bits_of(spikes), pack(spikes).codes)
    x[3, 2, 1] = torch.nan  # a bit cannot say this
    spikes, info = layer.run(x.to(dtype))
    assert spikes.isnan().any()
    assert info.bits is None
    with torch.no_grad():
        assert layer.run(x.to(dtype))[1].bits is None


def test_autocast_computes_in_the_type_of_the_input():
    layer, (x, _) = make(16, bs.LIF).float(), drive(6, 4, 16)
    x = x.float()
    assert "different types" in layer.why_step_by_step(x.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        s = layer(x.bfloat16())
    assert s.dtype == torch.bfloat16
    s.sum().backward()
    assert layer.layer.weight.grad.dtype == torch.float32
    assert layer.layer.weight.grad.abs().sum() > 0


def test_results_do_not_depend_on_the_number_of_threads():
    layer, (x, g) = make(130, bs.PLIF, surrogate=Masked(Triangle(1.0), p=0.5)), drive(40, 40, 130)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(gradients(layer, x, g))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*([r[0], r[1], r[-1]] for r in results)):  # not torch's own weight gradient
        assert torch.equal(a, b)


@pytest.mark.parametrize("level", library.levels())
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_all_levels_give_the_same_spikes(level, dtype):
    layer = make(70, bs.CubaLIF, surrogate=Triangle(1.0)).to(dtype)
    x, g = (a.to(dtype) for a in drive(12, 9, 70))
    want = gradients(layer, x, g)
    with library.level(level):
        got = gradients(layer, x, g)
    assert torch.equal(got[0], want[0])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    assert_gradients_equal([a.double() for a in got], [a.double() for a in want], tolerance)


def test_an_input_that_repeats_and_one_with_gaps_are_read_as_they_are():
    layer, (x, g) = make(10, bs.LIF), drive(6, 4, 10)
    repeated = x[:1].expand(6, -1, -1)
    assert_gradients_equal(
        gradients(layer, repeated, g)[:1] + gradients(layer, x[..., ::2].repeat(1, 1, 2), g)[:1],
        gradients(layer, repeated.contiguous(), g)[:1]
        + gradients(layer, x[..., ::2].repeat(1, 1, 2).contiguous(), g)[:1],
    )
    gaps = torch.zeros(6, 4, 20, dtype=torch.float64)
    gaps[..., ::2] = x
    assert torch.equal(layer(gaps[..., ::2]), layer(x))


def test_the_layer_acts_on_the_last_dimension():
    layer, (x, g) = make(7, bs.LIF), drive(6, 12, 7)
    got = gradients(layer, x.view(6, 4, 3, 7), g.view(6, 4, 3, 7))
    want = gradients(layer, x, g)
    assert_gradients_equal([a.view_as(b) for a, b in zip(got, want)], want)


def test_explain_says_how_a_recurrent_layer_runs():
    model = bs.Sequential(make(4, bs.LIF), make(4, bs.CLIF))
    text = bs.explain(model).splitlines()
    assert "all timesteps in one kernel" in text[0]
    assert "step by step: a CLIF has no such kernel" in text[1]


def test_what_has_no_kernel_runs_step_by_step():
    x = torch.rand(3, 2, 4)
    assert "CLIF" in bs.Recurrent(nn.Linear(4, 4), bs.CLIF()).why_step_by_step(x)
    convolution = bs.Recurrent(nn.Conv1d(4, 4, 1), bs.LIF())
    assert "Conv1d" in convolution.why_step_by_step(torch.rand(3, 2, 4, 5))

    class Own(bs.Surrogate):
        def derivative(self, z):
            return (-z.abs()).exp()

        def primitive(self, z):
            return torch.sign(z) * (1 - (-z.abs()).exp())

    layer = bs.Recurrent(nn.Linear(4, 4), bs.LIF(surrogate=Own()))
    assert "Own" in layer.why_step_by_step(x)
    assert layer(x).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_what_is_not_finite_shows_where_the_reference_shows_it(dtype):
    x, _ = drive(6, 4, 9)
    x = x.to(dtype)
    x[2, 1, 3] = torch.nan
    x[3, 2, 0] = torch.inf
    layer, reference = (make(9, bs.LIF, backend=b).to(dtype) for b in ("auto", "reference"))
    got, want = layer(x), reference(x)
    assert torch.equal(got.isnan(), want.isnan())
    assert 0 < got.isnan().sum() < got.numel() / 2
    with torch.no_grad():
        layer.layer.weight[0, 0] = torch.nan
    assert "not finite" in layer.why_step_by_step(x)
    assert layer(x)[1:, :, 0].isnan().all()


def test_backward_twice_is_refused_and_two_threads_do_not_disturb_each_other():
    layer, (x, g) = make(20, bs.LIF), drive(30, 8, 20)
    s = layer(x.requires_grad_())
    with pytest.raises(RuntimeError, match="double backward through Recurrent"):
        torch.autograd.grad(s, x, g, create_graph=True)
    want, got = layer(x).detach(), []
    threads = [threading.Thread(target=lambda: got.append(layer(x).detach())) for _ in range(4)]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(got) == 4
    assert all(torch.equal(a, want) for a in got)
