"""The doctor finds each problem in a network built to have it; following its advice solves it."""

import json
import math
import re
import shlex
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import backspike as bs
from backspike import report
from backspike.analysis import vitals
from backspike.cli import main
from backspike.cli.doctor import add_arguments as doctor_arguments
from backspike.cli.parser import Parser
from backspike.doctor import examine, page
from backspike.errors import RunError
from backspike.recipes.recipe import Recipe
from backspike.recipes.values import SGD, AdamW
from backspike.report import activity
from backspike.run import Run
from backspike.train import checkpoint, progress, setup, step

TINY = {
    "limit": 120,
    "batch_size": 32,
    "model": "ConvNet('6-P-8-P', size=8)",
    "ema": 0.0,
    "augment": (),
    "epochs": 4,
}
DEEP = {"model": "ConvNet('6-6-6-P-6-6-P', size=8)"}


def tiny(**changes):
    return bs.recipes.digits().replace({**TINY, **changes})


def problems(examination):
    return [f for f in examination.findings if not f.note]


def digits(n=120, scale=1 / 255):
    split = bs.data.load("digits").train
    return [(torch.from_numpy(x).float() * scale, int(y)) for x, y in zip(split.x[:n], split.y[:n])]


@dataclass(frozen=True)
class Plain:
    """Linear layers without a norm. bias: that of the first layer."""

    bias: float = 0.0

    def build(self, neuron, norm=None):
        first = nn.Linear(64, 32)
        nn.init.constant_(first.bias, self.bias)
        return nn.Sequential(
            bs.OverTime(nn.Flatten(), first),
            neuron(channels=32),
            bs.OverTime(nn.Linear(32, 32), nn.BatchNorm1d(32)),
            neuron(channels=32),
            bs.OverTime(nn.Linear(32, 10)),
        )


# ---- problems that recipe fields cause and solve


@pytest.mark.parametrize(
    ("problem", "brings"),
    [
        ("silent layer", {"neuron.v_threshold": 5.0}),
        ("saturated layer", {"model": Plain(bias=20.0)}),
        ("outside the surrogate", {"neuron.surrogate": "Masked(Triangle(alpha=300.0), p=0.5)"}),
        ("outside the surrogate", {"neuron.surrogate": "Rectangle(width=0.001)"}),
        ("masked away", {"neuron.surrogate.p": 0.999}),
        (
            "vanishing gradient",
            {
                **DEEP,
                "optimizer": SGD(lr=0.1),
                "neuron.surrogate": "Triangle(alpha=2.0, scale=0.1)",
            },
        ),
        (
            "exploding gradient",
            {
                **DEEP,
                "neuron.surrogate": "Triangle(alpha=2.0, scale=12.0)",
                "neuron.reset_gradient": 0.0,
            },
        ),
        (
            "reset dominates",
            {"T": 12, "neuron.v_reset": None, "neuron.tau": 20.0, "neuron.decay_input": False}
            | {"neuron.v_threshold": 1.0, "neuron.surrogate": "Triangle(alpha=5)"},
        ),
        ("steps too large", {"optimizer.lr": 20.0}),
        ("steps too large", {"optimizer": SGD(lr=1e4)}),
        ("steps too small", {"optimizer.lr": 1e-7}),
        ("too few steps", {"epochs": 1, "limit": 64, "batch_size": 64}),
    ],
)
def test_a_problem_is_found_and_its_advice_solves_it(problem, brings):
    recipe = tiny(**brings)
    [finding, *_] = problems(bs.examine(recipe))
    assert finding.problem == problem
    assert finding.changes
    assert "\n" not in str(finding)
    after = [f.problem for f in problems(bs.examine(recipe, changes=finding.changes))]
    assert problem not in after
    assert not after or problem in ("saturated layer",)


def test_with_adam_a_vanishing_gradient_is_only_a_note():
    examination = bs.examine(tiny(**DEEP, **{"neuron.surrogate": "Triangle(alpha=2.0, scale=0.1)"}))
    assert [(f.problem, f.note) for f in examination.findings] == [("vanishing gradient", True)]
    assert examination.ok


