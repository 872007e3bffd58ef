"""DataLoaders, samplers, balanced sampling and class weights."""

import random

import numpy as np
import pytest
import torch
from helpers.training import Own, Points, Stop, epochs, fit, own, same, stop_after, tiny, weights
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

import backspike as bs
from backspike import train
from backspike.data.batches import Batches
from backspike.data.loader import balanced, labels_of
from backspike.errors import RecipeError, RunError
from backspike.run import Run

CPU = torch.device("cpu")


def small(**changes):
    return own().replace(changes)


def order(loader, epoch=0, **changes):
    recipe = small(**{"batch_size": 8, **changes})
    return Batches(loader, recipe, CPU).order(epoch).tolist()


def started(model=None):
    torch.manual_seed(0)
    return model or Own()


def test_a_shuffling_loader_trains_as_its_data_set_does(tmp_path):
    fit(own(), tmp_path / "a", started(), Points(), Points(32))
    loader = DataLoader(Points(), batch_size=16, shuffle=True)
    fit(
        small(batch_size=7), tmp_path / "b", started(), loader, DataLoader(Points(32), batch_size=5)
    )
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    recipe = Run.open(tmp_path / "b").recipe()
    assert (recipe.batch_size, recipe.workers) == (16, 0)


def test_a_loader_without_shuffling_keeps_the_order():
    assert order(DataLoader(Points(20), batch_size=8)) == list(range(20))


def test_drop_last_leaves_the_rest_out(tmp_path):
    loader = DataLoader(Points(20), batch_size=8, shuffle=True, drop_last=True)
    assert len(order(loader)) == 16
    seen = []
    fit(small(epochs=1), tmp_path / "run", Own(), loader, listen=seen.append)
    assert [e["batches"] for e in seen if e["event"] == "batch"] == [2, 2]
    with pytest.raises(RunError, match="drop_last leaves no batch"):
        fit(own(), tmp_path / "b", Own(), DataLoader(Points(20), batch_size=32, drop_last=True))


def test_a_random_sampler_draws_by_seed_and_epoch_alone():
    sampler = WeightedRandomSampler([1.0] * 10 + [3.0] * 10, 24)
    loader = DataLoader(Points(20), batch_size=8, sampler=sampler)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = order(loader)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    torch.rand(5)
    assert len(first) == 24
    assert order(loader) == first
    assert order(loader, epoch=1) != first
    assert order(loader, seed=1) != first
    own_generator = WeightedRandomSampler([1.0] * 20, 24, generator=torch.Generator())
    loader = DataLoader(Points(20), batch_size=8, sampler=own_generator)
    assert order(loader) == order(loader)


@pytest.mark.parametrize("batches", [2, 7])
def test_a_run_with_a_sampler_resumes_exactly(tmp_path, batches):
    def loader():
        sampler = WeightedRandomSampler([1.0] * 40 + [2.0] * 24, 40)
        return DataLoader(Points(), batch_size=10, sampler=sampler)

    fit(own(), tmp_path / "whole", started(), loader(), Points(32))
    recipe = small(checkpoint_seconds=0.0)
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "run", started(), loader(), Points(32), listen=stop_after(batches))
    train.resume(tmp_path / "run", Own(), loader(), Points(32), report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    assert epochs(tmp_path / "whole") == epochs(tmp_path / "run")


def shifted(pairs):
    x, y = default_collate(pairs)
    return x + 100, y


def test_the_collate_function_is_used_also_of_splits():
    x, _ = Batches(DataLoader(Points(20), collate_fn=shifted), own(), CPU).take(torch.arange(3))
    assert (x > 50).all()
    split = bs.data.load("digits").train
    plain, _ = Batches(split, own(), CPU).take(torch.arange(3))
    x, _ = Batches(DataLoader(split, collate_fn=shifted), own(), CPU).take(torch.arange(3))
    assert not torch.equal(x, plain)


def test_validation_and_test_loaders_visit_their_samples_once(tmp_path):
    data = Points(60)
    chosen = SubsetRandomSampler([50, 3, 17, 8])
    fit(
        small(epochs=1),
        tmp_path / "run",
        Own(),
        DataLoader(Subset(data, range(48)), batch_size=16, shuffle=True),
        DataLoader(data, sampler=chosen),
        validation=DataLoader(data, shuffle=True),
    )
    again = bs.evaluate(tmp_path / "run", Own(), DataLoader(data, sampler=chosen))
    assert again["n"] == 4


class Stream(IterableDataset):
    def __iter__(self):
        yield from (Points()[i] for i in range(64))


class Twos(list):
    def __init__(self):
        super().__init__([[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: DataLoader(Stream(), batch_size=8), "IterableDataset, which cannot be resumed"),
        (lambda: DataLoader(Points(), batch_sampler=Twos()), "a batch_sampler of its own"),
        (lambda: DataLoader(Points(), batch_size=None), "no batch size"),
        (
            lambda: DataLoader(Points(), sampler=DistributedSampler(Points(), 1, 0)),
            "DistributedSampler; leave it out",
        ),
    ],
)
def test_loaders_that_cannot_be_resumed_are_refused(tmp_path, loader, words):
    with pytest.raises(RunError, match=words):
        fit(own(), tmp_path / "run", Own(), loader())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": WeightedRandomSampler([1.0] * 32, 32)},
        {"drop_last": True},
    ],
)
def test_test_loaders_that_visit_other_samples_each_time_are_refused(tmp_path, options):
    loader = DataLoader(Points(32), batch_size=5, **options)
    with pytest.raises(RunError, match="must visit the same samples each time"):
        fit(own(), tmp_path / "run", Own(), Points(), loader)


