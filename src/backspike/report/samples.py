"""The report section on a few test samples: their input, spikes and outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .chart import image
from .format import as_percent, group_names, time_groups
from .page import Image, Mark, Part, Section
from .run_data import Array, RunData, class_names, layer_names

MAX_SAMPLES = 6
MAX_RASTERS = 6  # per sample
MAX_FRAMES = 8
MAX_PIXELS = 128  # per side
ARRAYS = {
    "sample_x": Array("S frames *"),
    "sample_y": Array("S", "iu"),
    "sample_logits": Array("S T K"),
}


@dataclass(frozen=True)
class Answer:
    """One probability curve per class; paths: CSS class, SVG path of the line and of the dots."""

    title: list[str | Mark]
    alt: str
    steps: int
    paths: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Card:
    """One sample; frame_sizes and step_sizes: timesteps per frame and per mark of the ruler."""

    title: list[str | Mark]
    still: Image | None
    frames: list[Image]
    frame_sizes: list[int]
    rasters: list[tuple[str, Image]]
    answer: Answer | None
    steps: list[str]
    step_sizes: list[int]


def samples(run: RunData) -> Section:
    count = min(len(run.arrays.get("sample_y", ())), MAX_SAMPLES)
    cards = [_card(run, index) for index in range(count)]
    text: list[str | Mark] = [
        "From top to bottom: the input, the spikes of up to 64 neurons of each layer (one row per "
        "neuron, one column per timestep), and the probability of each class after each timestep. "
        "Time runs from left to right."
    ]
    if run.arrays.get("sample_x", np.zeros(3)).shape[2:3] == (2,):
        text += [" Events: ", Mark("span", "orange", "on"), " where it became brighter and "]
        text += [Mark("span", "blue", "off"), " where it became darker."]
    return Section("samples", "A few test samples", text, [Part("samples", cards)] * bool(cards))


def _card(run: RunData, index: int) -> Card:
    arrays, names = run.arrays, class_names(run)
    true = int(arrays["sample_y"][index])
    title: list[str | Mark] = [_at(names, true)]
    frames: list[Image] = []
    sizes: list[int] = []
    answer, steps = None, 0
    if "sample_x" in arrays:
        what = f"sample {index + 1}, true class {_at(names, true)}"
        frames, sizes = _input(arrays["sample_x"][index], what)
    if "sample_logits" in arrays:
        logits = np.nan_to_num(arrays["sample_logits"][index].astype(float))
        answered, steps = int(logits[-1].argmax()), len(logits)
        wrong = Mark("span", f"predicted as {_at(names, answered)}", "wrong")
        title += [" ", wrong if answered != true else Mark("span", "correct", "right")]
        answer = _answer(logits, true, names)
    groups = time_groups(steps, MAX_FRAMES)
    return Card(
        title=title,
        still=frames[0] if frames and not sizes else None,
        frames=frames if sizes else [],
        frame_sizes=sizes,
        rasters=[*_input_raster(run, index), *_rasters(run, index)],
        answer=answer,
        steps=group_names(groups),
        step_sizes=[len(group) for group in groups],
    )


def _at(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _input(x: np.ndarray, what: str) -> tuple[list[Image], list[int]]:
    """The frames of one sample `[T, C, H, W]` and the number of timesteps that each shows.

    A constant input gives one picture and no sizes.
    """
    if x.ndim != 4 or not x.size:
        return [], []
    x = np.nan_to_num(x.astype(np.float32))
    step = math.ceil(max(x.shape[2:]) / MAX_PIXELS)
    x = x[:, :, ::step, ::step]
    if (x == x[:1]).all():
        return [image(_pixels(x[:1])[0], f"Input of {what}")], []
    groups = time_groups(len(x), MAX_FRAMES)
    frames = _pixels(np.stack([x[group].mean(0) for group in groups]))
    pictures = [
        image(f, f"Input of {what}, timestep {name}")
        for f, name in zip(frames, group_names(groups))
    ]
    return pictures, [len(group) for group in groups]


def _pixels(x: np.ndarray) -> np.ndarray:
    """Converts frames `[T, C, H, W]` of any scale to RGBA `[T, H, W, 4]` uint8.

    Two channels are ON and OFF events on a transparent background.
    """
    if x.shape[1] == 2:
        on, off = np.sqrt(np.clip(x / (x.max() or 1), 0, 1)).swapaxes(0, 1)
        share = (on / np.maximum(on + off, 1e-6))[..., None]
        colour = share * np.array([232, 120, 30]) + (1 - share) * np.array([52, 134, 220])
        return np.concatenate([colour, 255 * np.maximum(on, off)[..., None]], -1).astype(np.uint8)
    x = (x - x.min()) / ((x.max() - x.min()) or 1)
    colour = x if x.shape[1] == 3 else x.mean(1, keepdims=True).repeat(3, 1)
    opaque = np.ones_like(colour[:, :1])
    return (255 * np.concatenate([colour, opaque], 1)).astype(np.uint8).transpose(0, 2, 3, 1)


def _rasters(run: RunData, index: int) -> list[tuple[str, Image]]:
    names = layer_names(run)
    known = [i for i in range(len(names)) if f"sample_spikes_{i}" in run.arrays]
    chosen = sorted(
        {known[round(i)] for i in np.linspace(0, len(known) - 1, min(len(known), MAX_RASTERS))}
    )
    return [(names[i], _raster(run.arrays[f"sample_spikes_{i}"][index], names[i])) for i in chosen]


def _input_raster(run: RunData, index: int) -> list[tuple[str, Image]]:
    """An input without height and width, `[T, C]`: one row per value, one column per timestep."""
    x = run.arrays["sample_x"][index] if "sample_x" in run.arrays else np.zeros(0)
    if x.ndim != 2 or not x.size:
        return []
    x = np.nan_to_num(x.astype(np.float32))
    first = np.arange(0, x.shape[1], math.ceil(x.shape[1] / MAX_PIXELS))
    shown = np.maximum.reduceat(x - x.min(), first, axis=1)
    pixels = np.zeros((*shown.T.shape, 4), np.uint8)
    pixels[..., 3] = 255 * (shown.T / (shown.max() or 1))
    alt = f"Input of sample {index + 1}, {x.shape[1]} values at each of {len(x)} timesteps"
    return [("input", image(pixels, alt, "ink raster"))]


def _raster(spikes: np.ndarray, name: str) -> Image:
    """Spikes `[T, N]` as a picture with one row per neuron."""
    pixels = np.zeros((*spikes.T.shape, 4), np.uint8)
    pixels[..., 3] = 255 * (spikes.T > 0)
    rate = as_percent(float((spikes > 0).mean()))
    alt = f"Spikes of {spikes.shape[1]} neurons of layer {name}, firing rate {rate}"
    return image(pixels, alt, "ink raster")


def _answer(logits: np.ndarray, true: int, names: Sequence[str]) -> Answer:
    """Probabilities after each timestep, from logits `[T, K]`.

    Shows the ten classes with the largest probability at any time, and marks the true and the
    predicted one.
    """
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    answer = int(p[-1].argmax())
    order = [k for k in np.argsort(p.max(0))[-10:] if k not in (true, answer)]
    order += [answer] * (answer != true) + [true] * (0 <= true < p.shape[1])
    kinds, styles = {answer: "answer", true: "true"}, {answer: "wrong", true: "right"}
    title: list[str | Mark] = ["probability after the last timestep"]
    for k in order[:-3:-1]:
        if k in styles:
            title += [" ", Mark("b", f"{_at(names, k)}: {as_percent(p[-1, k], 0)}", styles[k])]
    ends = "; ".join(f"{_at(names, k)} {as_percent(p[-1, k], 0)}" for k in order[::-1][:3])
    alt = f"Probability over time; at the end: {ends}"
    return Answer(title, alt, len(p), [(kinds.get(k, "other"), *_path(p[:, k])) for k in order])


def _path(p: np.ndarray) -> tuple[str, str]:
    """SVG paths: a line through the middles of the timesteps, and dots.

    The dots are strokes of zero length with round caps, which stay round when stretched.
    """
    points = [(t + 0.5, 0.97 - 0.94 * value) for t, value in enumerate(p)]
    line = "M" + "L".join(f"{x:g} {y:.3f}" for x, y in points)
    dots = "".join(f"M{x:g} {y:.3f}h0" for x, y in points) if len(p) <= 16 else ""
    return line, dots
