"""Data sets in which time matters, on fabricated files, and on the real ones if present."""

import functools
import hashlib
import math
import re
import wave

import numpy as np
import pytest
import torch
from helpers.datasets import fake_mnist
from helpers.paths import DATA
from helpers.recipes import SPEAKERS, put

import backspike as bs
from backspike import data
from backspike.data import DataError, Onsets
from backspike.data.batches import Batches
from backspike.data.onsets import mel_filters
from backspike.data.sets.sequential import permutation
from backspike.data.sets.yinyang import spike_times


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKSPIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("BACKSPIKE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def real(folder):
    return pytest.mark.skipif(not (DATA / folder).is_dir(), reason=f"no {folder} in BACKSPIKE_DATA")


# images in sequence


def images(name, root):
    put(name, root)
    sets = data.load(name, root)
    return [part.x for part in (sets.train, sets.validation, sets.test)]


def parts(name, root, **options):
    sets = data.load(name, root, **options)
    return sets.train, sets.validation, sets.test


@pytest.mark.parametrize("T", [784, None])
def test_smnist_shows_pixels_row_by_row(T, tmp_path):
    pictures = images("mnist", tmp_path)
    for part, x in zip(parts("smnist", tmp_path, T=T), pictures):
        assert part.x.shape == (len(x), 784, 1)
        for t in (0, 1, 27, 28, 400, 783):
            np.testing.assert_array_equal(part.x[:, t, 0], x[:, 0, t // 28, t % 28])


def test_smnist_shows_rows_from_top_to_bottom(tmp_path):
    pictures = images("mnist", tmp_path)
    for part, x in zip(parts("smnist", tmp_path, T=28), pictures):
        assert part.x.shape == (len(x), 28, 28)
        for t in range(28):
            np.testing.assert_array_equal(part.x[:, t], x[:, 0, t])


def test_psmnist_shows_the_same_pixels_in_one_fixed_order(tmp_path):
    pictures = images("mnist", tmp_path)
    order = permutation(784)
    for part, x in zip(parts("psmnist", tmp_path), pictures):
        for t in range(784):
            np.testing.assert_array_equal(part.x[:, t, 0], x[:, 0, order[t] // 28, order[t] % 28])


def test_psmnist_by_rows_shows_28_pixels_of_the_fixed_order_at_a_timestep(tmp_path):
    put("mnist", tmp_path)
    for whole, part in zip(parts("psmnist", tmp_path), parts("psmnist", tmp_path, T=28)):
        assert part.x.shape == (len(whole.x), 28, 28)
        for t in range(28):
            for i in range(28):
                np.testing.assert_array_equal(part.x[:, t, i], whole.x[:, 28 * t + i, 0])


def test_the_permutation_never_changes():
    """Results depend on it. Expected: the keys of PCG64 as published, sorted by Python."""
    keys = np.random.PCG64(0).random_raw(784).tolist()
    assert permutation(784).tolist() == sorted(range(784), key=keys.__getitem__)
    assert permutation(784)[:8].tolist() == [269, 11, 403, 600, 196, 608, 657, 150]
    digest = hashlib.md5(permutation(784).astype("<i8").tobytes()).hexdigest()
    assert digest == "841dcef53e09e568c1aa5483f1a7e7d3"
    assert not np.array_equal(permutation(784), permutation(784, seed=1))


def test_scifar10_shows_columns_from_left_to_right(tmp_path):
    pictures = images("cifar10", tmp_path)
    for part, x in zip(parts("scifar10", tmp_path), pictures):
        assert part.x.shape == (len(x), 32, 96)
        for t in range(32):
            columns = [x[:, c, :, t] for c in range(3)]
            np.testing.assert_array_equal(part.x[:, t], np.concatenate(columns, 1))


def test_scifar10_shows_pixels_row_by_row(tmp_path):
    pictures = images("cifar10", tmp_path)
    for part, x in zip(parts("scifar10", tmp_path, T=1024), pictures):
        assert part.x.shape == (len(x), 1024, 3)
        for t in (0, 1, 31, 32, 1023):
            np.testing.assert_array_equal(part.x[:, t], x[:, :, t // 32, t % 32])


@pytest.mark.parametrize(
    ("name", "T"), [("smnist", 784), ("smnist", 28), ("scifar10", 32), ("scifar10", 1024)]
)
def test_sequences_are_views_of_the_images(name, T, tmp_path):
    put(name, tmp_path)
    for part in parts(name, tmp_path, T=T):
        assert part.x.base is not None
        assert not part.x.flags.owndata


def test_sequences_have_the_labels_and_the_split_of_the_images(tmp_path):
    put("mnist", tmp_path)
    for name in ("smnist", "psmnist"):
        for ours, theirs in zip(parts(name, tmp_path), parts("mnist", tmp_path)):
            np.testing.assert_array_equal(ours.y, theirs.y)
            np.testing.assert_array_equal(ours.ids, theirs.ids)


def test_batches_of_sequences_are_pixels_from_0_to_1(tmp_path):
    put("mnist", tmp_path)
    sets = data.load("smnist", tmp_path, T=28, limit=12)
    batches = Batches(sets.train, bs.recipes.get("smnist"), torch.device("cpu"))
    x, y = batches.take(torch.tensor([3, 5]))
    wanted = sets.train.x[[3, 5]].swapaxes(0, 1) / np.float32(255)
    assert x.shape == (28, 2, 28)
    np.testing.assert_array_equal(x, wanted)
    assert y.tolist() == sets.train.y[[3, 5]].tolist()
    ordered = torch.cat([x for x, _ in batches.in_order()], 1)
    np.testing.assert_array_equal(ordered, sets.train.x.swapaxes(0, 1) / np.float32(255))
    for x, _ in batches.training(epoch=0):
        assert 0.9 < x.max() <= 1


def test_other_numbers_of_timesteps_are_refused(tmp_path):
    put("mnist", tmp_path)
    put("cifar10", tmp_path)
    for name, T, choices in (
        ("smnist", 27, "784 (pixels) or 28 (rows)"),
        ("psmnist", 27, "784 (permuted) or 28 (permuted_rows)"),
        ("scifar10", 28, "32 (columns) or 1024 (pixels)"),
    ):
        with pytest.raises(DataError, match=re.escape(f"T={T}: {name} has T = {choices}")):
            data.load(name, tmp_path, T=T)
    with pytest.raises(DataError, match="smnist holds sequences: size=14 is for"):
        data.load("smnist", tmp_path, size=14)


def test_damaged_images_in_sequence_give_the_error_of_the_images(tmp_path):
    fake_mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: byte 5000: truncated"):
        data.load("smnist", tmp_path)
    with pytest.raises(DataError, match=r"scifar10 is not in .*; download these files from"):
        data.load("scifar10", tmp_path)


# Yin-Yang


def test_a_value_of_yinyang_is_the_time_of_one_spike(tmp_path):
    put("yinyang", tmp_path)
    values = np.load(tmp_path / "yinyang" / "train_samples.npy")
    for T in (2, 50):
        x = data.load("yinyang", tmp_path, T=T).train.x
        assert x.shape == (30, T, 4)
        for n in range(30):
            for i in range(4):
                late = min(range(T), key=lambda t: abs(t - values[n, i] * (T - 1)))
                assert x[n, :, i].tolist() == [int(t == late) for t in range(T)]


def test_the_first_and_the_last_timestep_are_values_0_and_1():
    x = spike_times(np.array([[0.0, 1.0]]), 7)
    assert x[0].argmax(0).tolist() == [0, 6]


def test_damaged_files_of_yinyang_are_named(tmp_path):
    put("yinyang", tmp_path)
    folder = tmp_path / "yinyang"
    samples, labels = folder / "test_samples.npy", folder / "test_labels.npy"
    good = {path: path.read_bytes() for path in (samples, labels)}
    load = functools.partial(data.load, "yinyang", tmp_path)
    with pytest.raises(DataError, match="T=1: values become spike times"):
        load(T=1)
    for path, change, message in (
        (samples, lambda: samples.write_bytes(good[samples][:-8]), "byte 0: truncated or damaged"),
        (samples, lambda: samples.write_bytes(b""), "byte 0: truncated or damaged"),
        (samples, lambda: np.save(samples, np.ones((30, 3))), "instead of 4 values a point"),
        (samples, lambda: np.save(samples, np.full((30, 4), 1.5)), "has values outside 0 ... 1"),
        (samples, lambda: np.save(samples, np.full((30, 4), np.nan)), "has values outside"),
        (labels, lambda: np.save(labels, np.arange(29) % 3), "instead of 30 labels"),
        (labels, lambda: np.save(labels, np.arange(30) % 4), "has labels outside 0 ... 2"),
        (labels, lambda: np.save(labels, np.array([None] * 30)), "truncated or damaged array"),
        (labels, labels.unlink, None),
    ):
        change()
        missing = "yinyang is not in .*test_labels.npy, 8,128 bytes, MD5 eac8"
        with pytest.raises(DataError, match=missing if message is None else message) as raised:
            load()
        assert "\n" not in str(raised.value)
        assert message is None or path.name in str(raised.value)
        path.write_bytes(good[path])
    assert len(load().test) == 30


@real("yinyang")
def test_the_official_points_lie_where_their_class_says():
    """Kriener et al. 2022: discs of radius 0.1 in a yin-yang symbol of radius 0.5."""
    sets = data.load("yinyang", DATA)
    assert [len(s) for s in (sets.train, sets.validation, sets.test)] == [5000, 1000, 1000]
    wrong = 0
    values = np.load(DATA / "yinyang" / "test_samples.npy")
    for (x, y, *_), label in zip(values.tolist(), sets.test.y.tolist()):
        right, left = math.dist((x, y), (0.75, 0.5)), math.dist((x, y), (0.25, 0.5))
        dot = min(right, left) <= 0.1
        yin = right <= 0.1 or (0.1 < left <= 0.25) or (y > 0.5 and right > 0.25)
        wrong += label != (2 if dot else 0 if not yin else 1)
    assert wrong == 0
    times = sets.test.x.argmax(1) / 49
    assert np.abs(times - values).max() <= 0.5 / 49 + 1e-12


# spoken digits


def speakers_of(part):
    return {SPEAKERS[i] for i in np.unique(part.ids // 1000)}


@pytest.mark.parametrize(
    ("speaker", "before"), [("george", "yweweler"), ("theo", "nicolas"), ("yweweler", "theo")]
)
def test_no_speaker_is_in_two_parts(speaker, before, tmp_path):
    put("spoken-digits", tmp_path)
    sets = data.load("spoken-digits", tmp_path, T=5, speaker=speaker)
    assert speakers_of(sets.test) == {speaker}
    assert speakers_of(sets.validation) == {before}
    assert speakers_of(sets.train) == {*SPEAKERS} - {speaker, before}
    assert (len(sets.train), len(sets.validation), len(sets.test)) == (80, 20, 20)


def test_a_recipe_chooses_the_speaker(tmp_path):
    from backspike.train.setup import load_data

    put("spoken-digits", tmp_path)
    changes = {"root": str(tmp_path), "T": 5, "speaker": "lucas"}
    recipe = bs.recipes.get("spoken-digits").replace(changes)
    assert speakers_of(load_data(recipe).test) == {"lucas"}
    with pytest.raises(DataError, match="no speaker 'anna' in spoken-digits: george, jackson"):
        load_data(recipe.replace({"speaker": "anna"}))
    with pytest.raises(DataError, match="digits holds images: speaker='lucas' is for spoken-dig"):
        load_data(recipe.replace({"data": "digits"}))


def test_sounds_are_counted_in_bins_of_the_first_second(tmp_path):
    put("spoken-digits", tmp_path)
    sets = data.load("spoken-digits", tmp_path, T=10)
    assert sets.train.x.shape == (80, 10, 80)
    x = sets.test.x[0].astype(int)
    assert x[[0, 2]].any(1).all()
    assert not x[3:].any()  # a tone of 0.25 s
    encoded = Onsets()(sound_of(tmp_path, "0_yweweler_0"), 8000)
    wanted = np.zeros((10, 80), int)
    np.add.at(wanted, (encoded.t // 100_000, encoded.x), 1)
    np.testing.assert_array_equal(x, wanted)
    halved = data.load("spoken-digits", tmp_path, T=10, size=40).test.x
    np.testing.assert_array_equal(halved, sets.test.x.reshape(20, 10, 40, 2).sum(3))


def sound_of(root, name):
    with wave.open(str(root / "fsdd" / "recordings" / f"{name}.wav")) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def test_damaged_recordings_are_named(tmp_path):
    put("spoken-digits", tmp_path)
    path = tmp_path / "fsdd" / "recordings" / "3_theo_1.wav"
    good = path.read_bytes()
    load = functools.partial(data.load, "spoken-digits", tmp_path)
    stereo = good[:22] + b"\x02" + good[23:]
    other_rate = good[:24] + (44100).to_bytes(4, "little") + good[28:]
    for damaged, message in (
        (good[:-100], "byte 4944: truncated: 100 more bytes expected"),
        (good[:30], "byte 30: truncated or damaged WAV file"),
        (b"", "byte 0: truncated or damaged WAV file"),
        (stereo, "byte 0: 2 channels of 16 bits, 8000 times a second: expected 1 channel"),
        (other_rate, "44,100 samples a second instead of 8,000"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"3_theo_1\.wav: {re.escape(message)}") as raised:
            load()
        assert "\n" not in str(raised.value)
    path.write_bytes(good)
    path.rename(path.with_name("3_anna_1.wav"))
    with pytest.raises(
        DataError, match=r"3_anna_1\.wav: a recording is not named <digit>_<speaker"
    ):
        load()


@real("fsdd")
def test_the_real_recordings_are_complete_and_all_encoded():
    sets = data.load("spoken-digits", DATA, T=20)
    assert [len(s) for s in (sets.train, sets.validation, sets.test)] == [2000, 500, 500]
    for part in (sets.train, sets.validation, sets.test):
        assert (part.x.sum((1, 2), dtype=int) > 100).all()
        assert np.unique(part.y, return_counts=True)[1].tolist() == [len(part) // 10] * 10


# the encoder


def crossings(loudness, shift, hop):
    """Each level crossing (time in us, channel) by bisection-free search in exact fractions."""
    found = []
    bands = loudness.shape[1]
    for m in range(bands):
        for k in range(len(loudness) - 1):
            a, b = loudness[k, m], loudness[k + 1, m]
            for n in range(-2, 12):
                level = n + shift[m]
                if a < level <= b or b < level <= a:
                    t = (k + (level - a) / (b - a)) * hop * 1e6
                    found.append((t, m if b > a else bands + m))
    return sorted(found)


def test_events_are_the_crossings_of_the_levels():
    rng = np.random.default_rng(3)
    loudness = rng.uniform(0, 8, (30, 6))
    loudness[[0, -1]] = 0
    encoder = Onsets(bands=6, seed=4)
    shift = [key / 2**64 for key in np.random.PCG64(4).random_raw(6).tolist()]
    wanted = crossings(loudness, shift, encoder.hop)
    events = encoder.crossings(loudness)
    assert len(events) == len(wanted) > 300
    got = sorted(zip(events.t.tolist(), events.x.tolist()))
    by_channel = sorted((channel, t) for t, channel in wanted)
    assert [c for c, _ in by_channel] == sorted(c for _, c in got)
    times = np.array([t for _, t in by_channel])
    ours = np.array([t for _, t in sorted((c, t) for t, c in got)])
    assert np.abs(ours + 0.5 - times).max() <= 0.5 + 1e-6
    assert (np.diff(events.t) >= 0).all()


def test_loudness_is_that_of_a_slow_fourier_transform():
    rng = np.random.default_rng(0)
    sound = rng.integers(-9999, 9999, 700)
    encoder = Onsets(bands=12)
    got = encoder.loudness(sound, 8000)
    hop, window = 40, 200
    assert len(got) == (len(sound) + window) // hop + 2  # the last one is silent
    n = np.arange(window)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / (window - 1))
    mel = [2595 * math.log10(1 + f / 700) for f in (60.0, 4000.0)]
    corners = [700 * (10 ** ((mel[0] + (mel[1] - mel[0]) * i / 13) / 2595) - 1) for i in range(14)]
    frequency = np.arange(window + 1) * 20.0
    power = np.zeros_like(got)
    for k in range(len(got)):
        end = k * hop  # only what has been heard so far
        heard = [sound[i] if 0 <= i < len(sound) else 0 for i in range(end - window, end)]
        turns = np.exp(-2j * np.pi * np.outer(frequency, n) / 8000)
        spectrum = np.abs(turns @ (np.array(heard) * hann)) ** 2
        for m in range(12):
            weight = np.interp(frequency, corners[m : m + 3], [0, 1, 0], left=0, right=0)
            power[k, m] = weight @ spectrum
    floor = power.max() / 10**4.8
    wanted = 10 * np.log10(np.maximum(power, floor) / floor) / 6
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-9)
    assert got[0].max() == pytest.approx(0, abs=1e-12)
    assert got[-1].max() == pytest.approx(0, abs=1e-12)


def test_a_sound_begins_and_ends_in_silence():
    rng = np.random.default_rng(1)
    events = Onsets()(rng.integers(-5000, 5000, 3000), 8000)
    counts = np.bincount(events.x, minlength=80)
    assert counts.min() > 0
    np.testing.assert_array_equal(counts[:40], counts[40:])


def test_a_louder_recording_has_the_same_events():
    sound = np.random.default_rng(2).normal(0, 500, 2000)
    quiet, loud = Onsets()(sound, 8000), Onsets()(8 * sound, 8000)
    np.testing.assert_array_equal(quiet.x, loud.x)
    np.testing.assert_array_equal(quiet.t, loud.t)


def test_a_tone_is_heard_in_the_band_of_its_frequency():
    t = np.arange(4000) / 8000
    events = Onsets()(np.sin(2 * np.pi * 1000 * t), 8000)
    steady = Onsets().loudness(np.sin(2 * np.pi * 1000 * t), 8000)[50]
    mel = 2595 * np.log10(1 + np.array([60, 1000, 4000]) / 700)
    band = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 41 - 1
    assert abs(int(steady.argmax()) - band) <= 1
    assert np.bincount(events.x, minlength=80)[round(band)] == 8


def test_silence_and_an_empty_sound_have_no_events():
    for n in (0, 1, 1000):
        assert len(Onsets()(np.zeros(n), 8000)) == 0


def test_every_seed_has_its_own_levels():
    sound = np.random.default_rng(2).normal(0, 500, 2000)
    first, again, other = (Onsets(seed=seed)(sound, 8000) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.t, again.t)
    assert first.t.tolist() != other.t.tolist()


def test_neighbouring_bands_share_all_of_the_spectrum():
    filters = mel_filters(40, 400, 8000, 60.0)
    frequency = np.arange(201) * 20.0
    inner = (frequency > 150) & (frequency < 3700)
    np.testing.assert_allclose(filters[:, inner].sum(0), 1, atol=1e-12)


def test_too_few_samples_a_second_are_refused():
    for rate, bands in ((8000, 200), (100, 40), (1, 40)):
        with pytest.raises(DataError, match=f"{rate} samples a second are too few for {bands} "):
            Onsets(bands=bands)(np.ones(100), rate)


# runs


@pytest.mark.parametrize("name", ["smnist", "yinyang", "spoken-digits"])
def test_a_run_shows_its_samples_and_what_its_input_is(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BACKSPIKE_DATA", str(tmp_path / "data"))
    put(name, tmp_path / "data")
    recipe = bs.recipes.get(name)
    inputs = recipe.model.in_channels
    changes = {"epochs": 1, "model": bs.models.MLP(recipe.model.num_classes, inputs, (6,))}
    result = bs.fit(recipe.replace(changes), tmp_path / "run")
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    shown = f"Input of sample 1, {inputs} values at each of {recipe.T} timesteps"
    assert shown in page
    assert 0 <= result.test_accuracy <= 1
