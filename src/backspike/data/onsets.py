"""Sound as spikes: a filter bank whose bands spike where their loudness crosses a level.

1. Every `hop` seconds, the power spectrum of the last `window` seconds, multiplied by a Hann window
   and padded to twice their length. Before and after the recording there is silence.
2. Its power in triangular bands that are equally wide on the mel scale,
   mel(f) = 2595 log10(1 + f / 700) (D. O'Shaughnessy 1987, Speech Communication, p. 150), between
   `low` hertz and half the sampling rate; a triangle ends at the centres of its neighbours.
3. In decibels, limited to `depth` below the loudest value of the recording, so that the loudness of
   a recording has no effect, and connected by straight lines over time.
4. Levels lie `step` decibels apart in each band, shifted by a random part of a step (`seed`), so
   that the bands do not spike together. Crossing a level upwards (an onset) is an event of channel
   m, crossing it downwards of channel bands + m.

A recording begins and ends in silence, so both channels of a band have equally many events.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from ..errors import DataError
from .formats import Events


@dataclass(frozen=True)
class Onsets:
    """Encodes sound, `onsets(sound, rate)`: a sound [N] becomes events of 2 x bands channels.

    bands: their number. hop, window: seconds. depth, step: decibels. low: Hz.
    """

    bands: int = 40
    hop: float = 0.005
    window: float = 0.025
    low: float = 60.0
    depth: float = 48.0
    step: float = 6.0
    seed: int = 0

    @property
    def channels(self) -> int:
        """Two for each band: upwards, downwards."""
        return 2 * self.bands

    def __call__(self, sound: np.ndarray, rate: int) -> Events:
        """Events of a sound [N] with `rate` samples a second; x is the channel.

        Raises DataError for a rate too low for the bands.
        """
        return self.crossings(self.loudness(sound, rate))

    def loudness(self, sound: np.ndarray, rate: int) -> np.ndarray:
        """Steps above the lower limit, float64 [frames, bands]; frame k ends after k hops."""
        hop, window = round(self.hop * rate), round(self.window * rate)
        filters = mel_filters(self.bands, 2 * window, rate, self.low)
        silence = np.zeros(window)
        padded = np.concatenate([silence, sound, silence, np.zeros(hop)])
        frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
        spectrum = np.fft.rfft(frames * np.hanning(window), 2 * window)
        power = np.abs(spectrum) ** 2 @ filters.T
        loudest = power.max() or 1.0
        decibels = 10 * np.log10(np.maximum(power / loudest, 10 ** (-self.depth / 10)))
        return (decibels + self.depth) / self.step

    def crossings(self, loudness: np.ndarray) -> Events:
        """The level crossings of the lines between frames, [frames, bands], sorted by time."""
        # levels are at whole numbers; shifted by less than 1, silence stays below all of them
        shift = np.random.PCG64(self.seed).random_raw(self.bands) / 2**64
        y = loudness - shift
        before, after = y[:-1], y[1:]
        # levels at or below the line
        below = np.floor(y).astype(np.int64)
        count = np.abs(np.diff(below, axis=0))
        k, m = np.nonzero(count)
        k, m = np.repeat([k, m], count[k, m], axis=1)
        new = np.r_[True, (np.diff(k) != 0) | (np.diff(m) != 0)] if len(k) else np.zeros(0, bool)
        nth = np.arange(len(k)) - np.maximum.accumulate(np.where(new, np.arange(len(k)), 0))
        up = after[k, m] > before[k, m]
        level = np.where(up, below[k, m] + 1 + nth, below[k, m] - nth)
        part = (level - before[k, m]) / (after[k, m] - before[k, m])
        t = np.floor((k + part) * (self.hop * 1e6)).astype(np.int64)
        channel = np.where(up, m, self.bands + m)
        order = np.lexsort((channel, t))
        zeros = np.zeros(len(t), np.uint16)
        return Events(channel[order].astype(np.uint16), zeros, t[order], zeros.astype(np.uint8))


@cache
def mel_filters(bands: int, n: int, rate: int, low: float) -> np.ndarray:
    """Triangles of height 1 over the frequencies of a spectrum of n samples, [bands, n // 2 + 1].

    Raises DataError if a band has no frequency of the spectrum.
    """
    too_few = DataError(f"{rate} samples a second are too few for {bands} bands")
    if rate <= 2 * low:
        raise too_few
    mel_low, mel_high = (2595 * np.log10(1 + f / 700) for f in (low, rate / 2))
    corners = 700 * (10 ** (np.linspace(mel_low, mel_high, bands + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(n, 1 / rate)
    left, centre, right = (corners[i : i + bands, None] for i in range(3))
    filters = np.minimum(
        (frequencies - left) / (centre - left), (right - frequencies) / (right - centre)
    )
    filters = np.maximum(filters, 0)
    if not filters.any(1).all():
        raise too_few
    return filters
