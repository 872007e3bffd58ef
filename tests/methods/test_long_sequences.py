"""Gradients in chunks of time: exact, truncated, and with memory that does not grow with T."""

import pytest
import torch
from helpers.saved import PeakOfSaved
from torch import nn
from torch.nn import functional as F

import backspike as bs

T, B, K = 11, 3, 3
Y = torch.tensor([0, 1, 2])
TIMES = torch.linspace(0.2, 1.8, T, dtype=torch.float64).view(T, 1, 1)


def lif(**options):
    options = {"v_reset": 0.0, "decay_input": True, "reset_gradient": 1.0} | options
    return bs.LIF(surrogate=bs.SuperSpike(), v_threshold=0.3, **options)


def dense(n, m):
    return bs.OverTime(nn.Linear(n, m))


def cuba():
    return bs.CubaLIF(surrogate=bs.SuperSpike(), v_threshold=0.3)


def adaptive():
    learn = ("tau", "tau_adaptation", "a", "b")
    return bs.AdaptiveLIF(surrogate=bs.SuperSpike(), v_threshold=0.3, learn=learn)


def conv(neuron, **options):
    return bs.Sequential(
        bs.OverTime(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)),
        neuron(surrogate=bs.SuperSpike(), v_threshold=0.3, **options),
        bs.OverTime(nn.AvgPool2d(2)),
        bs.OverTime(nn.Conv2d(4, 4, 3)),
        bs.PLIF(surrogate=bs.SuperSpike(), v_threshold=0.3),
        bs.OverTime(nn.Flatten(), nn.Linear(16, K)),
    ).eval()  # statistics of BatchNorm that do not depend on the chunk


NETWORKS = {
    "two states and an integrator": lambda: nn.Sequential(
        *(dense(5, 7), lif(), dense(7, 6), cuba(), dense(6, K), bs.Integrator(tau=3.0))
    ),
    "recurrence in the kernel": lambda: nn.Sequential(
        *(dense(5, 7), bs.Recurrent(nn.Linear(7, 7), lif()), dense(7, 6)),
        *(bs.Recurrent(nn.Linear(6, 6, bias=False), cuba()), dense(6, K)),
    ),
    "recurrence step by step": lambda: nn.Sequential(
        dense(5, 7), bs.Recurrent(nn.Linear(7, 7), bs.CLIF(v_threshold=0.3)), dense(7, K)
    ),
    "adaptation in the kernel": lambda: nn.Sequential(
        *(dense(5, 7), bs.Recurrent(nn.Linear(7, 7), adaptive()), dense(7, 6), adaptive()),
        dense(6, K),
    ),
    "delays and a sliding neuron": lambda: nn.Sequential(
        *(bs.Delay(5, 3), dense(5, 7), bs.PSN(order=4, v_threshold=0.3)),
        *(bs.Delay(7, 2, out_features=6), bs.LIF(v_threshold=0.3), dense(6, K)),
    ),
    "convolutions": lambda: conv(bs.LIF),
    "checkpointed blocks": lambda: conv(bs.LIF, memory="checkpoint"),
    "learned threshold, soft reset": lambda: conv(bs.LIF, learn="threshold", v_reset=None),
    "membrane norm": lambda: nn.Sequential(
        dense(5, 7), bs.MPBN(channels=7, v_threshold=0.3), dense(7, K)
    ),
}


def network(name):
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    shape = (2, 8, 8) if isinstance(model, bs.Sequential) else (5,)
    return model, torch.randn(T, B, *shape, dtype=torch.float64)


def loss(o):
    """Weights every timestep differently."""
    return F.cross_entropy((TIMES * o).mean(0), Y) + (o[-1] ** 2).mean()


def take_gradients(model):
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


def assert_close(found, wanted, within=1e-12):
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).abs().max()) <= within * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("size", [None, 1, 5, 20])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_in_chunks_are_those_of_the_whole_sequence(name, size):
    model, x = network(name)
    wanted_o = model(x)
    wanted = loss(wanted_o)
    wanted.backward()
    whole = take_gradients(model)
    found, o = bs.backward_in_chunks(model, x, loss, size)
    assert torch.equal(o, wanted_o.detach())
    assert abs(found.item() - wanted.item()) <= 1e-12
    assert_close(take_gradients(model), whole)
    assert max(float(g.abs().max()) for g in whole) > 1e-3


def test_images_that_repeat_over_time_are_accepted():
    model, x = network("convolutions")
    x = x[0].expand(T, B, 2, 8, 8)
    loss(model(x)).backward()
    whole = take_gradients(model)
    bs.backward_in_chunks(model, x, loss)
    assert_close(take_gradients(model), whole)


def test_calls_that_do_not_detach_are_differentiated_as_one():
    model, x = network("two states and an integrator")
    loss(model(x)).backward()
    whole = take_gradients(model)
    with bs.streaming(model, detach=False):
        loss(torch.cat([model(c) for c in x.split(4)])).backward()
    assert_close(take_gradients(model), whole)


def by_hand(x, w1, w2, size):
    """Two layers whose membranes are detached every `size` timesteps; soft reset, tau = 2."""
    v1, v2, outputs = torch.zeros(B, 6).double(), torch.zeros(B, K).double(), []
    surrogate = bs.SuperSpike()
    for t in range(T):
        if t % size == 0:
            v1, v2 = v1.detach(), v2.detach()
        u = v1 / 2 + x[t] @ w1.T / 2
        p = surrogate.primitive(u - 0.3)
        s = (u >= 0.3).double() + p - p.detach()
        v1 = u - 0.3 * s
        v2 = v2 * (2 / 3) + s @ w2.T / 3
        outputs.append(v2)
    return torch.stack(outputs)


