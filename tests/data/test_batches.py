"""Batches: values and layout, order and resume, workers, mixed samples."""

import os
import random
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from backspike import loss
from backspike.data import Pictures, Split
from backspike.data.augment import Flip, ResizedCrop, Shift
from backspike.data.batches import Batches
from backspike.data.mixing import CutMix, Mixup
from backspike.errors import RecipeError, RunError
from backspike.recipes.recipe import Recipe
from backspike.recipes.values import TET, CrossEntropy

CPU = torch.device("cpu")


def split(N=23, shape=(1, 6, 5), K=4, dtype=np.uint8):
    rng = np.random.default_rng(0)
    return Split(
        rng.integers(0, 256, (N, *shape)).astype(dtype), rng.integers(0, K, N), np.arange(N)
    )


def recipe(**changes):
    return Recipe(T=3, batch_size=5, **changes)


@dataclass
class Samples:
    """A data set of one's own, which draws noise for each sample as many do."""

    whole: Split
    noise: bool = False

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, i):
        x, y = self.whole[i]
        x = torch.from_numpy(x).float()
        return (x + torch.rand(()) + random.random() + np.random.rand() if self.noise else x), y  # noqa: NPY002


# values and layout


def test_static_images_repeat_over_time_without_a_copy():
    whole = split()
    batches = list(Batches(whole, recipe(), CPU).in_order())
    assert [x.shape for x, _ in batches] == [(3, 5, 1, 6, 5)] * 4 + [(3, 3, 1, 6, 5)]
    np.testing.assert_allclose(
        torch.cat([x[2] for x, _ in batches]), whole.x / np.float32(255), rtol=1e-6
    )
    assert torch.cat([y for _, y in batches]).tolist() == whole.y.tolist()
    assert all(x.stride(0) == 0 for x, _ in batches)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64, np.float32])
def test_frames_put_time_first_and_stay_counts(dtype):
    whole = split(shape=(3, 2, 6, 5), dtype=dtype)
    x = torch.cat([x for x, _ in Batches(whole, recipe(), CPU).in_order()], 1)
    assert x.dtype == torch.float32
    np.testing.assert_array_equal(x, whole.x.swapaxes(0, 1))
    assert next(Batches(whole, recipe(), CPU).in_order())[0].is_contiguous()


@pytest.mark.parametrize("shape", [(2, 6, 5), (3, 2, 6, 5)])
@pytest.mark.parametrize("augment", [(), (Flip(0.0),)])
def test_channels_last_where_asked(shape, augment):
    whole = split(shape=shape)
    (x, _), (plain, _) = (
        next(Batches(whole, recipe(channels_last=asked, augment=augment), CPU).training(0))
        for asked in (True, False)
    )
    assert torch.equal(x, plain)
    assert x[0].is_contiguous(memory_format=torch.channels_last)
    assert not plain[0].is_contiguous(memory_format=torch.channels_last)
    if len(shape) == 4:  # T folds into B without a copy
        assert x.flatten(0, 1).data_ptr() == x.data_ptr()


def test_arrays_stay_where_they_lie(tmp_path):
    """On a CPU nothing is copied, memory-mapped files are not read; arrays that cannot be written are taken too."""
    whole = split()
    assert Batches(whole, recipe(), CPU).arrays[0].data_ptr() == whole.x.ctypes.data
    np.save(tmp_path / "x.npy", whole.x)
    for mode in "cr":
        mapped = Split(np.load(tmp_path / "x.npy", mmap_mode=mode), whole.y, whole.ids)
        x, _ = Batches(mapped, recipe(), CPU).take(torch.tensor([4, 2]))
        np.testing.assert_allclose(x[0], whole.x[[4, 2]] / np.float32(255), rtol=1e-6)


def test_samples_of_another_length_are_refused():
    with pytest.raises(RunError, match="the samples have 4 timesteps and the recipe has T = 3"):
        next(Batches(split(shape=(4, 2, 6, 5)), recipe(), CPU).in_order())


# order and resume


def mapped(whole, path):
    np.save(path, whole.x)
    return Split(np.load(path, mmap_mode="c"), whole.y, whole.ids)


