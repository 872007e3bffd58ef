"""PDA: the divergence against numerical integration, the loss against autograd.

The expected loss and gradient come from autograd through recorded membranes.
"""

import copy
import io
import math

import numpy as np
import pytest
import torch
from helpers.compiled import needs_compile
from helpers.neurons import prepare
from torch import nn

import backspike as bs
from backspike.analysis.activity import potential_statistics
from backspike.methods.pda import Normal, PotentialAdjustment, divergence, surrogate_width
from backspike.neuron.lif import compute

EXACT = {"rtol": 1e-12, "atol": 1e-13}


def numbers(*shape, seed=0, scale=1.0):
    return scale * torch.randn(
        shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


# ----------------------------------------------------------------------------------- the divergence


@pytest.mark.parametrize(
    ("m_p", "v_p", "m_q", "v_q"),
    [(0.3, 0.5, -0.4, 1.7), (1.0, 2.0, 1.0, 0.25), (-2.0, 1.0, 1.0, 1.0)],
)
def test_divergence_equals_the_integral(m_p, v_p, m_q, v_q):
    x = np.linspace(-40, 40, 400_001)

    def log_density(m, v):
        return -((x - m) ** 2) / (2 * v) - 0.5 * math.log(2 * math.pi * v)

    log_p, log_q = log_density(m_p, v_p), log_density(m_q, v_q)
    want = ((np.exp(log_p) - np.exp(log_q)) * (log_p - log_q)).sum() * (x[1] - x[0]) / 2
    p, q = (Normal(*torch.tensor([m, v], dtype=torch.float64)) for m, v in ((m_p, v_p), (m_q, v_q)))
    assert divergence(p, q).item() == pytest.approx(want, rel=1e-10)
    assert divergence(q, p).item() == pytest.approx(want, rel=1e-10)
    assert divergence(p, p).item() == pytest.approx(0, abs=1e-15)


# -------------------------------------------------------------------------- moments from the kernel


RULE = {
    "tau": 2.0,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "decay_input": True,
    "surrogate": bs.ATan(),
    "reset_gradient": 1.0,
    "temporal_gradient": True,
}


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 4), (5, 3, 4, 2, 3)])
@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"v_reset": None, "reset_gradient": 0.4},
        {"v_reset": -0.25, "decay_input": False},
        {"temporal_gradient": False},
    ],
    ids=str,
)
def test_moments_and_their_gradient(shape, rule):
    """All backends against autograd through the membrane recorded by the reference.

    The loss also depends on spikes and membrane.
    """
    C = shape[2] if len(shape) > 2 else 1
    k_mean, k_square, k_s, k_u = (
        numbers(5, C, seed=1),
        numbers(5, C, seed=2),
        numbers(*shape, seed=3),
        numbers(*shape, seed=4),
    )

    def gradients(backend, moments):
        leaves = [numbers(*shape, seed=5, scale=2.0), numbers(*shape[1:], seed=6)]
        leaves += [torch.tensor(value, dtype=torch.float64) for value in (2.3, 0.7)]
        x, v0, tau, theta = (leaf.requires_grad_() for leaf in leaves)
        options = {
            **RULE,
            "tau": tau,
            "v_threshold": theta,
            "surrogate": bs.Masked(bs.ATan(), 0.3),
            **rule,
        }
        call = prepare(x, v0, **options, seed=7, record_membrane=True, record_moments=moments)
        out, got = compute(call, backend)
        if moments:
            mean, square, _ = got
            assert mean.shape == square.shape == (5, C)
        else:
            samples = out.membrane.reshape(5, -1, C, math.prod(shape[3:]))
            mean, square = samples.mean((1, 3)), samples.square().mean((1, 3))
        loss = (k_mean * mean).sum() + (k_square * square.sqrt()).sum()
        (loss + (k_s * out.spikes).sum() + (k_u * out.membrane).sum()).backward()
        return (
            mean,
            square,
            *(torch.zeros_like(a) if a.grad is None else a.grad for a in (x, v0, tau, theta)),
        )

    want = gradients("reference", moments=False)
    for backend in ("reference", "eager"):
        for a, b in zip(gradients(backend, moments=True), want):
            torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("which", [0, 1])
