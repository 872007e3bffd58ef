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
from backspike.data import Pictures, Split, batches
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
    """A user's data set, which can add random noise to each sample."""

    whole: Split
    noise: bool = False

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, i):
        x, y = self.whole[i]
        x = torch.from_numpy(x).float()
        if self.noise:
            x = x + torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return x, y


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
def test_frames_become_time_first_and_remain_counts(dtype):
    whole = split(shape=(3, 2, 6, 5), dtype=dtype)
    x = torch.cat([x for x, _ in Batches(whole, recipe(), CPU).in_order()], 1)
    assert x.dtype == torch.float32
    np.testing.assert_array_equal(x, whole.x.swapaxes(0, 1))
    assert next(Batches(whole, recipe(), CPU).in_order())[0].is_contiguous()


@pytest.mark.parametrize("shape", [(2, 6, 5), (3, 2, 6, 5)])
@pytest.mark.parametrize("augment", [(), (Flip(0.0),)])
def test_channels_last_if_requested(shape, augment):
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


def test_arrays_are_not_copied(tmp_path):
    """On a CPU, arrays are not copied and memory-mapped files not read; read-only ones work too."""
    whole = split()
    assert Batches(whole, recipe(), CPU).arrays[0].data_ptr() == whole.x.ctypes.data
    np.save(tmp_path / "x.npy", whole.x)
    for mode in "cr":
        mapped = Split(np.load(tmp_path / "x.npy", mmap_mode=mode), whole.y, whole.ids)
        x, _ = Batches(mapped, recipe(), CPU).take(torch.tensor([4, 2]))
        np.testing.assert_allclose(x[0], whole.x[[4, 2]] / np.float32(255), rtol=1e-6)


def test_samples_with_a_different_number_of_timesteps_are_refused():
    with pytest.raises(RunError, match="the samples have 4 timesteps and the recipe has T = 3"):
        next(Batches(split(shape=(4, 2, 6, 5)), recipe(), CPU).in_order())


# labels and types


def labelled(y, as_split):
    """A data set of 6 samples with labels y: a `Split`, or one that is read sample by sample."""
    x = torch.zeros(6, 2)
    if as_split:
        return Split(x.numpy(), y.numpy(), np.arange(6))
    return torch.utils.data.TensorDataset(x, y)


@pytest.mark.parametrize("as_split", [True, False])
@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.linspace(0, 3, 6), r"labels of type float32 and shape \[\d\]: "),
        (torch.full((6, 4), 0.25).double(), r"labels of type float64 and shape \[\d, 4\]: "),
        (torch.eye(6)[:, :3].long(), r"labels of type int64 and shape \[\d, 3\]: "),
        (torch.zeros(6, 1).long(), r"labels of type int64 and shape \[\d, 1\]: "),
    ],
    ids=["regression", "soft", "one-hot", "column"],
)
def test_labels_that_are_no_class_numbers_are_refused(y, words, as_split):
    with pytest.raises(RunError, match=words) as error:
        Batches(labelled(y, as_split), recipe(), CPU).take(torch.arange(5))
    said = str(error.value)
    assert "expected one class number for each sample, an integer 0 ... K - 1" in said
    assert ("take argmax(-1)" in said) == (y.dim() == 2 and y.shape[1] > 1)
    assert "\n" not in said


@pytest.mark.parametrize("as_split", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool])
def test_class_numbers_of_any_integer_type_are_accepted(dtype, as_split):
    y = (torch.arange(6) % 2).to(dtype)
    _, taken = Batches(labelled(y, as_split), recipe(), CPU).take(torch.arange(5))
    assert (taken.dtype, taken.tolist()) == (torch.int64, [0, 1, 0, 1, 0])


def test_labels_that_are_text_are_refused():
    data = [(torch.zeros(2), "cat"), (torch.zeros(2), "dog")]
    with pytest.raises(RunError, match="has labels that are no numbers: expected one class number"):
        Batches(data, recipe(), CPU).take(torch.arange(2))


