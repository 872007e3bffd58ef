"""Untrusted files and words: nothing in them is run, sizes are checked before memory is allocated,
and the error is one line.

The first tests read the source: code that could run foreign code is allowed only in listed files.
"""

import ast
import io
import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import backspike as bs
from backspike import errors, report
from backspike.cli import main
from backspike.data import DataError
from backspike.data.formats import image_batch, picture
from backspike.errors import RecipeError, RunError
from backspike.kernel.own import c
from backspike.recipes.recipe import Recipe
from backspike.recipes.text import parse
from backspike.run import Run
from backspike.system.files import read_arrays, read_json
from backspike.train import trainer

SOURCE = Path(bs.__file__).parent

# ---- the source ----------------------------------------------------------------------------------

FORBIDDEN = [
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.exec", "os.spawn"),
    *("os.posix_spawn", "pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"),
    *("numpy.load", "numpy.loads", "torch.load", "torch.hub", "torch.jit.load", "torch.package"),
    *("yaml", "subprocess", "multiprocessing", "ctypes", "runpy", "tarfile"),
    *("shutil.unpack_archive", "zipfile", "bz2", "lzma", "gzip", "zlib.decompress", "h5py", "PIL"),
    *("xml", "html", "urllib", "http", "requests", "socket", "ftplib", "tempfile.mktemp"),
    *("json.loads", "json.load", "importlib"),
]
# What each file uses of these. Pipes connect this process to processes that it started itself.
ALLOWED = {
    "__init__.py": {"importlib"},  # modules of the public names
    "bench/gate.py": {"torch.load"},  # a file that a worker wrote; weights_only
    # imports a module of this folder that the plan names
    "bench/worker/libraries/__init__.py": {"importlib"},
    "bench/worker/loop.py": {"importlib"},  # versions
    "bench/worker/memory.py": {"importlib"},  # system/, in a Python without backspike
    "bench/workers.py": {"json.loads", "subprocess"},  # asks a Python which libraries it has
    "cli/__init__.py": {"importlib"},  # the verbs' files
    "data/formats/image_batch.py": {"pickle"},  # names become inert records; see its docstring
    "data/formats/picture.py": {"PIL"},  # four formats
    # --get: addresses of the catalogue; redirects to the web only
    "data/fetch.py": {"urllib", "http"},
    "data/unpack.py": {"gzip", "tarfile", "zipfile"},  # within bounds, filter="data"
    "data/formats/hdf5.py": {"h5py"},  # in a worker
    "data/sets/digits.py": {"numpy.load"},  # the bundled digits
    "doctor/examine.py": {"html"},  # escapes text for notebooks
    "exchange/nir_file.py": {"h5py"},  # in a worker, sizes checked first
    "exchange/nir_write.py": {"h5py"},  # to write
    "kernel/compiler.py": {"subprocess"},  # asks the C compiler which flags it accepts
    "kernel/cpu/conv.py": {"ctypes"},  # our own kernels, as in the next line
    "kernel/cpu/library.py": {"ctypes"},
    "kernel/cpu/norm.py": {"ctypes"},
    "kernel/cpu/pool.py": {"ctypes"},
    "kernel/cpu/recurrent.py": {"ctypes"},
    "kernel/cpu/sparse.py": {"ctypes"},
    "kernel/cpu/stream.py": {"ctypes"},
    "kernel/cpu/conv_lookup.py": {"ctypes"},
    "kernel/cpu/winograd.py": {"ctypes"},
    "kernel/dispatch.py": {"importlib"},  # checks whether Triton is installed
    # compiles C that c.py wrote and loads it; see test_compiled_neurons_contain_no_foreign_text
    "kernel/own/build.py": {"ctypes", "subprocess"},
    "kernel/own/native.py": {"ctypes"},  # passes arguments to it
    "kernel/pack.py": {"ctypes"},
    "kernel/recurrent.py": {"importlib"},  # imports one of our own backends
    "recipes/source.py": {"compile", "exec"},  # a Python file that the user names
    "study/spec.py": {"json.loads"},  # reads the output of json.dumps
    "system/files.py": {"json.loads", "zipfile"},  # read_json and read_arrays, with bounds
    "system/heap.py": {"ctypes"},
    "system/workers.py": {"multiprocessing", "pickle", "subprocess"},  # pipes
    "train/network.py": {"json.loads"},  # the header of safetensors, for names that occur twice
    "train/checkpoint.py": {"torch.load", "zipfile"},  # weights_only, checked first
    "train/trainer.py": {"html"},
}


