"""Reports: from run folders to one HTML page that needs nothing else, neither a network nor a script.

Everything shown is made from the run folder alone; what an interrupted run lacks is left out, and said. Strings of a run reach
the page only through `_e`, which escapes them, and never reach matplotlib: it draws axes, lines and numbers. Figures are inline
SVG whose colours are CSS variables, so that one drawing serves light and dark.
"""

from __future__ import annotations

import base64
import html
import io
import json
import logging
import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import energy
from .run import RunError, read_arrays, read_json, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger("backspike")
_MAX_SAMPLES, _MAX_RASTERS, _MAX_STEPS, _MAX_FRAMES, _MAX_CLASSES, _MAX_PIXELS = 6, 6, 12, 8, 20, 128
_MAX_LINES, _MAX_LAYERS, _MAX_NUMBER = 100, 1000, 1e30

# The arrays of evaluation.npz and their axes; "*" stands for any further axes.
_AXES = {
    "classes": "K",
    "confusion": "K K",
    "layer_names": "L",
    "firing_rate": "L T",
    "support_share": "L T",
    "membrane_counts": "L bins",
    "membrane_edges": "edges",
    "surrogate_z": "M",
    "surrogate_h": "L M",
    "accuracy_over_time": "T",
    "sample_x": "S frames *",
    "sample_y": "S",
    "sample_logits": "S T K",
    "readout_weights": "T",
    "spikes_per_image": "L",
    **{f"op_{key}": "E" for key in ("name", "kind", "steps", "macs", "additions", "products", "spikes", "weights")},
    **{f"op_{key}": "E" for key in ("inputs", "outputs", "bits")},
    "op_samples": "",
}

# Their dtype kinds where they are not any numbers: names, and counts that are added up.
_KINDS = {
    **{"classes": "Uiu", "layer_names": "Uiu", "op_name": "U", "op_kind": "U"},
    "confusion": "iu",
    "membrane_counts": "iu",
    "sample_y": "iu",
    "op_samples": "iu",
}


class ReportError(Exception):
    """A run folder that cannot be reported; one line that names the file and what to do."""


# Reading


@dataclass(frozen=True)
class _Run:
    path: Path
    name: str
    fields: dict[str, Any]
    env: dict[str, Any]
    epochs: list[dict[str, Any]]
    done: dict[str, Any]
    initial: dict[str, Any]
    resumed: int
    watched: list[dict[str, Any]]
    arrays: dict[str, np.ndarray] = field(repr=False)
    anytime: dict[str, Any] = field(repr=False, default_factory=dict)

    @property
    def x(self) -> np.ndarray:
        return np.array([epoch["epoch"] for epoch in self.epochs], float)

    def series(self, key: str) -> np.ndarray:
        """One number per epoch, nan where there is none."""
        return np.array([_number(epoch.get(key)) for epoch in self.epochs], float)

    def per_layer(self, key: str) -> dict[str, np.ndarray]:
        """One series per name in the dicts that the epochs hold under `key`."""
        dicts = [_dict(epoch.get(key)) for epoch in self.epochs]
        names = dict.fromkeys(name for values in dicts for name in values)
        return {name: np.array([_number(values.get(name)) for values in dicts]) for name in names}

    @property
    def seconds(self) -> float:
        return _number(self.done.get("seconds")) if self.done else float(np.nansum(self.series("seconds"))) or math.nan

    @property
    def best_epoch(self) -> float:
        """The epoch of the best validation accuracy, by the log's own word if it has one."""
        validation = self.series("validation_accuracy")
        if math.isfinite(said := _number(self.done.get("best_epoch"))):
            return said
        return float(self.x[np.nanargmax(validation)]) if np.isfinite(validation).any() else math.nan


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float:
    """A float; the mean of a list (a value per channel); nan for everything else, and for what no measurement gives."""
    if isinstance(value, list):
        return float(np.mean([_number(item) for item in value])) if value else math.nan
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _MAX_NUMBER
    return float(value) if known else math.nan


def _load(path: Path) -> _Run:
    path = Path(path)
    if not path.is_dir():
        raise ReportError(f"{path}: no such run folder; give the folder that `backspike train` wrote")
    recipe = _read_json(path / "recipe.json")
    env = _read_json(path / "env.json") if (path / "env.json").exists() else {}
    epochs, done, initial, resumed, watched = _read_log(path / "log.jsonl")
    fields = recipe.get("fields")
    if not isinstance(fields, dict):
        raise ReportError(f'{path / "recipe.json"}: has no "fields"; restore the file or train again')
    name = str(recipe.get("name") or path.name)
    early, cure = path / "anytime.json", "remove it, or write it again with `backspike eval --anytime`"
    anytime = _read_json(early, cure) if early.exists() else {}
    arrays = _read_arrays(path / "evaluation.npz")
    return _Run(path, name, fields, env, epochs, done, initial, resumed, watched, arrays, anytime)


def _read_json(path: Path, cure: str = "restore the file or train again") -> dict[str, Any]:
    try:
        value = read_json(path.read_bytes())
    except FileNotFoundError:
        raise ReportError(f"{path}: missing; give a folder that `backspike train` wrote") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: damaged ({_one_line(error)}); {cure}") from None
    if not isinstance(value, dict):
        raise ReportError(f"{path}: damaged (not a JSON object); {cure}")
    return value