def test_the_gradient_of_a_single_moment(which):
    x = [numbers(3, 4, 2, scale=2.0).requires_grad_() for _ in range(2)]
    for leaf, backend in zip(x, ("eager", "reference")):
        call = prepare(leaf, None, **RULE, record_moments=True)
        compute(call, backend)[1][which].square().sum().backward()
    torch.testing.assert_close(x[0].grad, x[1].grad, **EXACT)


# ----------------------------------------------------------------------------------------- the loss


def network(**options):
    torch.manual_seed(0)
    options = {"v_threshold": 0.8, "surrogate": bs.Parametric(bs.Triangle(alpha=0.8)), **options}
    a = bs.OverTime(nn.Conv2d(2, 4, 3, padding=1))
    b = bs.OverTime(nn.Flatten(), nn.Linear(4 * 3 * 5, 6))
    return nn.Sequential(
        a, bs.LIF(**options), b, bs.LIF(**{**options, "v_threshold": 0.6})
    ).double()


def frames(T=4, B=6):
    return numbers(T, B, 2, 3, 5, scale=3.0)


def expected(model, recorded, target, per_channel, form, window=1.5, eps=1e-2):
    """The mean of D over layers and timesteps, in plain torch on the recorded membranes."""
    distances = []
    for name, out in recorded.items():
        layer, u, s = model.get_submodule(name), out.membrane, out.spikes.detach()
        theta = layer.v_threshold if layer.threshold is None else layer.threshold.item()
        each = []
        for t in range(len(u)):
            if form == "softmax":
                p, q = u[t].flatten(1).softmax(-1), (theta * s[t]).flatten(1).softmax(-1)
                each.append((((p - q) * (p.log() - q.log())).sum(-1) / 2).mean())
                continue
            channels = (
                [(u[t][:, c], s[t][:, c]) for c in range(u.shape[2])]
                if per_channel
                else [(u[t], s[t])]
            )
            for u_c, s_c in channels:
                q = {
                    "spikes": (theta * s_c.mean(), (theta * s_c).var(correction=0)),
                    "gaussian": (0.0, theta**2),
                    "window": (theta, (window * layer.log_width.exp().item() / 0.8) ** 2),
                }[target]
                v_p, v_q = u_c.var(correction=0) + eps * theta**2, q[1] + eps * theta**2
                d2 = (u_c.mean() - q[0]) ** 2
                each.append((v_p + d2) / (4 * v_q) + (v_q + d2) / (4 * v_p) - 0.5)
        distances.append(torch.stack(each).mean())
    return torch.stack(distances).mean()


FORMS = [("spikes", True, "moments"), ("spikes", False, "moments"), ("spikes", False, "softmax")]
FORMS += [
    (target, per_channel, "moments")
    for target in ("gaussian", "window")
    for per_channel in (True, False)
]


@pytest.mark.parametrize("backend", ["eager", "reference"])
@pytest.mark.parametrize(("target", "per_channel", "form"), FORMS)
def test_loss_and_gradient(target, per_channel, form, backend):
    model = network(
        backend=backend, learn=("tau", "threshold"), v_reset=None if per_channel else -0.1
    )
    with torch.no_grad():
        model[1].log_width.fill_(0.3)
    pda = PotentialAdjustment(model, 0.25, target, form=form, per_channel=per_channel, window=1.5)
    model(frames())
    loss = pda.loss()
    loss.backward()
    got = {name: p.grad for name, p in model.named_parameters()}
    pda.remove()

    model.zero_grad()
    with bs.record(model) as recorded:
        model(frames())
    want = 0.25 * expected(model, recorded, target, per_channel, form)
    want.backward()
    assert want > 0.001
    torch.testing.assert_close(loss, want, **EXACT)
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad, **EXACT)


