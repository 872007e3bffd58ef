"""The certificate: cases cover all pairs of options, faults are found, the command reports them."""

import dataclasses
import itertools
import json
import shlex
import types
from contextlib import contextmanager
from importlib import import_module

import pytest
import torch

import backspike as bs
from backspike import certify
from backspike.certify import check, networks
from backspike.certify.pairwise import pairwise, possible_pairs
from backspike.cli import main
from backspike.kernel import eager, saved
from backspike.kernel.cpu import library
from backspike.layers import over_time, synapse
from backspike.neuron.hooks import Handle, spiking_layers, watch
from backspike.neuron.lif import Watcher

# the module, because the package has a function of the same name
dispatch = import_module("backspike.kernel.dispatch")

AXES = {axis: list(values) for axis, values in check.AXES.items()}


def pairs_of(case):
    return set(itertools.combinations(case.items(), 2))


# ---- pairs of options ------------------------------------------------------------------------


def test_exactly_the_pairs_that_allowed_cases_contain_are_covered():
    """Compared with brute force; one rule forbids a pair, another a triple."""
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
def test_every_supported_pair_of_options_is_covered(place):
    """No case can contain an uncovered pair; only five options decide what is supported."""
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


# ---- faults ----------------------------------------------------------------------------------


def injected(monkeypatch, fault):
    """Adds the backend "faulty": `eager` with a fault in its arguments or its results."""
    module = types.SimpleNamespace(refuses=lambda call: None, run=fault)
    monkeypatch.setitem(dispatch._BACKENDS, "faulty", module)


def with_options(**change):
    return lambda call: eager.run(
        dataclasses.replace(call, neuron=dataclasses.replace(call.neuron, **change))
    )


def unscaled(call):
    surrogate = call.neuron.surrogate
    if isinstance(surrogate, bs.Masked):
        surrogate = dataclasses.replace(surrogate, rescale=False)
    return with_options(surrogate=surrogate)(call)


def with_arguments(change):
    return lambda call: eager.run(dataclasses.replace(call, **change(call)))


def one_spike_more(call):
    out = eager.run(call)
    flipped = out.spikes.detach().clone()
    flipped.view(-1)[77] = 1 - flipped.view(-1)[77]
    return out._replace(spikes=out.spikes + (flipped - out.spikes).detach())


def above(theta):
    """A threshold that ties no longer reach."""
    return theta * (1 + 2**-20)


