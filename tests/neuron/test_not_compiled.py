"""Own neurons that are not compiled, and why; and what does not compile one again."""

import pytest
import torch
from helpers.own_neurons import LIF

import backspike as bs
from backspike.kernel import compiler
from backspike.kernel.own import build

pytestmark = pytest.mark.skipif(compiler.find() is None, reason="there is no C compiler here")


def subclass(**body):
    return type("Mine", (bs.Neuron,), {"states": {"v": 0.0}, **body})


def branch(self, x, v):
    u = v + x if x.mean() > 0 else v - x
    return u, u


def cumsum(self, x, v):
    u = v + x.cumsum(-1)
    return u, u


def noise(self, x, v):
    u = v + x + torch.randn(())
    return u, u


def counter(self, x, v):
    self.n = getattr(self, "n", 0) + 1
    u = v + x * self.n
    return u, u


def other_dtype(self, x, v):
    u = v + x * torch.ones(5, dtype=torch.float64)
    return u.to(v.dtype), u.to(v.dtype)


def by_sample(self, x, v):
    u = v + x * torch.ones(3, 1, 1)
    return u, u


def alpha(self, x, v):
    u = torch.add(v, x, alpha=2)
    return u, u


def without_gradients(self, x, v):
    with torch.no_grad():
        w = v * 0.5
    return w + x, w + x


def long(self, x, v):
    for _ in range(1100):
        v = v * 0.5 + x
    return v, v


def stash(self, x, v):
    self.x = x
    return v + x, v + x


def unstash(self, s, v):
    return v - s * self.x


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (subclass(step=branch), "its methods cannot be traced|there is no rule for mean"),
        (subclass(step=cumsum), "there is no rule for cumsum"),
        (subclass(step=noise), "its methods do not compute the same each time"),
        (subclass(step=counter), "its methods do not compute the same each time"),
        (subclass(step=other_dtype), "a tensor of torch.float64 is used"),
        (subclass(step=by_sample), r"a tensor of the shape \[3, 1, 1\] differs between samples"),
        (subclass(step=alpha), "there is no rule for these arguments"),
        (subclass(step=without_gradients), "it switches gradients on or off"),
        (subclass(step=long), "a timestep has more than 1000 operations"),
        (subclass(step=stash, reset=unstash), "reset or adapt uses more than its arguments"),
        (subclass(step=lambda self, x, v: (v, 1.0)), "step returns something else than 2 rows"),
    ],
)
def test_what_has_no_rule_runs_in_torch_and_is_named(kind, words):
    with pytest.raises(bs.Unsupported, match=f"backend 'cpu': {words}.*; use backend='auto'"):
        kind(backend="cpu")(torch.rand(4, 3, 2, 5))
    backend, why = kind().runs_on()
    assert backend == "eager" or "samples" in words  # a batch of another size
    if words.startswith("there is no rule for cumsum"):
        assert "run in torch, one timestep after the other: there is no rule for cumsum" in why
        assert kind()(torch.rand(4, 3, 2, 5)).sum() > 0


def test_a_neuron_of_too_many_states_runs_in_torch():
    def step(self, x, *v):
        return v[0] + x, *(a + x for a in v)

    kind = subclass(states={f"v{i}": 0.0 for i in range(64)}, step=step)
    assert kind().runs_on()[1].endswith("its spike variable and states are more than 63 values")
    assert kind()(torch.rand(4, 3, 2)).sum() > 0


def test_a_subclass_whose_helper_draws_random_numbers_runs_in_torch():
    class Steady(bs.Neuron):
        states = {"v": 0.0}  # noqa: RUF012

        def factor(self):
            return torch.ones(())

        def step(self, x, v):
            u = v + x * self.factor()
            return u, u

    class Random(Steady):
        def factor(self):
            return torch.rand(())

    assert Steady().runs_on()[0] == "cpu"
    assert "do not compute the same each time" in Random().runs_on()[1]


def test_explain_compiles_nothing_anew_for_the_dtype_in_use():
    layer = LIF(backend="cpu")
    layer(torch.rand(4, 3, 2, dtype=torch.bfloat16, requires_grad=True))
    known = build._library.cache_info().misses
    assert "saves v" in bs.explain(layer)
    assert build._library.cache_info().misses == known


def test_a_surrogate_of_ones_own_runs_in_torch():
    class Mine:
        def derivative(self, z):
            return 1 / (1 + z * z)

        def primitive(self, z):
            return z.atan()

    layer = LIF(surrogate=Mine())
    assert layer.runs_on()[0] == "eager"
    assert "there is no formula in C for Mine" in bs.explain(layer)


def test_a_changed_number_takes_effect_and_is_not_compiled_again():
    class Scaled(LIF):
        factor = 1.0

        def step(self, x, v):
            u = v * 0.5 + x * self.factor
            return u, u

    layer, x = Scaled(backend="cpu"), torch.rand(6, 2, 3)
    once = layer(x)
    known = build._library.cache_info().misses
    layer.factor = 0.3
    assert not torch.equal(layer(x), once)
    assert torch.equal(layer(x), Scaled(backend="eager").train()(x * 0.3))
    assert build._library.cache_info().misses == known