@pytest.mark.parametrize("memory", ["exact", "checkpoint"])
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)], ids=str)
@pytest.mark.parametrize("per_channel", [True, False])
def test_spikes_are_counted_before_the_pool_of_their_kernel(per_channel, pool, memory):
    torch.manual_seed(0)
    net = bs.Sequential(
        bs.OverTime(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)),
        bs.LIF(v_threshold=0.8, surrogate=bs.Parametric(bs.Triangle(alpha=0.8)), memory=memory),
        bs.OverTime(pool),
    ).double()
    x = numbers(4, 6, 2, 5, 7, scale=3.0)  # the pool leaves out a row and a column
    results = []
    for recorded in (False, True):  # a recorded membrane keeps norm, neuron and pool apart
        copied = copy.deepcopy(net)
        with PotentialAdjustment(copied, 1.0, per_channel=per_channel) as pda:
            if recorded:
                with bs.record(copied):
                    copied(x)
            else:
                copied(x)
            loss = pda.loss()
        loss.backward()
        results.append([loss, *(p.grad for p in copied.parameters())])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_loss_is_zero_for_equal_distributions():
    layer = bs.IF(v_threshold=1.5, v_reset=0.0, surrogate=bs.Rectangle(width=2.0))
    cases = [
        ({"target": "spikes"}, [0.0, 1.5, 1.5, 0.0, 0.0]),
        ({"target": "spikes", "form": "softmax"}, [0.0, 1.5, 1.5, 0.0, 0.0]),
        ({"target": "gaussian"}, [-1.5, 1.5]),
        ({"target": "window", "window": 0.5}, [0.5, 2.5]),
    ]
    for options, u in cases:
        with PotentialAdjustment(layer, 1.0, **options) as pda:
            layer(torch.tensor(u, dtype=torch.float64).view(1, 1, -1))
            assert pda.loss().item() == pytest.approx(0, abs=1e-14)
            layer(torch.tensor(u, dtype=torch.float64).view(1, 1, -1) * 1.01)
            assert pda.loss().item() > 1e-6


def test_a_silent_layer_has_a_finite_loss():
    layer = bs.LIF().double()
    with PotentialAdjustment(layer, 1.0) as pda:
        x = torch.zeros(3, 4, 5, dtype=torch.float64, requires_grad=True)
        layer(x)
        loss = pda.loss()
        loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert x.grad.isfinite().all()


def test_moments_save_no_membrane():
    layer = bs.LIF()
    x, v0 = torch.randn(3, 4, 5), torch.zeros(4, 5)
    with PotentialAdjustment(layer):
        assert layer(x, v0).membrane is None
    with PotentialAdjustment(layer, form="softmax"):
        assert layer(x, v0).membrane is not None
    assert layer.watchers == []


def test_pda_does_not_change_spikes():
    model = network()
    want = model(frames())
    with PotentialAdjustment(model):
        assert torch.equal(model(frames()), want)


def test_layers_and_strength_can_be_chosen():
    model = network()
    with (
        PotentialAdjustment(model, 1.0) as both,
        PotentialAdjustment(model, 2.0, layers=["3"]) as second,
    ):
        with PotentialAdjustment(model, 1.0, layers=["1"]) as first:
            model(frames())
        one, two = first.loss().item(), second.loss().item() / 2
        assert both.loss().item() == pytest.approx((one + two) / 2, rel=1e-12)
        assert one != pytest.approx(two, rel=0.1)


