"""A recipe of the user's own Python file through every verb, and what is never imported."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from helpers.own_file import ALL_OWN, EXAMPLE, write
from helpers.training import Stop, epochs, same, stop_after, weights

import backspike as bs
from backspike import cli, report
from backspike.errors import BackspikeError, RecipeError, RunError, StudyError
from backspike.recipes import source
from backspike.recipes.values import TWO
from backspike.report import card
from backspike.run import Run
from backspike.study import runner, shipped


def main(words):
    """The program with these words, whose messages name options instead of arguments."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["backspike", *words])
        return cli.main(words)


EXAMPLE_RECIPE = f"{EXAMPLE}:recipe"
QUICK = {"report": False, "progress": False}


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """The run of the example, trained for two epochs on the command line."""
    folder = tmp_path_factory.mktemp("own") / "run"
    assert main(["train", EXAMPLE_RECIPE, "--epochs", "2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(example, tmp_path):
    return shutil.copytree(example, tmp_path / "run")


@pytest.fixture
def mine(tmp_path):
    return write(tmp_path)


def error(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def edit(path):
    path.write_text(path.read_text() + "\n# edited\n")


# ---- every verb ----------------------------------------------------------------------------------


def test_the_run_stores_file_function_sum_and_text(run):
    stored = json.loads((run / "recipe.json").read_text())
    made_by = stored["source"]
    assert (made_by["file"], made_by["function"]) == (str(EXAMPLE), "recipe")
    assert made_by["text"] == EXAMPLE.read_text()
    assert made_by["sha256"] == hashlib.sha256(EXAMPLE.read_bytes()).hexdigest()
    assert stored["own"] == []
    assert stored["fields"]["model"] == "make_network"
    assert stored["fields"]["epochs"] == 2


@pytest.mark.parametrize(
    "named", [["--recipe", EXAMPLE_RECIPE], ["--trust"]], ids=["named", "trust"]
)
def test_eval_doctor_and_resume_take_the_file_again(run, capsys, named):
    accuracy = Run.open(run).done()["test_accuracy"]
    assert main(["eval", str(run), "--json", *named]) == 0
    assert json.loads(capsys.readouterr().out)["test_accuracy"] == accuracy
    assert main(["doctor", str(run), "--json", *named]) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert (found["trained"], found["recipe"]["fields"]["data"]) == (True, "make_data")
    assert main(["resume", str(run), *named]) == 0


def test_doctor_takes_the_recipe_itself(capsys):
    assert main(["doctor", EXAMPLE_RECIPE, "--optimizer.lr", "9"]) == 1
    out = capsys.readouterr().out
    assert "128 samples of make_data" in out
    assert f"try: backspike doctor {EXAMPLE_RECIPE} " in out


@pytest.mark.parametrize("format", ["nir", "onnx"])
def test_export_takes_the_file_again(run, capsys, format):
    pytest.importorskip({"nir": "nir", "onnx": "onnxscript"}[format])
    assert main(["export", str(run), "--to", format]) == 1
    assert "--trust" in error(capsys)
    assert main(["export", str(run), "--to", format, "--recipe", EXAMPLE_RECIPE, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["samples"] == 16
    assert made["spikes"] > 1000


def test_report_card_and_comparison_need_no_code(run, tmp_path):
    page = report.write(run).read_text()
    assert f"{EXAMPLE_RECIPE} (SHA-256 " in page
    assert "def make_network(neuron):" in page
    assert "2 runs" in report.compare([run, run], tmp_path / "both.html").read_text()
    assert "make_network" in card.write([run], tmp_path / "README.md").read_text()


@pytest.mark.slow
def test_the_memory_of_the_file_is_rehearsed(tmp_path, capsys):
    out = str(tmp_path / "run")
    words = ["train", EXAMPLE_RECIPE, "--epochs", "1", "--memory", "3GB", "--out", out, "--json"]
    assert main(words) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0]["event"] == "rehearsal"
    assert events[0]["peak"] > 1e8


def test_a_study_of_the_file(mine, tmp_path, capsys):
    out = tmp_path / "study"
    words = ["study", f"{mine}:arms", "--epochs", "1", "--jobs", "2", "--out", str(out)]
    assert main(words) == 0
    fields = json.loads((out / "runs/32/0/recipe.json").read_text())["fields"]
    assert fields["model"] == "wide"
    capsys.readouterr()
    assert main(words) == 0
    assert "2 of them already finished" in capsys.readouterr().out
    assert main(["eval", str(out / "runs/32/0"), "--recipe", f"{mine}:arms"]) == 0
    edit(mine)
    assert main(words) == 1
    assert "its Python file has changed; to continue all the same: --accept-change" in error(capsys)
    shutil.rmtree(out / "runs/32")
    assert main([*words, "--accept-change"]) == 0
    assert len(json.loads((out / "runs/16/0/recipe.json").read_text())["source"]["earlier"]) == 1
    assert main(words) == 0


def test_a_shipped_study_on_the_file(mine, tmp_path, capsys):
    out = tmp_path / "study"
    words = ["study", "reset-gradient", "--data", f"{mine}:plain", "--seeds", "1", "--jobs", "1"]
    assert main([*words, "--epochs", "1", "--out", str(out)]) == 0
    assert "backspike study reset-gradient --data " in (out / "table.md").read_text()
    capsys.readouterr()
    assert main([*words, "--limit", "8", "--out", str(out)]) == 2
    assert "limit has no effect, as make_data does not take it" in error(capsys)
    assert main(["study", f"{mine}:plain"]) == 2
    assert "must return a bs.study.Study, got Recipe; to compare methods" in error(capsys)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "none.py:recipe"], "there is no file none.py"),
        (["train", "MINE:recipi"], "has no function 'recipi'; did you mean recipe"),
        (["train", "MINE", "--limit", "3"], "limit has no effect"),
        (["train", "MINE", "--source", "x"], "--source is not a field"),
        (["train", "MINE", "--model", "make_data()"], "make_data is a function"),
        (["doctor", "none.py"], "there is no file none.py"),
        (["doctor", "MINE", "--trust"], "are for a run folder"),
        (["eval", "RUN", "--recipe", "digits"], "--recipe takes a Python file"),
        (["eval", "RUN", "--recipe", "MINE", "--trust"], "leave --trust out"),
        (["eval", "RUN", "--accept-change"], "--accept-change needs the file"),
        (["eval", "digits", "--trust"], "digits names no Python file; leave --trust out"),
    ],
)
def test_wrong_usage_is_one_line(run, mine, capsys, words, text):
    assert main([w.replace("MINE", str(mine)).replace("RUN", str(run)) for w in words]) == 2
    assert text in error(capsys)