def uses(path):
    """Dotted names that a file imports or calls, with aliases resolved: np.load is numpy.load."""
    tree = ast.parse(path.read_text())
    names, used = {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                used.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                used.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            used.add(names.get(node.id, node.id))
        elif isinstance(node, ast.Attribute):
            parts = [node.attr]
            inner = node.value
            while isinstance(inner, ast.Attribute):
                parts.append(inner.attr)
                inner = inner.value
            if isinstance(inner, ast.Name):
                used.add(".".join([names.get(inner.id, inner.id), *reversed(parts)]))
    return used


def forbidden(used):
    return {
        f
        for f in FORBIDDEN
        for name in used
        if name == f or name.startswith(f"{f}.") or (f[:3] == "os." and name.startswith(f))
    }


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_code_that_could_run_foreign_code_is_only_in_listed_files(path):
    assert forbidden(uses(path)) == ALLOWED.get(str(path.relative_to(SOURCE)), set())


def calls(path, name):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name):
            yield {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_the_listed_calls_are_safe():
    files = sorted(SOURCE.rglob("*.py"))
    loads = [options for path in files for options in calls(path, "torch.load")]
    assert len(loads) == 2
    assert all(options["weights_only"] == "True" for options in loads)
    for path in files:
        assert not any(
            options.get("allow_pickle", "False") != "False" for options in calls(path, "")
        )
        assert not any("shell" in options for options in calls(path, ""))
        assert not list(calls(path, ".extractall"))
        assert all(options == {"filter": "'data'"} for options in calls(path, ".extract"))
    assert list(calls(SOURCE / "data/formats/picture.py", "Image.open")) == [{"formats": "FORMATS"}]


def test_compiled_neurons_contain_no_foreign_text():
    """The C of a neuron consists of our own words and of numbers, whatever its names are."""

    def step(self, x, state):
        u = state * self.strange_name + torch.exp(x) * 0.1234567
        return u, u

    def make(name):
        body = {"states": {"strange_state": 0.0}, "step": step, name: 0.5}
        return type("StrangeKind", (bs.Neuron,), {**body, "__annotations__": {name: float}})

    layer = make("strange_name")(learn="strange_name")
    call = layer._example(None)
    plan = layer._compiled(layer._equations(call), call).plan
    text = c.forward_text(plan.layer) + c.backward_text(plan.layer, plan.options)
    assert "NAME(exp)" in text
    assert "trange" not in text
    assert "1234567" not in text
    words = {*re.findall(r"[A-Za-z_][A-Za-z_0-9]*", text)}
    ours = set()
    for file in (SOURCE / "kernel/own").iterdir():
        if file.suffix in (".py", ".h"):
            ours |= {*re.findall(r"[A-Za-z_][A-Za-z_0-9]*", file.read_text())}
    assert {word for word in words - ours if not re.fullmatch(r"[nr][0-9]+", word)} == {"_float32"}


# ---- run folders ---------------------------------------------------------------------------------

SMALL = {"limit": 60, "batch_size": 20, "epochs": 1, "model": "ConvNet('4-P', size=8)"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("safety") / "run"
    bs.fit(bs.recipes.digits().replace(SMALL), path, report=False)
    return path


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run folder, as if the run had been stopped after its last checkpoint."""
    path = tmp_path / "run"
    path.mkdir()
    for file in trained.iterdir():
        if file.name != "previous.ckpt":  # must not replace a damaged last.ckpt
            (path / file.name).write_bytes(file.read_bytes())
    log = (path / "log.jsonl").read_bytes().splitlines(keepends=True)
    (path / "log.jsonl").write_bytes(b"".join(log[:-1]))
    return path


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refusal(error, call, *arguments, **options):
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def repacked(packed, change):
    """A checkpoint with valid checksums whose members went through change(name, bytes)."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as archive, zipfile.ZipFile(out, "w") as other:
        for name in archive.namelist():
            other.writestr(name, change(name, archive.read(name)))
    return out.getvalue()


def test_pickles_never_run(run, tmp_path):
    mark = tmp_path / "mark"
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)
    mark.rmdir()  # the bomb works if a pickle is trusted
    assert "names posix.mkdir" in refusal(DataError, image_batch.decode_pickle, bomb)
    packed = (run / "last.ckpt").read_bytes()
    (run / "last.ckpt").write_bytes(
        repacked(packed, lambda name, data: bomb if name.endswith("data.pkl") else data)
    )
    assert "damaged" in refusal(RunError, bs.resume, run)
    (run / "last.ckpt").write_bytes(bomb)
    assert "damaged" in refusal(RunError, bs.resume, run)
    (run / "model.safetensors").write_bytes(bomb)
    assert "damaged" in refusal(RunError, bs.load, run)
    np.savez(run / "evaluation.npz", classes=np.array([Bomb(mark)], object))
    assert "damaged" in refusal(errors.ReportError, report.write, run)
    assert not mark.exists()


def edit_checkpoint(run, change):
    state = torch.load(run / "last.ckpt", weights_only=True)
    change(state)
    torch.save(state, run / "last.ckpt")


def test_optimizer_state_of_a_wrong_size_is_refused(run):
    def change(state):
        state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1)

    edit_checkpoint(run, change)
    assert "another shape" in refusal(RunError, bs.resume, run)


