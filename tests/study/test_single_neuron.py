"""The single-neuron experiment: a batch agrees with single neurons, and reproduces paper B."""

import json

import pytest
import torch

from backspike.neuron.lif import lif
from backspike.study import single_neuron
from backspike.surrogate import Sigmoid

SMALL = single_neuron.Experiment(learning_rates=(0.02, 0.05), sets=2, problems=4, updates=3)


def test_problems_have_the_sizes_and_rates_of_the_experiment():
    batch = single_neuron.problems(40, 3)
    assert batch.a.shape == (40, 100, 100)
    assert batch.target.shape == (100, 40)
    assert float(batch.w.min()) >= 0
    assert float(batch.w.max()) <= 0.05
    assert float(batch.target.mean()) == pytest.approx(0.05, abs=0.01)
    # a filter of total weight 1 keeps the rate, except at the end of the window
    assert float(batch.a.mean()) == pytest.approx(0.1, abs=0.01)


def test_synapse_is_a_first_order_filter():
    s = (torch.rand(100, generator=torch.Generator().manual_seed(0)) < 0.3).double()
    a, expected = 0.0, []
    for spike in s.tolist():
        a = (1 - 1 / 2) * a + spike / 2
        expected.append(a)
    kernel = single_neuron.problems(1, 0, torch.float64).kernel
    torch.testing.assert_close(
        kernel @ s, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15
    )


def _alone(batch, w, p, rule):
    """The gradient of problem p alone, by the reference backend and a recursive filter."""
    w = w.clone().requires_grad_()
    x = batch.a[p] @ w
    options = {
        "spatial only": {"temporal_gradient": False},
        "STBP": {"reset_gradient": 0.0},
        "TSBP": {"reset_gradient": 1.0},
    }[rule]
    s = lif(
        x[:, None],
        tau=5.0,
        v_threshold=1.0,
        v_reset=0.0,
        decay_input=False,
        surrogate=Sigmoid(alpha=5.0),
        backend="reference",
        **options,
    ).spikes[:, 0]
    a, wanted, loss = 0.0, 0.0, 0.0
    for t in range(len(s)):
        a, wanted = 0.5 * a + 0.5 * s[t], 0.5 * wanted + 0.5 * batch.target[t, p]
        loss = loss + 0.5 * (a - wanted) ** 2
    return torch.autograd.grad(loss, w)[0]


@pytest.mark.parametrize("rule", single_neuron.RULES)
def test_batch_gradients_agree_with_each_problem_alone(rule):
    batch = single_neuron.problems(3, 1, torch.float64)
    w = batch.w[:, :, None] * torch.tensor([1.0, 1.7], dtype=torch.float64)
    got = single_neuron.gradient(batch, w, rule)
    expected = torch.stack(
        [torch.stack([_alone(batch, w[p, :, k], p, rule) for k in range(2)], -1) for p in range(3)]
    )
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_gradients_of_the_rules_differ():
    batch = single_neuron.problems(3, 1, torch.float64)
    a, b, c = (
        single_neuron.gradient(batch, batch.w[:, :, None] * 1.7, rule)
        for rule in single_neuron.RULES
    )
    assert not torch.allclose(a, b)
    assert not torch.allclose(b, c)
    assert not torch.allclose(a, c)


def test_a_problem_is_solved_if_the_trains_are_equal():
    batch = single_neuron.problems(2, 0)
    w = batch.w[:, :, None]
    target = single_neuron.spikes(batch, w, "TSBP").detach()[:, :, 0]
    own = batch._replace(target=target)
    assert single_neuron.train(own, (0.01,), "TSBP", 0).solved.all()
    off = target.clone()
    off[50, 0] = 1 - off[50, 0]
    assert single_neuron.train(own._replace(target=off), (0.01,), "TSBP", 0).solved[
        :, 0
    ].tolist() == [False, True]


def test_stbp_fails_where_tsbp_and_spatial_only_solve():
    batch = single_neuron.problems(24, 5)
    solved = {rule: single_neuron.train(batch, (0.02,), rule, 200) for rule in single_neuron.RULES}
    assert float(solved["STBP"].solved.float().mean()) < 0.4
    assert float(solved["STBP"].silent.float().mean()) > 0.5
    assert float(solved["TSBP"].solved.float().mean()) > 0.85
    assert float(solved["spatial only"].solved.float().mean()) > 0.85


def test_reset_cost_measures_both_rules():
    cost = single_neuron.reset_cost(T=3, elements=1000, repeats=3)
    assert set(cost["median_ms"]) == {"rho = 0", "rho = 1"}
    assert cost["ratio"] == pytest.approx(
        cost["median_ms"]["rho = 1"] / cost["median_ms"]["rho = 0"]
    )
    # at least the input of the neuron, 4 bytes of float32
    assert all(saved >= 4 for saved in cost["bytes_kept_per_element"].values())


def test_the_study_writes_all_its_files(tmp_path):
    events = []
    page = single_neuron.run(SMALL, tmp_path / "toy", listen=events.append)
    assert page.read_text("utf-8").count("<svg") == 2
    assert [e["event"] for e in events] == ["study", "rule", "rule", "rule", "done"]
    table = (tmp_path / "toy" / "table.md").read_text("utf-8").splitlines()
    assert [line.split("|")[1].strip() for line in table[2:4]] == ["0.02", "0.05"]
    stored = json.loads((tmp_path / "toy" / "study.json").read_text())
    assert stored["toy"]["sets"] == 2
    assert len(stored["rates"][0]["solved"]["TSBP"]) == 2
    assert stored["rates"][0]["difference"]["STBP"]["n"] == 8
    # again, with another number of sets: the same study
    single_neuron.run(SMALL, tmp_path / "toy", seeds=1)
    assert json.loads((tmp_path / "toy" / "study.json").read_text())["toy"]["sets"] == 1