# ---- exact resume --------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"workers": 2, "ema": 0.9}], ids=["alone", "workers"])
def test_a_stopped_run_resumes_bit_for_bit(mine, tmp_path, changes):
    recipe = bs.recipes.from_file(f"{mine}:recipe").replace({**changes, "checkpoint_seconds": 0.0})
    bs.fit(recipe, tmp_path / "whole", **QUICK)
    with pytest.raises(Stop):
        bs.fit(recipe, tmp_path / "run", listen=stop_after(7), report=False)
    bs.resume(tmp_path / "run", recipe=f"{mine}:recipe", **QUICK)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    assert epochs(tmp_path / "run") == epochs(tmp_path / "whole")


def test_a_killed_run_resumes_bit_for_bit_in_a_new_process(mine, tmp_path):
    program = [sys.executable, "-m", "backspike"]
    options = ["--epochs", "40", "--checkpoint-seconds", "0", "--json"]
    words = ["train", f"{mine}:recipe", "--out", str(tmp_path / "run"), *options]
    process = subprocess.Popen([*program, *words], stdout=subprocess.PIPE, text=True)
    seen = [json.loads(process.stdout.readline())["event"] for _ in range(4)]
    process.kill()
    process.communicate()
    assert seen == ["start", "epoch", "epoch", "epoch"]
    assert Run.open(tmp_path / "run").done() is None
    resume = ["resume", str(tmp_path / "run"), "--recipe", f"{mine}:recipe"]
    subprocess.run([*program, *resume], check=True, capture_output=True)
    words[3] = str(tmp_path / "whole")
    subprocess.run([*program, *words], check=True, capture_output=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_two_ranks_import_the_file_each(mine, tmp_path):
    def torchrun(*words):
        program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        words = [sys.executable, *program, "-m", "backspike", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(words, env=environment, capture_output=True, text=True)

    out = tmp_path / "run"
    done = torchrun("train", f"{mine}:plain", "--out", out, "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert Run.open(out).read_json("env.json")["ranks"] == 2
    (out / "log.jsonl").write_text("")  # as if it had been killed before its last line
    done = torchrun("resume", out, "--trust")
    assert done.returncode == 0, done.stderr
    assert Run.open(out).done() is not None
    edit(mine)
    done = torchrun("resume", out, "--trust")
    lines = [line for line in done.stderr.splitlines() if line.startswith("backspike: ")]
    assert len(lines) == 1, done.stderr
    assert f"{mine} has changed since {out} began" in lines[0]


def test_the_message_of_a_stopped_run_names_the_file(mine, tmp_path):
    bs.fit(f"{mine}:recipe", tmp_path / "run", **QUICK)
    command = Run.open(tmp_path / "run").command("resume")
    assert command == ["resume", str(tmp_path / "run"), "--recipe", f"{mine}:recipe"]
    chosen = "{'precision': 'float32', 'channels_last': False}"
    assert Run.open(tmp_path / "run").read_json("env.json")["command"] == (
        f"bs.fit(bs.recipes.from_file('{mine}:recipe').replace({chosen}), out)"
    )


# ---- a file that has changed ---------------------------------------------------------------------


def test_a_file_edited_in_between_is_refused(mine, tmp_path, capsys):
    out, word = tmp_path / "run", f"{mine}:recipe"
    with pytest.raises(Stop):
        bs.fit(word, out, listen=stop_after(7), report=False)
    ran = tmp_path / "ran"  # only code that is accepted may run
    mine.write_text(mine.read_text() + f"\nopen({str(ran)!r}, 'w').close()\n# edited\n")
    for verb in ("resume", "eval", "doctor", "export"):
        more = ["--to", "nir"] if verb == "export" else []
        for named in (["--recipe", word], ["--trust"]):
            assert main([verb, str(out), *named, *more]) == 1
            err = error(capsys)
            assert f"{mine} has changed since {out} began" in err
            assert "--accept-change" in err
    for call in (bs.load, bs.resume, bs.evaluate, bs.examine):
        with pytest.raises(RunError, match=r"recipe=bs\.recipes\.from_file"):
            call(out, recipe=word)
    assert not ran.exists()
    before = json.loads((out / "recipe.json").read_text())["source"]
    assert main(["resume", str(out), "--recipe", word, "--accept-change"]) == 0
    after = json.loads((out / "recipe.json").read_text())["source"]
    assert after["earlier"] == [before["sha256"]]
    assert after["text"].endswith("# edited\n")
    assert ran.exists()
    assert main(["eval", str(out), "--recipe", word]) == 0


def test_a_changed_network_does_not_take_the_weights(mine, tmp_path, capsys):
    bs.fit(f"{mine}:recipe", tmp_path / "run", **QUICK)
    mine.write_text(mine.read_text().replace("16", "20"))
    assert main(["eval", str(tmp_path / "run"), "--trust", "--accept-change"]) == 1
    assert "belongs to another network" in error(capsys)


# ---- a stranger's run folder ---------------------------------------------------------------------


def test_nothing_that_a_run_folder_names_is_imported(example, tmp_path, monkeypatch, capsys):
    """The hostile file lies beside the run, in the current folder, under its true sum."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    hostile = f"import os\nos.makedirs({str(mark)!r}, exist_ok=True)\n" + ALL_OWN
    with pytest.raises(Stop):  # a true run of the hostile file, on the stranger's machine
        bs.fit(f"{write(tmp_path, hostile)}:recipe", "run", listen=stop_after(7), report=False)
    shutil.copy(example / "model.safetensors", "run")
    mark.rmdir()
    monkeypatch.setattr(source, "_modules", {})  # as in another process, which imports it anew
    monkeypatch.delitem(sys.modules, "mine")
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    names = ["mine.py", str(tmp_path / "mine.py"), "../mine.py", "mine"]
    for file in names:
        recipe["source"]["file"] = file
        (tmp_path / "run/recipe.json").write_text(json.dumps(recipe))
        for words in (
            ["eval", "run"],
            ["resume", "run"],
            ["doctor", "run"],
            ["export", "run", "--to", "nir"],
            ["export", "run", "--to", "onnx"],
            ["train", "run/recipe.json"],
            ["doctor", "run/recipe.json"],
            ["card", "run"],
        ):
            assert main(words) in (1, 2), words
            error(capsys)
        assert main(["report", "run"]) == 0
        for call in (bs.load, bs.resume, bs.evaluate, bs.examine):
            with pytest.raises(RunError, match="imported only if you say so"):
                call("run")
        for write_file in (bs.nir.write, bs.onnx.write):
            with pytest.raises(BackspikeError):
                write_file("run", "file")
    assert not mark.exists()
    assert main(["doctor", "run", "--recipe", "mine.py:recipe"]) in (0, 1)
    assert mark.exists()  # it works, once it is named


def test_names_of_recipes_and_functions_in_text_are_not_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "import os\nos.mkdir('mark')\n" + ALL_OWN)
    stored = bs.recipes.digits().to_dict()
    for change in (
        {"name": "mine.py:recipe"},
        {"fields": stored["fields"] | {"model": "mine.py:recipe"}},
        {"fields": stored["fields"] | {"data": "mine.py:make_data"}},
        {"fields": stored["fields"] | {"source": "mine.py:recipe"}},
    ):
        (tmp_path / "recipe.json").write_text(json.dumps(stored | change))
        main(["doctor", "recipe.json", "--limit", "60", "--batch_size", "20"])
        capsys.readouterr()
    with pytest.raises(RecipeError):
        bs.Recipe.from_dict({**stored, "fields": {"source": "Source('mine.py', 'f', '', '')"}})
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("damaged", [3, [], "mine.py", {"file": 1}, {"file": "mine.py"}])
def test_a_damaged_source_is_one_line_of_error(run, damaged, capsys):
    stored = json.loads((run / "recipe.json").read_text()) | {"source": damaged}
    (run / "recipe.json").write_text(json.dumps(stored))
    assert main(["eval", str(run)]) == 1
    assert "recipe.json is damaged (its source needs file" in error(capsys)
    assert main(["report", str(run)]) == 0


# ---- in Python -----------------------------------------------------------------------------------


def test_a_recipe_with_functions_and_without_a_file(mine, tmp_path):
    """Its functions come from any module; runs take the recipe, or its functions and classes."""
    made = bs.recipes.from_file(f"{mine}:recipe")
    names = vars(made.source.module())
    out = tmp_path / "run"
    result = bs.fit(names["recipe"](), out, **QUICK)
    assert "source" not in json.loads((out / "recipe.json").read_text())
    with pytest.raises(RunError, match="unknown name"):
        bs.load(out)
    values = tuple(names[n] for n in ALL_NAMES)
    for options in (
        {"recipe": names["recipe"]()},
        {"values": values},
        {"recipe": f"{mine}:recipe"},
    ):
        assert bs.evaluate(out, **options)["test_accuracy"] == result.test_accuracy
    assert torch.equal(
        next(bs.load(out, recipe=made).parameters()), next(bs.load(out, values=values).parameters())
    )
    with pytest.raises(RunError, match="field of the recipe"):
        bs.fit(made, out, names["fixed"], force=True)


ALL_NAMES = ("make_network", "make_data", "make_neuron", "loss", "shake", "Louder")


@pytest.mark.slow
def test_plan_memory_takes_a_model_and_data(mine):
    recipe = bs.recipes.from_file(f"{mine}:plain")
    names = vars(recipe.source.module())
    own = bs.Recipe(batch_size=32, epochs=1)
    sets = {"train": names["make_data"]()[0], "test": names["make_data"]()[1]}
    plan = bs.plan_memory(own, "3GB", names["fixed"](), **sets)
    assert plan.before.peak > 1e8
    assert plan.recipe == own.replace({"memory_limit": 3_000_000_000})
    with pytest.raises(RunError, match="does not train within 10MB"):
        bs.plan_memory(own, "10MB", names["fixed"](), **sets)
    with pytest.raises(RunError, match="train= cannot be rehearsed in another process"):
        bs.plan_memory(own, "3GB", names["fixed"](), train=(i for i in range(3)))


def test_what_a_script_defines_itself_cannot_go_to_another_process(tmp_path):
    script = (
        "import backspike as bs, torch\n"
        "class Net(torch.nn.Linear): pass\n"
        "bs.plan_memory(bs.Recipe(), '3GB', Net(1, 1))"
    )
    path = write(tmp_path, script, "script.py")
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert "model= cannot be rehearsed in another process: it is defined in the scr" in done.stderr


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_study_takes_a_model_and_data(mine, tmp_path, jobs):
    names = vars(bs.recipes.from_file(str(mine)).source.module())
    train, validation, test = names["make_data"]()
    base = bs.Recipe(epochs=1, batch_size=16)
    arms = (bs.study.Arm("slow"), bs.study.Arm("fast", {"optimizer.lr": 0.05}))
    study = bs.study.Study("rates", "Two rates.", base, arms, "slow", seeds=2)
    sets = {"train": train, "validation": validation, "test": test}
    module = names["fixed"]()
    before = [p.clone() for p in module.parameters()]
    bs.study.run(study, tmp_path / "a", jobs=jobs, model=module, **sets)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), before))
    recipe = json.loads((tmp_path / "a/runs/fast/1/recipe.json").read_text())
    assert recipe["own"] == ["model", "data"]
    bs.study.run(study, tmp_path / "b", jobs=jobs, model=names["make_network"], **sets)
    recipe = json.loads((tmp_path / "b/runs/fast/1/recipe.json").read_text())
    assert (recipe["own"], recipe["fields"]["model"]) == (["data"], "make_network")


def test_an_interrupted_study_with_a_function_continues(mine, tmp_path, monkeypatch):
    names = vars(bs.recipes.from_file(str(mine)).source.module())
    train, validation, test = names["make_data"]()
    study = bs.study.Study("one", "", bs.Recipe(epochs=2), (bs.study.Arm("a"),), "a", seeds=1)
    sets = {"train": train, "validation": validation, "test": test}
    own = {"model": names["make_network"], **sets}
    with monkeypatch.context() as patch:
        patch.setattr(runner, "finished", lambda job: False)
        bs.study.run(study, tmp_path / "s", jobs=1, **own)  # leaves a run with a checkpoint
        bs.study.run(study, tmp_path / "s", jobs=1, **own)
    assert len(list((tmp_path / "s/runs/a").iterdir())) == 1


def test_the_settings_of_a_loader_are_those_of_a_study(mine, tmp_path):
    names = vars(bs.recipes.from_file(str(mine)).source.module())
    train, validation, test = names["make_data"]()
    study = bs.study.Study("one", "", bs.Recipe(epochs=1), (bs.study.Arm("a"),), "a", seeds=1)
    loader = torch.utils.data.DataLoader(train, batch_size=20, shuffle=True)
    own = {"model": names["fixed"](), "train": loader, "validation": validation, "test": test}
    page = bs.study.run(study, tmp_path / "s", jobs=1, **own)
    assert page.is_file()
    stored = json.loads((tmp_path / "s/runs/a/0/recipe.json").read_text())
    assert stored["fields"]["batch_size"] == 20


def test_a_refused_change_leaves_the_other_study_as_it_was(mine, tmp_path):
    one = bs.study.Study(
        "one", "", bs.recipes.from_file(str(mine)), (bs.study.Arm("a"),), "a", seeds=1
    )
    runner.run(one, tmp_path / "s", jobs=1)
    before = (tmp_path / "s/study.json").read_bytes()
    edit(mine)
    other = bs.study.Study(
        "two", "", bs.recipes.from_file(str(mine)), (bs.study.Arm("a"),), "a", seeds=1
    )
    with pytest.raises(StudyError, match="holds another study"):
        runner.run(other, tmp_path / "s", jobs=1, accept_change=True)
    assert (tmp_path / "s/study.json").read_bytes() == before


def test_the_arm_two_has_its_readout_with_an_own_recipe(mine):
    study = shipped.ablation(f"{mine}:plain")
    readouts = {arm.name: study.recipe(arm).readout for arm in study.arms}
    assert isinstance(readouts["TWO"], TWO)
    assert readouts["MSG + TWO"] == readouts["TWO"] != readouts["baseline"]


def test_a_study_of_what_cannot_be_copied_says_so(tmp_path):
    base = bs.Recipe(epochs=1)
    study = bs.study.Study("one", "", base, (bs.study.Arm("a"),), "a", seeds=2)
    with pytest.raises(StudyError, match=r"train= cannot be used in several processes.*jobs=1"):
        runner.run(study, tmp_path / "s", jobs=2, train=(i for i in range(3)))
