"""A simulated event camera: three saccades across a still image become a recording.

The image moves before a sensor whose pixels report each change of the log intensity by a threshold.
Pixels differ, and emit noise events. Movement, optics and sensor are those of N-MNIST (Orchard et
al. 2015, doi:10.3389/fnins.2015.00437), as measured on its recordings; docs/simulated-events.md
compares the two.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .formats import Events

# The centre of the image in N-MNIST, every 6 ms, in pixels right of and below the sensor's centre.
_X = (
    *(-2.5, -2.51, -2.54, -2.59, -2.62, -2.65, -2.67),
    *(-2.65, -2.59, -2.38, -1.95, -1.57, -1.18, -0.99),
    *(-0.91, -0.86, -0.8, -0.73, -0.64, -0.54, -0.41, -0.17, 0.22, 0.62, 1.05, 1.34, 1.48, 1.61),
    *(1.86, 2.11, 2.29, 2.41, 2.51, 2.64, 2.78, 2.93, 3.02, 3.06, 3.0, 2.37, 1.77, 1.16),
    *(0.53, -0.17, -0.85, -1.43, -1.81, -2.11, -2.36, -2.51, -2.58, -2.59, -2.59),
)
_Y = (
    *(-1.8, -1.76, -1.63, -1.39, -1.06, -0.6, 0.03, 0.75, 1.55, 2.31, 2.9, 3.33, 3.59, 3.68),
    *(3.72, 3.69, 3.6, 3.51, 3.45, 3.44, 3.44, 3.34, 3.06, 2.57, 1.92, 1.19, 0.45, -0.26),
    *(-0.91, -1.36, -1.59, -1.69, -1.68, -1.6, -1.54),
    *(-1.53, -1.56, -1.58, -1.6, -1.61, -1.55, -1.53),
    *(-1.55, -1.59, -1.64, -1.71, -1.79, -1.85, -1.87, -1.86, -1.84, -1.83, -1.82),
)
SACCADES = tuple((6.0 * i, x, y) for i, (x, y) in enumerate(zip(_X, _Y)))
# ITU-R BT.709
LUMA = np.array([0.2126, 0.7152, 0.0722], np.float32)


@dataclass(frozen=True)
class Camera:
    """Sensor, optics and movement. Lengths in sensor pixels, times in milliseconds.

    size: the sensor has size x size pixels. side: the longer side of the image on the sensor; its
    edge pixels are repeated beyond it. negative: exchange light and dark, because N-MNIST shows
    dark digits on a light screen. contrast: white is 1 + contrast times as bright as black.
    blur: a point of the image affects sensor pixels up to 3/2 blur away. threshold: the change of
    log intensity that causes an event; it varies log-normally by `mismatch` between pixels and by
    `drift` between recordings. noise: noise events per pixel and second, of which the fraction
    `noise_on` is ON. path: (time, x, y), the centre of the image relative to the sensor's, linearly
    interpolated. The recording lasts `duration` and is sampled every `step`.
    """

    size: int = 34
    side: float = 28.0
    negative: bool = True
    contrast: float = 4.0
    blur: float = 1.2
    threshold: float = 0.234
    mismatch: float = 0.12
    drift: float = 0.0
    noise: float = 0.34
    noise_on: float = 0.86
    path: tuple[tuple[float, float, float], ...] = SACCADES
    duration: float = 309.0
    step: float = 3.0


def record(
    image: np.ndarray, seed: int = 0, index: int = 0, camera: Camera | None = None
) -> Events:
    """Records one image, uint8 [H, W], [1, H, W] or RGB [3, H, W] (by its luma).

    Events are sorted by time. (seed, index) determines all random values: the same pair gives the
    same recording on the same machine and NumPy version.
    """
    return record_all(image[None], seed, [index], camera)[0]


def record_all(
    images: np.ndarray, seed: int, indices: Sequence[int], camera: Camera | None = None
) -> list[Events]:
    """Records images [N, ...] like `record`; a dozen together take half the time."""
    camera = camera or Camera()
    pixels, N = camera.size**2, len(images)
    grey = _luma(images)
    time, rows, columns = _view(camera, *grey.shape[1:])
    seen = rows[:, None] @ (1 - grey if camera.negative else grey) @ columns[:, None]
    light = np.log1p(np.multiply(camera.contrast, seen, out=seen), out=seen).reshape(
        len(time), N * pixels
    )
    generators = [np.random.default_rng((seed, index)) for index in indices]
    threshold = np.concatenate([_thresholds(camera, rng) for rng in generators])
    start = np.concatenate([rng.uniform(-1, 1, pixels) for rng in generators]).astype(np.float32)
    t, pixel, on = _crossings(light, time, threshold, start)
    order = np.argsort(pixel // pixels, kind="stable")
    ends = np.cumsum(np.bincount(pixel // pixels, minlength=N))
    own = np.split(order, ends[:-1])
    return [
        _with_noise(camera, float(time[-1]), t[i], pixel[i] % pixels, on[i], rng)
        for i, rng in zip(own, generators)
    ]


def _luma(images: np.ndarray) -> np.ndarray:
    """Luma in 0..1, float32 [N, H, W]."""
    channels = images.astype(np.float32).reshape(len(images), -1, *images.shape[-2:]) / 255
    return (
        np.einsum("c,nchw->nhw", LUMA, channels)
        if channels.shape[1] == 3
        else channels.mean(axis=1)
    )


def _thresholds(camera: Camera, rng: np.random.Generator) -> np.ndarray:
    spread = camera.drift * rng.standard_normal() + camera.mismatch * rng.standard_normal(
        camera.size**2
    )
    return (camera.threshold * np.exp(spread)).astype(np.float32)


def _with_noise(
    camera: Camera,
    end: float,
    t: np.ndarray,
    pixel: np.ndarray,
    on: np.ndarray,
    rng: np.random.Generator,
) -> Events:
    """One recording: its threshold crossings and noise events, sorted by time."""
    pixels = camera.size**2
    extra = rng.poisson(camera.noise * pixels * end / 1000)
    t = np.concatenate([t, rng.uniform(0, end, extra)])
    pixel = np.concatenate([pixel, rng.integers(0, pixels, extra)])
    on = np.concatenate([on, rng.random(extra) < camera.noise_on])
    order = np.argsort(t, kind="stable")
    y, x = np.divmod(pixel[order], camera.size)
    return Events(
        x.astype(np.uint16),
        y.astype(np.uint16),
        (t[order] * 1000).astype(np.int64),
        on[order].astype(np.uint8),
    )


def _crossings(
    light: np.ndarray, time: np.ndarray, threshold: np.ndarray, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Time, pixel and polarity of all threshold crossings.

    light [K, pixels], time [K], threshold and start [pixels]. A pixel remembers a level. Whenever
    the light is one threshold above or below it, the pixel emits an event and the level moves by
    one threshold. Light is linear between samples. The first level is `start` thresholds (-1 to 1)
    above the light.
    """
    level = light[0] + threshold * start
    rate = 1 / threshold
    counts = np.zeros_like(light)
    levels = np.empty_like(light)
    for k in range(1, len(light)):
        levels[k] = level
        np.subtract(light[k], level, out=counts[k])
        np.multiply(counts[k], rate, out=counts[k])
        np.trunc(counts[k], out=counts[k])
        level += counts[k] * threshold
    fired = np.flatnonzero(counts.reshape(-1) != 0)
    times = np.abs(counts.reshape(-1)[fired]).astype(np.int64)
    step, pixel = np.divmod(np.repeat(fired, times), len(threshold))
    # 1, 2, ... within a step
    nth = np.arange(1, times.sum() + 1) - np.repeat(np.cumsum(times) - times, times)
    on = counts[step, pixel] > 0
    reached = levels[step, pixel] + nth * np.where(on, threshold[pixel], -threshold[pixel])
    before = light[step - 1, pixel]
    change = light[step, pixel] - before
    share = np.clip((reached - before) / np.where(change == 0, 1, change), 0, 1)
    return time[step - 1] + share * (time[step] - time[step - 1]), pixel, on


