"""A user's own folders of recordings and pictures: classes, parts, windows, frames, cache."""

import json
import os

import numpy as np
import pytest
from helpers.recordings import some_events, write

import backspike as bs
from backspike import data
from backspike.cli import main
from backspike.data import DataError, Events, frames
from backspike.data.formats import aedat4, dat, evt3, hdf5
from backspike.data.own import windows


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BACKSPIKE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


CODECS = [("aedat4", aedat4.encode), ("raw", evt3.encode), ("dat", dat.encode)]


def recorded(folder, classes=("left", "right"), n=10, duration=50_000):
    """Recordings in three formats; returns them by (class, number)."""
    made = {}
    for c, name in enumerate(classes):
        for i in range(n):
            suffix, encode = CODECS[i % 3]
            made[c, i] = events = some_events(100 * c + i, 400, 30, 40, duration)
            write(folder / name / f"{i:02}.{suffix}", encode(events))
    return made


def splits(sets):
    return sets.train, sets.validation, sets.test


def test_a_folder_for_each_class(tmp_path):
    made = recorded(tmp_path / "own")
    sets = bs.data.recordings(tmp_path / "own", sensor=(30, 40), T=3, size=(15, 20))
    assert [len(split) for split in splits(sets)] == [14, 2, 4]
    assert (sets.classes, sets.num_classes, sets.events) == (("left", "right"), 2, True)
    for split in splits(sets):
        assert set(split.y) == {0, 1}
        for x, y, id in zip(split.x, split.y, split.ids):
            np.testing.assert_array_equal(x, frames(made[y, id % 10], 3, (30, 40), (15, 20)))
    ids = [i for split in splits(sets) for i in split.ids]
    assert sorted(ids) == list(range(20))


