"""The certificate: its cases cover what may be combined, faults of every kind are found, and the command says so."""

import dataclasses
import itertools
import json
import shlex
import types
from importlib import import_module

import pytest
import torch

import backspike as bs
from backspike import certify
from backspike.certify import check
from backspike.certify.pairwise import pairwise, possible_pairs
from backspike.cli import main
from backspike.kernel import eager
from backspike.kernel.cpu import library

dispatch = import_module(
    "backspike.kernel.dispatch"
)  # the module: the package has a function of that name

AXES = {axis: list(values) for axis, values in check.AXES.items()}


def pairs_of(case):
    return set(itertools.combinations(case.items(), 2))


# ------------------------------------------------------------------------------------------------------ the covering set


def test_pairs_that_no_allowed_case_holds_are_left_out_and_all_others_are_covered():
    """Against a brute-force search; one rule forbids a pair, one a triple."""
    axes = {"a": list("xyz"), "b": list("pqrs"), "c": list("01"), "d": list("uvw"), "e": list("01")}

    def allowed(case):
        triple = (case["b"], case["c"], case["d"]) == ("q", "1", "v")
        return not triple and not (case["a"] == "z" and case["d"] == "w")

    cases = pairwise(axes, allowed)
    every = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    possible = set().union(*(pairs_of(case) for case in every if allowed(case)))
    assert possible < set(possible_pairs(axes))
    assert all(allowed(case) for case in cases)
    assert set().union(*(pairs_of(case) for case in cases)) == possible
    assert len(cases) < 20 < 144 // 3


@pytest.mark.parametrize("place", check.places(), ids=lambda p: p.name)
def test_every_pair_of_options_is_covered_and_nothing_refused_is_counted(place):
    """What is not covered no case holds, whatever stands beside it; only these five options decide that."""
    axes = {**AXES, "memory": ["exact"]} if place.backend == "reference" else AXES
    cases = pairwise(axes, lambda case: not check._refusal(place, case))
    assert not [case for case in cases if check._refusal(place, case)]
    missing = set(possible_pairs(axes)) - set().union(*(pairs_of(case) for case in cases))
    decide = ("surrogate", "v_reset", "mask", "learned", "memory")
    for (a, v), (b, w) in missing:
        assert {a, b} <= {*decide}
        for values in itertools.product(*(AXES[axis] for axis in decide)):
            if (case := dict(zip(decide, values)))[a] == v and case[b] == w:
                assert check._refusal(
                    place, {**{axis: values[0] for axis, values in AXES.items()}, **case}
                )
    assert bool(missing) == (place.backend != "reference")


# ---------------------------------------------------------------------------------------------------------------- faults


def injected(monkeypatch, fault):
    """The backend "faulty": `eager` with a fault in what it is called with or in what comes out."""
    module = types.SimpleNamespace(refuses=lambda call: None, run=fault)
    monkeypatch.setitem(dispatch._BACKENDS, "faulty", module)


def ruled(**change):
    return lambda call: eager.run(
        dataclasses.replace(call, neuron=dataclasses.replace(call.neuron, **change))
    )


def unscaled(call):
    surrogate = call.neuron.surrogate
    if isinstance(surrogate, bs.Masked):
        surrogate = dataclasses.replace(surrogate, rescale=False)
    return ruled(surrogate=surrogate)(call)


def called(change):
    return lambda call: eager.run(dataclasses.replace(call, **change(call)))


def one_spike_more(call):
    out = eager.run(call)
    flipped = out.spikes.detach().clone()
    flipped.view(-1)[77] = 1 - flipped.view(-1)[77]
    return out._replace(spikes=out.spikes + (flipped - out.spikes).detach())


def above(theta):
    """Ties no longer fire."""
    return theta * (1 + 2**-20)