@functools.lru_cache(maxsize=4)
def _view(camera: Camera, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample times [K] in ms, and matrices: rows @ image @ columns is the view [K, size, size]."""
    time = np.linspace(0, camera.duration, 1 + round(camera.duration / camera.step))
    when, x, y = np.array(camera.path).T
    # size of an image pixel on the sensor
    pixel = camera.side / max(height, width)
    rows = _interpolation(np.interp(time, when, y), camera, height, pixel)
    columns = _interpolation(np.interp(time, when, x), camera, width, pixel)
    return time, rows, columns.transpose(0, 2, 1)


def _interpolation(centre: np.ndarray, camera: Camera, n: int, pixel: float) -> np.ndarray:
    """The weights of n image pixels in each sensor pixel, which sum to 1: [K, size, n].

    The kernel is a quadratic B-spline, as wide as the blur or an image pixel: it smooths when
    enlarging and averages when shrinking.
    """
    offset = np.arange(camera.size) + 0.5 - camera.size / 2 - centre[:, None]
    # in image pixels
    where = np.clip(offset / pixel + (n - 1) / 2, 0, n - 1)
    a = np.abs(where[:, :, None] - np.arange(n)) / max(camera.blur / pixel, 1.0)
    share = np.where(a < 0.5, 0.75 - a**2, np.clip(1.5 - a, 0, None) ** 2 / 2)
    return (share / share.sum(axis=2, keepdims=True)).astype(np.float32)