def test_a_loader_with_processes_reads_the_same(tmp_path):
    def run(name, **options):
        loader = DataLoader(Points(), batch_size=16, shuffle=True, **options)
        fit(small(epochs=1), tmp_path / name, started(), loader)
        return weights(tmp_path / name)

    assert same(run("a"), run("b", num_workers=1))
    assert Run.open(tmp_path / "b").recipe().workers == 1


# ---- balanced sampling ---------------------------------------------------------------------------

RARE = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)


def test_balanced_sampling_draws_every_class_equally_often():
    drawn = RARE[balanced(RARE, torch.Generator().manual_seed(0))]
    counts = torch.bincount(drawn).tolist()
    assert sum(counts) == 1000
    # 1000 draws with probability 1/3: five standard deviations are 75
    assert all(abs(n - 1000 / 3) < 75 for n in counts)


class Targets(Points):
    """As in torchvision; reading a sample fails."""

    def __init__(self):
        self.targets = [1, 0, 1]
        self.n = 3

    def __getitem__(self, i):
        raise AssertionError


def test_labels_are_taken_from_where_the_data_set_has_them():
    split = bs.data.load("digits").validation
    assert torch.equal(labels_of(split), torch.from_numpy(split.y))
    pairs = TensorDataset(torch.zeros(4, 2), torch.tensor([3, 1, 0, 2]))
    assert labels_of(pairs).tolist() == [3, 1, 0, 2]
    assert labels_of(Subset(Subset(pairs, [3, 0, 1]), [0, 1])).tolist() == [2, 3]
    assert labels_of(Targets()).tolist() == [1, 0, 1]
    assert labels_of(Points(5)).tolist() == [0, 1, 0, 1, 0]


def test_a_recipe_samples_balanced_and_resumes(tmp_path):
    recipe = tiny(sampling="balanced", checkpoint_seconds=0)
    fit(recipe, tmp_path / "whole")
    with pytest.raises(Stop):
        fit(recipe, tmp_path / "parts", listen=stop_after(6))
    train.resume(tmp_path / "parts", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    fit(tiny(), tmp_path / "other")
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "other"))
    with pytest.raises(RecipeError, match="sampling must be shuffled or balanced, got often"):
        tiny(sampling="often")


# ---- class weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_cross_entropy_is_the_mean_over_samples(smoothing):
    """sum_c q_c w_c (-log p_c) with q = (1 - e) onehot + e / K, averaged over the samples."""
    torch.manual_seed(0)
    logits, y = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 2])
    w = (0.5, 2.0, 3.0)
    q = (1 - smoothing) * F.one_hot(y, 3).double() + smoothing / 3
    expected = -(q * torch.tensor(w, dtype=torch.float64) * logits.log_softmax(1)).sum(1).mean()
    found = bs.loss.of_logits(logits, y, smoothing, w)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    # probabilities as targets give the same
    soft = bs.loss.of_logits(logits, F.one_hot(y, 3).double(), smoothing, w)
    torch.testing.assert_close(soft, expected, rtol=1e-12, atol=0)
    o = logits.expand(4, 7, 3)
    torch.testing.assert_close(bs.loss.cross_entropy(o, y, smoothing, w), expected)
    torch.testing.assert_close(
        bs.loss.tet(o, y, lam=0.0, label_smoothing=smoothing, weight=w), expected
    )


@pytest.mark.parametrize("class_weights", ["balanced", (0.3, 4.0)])
def test_a_step_does_not_depend_on_its_parts(tmp_path, class_weights):
    """One step of SGD on all samples, without a norm."""
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 50 + [1] * 14)
    data = TensorDataset(torch.randn(64, 2, generator=generator), y)
    found = []
    for parts in (1, 4):
        recipe = small(
            class_weights=class_weights,
            optimizer="SGD(lr=0.1)",
            epochs=1,
            batch_size=64,
            accumulate=parts,
        )
        fit(recipe, tmp_path / f"{parts}", started(), data)
        found.append(weights(tmp_path / f"{parts}")["model.net.0.0.weight"])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)


def test_balanced_weights_are_stored_as_numbers(tmp_path):
    labels = torch.tensor([0] * 30 + [1] * 10)
    data = TensorDataset(torch.randn(40, 2), labels)
    fit(small(class_weights="balanced", epochs=1), tmp_path / "run", Own(), data)
    assert Run.open(tmp_path / "run").recipe().class_weights == (40 / (2 * 30), 40 / (2 * 10))
    with pytest.raises(RunError, match="class_weights has 3 weights and the model 2 outputs"):
        fit(small(class_weights=(1.0, 2.0, 3.0)), tmp_path / "b", Own(), data)
    for wrong in ("heavy", (-1.0, 2.0)):
        with pytest.raises(RecipeError, match="class_weights must be"):
            small(class_weights=wrong)


def test_weights_move_the_decision_towards_the_rare_class(tmp_path):
    """Two overlapping classes, 9 to 1: unweighted, the rare one is hardly ever predicted."""
    generator = torch.Generator().manual_seed(0)
    y = (torch.arange(400) % 10 == 0).long()
    x = torch.randn(400, 2, generator=generator) + 0.7 * y[:, None]
    data = TensorDataset(x, y)
    rates = {}
    for weight in ((), "balanced"):
        name = f"run{len(weight)}"
        fit(small(class_weights=weight), tmp_path / name, started(), data)
        network = bs.load(tmp_path / name, Own())
        rates[weight] = network(x[y == 1].expand(4, -1, 2)).argmax(1).float().mean().item()
    assert rates["balanced"] > rates[()] + 0.2