FAULTS = {
    "no gradient through the reset": (with_options(reset_gradient=0.0), "gradient of x"),
    "no gradient over time": (with_options(temporal_gradient=False), "gradient of x"),
    "no rescaling": (unscaled, "gradient of x"),
    "one spike": (one_spike_more, "spikes differ in 1 places"),
    "ties": (with_arguments(lambda call: {"theta": above(call.theta)}), "spikes differ"),
    "another mask": (
        with_arguments(lambda call: {"seed": None if call.seed is None else call.seed + 1}),
        "mask bits differ",
    ),
    "wider surrogate": (
        with_arguments(lambda call: {"width": None if call.width is None else call.width * 1.001}),
        "gradient of",
    ),
    "threshold that does not learn": (
        with_arguments(
            lambda call: {
                "theta": call.theta.detach() if isinstance(call.theta, torch.Tensor) else call.theta
            }
        ),
        "gradient of v_threshold",
    ),
    "tau that learns half": (
        with_arguments(
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
            with_options(memory="8bit")(call)
            if call.neuron.memory == "bfloat16" and not isinstance(call.tau, torch.Tensor)
            else eager.run(call)
        ),
        "gradient of x",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(monkeypatch, fault):
    run, message = FAULTS[fault]
    injected(monkeypatch, run)
    made = certify.run({"backend": "faulty", "dtype": "float32", "surrogate": "ATan"})
    assert not made.passed
    assert any(message in finding.reason for finding in made.failed)
    assert made.rows["faulty"].failed == len(made.failed)


def test_the_backend_without_a_fault_passes(monkeypatch):
    injected(monkeypatch, eager.run)
    assert certify.run({"backend": "faulty", "dtype": "float32", "surrogate": "ATan"}).passed


def test_the_printed_command_reproduces_a_single_failure(monkeypatch, capsys, tmp_path):
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


def test_an_exception_of_a_backend_is_a_finding(monkeypatch):
    def breaks(call):
        raise ArithmeticError("no such thing\nsecond line")

    injected(monkeypatch, breaks)
    made = certify.run(
        {"backend": "faulty", "dtype": "float32", "memory": "exact", "surrogate": "ATan"}
    )
    assert {finding.reason for finding in made.failed} == {"raised ArithmeticError: no such thing"}


def test_unsupported_cases_are_reported_and_not_counted(monkeypatch):
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


def hidden(call):
    """Spikes of 0 in place of NaN."""
    out = eager.run(call)
    return out._replace(spikes=out.spikes.nan_to_num(nan=0.0))


def test_a_hidden_nan_is_found(monkeypatch):
    injected(monkeypatch, hidden)
    only = {"backend": "faulty", "dtype": "float32", "surrogate": "ATan"}
    assert not certify.run({**only, "call": "non-finite"}).passed
    assert certify.run({**only, "call": "plain"}).passed


# ---- networks --------------------------------------------------------------------------------


def network(name, backend):
    place = next(p for p in check.places() if p.name == backend)
    dtype = str(networks.NETWORKS[name].dtype).removeprefix("torch.")
    return check.check_network(place, {"backend": backend, "network": name, "dtype": dtype})


@pytest.mark.parametrize("backend", bs.backends())
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_agree_with_their_definition(name, backend):
    finding = network(name, backend)
    assert not finding.reason
    assert finding.errors or networks.NETWORKS[name].bad is not None


def test_batch_norm_of_unusual_strides_is_found(monkeypatch):
    """torch's BatchNorm computes wrong gradients for dimensions of size 1 with unusual strides."""
    monkeypatch.setattr(over_time, "usual_strides", lambda x: x)
    found = [network(name, "eager") for name in networks.NETWORKS if "channels-last" in name]
    assert any("the gradient of" in finding.reason for finding in found)


def test_one_gradient_for_all_timesteps_of_a_static_input_is_found(monkeypatch):
    def static(x):
        return len(x) > 1 and x.stride(0) == 0

    monkeypatch.setattr(over_time, "repeats_over_time", static)
    assert "the gradient of x" in network("static-with-gradient", "eager").reason
    assert not network("static", "eager").reason


@pytest.mark.parametrize("name", [n for n in networks.NETWORKS if n.startswith("quiet")])
def test_saturated_codes_of_a_quiet_layer_are_found(monkeypatch, name):
    """Uniform steps to a distance at which the derivative is not 0, as they once were."""
    reach = float(saved.reach(networks.NETWORKS[name].quiet))
    saturated = saved.EightBits(reach / 128, False)
    monkeypatch.setattr(eager, "eight_bits", lambda *_: saturated)
    assert "the gradient of 0.0.weight is off" in network(name, "eager").reason


@pytest.mark.skipif("cpu" not in bs.backends(), reason="spikes select weights in C")
def test_a_weight_that_no_spike_selects_is_found(monkeypatch):
    monkeypatch.setattr(synapse, "_adds", lambda way, weight: way != "dense")
    for name in ("nan-weight", "infinite-weight"):
        assert "spikes differ" in network(name, "cpu").reason


@pytest.mark.skipif("cpu" not in bs.backends(), reason="gradients are sampled by the C kernel")
def test_a_sampled_gradient_of_recorded_spikes_is_found(monkeypatch):
    """A watcher without the membrane does not ask for the whole gradient."""

    @contextmanager
    def record(model):
        outputs = {}
        with Handle() as handle:
            for name, layer in spiking_layers(model).items():
                watcher = Watcher(lambda _, out, __, name=name: outputs.__setitem__(name, out))
                handle.undo.append(watch(layer, watcher))
            yield outputs

    monkeypatch.setattr(networks, "record", record)
    assert "the gradient of recorded spikes" in network("recorded", "cpu").reason


def test_a_network_is_checked_alone(capsys):
    assert main(["certify", "--only", "backend=eager,network=one-sample", "--json"]) == 0
    start, case, done = map(json.loads, capsys.readouterr().out.splitlines())
    assert (start["cases"], case["network"], done["cases"]) == (1, "one-sample", 1)


def test_networks_are_among_the_cases():
    made = certify.run({"backend": "eager"}, listen=(seen := []).append)
    assert made.passed
    assert {e["network"] for e in seen if "network" in e} == set(networks.NETWORKS)


# ---- selection and command -------------------------------------------------------------------


def test_all_runs_every_supported_combination():
    """The number of combinations of the free options agrees with a count by hand."""
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
    ("words", "message"),
    [
        (["--only", "backend"], "--only takes NAME=VALUE pairs"),
        (["--only", "back=cpu"], "no option 'back'; choose from: backend, surrogate"),
        (
            ["--only", "dtype=float8"],
            "dtype must be one of float32, float64, bfloat16, float16; got 'float8'",
        ),
        (
            ["--only", "backend=eager,memory=1bit,surrogate=ATan"],
            "memory='1bit' needs surrogate=Rectangle",
        ),
        (["--only", "network=nothing"], "network must be one of one-sample"),
        (["--only", "network=static,dtype=float32"], "can be combined with backend=NAME alone"),
        (["--out", "certificate.txt"], "--out takes the name of a Markdown file"),
    ],
)
def test_a_wrong_command_is_an_error_in_one_line(capsys, monkeypatch, tmp_path, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["certify", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_each_processor_level_uses_its_own_library():
    levels = library.levels()
    assert bool(levels) == ("cpu" in bs.backends())
    before = library._c
    for i, name in enumerate(levels):
        with library.level(name):
            assert (library._c._name == before._name) == (i == 0)
    assert library._c is before


@pytest.mark.slow
def test_all_backends_of_this_machine_pass():
    made = certify.run()
    assert made.passed
    assert set(made.rows) == {place.name for place in check.places()}
    assert sum(row.masks for row in made.rows.values()) > 40
