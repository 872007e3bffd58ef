"""Constants with a value per channel or neuron: given as tensors, drawn, learned."""

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import backspike as bs
from backspike.errors import RecipeError
from backspike.neuron.shifted import DelayedReset

SHAPE = (3, 4, 5)
EACH = [name for name in bs.backends() if name != "triton"]


def values(low, high, shape=SHAPE, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def currents(shape=SHAPE, T=9):
    generator = torch.Generator().manual_seed(2)
    return 2 * torch.rand(T, 2, *shape, generator=generator, dtype=torch.float64)


def by_hand(x, tau, theta, v_reset, decay):
    """The recursion neuron by neuron, on scalars: no broadcasting and no code of the library."""
    spikes, rest = torch.zeros_like(x), 0.0 if v_reset is None else v_reset
    for index in np.ndindex(*x.shape[1:]):
        v, own, limit = rest, float(tau[index[1:]]), float(theta[index[1:]])
        for t in range(len(x)):
            u = (1 - 1 / own) * v + rest / own + float(x[(t, *index)]) * (1 / own if decay else 1)
            fired = u >= limit
            spikes[(t, *index)] = float(fired)
            v = (u - limit if v_reset is None else v_reset) if fired else u
    return spikes


@pytest.mark.parametrize("decay", [True, False])
@pytest.mark.parametrize("v_reset", [None, -0.2])
@pytest.mark.parametrize("backend", EACH)
def test_every_neuron_has_its_own_tau_and_threshold(backend, v_reset, decay):
    tau, theta, x = values(1.5, 6), values(0.3, 0.9, seed=3), currents()
    layer = bs.LIF(tau, v_threshold=theta, v_reset=v_reset, decay_input=decay, backend=backend)
    spikes = layer(x)
    assert torch.equal(spikes, by_hand(x, tau, theta, v_reset, decay))
    assert 0.05 < spikes.mean() < 0.95


@pytest.mark.parametrize("decay", [False, True])
def test_a_reset_per_neuron_is_a_threshold_per_neuron(decay):
    x, tau, theta, r = currents(), values(2, 9), values(0.5, 1.2, seed=3), values(-0.4, 0.4, seed=4)
    spikes = torch.zeros_like(x)
    for index in np.ndindex(*SHAPE):
        at = (slice(None), slice(None), *index)
        lif = bs.LIF(
            float(tau[index]),
            v_threshold=float(theta[index]),
            v_reset=float(r[index]),
            decay_input=decay,
        )
        spikes[at] = lif(x[at])
    layer = bs.LIF(tau, v_threshold=theta - r, v_reset=0.0, decay_input=decay)
    assert torch.equal(layer(x), spikes)
    assert 0.02 < spikes.mean() < 0.9


@pytest.mark.parametrize("given", [torch.zeros(3), bs.Normal(0.0, 1.0)])
def test_a_reset_per_neuron_is_refused_with_the_way_out(given):
    for make in (bs.LIF, bs.CubaLIF, bs.PLIF):
        with pytest.raises(TypeError, match="give v_threshold one value per channel or neuron"):
            make(v_reset=given)


def gradients(backend, x, shape, kind=bs.LIF, **options):
    learn = [name for name in ("tau", "threshold", "tau_synapse") if name in kind.learnable]
    taus = {"tau_synapse": values(1.5, 4, shape, 7)} if kind is bs.CubaLIF else {}
    if backend == "reference":
        options = options | {"memory": "exact"}
    layer = kind(
        values(1.5, 6, shape), v_threshold=values(0.3, 0.9, shape, 3), learn=tuple(learn),
        backend=backend, **taus, **options,
    ).double()  # fmt: skip
    x = x.clone().requires_grad_()
    weights = torch.cos(torch.arange(x.numel(), dtype=torch.float64)).view(x.shape)
    (layer(x) * weights).sum().backward()
    return {"x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


@pytest.mark.parametrize("kind", [bs.LIF, bs.PLIF, bs.CubaLIF, bs.CLIF, bs.AdaptiveLIF])
@pytest.mark.parametrize("shape", [SHAPE, (6,)])
@pytest.mark.parametrize("backend", [name for name in EACH if name != "reference"])
def test_gradients_per_neuron_are_those_of_the_reference(backend, shape, kind):
    options = {"per": "neuron"} if kind is bs.PLIF else {}
    options |= {"reset_gradient": 0.5, "surrogate": bs.Masked(bs.ATan(), p=0.3)}
    found = []
    for name in (backend, "reference"):
        torch.manual_seed(5)
        found.append(gradients(name, currents(shape), shape, kind, **options))
    assert {"x", "log_tau_minus_1", "threshold"} <= set(found[0]) == set(found[1])
    for name, want in found[1].items():
        assert want.shape == (shape if name != "x" else (9, 2, *shape))
        assert (want != 0).float().mean() > 0.6
        torch.testing.assert_close(found[0][name], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", ["recompute", "bfloat16"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_every_memory_gives_gradients_per_neuron(backend, memory):
    if backend not in EACH:
        pytest.skip("no C kernel")
    want = gradients("reference", currents(), SHAPE, v_reset=0.0)
    found = gradients(backend, currents(), SHAPE, v_reset=0.0, memory=memory)
    close = 1e-12 if memory == "recompute" else 2e-2
    for name in want:
        torch.testing.assert_close(found[name], want[name], rtol=close, atol=close)


def test_fixed_taus_are_saved_copied_cast_and_loaded():
    """The report of a reload that changed the result: other taus without a word."""
    layer, x = bs.LIF(torch.tensor([1.5, 2.5, 7.0])), currents((3,)).float()
    want = layer(x)
    assert list(layer.state_dict()) == ["tau_values"]
    other = bs.LIF(torch.tensor([3.0, 3.0, 3.0]))
    assert not torch.equal(other(x), want)
    other.load_state_dict(layer.state_dict())
    for twin in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), want)
    assert copy.deepcopy(layer).double().tau.dtype == torch.float64
    assert layer.to("meta").tau_values.is_meta
    with pytest.raises(RuntimeError, match="Missing key"):
        bs.LIF(torch.ones(3) * 2).load_state_dict({})


def test_a_layer_prints_what_it_holds():
    assert repr(bs.LIF(torch.ones(3) * 2)) == "LIF(tau=<tensor [3]>, channels=3)"
    assert repr(bs.LIF(bs.Gamma(20), channels=3)) == "LIF(tau=Gamma(mean=20), channels=3)"


def test_a_given_tensor_is_copied():
    tau = torch.tensor([2.0, 3.0])
    layer = bs.LIF(tau)
    tau[0] = 9.0
    assert layer.tau.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: bs.LIF(nn.Parameter(torch.ones(3) * 2)), "tau requires a gradient"),
        (lambda: bs.LIF(torch.tensor([2.0, 1.0])), "all values of tau must be above 1"),
        (lambda: bs.LIF(v_threshold=torch.tensor([0.1, 0.5]), v_reset=0.2), "above 0.2, got 0.1"),
        (lambda: bs.LIF(torch.ones(3) * 2, channels=4), r"shape \[3\], but"),
        (lambda: bs.PLIF(torch.ones(3) * 2, per="layer"), "per='layer'"),
        (lambda: bs.LIF(bs.Gamma(20)), "channels="),
        (
            lambda: bs.LIF(torch.tensor([3.0, torch.inf]), decay_input=True),
            "all values of tau must be finite",
        ),
        (lambda: bs.LIF(torch.tensor([3.0, torch.inf]), learn="tau"), "must be finite"),
        (
            lambda: DelayedReset(bs.Gamma(9), per="neuron", channels=(2, 3, 3)),
            "constants per layer or channel",
        ),
        (lambda: bs.LIF(learn="tau", per="neuron"), "needs channels="),
        (lambda: bs.LIF(per="row"), "per must be one of layer, channel, neuron"),
        (lambda: bs.LIF(bs.Gamma(0.01, 50), channels=9), "hardly any values above 1"),
        (lambda: bs.LIF(reset_gradient=torch.tensor(1.0)), "reset_gradient must be a number"),
        (lambda: bs.LIF(v_reset=torch.zeros(3)), "v_reset must be a number"),
        (lambda: bs.AdaptiveLIF(a=torch.ones(3)), "a must be a number"),
        (lambda: bs.Integrator(torch.tensor(2.0)), "tau must be a number or None"),
        (lambda: bs.LIF(torch.ones(3) * 2)(currents((4,))), "tau must be 0-dim or"),
        (
            lambda: bs.LIF(learn="tau", per="neuron", channels=3)(currents()),
            r"value for each neuron of a sample, \[3, 4, 5\]; got shape \[3\]",
        ),
        (lambda: bs.Gamma(-1), "Gamma: mean must be positive"),
        (lambda: bs.Uniform(2, 1), "low must be below high"),
        (lambda: setattr(bs.LIF(torch.ones(3) * 2), "tau", 3.0), "change tau_values in place"),
        (lambda: setattr(bs.LIF(), "tau", torch.ones(3)), "to a new layer"),
    ],
)
def test_what_would_be_lost_is_refused(make, words):
    with pytest.raises((ValueError, TypeError, AttributeError), match=words) as e:
        make()
    assert "\n" not in str(e.value)


