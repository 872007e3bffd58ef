"""Data sets: splits, frames, catalogue, cache; on fabricated files, and on real ones if present."""

import ast
import functools
import gzip
import hashlib
import logging
import multiprocessing
import os
import pickle
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import datasets
from helpers.datasets import fake_mnist, fake_nmnist, write
from helpers.paths import DATA
from hypothesis import given
from hypothesis import strategies as st

from backspike import data
from backspike.data import DataError, Events, Split, cache, frames, simulated
from backspike.data.formats import atis
from backspike.data.sets import digits as digits_sets
from backspike.data.simulate import record
from backspike.data.split import carve, stratified_order

REAL = DATA


def real(folder):
    return pytest.mark.skipif(not (REAL / folder).is_dir(), reason=f"no {folder} in BACKSPIKE_DATA")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Each test has its own cache and finds no other data sets."""
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BACKSPIKE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


@pytest.fixture
def few_digits(monkeypatch):
    """digits-dvs with only 24 digits, which take a moment."""
    return datasets.few_digits(monkeypatch, (12, 5, 7))


def digits_dvs():
    """The folder of digits-dvs, simulated if missing."""
    return digits_sets.DIGITS_DVS.read.folder("digits-dvs", data.load("digits"))


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# splits


@given(st.lists(st.integers(0, 4), min_size=1, max_size=200), st.integers(0, 3))
def test_every_prefix_of_the_stratified_order_has_classes_in_proportion(labels, seed):
    y = np.array(labels)
    order = stratified_order(y, seed)
    assert sorted(order) == list(range(len(y)))
    taken = np.cumsum(np.eye(5)[y[order]], axis=0)
    wanted = np.arange(1, len(y) + 1)[:, None] * np.bincount(y, minlength=5) / len(y)
    assert np.abs(taken - wanted).max() < 2.5


def test_stratified_order_is_shuffled_and_seeded():
    y = np.repeat(np.arange(3), 100)
    order = stratified_order(y, 0)
    assert np.bincount(y[order[:30]]).tolist() == [10, 10, 10]
    assert not np.array_equal(np.sort(order[y[order] == 0][:50]), np.arange(50))
    assert not np.array_equal(order, stratified_order(y, 1))


def test_stratified_order_never_changes():
    """Published splits depend on it. Expected: the docstring's rule, in exact fractions."""
    order = stratified_order(np.array([0, 0, 1, 1, 1, 2, 0, 2, 1, 0]), 0)
    assert order.tolist() == [1, 3, 7, 6, 2, 0, 8, 5, 9, 4]
    train, validation = carve(np.arange(1000) % 10, 100)
    assert (
        hashlib.md5(validation.astype("<i8").tobytes()).hexdigest()
        == "89e8cc8ba32d3e8c3cb0de62706542f1"
    )
    assert len(train) == 900


def test_split_is_a_map_style_data_set():
    x = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    split = Split(x, np.array([4, 5]), np.array([10, 11]))
    sample, label = split[1]
    np.testing.assert_array_equal(sample, x[1])
    assert (label, type(label), len(split)) == (5, int, 2)
    sample[:] = 0
    assert x[1].any()
    with pytest.raises(IndexError):
        split[2]
    with pytest.raises(DataError, match="2 samples, 1 labels"):
        Split(x, np.array([1]), np.array([1, 2]))


def test_torch_dataloader_takes_a_split(few_digits):
    from torch.utils.data import DataLoader

    for name in ("digits", "digits-dvs"):
        split = data.load(name).train
        batches = list(DataLoader(split, batch_size=5))
        assert [len(y) for _, y in batches] == [5, 5, 2]
        np.testing.assert_array_equal(np.concatenate([x.numpy() for x, _ in batches]), split.x)


def test_repr_gives_sizes_shapes_and_classes(tmp_path):
    digits = data.load("digits")
    assert repr(digits) == (
        "Splits('digits': train 1,257, validation 180, test 360 samples of uint8 [1, 8, 8], "
        "10 classes, bundled)"
    )
    assert repr(digits.train) == "Split(1,257 samples of uint8 [1, 8, 8], 10 classes)"
    fake_nmnist(tmp_path)
    assert repr(data.load("nmnist", tmp_path, T=3)) == (
        "Splits('nmnist': train 22, validation 2, test 6 samples of uint8 [3, 2, 34, 34], "
        "10 classes, 30 of 70,000 samples)"
    )


# digits