def test_expanded_optimizer_state_is_copied(run):
    """A fused kernel writes into it, so it must not share the memory of one number."""

    def change(state):
        for values in state["optimizer"]["state"].values():
            values["exp_avg"] = torch.zeros(1).expand(values["exp_avg"].shape)
        state["position"], state["best"] = [0, 0, 0], None

    edit_checkpoint(run, change)
    assert bs.resume(run, report=False).epochs == 1


@pytest.mark.parametrize("position", [625, 10**6, -1])
def test_a_generator_position_outside_its_state_is_refused(run, position):
    def change(state):
        state["ranks"][0]["generators"]["numpy"][2] = position

    edit_checkpoint(run, change)
    assert f"at {position}" in refusal(RunError, bs.resume, run)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position", [0, 0]),
        ("position", [5, 0, 0]),
        ("position", ["1", 0, 0]),
        ("sums", None),
        ("best", {"epoch": 0}),
        ("best", None),
        ("bad_epochs", 0.5),
        ("elapsed", [True, 0.0]),
        ("log", -1),
        ("ranks", [{"products": {"model": {}}, "generators": {}}]),
        ("optimizer", {"state": {99: {"step": torch.tensor(1.0)}}}),
        ("optimizer", {"state": {0: {"a": torch.zeros(1)}}}),
        ("ranks", [{"products": {}, "generators": {}}]),
        ("ranks", []),
        ("network", {}),
        ("recipe", {"name": "other"}),
        ("version", 1),
    ],
)
def test_impossible_values_in_a_checkpoint_are_refused(run, key, value):
    log = (run / "log.jsonl").read_bytes()
    edit_checkpoint(run, lambda state: state.update({key: value}))
    assert "last.ckpt" in refusal(RunError, bs.resume, run)
    assert (run / "log.jsonl").read_bytes() == log


def test_a_compressed_checkpoint_that_unpacks_to_more_is_refused(run):
    packed = (run / "last.ckpt").read_bytes()
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(packed)) as archive,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as other,
    ):
        for name in archive.namelist():
            other.writestr(name, bytes(20 << 20) if name.endswith("data/0") else archive.read(name))
    (run / "last.ckpt").write_bytes(out.getvalue())
    assert f"bytes in a file of {len(out.getvalue())}" in refusal(RunError, bs.resume, run)


def safetensors(header, body=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def tensor(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        safetensors({}, size=2**63),
        safetensors(b"[" * 5000),
        safetensors({"a": tensor([2**40, 2**40], [0, 4])}, bytes(4)),
        safetensors({"a": tensor([10**12], [0, 4 * 10**12])}, bytes(4)),
        safetensors({"a": tensor([1], [8, 4])}, bytes(8)),
        safetensors({"a": tensor([1], [0, 4]), "b": tensor([1], [0, 4])}, bytes(4)),
        safetensors({"a": tensor([-1], [0, 4])}, bytes(4)),
        safetensors({"a": tensor([1], [0, 4], "PICKLE")}, bytes(4)),
        safetensors({"a\n\x1b[2J": tensor([1], [0, 4])}, bytes(4)),
    ],
    ids=range(10),
)
def test_hostile_safetensors_headers_are_refused(run, data):
    (run / "model.safetensors").write_bytes(data)
    assert main(["eval", str(run)]) == 1
    assert "model.safetensors" in str(refusal_of(run))