def test_plif_learns_one_tau_unless_its_constants_vary():
    assert bs.PLIF(torch.tensor(3.0), channels=4).log_tau_minus_1.shape == ()
    assert bs.PLIF(v_threshold=torch.ones(4)).log_tau_minus_1.shape == (4,)


def test_learned_constants_have_the_shape_that_per_says():
    shapes = {"layer": (), "channel": (3,), "neuron": SHAPE}
    for per, shape in shapes.items():
        layer = bs.LIF(learn=("tau", "threshold"), channels=SHAPE, per=per)
        assert layer.log_tau_minus_1.shape == layer.threshold.shape == shape
    assert bs.LIF(learn="tau", channels=10).log_tau_minus_1.shape == (10,)
    assert bs.LIF(learn="tau").log_tau_minus_1.shape == ()
    assert bs.PLIF(channels=10).log_tau_minus_1.shape == ()
    cuba = bs.CubaLIF(tau_synapse=bs.Uniform(2, 5), learn="tau_synapse", channels=10)
    assert cuba.log_tau_synapse_minus_1.shape == (10,)
    assert cuba.tau_synapse_values is None


@pytest.mark.parametrize(
    ("drawn", "mean", "std"),
    [
        (bs.Gamma(20, 4), 20, 10),
        (bs.Normal(20, 3), 20, 3),
        (bs.Uniform(4, 16), 10, 12 / math.sqrt(12)),
    ],
)
def test_draws_have_the_moments_of_their_distribution(drawn, mean, std):
    x = drawn.draw(200_000, -math.inf, seed=0)
    assert x.mean() == pytest.approx(mean, rel=0.01)
    assert x.std() == pytest.approx(std, rel=0.01)
    assert drawn.center == mean
    assert (drawn.draw(1000, 12.0, seed=0) > 12).all()


