"""Report sections: a few test samples, with their input, spikes and outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .chart import image
from .html import (
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_RASTERS,
    MAX_SAMPLES,
    Section,
    as_percent,
    columns,
    escape,
    group_names,
    time_groups,
)
from .read import RunData, class_names, layer_names


def samples(run: RunData) -> Section:
    count = min(len(run.arrays.get("sample_y", ())), MAX_SAMPLES)
    cards = "".join(_sample(run, index) for index in range(count))
    text = (
        "From top to bottom: what the network sees, the spikes of up to 64 neurons of each layer (a row is a neuron, a column "
        "a timestep), and how sure it is of each class after each step. Time runs from left to right through all of them."
    )
    if run.arrays.get("sample_x", np.zeros(3)).shape[2:3] == (2,):
        text += ' Events: <span class="on">orange</span> where it became brighter, <span class="off">blue</span> where darker.'
    return Section(
        "samples", "A few test samples", text, cards and f'<div class="samples">{cards}</div>'
    )


def _sample(run: RunData, index: int) -> str:
    arrays, names = run.arrays, class_names(run)
    true = int(arrays["sample_y"][index])
    title, parts = f"{escape(_at(names, true))}", []
    if "sample_logits" in arrays:
        logits = np.nan_to_num(arrays["sample_logits"][index].astype(float))
        answer = int(logits[-1].argmax())
        wrong = f'<span class="wrong">taken for {escape(_at(names, answer))}</span>'
        title += " " + (wrong if answer != true else '<span class="right">recognised</span>')
        parts.append(_answer(logits, true, names))
    if "sample_x" in arrays:
        parts.insert(
            0,
            _input(arrays["sample_x"][index], f"sample {index + 1}, true class {_at(names, true)}"),
        )
    parts[1:1] = _rasters(run, index)
    groups = time_groups(
        arrays["sample_logits"].shape[1] if "sample_logits" in arrays else 0, MAX_FRAMES
    )
    ruler = "".join(f"<span>{step}</span>" for step in group_names(groups))
    parts.append(f'<div class="ruler" {columns(groups)}>{ruler}</div>')
    return f'<article id="fig-sample-{index}"><h3>{title}</h3>{"".join(parts)}</article>'


def _at(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _input(x: np.ndarray, what: str) -> str:
    """The frames of one sample `[T, C, H, W]`: one picture if nothing moves, else a strip along the time axis."""
    if x.ndim != 4 or not x.size:
        return ""
    x = np.nan_to_num(x.astype(np.float32))
    step = math.ceil(max(x.shape[2:]) / MAX_PIXELS)
    x = x[:, :, ::step, ::step]
    if (x == x[:1]).all():
        return f'<div class="still">{image(_pixels(x[:1])[0], f"Input of {what}")}</div>'
    groups = time_groups(len(x), MAX_FRAMES)
    frames = _pixels(np.stack([x[group].mean(0) for group in groups]))
    pictures = [
        image(f, f"Input of {what}, step {name}") for f, name in zip(frames, group_names(groups))
    ]
    return f'<div class="strip" {columns(groups)}>{"".join(pictures)}</div>'


def _pixels(x: np.ndarray) -> np.ndarray:
    """Frames `[T, C, H, W]` of any scale to `[T, H, W, 4]` uint8; two channels are events, ON and OFF, on nothing."""
    if x.shape[1] == 2:
        on, off = np.sqrt(np.clip(x / (x.max() or 1), 0, 1)).swapaxes(0, 1)
        share = (on / np.maximum(on + off, 1e-6))[..., None]
        colour = share * np.array([232, 120, 30]) + (1 - share) * np.array([52, 134, 220])
        return np.concatenate([colour, 255 * np.maximum(on, off)[..., None]], -1).astype(np.uint8)
    x = (x - x.min()) / ((x.max() - x.min()) or 1)
    colour = x if x.shape[1] == 3 else x.mean(1, keepdims=True).repeat(3, 1)
    opaque = np.ones_like(colour[:, :1])
    return (255 * np.concatenate([colour, opaque], 1)).astype(np.uint8).transpose(0, 2, 3, 1)


def _rasters(run: RunData, index: int) -> list[str]:
    names = layer_names(run)
    known = [i for i in range(len(names)) if f"sample_spikes_{i}" in run.arrays]
    chosen = sorted(
        {known[round(i)] for i in np.linspace(0, len(known) - 1, min(len(known), MAX_RASTERS))}
    )
    return [_raster(run.arrays[f"sample_spikes_{i}"][index], names[i]) for i in chosen]


def _raster(spikes: np.ndarray, name: str) -> str:
    """Spikes `[T, N]` as a picture, a row per neuron."""
    pixels = np.zeros((*spikes.T.shape, 4), np.uint8)
    pixels[..., 3] = 255 * (spikes.T > 0)
    rate = as_percent(float((spikes > 0).mean()))
    alt = f"Spikes of {spikes.shape[1]} neurons of layer {name}: {rate} of the places are spikes"
    return f'<div class="track"><h4>{escape(name)}</h4>{image(pixels, alt, "ink raster")}</div>'


def _answer(logits: np.ndarray, true: int, names: Sequence[str]) -> str:
    """Probabilities after each step, `[T, K]`: the ten classes that ever come closest, the true and the answered one marked."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    answer = int(p[-1].argmax())
    order = [k for k in np.argsort(p.max(0))[-10:] if k not in (true, answer)]
    order += [answer] * (answer != true) + [true] * (0 <= true < p.shape[1])
    paths = "".join(
        _path(p[:, k], "true" if k == true else "answer" if k == answer else "other") for k in order
    )
    ends = (
        [f'<b class="right">{escape(_at(names, true))}: {as_percent(p[-1, true], 0)}</b>']
        if order[-1] == true
        else []
    )
    ends += (
        [f'<b class="wrong">{escape(_at(names, answer))}: {as_percent(p[-1, answer], 0)}</b>']
        if answer != true
        else []
    )
    alt = "; ".join(f"{_at(names, k)} {as_percent(p[-1, k], 0)}" for k in order[::-1][:3])
    picture = (
        f'<svg role="img" aria-label="Probability over time, at the end: {escape(alt)}" viewBox="0 0 {len(p)} 1" '
        f'preserveAspectRatio="none">{paths}</svg>'
    )
    return f'<div class="track answer"><h4>probability after the last step {" ".join(ends)}</h4>{picture}</div>'


def _path(p: np.ndarray, kind: str) -> str:
    """A line through the middles of the steps, and dots: strokes of no length with round ends keep round when stretched."""
    points = [(t + 0.5, 0.97 - 0.94 * value) for t, value in enumerate(p)]
    line = "M" + "L".join(f"{x:g} {y:.3f}" for x, y in points)
    dots = "".join(f"M{x:g} {y:.3f}h0" for x, y in points) if len(p) <= 16 else ""
    return f'<path class="{kind}" d="{line}"/><path class="{kind} dots" d="{dots}"/>'