def _read_log(
    path: Path,
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any], int, list[dict[str, Any]]]:
    """Epochs by number, the last word if the run is done, the network before training, how often the run was resumed, and
    what was watched.

    Torn lines are passed over.
    """
    try:
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}; give a folder that `backspike train` wrote") from None
    epochs: dict[int, dict[str, Any]] = {}
    done: dict[str, Any] = {}
    initial: dict[str, Any] = {}
    watched: dict[int, dict[str, Any]] = {}
    resumed = read = damaged = 0
    for line in lines:
        try:
            entry = read_json(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            damaged += 1
            continue
        read, event = read + 1, entry.get("event")
        if event == "epoch" and isinstance(entry.get("epoch"), int):
            epochs[entry["epoch"]], done = entry, {}
        elif event == "done":
            done = entry
        elif event == "initial":
            initial = entry
        elif event == "watch" and isinstance(entry.get("epochs"), int):
            watched[entry["epochs"]] = entry
        resumed += event == "resumed"
    if len(lines) > 1 and not read:
        raise ReportError(f"{path}: damaged (no line is JSON); restore the file or train again")
    if damaged and done:  # in a run that is not, a kill may have torn the last one
        logger.warning("%s: %d damaged lines left out; put back by: backspike resume %s", path, damaged, path.parent)
    return [epochs[number] for number in sorted(epochs)], done, initial, resumed, [watched[n] for n in sorted(watched)]


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        arrays = read_arrays(path)
        _check(arrays)
    except (OSError, ValueError) as error:
        cure = "remove it, or write it again with `backspike eval`"
        raise ReportError(f"{path}: damaged ({_one_line(error)}); {cure}") from None
    return arrays


def _check(arrays: dict[str, np.ndarray]) -> None:
    """Raises ValueError unless the axes of all known arrays agree."""
    sizes: dict[str, int] = {}
    rasters = {name: "S T N" for name in arrays if name.startswith("sample_spikes_")}
    for name, text in (_AXES | rasters).items():
        if name not in arrays:
            continue
        shape, axes = arrays[name].shape, text.replace(" *", "").split()
        if len(shape) < len(axes) or (len(shape) > len(axes) and "*" not in text):
            raise ValueError(f"{name} has shape {list(shape)}, expected [{text}]")
        for axis, size in zip(axes, shape):
            if axis != "N" and sizes.setdefault(axis, size) != size:
                raise ValueError(f"{name} has {size} along {axis}, other arrays have {sizes[axis]}")
    if empty := [axis for axis, size in sizes.items() if not size and axis not in "SL"]:
        raise ValueError(f"there is nothing along {empty[0]}")
    if sizes.get("L", 0) > _MAX_LAYERS:
        raise ValueError(f"{sizes['L']} layers are more than {_MAX_LAYERS}")
    for name in (set(_AXES) | set(rasters)) & set(arrays):
        kinds, array = _KINDS.get(name, "biuf"), arrays[name]
        if array.size and array.dtype.kind not in kinds:
            raise ValueError(f"{name} is of type {array.dtype}")
        if array.dtype.kind == "f" and array.size and np.nanmax(np.abs(array), initial=0) > _MAX_NUMBER:
            raise ValueError(f"{name} has numbers above {_MAX_NUMBER:g}")
        if kinds == "iu" and array.size and (array.min() < 0 or array.max() >= 1 << 40):
            raise ValueError(f"{name} has numbers that count nothing")
    if {"edges", "bins"} <= set(sizes) and sizes["edges"] != sizes["bins"] + 1:
        raise ValueError(f"membrane_edges has {sizes['edges']} values for {sizes['bins']} bins")
    if not (np.diff(arrays.get("membrane_edges", np.arange(2.0))) > 0).all():
        raise ValueError("membrane_edges does not rise")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


# Text


def _e(value: object) -> str:
    return html.escape(str(value))


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f}\u202f%" if math.isfinite(value) else "–"


def _tenths(value: float) -> str:
    return _count(value) if not abs(value) < 1000 else f"{value:.1f}"