def test_uniform_decay_is_uniform_in_the_leak():
    tau = bs.UniformDecay(5, 25).draw(100_000, 1, seed=0)
    lam = np.sort(1 - 1 / tau)
    assert abs(lam - np.linspace(0.8, 0.96, len(lam))).max() < 2e-3
    assert tau.mean() == pytest.approx(bs.UniformDecay(5, 25).center, rel=0.01)


def test_draws_follow_the_seed():
    def tau(**options):
        return bs.LIF(bs.Gamma(20, **options), channels=6).tau

    torch.manual_seed(3)
    first, second = tau(), tau()
    torch.manual_seed(3)
    assert torch.equal(tau(), first)
    assert not torch.equal(first, second)
    assert torch.equal(tau(seed=4), tau(seed=4))
    assert not torch.equal(tau(seed=4), tau(seed=5))


def test_learned_values_stay_within_their_distribution():
    layer = bs.LIF(bs.Uniform(4, 8), channels=2, learn="tau")
    with torch.no_grad():
        layer.log_tau_minus_1.copy_(torch.tensor([-9.0, 9.0]))
        assert layer.constants().tau.tolist() == pytest.approx([4, 8])
        layer(currents((2,)).float())
        assert layer.log_tau_minus_1.tolist() == [-9.0, 9.0]
    layer(currents((2,)).float())
    assert (1 + layer.log_tau_minus_1.exp()).tolist() == pytest.approx([4, 8])