def test_recordings_in_hdf5_files_are_read_in_one_process(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    for c in ("left", "right"):
        (tmp_path / "own" / c).mkdir(parents=True)
        for i in range(4):
            events = some_events(i, 50, 30, 40, 50_000)
            with h5py.File(tmp_path / "own" / c / f"{i}.h5", "w") as file:
                for axis in "xytp":
                    file[axis] = getattr(events, axis)
    started = []
    start = hdf5.Worker
    monkeypatch.setattr(hdf5, "Worker", lambda **options: started.append(1) or start(**options))
    sets = data.recordings("own", sensor=(30, 40), T=3)
    assert sum(len(split) for split in splits(sets)) == 8
    assert int(sets.test.x.sum()) == 50 * len(sets.test)
    assert len(started) <= 3  # one for each part


def test_the_name_in_a_recipe_gives_the_same(tmp_path):
    recorded(tmp_path / "own")
    named = data.load(f"recordings:{tmp_path / 'own'}", T=3, sensor=(30, 40), by="count", limit=5)
    called = data.recordings("own", sensor=(30, 40), T=3, by="count")
    np.testing.assert_array_equal(named.test.x, called.test.x)
    assert len(named.train) == 5
    assert named.name == f"recordings:{tmp_path / 'own'}"
    with pytest.raises(DataError, match="digits holds images: sensor="):
        data.load("digits", sensor=(3, 3))
    with pytest.raises(DataError, match="'recordings:' names no folder; write recordings:FOLDER"):
        data.load("recordings:")


def test_windows_are_cut_and_never_split_a_recording(tmp_path):
    made = recorded(tmp_path / "own")
    sets = data.recordings("own", sensor=(30, 40), T=4, window=9_000)
    parts = [set(split.ids.tolist()) for split in splits(sets)]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert sorted(set.union(*parts)) == list(range(20))
    for split in splits(sets):
        for id in set(split.ids.tolist()):
            events, rows = made[id // 10, id % 10], split.x[split.ids == id]
            first, end = events.t.min(), events.t.max() + 1
            assert len(rows) == (end - first) // 9_000
            for k, x in enumerate(rows):
                start = first + 9_000 * k
                inside = (events.t >= start) & (events.t < start + 9_000)
                bins = np.zeros((4, 2, 30, 40), int)
                time = (events.t[inside] - start) * 4 // 9_000
                np.add.at(bins, (time, events.p[inside], events.y[inside], events.x[inside]), 1)
                np.testing.assert_array_equal(x, bins)


@pytest.mark.parametrize(
    ("span", "wanted"),
    [
        ((5, 35), [(5, 15), (15, 25), (25, 35)]),
        ((5, 34), [(5, 15), (15, 25)]),
        ((5, 9), [(5, 15)]),
        ((0, 0), [(0, 10)]),
    ],
)
def test_a_shorter_rest_is_no_window_but_there_is_always_one(span, wanted):
    assert windows(span, 10) == wanted


def listed(folder, text):
    write(folder / "recordings.csv", text.encode())


def test_a_list_with_spans_and_parts(tmp_path):
    made = recorded(tmp_path / "own" / "files", classes=("a",), n=5)
    listed(
        tmp_path / "own",
        "label,file,start,end,part\n"
        "walk,files/a/00.aedat4,1000,21000,train\n"
        "10,files/a/00.aedat4,30000,50000,train\n"
        "9,files/a/01.raw,,,train\n"
        "10,files/a/02.dat,0,40000,train\n"
        "walk,files/a/03.aedat4,,,test\n"
        "9,files/a/04.raw,,,train\n",
    )
    sets = data.recordings("own", sensor=(30, 40), T=2)
    assert sets.classes == ("9", "10", "walk")
    (held_out,) = sets.validation.ids.tolist()
    assert held_out in (1, 4)  # of class 9; the others are the only files of their class
    assert sets.train.ids.tolist() == [0, 0, *sorted({1, 2, 4} - {held_out})]
    assert sets.train.y.tolist()[:2] == [2, 1]
    assert (sets.test.ids.tolist(), sets.test.y.tolist()) == ([3], [2])
    events = made[0, 0]
    inside = (events.t >= 1000) & (events.t < 21000)
    part = Events(*(a[inside] for a in (events.x, events.y, events.t, events.p)))
    np.testing.assert_array_equal(sets.train.x[0], frames(part, 2, (30, 40)))
    cut = data.recordings("own/recordings.csv", sensor=(30, 40), T=2, window=10_000)
    assert [(cut.train.ids == i).sum() for i in (0, 2)] == [4, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,start\n", "line 1: expected the columns file,start,end,label, not file,start"),
        ("file,label\n", "it lists no recordings"),
        ("file,label\na/00.dat\n", "line 2: 1 values, not 2"),
        ("file,label\nnone.dat,x\n", "line 2: .*none.dat does not exist or is not a file"),
        ("file,label\n..,x\n", "line 2: .* does not exist or is not a file"),
        ("file,label\n,x\n", "line 2: a file and a label are needed"),
        ("file,label,start\nl/00.dat,x,7\n", "line 2: start and end must be whole microseconds"),
        ("file,label,start,end\nl/00.dat,x,7,7\n", "line 2: it ends at 7, before its start at 7"),
        ("file,label,part\nl/00.dat,x,both\n", "line 2: part 'both': expected train"),
        ('file,label\n"a,x\n', r"not a list of recordings \("),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path, text, message):
    write(tmp_path / "own" / "l" / "00.dat", dat.encode(some_events(0)))
    listed(tmp_path / "own", text)
    with pytest.raises(DataError, match=f"recordings.csv: {message}") as refusal:
        data.recordings("own", sensor=(128, 128))
    assert "\n" not in str(refusal.value)


def test_a_recording_in_two_parts_is_refused(tmp_path):
    write(tmp_path / "own" / "0.dat", dat.encode(some_events(0)))
    listed(tmp_path / "own", "file,label,part\n0.dat,x,train\n0.dat,x,test\n")
    with pytest.raises(DataError, match=r"0\.dat: a file must be in one part only"):
        data.recordings("own", sensor=(128, 128))


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "val", "test"), ("train", "val")])
def test_given_parts_are_kept(tmp_path, names):
    for k, name in enumerate(names):
        recorded(tmp_path / "own" / name, n=3 + k)
    sets = data.recordings("own", sensor=(30, 40), T=1)
    sizes = [len(split) for split in splits(sets)]
    assert sizes == {2: [5, 1, 8], 3: [6, 8, 10]}[len(names)]


