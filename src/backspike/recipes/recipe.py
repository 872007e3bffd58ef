"""A recipe: everything that defines a training run, in one frozen value that can be saved as text.

The objects in it are values whose text is their repr: `Masked(Triangle(alpha=2.0), p=0.5)`. `parse`
reads such text with a whitelist of names, so a stranger's recipe can build values but cannot run
code. A recipe that a function in a Python file of the user's makes (`source`) may also hold the
file's own functions and classes, whose text is their name. This file does not import torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import augment as _augment
from ..data import mixing as _mixing
from ..errors import RecipeError
from ..models import ConvNet, Model
from ..options import VARYING
from ..options.distribution import Distribution, center
from .fields import settings, to_fields, with_field, with_stored
from .source import Source, call, parameters
from .source import text as repr_text
from .types import check_types
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
# fields that have no effect with data of the user's own, unless their function takes them
DATA_OPTIONS = ("root", "limit", "size", "upright", "speaker", "by", "sensor", "window")


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a training run. Its `window` is in microseconds.

    Functions return recipes (`bs.recipes.digits()`); `dataclasses.replace` makes variants.

    Functions of your own may stand for four fields. They are called with those fields of the recipe
    that they have parameters for, such as `T`, `neuron` or `limit`.
    model: returns a torch module `[T, B, ...] -> [T, B, K]`; or the module's class.
    data: returns data sets, (train, test) or (train, validation, test), or `bs.data.Splits`.
    neuron: `neuron(channels=c)` returns a layer; a network of your own calls it.
    loss: `loss(o, logits, y)`, as `Loss.value`.

    Raises RecipeError for a field of the wrong type or out of range, and for a field that is set
    although it has no effect.
    """

    name: str = _field("custom", "name of the run")
    data: str | Callable = _field(
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
    model: Model | Callable = _field(
        ConvNet(), "the network, such as VGGSNN() or ConvNet('32-P-64-P')"
    )
    neuron: Neuron | Callable = _field(
        Neuron(),
        "the neuron of every layer: LIF, PLIF, CubaLIF, AdaptiveLIF, CLIF, MPBN, QIF, EIF, AdEx, "
        "Izhikevich, BRF, RefractoryLIF or RefractoryCubaLIF, with its options in brackets; "
        "options that are not given keep their values",
    )
    norm: Norm | None = _field(None, f"{_calls(Norm)} instead of BatchNorm; None: as in the model")
    readout: Readout = _field(Mean(), f"how outputs over time become logits: {_calls(Readout)}")
    loss: Loss | Callable = _field(CrossEntropy(), _calls(Loss))
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
    convolution: str = _field(
        "exact",
        "3x3 convolutions on a CPU: exact, as torch computes them, or fast: with less arithmetic, "
        "in 16-bit integers, where it is faster, about as accurate as bfloat16",
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
    # no setting: the Python file that made this recipe, if one did
    source: Source | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_types(self)
        self._check_own()
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
        ways = ("exact", "fast")
        _require(self.convolution in ways, "convolution", "exact or fast", self.convolution)
        _require(self.optimizer.lr > 0, "optimizer.lr", "positive", self.optimizer.lr)
        self._check_rule()
        if self.mask_p_end is not None:
            _require(
                0 <= self.mask_p_end <= 1, "mask_p_end", "a probability in [0, 1]", self.mask_p_end
            )
        if isinstance(self.neuron, Neuron):
            self._check_neuron(self.neuron)

    def _check_own(self) -> None:
        """Refuses settings that functions of the user's own leave without effect."""
        if hasattr(self.model, "forward") and not isinstance(self.model, type):
            raise RecipeError(
                "model must be a function or a class that makes the network, so that each run gets "
                "one of its own; to train this module, call bs.fit(recipe, out, model=...)"
            )
        for f in settings(self):
            if f.name in self.unused and getattr(self, f.name) != f.default:
                function = repr_text(self.model if f.name in ("neuron", "norm") else self.data)
                raise RecipeError(
                    f"{f.name} has no effect, as {function} does not take it; give the function a "
                    f"parameter {f.name}, or leave {f.name} out"
                )
        if not isinstance(self.neuron, Neuron):
            if hasattr(self.neuron, "forward") and not isinstance(self.neuron, type):
                raise RecipeError(
                    "neuron must be a function or a class that makes a layer, got a layer; "
                    "return it from a function with the parameter channels"
                )
            for name in ("norm", "mask_p_end"):
                value = getattr(self, name)
                _require(value is None, name, "None with a neuron of your own", value)

    def _check_neuron(self, neuron: Neuron) -> None:
        if self.mask_p_end is not None:
            _require(
                neuron.mask is not None,
                "neuron.surrogate",
                "a Masked(...) surrogate where mask_p_end is set",
                neuron.surrogate,
            )
            _require(
                not (neuron.rescale and self.mask_p_end == 1),
                "mask_p_end",
                "below 1 with rescale",
                self.mask_p_end,
            )
        if not center(neuron.tau) > 1:
            raise RecipeError(f"neuron.tau must be above 1 timestep, got {neuron.tau}")
        for name in VARYING:
            drawn = isinstance(getattr(neuron, name, None), Distribution)
            if drawn and neuron.per == "layer":
                raise RecipeError(
                    f"neuron.{name} is drawn for each channel or neuron: set neuron.per to "
                    "channel or neuron"
                )

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

    @property
    def unused(self) -> set[str]:
        """The fields without effect: functions of the user's own that need them do not take them.

        Such a function has no parameter of that name.
        """
        names: set[str] = set()
        if not isinstance(self.model, Model):
            names |= {"neuron", "norm"} - {*parameters(self.model)}
        if not isinstance(self.data, str):
            names |= {*DATA_OPTIONS} - {*parameters(self.data)}
        return names

    def call(self, function: Callable[..., Any], **others: Any) -> Any:
        """Calls a function of the user's with those fields, or `others`, that it takes.

        Raises RecipeError for any error in it, in one line that names the line of the file.
        """
        return call(function, {f.name: getattr(self, f.name) for f in settings(self)} | others)

    def network(self) -> nn.Module:
        """The model, built with its neurons and norms: `[T, B, ...] -> [T, B, K]`."""
        norm = None
        if self.norm is not None and isinstance(self.neuron, Neuron):
            norm = self.norm.layers(self.T, center(self.neuron.v_threshold))
        if isinstance(self.model, Model):
            return self.model.build(self.neuron, *([norm] if norm else []))
        from torch import nn

        made = self.call(self.model, norm=norm)
        if not isinstance(made, nn.Module):
            raise RecipeError(
                f"{repr_text(self.model)} must return a torch.nn.Module, got {type(made).__name__}"
            )
        return made

    def loss_value(self, o: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of outputs `[T, B, K]`, logits `[B, K]` and targets `[B]` or `[B, K]`."""
        value: Any = self.loss.value if isinstance(self.loss, Loss) else self.loss
        weight = {"weight": self.class_weights} if self.class_weights else {}
        return value(o, logits, y, **weight)

    @property
    def own_neurons(self) -> bool:
        """Whether the neurons are made by the user's code, without the fields `neuron.*`."""
        return "neuron" in self.unused or not isinstance(self.neuron, Neuron)

    @property
    def part_size(self) -> int:
        """Samples per forward pass: `batch_size` split into `accumulate` parts."""
        return -(-self.batch_size // self.accumulate)

    def replace(self, changes: dict[str, Any]) -> Recipe:
        """A copy with changed fields, such as {"epochs": 3, "neuron.surrogate.p": "0.3"}.

        Strings are parsed as on the command line. Another kind of neuron, given as text, keeps the
        options that the text does not set. Raises RecipeError.
        """
        recipe, own = self, self.source.names() if self.source else {}
        for path, value in changes.items():
            recipe = with_field(recipe, path.split("."), value, path, own)
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """For JSON: dotted field names with numbers, strings and the repr of objects."""
        fields = to_fields(self)
        return {"name": fields.pop("name"), "fields": fields}

    @staticmethod
    def from_dict(stored: dict[str, Any], values: Iterable[Any] = ()) -> Recipe:
        """Reads what `to_dict` wrote. Raises RecipeError.

        values: your own classes (a surrogate, a model) and functions that the recipe names.
        """
        return Recipe().restored(stored, values)

    def restored(self, stored: dict[str, Any], values: Iterable[Any] = ()) -> Recipe:
        """This recipe with the fields that `to_dict` wrote. Raises RecipeError.

        A field with the same text stays as it is. values: as for `from_dict`; the names that the
        recipe's file defines are known.
        """
        if not isinstance(stored, dict) or not isinstance(stored.get("fields"), dict):
            raise RecipeError("not a recipe: expected an object with 'name' and 'fields'")
        own = self.source.names() if self.source else {}
        own |= {v.__name__: v for v in values}
        recipe = dataclasses.replace(self, name=str(stored.get("name")))
        now, fields = to_fields(recipe), stored["fields"]
        changes = {name: value for name, value in fields.items() if now.get(name, ...) != value}
        if "neuron" in changes:  # the defaults of another kind differ
            changes |= {k: v for k, v in fields.items() if str(k).startswith("neuron.")}
        # all at once, as some fields are valid only together
        return with_stored(recipe, changes, own)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Another process imports the recipe's file again, instead of its functions by name."""
        if self.source is None:
            return super().__reduce_ex__(protocol)
        return restore, (self.source, self.to_dict())


def restore(source: Source, stored: dict[str, Any]) -> Recipe:
    """The recipe that a file makes, with stored fields. Raises RecipeError if it has changed."""
    if Source.read(str(source)).sha256 != source.sha256:
        raise RecipeError(f"{source.file} has changed since this program started; start it again")
    return from_source(source).restored(stored)


def from_source(source: Source) -> Recipe:
    """The recipe that the function of a file makes, or that of a study that it makes.

    Imports the file. Raises RecipeError.
    """
    made = source.make()
    recipe = getattr(made, "base", made)
    if not isinstance(recipe, Recipe):
        given = type(made).__name__
        raise RecipeError(f"{source} must return a bs.Recipe or a bs.study.Study, got {given}")
    if recipe.name == settings(recipe)[0].default:
        recipe = dataclasses.replace(recipe, name=Path(source.file).stem)
    return dataclasses.replace(recipe, source=source)


def _require(ok: bool, name: str, wanted: str, got: Any) -> None:
    if not ok:
        raise RecipeError(f"{name} must be {wanted}, got {got}")