@pytest.mark.parametrize("size", [1, 4, 11])
def test_truncation_is_a_loop_by_hand_with_detached_states(size):
    torch.manual_seed(1)
    w1 = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    w2 = torch.randn(K, 6, dtype=torch.float64, requires_grad=True)
    x = torch.randn(T, B, 5, dtype=torch.float64)
    model = nn.Sequential(
        bs.OverTime(nn.Linear(5, 6, bias=False)),
        *(lif(v_reset=None), bs.OverTime(nn.Linear(6, K, bias=False)), bs.Integrator(tau=3.0)),
    ).double()
    with torch.no_grad():
        model[0][0].weight.copy_(w1)
        model[2][0].weight.copy_(w2)
    loss(by_hand(x, w1, w2, size)).backward()
    bs.backward_in_chunks(model, x, loss, size, truncate=True)
    assert_close(take_gradients(model), [w1.grad, w2.grad])


def test_truncation_of_a_loss_per_timestep_is_a_streaming_loop():
    model, x = network("recurrence in the kernel")
    each = lambda o: F.cross_entropy(o.flatten(0, 1), Y.repeat(len(o)), reduction="sum") / T  # noqa: E731
    with bs.streaming(model):
        for chunk in x.split(4):
            each(model(chunk)).backward()
    wanted = take_gradients(model)
    bs.backward_in_chunks(model, x, each, 4, truncate=True)
    assert_close(take_gradients(model), wanted)


@pytest.mark.parametrize("truncate", [False, True])
def test_both_passes_draw_the_same_masks_and_dropouts(truncate):
    torch.manual_seed(0)
    surrogate = bs.Masked(bs.SuperSpike(), p=0.5)
    model = nn.Sequential(
        *(dense(5, 7), bs.LIF(surrogate=surrogate, v_threshold=0.3), bs.OverTime(nn.Dropout(0.5))),
        *(dense(7, 6), bs.LIF(surrogate=surrogate, v_threshold=0.3), dense(6, K)),
    ).double()
    x = torch.randn(T, B, 5, dtype=torch.float64)
    torch.manual_seed(7)
    outputs = []
    with bs.streaming(model, detach=truncate):
        for chunk, seed in zip(x.split(4), torch.randint(2**63 - 1, (3,)).tolist()):
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                outputs.append(model(chunk))
    loss(torch.cat(outputs)).backward()
    wanted, after = take_gradients(model), torch.get_rng_state()
    torch.manual_seed(7)
    _, o = bs.backward_in_chunks(model, x, loss, 4, truncate=truncate)
    assert torch.equal(o, torch.cat(outputs))
    assert_close(take_gradients(model), wanted)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("truncate", [False, True])
def test_running_statistics_are_updated_once_per_chunk(truncate):
    torch.manual_seed(0)
    model = nn.Sequential(
        bs.OverTime(nn.Linear(5, 7), nn.BatchNorm1d(7)), lif(), dense(7, K)
    ).double()
    x = torch.randn(T, B, 5, dtype=torch.float64)
    norm = model[0][1]
    bs.backward_in_chunks(model, x, loss, 4, truncate=truncate)
    chunks = [model[0][0](c).flatten(0, 1).detach() for c in x.split(4)]
    mean = torch.zeros(7, dtype=torch.float64)
    for c in chunks if truncate else reversed(chunks):
        mean = 0.9 * mean + 0.1 * c.mean(0)
    assert int(norm.num_batches_tracked) == 3
    assert_close([norm.running_mean], [mean])


def test_all_chunks_but_the_last_one_differentiated_run_in_the_given_context():
    model, x = network("two states and an integrator")
    for truncate in (False, True):
        entered = []

        class Context:
            def __enter__(self, entered=entered):
                entered.append("in")

            def __exit__(self, *_):
                pass

        bs.backward_in_chunks(model, x, loss, 4, truncate=truncate, accumulating=Context)
        assert entered == ["in"] * 2


def peak(run, T):
    torch.manual_seed(0)
    model = nn.Sequential(dense(20, 64), lif(), dense(64, 64), lif(), dense(64, K))
    x = torch.rand(T, B, 20)
    with PeakOfSaved() as saved:
        run(model, x, lambda o: F.cross_entropy(o.mean(0), Y))
    return saved.peak


def plain(model, x, loss):
    loss(model(x)).backward()


def truncated(model, x, loss):
    bs.backward_in_chunks(model, x, loss, 10, truncate=True)


def online(model, x, loss):
    with bs.ottt(model):
        bs.backward_in_chunks(model, x, loss, 1, truncate=True)


def test_what_is_saved_for_backward_grows_with_the_chunk_and_not_with_time():
    assert peak(plain, 1600) > 14 * peak(plain, 100)
    assert 3 < peak(bs.backward_in_chunks, 1600) / peak(bs.backward_in_chunks, 100) < 5
    assert peak(truncated, 1600) == peak(truncated, 100) < peak(plain, 1600) / 50
    assert peak(online, 400) == peak(online, 100) < peak(plain, 400) / 20


def test_bad_arguments_are_refused():
    model, x = network("two states and an integrator")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        bs.backward_in_chunks(model, x, loss, 0)
    with pytest.raises(ValueError, match=r"x must be \[T, B, ...\], got shape \[0, 3, 5\]"):
        bs.backward_in_chunks(model, x[:0], loss)