def _plain(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _tidy(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


def _count(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if math.isfinite(value) else "–"


def _seconds(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if value < 60:
        return f"{value:.1f}\u202fs"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}\u202fh {minutes:02d}\u202fmin" if hours else f"{minutes}\u202fmin {seconds:02d}\u202fs"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], label: str, kind: str = "") -> str:
    """A table of ready HTML cells, the first of each row its heading, that scrolls inside its own frame."""
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{_e(label)}" tabindex="0"><table class="{kind}">'
        f"<thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


# Figures

_COLOURS = ("ink", "soft", "rule", "train", "valid", "hist", *(f"run{i}" for i in range(8)))


def _colour(name: str) -> str:
    """A stand-in that matplotlib understands; `_svg` turns it into the CSS variable of this name."""
    return f"#0100{_COLOURS.index(name):02x}"


def _ramp(index: int, count: int) -> str:
    """A stand-in for the colour of item `index` in an ordered row: timesteps, or layers by depth."""
    return f"#0101{round(100 * index / max(count - 1, 1)):02x}"


def _css(stand_in: str) -> str:
    value = int(stand_in[-2:], 16)
    if stand_in[3:5] == "00":
        return f"var(--{_COLOURS[value]})"
    return f"color-mix(in oklch, var(--late) {value}%, var(--early))"


def _draw(name: str, label: str, plot: Callable[[Axes], None], left: float = 0.125) -> str:
    """An inline SVG of one pair of axes, 360 wide: its letters are legible on a phone without zooming."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    ink, soft, rule = map(_colour, ("ink", "soft", "rule"))
    style: dict[str, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "text.usetex": False, "font.family": "sans-serif"}
    style |= {"font.size": 11.5, "text.color": ink, "axes.labelcolor": soft, "xtick.color": soft, "ytick.color": soft}
    style |= {"axes.edgecolor": rule, "grid.color": rule, "grid.linewidth": 0.8, "axes.facecolor": "none"}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}
    style |= {"xtick.major.size": 3, "ytick.major.size": 0, "axes.axisbelow": True}
    with rc_context(style):  # type: ignore[arg-type, unused-ignore]
        figure = Figure(figsize=(5, 3.1), facecolor="none")
        FigureCanvasSVG(figure)
        plot(figure.add_axes((left, 0.17, 0.985 - left, 0.8)))
        return _svg(figure, label)


def _svg(figure: Figure, label: str) -> str:
    buffer = io.StringIO()
    unsigned: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=unsigned)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"#010[01][0-9a-f]{2}", lambda match: _css(match[0]), body)
    body = re.sub(r"\s*\n\s*", " ", re.sub(r"<!--.*?-->", "", body, flags=re.S))
    return f'<svg role="img" aria-label="{_e(label)}" {box[0] if box else ""}>{body}'


def _figure(name: str, title: str, picture: str, below: str = "") -> str:
    return f'<figure id="fig-{name}"><figcaption>{title}</figcaption>{picture}{below}</figure>'


class _Line(NamedTuple):
    label: str
    x: np.ndarray
    y: np.ndarray
    colour: str
    dashed: bool = False


def _chart(
    name: str, title: str, lines: Sequence[_Line], xlabel: str, percent: bool = False, mark: float = math.nan, log: bool = False
) -> str:
    """A chart of lines with its legend in HTML, or nothing if no line has a value; `mark` draws an upright at that epoch, `log`
    the values by powers of ten."""
    if log:
        lines = [line._replace(y=np.where(line.y > 0, line.y, math.nan)) for line in lines]
    lines = [line for line in lines if np.isfinite(line.y).any()]
    if not lines:
        return ""
    lines = lines[:: math.ceil(len(lines) / _MAX_LINES)]
    write = _percent if percent else _plain

    def plot(ax: Axes) -> None:
        if math.isfinite(mark):
            ax.axvline(mark, color=_colour("soft"), linewidth=1, linestyle=(0, (2, 3)))
        for line in lines:
            keep = slice(None, None, math.ceil(len(line.x) / 400))
            dots = "o" if np.isfinite(line.y).sum() <= 20 else ""
            style = (0, (4, 2)) if line.dashed else "-"
            ax.plot(line.x[keep], line.y[keep], color=line.colour, linestyle=style, linewidth=1.8, marker=dots, markersize=3.5)
        _finish(ax, xlabel, percent, log)

    said = "; ".join(f"{line.label}: {_span(line.y, write)}" for line in lines[:12])
    marked = [f'<li><i class="upright"></i>best epoch by validation: {mark:.0f}</li>'] if math.isfinite(mark) else []
    return _figure(name, _e(title), _draw(name, f"{title}. {said}", plot), _legend(lines, marked))


def _span(y: np.ndarray, write: Callable[[float], str]) -> str:
    known = y[np.isfinite(y)]
    return f"{write(known[0])} at first, {write(known[-1])} at the end"


def _finish(ax: Axes, xlabel: str, percent: bool, log: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    ax.set_xlabel(xlabel)
    ax.grid(axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    if log:
        shown = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
        decades = np.log10(shown[np.isfinite(shown)])
        ax.set_yscale("log")
        # whole powers of ten, so that at least two are marked
        ax.set_ylim(10 ** math.floor(decades.min()), 10 ** math.ceil(decades.max() + 1e-6))
        ax.yaxis.set_major_locator(LogLocator(numticks=6))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if 0.01 <= value <= 1000 else f"{value:.0e}"))
        return
    ax.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if percent:
        ax.set_ylim(top=min(ax.get_ylim()[1], 1.01), bottom=max(ax.get_ylim()[0], -0.01))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}\u202f%"))


def _legend(lines: Sequence[_Line], more: Sequence[str] = ()) -> str:
    """Swatch and label of every line; where there are more than twelve, of the first, the middle and the last."""
    shown = lines if len(lines) <= 12 else [lines[0], lines[len(lines) // 2], lines[-1]]
    items = [
        f'<li><i class="{"dashed" if line.dashed else ""}" style="color:{_css(line.colour)}"></i>{_e(line.label)}</li>'
        for line in shown
    ]
    return f'<ul class="legend">{"".join([*items, *more])}</ul>'


def _image(pixels: np.ndarray, alt: str, kind: str = "") -> str:
    """An `<img>` of pixels `[H, W, 4]` uint8, drawn without smoothing."""
    from matplotlib.image import imsave

    buffer = io.BytesIO()
    unsigned: dict[str, Any] = {"Software": None}
    imsave(buffer, np.ascontiguousarray(pixels), format="png", metadata=unsigned)
    data = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    return f'<img class="{kind}" width="{width}" height="{height}" alt="{_e(alt)}" src="data:image/png;base64,{data}">'


def _groups(steps: int, most: int) -> list[np.ndarray]:
    """Timesteps 0..steps-1 in at most `most` groups of neighbours, equal but for the last."""
    size = math.ceil(steps / most)
    return [np.arange(start, min(start + size, steps)) for start in range(0, steps, size or 1)]


def _columns(groups: Sequence[np.ndarray]) -> str:
    """The style that gives each group its share of the time axis."""
    return f'style="grid-template-columns:{" ".join(f"minmax(0,{len(group)}fr)" for group in groups)}"'


def _step_names(groups: Sequence[np.ndarray]) -> list[str]:
    return [f"{g[0] + 1}" if len(g) == 1 else f"{g[0] + 1}–{g[-1] + 1}" for g in groups]


def _shade(share: float, text: str, kind: str = "heat") -> str:
    return f'<td class="{kind}" style="--v:{100 * min(max(share, 0), 1):.0f}%">{text}</td>'


# Sections of a run


class _Section(NamedTuple):
    name: str
    title: str
    text: str
    body: str

    def html(self) -> str:
        title = f'<h2 id="{self.name}-title">{self.title}</h2>'
        return (
            f'<section id="{self.name}" aria-labelledby="{self.name}-title"><div class="say">{title}<p>{self.text}</p></div>'
            f'<div class="show">{self.body}</div></section>'
        )


def _grid(*figures: str) -> str:
    return f'<div class="grid">{"".join(figures)}</div>' if any(figures) else ""


def _tiles(items: Iterable[tuple[str, str, str]]) -> str:
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in items)
    return f'<dl class="tiles">{tiles}</dl>'


def _headline(run: _Run) -> str:
    def last(key: str) -> float:
        known = run.series(key)[np.isfinite(run.series(key))]
        return float(known[-1]) if len(known) else math.nan

    done, planned = run.done, _number(run.fields.get("epochs"))
    validation = run.series("validation_accuracy")
    best = float(np.nanmax(validation)) if np.isfinite(validation).any() else _number(done.get("validation_accuracy"))
    device = f" on {_e(run.env['device'])}" if run.env.get("device") else ""
    test = ("Test accuracy", _percent(_number(done.get("test_accuracy"))), "weights of the best epoch by validation")
    running = ("Training accuracy", _percent(last("train_accuracy")), "so far; the test comes at the end")
    of = f"of {planned:.0f} planned" if math.isfinite(planned) and planned != len(run.epochs) else "all that were planned"
    tiles = [
        test if done else running,
        ("Test, last epoch", _percent(_number(done.get("test_accuracy_last"))), "weights as training left them"),
        ("Best validation", _percent(best), f"in epoch {run.best_epoch:.0f} (from 0)"),
        ("Epochs", f"{len(run.epochs)}", of if math.isfinite(planned) else ""),
        ("Time", _seconds(run.seconds), f"{_count(last('samples_per_second'))} samples per second{device}"),
        ("Parameters", _count(_number(run.env.get("parameters"))), "numbers that are learned"),
    ]
    return _tiles(tile for tile in tiles if tile[1] != "–")


def _subtitle(run: _Run) -> str:
    parts = [run.fields[key] for key in ("model", "neuron.surrogate", "readout") if run.fields.get(key) is not None]
    data = f"on <b>{_e(run.fields['data'])}</b>{' (simulated)' * _simulated(run)}" if "data" in run.fields else ""
    steps = f", {_e(run.fields['T'])}\u00a0timesteps" if "T" in run.fields else ""
    return f'<p class="lead">{" · ".join(f"<code>{_e(part)}</code>" for part in parts)} {data}{steps}</p>'


def _simulated(run: _Run) -> bool:
    return "simulated" in str(run.env.get("data_note")).lower()


def _notices(run: _Run) -> str:
    notices, note = [], str(run.env.get("data_note") or "")
    if _simulated(run):
        notices.append(f"<strong>Simulated data.</strong> {_e(note[:1].upper() + note[1:])}.")
    if not run.done:
        command = f"backspike resume {shlex.quote(str(run.path))}"
        notices.append(
            f"<strong>This run has not finished.</strong> Shown is what it logged up to here. <code>{_e(command)}</code> "
            "continues it, and adds the test accuracy."
        )
    if not run.arrays:
        notices.append("There is no <code>evaluation.npz</code>: figures that need the trained network are left out.")
    if run.resumed:
        notices.append(f"Interrupted and resumed {run.resumed} time{'s' if run.resumed > 1 else ''}.")
    return "".join(f'<p class="notice" role="note">{notice}</p>' for notice in notices)


def _curves(run: _Run) -> _Section:
    def pair(key: str) -> list[_Line]:
        names = (f"train_{key}" if key == "accuracy" else key, f"validation_{key}")
        return [_Line(n, run.x, run.series(s), _colour(c)) for n, s, c in zip(_PAIR, names, ("train", "valid"))]

    charts = _grid(
        _chart("accuracy", "Accuracy", pair("accuracy"), "epoch", percent=True, mark=run.best_epoch),
        _chart("loss", "Loss", pair("loss"), "epoch", mark=run.best_epoch),
    )
    text = (
        "A widening gap between the curves means that the network learns its training samples by heart; they are scored while "
        "they are being learned, and may be augmented, so they can also lag behind."
    )
    return _Section("curves", "Accuracy and loss", text, charts and charts + _epoch_table(run))


_PAIR = ("training", "validation")


def _epoch_table(run: _Run) -> str:
    columns: dict[str, tuple[str, Callable[[float], str]]] = {
        "loss": ("training loss", _plain),
        "train_accuracy": ("training accuracy", _percent),
        "validation_loss": ("validation loss", _plain),
        "validation_accuracy": ("validation accuracy", _percent),
        "lr": ("learning rate", _plain),
        "seconds": ("seconds", _plain),
    }
    rows = [[f"{e['epoch']}", *(write(_number(e.get(key))) for key, (_, write) in columns.items())] for e in run.epochs]
    table = _table(["epoch", *(name for name, _ in columns.values())], rows, "Every epoch", "numbers")
    return f"<details><summary>The numbers, epoch by epoch</summary>{table}</details>"


def _readout(run: _Run) -> _Section:
    weights = [w if isinstance(w := epoch.get("readout_weights"), list) else [] for epoch in run.epochs]
    T = max(map(len, weights), default=0)
    lines = [
        _Line(f"step {t + 1}", run.x, np.array([_number(w[t]) if t < len(w) else math.nan for w in weights]), _ramp(t, T))
        for t in range(T)
    ]
    text = (
        "Temporally weighted output: the answer is the mean of the outputs of all timesteps, each times its weight. After an "
        "epoch a weight moves towards that timestep's own training accuracy relative to the average one, so above 1 means that "
        "the network answers better at this step than at others. The mean of all weights stays 1. This is the counterpart of "
        "figure 3 of Li et al. 2024 (arXiv 2406.19645)."
    )
    return _Section("readout", "Weights of the timesteps", text, _grid(_chart("readout-weights", "Weight", lines, "epoch")))


def _over_time(run: _Run) -> _Section:
    accuracy = run.arrays.get("accuracy_over_time", np.array([]))
    steps = np.arange(1, len(accuracy) + 1)
    line = _Line("answer after so many steps", steps, accuracy, _colour("train"))
    chart = _chart("over-time", "Test accuracy", [line], "timesteps", percent=True)
    text = (
        "The test accuracy if the network were stopped early: where the line is already flat, fewer timesteps would do, "
        "at a proportional saving of time and spikes."
    )
    return _Section("over-time", "Accuracy over time", text, _grid(chart))


def _early_exit(run: _Run) -> _Section:
    accuracy, validation = (_numbers(run.anytime.get(key)) for key in ("accuracy", "validation_accuracy"))
    curves = {name: c for name, c in _dict(run.anytime.get("exit")).items() if _is_curve(c)}
    if not accuracy or not validation or not curves:
        return _Section("early-exit", "", "", "")
    steps = np.arange(1.0, len(accuracy) + 1)
    lines = [_Line("the same number of steps for all", steps, np.array(accuracy), _colour("soft"), dashed=True)]
    rows = []
    for i, (name, c) in enumerate(curves.items()):
        order = np.argsort(c["steps"], kind="stable")
        x, y = (np.array(c[key], float)[order] for key in ("steps", "accuracy"))
        lines.append(_Line(f"exit by {name}", x, y, _colour(f"run{i % 8}")))
        at = c["chosen"]
        values = [_percent(c[key][at], 2) for key in ("validation_accuracy", "accuracy")]
        rows.append([_e(name), _plain(c["threshold"][at]), values[0], values[1], f"{c['steps'][at]:.2f} of {len(accuracy)}"])
    rows.append(["all timesteps", "", _percent(validation[-1], 2), _percent(accuracy[-1], 2), f"{len(accuracy)}"])
    chart = _chart("early-exit", "Test accuracy", lines, "mean timesteps", percent=True)
    head = ["exit by", "threshold", "validation accuracy", "test accuracy", "mean timesteps on the test set"]
    text = (
        "Each sample stops at the first timestep at which the network is sure enough, the last at the latest. Confidence is "
        "the largest probability of the answer so far, margin its lead over the second. The threshold in the table is the one "
        "that stops soonest without one more mistake on the "
        f"{_count(_number(run.anytime.get('validation_samples')))} validation samples than after all timesteps. The test "
        "samples choose nothing; the curve shows what other thresholds would give."
    )
    body = _grid(chart) + _table(head, rows, "Early exit", "numbers")
    return _Section("early-exit", "Early exit", text, body)


def _numbers(values: Any) -> list[float]:
    """A list of finite numbers; empty for anything else."""
    numbers = [_number(v) for v in values] if isinstance(values, list) else []
    return numbers if all(map(math.isfinite, numbers)) else []


def _is_curve(c: Any) -> bool:
    """Whether it is a curve as `anytime.Curve` has it."""
    keys = ("threshold", "validation_steps", "validation_accuracy", "steps", "accuracy")
    if not isinstance(c, dict) or not all(_numbers(c.get(key)) for key in keys):
        return False
    return len({len(c[key]) for key in keys}) == 1 and isinstance(c.get("chosen"), int) and 0 <= c["chosen"] < len(c["steps"])


def _confusion(run: _Run) -> _Section:
    counts = run.arrays.get("confusion", np.zeros((0, 0)))
    if not counts.sum():
        return _Section("confusion", "", "", "")
    names = _class_names(run)
    right, total = int(np.trace(counts)), int(counts.sum())
    low, high = _wilson(right, total)
    text = (
        f"Rows are the true classes, columns the answers, so every number off the diagonal is a kind of mistake. {right} of "
        f"{total} test samples are right: {_percent(right / total)}, with a 95\u202f% interval from {_percent(low)} to "
        f"{_percent(high)} for the luck of the sample. {_worst(counts, names)}"
    )
    body = _confusion_table(counts, names) if len(counts) <= _MAX_CLASSES else _confusion_image(counts, names)
    return _Section("confusion", "Confusion matrix", text, body)


def _class_names(run: _Run) -> list[str]:
    count = next((run.arrays[k].shape[-1] for k in ("confusion", "sample_logits") if k in run.arrays), 0)
    return [str(name) for name in run.arrays.get("classes", range(count))]


def _wilson(right: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927)."""
    p, n = right / total, total
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def _worst(counts: np.ndarray, names: Sequence[str]) -> str:
    wrong = counts - np.diag(np.diag(counts))
    if not wrong.any():
        return "There is no mistake."
    if wrong.max() == 1:
        return "No confusion occurs twice."
    true, answer = np.unravel_index(wrong.argmax(), wrong.shape)
    times, of = int(wrong[true, answer]), int(counts[true].sum())
    return (
        f"The most frequent confusion: <b>{_e(names[true])}</b> taken for <b>{_e(names[answer])}</b>, {times} "
        f"times in {of} ({_percent(times / of)})."
    )


def _confusion_table(counts: np.ndarray, names: Sequence[str]) -> str:
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    long = max(map(len, names)) > 3
    head = [f"<span>{_e(name)}</span>" for name in names]
    rows = [
        [_e(name), *(_confusion_cell(i == j, share[i, j], int(counts[i, j])) for j in range(len(names))), _percent(share[i, i])]
        for i, name in enumerate(names)
    ]
    kind = "confusion tall" if long else "confusion"
    return f'<div id="fig-confusion">{_table(["true", *head, "right"], rows, "Confusion matrix", kind)}</div>'


def _confusion_cell(right: bool, share: float, count: int) -> str:
    if not count:
        return '<td class="none">0</td>'
    return _shade(share if right else min(2 * math.sqrt(share), 1), f"{count}", "heat" if right else "heat mistake")


def _confusion_image(counts: np.ndarray, names: Sequence[str]) -> str:
    share = np.sqrt(counts / np.maximum(counts.sum(1, keepdims=True), 1))
    pixels = np.zeros((*share.shape, 4), np.uint8)
    pixels[..., 3] = 255 * share
    wrong = counts - np.diag(np.diag(counts))
    pairs = [np.unravel_index(index, wrong.shape) for index in np.argsort(wrong, None)[::-1][:10]]
    rows = [[_e(names[i]), _e(names[j]), f"{int(wrong[i, j])}"] for i, j in pairs if wrong[i, j]]
    alt = f"Confusion matrix of {len(names)} classes, true classes from top to bottom, answers from left to right"
    title = "The stronger a point, the larger its share of the row"
    picture = _figure("confusion", title, _image(pixels, alt, "ink matrix"))
    return _grid(picture, _table(["true", "answer", "times"], rows, "Most frequent confusions", "numbers"))


def _heat_table(run: _Run, key: str, label: str, more: dict[str, np.ndarray] | None = None) -> str:
    """Layers down, timesteps across, in percent; `more` adds columns of one number per layer."""
    values = run.arrays.get(key)
    if values is None or not values.size:
        return ""
    groups = _groups(values.shape[1], _MAX_STEPS)
    grouped = np.stack([values[:, group].mean(1) for group in groups], 1)
    top = np.nan_to_num(grouped).max() or 1
    more = {"mean": 100 * values.mean(1)} | (more or {})
    rows = []
    for i, name in enumerate(_layer_names(run)):
        cells = [_shade(np.nan_to_num(value) / top, _tenths(100 * value)) for value in grouped[i]]
        rows.append([_e(name), *cells, *(_tenths(column[i]) for column in more.values())])
    table = _table(["% at step", *_step_names(groups), *more], rows, label, "numbers")
    return f'<div id="fig-{key.replace("_", "-")}">{table}</div>'


def _layer_names(run: _Run) -> list[str]:
    count = next((run.arrays[k].shape[0] for k in ("firing_rate", "support_share", "membrane_counts") if k in run.arrays), 0)
    return [str(name) for name in run.arrays.get("layer_names", range(count))]


def _layer_lines(run: _Run, key: str) -> list[_Line]:
    series = run.per_layer(key)
    return [_Line(name, run.x, y, _ramp(i, len(series))) for i, (name, y) in enumerate(series.items())]


def _firing(run: _Run) -> _Section:
    spikes = run.arrays.get("spikes_per_image")
    table = _heat_table(run, "firing_rate", "Firing rates", {} if spikes is None else {"spikes per sample": spikes})
    chart = _chart("firing-epochs", "Firing rate while training", _layer_lines(run, "firing_rate"), "epoch", True)
    total = "" if spikes is None else f" One sample costs {_count(float(spikes.sum()))} spikes in all."
    text = (
        "How many of a layer's neurons spike, in percent: a layer near 0 passes nothing on, one near 100 tells nothing, and "
        f"few spikes are what makes these networks cheap on neuromorphic hardware.{total}"
    )
    return _Section("firing", "Firing rates", text, table + _grid(chart))


def _energy(run: _Run) -> _Section:
    T = _number(run.fields.get("T"))
    layers = energy.layers(run.arrays, int(T) if math.isfinite(T) else 1)
    if not layers:
        return _Section("energy", "", "", "")
    ann, snn = energy.total(layer.ann for layer in layers), energy.total(layer.snn for layer in layers)
    prices = {"arithmetic alone": 0.0, "with memory, all in SRAM": energy.SRAM, "with memory, all in DRAM": energy.DRAM}
    compared = {name: (ann.with_memory(word), snn.with_memory(word)) for name, word in prices.items()}
    times = {name: s / a if a else math.inf for name, (a, s) in compared.items()}
    totals = [[name, _joules(a), _joules(s), f"{_tidy(times[name])}\u202f×"] for name, (a, s) in compared.items()]
    head = ["estimate for one sample", "without spikes", "spiking", "spiking / without"]
    table = f'<div id="fig-energy">{_table(head, totals, "Energy in all", "numbers")}</div>'
    dearer = ", ".join(f"{name} {_tidy(times[name])} times as much" for name, (a, s) in compared.items() if s > a)
    warning = (
        '<p class="notice" role="note"><strong>The spiking network costs more</strong> than the equal network without spikes: '
        f"{dearer}. Fewer timesteps and fewer spikes lower it, and hardware that keeps weights and membranes at hand.</p>"
    )
    once = "".join(
        f" <code>{_e(layer.name)}</code> is computed once, as its input is the same at every timestep."
        for layer in layers
        if layer.steps < T
    )
    text = (
        f"Counted on {_count(float(run.arrays['op_samples']))} test samples, beside the same layers run once without spikes. A "
        "spike costs an addition (AC) at every output that it reaches; a real number, as a first layer sees of an image, a "
        "multiply-accumulate (MAC); spikes that a pool has added up whichever of both is less. A neuron costs a MAC a timestep."
        f"{once} Norms are folded into weights; pools and the additions of branches are left out. Prices of Horowitz 2014 "
        f"(ISSCC, 45\u202fnm, 32 bits): MAC {energy.MAC:g}\u202fpJ, AC {energy.AC:g}\u202fpJ, a word from 8\u202fkB of SRAM "
        f"{energy.SRAM:g}\u202fpJ, from DRAM {energy.DRAM:g}\u202fpJ. A word is taken to move once per layer and timestep: "
        "weights and inputs are read, outputs written; a membrane is read and written, a spike is a bit."
    )
    return _Section("energy", "Energy, estimated", text, warning * bool(dearer) + table + _energy_table(layers))


def _energy_table(layers: Sequence[energy.Layer]) -> str:
    """The layers in the order in which they ran, and their sum; each quantity without spikes and spiking."""
    pairs = [("", layer.name, f"{layer.steps}", _count(layer.spikes), layer.ann, layer.snn) for layer in layers]
    ann, snn = energy.total(layer.ann for layer in layers), energy.total(layer.snn for layer in layers)
    rows = []
    for mark, name, steps, spikes, a, s in [*pairs, ("b", "in all", "", "", ann, snn)]:
        cells = [
            *map(_count, (a.macs, s.macs, s.acs)),
            *map(_joules, (a.arithmetic, s.arithmetic)),
            *map(_count, (a.words, s.words)),
        ]
        rows.append([f"<b>{_e(name)}</b>" if mark else _e(name), steps, spikes, *cells])
    both = [f"{what}, {which}" for what in ("arithmetic", "words moved") for which in ("without", "spiking")]
    head = ["layer", "steps", "spikes", "MACs, without", "MACs, spiking", "ACs, spiking", *both]
    return _table(head, rows, "Energy of each layer", "numbers")


def _joules(pico: float) -> str:
    if not math.isfinite(pico):
        return "–"
    for unit, size in (("mJ", 1e9), ("µJ", 1e6), ("nJ", 1e3)):
        if pico >= size:
            return f"{pico / size:.3g}\u202f{unit}"
    return f"{pico:.3g}\u202fpJ"


def _membranes(run: _Run) -> _Section:
    arrays, keys = run.arrays, ("membrane_counts", "membrane_edges", "surrogate_z", "surrogate_h")
    if not all(key in arrays for key in keys):
        return _Section("membranes", "", "", "")
    counts, edges, z, h = (arrays[key] for key in keys)
    logged = {k: v for k, v in _dict(run.initial.get("membrane_counts")).items() if isinstance(v, list)}
    before = {k: np.array(v) for k, v in logged.items() if len(v) == counts.shape[1] and all(type(n) is int for n in v)}
    names = _layer_names(run)
    figures = [_membrane(i, name, counts[i], before.get(name), edges, z, h[i]) for i, name in enumerate(names)]
    text = (
        "Only where the membranes lie under the surrogate derivative does a gradient pass: beside a narrow curve it vanishes, "
        "under one that covers everything it strays from the true one. Both are drawn relative to their own peaks; the "
        "outermost bars hold all that lies beyond, and may be cut off."
    )
    legend = '<ul class="legend"><li><i class="block" style="color:var(--hist)"></i>membranes</li>'
    legend += '<li><i style="color:var(--ink)"></i>before training</li>' if before else ""
    legend += '<li><i style="color:var(--valid)"></i>surrogate derivative</li><li><i class="upright"></i>threshold</li></ul>'
    return _Section("membranes", "Membranes and the surrogate", text, legend + _grid(*figures))


def _membrane(
    index: int, name: str, counts: np.ndarray, before: np.ndarray | None, edges: np.ndarray, z: np.ndarray, h: np.ndarray
) -> str:
    above = counts[edges[:-1] >= 0].sum() / max(counts.sum(), 1)

    def plot(ax: Axes) -> None:
        ax.stairs(counts / (counts[1:-1].max(initial=0) or 1), edges, fill=True, color=_colour("hist"), linewidth=0)
        if before is not None:
            ax.stairs(before / (before[1:-1].max(initial=0) or 1), edges, color=_colour("ink"), linewidth=0.9)
        inside = (z >= edges[0]) & (z <= edges[-1])
        ax.plot(z[inside], h[inside] / (h.max() or 1), color=_colour("valid"), linewidth=1.8)
        ax.axvline(0, color=_colour("soft"), linewidth=1, linestyle=(0, (2, 3)))
        ax.locator_params("x", nbins=5)
        ax.set(xlabel="membrane minus threshold", yticks=[], xlim=(edges[0], edges[-1]), ylim=(0, 1.05))

    mode = (edges[:-1] + edges[1:])[counts.argmax()] / 2
    alt = f"Membranes of layer {name}: most often {mode:.2g} from the threshold, {_percent(above)} at or above it"
    title = f"{_e(name)} <small>{_percent(above)} at or above the threshold, derivative up to {_plain(h.max())}</small>"
    return _figure(f"membrane-{index}", title, _draw(f"membrane-{index}", alt, plot, left=0.04))


_POTENTIAL = {
    "mean": ("mean", _tidy),
    "std": ("spread", _tidy),
    "quantisation_error": ("rounding error", _tidy),
    "active_share": ("in the window", _percent),
    "share_below": ("at rest or below", _percent),
    "share_above": ("at twice the threshold or above", _percent),
}


def _potentials(run: _Run) -> _Section:
    before, after = (_dict(e.get("potential")) for e in (run.initial, run.epochs[-1] if run.epochs else {}))
    rows, steps = [], []
    for name in after:
        then, now = _dict(before.get(name)), _dict(after[name])
        pairs = [(_number(then.get(key)), _number(now.get(key)), write) for key, (_, write) in _POTENTIAL.items()]
        rows.append([_e(name), *(f"{write(a)} → {write(b)}" if math.isfinite(a) else write(b) for a, b, write in pairs)])
        series = [(v if isinstance(v := now.get(key), list) else [], write) for key, (_, write) in _POTENTIAL.items()]
        for t in range(max(len(values) for values, _ in series)):
            cells = [write(_number(values[t]) if t < len(values) else math.nan) for values, write in series]
            steps.append([f"{_e(name)}, step {t + 1}", *cells])
    head = ["layer", *(text for text, _ in _POTENTIAL.values())]
    text = (
        "Where the potentials u lie, on a batch of validation samples, before training and at its end: mean and spread; the "
        "mean square of what is lost when u is rounded to a spike of the threshold's height or to none; the shares near the "
        "threshold (within half the surrogate's width), at 0 or below, and at twice the threshold or above."
    )
    if not rows:
        return _Section("potentials", "Potentials", text, "")
    tables = _table(head, rows, "Potentials of each layer", "numbers")
    folded = _table(head, steps, "Potentials of each layer and step", "numbers")
    return _Section("potentials", "Potentials", text, f"{tables}<details><summary>Step by step</summary>{folded}</details>")


def _support(run: _Run) -> _Section:
    table = _heat_table(run, "support_share", "Neurons with a gradient")
    chart = _chart("support-epochs", "Share with a gradient while training", _layer_lines(run, "support_share"), "epoch", True)
    shares = run.series("masked_share")
    masked = shares[np.isfinite(shares)]
    dropped = f" The mask then drops {_percent(masked[-1])} of them at random, anew in every step." if masked.any() else ""
    text = (
        "The share of neurons, in percent, whose surrogate derivative is above 1\u202f% of its peak: only they receive a "
        f"gradient. Near 0 a layer does not learn; near 100 almost every neuron is pushed by an approximation.{dropped}"
    )
    return _Section("support", "Neurons that receive a gradient", text, table + _grid(chart))


def _watch(run: _Run) -> _Section:
    x = np.array([event["epochs"] for event in run.watched], float)
    seen = [_dict(event.get("vitals")) for event in run.watched]

    def lines(kind: str, key: str) -> list[_Line]:
        of = [_dict(vitals.get(kind)) for vitals in seen]
        names = list(dict.fromkeys(name for values in of for name in values))
        series = [np.array([_size(_dict(values.get(name)).get(key)) for values in of]) for name in names]
        return [_Line(name, x, y, _ramp(i, len(names))) for i, (name, y) in enumerate(zip(names, series))]

    charts = _grid(
        _chart("watch-gradient", "Gradient of the currents", lines("layers", "gradient"), _DONE, log=True),
        _chart(
            "watch-step", "Step at the full rate, relative to the weights", lines("weights", "update_ratio"), _DONE, log=True
        ),
        _chart("watch-reset", "Gradient through the reset, relative to the rest", lines("layers", "reset_ratio"), _DONE),
        _chart("watch-mask", "Agreement with the unmasked gradient", lines("weights", "mask_alignment"), _DONE),
        _chart("watch-dead", "Channels that never fire", lines("layers", "dead"), _DONE, True),
    )
    text = (
        "What <code>backspike doctor</code> measures, on 64 training samples before training and after every epoch: how large "
        "a gradient reaches each layer, how far a step moves weights, what comes through the reset, and how much of the "
        "direction a mask leaves (1: all, 0: noise)."
    )
    return _Section("watch", "Health while training", text, charts and charts + _watch_findings(run))


_DONE = "epochs done"


def _size(value: Any) -> float:
    """A number; of a list, the root of the mean square."""
    if not isinstance(value, list):
        return _number(value)
    return math.sqrt(np.mean([_number(item) ** 2 for item in value])) if value else math.nan


def _watch_findings(run: _Run) -> str:
    rows: dict[str, list[Any]] = {}
    for event in run.watched:
        findings = event.get("findings")
        for finding in findings if isinstance(findings, list) else []:
            finding = _dict(finding)
            places = finding.get("where")
            key = f"{finding.get('illness')} {places}"
            where = ", ".join(map(str, places)) if isinstance(places, list) else ""
            rows.setdefault(key, [finding, where, []])[2].append(event["epochs"])
    if not rows:
        return "<p>Nothing was found at any time.</p>"
    cells = [
        [_e(f.get("illness")), _e(where), _e(_spans(at)), _e(f.get("found")), _advice(f)] for f, where, at in rows.values()
    ]
    return _table(["finding", "where", "after epochs", "what", "to try"], cells, "Findings", "pairs")


def _advice(finding: dict[str, Any]) -> str:
    flags = finding.get("flags")
    return _e(finding.get("advice")) + (f": <code>{_e(flags)}</code>" if flags else "")


def _spans(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}, {len(numbers)} times"


def _widths(run: _Run) -> _Section:
    text = (
        "The learned width of each layer's surrogate: a layer that widens asks for gradients from membranes further from the "
        "threshold, one that narrows trusts those close to it."
    )
    chart = _chart("widths", "Width", _layer_lines(run, "widths"), "epoch")
    return _Section("widths", "Learned widths of the surrogate", text, _grid(chart))


def _samples(run: _Run) -> _Section:
    count = min(len(run.arrays.get("sample_y", ())), _MAX_SAMPLES)
    cards = "".join(_sample(run, index) for index in range(count))
    text = (
        "From top to bottom: what the network sees, the spikes of up to 64 neurons of each layer (a row is a neuron, a column "
        "a timestep), and how sure it is of each class after each step. Time runs from left to right through all of them."
    )
    if run.arrays.get("sample_x", np.zeros(3)).shape[2:3] == (2,):
        text += ' Events: <span class="on">orange</span> where it became brighter, <span class="off">blue</span> where darker.'
    return _Section("samples", "A few test samples", text, cards and f'<div class="samples">{cards}</div>')


def _sample(run: _Run, index: int) -> str:
    arrays, names = run.arrays, _class_names(run)
    true = int(arrays["sample_y"][index])
    title, parts = f"{_e(_at(names, true))}", []
    if "sample_logits" in arrays:
        logits = np.nan_to_num(arrays["sample_logits"][index].astype(float))
        answer = int(logits[-1].argmax())
        wrong = f'<span class="wrong">taken for {_e(_at(names, answer))}</span>'
        title += " " + (wrong if answer != true else '<span class="right">recognised</span>')
        parts.append(_answer(logits, true, names))
    if "sample_x" in arrays:
        parts.insert(0, _input(arrays["sample_x"][index], f"sample {index + 1}, true class {_at(names, true)}"))
    parts[1:1] = _rasters(run, index)
    groups = _groups(arrays["sample_logits"].shape[1] if "sample_logits" in arrays else 0, _MAX_FRAMES)
    ruler = "".join(f"<span>{step}</span>" for step in _step_names(groups))
    parts.append(f'<div class="ruler" {_columns(groups)}>{ruler}</div>')
    return f'<article id="fig-sample-{index}"><h3>{title}</h3>{"".join(parts)}</article>'


def _at(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else str(index)


def _input(x: np.ndarray, what: str) -> str:
    """The frames of one sample `[T, C, H, W]`: one picture if nothing moves, else a strip along the time axis."""
    if x.ndim != 4 or not x.size:
        return ""
    x = np.nan_to_num(x.astype(np.float32))
    step = math.ceil(max(x.shape[2:]) / _MAX_PIXELS)
    x = x[:, :, ::step, ::step]
    if (x == x[:1]).all():
        return f'<div class="still">{_image(_pixels(x[:1])[0], f"Input of {what}")}</div>'
    groups = _groups(len(x), _MAX_FRAMES)
    frames = _pixels(np.stack([x[group].mean(0) for group in groups]))
    pictures = [_image(f, f"Input of {what}, step {name}") for f, name in zip(frames, _step_names(groups))]
    return f'<div class="strip" {_columns(groups)}>{"".join(pictures)}</div>'


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


def _rasters(run: _Run, index: int) -> list[str]:
    names = _layer_names(run)
    known = [i for i in range(len(names)) if f"sample_spikes_{i}" in run.arrays]
    chosen = sorted({known[round(i)] for i in np.linspace(0, len(known) - 1, min(len(known), _MAX_RASTERS))})
    return [_raster(run.arrays[f"sample_spikes_{i}"][index], names[i]) for i in chosen]


def _raster(spikes: np.ndarray, name: str) -> str:
    """Spikes `[T, N]` as a picture, a row per neuron."""
    pixels = np.zeros((*spikes.T.shape, 4), np.uint8)
    pixels[..., 3] = 255 * (spikes.T > 0)
    rate = _percent(float((spikes > 0).mean()))
    alt = f"Spikes of {spikes.shape[1]} neurons of layer {name}: {rate} of the places are spikes"
    return f'<div class="track"><h4>{_e(name)}</h4>{_image(pixels, alt, "ink raster")}</div>'


def _answer(logits: np.ndarray, true: int, names: Sequence[str]) -> str:
    """Probabilities after each step, `[T, K]`: the ten classes that ever come closest, the true and the answered one marked."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    answer = int(p[-1].argmax())
    order = [k for k in np.argsort(p.max(0))[-10:] if k not in (true, answer)]
    order += [answer] * (answer != true) + [true] * (0 <= true < p.shape[1])
    paths = "".join(_path(p[:, k], "true" if k == true else "answer" if k == answer else "other") for k in order)
    ends = [f'<b class="right">{_e(_at(names, true))}: {_percent(p[-1, true], 0)}</b>'] if order[-1] == true else []
    ends += [f'<b class="wrong">{_e(_at(names, answer))}: {_percent(p[-1, answer], 0)}</b>'] if answer != true else []
    alt = "; ".join(f"{_at(names, k)} {_percent(p[-1, k], 0)}" for k in order[::-1][:3])
    picture = (
        f'<svg role="img" aria-label="Probability over time, at the end: {_e(alt)}" viewBox="0 0 {len(p)} 1" '
        f'preserveAspectRatio="none">{paths}</svg>'
    )
    return f'<div class="track answer"><h4>probability after the last step {" ".join(ends)}</h4>{picture}</div>'


def _path(p: np.ndarray, kind: str) -> str:
    """A line through the middles of the steps, and dots: strokes of no length with round ends keep round when stretched."""
    points = [(t + 0.5, 0.97 - 0.94 * value) for t, value in enumerate(p)]
    line = "M" + "L".join(f"{x:g} {y:.3f}" for x, y in points)
    dots = "".join(f"M{x:g} {y:.3f}h0" for x, y in points) if len(p) <= 16 else ""
    return f'<path class="{kind}" d="{line}"/><path class="{kind} dots" d="{dots}"/>'


def _recipe(run: _Run) -> _Section:
    rows = [[f"<code>{_e(key)}</code>", f"<code>{_e(value)}</code>"] for key, value in run.fields.items()]
    text = f"Every choice of the recipe <b>{_e(run.name)}</b>; the command line sets each as <code>--field value</code>."
    return _Section("recipe", "Recipe", text, _table(["field", "value"], rows, "Recipe", "pairs"))


def _environment(run: _Run) -> _Section:
    rows = [[_e(key.replace("_", " ")), _e(value)] for key, value in run.env.items() if key != "command"]
    command = f'<pre tabindex="0"><code>{_e(run.env["command"])}</code></pre>' if run.env.get("command") else ""
    table = _table(["", ""], rows, "Environment", "pairs headless") if rows else ""
    text = "Where the numbers come from" + (", and the command that repeats them." if command else ".")
    return _Section("environment", "Environment", text, command + table)


_GLOSSARY = {
    "timestep": "A network sees its input several times, or a recording in several slices; at each a neuron spikes or not.",
    "membrane": "A neuron's state before its reset: it leaks, adds the input, and spikes on reaching the threshold.",
    "surrogate derivative": (
        "A spike is a step, whose derivative is zero or infinite. Training uses a bump around the threshold in its place; "
        "where the bump is zero, no gradient passes."
    ),
    "masked surrogate gradient": (
        "In the backward pass a random share of the surrogate derivatives is set to zero, afresh in every step; the forward "
        "pass is untouched."
    ),
    "firing rate": "Spikes divided by neurons, timesteps and samples.",
    "validation": "Samples kept from training that choose the best epoch. The test samples choose nothing.",
    "loss": "What training makes small: the cross-entropy of the answer, in nats, unless the recipe says otherwise.",
}


def _glossary(run: _Run) -> _Section:
    items = "".join(f"<div><dt>{term}</dt><dd>{text}</dd></div>" for term, text in _GLOSSARY.items())
    return _Section("terms", "Terms", "As they are meant on this page.", f'<dl class="terms">{items}</dl>')


_SECTIONS = (
    *(_curves, _readout, _over_time, _early_exit, _confusion, _firing, _energy, _membranes, _potentials, _support, _widths),
    _watch,
    *(_samples, _recipe, _environment, _glossary),
)


# Pages


def write(run: Path) -> Path:
    """Writes `report.html` into a run folder and returns its path. Raises `ReportError`."""
    loaded = _load(run)
    sections = [section for make in _SECTIONS if (section := make(loaded)).body]
    links = "".join(f'<a href="#{section.name}">{section.title}</a>' for section in sections)
    head = f"<header><p>backspike · training report</p><h1>{_e(loaded.name)}</h1>{_subtitle(loaded)}{_notices(loaded)}"
    body = f"{head}{_headline(loaded)}<nav aria-label='Sections'>{links}</nav></header>"
    page = _page(f"{loaded.name} · backspike report", body + "".join(section.html() for section in sections))
    return _write(Path(run) / "report.html", page)


def compare(runs: list[Path], out: Path) -> Path:
    """Writes a page `out` that shows several runs side by side, and returns its path. Raises `ReportError`."""
    if not runs:
        raise ReportError("no run folder to compare; give at least one that `backspike train` wrote")
    loaded = [_load(run) for run in runs]
    names = _run_names([run.path for run in loaded])
    simulated = any("simulated" in str(run.env.get("data_note")).lower() for run in loaded)
    notice = (
        '<p class="notice" role="note"><strong>Simulated data</strong> in at least one of these runs.</p>' if simulated else ""
    )
    head = f"<header><p>backspike · comparison</p><h1>{len(runs)} runs</h1>{notice}</header>"
    sections = [_comparison(loaded, names), _overlay(loaded, names)]
    body = "".join(section.html() for section in sections if section.body)
    return _write(Path(out), _page(f"{len(runs)} runs · backspike comparison", head + body))


def _run_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = next((d for d in range(1, 9) if len({p[-d:] for p in parts}) == len(set(parts))), 9)
    return ["/".join(p[-depth:]) for p in parts]


def _comparison(runs: Sequence[_Run], names: Sequence[str]) -> _Section:
    fields = dict.fromkeys(key for run in runs for key in run.fields)
    differing = [key for key in fields if len({json.dumps(run.fields.get(key, ...), default=str) for run in runs}) > 1]
    head = ["run", "test accuracy, best by validation", "test accuracy, last epoch", "best validation", "epochs", "time"]
    rows = []
    for i, (run, name) in enumerate(zip(runs, names)):
        numbers = [
            _percent(_number(run.done.get(key))) for key in ("test_accuracy", "test_accuracy_last", "validation_accuracy")
        ]
        epochs = f"{len(run.epochs)}" + ("" if run.done else " (not finished)")
        swatch = f'<i class="{"dashed" if i >= 8 else ""}" style="color:var(--run{i % 8})"></i>'
        settings = [f"<code>{_e(run.fields[key])}</code>" if key in run.fields else "–" for key in differing]
        rows.append([f"{swatch}{_e(name)}", *numbers, epochs, _seconds(run.seconds), *settings])
    table = _table([*head, *(f"<code>{_e(key)}</code>" for key in differing)], rows, "Runs", "numbers compare")
    text = "A run a row, with the fields of the recipe in which the runs differ. One seed proves little."
    return _Section("runs", "Results", text, table)


def _overlay(runs: Sequence[_Run], names: Sequence[str]) -> _Section:
    def lines(key: str) -> list[_Line]:
        return [
            _Line(name, run.x, run.series(key), _colour(f"run{i % 8}"), i >= 8)
            for i, (run, name) in enumerate(zip(runs, names))
        ]

    charts = _grid(
        _chart("validation-accuracy", "Validation accuracy", lines("validation_accuracy"), "epoch", True),
        _chart("train-accuracy", "Training accuracy", lines("train_accuracy"), "epoch", True),
        _chart("validation-loss", "Validation loss", lines("validation_loss"), "epoch"),
        _chart("train-loss", "Training loss", lines("loss"), "epoch"),
    )
    return _Section("curves", "Accuracy and loss", "Colours as in the table above.", charts)


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">"""


def _page(title: str, body: str) -> str:
    css = Path(__file__).with_name("report.css").read_text("utf-8")
    return f"{_HEAD}<title>{_e(title)}</title><style>{css}</style></head>\n<body><main>{body}</main></body></html>\n"


def _write(path: Path, page: str) -> Path:
    """A reader sees the old page or the new one, never half."""
    try:
        write_atomic(path, page.encode("utf-8", "xmlcharrefreplace"))
    except RunError as error:
        raise ReportError(str(error)) from None
    return path