@pytest.mark.parametrize("kind", ["array", "memory-mapped", "samples"])
def test_an_epoch_resumes_in_the_middle_with_any_number_of_workers(kind, tmp_path):
    whole = split(shape=(3, 2, 6, 5))
    data = {
        "array": whole,
        "memory-mapped": mapped(whole, tmp_path / "x.npy"),
        "samples": Samples(whole),
    }[kind]

    def epoch(first, workers, number=1, seed=7):
        plan = recipe(workers=workers, augment=(Shift(1), Flip(), Mixup()), seed=seed)
        batches = Batches(data, plan, CPU)
        batches.expect_classes(4)
        torch.manual_seed(first)  # stands for the generator that a checkpoint restores
        return list(batches.training(number, first))

    for first in (0, 2):
        alone = epoch(first, 0)
        for workers in (1, 2):
            for (x, y), (other_x, other_y) in zip(alone, epoch(first, workers), strict=True):
                assert torch.equal(x, other_x)
                assert torch.equal(y, other_y)
    assert len(epoch(2, 2)) == 3
    assert not torch.equal(epoch(0, 0)[0][1], epoch(0, 0, number=2)[0][1])
    assert not torch.equal(epoch(0, 0)[0][1], epoch(0, 0, seed=8)[0][1])


def test_pictures_are_decoded_in_workers_and_not_before(tmp_path):
    """Folders of pictures do not go into memory: they come one by one, with workers the same."""
    rng = np.random.default_rng(0)
    names = [f"{i:02d}.png" for i in range(13)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / name)
    whole = Split(Pictures(tmp_path, np.array(names, bytes), 8), np.arange(13) % 4, np.arange(13))
    alone, helped = (list(Batches(whole, recipe(workers=n), CPU).training(0)) for n in (0, 2))
    assert all(torch.equal(x, other) for (x, _), (other, _) in zip(alone, helped, strict=True))
    first = int(Batches(whole, recipe(), CPU).order(0)[0])
    np.testing.assert_allclose(alone[0][0][1, 0], whole.x[first] / np.float32(255), rtol=1e-6)


def test_pictures_are_cropped_at_random_where_they_are_decoded(tmp_path):
    """From the whole file, whose border the cut for testing never shows; with workers by (seed, epoch, sample) alone."""
    array = np.zeros((32, 32, 3), np.uint8)
    array[1:-1, 1:-1] = np.random.default_rng(0).integers(60, 256, (30, 30, 3))
    names = [f"{i}.png" for i in range(6)]
    for name in names:
        Image.fromarray(array).save(tmp_path / name)
    whole = Split(Pictures(tmp_path, np.array(names, bytes), 32), np.arange(6), np.arange(6))

    def training(epoch=0, first=0, **changes):
        torch.manual_seed(0)
        return [x[0] for x, _ in Batches(whole, recipe(**changes), CPU).training(epoch, first)]

    (x, *_) = training(augment=(ResizedCrop((1.0, 1.0), (1.0, 1.0)), Flip(1.0)))
    np.testing.assert_allclose(x[0], array[:, ::-1].transpose(2, 0, 1) / np.float32(255))
    crop = (ResizedCrop(),)
    one, two = training(augment=crop, workers=1), training(augment=crop, workers=2)
    assert all(torch.equal(x, y) for x, y in zip(one, two, strict=True))
    assert torch.equal(training(augment=crop, workers=2, first=1)[0], one[1])
    assert len(torch.unique(torch.cat(one).flatten(1), dim=0)) == 6
    assert not torch.equal(training(1, augment=crop, workers=1)[0], one[0])
    for x, _ in Batches(whole, recipe(augment=crop), CPU).in_order():
        assert x.min() > 0.1  # 2 of 32 pixels are cut off on each side
        assert torch.equal(x[0, 0], x[0, -1])


def test_every_sample_comes_once_an_epoch():
    whole = split(N=23, K=23)
    whole.y[:] = np.arange(23)
    labels = torch.cat([y for _, y in Batches(whole, recipe(), CPU).training(5)])
    assert sorted(labels.tolist()) == list(range(23))
    assert labels.tolist() != list(range(23))