@pytest.mark.parametrize("backend", EACH)
def test_membrane_state_moments_and_streaming_keep_the_shape_of_a_sample(backend):
    layer, x = bs.LIF(values(1.5, 6), backend=backend), currents()
    out = layer(x, torch.zeros(2, *SHAPE, dtype=torch.float64))
    assert out.spikes.shape == x.shape
    assert out.state.shape == x.shape[1:]
    with bs.record(layer) as outputs:
        layer(x)
    assert outputs[""].membrane.shape == x.shape
    with bs.streaming(layer), torch.no_grad():
        parts = torch.cat([layer(part) for part in x.split(4)])
    assert torch.equal(parts, layer(x))


def test_a_network_with_values_per_neuron_trains_and_explains_itself():
    torch.manual_seed(0)
    neuron = bs.LIF(bs.Gamma(3), per="neuron", channels=(4, 5, 5), learn=("tau", "threshold"))
    model = bs.Sequential(bs.OverTime(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)), neuron)
    before = neuron.tau_in_use("tau", "log_tau_minus_1").detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 10.0)
    model(torch.rand(6, 2, 2, 5, 5)).mean().backward()
    optimizer.step()
    assert (neuron.tau_in_use("tau", "log_tau_minus_1") != before).float().mean() > 0.9
    text = bs.explain(model)
    assert "values of their own: tau [4, 5, 5], v_threshold [4, 5, 5]" in text
    assert "BatchNorm2d 0.1 not fused: the constants differ from neuron to neuron" in text


def test_a_recurrent_layer_takes_taus_per_neuron_in_one_kernel():
    layer = bs.Recurrent(nn.Linear(6, 6), bs.LIF(values(1.5, 6, (6,)), learn="tau")).double()
    x = currents((6,))
    assert layer.why_step_by_step(x) is None
    found = []
    for backend in ("auto", "reference"):
        layer.neuron.backend = backend
        layer.zero_grad()
        layer(x).pow(2).sum().backward()
        found.append([p.grad.clone() for p in layer.parameters()])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    slow = bs.Recurrent(nn.Linear(6, 6), bs.CubaLIF(tau_synapse=values(1.5, 6, (6,))))
    assert slow.why_step_by_step(x.float()) == "tau_synapse differs from neuron to neuron"


def test_a_recipe_holds_distributions_as_text():
    recipe = bs.recipes.spoken_digits().replace(
        {"neuron.tau": "Gamma(9, shape=4)", "neuron.per": "neuron"}
    )
    assert recipe.neuron.tau == bs.Gamma(9, 4)
    assert bs.Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipe.network().state_dict()["features.1.neuron.tau_values"].shape == (128,)
    with pytest.raises(RecipeError, match=r"set neuron\.per to channel or neuron"):
        recipe.replace({"neuron.per": "layer"})


def test_shd_has_the_taus_of_its_paper():
    state = bs.recipes.shd().network().state_dict()
    lam = torch.sigmoid(state["features.1.neuron.log_tau_minus_1"])  # 1 - 1/tau
    assert lam.shape == (128,)
    assert math.exp(-1 / 5) - 1e-4 < lam.min() < lam.max() < math.exp(-1 / 25) + 1e-4
    assert lam.max() - lam.min() > 0.1