def test_wrong_folders_are_one_line(tmp_path):
    def refusal(**options):
        with pytest.raises(DataError) as error:
            data.recordings("own", **{"sensor": (30, 40), **options})
        return str(error.value)

    assert refusal() == "own: no such folder"
    (tmp_path / "own").mkdir()
    assert "own: no folders in it; put each file into the folder of its class" in refusal()
    recorded(tmp_path / "own", n=1)
    assert refusal() == (
        "2 files in 2 classes are too few to hold some out for validation and testing; add files"
    )
    recorded(tmp_path / "own", n=3)
    assert "height and width of the sensor in pixels, such as sensor=(128, 128)" in refusal(
        sensor=()
    )
    assert "window=-1: expected microseconds" in refusal(window=-1)
    assert "02.dat: event " in refusal(sensor=(20, 40)) or "outside the sensor of 20" in refusal(
        sensor=(20, 40)
    )
    (tmp_path / "own" / "empty").mkdir()
    write(tmp_path / "own" / "empty" / "note.md", b"")
    assert "own/empty: none of its 1 files can be read" in refusal()
    os.rename("own/empty", "own/train")
    write(tmp_path / "own" / "test" / "left" / "1.dat", b"")
    assert "own: a folder left beside test, train; move it into one" in refusal()


def test_a_damaged_recording_is_named(tmp_path):
    recorded(tmp_path / "own")
    path = tmp_path / "own" / "left" / "02.dat"
    path.write_bytes(path.read_bytes()[:-3])
    for window in (None, 9_000):
        with pytest.raises(DataError, match=r"02\.dat: byte [0-9]+: truncated: 5 of the 8 bytes"):
            data.recordings("own", sensor=(30, 40), window=window)


READER = """
import numpy as np

def read(path):
    numbers = np.loadtxt(path, ndmin=2, dtype=int)
    t, x, y, p = numbers.T
    return {{"x": x, "y": y, "t": {scale} * t, "p": p}}
"""


def own_reader(tmp_path, scale):
    path = tmp_path / f"reader_{scale}.py"
    path.write_text(READER.format(scale=scale))
    variables = {"__name__": "reader"}
    exec(compile(path.read_text(), str(path), "exec"), variables)
    return variables["read"]


def test_an_own_read_function_and_its_changes(tmp_path):
    for c in range(2):
        for i in range(5):
            text = "".join(f"{t} {i} {c} {t % 2}\n" for t in range(1, 41))
            write(tmp_path / "own" / str(c) / f"{i}.mine", text.encode())
    one = data.recordings("own", own_reader(tmp_path, 1), sensor=(2, 5), window=10)
    assert (len(one.test), one.train.x.sum()) == (2 * 4, 7 * 40)
    ten = data.recordings("own", own_reader(tmp_path, 10), sensor=(2, 5), window=10)
    assert len(ten.test) == 2 * 39
    again = data.recordings("own", own_reader(tmp_path, 1), sensor=(2, 5), window=10)
    np.testing.assert_array_equal(again.test.x, one.test.x)
    for read, message in (
        (lambda path: 1 / 0, r"\.mine: the read function failed \(ZeroDivisionError"),
        (lambda path: 7, r"\.mine: a int is no recording"),
        (int, "read must be a function path -> events, got a type"),
    ):
        with pytest.raises(DataError, match=message):
            data.recordings("own", read, sensor=(2, 5))


def test_another_sensor_or_another_bound_value_gives_other_frames(tmp_path):
    for i in range(6):
        write(tmp_path / "own" / "a" / str(i), b"")

    def reader(column):
        return lambda path: {"x": [column], "y": [0], "t": [0], "p": [1]}

    def sum_by_column(column, width):
        sets = data.recordings("own", reader(column), sensor=(8, width), size=8, T=1)
        return np.asarray(sets.train.x).sum((0, 1, 2, 3)).nonzero()[0].tolist()

    assert sum_by_column(6, 8) == [6]
    assert sum_by_column(6, 16) == [3]
    assert sum_by_column(2, 8) == [2]
    with pytest.raises(DataError, match="sensor"):
        data.recordings("own", reader(9), sensor=(8, 8), size=8, T=1)