def refusal_of(run):
    with pytest.raises(RunError) as caught:
        bs.load(run)
    return caught.value


@pytest.mark.parametrize("path", ["resume", "load"])
def test_a_network_larger_than_its_file_is_not_built(run, path, monkeypatch):
    """recipe.json asks for a network of 16 GB."""
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["fields"]["model"] = "ConvNet('60000-60000')"
    (run / "recipe.json").write_text(json.dumps(recipe))
    monkeypatch.setattr(trainer, "Trainer", None)  # not reached
    error = refusal(RunError, getattr(bs, path), run)
    assert "the network in recipe.json needs" in error


@pytest.mark.parametrize(
    "line",
    [b"null", b"[]", b'"done"', b"{" * 5000, b"[" * 100_000, b"NaN", b"\xff\xfe", b"1" * 5000],
)
def test_log_lines_that_are_not_events_are_skipped(run, line):
    (run / "log.jsonl").write_bytes(line + b'\n{"event": "epoch"}\n')
    assert Run.open(run).log() == [{"event": "epoch"}]


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"epochs": "1", "seconds": None},
        {"epochs": 1, "seconds": 1, "best_epoch": 0, "test_accuracy": "<script>"},
        {"epochs": 1, "seconds": [1], "best_epoch": 0},
    ],
)
def test_a_last_event_that_is_not_a_result_is_refused(run, event, capsys):
    (run / "log.jsonl").write_text(json.dumps({"event": "done", **event}) + "\n")
    assert main(["resume", str(run)]) == 1
    err = capsys.readouterr().err
    assert "log.jsonl is damaged" in err
    assert err.count("\n") == 1


def test_terminal_control_sequences_are_escaped(run, capsys):
    stored = json.loads((run / "recipe.json").read_text())
    stored["fields"]["a\nb\x1b[2J\u202e"] = 1
    (run / "recipe.json").write_text(json.dumps(stored))
    assert main(["eval", str(run)]) == 1
    err = capsys.readouterr().err
    assert r"a\nb\x1b[2J\u202e" in err
    assert err.count("\n") == 1


# ---- JSON, recipes -------------------------------------------------------------------------------


def test_json_is_read_with_bounds():
    assert read_json(b'{"a": [1, -2, 0.5, null, "x"]}') == {"a": [1, -2, 0.5, None, "x"]}
    assert read_json("9" * 18) == 10**18 - 1
    assert type(read_json("9" * 19)) is float
    assert read_json("9" * 10_000) == float("inf")
    assert read_json("[" * 31 + "]" * 31) == eval("[" * 31 + "]" * 31)
    for text in (
        "[" * 33 + "]" * 33,
        "[" * 900 + "]" * 900,
        "[" * 100_000,
        '{"a":' * 500 + "1" + "}" * 500,
        "{",
        b"\xff\xfe\x00",
    ):
        with pytest.raises(ValueError):
            read_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("T", 10**30),
        ("T", 10_000_000),
        ("workers", 100_000),
        ("batch_size", 2**40),
        ("epochs", float("nan")),
        ("epochs", True),
        ("seed", -1),
        ("neuron.tau", float("nan")),
        ("neuron.tau", None),
        ("optimizer", "AdamW(lr=nan)"),
        ("optimizer", "AdamW(lr=9" + "9" * 5000 + ")"),
        ("model", "__import__('os').system('true')"),
        ("model", "ConvNet.__class__()"),
        ("model", "ConvNet(*[1])"),
        ("model", "ConvNet('32-P' if 1 else 2)"),
        ("model", "(lambda: 1)()"),
        ("model", "Masked(" * 50 + ")" * 50),
        ("model", "(" * 5000 + ")"),
        ("model", "-" * 9000 + "1()"),
        ("model", "ConvNet(0x" + "f" * 9000 + ")"),
        ("model", "x" * 20_000 + "()"),
        ("model", ["ConvNet()"]),
        ("model", {"a": 1}),
        ("neuron", "Neuron"),
        ("neuron", 3),
        ("__class__", 1),
        ("neuron.__class__", 1),
        ("model.__init__", "Mean()"),
        ("augment", [1, [2]]),
        ("a\0b", 1),
    ],
)
def test_hostile_values_in_a_recipe_are_refused(field, value):
    stored = bs.recipes.digits().to_dict()
    stored["fields"][field] = value
    stored = read_json(json.dumps(stored))
    assert len(refusal(RecipeError, Recipe.from_dict, stored)) < 600