@pytest.mark.parametrize("kind", [bs.LIF, bs.CubaLIF])
def test_values_per_neuron_reach_nir_and_onnx(kind, tmp_path):
    pytest.importorskip("nir")
    torch.manual_seed(0)
    taus = {"tau_synapse": values(1.5, 4, (2, 4, 4), 9)} if kind is bs.CubaLIF else {}
    tau, theta = values(1.5, 6, (2, 4, 4)), values(0.3, 0.9, (2, 4, 4), 3)
    model = bs.Sequential(
        bs.OverTime(nn.Conv2d(1, 2, 3, padding=1)),
        kind(tau, v_threshold=theta, **taus, v_reset=0.0),
    ).double()
    sample = 3 * torch.rand(8, 2, 1, 4, 4, dtype=torch.float64)
    assert bs.nir.write(model, tmp_path / "a.nir", sample).spikes > 5
    pytest.importorskip("onnxscript")
    bs.onnx.write(model.float(), tmp_path / "a.onnx", sample.float())


def test_a_run_trains_saves_and_shows_its_taus(tmp_path):
    """One epoch; the report has the histogram before and after, the run loads with its taus."""
    recipe = bs.recipes.digits().replace(
        {"neuron.tau": "Gamma(6, seed=1)", "neuron.learn": "('tau',)", "epochs": 1, "limit": 64}
    )
    bs.fit(recipe, tmp_path / "run")
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    first, last = (
        next(e["constants"] for e in log if e["event"] == event) for event in ("initial", "epoch")
    )
    assert set(first) == set(last)
    assert first != last
    for name, before in first.items():
        assert sum(before["counts"]) == sum(last[name]["counts"]) > 8
        assert before["edges"][0] > 1
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Constants of the neurons" in page
    assert page.count("Histogram of") == len(last)
    assert "Gamma(mean=6" in page
    loaded = bs.load(tmp_path / "run").model
    taus = [layer.constants().tau for layer in loaded.modules() if isinstance(layer, bs.LIF)]
    assert taus[0].dim() == 1
    assert float(taus[0].detach().min()) == pytest.approx(
        next(iter(last.values()))["edges"][0], rel=1e-4
    )


def network():
    torch.manual_seed(7)
    neuron = bs.LIF(bs.Gamma(6), v_threshold=bs.Uniform(0.2, 0.6), channels=12, learn="tau")
    return bs.Sequential(bs.OverTime(nn.Linear(5, 12)), neuron)


def two_ranks(rank, folder):
    """One step on half of the batch, by DistributedDataParallel."""
    where = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", where, rank=rank, world_size=2)
    model = network()
    drawn = {name: t.clone() for name, t in model.state_dict().items()}
    parallel = nn.parallel.DistributedDataParallel(model)
    parallel(batch().chunk(2, 1)[rank]).mean().backward()
    torch.save([drawn, model[1].log_tau_minus_1.grad], f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def batch():
    return torch.rand(9, 4, 5, generator=torch.Generator().manual_seed(3))


def test_one_and_two_ranks_draw_the_same_and_learn_the_same(tmp_path):
    torch.multiprocessing.spawn(two_ranks, (str(tmp_path),), nprocs=2)
    model = network()
    drawn = {name: t.clone() for name, t in model.state_dict().items()}
    model(batch()).mean().backward()
    for rank in range(2):
        theirs, gradient = torch.load(tmp_path / f"{rank}.pt")
        assert all(torch.equal(theirs[name], value) for name, value in drawn.items())
        torch.testing.assert_close(gradient, model[1].log_tau_minus_1.grad, rtol=1e-5, atol=1e-8)
    assert {"1.log_tau_minus_1", "1.v_threshold_values"} <= set(drawn)
