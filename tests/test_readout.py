"""Readouts: TWO against hand calculation over several epochs, saved and restored in one."""

import pytest
import torch

from backspike import readout


def outputs(hits, B=4, K=3):
    """o `[T, B, K]` and y `[B]` such that timestep t is correct for the first hits[t] samples."""
    y = torch.arange(B) % K
    o = torch.zeros(len(hits), B, K)
    for t, n in enumerate(hits):
        answer = torch.where(torch.arange(B) < n, y, (y + 1) % K)
        o[t, torch.arange(B), answer] = 1.0 + t
    return o, y


def epoch(two, *batches):
    for hits in batches:
        two.observe(*outputs(hits))
    two.end_epoch()
    return two.weights.tolist()


def test_mean_and_last():
    o = torch.tensor([[[1.0, 2.0]], [[3.0, -4.0]], [[8.0, 5.0]]])
    assert readout.Mean()(o).tolist() == [[4.0, 1.0]]
    assert readout.Last()(o).tolist() == [[8.0, 5.0]]


def test_weights_of_one_are_the_plain_mean():
    o = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(readout.TWO(5)(o), o.mean(0), rtol=1e-14, atol=1e-15)


def test_two_matches_hand_calculation():
    """T = 2, beta = 1/2, from epoch 1 on."""
    two = readout.TWO(2, beta=0.5, start_epoch=1)
    assert epoch(two, [4, 2]) == [1, 1]  # epoch 0: before start_epoch
    assert two.seen == 0
    assert not two.correct.any()
    assert epoch(two, [4, 1], [2, 1]) == [1.25, 0.75]  # acc 3/4, 1/4; acc / mean = 3/2, 1/2
    assert epoch(two, [1, 3]) == [0.875, 1.125]  # target 1/2, 3/2
    assert epoch(two, [0, 0]) == [0.875, 1.125]  # nothing correct: w is unchanged
    assert epoch(two) == [0.875, 1.125]  # nothing observed: w is unchanged
    o = torch.tensor([[[2.0, 4.0]], [[8.0, 0.0]]])
    assert two(o).tolist() == [[(0.875 * 2 + 1.125 * 8) / 2, 0.875 * 4 / 2]]


def test_the_defaults_match_the_paper():
    """beta = 0.7, first update at the end of the sixth epoch."""
    two = readout.TWO(2)
    for _ in range(5):
        assert epoch(two, [4, 0]) == [1, 1]
    assert epoch(two, [4, 0]) == pytest.approx([0.7 + 0.3 * 2, 0.7])


def test_weights_have_mean_one():
    two = readout.TWO(4, start_epoch=0)
    for hits in ([4, 1, 2, 3], [0, 0, 0, 1], [2, 4, 4, 1]):
        weights = epoch(two, hits)
        assert sum(weights) / 4 == pytest.approx(1, abs=1e-6)
        assert len(set(weights)) > 1


def test_cumulative_scores_the_running_sum():
    """For one sample of class 1, timestep 1 alone is correct, but the sum only at timestep 2."""
    o, y = torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 3.0]]]), torch.tensor([1])
    alone, running = readout.TWO(3), readout.TWO(3, cumulative=True)
    for two in (alone, running):
        two.observe(o, y)
    assert alone.correct.tolist() == [0, 1, 1]
    assert running.correct.tolist() == [0, 0, 1]


def test_the_state_dict_restores_the_middle_of_an_epoch():
    straight, first = readout.TWO(2, start_epoch=1), readout.TWO(2, start_epoch=1)
    for two in (straight, first):
        epoch(two, [4, 2])
        epoch(two, [3, 1])
        two.observe(*outputs([4, 0]))
    resumed = readout.TWO(2, start_epoch=1)
    resumed.load_state_dict(first.state_dict())
    assert epoch(resumed, [1, 3]) == epoch(straight, [1, 3])
    assert resumed.epoch == 3


def test_weights_are_not_learned_and_observe_builds_no_graph():
    two = readout.TWO(2, start_epoch=0)
    o, y = outputs([4, 1])
    o.requires_grad_()
    two.observe(o, y)
    two.end_epoch()
    assert not list(two.parameters())
    two(o).sum().backward()
    for t, w in enumerate(two.weights.tolist()):
        assert o.grad[t].flatten().tolist() == pytest.approx([w / 2] * 12)


def test_forward_does_not_count():
    two = readout.TWO(2)
    two(outputs([4, 2])[0])
    assert two.seen == 0
    assert not two.correct.any()


def test_logits_keep_the_dtype():
    assert readout.TWO(2)(torch.zeros(2, 3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: readout.TWO(0), "T must be at least 1, got 0"),
        (lambda: readout.TWO(2, beta=1.5), r"beta must lie in \[0, 1\], got 1.5"),
        (lambda: readout.TWO(2, start_epoch=-1), "start_epoch must not be negative"),
        (lambda: readout.TWO(3)(torch.zeros(2, 4, 5)), r"T = 3, got shape \[2, 4, 5\]"),
        (lambda: readout.TWO(3)(torch.zeros(3, 4)), r"T = 3, got shape \[3, 4\]"),
        (
            lambda: readout.TWO(3).observe(torch.zeros(2, 4, 5), torch.zeros(4)),
            r"got shape \[2, 4, 5\]",
        ),
        (
            lambda: readout.TWO(3).observe(torch.zeros(3, 4, 5), torch.zeros(1)),
            r"y \[B\] with B = 4, got shape \[1\]",
        ),
        (
            lambda: readout.TWO(3).observe(torch.zeros(3, 4, 5), torch.zeros(4, 5)),
            r"y \[B\] with B = 4, got shape \[4, 5\]",
        ),
    ],
)
def test_errors(call, text):
    with pytest.raises(ValueError, match=text):
        call()