def test_recordings_are_read_once(tmp_path):
    calls = []

    def read(path):
        calls.append(path)
        return some_events(len(calls), 50, 30, 40)

    for i in range(5):
        write(tmp_path / "own" / "a" / str(i), b"")
    data.recordings("own", read, sensor=(30, 40), window=200)
    assert len(calls) == 10  # once for their lengths, once for the frames
    data.recordings("own", read, sensor=(30, 40), window=200)
    assert len(calls) == 10


def test_own_pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    rng, made = np.random.default_rng(0), {}
    for c, name in enumerate(("cat", "dog")):
        for i in range(10):
            made[c, i] = x = rng.integers(0, 256, (12, 16, 3), np.uint8)
            path = tmp_path / "own" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.fromarray(x).save(path)
    sets = data.pictures("own", size=12)
    assert [len(split) for split in splits(sets)] == [14, 2, 4]
    assert (sets.classes, sets.events) == (("cat", "dog"), False)
    for split in splits(sets):
        for i in range(len(split)):
            x, y = split[i]
            # the centred square, 12 of 16 columns, unchanged
            number = int(os.fsdecode(split.x.names[i])[4:-4])
            np.testing.assert_array_equal(x, made[y, number][:, 2:14].transpose(2, 0, 1))
    named = data.load(f"pictures:{tmp_path / 'own'}", size=6)
    assert named.test[0][0].shape == (3, 6, 6)
    with pytest.raises(DataError, match="size=0: pictures are square"):
        data.pictures("own", size=0)


def test_the_verb_data_counts_an_own_folder(tmp_path, capsys):
    recorded(tmp_path / "own")
    assert main(["data", "recordings:own"]) == 0
    counts = "14 training, 2 validation and 4 test recordings; 2 classes"
    assert counts in capsys.readouterr().out
    assert main(["data", "pictures:own"]) == 1
    assert "own/left: none of its 10 files can be read" in capsys.readouterr().err


TRAIN = ["--epochs", "1", "--sensor", "(30, 40)", "--T", "4", "--size", "8", "--seed", "1"]
MODEL = ["--model", "ConvNet('4-P-8-P', size=8, in_channels=2, num_classes=2)"]


def test_own_recordings_through_the_verbs(tmp_path, capsys):
    recorded(tmp_path / "own")
    words = ["train", "digits", "--data", "recordings:own", *TRAIN, *MODEL, "--out", "run"]
    assert main([*words, "--window", "20000"]) == 0
    for verb in ("eval", "report", "card", "resume"):
        assert main([verb, "run"]) == 0, verb
    main(["doctor", "run"])
    assert "samples of recordings:own, T = 4" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run/recipe.json").read_text())
    assert stored["classes"] == ["left", "right"]
    capsys.readouterr()
    assert main(["predict", "run", "own/left/00.aedat4", "own/right", "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 11 * 2
    assert {(a["name"], a["class"]) for a in answers} <= {("left", 0), ("right", 1)}
    assert all(a["end"] - a["start"] == 20000 for a in answers)


def test_the_same_frames_for_training_and_prediction(tmp_path):
    """The network gives the same answers for the test files and for the frames of the data set."""
    recorded(tmp_path / "own")
    words = ["train", "digits", "--data", "recordings:own", *TRAIN, *MODEL, "--out", "run"]
    assert main([*words, "--window", "20000"]) == 0
    sets = data.load("recordings:own", T=4, size=8, sensor=(30, 40), window=20_000)
    files = [f"own/{('left', 'right')[i // 10]}/{i % 10:02}" for i in dict.fromkeys(sets.test.ids)]
    paths = [next(tmp_path.glob(f"{file}.*")) for file in files]
    predictor = bs.Predictor("run")
    from_files = list(predictor(paths))
    from_frames = list(predictor(sets.test.x))
    assert [a["probability"] for a in from_files] == [a["probability"] for a in from_frames]
    assert [a["start"] for a in from_files[:2]] == [
        from_files[0]["start"] + 20000 * k for k in (0, 1)
    ]