FAULTS = {
    "no gradient through the reset": (ruled(reset_gradient=0.0), "gradient of x"),
    "no gradient over time": (ruled(temporal_gradient=False), "gradient of x"),
    "no rescaling": (unscaled, "gradient of x"),
    "one spike": (one_spike_more, "spikes differ in 1 places"),
    "ties": (called(lambda call: {"theta": above(call.theta)}), "spikes differ"),
    "another mask": (
        called(lambda call: {"seed": None if call.seed is None else call.seed + 1}),
        "mask bits differ",
    ),
    "wider surrogate": (
        called(lambda call: {"width": None if call.width is None else call.width * 1.001}),
        "gradient of",
    ),
    "threshold that does not learn": (
        called(
            lambda call: {
                "theta": call.theta.detach() if isinstance(call.theta, torch.Tensor) else call.theta
            }
        ),
        "gradient of v_threshold",
    ),
    "tau that learns half": (
        called(
            lambda call: {
                "tau": (call.tau + call.tau.detach()) / 2
                if isinstance(call.tau, torch.Tensor)
                else call.tau
            }
        ),
        "gradient of tau",
    ),
    "coarser memory": (
        lambda call: (
            ruled(memory="8bit")(call)
            if call.neuron.memory == "bfloat16" and not isinstance(call.tau, torch.Tensor)
            else eager.run(call)
        ),
        "gradient of x",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(monkeypatch, fault):
    run, said = FAULTS[fault]
    injected(monkeypatch, run)
    made = certify.run({"backend": "faulty", "dtype": "float32", "surrogate": "ATan"})
    assert not made.passed
    assert any(said in finding.reason for finding in made.failed)
    assert made.rows["faulty"].failed == len(made.failed)


def test_the_backend_without_a_fault_passes(monkeypatch):
    injected(monkeypatch, eager.run)
    assert certify.run({"backend": "faulty", "dtype": "float32", "surrogate": "ATan"}).passed


def test_the_command_names_what_failed_and_that_command_fails_alone(monkeypatch, capsys, tmp_path):
    injected(monkeypatch, unscaled)
    file = tmp_path / "certificate.md"
    assert main(["certify", "--only", "backend=faulty,surrogate=Triangle", "--out", str(file)]) == 1
    shown = capsys.readouterr().out
    command = next(
        line.strip()
        for line in shown.splitlines()
        if line.strip().startswith("backspike certify --only")
    )
    assert "mask=rescale" in command
    assert command in file.read_text()
    written = json.loads(file.with_suffix(".json").read_text())
    assert not written["passed"]
    assert command in [failure["command"] for failure in written["failed"]]
    assert main([*shlex.split(command)[1:], "--json"]) == 1
    *_, case, done = map(json.loads, capsys.readouterr().out.splitlines())
    assert case["event"] == "case"
    assert "gradient of x" in case["failed"]
    assert (done["event"], done["cases"], done["passed"]) == ("done", 1, False)
    monkeypatch.setitem(dispatch._BACKENDS, "faulty", eager)
    assert main(shlex.split(command)[1:]) == 0


def test_what_a_backend_raises_is_a_finding(monkeypatch):
    def breaks(call):
        raise ArithmeticError("no such thing\nsecond line")

    injected(monkeypatch, breaks)
    made = certify.run(
        {"backend": "faulty", "dtype": "float32", "memory": "exact", "surrogate": "ATan"}
    )
    assert {finding.reason for finding in made.failed} == {"raised ArithmeticError: no such thing"}


def test_what_is_refused_is_said_and_not_counted(monkeypatch):
    injected(monkeypatch, eager.run)
    dispatch._BACKENDS["faulty"].refuses = lambda call: (
        "not in float16" if call.x.dtype == torch.float16 else None
    )
    seen = []
    made = certify.run(
        {"backend": "faulty", "surrogate": "ATan", "v_reset": "0", "call": "plain"},
        listen=seen.append,
    )
    assert made.passed
    assert "backend 'faulty': not in float16; use backend='auto'" in made.rows["faulty"].refused
    cases = [event for event in seen if event["event"] == "case"]
    assert len(cases) == made.cases
    assert {case["dtype"] for case in cases} == {"float32", "float64", "bfloat16"}


# --------------------------------------------------------------------------------------------------------------- the rest


def test_all_runs_every_combination_that_is_allowed():
    """2 resets gradients x 2 rules in time x ...: counted by hand for what is left open."""
    only = {
        "backend": "eager",
        "dtype": "float32",
        "surrogate": "Rectangle",
        "call": "plain",
        "v_reset": "None",
    }
    only |= {"mask": "none", "decay_input": "True", "reset_gradient": "1"}
    made = certify.run(only, all=True)
    # 2 temporal x (5 learned x 3 memories + 8bit without tau: 3 + 1bit alone: 1)
    assert made.cases == 2 * (5 * 3 + 3 + 1)
    assert made.passed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "backend"], "--only takes NAME=VALUE pairs"),
        (["--only", "back=cpu"], "no option 'back'; there are: backend, surrogate"),
        (
            ["--only", "dtype=float8"],
            "dtype is one of float32, float64, bfloat16, float16; got 'float8'",
        ),
        (
            ["--only", "backend=eager,memory=1bit,surrogate=ATan"],
            "memory='1bit' needs surrogate=Rectangle",
        ),
        (["--out", "certificate.txt"], "--out names a Markdown file"),
    ],
)
def test_a_wrong_command_says_what_there_is(capsys, monkeypatch, tmp_path, words, said):
    monkeypatch.chdir(tmp_path)
    assert main(["certify", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_levels_of_the_processor_compute_with_their_own_library():
    levels = library.levels()
    assert bool(levels) == ("cpu" in bs.backends())
    before = library._c
    for i, name in enumerate(levels):
        with library.level(name):
            assert (library._c._name == before._name) == (i == 0)
    assert library._c is before


@pytest.mark.slow
def test_this_machine():
    made = certify.run()
    assert made.passed
    assert set(made.rows) == {place.name for place in check.places()}
    assert sum(row.masks for row in made.rows.values()) > 40