@pytest.mark.parametrize("cause", [{"neuron.tau": 1.05}, {"neuron.temporal_gradient": False}])
def test_forgotten_timesteps_are_found(cause):
    frames = np.random.default_rng(0)
    moving = [
        (torch.from_numpy(frames.random((10, 1, 8, 8), np.float32)), n % 10) for n in range(128)
    ]
    recipe = tiny(T=10, readout="Last()", **cause)
    [finding] = problems(bs.examine(recipe, train=moving))
    assert finding.problem == "forgotten timesteps"
    assert not problems(bs.examine(recipe, train=moving, changes=finding.changes))


# ---- problems of the user's own data and models, with advice in words


def test_data_without_information_are_found():
    good, recipe = digits(), tiny()
    blank = [(torch.zeros(1, 8, 8), y) for _, y in good]
    equal = [(good[0][0], y) for _, y in good]
    one = [(x, 3) for x, _ in good]
    for data, problem in ((blank, "blank input"), (equal, "equal input"), (one, "one label")):
        assert [f.problem for f in problems(bs.examine(recipe, train=data))] == [problem]
    assert not problems(bs.examine(recipe, train=good))


@pytest.mark.parametrize(("scale", "verb"), [(1.0, "divide"), (1e-6, "multiply")])
def test_samples_out_of_scale_are_found(scale, verb):
    recipe = tiny(model=Plain(), **{"neuron.surrogate": "Triangle(alpha=2.0)"})
    [finding] = problems(bs.examine(recipe, train=digits(scale=scale)))
    assert finding.problem == "input out of scale"
    said, number = re.search(
        "(divide|multiply) the samples by ([0-9.e+]+)$", finding.advice
    ).groups()
    assert said == verb
    factor = float(number) if verb == "multiply" else 1 / float(number)
    after = [f.problem for f in problems(bs.examine(recipe, train=digits(scale=scale * factor)))]
    assert "input out of scale" not in after


def test_flat_norms_are_found():
    found = problems(
        bs.examine(tiny(**{"neuron.v_threshold": 0.01}), model=_behind_a_flat_norm(1e-3))
    )
    assert [f.problem for f in found] == ["flat norm"]
    assert "ones_" in found[0].advice
    assert not problems(
        bs.examine(tiny(**{"neuron.v_threshold": 0.01}), model=_behind_a_flat_norm(1.0))
    )


