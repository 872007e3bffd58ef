"""A recipe: everything that defines a training run, in one frozen value that can be saved as text.

The objects in it are values whose text is their repr: `Masked(Triangle(alpha=2.0), p=0.5)`. `parse`
reads such text with a whitelist of names, so a stranger's recipe can build values but cannot run
code. This file does not import torch.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from ..data import augment as _augment
from ..data import mixing as _mixing
from ..errors import RecipeError, nearest
from ..models import ConvNet, Model
from .text import VALUES, options_in, parse
from .types import EXAMPLES, check_types, describe, fits, hints
from .values import (
    PDA,
    SGS,
    TEBN,
    AdamW,
    CrossEntropy,
    Loss,
    Mean,
    Neuron,
    Norm,
    Optimizer,
    Readout,
    Schedule,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger("backspike")


def _field(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _calls(kind: Any) -> str:
    """All values of a kind, for help: "Mean(), Last() or TWO(beta, start_epoch, cumulative)"."""
    names = [(c.__name__, [f.name for f in dataclasses.fields(c)]) for c in kind.__subclasses__()]
    *others, last = (f"{name}({', '.join(options)})" for name, options in names)
    return f"{', '.join(others)} or {last}"


# fields that are chosen when a run starts, with the values that ask for it: train/precision.py,
# train/setup.py
OPEN = {"precision": "auto", "channels_last": None, "class_weights": "balanced"}


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a training run.

    Functions return recipes (`bs.recipes.digits()`); `dataclasses.replace` makes variants. Raises
    RecipeError for a field of the wrong type or out of range.
    """

    name: str = _field("custom", "name of the run")
    data: str = _field(
        "digits",
        "name of the data set, see `backspike data`; of your own: recordings:FOLDER, "
        "pictures:FOLDER",
    )
    root: str = _field("", "folder with the data; empty: BACKSPIKE_DATA, then ./data")
    limit: int = _field(
        0, "use only this many training samples, with the same share of each class; 0: all"
    )
    T: int = _field(4, "number of timesteps")
    size: int = _field(
        0,
        "side length to which event frames (or ImageNet images) are reduced; "
        "0 keeps the sensor's resolution (224 for ImageNet)",
    )
    upright: bool = _field(
        True, "DVS-CIFAR10: upright images; False: pixels and polarity as the camera stores them"
    )
    speaker: str = _field(
        "yweweler", "spoken digits: the speaker of the test samples; the one before validates"
    )
    by: str = _field(
        "time", "what is equal in all event frames of a sample: duration (time) or events (count)"
    )
    sensor: tuple[int, ...] = _field(
        (), "own recordings: height and width of the sensor in pixels, such as (128, 128)"
    )
    window: int = _field(
        0,
        "own recordings: cut them into samples of so many microseconds; 0: a recording is a sample",
    )
    has_time: bool | None = _field(
        None,
        "whether samples already have a time axis [T, ...]; "
        "None: assume so for 4-dimensional samples",
    )
    model: Model = _field(ConvNet(), "the network, such as VGGSNN() or ConvNet('32-P-64-P')")
    neuron: Neuron = _field(
        Neuron(),
        "the neuron of every layer: LIF, PLIF, CubaLIF, AdaptiveLIF, CLIF or MPBN, with its "
        "options in brackets; options that are not given keep their values",
    )
    norm: Norm | None = _field(None, f"{_calls(Norm)} instead of BatchNorm; None: as in the model")
    readout: Readout = _field(Mean(), f"how outputs over time become logits: {_calls(Readout)}")
    loss: Loss = _field(CrossEntropy(), _calls(Loss))
    class_weights: tuple[float, ...] | str = _field(
        (),
        "weight of each class in the loss, such as (1.0, 2.5); balanced: N / (K n) for a class "
        "with n of N samples, K classes; (): all equal",
    )
    mask_p_end: float | None = _field(
        None, "change the probability of Masked linearly over the epochs to this value"
    )
    weight_mask: float = _field(0.0, "MSG of weights: probability of dropping an element of dL/dW")
    potential: PDA | None = _field(
        None, "PDA(strength, target, ...): adjust the distribution of the potentials; None: off"
    )
    scaling: SGS | None = _field(
        None, "SGS(alpha, pair, ...): scale weight gradients by spikes; None: off"
    )
    rule: str = _field(
        "bptt",
        "how gradients pass through time: bptt; checkpoint, the same gradients with memory of "
        "sqrt(T); sltt or ottt, online with memory that does not grow with T",
    )
    truncate: int = _field(
        0,
        "truncated bptt: no gradient passes from one chunk of this many timesteps into the one "
        "before; 0: off",
    )
    freeze_width: int = _field(
        0, "stop learning widths, thresholds and taus after this many epochs; 0: never"
    )
    optimizer: Optimizer = _field(AdamW(), _calls(Optimizer))
    start_from: str = _field(
        "",
        "fine-tuning: the run, hf://user/name or network of the package whose weights the network "
        "starts with, by name; --from sets it",
    )
    freeze: str = _field(
        "",
        "layers and parameters that do not learn: names, with * and ?, separated by commas, such "
        "as features.0,features.2*",
    )
    epochs: int = _field(10, "passes over the training split")
    batch_size: int = _field(64, "samples per step")
    sampling: str = _field(
        "shuffled",
        "training samples of an epoch: shuffled, or balanced: drawn with replacement, all classes "
        "equally often",
    )
    accumulate: int = _field(1, "split each step into this many parts to save memory")
    sync_norm: bool = _field(
        True,
        "with several ranks, BatchNorm uses the statistics of the whole batch, "
        "not of each rank's share",
    )
    warmup_epochs: float = _field(0.0, "epochs over which the learning rate rises from 0")
    schedule: str | Schedule = _field(
        "cosine", f"learning rate after the warm-up: cosine (to 0), constant, {_calls(Schedule)}"
    )
    clip: float = _field(0.0, "clip the gradient to this norm; 0: no clipping")
    ema: float = _field(
        0.0, "decay of the moving average of the weights that is evaluated and saved; 0: none"
    )
    patience: int = _field(
        0, "stop after this many epochs without a better validation accuracy; 0: never"
    )
    augment: tuple[_augment.Augment | _mixing.Mixing, ...] = _field(
        (), "random changes to training samples, such as (Crop(4), Flip())"
    )
    precision: str = _field(
        "auto",
        "float32, bfloat16 or float16 (autocast; float16 scales the loss), or auto: bfloat16 if "
        "the hardware gains from it",
    )
    channels_last: bool | None = _field(
        None, "channels-last memory layout of images and convolutions; None: where it is faster"
    )
    cuda_graph: bool | None = _field(
        None, "on a GPU, record a step once and replay it; None: if the step can be recorded"
    )
    memory_limit: int = _field(
        0,
        "bytes that a training may take, of its GPU, or else of memory (Linux); set by --memory; "
        "0: no limit",
    )
    workers: int = _field(0, "processes that load samples of data sets too large for memory")
    seed: int = _field(0, "seed of weights, sample order, augmentation and masks")
    checkpoint_seconds: float = _field(60.0, "seconds between checkpoints within an epoch")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("T", "epochs", "batch_size", "accumulate"):
            _require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in (
            "limit",
            "size",
            "window",
            "freeze_width",
            "truncate",
            "warmup_epochs",
            "clip",
            "patience",
            "seed",
            "checkpoint_seconds",
            "workers",
            "memory_limit",
        ):
            _require(getattr(self, name) >= 0, name, "not negative", getattr(self, name))
        # recipes are untrusted input: bound every size that could exhaust memory or processes
        for name, most in {
            "T": 1_000_000,
            "workers": 256,
            "batch_size": 1 << 31,
            "accumulate": 1 << 31,
        }.items():
            _require(getattr(self, name) <= most, name, f"at most {most:,}", getattr(self, name))
        _require(self.seed < 2**40, "seed", "below 2^40", self.seed)
        _require(
            0 <= self.weight_mask <= 1, "weight_mask", "a probability in [0, 1]", self.weight_mask
        )
        _require(0 <= self.ema < 1, "ema", "in [0, 1)", self.ema)
        self._check_schedule()
        _require(
            self.class_weights == "balanced"
            or (
                not isinstance(self.class_weights, str) and all(w >= 0 for w in self.class_weights)
            ),
            "class_weights",
            "balanced, or a tuple of weights that are not negative",
            self.class_weights,
        )
        _require(
            self.sampling in ("shuffled", "balanced"),
            "sampling",
            "shuffled or balanced",
            self.sampling,
        )
        _require(self.by in ("time", "count"), "by", "time or count", self.by)
        precisions = ("auto", "float32", "bfloat16", "float16")
        _require(
            self.precision in precisions,
            "precision",
            "auto, float32, bfloat16 or float16",
            self.precision,
        )
        _require(self.optimizer.lr > 0, "optimizer.lr", "positive", self.optimizer.lr)
        self._check_rule()
        if self.mask_p_end is not None:
            _require(
                0 <= self.mask_p_end <= 1, "mask_p_end", "a probability in [0, 1]", self.mask_p_end
            )
            _require(
                self.neuron.mask is not None,
                "neuron.surrogate",
                "a Masked(...) surrogate where mask_p_end is set",
                self.neuron.surrogate,
            )
            _require(
                not (self.neuron.rescale and self.mask_p_end == 1),
                "mask_p_end",
                "below 1 with rescale",
                self.mask_p_end,
            )
        if not self.neuron.tau > 1:
            raise RecipeError(f"neuron.tau must be above 1 timestep, got {self.neuron.tau}")

    def _check_schedule(self) -> None:
        _require(
            isinstance(self.schedule, Schedule) or self.schedule in ("cosine", "constant"),
            "schedule",
            f"cosine, constant, {_calls(Schedule)}",
            self.schedule,
        )

    def _check_rule(self) -> None:
        rules = ("bptt", "checkpoint", "sltt", "ottt")
        _require(self.rule in rules, "rule", f"one of {', '.join(rules)}", self.rule)
        if not self.in_chunks:
            return
        _require(
            self.rule == "bptt" or not self.truncate,
            "truncate",
            f"0 with rule {self.rule}",
            self.truncate,
        )
        what = f"rule {self.rule}" if self.rule != "bptt" else f"truncate {self.truncate}"
        for name in ("potential", "scaling"):
            # they look at all timesteps at once
            _require(getattr(self, name) is None, name, f"None with {what}", getattr(self, name))
        _require(not isinstance(self.norm, TEBN), "norm", f"another one with {what}", self.norm)

    @property
    def in_chunks(self) -> bool:
        """Whether gradients are computed in chunks of time."""
        return self.rule != "bptt" or self.truncate > 0

    def network(self) -> nn.Module:
        """The model, built with its neurons and norms: `[T, B, ...] -> [T, B, K]`."""
        if self.norm is None:
            return self.model.build(self.neuron)
        return self.model.build(self.neuron, self.norm.layers(self.T, self.neuron.v_threshold))

    def loss_value(self, o: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """The loss, with the class weights. Shapes are those of `Loss.value`."""
        if not self.class_weights:
            return self.loss.value(o, logits, y)
        return self.loss.value(o, logits, y, weight=self.class_weights)  # type: ignore[call-arg]

    @property
    def part_size(self) -> int:
        """Samples per forward pass: `batch_size` split into `accumulate` parts."""
        return -(-self.batch_size // self.accumulate)

    def replace(self, changes: dict[str, Any]) -> Recipe:
        """A copy with changed fields, such as {"epochs": 3, "neuron.surrogate.p": "0.3"}.

        Strings are parsed as on the command line. Another kind of neuron, given as text, keeps the
        options that the text does not set. Raises RecipeError.
        """
        recipe = self
        for path, value in changes.items():
            recipe = _with(recipe, path.split("."), value, path)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """For JSON: dotted field names with numbers, strings and the repr of objects."""
        fields = _flat(self)
        return {"name": fields.pop("name"), "fields": fields}

    @staticmethod
    def from_dict(stored: dict[str, Any], values: Iterable[type] = ()) -> Recipe:
        """Reads what `to_dict` wrote. Raises RecipeError.

        values: your own classes (a surrogate, a model) that the recipe names.
        """
        if not isinstance(stored, dict) or not isinstance(stored.get("fields"), dict):
            raise RecipeError("not a recipe: expected an object with 'name' and 'fields'")
        extra: dict[str, Callable[..., Any]] = {v.__name__: v for v in values}
        recipe = Recipe(name=str(stored.get("name")))
        texts = {*_text_fields(Recipe), *(f"neuron.{name}" for name in _text_fields(Neuron))}
        changes = {
            k: parse(v, extra) if isinstance(v, str) and v.endswith(")") and k not in texts else v
            for k, v in stored["fields"].items()
        }
        # all at once, as some fields are valid only together
        return _rebuild(recipe, changes)


def _rebuild(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    own = {k: _from_json(recipe, k, v) for k, v in changes.items() if "." not in k}
    neuron = {k.split(".", 1)[1]: v for k, v in changes.items() if k.startswith("neuron.")}
    kind = own.pop("neuron", recipe.neuron)
    if not isinstance(kind, Neuron):
        raise RecipeError(f"neuron must be a value such as {EXAMPLES['Neuron']}, got {kind!r}")
    if unknown := [k for k in changes if "." in k and not k.startswith("neuron.")]:
        raise RecipeError(f"not a field of a recipe: {unknown[0]}")
    for owner, names in ((recipe, own), (kind, neuron)):
        for name in names:
            _known(owner, name, name)
    parts = {k: _from_json(kind, k, v) for k, v in neuron.items()}
    return dataclasses.replace(recipe, neuron=dataclasses.replace(kind, **parts), **own)


def _from_json(owner: Any, name: str, value: Any) -> Any:
    """Undoes what JSON cannot hold: tuples and infinity."""
    if isinstance(value, list):
        return tuple(value)
    if value in ("inf", "-inf") and isinstance(getattr(owner, name, None), float):
        return float(value)
    return value


def _flat(recipe: Recipe) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for f in dataclasses.fields(recipe):
        value = getattr(recipe, f.name)
        if isinstance(value, Neuron):
            out[f.name] = f"{type(value).__name__}()"
            out |= {
                f"{f.name}.{g.name}": _text(getattr(value, g.name))
                for g in dataclasses.fields(value)
            }
        else:
            out[f.name] = _text(value)
    return out


def _text(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return repr(value)
    return value if value is None or isinstance(value, str | bool | int | float) else repr(value)


def _text_fields(owner: type) -> list[str]:
    return [name for name, hint in hints(owner).items() if hint is str]


def _require(ok: bool, name: str, wanted: str, got: Any) -> None:
    if not ok:
        raise RecipeError(f"{name} must be {wanted}, got {got}")


def _known(owner: Any, name: str, path: str) -> None:
    if not dataclasses.is_dataclass(owner):
        raise RecipeError(f"{path}: {owner!r} has no fields")
    names = [f.name for f in dataclasses.fields(owner)]
    if name not in names:
        kind = type(owner).__name__
        raise RecipeError(f"{path}: no field of {kind} has this name{nearest(name, names)}")


def _with(owner: Any, path: list[str], value: Any, whole: str) -> Any:
    _known(owner, path[0], whole)
    old = getattr(owner, path[0])
    hint = hints(type(owner)).get(path[0])  # type: ignore[arg-type]
    if len(path) > 1:
        new = _with(old, path[1:], value, whole)
    elif not isinstance(value, str) or hint is str or _is_word(value, hint):
        new = value
    elif isinstance(old, Neuron):
        new = _other_neuron(old, value, whole)
    else:
        try:
            new = parse(value, {}, whole)
        except RecipeError:
            if all(kind in (int, float, bool, type(None)) for kind in get_args(hint) or (hint,)):
                raise RecipeError(f"{whole} must be {describe(hint)}, got {value!r}") from None
            if hint == tuple[str, ...]:
                raise RecipeError(
                    f"{whole} must be a tuple of strings such as ('threshold',), got {value!r}"
                ) from None
            raise
    try:
        return dataclasses.replace(owner, **{path[0]: new})
    except RecipeError:
        raise
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{whole}: {e}") from None


def _is_word(text: str, hint: Any) -> bool:
    """Whether text for a field that takes strings and values, such as the schedule, is a string."""
    is_union = getattr(hint, "__origin__", None) is not tuple
    return is_union and str in get_args(hint) and not text.strip().endswith(")")


def _other_neuron(old: Neuron, text: str, path: str) -> Any:
    """The neuron in `text`, with the options of `old` that the text does not set."""
    text = text.strip()
    new = parse(f"{text}()" if text in VALUES else text, {}, path)
    if not isinstance(new, Neuron):  # the recipe refuses it
        return new
    kind, set_in_text = type(new), options_in(text, type(new))
    types = hints(kind)
    kept, lost = {}, []
    for f in dataclasses.fields(old):
        value = getattr(old, f.name)
        if f.name in set_in_text:
            continue
        if f.name in types and fits(value, types[f.name]):
            kept[f.name] = value
        else:
            lost.append(f"{f.name}={value!r}")
    if lost:
        name = "LIF" if kind is Neuron else kind.__name__
        logger.warning("%s: %s cannot keep %s", path, name, ", ".join(lost))
    return dataclasses.replace(new, **kept)
