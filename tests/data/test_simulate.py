"""The simulated event camera: physics on simple scenes, statistics of N-MNIST on digits."""

import gzip
import struct
from dataclasses import replace

import numpy as np
import pytest
from helpers.paths import DATA

from backspike import data
from backspike.data import simulate, simulated
from backspike.data.formats import atis
from backspike.data.sets import digits, mnist
from backspike.data.simulate import Camera, record, record_all
from backspike.errors import DataError

# only the initial levels are random: equal pixels, no noise
IDEAL = Camera(mismatch=0.0, drift=0.0, noise=0.0, negative=False, contrast=3.0, threshold=0.216)


@pytest.fixture(scope="module")
def statistics():
    """Statistics of a third of digits-dvs.

    One row per recording: events, share of ON, share of active pixels, last event [ms] and events
    in each of three saccades; and the mean rate [events/ms] in 30 bins of 10.5 ms.
    """
    whole = data.load("digits")
    images = np.pad(
        np.concatenate([split.x for split in (whole.train, whole.validation, whole.test)])[::3],
        ((0, 0), (0, 0), (1, 1), (1, 1)),
    )
    rows, rate = [], np.zeros(30)
    for first in range(0, len(images), 8):
        part = images[first : first + 8]
        for e in record_all(part, 0, range(first, first + len(part)), digits.CAMERA):
            saccade = np.bincount(np.minimum(e.t // 105000, 2), minlength=3)
            active = len(np.unique(e.y.astype(int) * 34 + e.x)) / 34**2
            rows.append([len(e), e.p.mean(), active, e.t.max() / 1000, *saccade])
            rate += np.bincount(e.t // 10500, minlength=30)
    return np.array(rows), rate / len(rows) / 10.5


def test_digits_have_the_statistics_of_nmnist(statistics):
    """1,000 real recordings: 4,133 +- 1,154 events, 49.97 % ON, 38.8 % active pixels, 307.7 ms."""
    rows, _ = statistics
    events, on, active, last = rows[:, :4].mean(0)
    assert events == pytest.approx(4133, rel=0.03)
    assert rows[:, 0].std() == pytest.approx(1154, rel=0.08)
    assert on == pytest.approx(0.4997, abs=0.01)
    assert active == pytest.approx(0.388, abs=0.02)
    assert last == pytest.approx(307.7, abs=1)


def test_saccades_have_as_many_events_as_nmnist(statistics):
    """Within 15 %: UCI's digits have fewer horizontal strokes, which the first saccade shows."""
    np.testing.assert_allclose(statistics[0][:, 4:].mean(0), [1503, 1360, 1270], rtol=0.15)


def test_rate_over_time_matches_nmnist(statistics):
    """Events per millisecond of the 1,000 real recordings, in 30 bins of 10.5 ms."""
    real = np.array([
        *(1.76, 7.12, 16.73, 25.92, 30.17, 29.27, 21.1, 6.29, 2.14),
        *(2.68, 4.16, 7.33, 16.5, 23.08, 25.4, 24.03, 14.5, 5.45),
        *(3.66, 5.38, 2.88, 2.56, 17.76, 23.07, 25.77, 22.25, 14.39, 9.35, 2.64, 0.32),
    ])  # fmt: skip
    assert np.corrcoef(statistics[1], real)[0, 1] > 0.97
    # in the first saccade, see above
    assert statistics[1].max() == pytest.approx(real.max(), rel=0.16)


def test_seed_and_index_determine_the_recording():
    image = data.load("digits").train.x[5]
    same, other_index, other_seed = record(image, 3, 7), record(image, 3, 8), record(image, 4, 7)
    for a, b in zip(vars(record(image, 3, 7)).values(), vars(same).values()):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(same.t, other_index.t)
    assert not np.array_equal(same.t, other_seed.t)


@pytest.mark.parametrize("shape", [(8, 8), (1, 28, 28), (3, 32, 32), (40, 25), (224, 224)])
def test_any_image_gives_an_ordered_recording_on_the_sensor(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    e = record(image)
    assert len(e) > 200
    assert (np.diff(e.t) >= 0).all()
    assert 0 <= e.t.min() <= e.t.max() < 309000
    assert max(e.x.max(), e.y.max()) < 34
    assert set(np.unique(e.p)) == {0, 1}
    assert (e.x.dtype, e.y.dtype, e.t.dtype, e.p.dtype) == (
        np.uint16,
        np.uint16,
        np.int64,
        np.uint8,
    )


def test_darkness_causes_only_noise_events():
    """Without light, only noise: Poisson of mean 5 / pixel / s x 34^2 x 0.309 s = 1,786."""
    dark = np.zeros((8, 8), np.uint8)
    assert len(record(dark, camera=IDEAL)) == 0
    counts = [len(record(dark, 0, i, replace(IDEAL, noise=5.0))) for i in range(50)]
    assert np.mean(counts) == pytest.approx(1786, rel=0.02)
    assert np.var(counts) == pytest.approx(1786, rel=0.6)


def test_an_edge_causes_on_events_ahead_and_off_events_behind():
    """A bright square moves right by 8 pixels: ON ahead of it, OFF behind it, none inside."""
    camera = replace(
        IDEAL, side=28.0, blur=1.0, path=((0.0, -4.0, 0.0), (100.0, 4.0, 0.0)), duration=100.0
    )
    e = record(np.pad(np.full((18, 18), 255, np.uint8), 5), camera=camera)
    inner = (e.y > 10) & (e.y < 23)
    x, p = e.x[inner], e.p[inner]
    # right edge from 17 - 4 + 9 = 22 to 30, and what sees it there from 1 away
    assert (x[p == 1].min(), x[p == 1].max()) == (21, 30)
    assert (x[p == 0].min(), x[p == 0].max()) == (3, 12)  # left edge from 17 - 4 - 9 = 4 to 12
    change = np.log1p(camera.contrast)  # from black to white, in each of 8 columns and 12 rows
    assert (p == 1).sum() == pytest.approx(8 * 12 * change / camera.threshold, abs=8 * 12)
    assert (p == 0).sum() == pytest.approx(8 * 12 * change / camera.threshold, abs=8 * 12)


def test_rounding_in_constant_light_does_no_harm():
    """The light jumps by about m thresholds and is then constant.

    If rounding moves the last crossing into the constant part, it still has a time, and no pixel
    emits more than m events.
    """

    rng = np.random.default_rng(0)
    jump, m = rng.uniform(0.5, 3, 20_000).astype(np.float32), rng.integers(1, 30, 20_000)
    light = np.stack([0 * jump, jump, jump])
    t, pixel, on = simulate._crossings(
        light, np.array([0.0, 1.0, 2.0]), (jump / m).astype(np.float32), 0 * jump
    )
    assert on.all()
    assert ((t > 0) & (t <= 1)).all()
    late = m - np.bincount(pixel, minlength=len(m))
    assert set(late) <= {0, 1}


def test_details_finer_than_a_pixel_are_averaged():
    """A checkerboard finer than the pixels looks like uniform grey."""
    board = (np.indices((144, 144)).sum(0) % 2 * 255).astype(np.uint8)
    seen, grey = (
        len(record(np.pad(image, 16), camera=IDEAL))
        for image in (board, np.full((144, 144), 127, np.uint8))
    )
    assert seen == pytest.approx(grey, rel=0.05)


def test_recording_images_together_equals_recording_them_alone():
    images, ids = data.load("digits").train.x[:11], range(5, 16)
    for image, index, together in zip(images, ids, record_all(images, 3, ids)):
        alone = record(image, 3, index)
        for field in ("x", "y", "t", "p"):
            np.testing.assert_array_equal(getattr(alone, field), getattr(together, field))


def test_a_negative_exchanges_light_and_dark():
    image = data.load("digits").train.x[0]
    shown, inverted = (
        record(image, camera=IDEAL),
        record(255 - image, camera=replace(IDEAL, negative=True)),
    )
    assert len(shown) == len(inverted)
    np.testing.assert_allclose(shown.t, inverted.t, atol=1)  # us, rounding
    assert shown.p.sum() == inverted.p.sum()


@pytest.mark.parametrize(("channel", "grey"), [(0, 54), (1, 182), (2, 18)])
def test_coloured_images_are_recorded_by_their_luma(channel, grey):
    """BT.709: red, green and blue are as bright as grey 0.2126, 0.7152 and 0.0722 x 255."""
    colour = np.zeros((3, 30, 30), np.uint8)
    colour[channel, 8:22, 8:22] = 255
    as_light = np.where(colour[channel] > 0, np.uint8(grey), np.uint8(0))
    fine = replace(IDEAL, threshold=0.02)
    assert len(record(colour, camera=fine)) == pytest.approx(
        len(record(as_light, camera=fine)), rel=0.04
    )


def test_the_edge_pixels_of_the_image_are_repeated():
    """If the camera moves along stripes, nothing changes, not even at the border."""
    stripes = np.tile(np.array([0, 255] * 10, np.uint8)[:, None], (1, 20))
    along = replace(IDEAL, side=20.0, path=((0.0, -5.0, 0.0), (100.0, 5.0, 0.0)), duration=100.0)
    assert len(record(stripes, camera=along)) == 0
    assert len(record(stripes.T, camera=along)) > 1000


def test_a_higher_threshold_gives_fewer_events():
    image = data.load("digits").train.x[0]
    counts = [
        len(record(image, camera=replace(IDEAL, threshold=theta))) for theta in (0.1, 0.2, 0.4)
    ]
    assert counts[0] > 1.8 * counts[1] > 3.2 * counts[2] > 0


def test_event_times_are_interpolated_between_samples():
    """With four times as many samples, events move by less than a millisecond on average."""
    image = data.load("digits").train.x[0]
    coarse, fine = (record(image, camera=replace(IDEAL, step=step)) for step in (3.0, 0.75))
    assert len(coarse) == pytest.approx(len(fine), rel=0.02)
    marks = np.linspace(0.05, 0.95, 50)
    assert np.abs(np.quantile(coarse.t, marks) - np.quantile(fine.t, marks)).mean() < 1000


# comparison with real recordings


REAL = DATA


@pytest.mark.skipif(not (REAL / "NMNIST").is_dir(), reason="no NMNIST in BACKSPIKE_DATA")
def test_simulated_recordings_match_the_real_ones():
    """Every tenth of 1,000 real recordings: event numbers, and where and when events occur."""
    mnist = data.load("mnist", REAL)
    images = {
        int(id): x for split in (mnist.train, mnist.validation) for id, x in zip(split.ids, split.x)
    }
    paths = sorted((REAL / "NMNIST" / "Train").glob("*/*.bin"), key=lambda path: path.stem)[::10]
    ids = [int(path.stem) - 1 for path in paths]
    real = [atis.decode(path.read_bytes()) for path in paths]
    ours = record_all(np.stack([images[i] for i in ids]), 0, ids)
    events = np.array([[len(a), len(b)] for a, b in zip(real, ours)]).T
    assert np.corrcoef(events)[0, 1] > 0.99
    np.testing.assert_allclose(events[1].mean(), events[0].mean(), rtol=0.03)
    # ON minus OFF by 34 x 34 pixels and 50 ms
    bins, limits = (34, 34, 7), [(0, 34), (0, 34), (0, 350_000)]
    net = [
        np.concatenate(
            [
                np.histogramdd((e.x, e.y, e.t), bins, limits, weights=2.0 * e.p - 1)[0].ravel()
                for e in side
            ]
        )
        for side in (real, ours)
    ]
    assert np.corrcoef(*net)[0, 1] > 0.9


# image sets of files


@pytest.fixture
def mnist_files(tmp_path, monkeypatch):
    """MNIST's four files with 60 + 10 images, and an own cache; images and labels of both parts."""
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BACKSPIKE_DATA", str(tmp_path))
    rng, folder, arrays = np.random.default_rng(0), tmp_path / "MNIST" / "raw", {}
    folder.mkdir(parents=True)
    for part, n in (("train", 60), ("t10k", 10)):
        x, y = rng.integers(0, 256, (n, 28, 28), np.uint8), (np.arange(n) % 3).astype(np.uint8)
        for kind, array in (("images-idx3", x), ("labels-idx1", y)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(
                gzip.compress(header + array.tobytes())
            )
        arrays[part] = x, y
    return arrays


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.bin")
    }


def test_mnist_dvs_contains_recordings_of_mnist(mnist_files):
    """Frames, through N-MNIST files, count the events of `record`; split and ids are MNIST's."""
    images, recordings = data.load("mnist"), data.load("mnist-dvs", T=3)
    assert "simulated" in recordings.note
    assert "70 of 70,000 samples" in recordings.note
    for part in ("train", "validation", "test"):
        still, moving = getattr(images, part), getattr(recordings, part)
        np.testing.assert_array_equal(moving.ids, np.sort(still.ids))
        np.testing.assert_array_equal(moving.y, still.y[np.argsort(still.ids)])
    e = record(mnist_files["t10k"][0][7], 2, 7)
    (i,) = np.flatnonzero(recordings.test.ids == 7)
    np.testing.assert_array_equal(recordings.test.x[i], data.frames(atis.decode(atis.encode(e)), 3))


def test_simulating_in_processes_gives_the_same_files(mnist_files, monkeypatch, tmp_path):
    images = data.load("mnist")
    one = contents(mnist.MNIST_DVS.read.folder("mnist-dvs", images))
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "other"))
    monkeypatch.setattr(simulated, "SERIAL_IMAGES", 0)
    assert contents(mnist.MNIST_DVS.read.folder("mnist-dvs", images)) == one
    assert len(one) == 70


def test_an_interrupted_simulation_continues(mnist_files, monkeypatch, tmp_path):
    """A process dies in the third class: finished classes stay, only the others are simulated."""
    images, start, started = data.load("mnist"), simulated.Worker, []

    def dies(**options):
        started.append(options)
        return start(**options | ({"start": "exit('killed')"} if len(started) == 3 else {}))

    monkeypatch.setattr(simulated, "SERIAL_IMAGES", 0)
    monkeypatch.setattr(simulated, "Worker", dies)
    monkeypatch.setattr(simulated, "processors", lambda: 1)
    with pytest.raises(
        DataError, match=r"^simulating mnist-dvs, Train/2 failed \(killed\): run it again$"
    ):
        mnist.MNIST_DVS.read.folder("mnist-dvs", images)
    (entry,) = (tmp_path / "cache").iterdir()
    ready = {path: path.stat().st_mtime_ns for path in entry.rglob("*.bin")}
    classes = {path.parent for path in ready}
    assert {entry / "Train" / label for label in "01"} <= classes
    assert entry / "Train" / "2" not in classes
    del started[:]
    monkeypatch.setattr(simulated, "Worker", lambda **o: started.append(o) or start(**o))
    mnist.MNIST_DVS.read.folder("mnist-dvs", images)
    assert len(started) == len({path.parent for path in entry.rglob("*.bin")} - classes)
    assert all(path.stat().st_mtime_ns == time for path, time in ready.items())


def test_camera_and_images_determine_the_cache_entry(mnist_files):
    images = data.load("mnist")
    names = {
        mnist.MNIST_DVS.read.entry_name("mnist-dvs", images),
        digits.DIGITS_DVS.read.entry_name("digits-dvs", images),
    }
    other = replace(mnist.MNIST_DVS.read, camera=Camera(noise=0.5))
    names.add(other.entry_name("mnist-dvs", images))
    images.test.x[0, 0, 0, 0] ^= 1
    names.add(mnist.MNIST_DVS.read.entry_name("mnist-dvs", images))
    assert len(names) == 4