def _behind_a_flat_norm(weight):
    """No neuron follows the second norm: otherwise a silent layer would be found first."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(10)
    nn.init.constant_(norm.weight, weight)
    return nn.Sequential(
        bs.OverTime(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32)), bs.LIF(v_threshold=0.5),
        bs.OverTime(nn.Linear(32, 10), norm),
    )  # fmt: skip


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = tiny().network()
        self.spare = nn.Linear(3, 3)

    def forward(self, x):
        return self.body(x)


def test_tensors_without_a_gradient_are_found():
    model = Unused()
    [finding] = problems(bs.examine(tiny(), model=model))
    assert finding.problem == "no gradient"
    assert finding.where == ["spare.weight", "spare.bias"]
    model.spare.requires_grad_(False)
    assert not problems(bs.examine(tiny(), model=model))


class Shifted(nn.Module):
    """Multiplies the outputs of a network by factor and adds offset to the first class."""

    def __init__(self, factor=1.0, offset=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.factor = tiny().network(), factor
        self.register_buffer("offset", torch.tensor([offset] + [0.0] * 9))

    def forward(self, x):
        return self.body(x) * self.factor + self.offset


def test_constant_and_too_large_logits_are_found():
    assert not problems(bs.examine(tiny(), model=Shifted()))
    # most samples have another class, so gradients still flow
    assert [f.problem for f in problems(bs.examine(tiny(), model=Shifted(offset=1e4)))] == [
        "constant answer"
    ]
    [loud] = problems(bs.examine(tiny(), model=Shifted(factor=1e3)))
    assert loud.problem == "logits too large"
    divisor = float(re.fullmatch("divide the outputs by ([0-9.e+]+)", loud.advice)[1])
    assert not problems(bs.examine(tiny(), model=Shifted(factor=1e3 / divisor)))


def test_a_run_that_learned_nothing_is_found(tmp_path):
    good = digits()
    order = torch.randperm(len(good), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = [(x, good[i][1]) for (x, _), i in zip(good, order)]
    for data, epochs, found in ((shuffled, 3, ["nothing learned"]), (good, 8, [])):
        out = tmp_path / f"run{epochs}"
        bs.fit(tiny(epochs=epochs), out, train=data, report=False)
        examination = bs.examine(out, train=data)
        assert examination.trained
        assert [f.problem for f in problems(examination)] == found


# ---- networks without a problem


@pytest.mark.parametrize(
    "changes",
    [{}, {"T": 1}, {"norm": "TDBN()"}, {"scaling": "SGS(pool_pre=True)"}, {"potential": "PDA()"}],
)
def test_nothing_is_found_in_a_network_that_learns(changes):
    examination = bs.examine(tiny(**changes))
    assert not problems(examination)
    assert examination.ok
    assert [f.problem for f in examination.findings] == (
        ["one timestep"] if changes == {"T": 1} else []
    )


@pytest.mark.parametrize(
    "kind", ["PLIF()", "CubaLIF()", "AdaptiveLIF()", "CLIF()", "MPBN()", "EIF()"]
)
def test_nothing_is_found_with_other_neurons(kind):
    assert not problems(bs.examine(tiny(neuron=kind)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "digits-dvs"])
def test_nothing_is_found_in_the_recipes_that_need_no_files(name, tmp_path):
    recipe = bs.recipes.get(name).replace({"epochs": 5})
    assert bs.examine(recipe).findings == []
    bs.fit(recipe, tmp_path / "run", report=False)
    assert bs.examine(tmp_path / "run").findings == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "brings",
    [
        {"neuron.v_threshold": 5.0},
        {"neuron.surrogate": "Triangle(alpha=300.0)"},
        {"optimizer.lr": 1e-7},
        {"optimizer.lr": 20.0},
        {
            "optimizer": SGD(lr=0.1),
            "model": "ConvNet('8-8-8-P-8-8-P', size=8)",
            "neuron.surrogate": "Triangle(alpha=2.0, scale=0.1)",
        },
    ],
)
def test_a_network_learns_after_its_problem_is_solved(brings, tmp_path):
    """In 8 epochs on 400 samples: above 65 %, and better by more than the noise between seeds.

    Of a learning rate that was too small: 82 to 88 % with three seeds, where an advice of steps of
    1 % gave 52 to 74 %.
    """
    recipe = bs.recipes.digits().replace({"limit": 400, "batch_size": 20, "epochs": 8, "ema": 0.0})
    recipe = recipe.replace({"model": "ConvNet('8-P-16-P', size=8)", **brings})
    [finding] = problems(bs.examine(recipe))
    before = bs.fit(recipe, tmp_path / "before", report=False).test_accuracy_last
    after = bs.fit(
        recipe.replace(finding.changes), tmp_path / "after", report=False
    ).test_accuracy_last
    assert after > max(0.65, before + 0.05)


# ---- the numbers


class _Of(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.readout = model, bs.readout.Mean()

    def forward(self, x):
        return self.readout(self.model(x))


def measured(model, x, y, optimizer=None, **changes):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.5)
    recipe = Recipe(optimizer=SGD(lr=0.5, momentum=0.0), T=len(x)).replace(changes)
    return vitals.take(_Of(model), optimizer, [(x, y)], recipe, nullcontext)


HARD = {"v_reset": 0.0, "decay_input": True}


def layered(surrogate=bs.Triangle(alpha=0.7), reset_gradient=1.0):  # noqa: B008
    torch.manual_seed(3)
    neurons = [
        bs.LIF(surrogate=surrogate, reset_gradient=reset_gradient, backend="reference", **HARD)
        for _ in range(2)
    ]
    model = nn.Sequential(nn.Linear(5, 7), neurons[0], nn.Linear(7, 6), neurons[1], nn.Linear(6, 3))
    nn.init.normal_(model[2].weight, std=2.0)  # otherwise the second layer is silent
    return model


def by_hand(model, x, y):
    """Spikes, membranes and the gradients at both currents, by autograd module by module."""
    a = model[0](x)
    first = bs.lif(
        a,
        surrogate=model[1].surrogate,
        reset_gradient=model[1].reset_gradient,
        record_membrane=True,
        **HARD,
    )
    b = model[2](first.spikes)
    second = bs.lif(
        b,
        surrogate=model[3].surrogate,
        reset_gradient=model[3].reset_gradient,
        record_membrane=True,
        **HARD,
    )
    loss = nn.functional.cross_entropy(model[4](second.spikes).mean(0), y)
    gradients = torch.autograd.grad(loss, (a, b, model[2].weight))
    return [
        o._replace(spikes=o.spikes.detach(), membrane=o.membrane.detach()) for o in (first, second)
    ], gradients


X, Y = 4 * torch.rand(4, 9, 5, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3


def norms(g):
    return g.flatten(1).norm(dim=1).tolist()


def test_vitals_agree_with_autograd():
    model = layered()
    v = measured(model, X, Y)
    outputs, (*gradients, of_weight) = by_hand(model, X, Y)
    free = layered(reset_gradient=0.0)
    _, without = by_hand(free, X, Y)
    assert list(v.layers) == ["1", "3"]
    for layer, out, g, g0 in zip(v.layers.values(), outputs, gradients, without):
        assert layer.firing_rate == pytest.approx(out.spikes.mean((1, 2)).tolist())
        # where the triangle exceeds 1 % of its peak
        inside = (out.membrane - 1).abs() < 1 / 0.7 * 0.99
        assert layer.support_share == pytest.approx(inside.float().mean((1, 2)).tolist())
        assert layer.gradient == pytest.approx(norms(g), rel=1e-4)
        assert layer.reset_ratio == pytest.approx(
            [d / n for d, n in zip(norms(g - g0), norms(g0))], rel=1e-3, abs=1e-6
        )
        assert layer.mask_left is None
        channels = out.spikes.mean((0, 1))
        assert layer.dead == pytest.approx(float((channels == 0).float().mean()))
        assert layer.spikes_per_sample == pytest.approx(float(out.spikes.sum() / 9))
        assert layer.potential["0.5"] == pytest.approx(float(out.membrane.quantile(0.5)))
        assert layer.rate > 0
    assert max(v.layers["3"].reset_ratio[:-1]) > 0
    # no timestep follows the last one
    assert v.layers["3"].reset_ratio[-1] == 0
    w = v.weights["2.weight"]
    assert w.gradient == pytest.approx(float(of_weight.norm()), rel=1e-4)
    # a step of SGD
    step = 0.5 * float(of_weight.norm() / model[2].weight.detach().norm())
    assert w.update_ratio == pytest.approx(step, rel=1e-4)
    assert w.mask_alignment is None


def test_the_effect_of_the_mask_is_measured_without_it():
    x = 8 * torch.rand(1, 4000, 5)
    v = measured(layered(bs.Masked(bs.Triangle(alpha=0.7), p=0.75)), x, torch.arange(4000) % 3)
    _, (_, g, _) = by_hand(layered(), x, torch.arange(4000) % 3)
    # each element of the last layer's gradient is kept with probability 1/4, whatever its size
    assert v.layers["3"].mask_left[0] == pytest.approx(0.5, abs=0.03)
    assert v.layers["3"].gradient[0] / v.layers["3"].mask_left[0] == pytest.approx(
        norms(g)[0], rel=1e-4
    )
    # no surrogate lies between this weight and the loss
    assert v.weights["4.weight"].mask_alignment == pytest.approx(1)
    assert 0 < v.weights["0.weight"].mask_alignment < 1


def test_measuring_changes_neither_network_nor_optimizer():
    work = setup.set_up(tiny())
    x, y = work.train.take(torch.arange(32))
    step.Step(work, "batch 0", pytest.fail)(x, y, [32])
    work.optimizer.zero_grad(set_to_none=True)
    before = {k: v.clone() for k, v in work.network.state_dict().items()}
    state = [v.clone() for s in work.optimizer.state_dict()["state"].values() for v in s.values()]
    vitals.take(work.network, work.optimizer, [(x, y)], work.recipe, work.train.autocast, steps=3)
    assert all(torch.equal(v, before[k]) for k, v in work.network.state_dict().items())
    now = [v for s in work.optimizer.state_dict()["state"].values() for v in s.values()]
    assert all(torch.equal(a, b) for a, b in zip(state, now))
    assert all(p.grad is None for p in work.network.parameters())
    assert not any(
        m.watchers or m._forward_pre_hooks for m in work.network.modules() if isinstance(m, bs.LIF)
    )
    # the learning rate is still that of the warm-up
    assert {g["lr"] for g in work.optimizer.param_groups} != {work.recipe.optimizer.lr}


# ---- watching a training


def fit(out, watch, **changes):
    events = []
    bs.fit(
        tiny(epochs=2, augment="(Shift(1),)", **changes),
        out,
        report=False,
        watch=watch,
        listen=events.append,
    )
    return events


def test_watching_a_training_does_not_change_its_weights(tmp_path):
    events = fit(tmp_path / "watched", True)
    fit(tmp_path / "plain", False)
    watched, plain = (
        checkpoint.read(Run.open(tmp_path / n), "last.ckpt") for n in ("watched", "plain")
    )
    assert all(torch.equal(watched["network"][k], plain["network"][k]) for k in plain["network"])
    assert torch.equal(
        watched["ranks"][0]["generators"]["torch"], plain["ranks"][0]["generators"]["torch"]
    )
    seen = [e for e in events if e["event"] == "watch"]
    assert [e["epochs"] for e in seen] == [0, 1, 2]
    assert [e for e in Run.open(tmp_path / "watched").log() if e["event"] == "watch"] == seen
    assert not any(e["event"] == "watch" for e in Run.open(tmp_path / "plain").log())
    assert seen[0]["vitals"]["layers"].keys() == {"features.1", "features.4"}


def test_a_resumed_run_is_still_watched(tmp_path):
    def stop(event):
        if event["event"] == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bs.fit(tiny(epochs=2), tmp_path / "run", report=False, watch=True, listen=stop)
    bs.resume(tmp_path / "run", report=False)
    seen = [e["epochs"] for e in Run.open(tmp_path / "run").log() if e["event"] == "watch"]
    assert seen == [0, 1, 2]


def test_the_report_shows_watched_problems(tmp_path, capsys):
    words = [
        "--limit=120",
        "--epochs=1",
        "--model=ConvNet('6-P-8-P', size=8)",
        "--neuron.v_threshold=5",
    ]
    assert main(["train", "digits", "--watch", "--out", str(tmp_path / "run"), *words]) == 0
    assert "silent layer (features.1)" in capsys.readouterr().out
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert 'id="watch"' in page
    assert "silent layer" in page
    assert "--neuron.v_threshold" in page
    report.write(tmp_path / "run")


# ---- the command line


def test_the_command_examines_a_recipe(tmp_path, capsys):
    words = ["digits", "--limit=120", "--model=ConvNet('6-P-8-P', size=8)"]
    page = tmp_path / "a" / "doctor.html"
    assert main(["doctor", *words, "--out", str(page)]) == 0
    out = capsys.readouterr().out
    assert "OK: no problem found" in out
    assert "features.4" in out
    text = page.read_text("utf-8")
    assert text.count("<svg") >= 3
    assert "no problem found" in text
    assert main(["doctor", *words, "--neuron.v_threshold", "5"]) == 1
    out, err = capsys.readouterr()
    assert not err
    advised = re.search(r"--neuron.v_threshold (\S+)$", out.splitlines()[-1])[1]
    assert main(["doctor", *words, "--neuron.v_threshold", advised, "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["ok"]
    assert done["findings"] == []
    assert math.isclose(done["vitals"]["T"], 4)


def test_the_command_examines_a_run(tmp_path, capsys):
    run = tmp_path / "run"
    bs.fit(tiny(epochs=1), run, report=False)
    assert main(["doctor", str(run)]) in (0, 1)
    assert f"report: {run / 'doctor.html'}" in capsys.readouterr().out
    assert main(["doctor", str(run), "--model", "ConvNet('5-P-8-P', size=8)"]) == 1
    err = capsys.readouterr().err
    assert "do not fit this network" in err
    assert err.count("\n") == 1
    assert main(["doctor", str(run), "--epoch", "3"]) == 2
    (run / "last.ckpt").unlink()
    capsys.readouterr()
    assert main(["doctor", str(run)]) == 1
    assert "no last.ckpt" in capsys.readouterr().err
    assert main(["doctor", "digitz"]) == 2
    assert "there is no run folder of that name" in capsys.readouterr().err


def test_hostile_names_are_escaped(tmp_path):
    examination = bs.examine(tiny())
    hostile = examine.Examination(
        "<script>", *[getattr(examination, f) for f in ("recipe", "trained", "vitals", "findings")]
    )
    assert "<script>" not in page.write(hostile, tmp_path / "p.html").read_text("utf-8")


def test_data_of_a_wrong_shape_and_missing_runs_are_errors_in_one_line():
    with pytest.raises(RunError, match="does not take this data"):
        bs.examine(tiny(), train=[(torch.zeros(3, 8, 8), 1)] * 8)
    with pytest.raises(RunError, match="no run folder"):
        bs.examine("nowhere-at-all")


def test_adam_continues_from_the_state_of_the_run(tmp_path):
    """A new Adam moves each weight by the learning rate; after mixed signs, by less."""
    bs.fit(tiny(epochs=3, optimizer=AdamW(lr=1e-3)), tmp_path / "run", report=False)
    kept = bs.examine(tmp_path / "run").vitals.weights["classifier.1.weight"].update_ratio
    fresh = (
        bs.examine(tmp_path / "run", changes={"optimizer.weight_decay": 1e-9})
        .vitals.weights["classifier.1.weight"]
        .update_ratio
    )
    assert kept < fresh


def test_norms_are_those_of_the_weights_before_the_steps():
    """Steps at a very high learning rate do not change the norms that are shown."""
    recipe = tiny(**{"optimizer.lr": 20.0})
    weights = bs.examine(recipe).vitals.weights
    before = dict(setup.set_up(recipe).network.model.named_parameters())
    assert "classifier.1.weight" in weights
    for name, weight in weights.items():
        assert weight.norm == pytest.approx(float(before[name].detach().norm()))


# ---- how to try what is advised


def parsed(line):
    """The subject and the fields of a `try:` line, by the parser of the command line."""
    words = shlex.split(line.removeprefix("try: "))
    assert words[:2] == ["backspike", "doctor"]
    parser = Parser(prog="backspike doctor")
    doctor_arguments(parser)
    options = parser.parse(words[2:])
    return options.subject, options.fields


@pytest.mark.parametrize(
    "changes",
    [
        {"neuron.surrogate": "Triangle(alpha=300.0)"},
        {"neuron.surrogate": "Masked(Parametric(Triangle(alpha=300.0)), p=0.5)"},
        {"neuron.surrogate": "Rectangle(width=0.001)"},
        {"neuron.surrogate.p": 0.999},
        {"neuron.v_threshold": 5.0, "neuron.v_reset": -0.25, "T": 1},
        {"optimizer": "SGD(lr=1e4)"},
        {"optimizer.lr": 20.0},
        {"neuron": "PLIF()", "neuron.v_threshold": 5.0, "readout": "Last()"},
    ],
    ids=str,
)
def test_the_advised_command_parses_and_keeps_the_other_fields(changes):
    recipe = tiny(**changes)
    examination = bs.examine(recipe)
    *_, line = examine.lines(examination)
    subject, fields = parsed(line)
    assert subject == "digits"
    assert not any(a.startswith(f"{b}.") for a in fields for b in fields if b != "neuron")
    advised = {k: v for f in problems(examination) for k, v in f.changes.items()}
    assert bs.recipes.get(subject).replace(fields) == recipe.replace(advised)


def test_the_advised_command_of_a_run_keeps_the_other_fields(tmp_path):
    run = tmp_path / "a run"
    bs.fit(tiny(epochs=1), run, report=False)
    examination = bs.examine(run, changes={"seed": 3, "optimizer.lr": 20.0})
    *_, line = examine.lines(examination)
    subject, fields = parsed(line)
    assert subject == str(run)
    assert fields.keys() == {"seed", "optimizer.lr"}
    assert Run.open(run).recipe().replace(fields).optimizer.lr < 20


def test_for_an_own_model_the_change_is_given_in_python():
    surrogate = bs.Masked(bs.Triangle(alpha=300.0), p=0.5)
    torch.manual_seed(0)
    model = nn.Sequential(
        bs.OverTime(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32)),
        bs.LIF(v_threshold=0.5, surrogate=surrogate),
        bs.OverTime(nn.Linear(32, 10)),
    )
    examination = bs.examine(tiny(), model=model)
    [finding] = problems(examination)
    assert finding.problem == "outside the surrogate"
    text = str(examination)
    assert "try in Python: bs.LIF(..., surrogate=Masked(base=Triangle(alpha=" in text
    assert "--neuron" not in text
    # the change fits the recipe too
    tiny().replace(finding.changes)


def test_for_own_data_or_recipes_the_call_is_given_in_python():
    text = str(bs.examine(tiny(**{"optimizer.lr": 20.0}), train=digits()))
    assert "try in Python: bs.examine(recipe, train=train, changes={'optimizer.lr': " in text
    mine = tiny(name="mine", **{"optimizer.lr": 20.0})
    assert "try in Python: bs.examine(recipe, changes={'optimizer.lr': " in str(bs.examine(mine))


def test_changed_fields_do_not_replace_the_page_of_a_run(tmp_path, capsys):
    run = tmp_path / "run"
    bs.fit(tiny(epochs=1), run, report=False)
    main(["doctor", str(run)])
    before = (run / "doctor.html").read_bytes()
    capsys.readouterr()
    main(["doctor", str(run), "--optimizer.lr", "10"])
    assert "report:" not in capsys.readouterr().out
    assert (run / "doctor.html").read_bytes() == before


def test_a_network_without_a_spiking_layer_is_a_problem(tmp_path):
    model = nn.Sequential(bs.OverTime(nn.Flatten(), nn.Linear(64, 10)))
    examination = bs.examine(tiny(), model=model)
    assert [f.problem for f in problems(examination)] == ["no spiking layer"]
    assert not examination.ok
    assert "the network has no spiking layer" in str(examination)
    assert "no spiking layer" in page.write(examination, tmp_path / "p.html").read_text("utf-8")
    idle = Unused()
    idle.body, idle.spare = model, bs.LIF()
    [finding] = problems(bs.examine(tiny(), model=idle))
    assert (finding.problem, finding.where) == ("no spiking layer", ["spare"])


def test_an_examination_prints_what_the_command_shows():
    examination = bs.examine(tiny(**{"neuron.v_threshold": 5.0}))
    assert str(examination) == "\n".join(examine.lines(examination))
    assert examination._repr_html_().startswith("<pre>")
    assert "problem: silent layer: features.1: the whole layer emits 0 spikes" in str(examination)


def test_former_names_of_attributes_are_aliases():
    examination = bs.examine(tiny(**{"neuron.v_threshold": 5.0}))
    assert examination.healthy is examination.ok is False
    [finding] = problems(examination)
    assert finding.illness == finding.problem == "silent layer"
    with pytest.raises(AttributeError):
        finding.illness = "another"


def test_findings_of_old_logs_are_read():
    """Logs of earlier versions call the problem `illness`."""
    old = {"illness": "silent layer", "where": ["1"], "found": "f", "advice": "a", "flags": ""}
    new = {"problem": "silent layer", **{k: v for k, v in old.items() if k != "illness"}}
    for finding in (old, new):
        event = {"epochs": 1, "findings": [finding | {"note": False}]}
        shown = activity.watch_findings(SimpleNamespace(watched=[event]))
        assert shown.rows[0][0] == "silent layer"
        health = progress._health({**event, "vitals": {"layers": {}, "weights": {}}})
        assert "silent layer (1)" in health


def test_errors_count_epochs_from_one(monkeypatch):
    def fails(*_):
        raise ValueError("no such thing")

    monkeypatch.setattr(examine, "take", fails)
    with pytest.raises(RunError, match=r"^epoch 1: no such thing"):
        bs.examine(tiny())