def test_warm_up_is_linear_and_resumes():
    layer, x = bs.LIF(), torch.randn(3, 4, 5) * 2

    def next_loss(pda):
        layer(x)
        return pda.loss().item()

    with PotentialAdjustment(layer, 1.0) as pda:
        full = next_loss(pda)
    with PotentialAdjustment(layer, 1.0, warmup=4) as pda:
        assert [next_loss(pda) / full for _ in range(2)] == pytest.approx([0.25, 0.5])
        with torch.no_grad():
            assert next_loss(pda) / full == pytest.approx(
                0.5
            )  # counts only where there is something to learn
        state = pda.state_dict()
    with PotentialAdjustment(layer, 1.0, warmup=4) as pda:
        pda.load_state_dict(state)
        assert [next_loss(pda) / full for _ in range(3)] == pytest.approx([0.75, 1.0, 1.0])


def test_pda_works_with_record_streaming_and_copies():
    model = network()
    with PotentialAdjustment(model, 1.0) as pda:
        with bs.record(model) as recorded:
            model(frames())
        alone = pda.loss()
        assert set(recorded) == {"1", "3"}
        assert alone.item() == pytest.approx(
            expected(model, recorded, "spikes", False, "moments").item(), rel=1e-12
        )
        assert len(model[1].watchers) == 1

        twin = copy.deepcopy(model)
        assert twin[1].watchers == []
        torch.save(model, io.BytesIO())
        twin(frames() * 3)
        with pytest.raises(RuntimeError, match="no watched layer ran since the last call"):
            pda.loss()

        with torch.no_grad(), bs.streaming(model):
            model.eval()
            parts = torch.cat([model(part) for part in frames().split(2)])
        assert torch.equal(parts, model(frames()))
        assert pda.loss().requires_grad
    assert model[1].watchers == []