@pytest.mark.parametrize("as_split", [True, False])
@pytest.mark.parametrize(
    ("dtype", "shape", "words"),
    [
        (np.float64, (1, 6, 5), "samples of type float64 are rounded to float32"),
        (np.int64, (1, 6, 5), "static samples of type int64 are used unchanged, as float32; only"),
        (np.int16, (1, 6, 5), "static samples of type int16 are used unchanged, as float32; only"),
        (np.int64, (3, 2, 6, 5), "samples of type int64 are used as float32, which is exact up to"),
        (np.uint8, (1, 6, 5), None),
        (np.float32, (1, 6, 5), None),
        (np.bool_, (1, 6, 5), None),
        (np.uint16, (3, 2, 6, 5), None),
    ],
)
def test_conversions_to_float32_cause_one_warning(dtype, shape, words, as_split, caplog):
    batches._warn_once.cache_clear()
    whole = split(shape=shape, dtype=dtype)
    for _ in range(2):
        list(Batches(whole if as_split else Unconverted(whole), recipe(), CPU).in_order())
    assert len(caplog.messages) == (words is not None)
    assert words is None or words in caplog.messages[0]


@dataclass
class Unconverted:
    """Reads a split sample by sample, without conversion."""

    whole: Split

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, i):
        return self.whole[i]


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((6, 2), np.complex64), "the data has complex numbers: expected real ones"),
        (np.full((6, 2), "a"), "the samples are of type <U1: expected numbers"),
    ],
)
def test_samples_that_are_no_real_numbers_are_refused(x, words):
    with pytest.raises(RunError, match=words):
        Batches(Split(x, np.arange(6), np.arange(6)), recipe(), CPU)


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
        torch.manual_seed(first)  # like the generator that a checkpoint restores
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


def test_pictures_are_decoded_by_workers_on_access(tmp_path):
    """Pictures are read one by one, with the same result for any number of workers."""
    rng = np.random.default_rng(0)
    names = [f"{i:02d}.png" for i in range(13)]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / name)
    whole = Split(Pictures(tmp_path, np.array(names, bytes), 8), np.arange(13) % 4, np.arange(13))
    alone, helped = (list(Batches(whole, recipe(workers=n), CPU).training(0)) for n in (0, 2))
    assert all(torch.equal(x, other) for (x, _), (other, _) in zip(alone, helped, strict=True))
    first = int(Batches(whole, recipe(), CPU).order(0)[0])
    np.testing.assert_allclose(alone[0][0][1, 0], whole.x[first] / np.float32(255), rtol=1e-6)


def test_random_crops_are_applied_while_decoding(tmp_path):
    """Crops come from the whole file, not from the centre crop used for testing.

    With workers they depend only on (seed, epoch, sample).
    """
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
        assert x.min() > 0.1  # 2 of 32 pixels are cropped on each side
        assert torch.equal(x[0, 0], x[0, -1])


def test_each_epoch_has_every_sample_once():
    whole = split(N=23, K=23)
    whole.y[:] = np.arange(23)
    labels = torch.cat([y for _, y in Batches(whole, recipe(), CPU).training(5)])
    assert sorted(labels.tolist()) == list(range(23))
    assert labels.tolist() != list(range(23))


def test_random_samples_depend_only_on_seed_epoch_and_index():
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


def test_reading_does_not_advance_the_default_generator():
    for workers in (0, 2):
        torch.manual_seed(0)
        state = torch.get_rng_state()
        list(Batches(Samples(split()), recipe(workers=workers), CPU).training(0))
        assert torch.equal(torch.get_rng_state(), state)


# errors in workers


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
            r"^a process that reads samples ended \(killed, perhaps because memory ran out\); "
            r"lower workers \(1\)$",
        ),
        (Broken(split()), r"^a sample cannot be read: ValueError: the picture is damaged$"),
    ],
)
def test_a_failing_worker_is_reported_in_one_line(data, message):
    with pytest.raises(RunError, match=message):
        list(Batches(data, recipe(workers=1), CPU).training(0))


def test_negative_workers_are_refused():
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
    assert next(batches.in_order())[1].dim() == 1  # no mixing when testing


@pytest.mark.parametrize(
    "value", [CrossEntropy(0.1), TET(lam=0.1, label_smoothing=0.1), TET()], ids=repr
)
def test_losses_accept_class_shares_and_are_linear_in_them(value):
    """The loss of a mixture is the mean of the losses for each class, weighted by its share."""
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


def test_spike_count_loss_accepts_class_shares():
    o = torch.rand(3, 5, 4, dtype=torch.float64)
    y = torch.tensor([1, 0, 3, 2, 2])
    wanted = torch.full((5, 4), 0.1, dtype=torch.float64)
    wanted[torch.arange(5), y] = 0.8
    for target in (y, F.one_hot(y, 4)):
        assert torch.allclose(
            loss.spike_count_mse(o, target), F.mse_loss(o.mean(0), wanted), rtol=1e-12
        )
