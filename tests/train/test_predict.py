"""Predictions for new inputs: equal to `eval`, in order, bad inputs named, in bounded memory."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers.datasets import fake_mnist
from helpers.recordings import some_events
from helpers.training import Own, Points, fit, own, tiny

import backspike as bs
from backspike import data
from backspike.cli import main
from backspike.data.formats import aedat2, atis, npy
from backspike.errors import RunError

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def as_png(folder, images):
    folder.mkdir()
    for i, x in enumerate(images):
        Image.fromarray(x[0]).save(folder / f"{i:05}.png")
    return folder


def test_the_test_digits_as_pictures_have_the_answers_of_eval(tmp_path):
    test = data.load("digits").test
    answers = list(bs.Predictor("digits")(as_png(tmp_path / "png", test.x)))
    assert [a["input"] for a in answers] == [f"{tmp_path}/png/{i:05}.png" for i in range(360)]
    network = bs.load("digits")
    recipe = bs.recipes.digits()
    x = torch.from_numpy(test.x).float()[None].expand(recipe.T, -1, -1, -1, -1) / 255
    with torch.no_grad():
        logits = network(x)
    assert [a["class"] for a in answers] == logits.argmax(-1).tolist()
    right = np.mean([a["class"] == y for a, y in zip(answers, test.y)])
    assert right == bs.evaluate("digits")["test_accuracy"]
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (test.y, [a["class"] for a in answers]), 1)
    np.testing.assert_allclose(
        [a["probability"] for a in answers], logits.softmax(-1).amax(-1), atol=1e-5
    )
    assert set(answers[0]) == {"input", "class", "name", "probability", "timesteps"}
    assert all(a["timesteps"] == recipe.T and a["name"] == str(a["class"]) for a in answers)


def test_every_answer_is_that_of_eval(tmp_path):
    """`eval` stores its confusion matrix; the predictions give the same one."""
    run = tmp_path / "run"
    fit(tiny(), run)
    bs.evaluate(run)
    with np.load(run / "evaluation.npz") as arrays:
        wanted = arrays["confusion"]
    test = data.load("digits").test
    confusion = np.zeros((10, 10), int)
    for answer, y in zip(bs.Predictor(run)(as_png(tmp_path / "png", test.x)), test.y):
        confusion[y, answer["class"]] += 1
    np.testing.assert_array_equal(confusion, wanted)


def test_recordings_have_the_answers_of_their_frames(tmp_path):
    predictor = bs.Predictor("digits-dvs")
    events = [some_events(i, 300, 34, 34) for i in range(5)]
    for i, e in enumerate(events):
        (tmp_path / f"{i}.bin").write_bytes(atis.encode(e))
    frames = [data.frames(e, 10, 34, 17) for e in events]
    for i, x in enumerate(frames[:4]):
        np.save(tmp_path / f"{i}.npy", x)
    np.savez(tmp_path / "4.npz", x=events[4].x, y=events[4].y, t=events[4].t, p=events[4].p)
    by_path, by_array, by_events, by_frames = (
        list(predictor(inputs))
        for inputs in (
            sorted(tmp_path.glob("*.bin")),
            sorted(tmp_path.glob("*.np[yz]")),
            events,
            frames,
        )
    )
    for key in ("class", "probability"):
        assert [a[key] for a in by_path] == [a[key] for a in by_events]
        assert [a[key] for a in by_path] == [a[key] for a in by_array]
        assert [a[key] for a in by_path] == [a[key] for a in by_frames]
    assert [a["input"] for a in by_events] == [0, 1, 2, 3, 4]


def test_arrays_and_pictures_of_other_sizes(tmp_path):
    x = data.load("digits").test.x[:3]
    predictor = bs.Predictor("digits")
    wanted = [a["probability"] for a in predictor(x)]
    np.save("a.npy", x[1])
    np.save("b.npy", x[2, 0])
    as_floats = [
        a["probability"] for a in predictor([torch.from_numpy(x[0]) / 255, "a.npy", "b.npy"])
    ]
    np.testing.assert_allclose(as_floats, wanted, atol=1e-6)
    large = np.kron(x[0, 0], np.ones((9, 9), np.uint8))
    wide = np.pad(large, ((0, 0), (50, 50)))
    Image.fromarray(wide).convert("RGB").save("wide.png")
    scaled = np.asarray(Image.fromarray(large).resize((8, 8), Image.Resampling.BILINEAR))
    ((prepared, _),) = predictor.inputs.pieces(tmp_path / "wide.png", "wide.png")
    inner = slice(1, -1)  # the outer columns mix with pixels beside the square
    np.testing.assert_allclose(prepared[0, :, inner].astype(int), scaled[:, inner], atol=1)


def test_bad_inputs_are_named_and_the_others_go_on(tmp_path):
    x = data.load("digits").test.x[:4]
    folder = as_png(tmp_path / "png", x)
    (folder / "00001.png").write_bytes((folder / "00001.png").read_bytes()[:40])
    (folder / "notes.txt").write_text("no input")
    (tmp_path / "empty").mkdir()
    inputs = [folder, "none.png", "empty", x[0, :, :4], x[3], x[3] * np.nan, "é\nb.png"]
    answers = list(bs.Predictor("digits", batch_size=2)(inputs))
    good = [a.get("class") for a in answers]
    errors = [a.get("error", "") for a in answers]
    assert [k is not None for k in good] == [1, 0, 1, 1, 0, 0, 0, 1, 0, 0]
    assert good[7] == good[3]
    assert "00001.png: byte 0: truncated or damaged picture" in errors[1]
    assert errors[4] == "none.png cannot be read: No such file or directory"
    assert errors[5] == "empty: no files in it that this network could read"
    assert errors[6].startswith("input 3: an array uint8 [1, 4, 8]: expected [1, 8, 8]")
    assert errors[8] == "input 5: holds NaN or infinity"
    assert not any("\n" in error for error in errors)
    assert [set(a) for a in answers if "error" in a] == [{"input", "error"}] * 6


def test_answers_come_batch_by_batch():
    """At most a batch is read ahead, so memory does not grow with the number of inputs."""
    x = data.load("digits").test.x
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield x[taken % 360]

    answers = bs.Predictor("digits", batch_size=8)(endless())
    for n in range(1, 40):
        next(answers)
        assert taken <= n + 8


def test_early_exit_answers_as_eval_measured(tmp_path):
    fit(tiny(), tmp_path / "run")
    with pytest.raises(RunError, match=r"measure them with: backspike eval .*run --anytime"):
        bs.Predictor(tmp_path / "run", exit="margin")
    measured = bs.evaluate(tmp_path / "run", anytime=True)["anytime"]["exit"]
    test = data.load("digits").test
    for measure in ("confidence", "margin"):
        curve, i = measured[measure], measured[measure]["chosen"]
        answers = list(bs.Predictor(tmp_path / "run", exit=measure)(test.x))
        right = np.mean([a["class"] == y for a, y in zip(answers, test.y)])
        assert right == pytest.approx(curve["accuracy"][i], abs=1e-12)
        assert np.mean([a["timesteps"] for a in answers]) == pytest.approx(curve["steps"][i])
    soon = bs.Predictor(tmp_path / "run", exit=0.0, spikes=True)
    late = bs.Predictor(tmp_path / "run", exit=1.1, spikes=True)
    first, last = (list(p(test.x[:5])) for p in (soon, late))
    assert [a["timesteps"] for a in first + last] == [1] * 5 + [4] * 5
    assert all(a["spikes"] < b["spikes"] for a, b in zip(first, last))
    x = torch.from_numpy(test.x[:5]).float()[None].expand(4, -1, -1, -1, -1) / 255
    network = bs.load(tmp_path / "run")
    with torch.no_grad():  # tiny() reads out with TWO: after one step, its first weight counts
        logits = network.model(x)[0] * network.readout.weights[0]
    assert [a["class"] for a in first] == logits.argmax(-1).tolist()
    np.testing.assert_allclose(
        [a["probability"] for a in first], logits.softmax(-1).amax(-1), atol=1e-6
    )
    with pytest.raises(RunError, match="exit='sure': expected confidence, margin or a threshold"):
        bs.Predictor(tmp_path / "run", exit="sure")
    (tmp_path / "run/anytime.json").write_text('{"exit": {"margin": []}}')
    with pytest.raises(RunError, match=r"anytime\.json is damaged; write it again"):
        bs.Predictor(tmp_path / "run", exit="margin")


def test_spikes_are_those_of_the_layers():
    x = data.load("digits").test.x[:7]
    answers = list(bs.Predictor("digits", spikes=True)(x))
    network = bs.load("digits")
    with bs.record(network.model) as outputs, torch.no_grad():
        network(torch.from_numpy(x).float()[None].expand(4, -1, -1, -1, -1) / 255)
    wanted = sum(out.spikes.transpose(0, 1).flatten(1).sum(1) for out in outputs.values())
    assert [a["spikes"] for a in answers] == wanted.int().tolist()


class Named(Points):
    classes = ("low", "high")


def test_a_network_of_own_model_and_data(tmp_path):
    fit(own(), tmp_path / "run", model=Own(), train=Named(), test=Named())
    points = [Points()[i][0] for i in range(8)]
    np.save("a.npy", points[1])
    predictor = bs.Predictor(tmp_path / "run", model=Own())
    answers = list(predictor([*points, "a.npy", "a.csv", np.zeros(3, np.float32)]))
    assert [a["name"] for a in answers[:9]] == ["low", "high"] * 4 + ["high"]
    assert "a.csv: the network was trained on data of your own" in answers[9]["error"]
    assert "the network does not take a sample of shape [3]" in answers[10]["error"]
    read = bs.Predictor(tmp_path / "run", Own(), read=lambda path: npy.decode(path.read_bytes()))
    assert [a["name"] for a in read("a.npy")] == ["high"]
    with pytest.raises(RunError, match="a model of your own; give model= again"):
        bs.Predictor(tmp_path / "run")


# ---- the verb ----------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path):
    folder = as_png(tmp_path / "png", data.load("digits").test.x[:5])
    (folder / "00002.png").write_bytes(b"no picture")
    return folder


def test_a_table_with_errors_on_standard_error(pictures, capsys):
    assert main(["predict", "digits", "png"]) == 1
    out, err = capsys.readouterr()
    head, *rows = out.splitlines()
    assert head.split() == ["class", "name", "probability", "timesteps", "input"]
    assert [row.split()[-1] for row in rows] == [f"png/0000{i}.png" for i in (0, 1, 3, 4)]
    bad, summary = err.splitlines()
    assert bad.startswith("backspike: png/00002.png: byte 0: truncated or damaged picture, or none")
    assert summary == "backspike: 1 of 5 inputs have no answer; exit code 1"
    assert main(["predict", "digits", "png/00000.png"]) == 0


def test_json_and_csv(pictures, capsys):
    assert main(["predict", "digits", "png", "--json", "--spikes"]) == 1
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["input"] for a in answers] == [f"png/0000{i}.png" for i in range(5)]
    assert set(answers[2]) == {"input", "error"}
    assert main(["predict", "digits", "png", "--csv", "--exit", "0.9", "--batch-size", "2"]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["input", "class", "name", "probability", "timesteps", "error"]
    assert [row["class"] for row in rows] == ["2", "3", "", *(str(a["class"]) for a in answers[3:])]
    assert [bool(row["error"]) for row in rows] == [0, 0, 1, 0, 0]


def test_paths_from_standard_input(pictures, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("png/00003.png\n\npng/00001.png"))
    assert main(["predict", "digits", "-", "png/00000.png", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [a["input"] for a in answers] == ["png/00003.png", "png/00001.png", "png/00000.png"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["digits"], "the following arguments are required: INPUT"),
        (["digits", "a", "--exit", "2"], "must be confidence, margin or a number from 0 to 1"),
        (["digits", "a", "--batch-size", "0"], "must be at least 1"),
    ],
)
def test_wrong_usage(words, text, capsys):
    assert main(["predict", *words]) == 2
    assert text in capsys.readouterr().err


def test_the_camera_option_of_the_recipe_is_used(tmp_path):
    """Raw pixels of a DVS128 where the recipe says upright=False."""
    from backspike.data.inputs import inputs

    events = some_events(0, 100)
    (tmp_path / "a.aedat").write_bytes(aedat2.encode(events))
    source = data.source("dvs-cifar10")
    for upright in (True, False):
        reader = inputs(source, T=1, size=None, by="time", upright=upright)
        ((x, span),) = reader.pieces(tmp_path / "a.aedat", "a")
        wanted = events if upright else aedat2.decode(aedat2.encode(events), upright=False)
        np.testing.assert_array_equal(x, data.frames(wanted, 1, 128))
        assert span is None


def test_sounds_and_sequences_are_prepared_as_their_sets(tmp_path):
    import wave

    from backspike.data.inputs import inputs

    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        t = np.arange(4000)
        file.writeframes((9000 * np.sin(t * t / 3000)).astype(np.int16).tobytes())
    reader = inputs(data.source("spoken-digits"), T=20, size=None, by="time", speaker="theo")
    ((x, _),) = reader.pieces(tmp_path / "a.wav", "a.wav")
    assert x.shape == (20, 80)
    assert x.sum() > 100
    image = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    rows = inputs(data.source("smnist"), T=28)
    np.testing.assert_array_equal(rows.pieces(tmp_path / "a.png", "a.png")[0][0], image)


def test_pixels_in_sequence_are_divided_by_255_as_in_training(tmp_path):
    images = fake_mnist(tmp_path / "MNIST" / "raw")["t10k"][0]
    recipe = bs.recipes.get("smnist").replace({"root": str(tmp_path), "limit": 60, "epochs": 1})
    fit(recipe, tmp_path / "run")
    predictor, seen = bs.Predictor(tmp_path / "run"), []
    predictor.network.model.register_forward_pre_hook(lambda _model, inputs: seen.append(inputs[0]))
    assert len(list(predictor(as_png(tmp_path / "png", images[:, None])))) == 30
    torch.testing.assert_close(torch.cat(seen, 1), torch.from_numpy(images).swapaxes(0, 1) / 255)


MEMORY = """
import resource, sys
import backspike as bs
answers = failed = 0
for answer in bs.Predictor("digits", batch_size=64)("png"):
    answers += 1
    failed += "error" in answer
    if answers == 1000:
        early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(answers, failed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early)
"""


@pytest.mark.slow
def test_ten_thousand_files_with_ten_damaged_ones_take_bounded_memory(tmp_path):
    x = data.load("digits").test.x
    folder = as_png(tmp_path / "png", x[np.arange(10_000) % 360])
    for i in range(500, 10_000, 1000):
        (folder / f"{i:05}.png").write_bytes(b"\x89PNG damaged")
    ran = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    answers, failed, grown = map(int, ran.stdout.split())
    assert (answers, failed) == (10_000, 10)
    assert grown < 8_000  # kB from the 1,000th answer on
    words = [sys.executable, "-m", "backspike", "predict", "digits", "png"]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert len(ran.stdout.splitlines()) == 1 + 9_990
    *bad, summary = ran.stderr.splitlines()
    assert len(bad) == 10
    assert summary == "backspike: 10 of 10,000 inputs have no answer; exit code 1"
