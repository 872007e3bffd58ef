"""The results of sparse convolutions, for tests that compare threads and processor levels."""

from backspike.kernel.cpu.conv import Events
from backspike.kernel.pack import pack


def all_results(cases):
    return [
        result
        for x, bits, weight, bias, g, geometry in cases
        for events in [Events(pack(x).codes, bits, x.shape)]
        for result in (
            events.convolved(weight, bias, geometry),
            events.weight_gradient(g, weight, geometry),
        )
    ]
