"""What observers see of neurons whose membrane is transformed for the kernels of LIF."""

import pytest
import torch

from backspike import kernel
from backspike.neuron.hooks import watch
from backspike.neuron.lif import Watcher
from backspike.neuron.shifted import DelayedReset, DelayedResetCuba, Shifted, ShiftedCuba

NEURONS = {
    "shifted": Shifted(2.0, v_reset=-0.2, scale=1.5, shift=0.3, start=0.4),
    "shifted, synapse": ShiftedCuba(2.0, v_reset=-0.2, scale=1.5, shift=0.3, start=0.4),
    "delayed": DelayedReset(4.0, v_threshold=0.5, decay_input=False),
    "delayed, learned": DelayedReset(4.0, v_threshold=0.5, learn=("tau", "threshold")),
    "delayed, synapse": DelayedResetCuba(4.0, v_threshold=0.5, decay_input=False),
}


@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_moments_are_those_of_the_recorded_membrane(neuron):
    seen = []
    stop = watch(neuron, Watcher(lambda _, *found: seen.append(found), True, True))
    neuron.double()(torch.rand(5, 6, 3, 2, dtype=torch.float64))
    stop()
    ((out, moments),) = seen
    want = kernel.Moments(out.membrane.mean((1, 3)), (out.membrane**2).mean((1, 3)))
    torch.testing.assert_close(tuple(moments), tuple(want), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("neuron", NEURONS.values(), ids=NEURONS)
def test_the_threshold_is_that_of_the_recorded_membrane(neuron):
    seen = []
    stop = watch(neuron, Watcher(lambda _, out, moments: seen.append(out), True))
    neuron.double()(torch.rand(9, 6, 3, dtype=torch.float64))
    stop()
    theta = neuron.constants().v_threshold
    assert 0 < seen[0].spikes.mean() < 1
    assert torch.equal(seen[0].spikes, (seen[0].membrane >= theta).double())
