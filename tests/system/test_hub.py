"""Networks from the hub: from its cache, laid on disk as downloads leave it, and from a server."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.hub import COMMIT, cached, served
from helpers.training import Own, Points, own

import backspike as bs
from backspike.cli import main
from backspike.errors import RunError
from backspike.models.shipped import folders

constants = pytest.importorskip("huggingface_hub.constants")
DIGITS = folders()["digits"]
FILES = {path.name: path.read_bytes() for path in DIGITS.iterdir()}
TRAINED = {name: FILES[name] for name in ("recipe.json", "model.safetensors")}
X = torch.rand(4, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache, empty, and no connection."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def environment(home, **more):
    proxies = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return {**os.environ, **proxies, "HF_HOME": str(home), **more}


def backspike(*words, env):
    """Runs the program; returns its exit code, its output and its errors."""
    command = [sys.executable, "-m", "backspike", *words]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_network_in_the_cache_equals_the_one_in_its_folder(cache):
    cached(cache, "user/digits", TRAINED)
    wanted = bs.load(DIGITS)(X)
    for address in ("hf://user/digits", "hf://user/digits@main", f"hf://user/digits@{COMMIT}"):
        assert torch.equal(bs.load(address)(X), wanted)


def test_a_revision_has_its_own_weights(cache):
    cached(cache, "user/digits", TRAINED)
    other = bs.load("digits").state_dict()
    other["model.classifier.1.bias"] += 1
    from safetensors.torch import save

    changed = {**TRAINED, "model.safetensors": save(other)}
    cached(cache, "user/digits", changed, revision="v2", commit="f" * 40)
    old, new = bs.load("hf://user/digits")(X), bs.load("hf://user/digits@v2")(X)
    torch.testing.assert_close(new, old + 1)


def test_the_program_tests_a_cached_network_offline_and_writes_nothing_there(tmp_path):
    snapshot = cached(tmp_path / "hub", "user/digits", TRAINED)
    env = environment(tmp_path, HF_HUB_OFFLINE="1")
    code, out, err = backspike("eval", "hf://user/digits", "--json", env=env)
    assert (code, err) == (0, "")
    assert json.loads(out)["test_accuracy"] == pytest.approx(accuracy("digits"))
    assert sorted(path.name for path in snapshot.iterdir()) == sorted(TRAINED)


def accuracy(name):
    return next(p.accuracy for p in bs.models.pretrained() if p.name == name)


@pytest.mark.slow
def test_only_the_recipe_and_the_weights_are_downloaded(tmp_path):
    files = {**FILES, "last.ckpt": b"a pickle", "code.py": b"raise SystemExit", "a/b": b""}
    with served("user/digits", files) as (address, given):
        env = environment(tmp_path / "home", HF_ENDPOINT=address)
        code, out, err = backspike("eval", "hf://user/digits", "--json", env=env)
        assert code == 0, err
        assert json.loads(out)["test_accuracy"] == pytest.approx(accuracy("digits"))
        assert set(given) == set(TRAINED)
        code, out, err = backspike("eval", "hf://user/digits@v9", env=env)
        assert code == 1
        assert err.splitlines()[-1].endswith(
            "hf://user/digits@v9 has no revision 'v9': give a branch, a tag or a commit"
        )
        code, out, err = backspike("eval", "hf://user/none", env=env)
        assert code == 1
        assert "hf://user/none is not on the hub, or private" in err.splitlines()[-1]
    # what was downloaded is there without a connection, what was not is not
    code, out, err = backspike("eval", "hf://user/digits", "--json", env=env)
    assert code == 0, err
    code, out, err = backspike("eval", "hf://user/other", env=env)
    assert code == 1
    assert err.splitlines()[-1].endswith("and the hub cannot be reached")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("hf://digits", "is not an address on the hub; write hf://user/name[@revision]"),
        ("hf://", "is not an address on the hub; write hf://user/name[@revision]"),
        ("hf://a/b/c", "is not an address on the hub; write hf://user/name[@revision]"),
        ("hf://user/../x", "is not an address on the hub; write hf://user/name[@revision]"),
        ("hf://user/na me", "is not an address on the hub: "),
        ("hf://user/..", "is not an address on the hub; write hf://user/name[@revision]"),
        ("hf://user/-name", "is not an address on the hub: "),
        ("hf://user/none", "HF_HUB_OFFLINE forbids to download it"),
        ("hf://user/digits@v9", "HF_HUB_OFFLINE forbids to download it"),
        ("hf://user/digits@../..", "is not an address on the hub; write hf://user/name[@revision]"),
    ],
)
def test_what_cannot_be_found_is_one_line(cache, address, text):
    cached(cache, "user/digits", TRAINED)
    with pytest.raises(RunError) as error:
        bs.load(address)
    assert text in str(error.value)
    assert str(error.value).startswith(address)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("lost", TRAINED)
def test_a_repository_without_a_network_is_refused(cache, lost):
    cached(cache, "user/digits", {k: v for k, v in FILES.items() if k != lost})
    with pytest.raises(RunError, match=f"hf://user/digits has no {lost}; a network on the hub"):
        bs.load("hf://user/digits")


def test_damaged_weights_are_one_line(cache):
    damaged = TRAINED["model.safetensors"][:-1]
    cached(cache, "user/digits", {**TRAINED, "model.safetensors": damaged})
    with pytest.raises(RunError, match=r"model\.safetensors is damaged or belongs to another"):
        bs.load("hf://user/digits")


def test_a_pickle_in_place_of_the_weights_is_not_executed(cache, tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    torch.save({"model": Bomb()}, tmp_path / "bomb")
    weights = (tmp_path / "bomb").read_bytes()
    cached(cache, "user/digits", {**TRAINED, "model.safetensors": weights})
    with pytest.raises(RunError, match="is damaged"):
        bs.load("hf://user/digits")
    assert not (tmp_path / "executed").exists()


def test_a_network_of_the_users_own_needs_its_module(cache, tmp_path):
    bs.fit(own(), tmp_path / "run", Own(), Points(), Points(), report=False)
    files = {name: (tmp_path / "run" / name).read_bytes() for name in TRAINED}
    cached(cache, "user/own", files)
    with pytest.raises(RunError, match="with a model of your own; give model= again"):
        bs.load("hf://user/own")
    x = torch.rand(4, 3, 2)
    assert torch.equal(
        bs.load("hf://user/own", model=Own())(x), bs.load(tmp_path / "run", model=Own())(x)
    )


def test_without_the_library_one_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RunError, match=r'pip install "backspike\[hub\]"'):
        bs.load("hf://user/digits")


def test_report_and_card_of_a_cached_run_go_to_the_current_folder(
    cache, tmp_path, monkeypatch, capsys
):
    snapshot = cached(cache, "user/digits", FILES)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "hf://user/digits"]) == 0
    assert main(["card", "hf://user/digits"]) == 0
    assert capsys.readouterr().out == "report: report.html\ncard: README.md\n"
    assert "digits" in (tmp_path / "report.html").read_text()
    assert sorted(path.name for path in snapshot.iterdir()) == sorted(FILES)