def test_json_that_is_not_a_recipe_is_refused():
    for stored in (None, [], "x", {}, {"fields": []}, {"fields": None}):
        assert "not a recipe" in refusal(RecipeError, Recipe.from_dict, stored)


@pytest.mark.parametrize(("text", "value"), [("1e999", math.inf), ("'\\ud800'", "\ud800")])
def test_odd_values_are_parsed(text, value):
    assert parse(text) == value


@pytest.mark.parametrize("text", ["9" * 5000, "0x" + "f" * 5000, "'\\d'", "1if 1else 2", "\0"])
def test_odd_values_are_refused_without_a_warning(text):
    assert "value: " in refusal(RecipeError, parse, text)


# ---- archives and pictures -----------------------------------------------------------------------


def npz(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def test_arrays_survive_a_round_trip(tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array(["x", "yz"]),
        "d": np.zeros((0, 3)),
        "e": np.array(7),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    for name, array in read_arrays(tmp_path / "a.npz").items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name])


def test_arrays_larger_than_their_file_are_refused(tmp_path, monkeypatch):
    head = npy(np.zeros(4, np.uint8))[:-4]
    claimed = head.replace(b"(4,), }            ", b"(4000000000000,), }")
    assert claimed != head
    assert "in 4 bytes" in refusal(
        ValueError, read_arrays, npz(tmp_path / "claim.npz", {"a.npy": claimed + bytes(4)})
    )
    for shape in (b"(-4,), }", b"(4,-1,), }"):
        bad = head.replace(b"(4,), }".ljust(len(shape)), shape)
        refusal(ValueError, read_arrays, npz(tmp_path / "minus.npz", {"a.npy": bad + bytes(4)}))
    monkeypatch.setattr("backspike.system.files.LARGEST_ARRAYS", 1 << 20)
    bomb = npz(
        tmp_path / "bomb.npz", {f"{i}.npy": npy(np.zeros(400_000, np.uint8)) for i in range(3)}
    )
    assert bomb.stat().st_size < 5_000
    assert "more than 1048576" in refusal(ValueError, read_arrays, bomb)


def test_paths_in_an_archive_are_only_names(tmp_path):
    (tmp_path / "in").mkdir()
    path = npz(
        tmp_path / "in" / "a.npz",
        {"../evil.npy": npy(np.arange(2)), "/evil.npy": npy(np.arange(3))},
    )
    assert set(read_arrays(path)) == {"../evil", "/evil"}
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.npz", "in"]


