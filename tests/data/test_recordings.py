"""Fabricated event sets in their official layouts: their samples, parts and frames."""

import functools
import importlib.util
import struct

import numpy as np
import pytest
from helpers.recordings import TEST, TRAIN, dvs_cifar10, gestures, n_caltech101, spoken, write

from backspike import data
from backspike.data import DataError, Events, frames
from backspike.data.formats import aedat3
from backspike.data.split import published

needs_h5py = pytest.mark.skipif(
    importlib.util.find_spec("h5py") is None, reason="no h5py: pip install 'backspike[events]'"
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BACKSPIKE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


# the published splits


def test_published_splits_follow_their_rules():
    dvs = published("dvs-cifar10")
    classes = "airplane automobile bird cat deer dog frog horse ship truck"
    assert list(dvs) == classes.split()
    for train, validation, test in dvs.values():
        assert [*train, *validation] == list(range(900))
        assert list(test) == list(range(900, 1000))
        assert len(validation) == 90
    caltech = published("n-caltech101")
    assert list(caltech) == sorted(caltech)
    assert len(caltech) == 101
    # one number of BACKGROUND_Google is unused
    assert sum(len(part) for parts in caltech.values() for part in parts) == 8709 + 1
    for train, validation, test in caltech.values():
        n = len(train) + len(validation) + len(test)
        assert [*train, *validation, *test] == list(range(1, n + 1))
        assert len(test) == len(validation) == n // 10
    assert {name: len(caltech[name][0]) for name in ("airplanes", "accordion")} == {
        "airplanes": 640,
        "accordion": 45,
    }
    ((train, validation, test),) = published("dvs128-gesture").values()
    assert [*train, *validation] == list(range(1, 24))
    assert list(test) == list(range(24, 30))
    for name in ("dvs-cifar10", "n-caltech101"):
        sizes = np.sum(
            [[len(part) for part in parts] for parts in published(name).values()], axis=0
        )
        assert np.abs(sizes - np.array(data.source(name).samples)).max() <= 1


# DVS-CIFAR10


@pytest.mark.parametrize("place", ["DVS-CIFAR10", "CIFAR10DVS/extract", "."])
def test_dvs_cifar10(tmp_path, place):
    made = dvs_cifar10(tmp_path / "root" / place)
    sets = data.load("dvs-cifar10", tmp_path / "root", T=4, size=48)
    for split, numbers in (
        (sets.train, [0, 809]),
        (sets.validation, [810, 899]),
        (sets.test, [900, 999]),
    ):
        assert split.ids.tolist() == numbers * 10
        assert split.y.tolist() == np.repeat(np.arange(10), 2).tolist()
        assert split.x.shape == (20, 4, 2, 48, 48)
        assert split.x.dtype == np.uint8
        for x, y, id in zip(split.x, split.y, split.ids):
            np.testing.assert_array_equal(x, frames(made[y, id], 4, 128, 48))
            assert x.sum() == 40
    assert sets.note == "60 of 10,000 samples"
    assert (sets.num_classes, sets.events) == (10, True)


def test_dvs_cifar10_with_the_pixels_of_the_camera(tmp_path):
    dvs_cifar10(tmp_path)
    upright, raw = (
        data.load("dvs-cifar10", tmp_path, T=1, upright=upright).test.x for upright in (True, False)
    )
    np.testing.assert_array_equal(upright, raw.transpose(0, 1, 2, 4, 3)[:, :, ::-1, ::-1, ::-1])
    with pytest.raises(DataError, match="upright=False is for dvs-cifar10"):
        data.load("nmnist", tmp_path, upright=False)


def test_errors_name_files_that_do_not_belong_to_dvs_cifar10(tmp_path):
    dvs_cifar10(tmp_path)
    extra = tmp_path / "cat" / "cifar10_cat_1000.aedat"
    write(extra, b"")
    with pytest.raises(
        DataError,
        match=r"cifar10_cat_1000\.aedat: not among the recordings cat/cifar10_cat_\*\.aedat",
    ):
        data.load("dvs-cifar10", tmp_path)
    extra.rename(extra.with_name("cifar10_dog_3.aedat"))
    with pytest.raises(DataError, match=r"cifar10_dog_3\.aedat: not among"):
        data.load("dvs-cifar10", tmp_path)
    extra.with_name("cifar10_dog_3.aedat").unlink()
    path = tmp_path / "dog" / "cifar10_dog_0.aedat"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(
        DataError, match=rf"cifar10_dog_0\.aedat: byte {len(content) - 8}: truncated"
    ):
        data.load("dvs-cifar10", tmp_path)


def test_a_missing_part_is_reported(tmp_path):
    dvs_cifar10(tmp_path, numbers=(0, 1))
    with pytest.raises(DataError, match="20 recordings for training and 0 for testing"):
        data.load("dvs-cifar10", tmp_path)
    (tmp_path / "truck" / "cifar10_truck_0.aedat").unlink()
    (tmp_path / "truck" / "cifar10_truck_1.aedat").unlink()
    with pytest.raises(DataError, match="dvs-cifar10 is not in"):
        data.load("dvs-cifar10", tmp_path)


# N-Caltech101


def test_n_caltech101(tmp_path):
    place = tmp_path / "N-Caltech101" / "Caltech101"
    made = n_caltech101(place)
    sets = data.load("n-caltech101", tmp_path, T=3, size=48)
    whole = data.load("n-caltech101", place, T=2, by="count")
    for part in range(3):
        split, large = (
            (sets.train, whole.train),
            (sets.validation, whole.validation),
            (sets.test, whole.test),
        )[part]
        assert split.ids.tolist() == [
            parts[part][0] for parts in published("n-caltech101").values()
        ]
        assert split.y.tolist() == list(range(101))
        assert split.x.shape == (101, 3, 2, 48, 48)
        assert large.x.shape == (101, 2, 2, 180, 240)
        for x, full, y, id in zip(split.x[::7], large.x[::7], split.y[::7], split.ids[::7]):
            np.testing.assert_array_equal(x, frames(made[y, id], 3, (180, 240), 48))
            np.testing.assert_array_equal(full, frames(made[y, id], 2, (180, 240), by="count"))
            assert full.sum((1, 2, 3)).tolist() == [20, 20]
    assert sets.num_classes == 101
    assert data.check("n-caltech101", tmp_path) == [
        (place, "incomplete: 303 of 8,709 recordings, 8,406 missing")
    ]
    with pytest.raises(
        DataError, match=r"size=\(180, 241\): the sensor of n-caltech101 has 180 x 240 pixels"
    ):
        data.load("n-caltech101", tmp_path, size=(180, 241))


# DVS128 Gesture


def test_dvs128_gesture(tmp_path):
    made = gestures(tmp_path / "DvsGesture")
    sets = data.load("dvs128-gesture", tmp_path, T=4, size=32)
    offsets = {name: [1000 * int(name[4:6]) + 100 * light + i for i in range(5)] for name, light in
               zip((*TRAIN, *TEST), (0, 1, 4, 2, 3, 3, 4))}  # fmt: skip
    for split, names in ((sets.train, TRAIN[:3]), (sets.validation, TRAIN[3:]), (sets.test, TEST)):
        assert split.ids.tolist() == [id for name in names for id in offsets[name]]
        assert split.y.tolist() == [0, 1, 7, 7, 10] * len(names)
        for i, x in enumerate(split.x):
            events, c = made[names[i // 5]], (1, 2, 8, 8, 11)[i % 5]
            inside = (events.t >= c * 200_000) & (events.t < c * 200_000 + 150_000 + c)
            part = Events(*(axis[inside] for axis in (events.x, events.y, events.t, events.p)))
            assert inside.sum() > 100
            np.testing.assert_array_equal(x, frames(part, 4, 128, 32))
    assert sets.note == "35 of 1,464 samples"
    states = dict(data.check("dvs128-gesture", tmp_path))
    assert states[tmp_path / "DvsGesture"] == "incomplete: 7 of 122 recordings, 115 missing"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "trials_to_train.txt",
            b"user01_led.aedat\n../../etc/passwd\n",
            r"byte 17: '../../etc/passwd' is not a recording",
        ),
        (
            "trials_to_train.txt",
            b"user24_led.aedat\n",
            "user24_led.aedat belongs to another part of dvs128-gesture's split by users",
        ),
        ("trials_to_test.txt", b"user01_led.aedat\n", "user01_led.aedat belongs to another part"),
        ("trials_to_test.txt", b"user30_led.aedat\n", "user30_led.aedat belongs to another part"),
        (
            "trials_to_test.txt",
            b"user29_lab.aedat\n",
            r"user29_lab_labels\.csv cannot be read: No such file",
        ),
        (
            "user29_natural_labels.csv",
            b"class,startTime_usec,endTime_usec\n12,1,2\n",
            "byte 34: class 12 from 1 to 2",
        ),
        ("user29_natural.aedat", b"#!AER-DAT3.1\r\n", "byte 14: truncated or damaged header"),
    ],
)
def test_errors_name_damaged_files_of_dvs128_gesture(tmp_path, file, content, message):
    gestures(tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.load("dvs128-gesture", tmp_path)


# SHD and SSC


@needs_h5py
def test_shd_is_binned_by_channel_and_equal_time(tmp_path):
    made = {
        part: spoken(tmp_path / "SHD", "shd", part, n, 20)
        for part, n in (("train", 120), ("test", 30))
    }
    sets = data.load("shd", tmp_path, T=7, size=70)
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (109, 11, 30)
    assert not set(sets.train.ids) & set(sets.validation.ids)
    for split, part in ((sets.train, "train"), (sets.validation, "train"), (sets.test, "test")):
        assert split.x.shape[1:] == (7, 70)
        assert split.y.tolist() == [id % 20 for id in split.ids]
        for x, id in zip(split.x, split.ids):
            times, units = (arrays[id] for arrays in made[part])
            wanted = np.zeros((7, 70), int)
            for time, unit in zip(times.astype(float), units):
                wanted[int(time / 0.2), unit // 10] += 1
            np.testing.assert_array_equal(x, wanted)
    np.testing.assert_array_equal(
        data.load("shd", tmp_path, T=7).test.x.reshape(30, 7, 70, 10).sum(3), sets.test.x
    )
    even = data.load("shd", tmp_path, T=2, by="count").test.x.sum(2, dtype=int)
    assert np.abs(even[:, 0] - even[:, 1]).max() <= 1
    with pytest.raises(DataError, match="shd has channels: size must be 1 to 700"):
        data.load("shd", tmp_path, size=(10, 70))


@needs_h5py
def test_ssc_has_its_own_validation_set(tmp_path):
    made = {
        part: spoken(tmp_path, "ssc", part, n, 35, "float32")
        for part, n in (("train", 40), ("valid", 36), ("test", 37))
    }
    sets = data.load("ssc", tmp_path, T=5)
    for split, part in ((sets.train, "train"), (sets.validation, "valid"), (sets.test, "test")):
        assert split.ids.tolist() == list(range(len(made[part][0])))
        assert split.x.sum((1, 2), dtype=int).tolist() == [len(times) for times in made[part][0]]
    assert sets.num_classes == 35


@needs_h5py
def test_errors_name_the_damage_in_shd_files(tmp_path):
    import h5py

    spoken(tmp_path, "shd", "test", 5, 20)
    spoken(tmp_path, "shd", "train", 20, 20)
    path = tmp_path / "shd_train.h5"
    good = path.read_bytes()
    load = functools.partial(data.load, "shd", tmp_path)
    for change, message in (
        (lambda file: file.__delitem__("labels"), "no data set 'labels'"),
        (lambda file: file["labels"].__setitem__(0, 20), "expected whole numbers below 20"),
        (
            lambda file: file["spikes/units"].__setitem__(3, np.array([700], np.uint16)),
            "sample 3 has times",
        ),
        (
            lambda file: file["spikes/units"].__setitem__(3, file["spikes/units"][3] + 700),
            r"sample 3 .* outside channels 0 to 699",
        ),
        (
            lambda file: file["spikes/times"].__setitem__(2, -file["spikes/times"][2]),
            "sample 2 has spikes before time 0",
        ),
        (
            lambda file: file["spikes/times"].__setitem__(
                2, file["spikes/times"][2] * np.float16("nan")
            ),
            "sample 2",
        ),
    ):
        path.write_bytes(good)
        with h5py.File(path, "r+") as file:
            change(file)
        with pytest.raises(DataError, match=rf"shd_train\.h5.*{message}"):
            load()
    for content in (good[:100], b"", b"garbage" * 100, good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"shd_train\.h5: "):
            load()


def test_without_h5py_the_error_gives_the_pip_command(tmp_path, monkeypatch):
    write(tmp_path / "shd_train.h5", b"")
    write(tmp_path / "shd_test.h5", b"")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(DataError, match=r"pip install 'backspike\[events\]'"):
        data.load("shd", tmp_path)


# frames


def test_frames_of_a_rectangular_sensor():
    """180 x 240 pixels become 3 x 5; a frame pixel covers 60 rows and 48 columns."""
    x, y = np.array([0, 239, 0, 239, 47, 48]), np.array([0, 0, 179, 179, 59, 60])
    out = frames(
        Events(x, y, np.arange(6), np.array([0, 0, 1, 1, 0, 1])), 1, sensor=(180, 240), size=(3, 5)
    )
    wanted = np.zeros((1, 2, 3, 5), int)
    for p, row, column in ((0, 0, 0), (0, 0, 4), (1, 2, 0), (1, 2, 4), (0, 0, 0), (1, 1, 1)):
        wanted[0, p, row, column] += 1
    np.testing.assert_array_equal(out, wanted)
    with pytest.raises(
        DataError, match="event 1 at x=1 y=180 p=0 is outside the sensor of 180 x 240"
    ):
        frames(
            Events(np.array([1, 1]), np.array([1, 180]), np.arange(2), np.zeros(2, int)),
            1,
            sensor=(180, 240),
        )
    with pytest.raises(DataError, match="event 0 at x=-1"):
        frames(
            Events(np.array([-1]), np.array([1]), np.arange(1), np.zeros(1, int)),
            1,
            sensor=(180, 240),
        )


def test_frames_of_huge_times():
    """AEDAT 3.1 has times up to 2^62 us: no overflow when bins are cut."""
    t = np.array([0, 1 << 61, (1 << 62) - 1])
    out = frames(Events(np.zeros(3, int), np.zeros(3, int), t, np.zeros(3, int)), 1000, sensor=1)
    assert np.flatnonzero(out.ravel()).tolist() == [0, 2 * 500, 2 * 999]


def test_channels_in_a_fixed_window():
    """A window of 100 in four bins: late events count in the last one."""
    t = np.array([250, 0, 24, 25, 99, 100])
    events = Events(np.array([1, 0, 5, 5, 2, 3]), np.zeros(6, int), t, np.zeros(6, int))
    out = data.channels(events, 4, sensor=6, size=3, window=100)
    assert out.tolist() == [[1, 0, 1], [0, 0, 1], [0, 0, 0], [1, 2, 0]]


@pytest.mark.parametrize("line", ["2,200000,350001", "1,200000,400001", "1,300000,350001"])
def test_changed_gesture_labels_cause_new_frames(tmp_path, line):
    gestures(tmp_path)
    before = data.load("dvs128-gesture", tmp_path, T=2).test
    path = tmp_path / "user24_led_labels.csv"
    path.write_text(path.read_text().replace("1,200000,350001", line, 1))
    after = data.load("dvs128-gesture", tmp_path, T=2).test
    label, start, stop = map(int, line.split(","))
    assert after.y[0] == label - 1
    changed = (before.x != after.x).any((1, 2, 3, 4))
    assert changed.tolist() == [(start, stop) != (200000, 350001)] + [False] * 9


def test_the_end_time_of_a_gesture_is_exclusive(tmp_path):
    gestures(tmp_path)
    t = np.array([99, 100, 199, 200])
    write(
        tmp_path / "user24_led.aedat",
        aedat3.encode(Events(np.arange(4), np.arange(4), t, np.zeros(4, int))),
    )
    write(tmp_path / "user24_led_labels.csv", b"class,startTime_usec,endTime_usec\n1,100,200\n")
    (rows, columns) = np.nonzero(data.load("dvs128-gesture", tmp_path, T=1).test.x[0, 0, 0])
    assert (rows.tolist(), columns.tolist()) == ([1, 2], [1, 2])


def test_a_gesture_without_events_gives_empty_frames(tmp_path):
    gestures(tmp_path)
    write(
        tmp_path / "user29_natural_labels.csv",
        b"class,startTime_usec,endTime_usec\n3,9000000,9000001\n",
    )
    assert data.load("dvs128-gesture", tmp_path, T=2).test.x[-1].sum() == 0


def test_a_gesture_packet_with_official_bytes_is_decoded(tmp_path):
    """The fields of the packet follow iniVation's description."""
    header = struct.pack("<hhiiiiii", 1, 0, 8, 4, 0, 1, 1, 1)
    event = struct.pack("<Ii", 5 << 17 | 9 << 2 | 1 << 1 | 1, 77)
    e = aedat3.decode(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n" + header + event)
    assert [axis.tolist() for axis in (e.x, e.y, e.t, e.p)] == [[5], [9], [77], [1]]