def test_what_a_data_set_draws_in_workers_depends_on_seed_epoch_and_sample_alone():
    whole = split()
    whole.x[:] = 0

    def drawn(workers, epoch, first=0, seed=0):
        batches = Batches(Samples(whole, noise=True), recipe(workers=workers, seed=seed), CPU)
        order = batches.order(epoch)[5 * first :].tolist()
        x = torch.cat([x[0] for x, _ in batches.training(epoch, first)], 0)
        return dict(zip(order, x[:, 0, 0, 0].tolist()))

    one, two, later = drawn(1, 0), drawn(2, 0), drawn(2, 0, first=3)
    assert one == two
    assert later == {i: one[i] for i in later}
    assert one != drawn(2, 1)
    assert one != drawn(2, 0, seed=1)
    assert len(set(one.values())) == 23


def test_reading_draws_nothing_from_the_generators():
    for workers in (0, 2):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        list(Batches(Samples(split()), recipe(workers=workers), CPU).training(0))
        assert torch.equal(torch.get_rng_state(), state)


# what goes wrong in a worker


class Fatal(Samples):
    def __getitem__(self, i):
        os.kill(os.getpid(), signal.SIGKILL)


class Broken(Samples):
    def __getitem__(self, i):
        raise ValueError(f"sample {i} is\ndamaged" if i < 0 else "the picture is damaged")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            Fatal(split()),
            r"^a process that reads samples ended \(killed, perhaps for want of memory\); lower --workers \(1\)$",
        ),
        (Broken(split()), r"^a sample cannot be read: ValueError: the picture is damaged$"),
    ],
)
def test_a_worker_that_dies_is_said_in_one_line(data, message):
    with pytest.raises(RunError, match=message):
        list(Batches(data, recipe(workers=1), CPU).training(0))


def test_workers_are_not_negative():
    with pytest.raises(RecipeError, match="workers must be not negative"):
        recipe(workers=-1)


# mixed samples


def test_mixed_labels_are_shares_of_the_classes():
    batches = Batches(split(), recipe(augment=(Flip(), CutMix(), Mixup())), CPU)
    with pytest.raises(RunError, match="number of classes"):
        next(batches.training(0))
    batches.expect_classes(4)
    for x, y in batches.training(0):
        assert y.shape == (x.shape[1], 4)
        assert y.sum(1).tolist() == pytest.approx([1] * len(y))
    assert next(batches.in_order())[1].dim() == 1  # nothing is mixed in a test


@pytest.mark.parametrize(
    "value", [CrossEntropy(0.1), TET(lam=0.1, label_smoothing=0.1), TET()], ids=repr
)
def test_losses_take_shares_and_are_linear_in_them(value):
    """A loss of a mixture is the mixture of the losses: mean over classes of share times loss for that class."""
    o = torch.randn(3, 5, 4, dtype=torch.float64)
    share = torch.rand(5, 4, dtype=torch.float64)
    share = share / share.sum(1, keepdim=True)
    mixed = value.value(o, o.mean(0), share)
    sharp = 0.0
    for b in range(5):
        for k in range(4):
            one = o[:, b : b + 1]
            sharp = sharp + share[b, k] * value.value(one, one.mean(0), torch.tensor([k])) / 5
    assert float(mixed) == pytest.approx(float(sharp), rel=1e-12)
    y = torch.tensor([1, 0, 3, 2, 2])
    assert float(value.value(o, o.mean(0), y)) == pytest.approx(
        float(value.value(o, o.mean(0), F.one_hot(y, 4).double()))
    )


def test_spike_counts_take_shares():
    o = torch.rand(3, 5, 4, dtype=torch.float64)
    y = torch.tensor([1, 0, 3, 2, 2])
    wanted = torch.full((5, 4), 0.1, dtype=torch.float64)
    wanted[torch.arange(5), y] = 0.8
    for target in (y, F.one_hot(y, 4)):
        assert torch.allclose(
            loss.spike_count_mse(o, target), F.mse_loss(o.mean(0), wanted), rtol=1e-12
        )