def test_picture_formats_that_start_programs_are_refused(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    for data in (postscript, b"P6 1 1 255 abc", b"GIF89a" + bytes(20)):
        assert "none of JPEG, PNG, WEBP, BMP" in refusal(DataError, picture.decode, data)


# ---- HDF5 ----------------------------------------------------------------------------------------


def spoken(path, labels):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for key, kind in (("times", "float16"), ("units", "uint16")):
            member = file.create_dataset(
                f"spikes/{key}", (2,), dtype=h5py.vlen_dtype(np.dtype(kind))
            )
            member[0] = member[1] = np.zeros(2, kind)
        labels(h5py, file)
    return path


def _external(h5py, file):
    other = Path(file.filename).with_name("other.h5")
    with h5py.File(other, "w") as o:
        o["labels"] = np.zeros(2, np.uint8)
    file["labels"] = h5py.ExternalLink("other.h5", "/labels")


def _outside(h5py, file):
    Path(file.filename).with_name("secret").write_bytes(b"\1\2")
    file.create_dataset("labels", (2,), np.uint8, external=[("secret", 0, 2)])


def _virtual(h5py, file):
    layout = h5py.VirtualLayout((2,), np.uint8)
    layout[:] = h5py.VirtualSource("other.h5", "labels", (2,))
    file.create_virtual_dataset("labels", layout)


def _empty(h5py, file):
    file.create_dataset("labels", (10**12,), np.uint8, chunks=(1000,))


def _chunk(h5py, file):
    file.create_dataset("labels", data=np.zeros(2, np.uint8), chunks=(10**9,), maxshape=(None,))


@pytest.mark.parametrize("labels", [_external, _outside, _virtual, _empty])
def test_hdf5_that_refers_elsewhere_or_claims_what_it_does_not_hold(tmp_path, monkeypatch, labels):
    from backspike.data.formats import hdf5

    monkeypatch.chdir(tmp_path)
    path = spoken(tmp_path / "f.h5", labels)
    assert "no data set 'labels'" in refusal(DataError, hdf5.labels, path, 20)


def test_hdf5_with_labels_inside_the_file_is_read(tmp_path):
    from backspike.data.formats import hdf5

    good = spoken(
        tmp_path / "f.h5",
        lambda h5py, file: file.create_dataset("labels", data=np.array([3, 4], np.uint8)),
    )
    assert hdf5.labels(good, 20).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("does", "why"),
    [("while True: pass", "no answer within 2 s"), ("os.abort()", "ended by signal 6")],
)
def test_hdf5_that_hangs_or_crashes_is_a_damaged_file(tmp_path, monkeypatch, does, why):
    """A damaged file may do either to the C library; a fake h5py does it here."""
    from backspike.data.formats import hdf5

    (tmp_path / "h5py.py").write_text(
        f"import os\nclass File:\n    def __init__(self, *_):\n        {does}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "h5py", raising=False)
    monkeypatch.setattr(hdf5, "SECONDS", 2)
    error = refusal(DataError, hdf5.labels, tmp_path / "f.h5", 20)
    assert "f.h5: damaged HDF5 file" in error
    assert why in error
    monkeypatch.delitem(sys.modules, "h5py", raising=False)


# ---- the command line ----------------------------------------------------------------------------

WORDS = {
    "newline": "a\nb",
    "escape": "\x1b[2Jx",
    "bytes": "\udcff",
    "zero byte": "a\0b",
    "digits": "9" * 5000,
    "infinite": "1e999",
    "nan": "nan",
    "long": "x" * 5000,
    "device": "/dev/zero",
    "above": "../../etc/passwd",
    "empty": "",
    "brackets": "(" * 3000,
    "code": "__import__('os').system('true')",
    "arabic digits": "١٢",
}
COMMANDS = [
    ["eval", "?"],
    ["resume", "?"],
    ["report", "?"],
    ["report", "?", "?"],
    ["data", "no-?"],
    ["study", "no-?"],
    ["train", "?"],
    ["train", "?.json"],
    ["doctor", "?"],
    ["train", "--data", "?"],
    ["train", "mnist", "--root", "?"],
    ["train", "--memory", "?"],
    ["train", "--model", "?"],
    ["train", "--neuron.tau", "?", "--T=0"],
    ["train", "--augment", "?", "--T=0"],
    ["train", "--name", "?", "--T=0"],
    ["train", "--seed", "?", "--T=0"],
    ["train", "--no-?", "1"],
    ["study", "masking", "--seeds", "-?"],
    ["study", "masking", "--data", "?"],
    ["study", "masking", "--T=0", "--out", "?"],
    ["bench", "?,no-such"],
    ["bench", "--rounds", "-?"],
    ["bench", "fc", "--precision", "?"],
    ["?"],
    ["--?"],
]


@pytest.mark.parametrize("word", WORDS)
def test_hostile_words_get_one_line_of_error(word, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        words = [part.replace("?", WORDS[word]) for part in command]
        code = main(words)
        err = capsys.readouterr().err
        assert code in (1, 2), (command, err)
        assert err.count("\n") == 1, (command, err)
        assert "unexpected" not in err, (command, err)
        assert len(err) < 6000, (command, err)
    assert not any(tmp_path.iterdir())