def test_accumulation_float32_and_bf16():
    model, halves = network(), frames().split(3, dim=1)
    with PotentialAdjustment(model) as pda:

        def gradient(parts):
            model.zero_grad()
            for part in parts:
                (model(part).mean() + pda.loss()).backward()
            return model[0][0].weight.grad.clone()

        torch.testing.assert_close(
            gradient(halves), gradient(halves[:1]) + gradient(halves[1:]), **EXACT
        )
        model.float()
        (model(frames().float()).mean() + pda.loss()).backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(frames().float()).float().mean() + pda.loss()
        assert loss.dtype == torch.float32
        loss.backward()
        assert model[0][0].weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "spike"}, "target must be one of spikes, gaussian, window, got 'spike'"),
        ({"form": "histogram"}, "form must be 'moments' or 'softmax'"),
        ({"form": "softmax", "target": "window"}, "form='softmax' requires target='spikes'"),
        ({"strength": -1.0}, "strength must not be negative, got -1.0"),
        ({"strength": math.nan}, "strength must not be negative, got nan"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"layers": ["2"]}, r"names out of \['1', '3'\], got \['2'\]"),
        ({"layers": "1"}, "names out of"),
        ({"layers": []}, "names out of"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        PotentialAdjustment(network(), **options)


def test_wrong_use_is_explained():
    with pytest.raises(ValueError, match="no spiking layer"):
        PotentialAdjustment(nn.Linear(2, 2))
    layer = bs.LIF()
    with (
        PotentialAdjustment(layer, form="softmax"),
        pytest.raises(ValueError, match=r"needs features, .* \[3, 4\]"),
    ):
        layer(torch.zeros(3, 4))
    assert bs.PotentialAdjustment is PotentialAdjustment


# ------------------------------------------------------------------------------------- measurements


@pytest.mark.parametrize(
    ("surrogate", "width"),
    [
        (bs.Rectangle(width=1.5, scale=2.0), 1.5),
        (bs.Triangle(alpha=2.0), 0.5),
        (bs.ATan(alpha=3.0), 2 / 3),
        (bs.Sigmoid(alpha=5.0), 4 / 5),
        (bs.SuperSpike(alpha=4.0), 2 / 4),
        (bs.PiecewiseExponential(alpha=4.0), 2 / 4),
        (bs.Erf(alpha=2.0), math.sqrt(math.pi) / 2),
        (bs.Dspike(temperature=3.0), 2 * math.tanh(1.5) / 3),
    ],
)
def test_width_of_a_surrogate(surrogate, width):
    assert surrogate_width(bs.LIF(surrogate=surrogate)) == pytest.approx(width, rel=1e-5)
    learned = bs.LIF(surrogate=bs.Masked(bs.Parametric(surrogate)))
    with torch.no_grad():
        learned.log_width.fill_(math.log(3))
    assert surrogate_width(learned).item() == pytest.approx(3 * width, rel=1e-5)


def test_statistics_match_hand_calculation():
    layer = bs.IF(v_threshold=1.0, v_reset=0.0, surrogate=bs.Rectangle(width=0.5))
    x = torch.tensor(
        [[[-1.0, 0.0, 0.75, 1.25]], [[0.5, 0.0, 1.5, 2.0]]]
    )  # IF: the first u is x, then what is left adds
    with bs.record(layer) as recorded, torch.no_grad():
        layer(x)
    got = potential_statistics(layer, recorded)[""]
    u = np.array([[-1.0, 0.0, 0.75, 1.25], [-0.5, 0.0, 2.25, 2.0]])
    s = np.array([[0, 0, 0, 1], [0, 0, 1, 1]])
    np.testing.assert_array_equal(recorded[""].membrane[:, 0].numpy(), u)
    assert got["mean"] == pytest.approx(u.mean(1))
    assert got["std"] == pytest.approx(u.std(1))
    assert got["quantisation_error"] == pytest.approx(((u - s) ** 2).mean(1))
    assert got["active_share"] == pytest.approx([0.0, 0.0])  # at the edge is outside
    assert got["share_below"] == pytest.approx([0.5, 0.5])
    assert got["share_above"] == pytest.approx([0.0, 0.5])
    with pytest.raises(ValueError, match="membrane was not recorded"):
        potential_statistics(layer, {"": layer(x, torch.zeros(1, 4))})


def test_statistics_with_a_width_per_channel():
    layer = bs.LIF(
        surrogate=bs.Parametric(bs.Rectangle(), per_channel=True), channels=2, decay_input=False
    )
    with torch.no_grad():
        layer.log_width.copy_(torch.tensor([0.5, 3.0]).log())
    with bs.record(layer) as recorded:
        layer(torch.tensor([0.5, 0.5, 0.9, 0.0]).view(1, 1, 2, 2))
    assert potential_statistics(layer, recorded)[""]["active_share"] == pytest.approx([0.5])
    with PotentialAdjustment(layer, 1.0, "window") as pda:
        layer(torch.tensor([0.0, 2.0, 1.0 + 3.0, 1.0 - 3.0]).view(1, 1, 2, 2))
        v_p, v_q = np.array([1.0, 1.0, 9.0, 9.0]).mean() + 0.01, (0.25 + 9) / 2 + 0.01
        assert pda.loss().item() == pytest.approx(v_p / (4 * v_q) + v_q / (4 * v_p) - 0.5, rel=1e-5)


# of torch.compile itself, up to torch 2.11
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@needs_compile
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_gives_the_same_loss_and_gradient():
    def gradients(compiled):
        torch.manual_seed(0)
        model = bs.models.convnet("3-P", size=4, neuron=lambda channels: bs.LIF(v_threshold=0.5))
        pda = bs.PotentialAdjustment(model, strength=1.0)
        run = torch.compile(model, backend="aot_eager") if compiled else model
        (run(torch.full((2, 2, 1, 4, 4), 0.7)).sum() + pda.loss()).backward()
        return [p.grad for p in model.parameters()]

    for plain, compiled in zip(gradients(False), gradients(True)):
        torch.testing.assert_close(plain, compiled)


@pytest.mark.parametrize("form", ["moments", "softmax"])
def test_an_empty_batch_adds_no_loss(form):
    model = bs.Sequential(bs.OverTime(nn.Linear(4, 6)), bs.LIF())
    with bs.PotentialAdjustment(model, form=form) as pda:
        (model(torch.zeros(3, 0, 4)).sum() + pda.loss()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