def test_digits():
    digits = data.load("digits")
    splits = digits.train, digits.validation, digits.test
    assert [len(split) for split in splits] == [1257, 180, 360]
    assert (digits.num_classes, digits.events, digits.note) == (10, False, "bundled")
    assert "Alpaydin" in digits.credit
    assert "CC BY 4.0" in digits.credit
    for split in splits:
        assert split.x.shape == (len(split), 1, 8, 8)
        assert (split.x.dtype, split.y.dtype, split.ids.dtype) == (np.uint8, np.int64, np.int64)
    assert sorted(np.concatenate([split.ids for split in splits])) == list(range(1797))
    assert np.bincount(np.concatenate([split.y for split in splits])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180
    ]  # fmt: skip
    assert set(np.unique(digits.train.x)) == {i * 255 // 16 for i in range(17)}


def test_digits_split_is_stratified_and_follows_the_documented_rule():
    digits = data.load("digits")
    with np.load(digits_sets.FILE) as bundle:
        y, split = bundle["y"], bundle["split"]
    order = stratified_order(y, seed=0)
    assert set(digits.test.ids) == set(order[:360])
    assert set(digits.validation.ids) == set(order[360:540])
    for part in range(3):
        wanted = np.bincount(y) * (split == part).mean()
        assert np.abs(np.bincount(y[split == part]) - wanted).max() < 2


def test_digits_are_those_of_the_uci_file():
    """The first digit of the UCI file, a zero: eight rows of grey values 0..16."""
    digits = data.load("digits")
    where = {
        int(id): (split, i)
        for split in (digits.train, digits.validation, digits.test)
        for i, id in enumerate(split.ids)
    }
    split, i = where[0]
    rows = [
        *("005d9100", "00dfaf50", "03f20b80", "04c00880"),
        *("05800980", "04b01c70", "02e5ac00", "006da000"),
    ]
    assert split.x[i, 0].tolist() == [[int(v, 16) * 255 // 16 for v in row] for row in rows]
    assert split.y[i] == 0


@pytest.mark.parametrize("limit", [1, 10, 50, 500])
def test_limit_selects_a_balanced_part_of_the_training_split(limit):
    whole, part = data.load("digits"), data.load("digits", limit=limit)
    assert len(part.train) == limit
    assert set(part.train.ids) <= set(whole.train.ids)
    assert set(part.train.ids) <= set(data.load("digits", limit=limit + 1).train.ids)
    assert np.ptp(np.bincount(part.train.y, minlength=10)) <= 2
    assert (len(part.validation), len(part.test)) == (180, 360)


def test_limit_bounds():
    assert len(data.load("digits", limit=10**6).train) == 1257
    with pytest.raises(DataError, match="limit=0"):
        data.load("digits", limit=0)


# frames


events_strategy = st.lists(
    st.tuples(st.integers(0, 33), st.integers(0, 33), st.integers(0, 10**6), st.integers(0, 1)),
    max_size=60,
)


@given(events_strategy, st.integers(1, 12), st.integers(1, 34), st.sampled_from(["time", "count"]))
def test_frames_count_every_event_once(rows, T, size, by):
    x, y, t, p = np.array(rows, np.int64).reshape(-1, 4).T
    out = frames(Events(x, y, t, p), T, size=size, by=by)
    assert out.shape == (T, 2, size, size)
    assert out.sum() == len(rows)
    assert out[:, 1].sum() == p.sum()
    wanted = np.zeros((2, size, size), int)
    for column, row, _, polarity in rows:
        wanted[polarity, row * size // 34, column * size // 34] += 1
    np.testing.assert_array_equal(out.sum(0), wanted)


def test_frames_by_time_and_by_count():
    """Times 0, 1, 2, 3, 99 in two bins: 4 + 1 by time (the middle is at 50), 3 + 2 by count."""
    t = np.array([99, 0, 1, 2, 3])
    e = Events(np.array([1, 2, 3, 4, 5]), np.array([6, 6, 6, 6, 6]), t, np.array([1, 0, 0, 0, 1]))
    by_time, by_count = frames(e, 2), frames(e, 2, by="count")
    assert by_time.sum((1, 2, 3)).tolist() == [4, 1]
    assert by_time[1, 1, 6, 1] == 1
    assert by_count.sum((1, 2, 3)).tolist() == [3, 2]
    assert by_count[1, 1, 6, 5] == by_count[1, 1, 6, 1] == 1


@given(st.lists(st.integers(0, 40), min_size=1, max_size=40), st.integers(1, 12))
def test_bins_by_time_have_equal_duration(times, T):
    """Each event is in bin floor((t - first) T / length), with length = last - first + 1 us."""
    t = np.array(times)
    zeros = np.zeros(len(t), int)
    wanted = [0] * T
    for time in times:
        wanted[(time - min(times)) * T // (max(times) - min(times) + 1)] += 1
    assert frames(Events(zeros, zeros, t, zeros), T).sum((1, 2, 3)).tolist() == wanted


@given(st.integers(1, 100), st.integers(1, 12))
def test_bins_by_count_have_equally_many_events(n, T):
    zeros = np.zeros(n, int)
    counts = frames(Events(zeros, zeros, np.arange(n)[::-1], zeros), T, by="count").sum((1, 2, 3))
    assert np.ptp(counts) <= 1


@pytest.mark.parametrize("bad", [(34, 0, 0), (0, 34, 0), (0, 0, 2)])
def test_events_outside_the_sensor_are_refused(bad):
    x, y, p = np.array([(3, 3, 1), bad]).T
    with pytest.raises(DataError, match="event 1 at"):
        frames(Events(x, y, np.zeros(2, int), p), 3)


# image sets


@pytest.mark.parametrize("folder", ["MNIST/raw", "MNIST", "."])
@pytest.mark.parametrize(("pack", "suffix"), [(gzip.compress, ".gz"), (bytes, "")])
def test_mnist_layouts(tmp_path, folder, pack, suffix):
    arrays = fake_mnist(tmp_path / "root" / folder, pack=pack, suffix=suffix)
    mnist = data.load("mnist", tmp_path / "root")
    assert (len(mnist.train), len(mnist.validation), len(mnist.test)) == (110, 10, 30)
    assert np.bincount(mnist.validation.y).tolist() == [1] * 10
    assert not set(mnist.train.ids) & set(mnist.validation.ids)
    assert mnist.note == "150 of 70,000 samples"
    x, y = arrays["train"]
    for split in (mnist.train, mnist.validation):
        np.testing.assert_array_equal(split.x[:, 0], x[split.ids])
        np.testing.assert_array_equal(split.y, y[split.ids])
    np.testing.assert_array_equal(mnist.test.x[:, 0], arrays["t10k"][0])
    np.testing.assert_array_equal(mnist.test.y, arrays["t10k"][1])


def test_root_argument_precedes_variable_and_data_folder(tmp_path, monkeypatch):
    for i, folder in enumerate(("given", "variable", "data")):
        fake_mnist(tmp_path / folder / "MNIST" / "raw", n_test=10 + i)
    assert len(data.load("mnist").test) == 12
    monkeypatch.setenv("BACKSPIKE_DATA", str(tmp_path / "variable"))
    assert len(data.load("mnist").test) == 11
    assert len(data.load("mnist", tmp_path / "given").test) == 10
    monkeypatch.setenv("BACKSPIKE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        data.load("mnist")


@pytest.mark.parametrize("suffix", ["", ".bin"])
@pytest.mark.parametrize(
    ("name", "stem"), [("cifar10", "cifar-10-batches-"), ("cifar100", "cifar-100-")]
)
def test_cifar(tmp_path, name, stem, suffix):
    hundred = name == "cifar100"
    folder = tmp_path / (
        stem + {"": "python" if hundred else "py", ".bin": "binary" if hundred else "bin"}[suffix]
    )
    files = (
        ["train", "test"] if hundred else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    )
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (len(files), 20, 3072), np.uint8)
    y = rng.integers(0, 100 if hundred else 10, (len(files), 20))
    for file, images, labels in zip(files, x, y):
        key = b"fine_labels" if hundred else b"labels"
        content = pickle.dumps({b"data": images, key: labels.tolist()}, 4)
        if suffix:
            content = b"".join(
                bytes([5, int(l)][not hundred :]) + i.tobytes() for i, l in zip(images, labels)
            )
        write(folder / (file + suffix), content)
    splits = data.load(name, tmp_path)
    assert len(splits.validation) == (len(files) - 1) * 2
    for split in (splits.train, splits.validation):
        np.testing.assert_array_equal(
            split.x.reshape(-1, 3072), x[:-1].reshape(-1, 3072)[split.ids]
        )
        np.testing.assert_array_equal(split.y, y[:-1].ravel()[split.ids])
    np.testing.assert_array_equal(splits.test.x, x[-1].reshape(-1, 3, 32, 32))
    assert splits.num_classes == (100 if hundred else 10)


def test_image_files_that_do_not_match_are_refused(tmp_path):
    fake_mnist(tmp_path / "a", labels=lambda i: 10)
    with pytest.raises(DataError, match=r"train-images.*label 10 in a set of 10 classes"):
        data.load("mnist", tmp_path / "a")
    fake_mnist(tmp_path / "b")
    shutil.copy(
        tmp_path / "b" / "t10k-labels-idx1-ubyte.gz", tmp_path / "b" / "train-labels-idx1-ubyte.gz"
    )
    with pytest.raises(DataError, match="are not those of mnist"):
        data.load("mnist", tmp_path / "b")
    shutil.copy(
        tmp_path / "b" / "t10k-labels-idx1-ubyte.gz", tmp_path / "b" / "train-images-idx3-ubyte.gz"
    )
    with pytest.raises(DataError, match="are not those of mnist"):
        data.load("mnist", tmp_path / "b")


def test_error_for_a_damaged_file_gives_name_and_offset(tmp_path):
    fake_mnist(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: byte 1000: truncated"):
        data.load("mnist", tmp_path)


def test_unofficial_files_cause_a_warning(tmp_path, caplog):
    fake_mnist(tmp_path)
    data.load("mnist", tmp_path)
    assert len(caplog.messages) == 4
    assert "train-images-idx3-ubyte.gz is not the official file" in caplog.messages[0]


# catalogue


def test_error_for_an_unknown_name_suggests_similar_ones():
    with pytest.raises(DataError, match=r"no data set 'fashion'; did you mean fashion-mnist"):
        data.load("fashion")
    with pytest.raises(DataError, match=r"'MNIST'; did you mean mnist or"):
        data.load("MNIST")
    with pytest.raises(DataError, match=r"did you mean digits or digits-dvs or mnist"):
        data.load("zzzz")


@pytest.mark.parametrize("name", [entry.name for entry in data.catalogue() if entry.layouts])
def test_error_for_missing_data_tells_what_to_put_where(name):
    entry = next(entry for entry in data.catalogue() if entry.name == name)
    with pytest.raises(DataError) as error:
        data.load(name)
    for text in (name, entry.home, "BACKSPIKE_DATA", f"{name} is not in data; "):
        assert text in str(error.value)
    assert "shared" not in str(error.value)
    for file in entry.layouts[0].files:
        assert f"{entry.layouts[0].folders[0]}/{file.name}" in str(error.value)
        assert file.md5 is None or file.md5 in str(error.value)
        if file.archive:
            md5 = f" (MD5 {file.archive.md5})" if file.archive.md5 else ""
            assert f"unpacked from {file.archive.name}{md5}" in str(error.value)
    assert data.found(name) is None
    assert {state.split(":")[0] for _, state in data.check(name)} == {"missing"}


@pytest.mark.parametrize("option", [{"T": 4}, {"size": 8}, {"by": "count"}])
def test_image_sets_refuse_event_options(option):
    with pytest.raises(
        DataError,
        match=r"^digits holds images: \w+=.* is for digits-dvs, nmnist, .*cifar10-dvs-simulated",
    ):
        data.load("digits", **option)


def test_an_unknown_option_raises_type_error():
    with pytest.raises(TypeError, match="no data set has an option 'colour'"):
        data.load("digits", colour=True)
    assert len(data.load("digits", upright=True).train) == 1257  # the default has no effect


def test_data_set_names_occur_only_in_their_own_files():
    package, names = Path(data.__file__).parents[1], {entry.name for entry in data.catalogue()}
    files = [
        *package.glob("data/*.py"),
        *package.glob("data/formats/*.py"),
        *(
            path
            for part in ("train", "analysis", "report")
            for path in package.rglob(f"{part}/*.py")
        ),
    ]
    assert len(files) > 50
    found = [
        (path.name, node.value)
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names
    ]
    assert found == []


def test_catalogue_lists_all_sets():
    names = [entry.name for entry in data.catalogue()]
    assert names == [
        "digits",
        "digits-dvs",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "nmnist",
        "dvs-cifar10",
        "n-caltech101",
        "dvs128-gesture",
        "shd",
        "ssc",
        "imagenet",
        "mnist-dvs",
        "cifar10-dvs-simulated",
        "smnist",
        "psmnist",
        "scifar10",
        "yinyang",
        "spoken-digits",
    ]
    for entry in data.catalogue():
        for layout in entry.layouts:
            for file in layout.files:
                for md5 in (file.md5, file.archive and file.archive.md5):
                    assert md5 is None or len(bytes.fromhex(md5)) == 16
    assert data.check("digits") == []


def test_check_states(tmp_path):
    fake_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(bytes(4542))
    states = {path.name: state for path, state in data.check("mnist", tmp_path)}
    assert states["train-images-idx3-ubyte.gz"].startswith("damaged: ")
    assert "9,912,422" in states["train-images-idx3-ubyte.gz"]
    assert (
        states["train-labels-idx1-ubyte.gz"]
        == "missing: 28,881 bytes, MD5 d53e105ee54ea40749a09fcbcd1e9432"
    )
    assert states["t10k-labels-idx1-ubyte.gz"].startswith("damaged: MD5 ")
    assert data.found("mnist", tmp_path) is None
    with pytest.raises(DataError, match="mnist is not in"):
        data.load("mnist", tmp_path)
    fake_mnist(tmp_path / "plain", pack=bytes, suffix="")
    assert {state for _, state in data.check("mnist", tmp_path / "plain")} == {
        "present, no official MD5 known"
    }
    fake_nmnist(tmp_path / "NMNIST")
    assert [state for _, state in data.check("nmnist", tmp_path)] == [
        "incomplete: 24 of 60,000 recordings, 59,976 missing",
        "incomplete: 6 of 10,000 recordings, 9,994 missing",
    ]


def test_presence_counts_what_is_on_this_machine(tmp_path):
    presence = {entry.name: entry.presence(tmp_path) for entry in data.catalogue()}
    assert {name for name, text in presence.items() if text == "complete"} == {
        "digits",
        "digits-dvs",
    } | {entry.name for entry in data.catalogue() if not entry.layouts}
    assert set(presence.values()) == {"complete", "missing"}
    fake_nmnist(tmp_path)
    assert data.source("nmnist").presence(tmp_path) == "30 of 70,000 recordings"
    shutil.rmtree(tmp_path / "Test")
    assert data.source("nmnist").presence(tmp_path) == "1 of 2 folders"
    fake_mnist(tmp_path)
    assert data.source("mnist").presence(tmp_path) == "complete"
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert data.source("mnist").presence(tmp_path) == "3 of 4 files"


def test_all_recordings_are_present(tmp_path):
    file = data.File("Test", recordings=6)
    fake_nmnist(tmp_path)
    assert file.state(tmp_path) == "present, all 6 recordings"
    write(tmp_path / "Test" / "0" / "99999.bin", b"")
    assert file.state(tmp_path) == "present, 7 recordings, officially 6"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipes_in_place_of_files_are_refused(tmp_path):
    fake_mnist(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz.* not a regular file"):
        data.load("mnist", tmp_path)
    assert dict(data.check("mnist", tmp_path))[path] == "damaged: not a regular file"
    fake_nmnist(tmp_path)
    os.mkfifo(tmp_path / "Train" / "3" / "00099.bin")
    with pytest.raises(DataError, match=r"3/00099\.bin.* not a regular file"):
        data.load("nmnist", tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_in_place_of_an_hdf5_file_is_refused(tmp_path):
    for part in ("train", "test"):
        os.mkfifo(tmp_path / f"shd_{part}.h5")
    with pytest.raises(DataError, match=r"shd_train\.h5.* not a regular file"):
        data.load("shd", tmp_path)


# event sets


@pytest.mark.parametrize("name", ["9" * 200, "10", "-1"])
def test_class_folders_with_invalid_numbers_are_refused(tmp_path, name):
    fake_nmnist(tmp_path)
    (tmp_path / "Train" / "3").rename(tmp_path / "Train" / name)
    with pytest.raises(
        DataError, match=rf"/{name}/\d+\.bin: .*with class numbers from 0 to 9$"
    ) as error:
        data.load("nmnist", tmp_path)
    assert "\n" not in str(error.value)


def test_nmnist_from_the_official_layout(tmp_path):
    fake_nmnist(tmp_path / "NMNIST", events=70)
    for load in (
        lambda **k: data.load("nmnist", tmp_path, **k),
        lambda **k: data.load("nmnist", tmp_path / "NMNIST", **k),
    ):
        splits = load(T=5)
        assert [split.x.shape for split in (splits.train, splits.validation, splits.test)] == [
            (22, 5, 2, 34, 34),
            (2, 5, 2, 34, 34),
            (6, 5, 2, 34, 34),
        ]
        assert splits.events
        assert splits.note == "30 of 70,000 samples"
    for split, part in (
        (splits.train, "Train"),
        (splits.validation, "Train"),
        (splits.test, "Test"),
    ):
        for (x, y), id in zip((split[i] for i in range(len(split))), split.ids):
            path = tmp_path / "NMNIST" / part / str(y) / f"{id:05d}.bin"
            np.testing.assert_array_equal(x, frames(atis.decode(path.read_bytes()), 5))
            assert x.sum() == 70
    assert sorted([*splits.train.ids, *splits.validation.ids]) == list(range(1, 25))


def test_nmnist_options_and_their_cache_entries(tmp_path, own_cache):
    fake_nmnist(tmp_path)
    load = functools.partial(data.load, "nmnist", tmp_path)
    shapes = [
        load(**k).train.x.shape[1:] for k in ({}, {"T": 3}, {"size": 17}, {"by": "count"}, {"T": 3})
    ]
    assert shapes == [
        (10, 2, 34, 34),
        (3, 2, 34, 34),
        (10, 2, 17, 17),
        (10, 2, 34, 34),
        (3, 2, 34, 34),
    ]
    assert len(list(own_cache.iterdir())) == 4
    np.testing.assert_array_equal(
        load(size=17).train.x, load().train.x.reshape(-1, 10, 2, 17, 2, 17, 2).sum((4, 6))
    )
    for bad in ({"T": 0}, {"by": "magic"}):
        with pytest.raises(DataError, match="T must be at least 1, by 'time' or 'count'"):
            load(**bad)
    for bad in ({"size": 35}, {"size": 0}, {"size": (34, 35)}):
        with pytest.raises(DataError, match="34 x 34 pixels: size must be 1 to 34"):
            load(**bad)


@pytest.mark.parametrize("change", ["size", "content"])
def test_changed_recordings_are_binned_again(tmp_path, change):
    fake_nmnist(tmp_path)
    before = data.load("nmnist", tmp_path).test.x.copy()
    path = sorted((tmp_path / "Test").rglob("*.bin"))[0]
    content = path.read_bytes()
    path.write_bytes(
        content[:-5]
        if change == "size"
        else content[:-3] + bytes([content[-3] ^ 128]) + content[-2:]
    )
    os.utime(path, ns=(0, 10**9 + path.stat().st_mtime_ns))
    after = data.load("nmnist", tmp_path).test.x
    assert before.astype(int).sum() - after.sum() == (1 if change == "size" else 0)
    assert (before != after).any()


@pytest.mark.parametrize(
    ("events", "dtype"), [(255, np.uint8), (256, np.uint16), (70000, np.uint32)]
)
def test_counts_above_255_are_not_clipped(tmp_path, events, dtype):
    fake_nmnist(tmp_path, n=12, n_test=2)
    ones = np.ones(events, int)
    write(tmp_path / "Test" / "0" / "00001.bin", atis.encode(Events(ones, ones, ones, ones)))
    test = data.load("nmnist", tmp_path, T=1).test
    assert test.x.dtype == dtype
    assert test.x[0].max() == test.x[0].sum() == events


def test_error_for_a_damaged_recording_names_it(tmp_path):
    fake_nmnist(tmp_path)
    path = tmp_path / "Test" / "3" / "00004.bin"
    good = path.read_bytes()
    path.write_bytes(good[:-2])
    with pytest.raises(DataError, match=r"3/00004\.bin: byte 245: truncated"):
        data.load("nmnist", tmp_path)
    path.write_bytes(bytes([1, 99, 0, 0, 0]))
    with pytest.raises(DataError, match=r"3/00004\.bin: event 0 at x=1 y=99"):
        data.load("nmnist", tmp_path)
    path.rename(path.with_name("extra.bin"))
    with pytest.raises(DataError, match=r"not named <class number>/<number>\.bin"):
        data.load("nmnist", tmp_path)
    shutil.rmtree(tmp_path / "Test")
    (tmp_path / "Test").mkdir()
    with pytest.raises(DataError, match=r"NMNIST/Test, 10,000 recordings \*/\*\.bin"):
        data.load("nmnist", tmp_path)


def test_changing_memory_mapped_frames_does_not_change_the_cache(tmp_path, own_cache):
    fake_nmnist(tmp_path)
    first = data.load("nmnist", tmp_path).train
    before = contents(own_cache)
    first.x[:] = 7
    assert contents(own_cache) == before
    assert data.load("nmnist", tmp_path).train.x.max() < 7


# digits-dvs and the cache


def test_digits_dvs_contains_simulated_recordings_of_digits(few_digits, own_cache):
    dvs = data.load("digits-dvs")
    assert [split.x.shape for split in (dvs.train, dvs.validation, dvs.test)] == [
        (n, 10, 2, 34, 34) for n in (12, 5, 7)
    ]
    assert "simulated" in dvs.note
    assert dvs.events
    folder = digits_dvs()
    for split, digits, part in zip(
        (dvs.train, dvs.validation, dvs.test), few_digits, ("Train", "Validation", "Test")
    ):
        assert sorted(zip(split.ids, split.y)) == sorted(zip(digits.ids, digits.y))
        for i, (id, y) in enumerate(zip(split.ids, split.y)):
            e = atis.decode((folder / part / str(y) / f"{id:05d}.bin").read_bytes())
            assert split.x[i].sum() == len(e) > 500
            (j,) = np.flatnonzero(digits.ids == id)
            seed = ("Train", "Validation", "Test").index(part)
            shown = np.pad(digits.x[j, 0], 1)
            np.testing.assert_array_equal(e.t, record(shown, seed, int(id), digits_sets.CAMERA).t)
    assert len(data.load("digits-dvs", T=4, size=17, limit=3).train) == 3


def damage_truncate(folder):
    path = sorted(folder.rglob("*.bin"))[3]
    path.write_bytes(path.read_bytes()[:-5])


def damage_flip(folder):
    path = sorted(folder.rglob("*.bin"))[3]
    path.write_bytes(
        b"\x01" + path.read_bytes()[1:]
        if path.read_bytes()[0] != 1
        else b"\x02" + path.read_bytes()[1:]
    )


def damage_remove(folder):
    sorted(folder.rglob("*.bin"))[3].unlink()


def damage_add(folder):
    write(sorted(folder.rglob("*.bin"))[3].with_name("99999.bin"), bytes(5))


def damage_sums(folder):
    path = sorted(folder.rglob(simulated.SUMS))[0]
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def damage_recording_and_sum(folder):
    path = sorted(folder.rglob(simulated.SUMS))[0]
    *lines, last = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines))
    (path.parent / last.split()[1]).unlink()


def damage_no_sums(folder):
    sorted(folder.rglob(simulated.SUMS))[0].unlink()


def damage_garbled_sums(folder):
    sorted(folder.rglob(simulated.SUMS))[0].write_bytes(b"\xff\xfe garbage\n")


def damage_file_in_its_place(folder):
    one = sorted((folder / "Train").iterdir())[1]
    shutil.rmtree(one)
    one.write_bytes(b"")


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_flip,
        damage_remove,
        damage_add,
        damage_sums,
        damage_recording_and_sum,
        damage_no_sums,
        damage_garbled_sums,
        damage_file_in_its_place,
    ],
)
def test_damaged_recordings_in_the_cache_are_simulated_again(few_digits, own_cache, caplog, damage):
    folder = digits_dvs()
    good = contents(folder)
    damage(folder)
    assert digits_dvs() == folder
    assert contents(folder) == good
    assert len(caplog.messages) == 1
    assert "is damaged" in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    assert [path.name for path in own_cache.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "damage", ["cut", "cut header", "empty", "garbage", "zip", "shape", "header"]
)
def test_damaged_frames_in_the_cache_are_binned_again(tmp_path, own_cache, caplog, damage):
    fake_nmnist(tmp_path)
    good = data.load("nmnist", tmp_path, T=2).train.x.copy()
    (path,) = own_cache.iterdir()
    content = path.read_bytes()
    if damage == "shape":
        with path.open("wb") as stream:
            np.save(stream, np.zeros((2, 2), np.uint8))
    else:
        path.write_bytes(
            {
                "cut": content[:-1],
                "cut header": content[:50],
                "empty": b"",
                "garbage": b"garbage" * 100,
                "zip": b"PK\x03\x04" + bytes(100),
                "header": content[:10] + b"(" * 60 + content[70:],
            }[damage]
        )
    np.testing.assert_array_equal(data.load("nmnist", tmp_path, T=2).train.x, good)
    assert len(caplog.messages) == 1
    assert "is damaged" in caplog.messages[0]
    assert path.read_bytes() == content


def test_an_interrupt_while_writing_leaves_no_entry(own_cache):
    def killed(path):
        path.mkdir()
        (path / "half").write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached("entry", read=lambda path: path, write=killed)
    assert list(own_cache.iterdir()) == []


def test_a_set_is_simulated_and_read_again_on_windows(windows, few_digits, own_cache):
    made, read = (data.load("digits-dvs", T=2) for _ in range(2))
    assert len(made.train) == 12
    np.testing.assert_array_equal(made.train[0][0], read.train[0][0])


@pytest.mark.skipif(os.name != "posix", reason="processes are looked for")
def test_temporary_folders_of_dead_processes_are_removed(few_digits, own_cache):
    """At once if the process was on this machine, whatever the clock says; else after a day."""
    name = digits_sets.DIGITS_DVS.read.entry_name("digits-dvs", data.load("digits"))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    this = platform.node()
    # in seconds; young is in the future, as if the clock had been set back
    old, young = 0, 2**33
    kept = {
        f".backspike-3.1.{gone.pid}@{this}.tmp": (young, False),
        f".backspike-3.npy.1.{gone.pid}@{this}.wide.tmp": (young, False),
        f".backspike-3.1.{os.getpid()}@{this}.tmp": (old, True),
        f".backspike-3.1.{gone.pid}@not.{this}.tmp": (young, True),
        f".backspike-3.1.{os.getpid()}@not.{this}.tmp": (old, False),
        # the names of an earlier version
        f".backspike-3.{gone.pid}@{this}.1.tmp": (old, False),
        ".other.tmp": (old, True),
    }
    for leftover, (age, _) in kept.items():
        path = own_cache / name / "Train" / leftover
        write(path / "00000.bin", b"half")
        os.utime(path, (age, age))
    assert len(data.load("digits-dvs").train) == 12
    leftovers = {
        path.name for path in (own_cache / name / "Train").iterdir() if not path.name.isdigit()
    }
    assert leftovers == {leftover for leftover, (_, stays) in kept.items() if stays}


def _child(barrier, queue):
    barrier.wait()

    def write_slowly(path):
        path.mkdir()
        for i in range(200):
            (path / str(i)).write_text(str(i))

    def read(path):
        if sorted(os.listdir(path)) != sorted(map(str, range(200))):
            raise DataError("not whole")
        return "".join((path / str(i)).read_text() for i in range(200))

    queue.put(cache.cached("entry", read, write_slowly) == "".join(map(str, range(200))))


def test_an_entry_that_another_process_replaced_is_read_again_and_not_written(own_cache):
    path, reads = own_cache / "entry", []
    write(path, b"torn")

    def read_while_it_is_replaced(found):
        reads.append(found.read_bytes())
        if len(reads) == 1:
            other = path.with_name("other")
            write(other, b"whole")
            other.replace(path)
            raise ValueError("torn")
        return reads[-1]

    def write_again(_):
        raise AssertionError("the whole entry of the other process was not used")

    assert cache.cached("entry", read_while_it_is_replaced, write_again) == b"whole"


@pytest.mark.parametrize("start", ["nothing", "a damaged entry"])
def test_two_concurrent_processes_both_get_the_complete_entry(own_cache, start):
    if start == "a damaged entry":
        write(own_cache / "entry" / "0", b"0")
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(2), context.Queue()
    children = [context.Process(target=_child, args=(barrier, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert [queue.get(timeout=60) for _ in children] == [True, True]
    for child in children:
        child.join()
    assert [path.name for path in own_cache.iterdir()] == ["entry"]


def test_an_entry_that_another_process_has_just_published_is_used(own_cache):
    """Another process wins between check and rename: its folder cannot be replaced, but used."""

    def write_late(path):
        path.mkdir()
        (path / "who").write_text("me")
        write(own_cache / "entry" / "who", b"the other")

    rename = os.rename
    try:
        # the other process has moved the old entry
        os.rename = lambda *paths: (_ for _ in ()).throw(FileNotFoundError())
        assert (
            cache.cached("entry", lambda path: (path / "who").read_text(), write_late)
            == "the other"
        )
    finally:
        os.rename = rename


def test_a_temporary_folder_replaces_a_cache_that_cannot_be_written(
    few_digits, tmp_path, monkeypatch, caplog
):
    write(tmp_path / "file", b"")
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "file" / "cache"))
    temporary = tmp_path / "temporary"
    monkeypatch.setattr(cache, "_temporary", lambda: temporary)
    assert len(data.load("digits-dvs").train) == 12
    assert {"is in the temporary folder" in message for message in caplog.messages} == {True}
    assert (
        temporary / digits_sets.DIGITS_DVS.read.entry_name("digits-dvs", data.load("digits"))
    ).is_dir()
    monkeypatch.setattr(cache, "_temporary", lambda: tmp_path / "file" / "too")
    caplog.clear()
    with pytest.raises(DataError, match=r"fits neither into the cache .* set BACKSPIKE_CACHE"):
        data.load("digits-dvs")
    # no promise of a temporary folder that cannot be written either
    assert caplog.messages == []


def test_an_entry_refused_after_writing_raises_an_error(own_cache):
    def refuse(path):
        raise DataError("never")

    with pytest.raises(DataError, match="refused after 3 attempts: never"):
        cache.cached("entry", refuse, lambda path: path.write_text("x"))


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("BACKSPIKE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.folder() == tmp_path / ".cache" / "backspike"


def test_a_simulation_is_logged_at_level_info(few_digits, caplog):
    with caplog.at_level(logging.INFO, "backspike"):
        digits_dvs()
        digits_dvs()
    assert [record.levelname for record in caplog.records] == ["INFO"]


# the real files


@real("MNIST/raw")
def test_real_mnist():
    assert {state for _, state in data.check("mnist", REAL)} == {"present"}
    mnist = data.load("mnist", REAL)
    sizes = [len(split) for split in (mnist.train, mnist.validation, mnist.test)]
    assert sizes == [55000, 5000, 10000]
    assert mnist.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.test.y).tolist() == counts
    whole = np.bincount(np.concatenate([mnist.train.y, mnist.validation.y]))
    assert whole.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.abs(np.bincount(mnist.validation.y) - whole / 12).max() < 1
    mean = (mnist.train.x.sum() + mnist.validation.x.sum()) / 60000 / 784 / 255
    assert mean == pytest.approx(0.1307, abs=5e-5)  # the constant of PyTorch's example
    assert mnist.note == ""


@real("cifar-10-batches-py")
def test_real_cifar10():
    assert {state for _, state in data.check("cifar10", REAL)} == {"present"}
    cifar10 = data.load("cifar10", REAL)
    assert [split.x.shape for split in (cifar10.train, cifar10.validation, cifar10.test)] == [
        (n, 3, 32, 32) for n in (45000, 5000, 10000)
    ]
    assert np.bincount(cifar10.validation.y).tolist() == [500] * 10
    assert np.bincount(cifar10.test.y).tolist() == [1000] * 10
    assert cifar10.test.y[:5].tolist() == [3, 8, 8, 0, 6]
    train, validation = (split.x.mean((0, 2, 3)) for split in (cifar10.train, cifar10.validation))
    mean = (train * 0.9 + validation * 0.1) / 255
    # the constants that everyone uses
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=1e-4)


@real("NMNIST")
def test_real_nmnist():
    """All recordings are readable; training recordings have independently measured statistics."""
    states = data.check("nmnist", REAL)
    if [state for _, state in states] != [
        "incomplete: 1,000 of 60,000 recordings, 59,000 missing",
        "incomplete: 100 of 10,000 recordings, 9,900 missing",
    ]:
        pytest.skip("the statistics are those of the first 1,000 recordings")
    paths = sorted((REAL / "NMNIST").rglob("*.bin"))
    assert len(paths) == 1100
    rows = []
    for path in paths:
        e = atis.decode(path.read_bytes(), str(path))
        assert max(e.x.max(), e.y.max()) <= 33
        assert atis.encode(e) == path.read_bytes()
        if "Train" in path.parts:
            active = len(np.unique(e.y.astype(int) * 34 + e.x)) / 34**2
            rows.append([len(e), e.p.mean(), e.t.max() / 1000, active])
    np.testing.assert_allclose(np.mean(rows, axis=0), [4133, 0.4997, 307.7, 0.388], rtol=2e-3)
    splits = data.load("nmnist", REAL)
    total = sum(split.x.sum(dtype=np.int64) for split in (splits.train, splits.validation))
    assert total == np.sum(rows, axis=0)[0]
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (917, 83, 100)


@real("MNIST/raw")
def test_a_file_of_another_data_set_is_refused(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    shutil.copytree(REAL / "MNIST" / "raw", folder)
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz is a file of mnist"):
        data.load("fashion-mnist", tmp_path)


def test_importing_data_does_not_import_torch():
    code = "import sys, backspike.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
