"""The reference: every public name is on one page, from its docstring."""

import inspect
from pathlib import Path

import backspike as bs
from backspike.models import NETWORKS
from backspike.recipes.fields import settings

from .markdown import table
from .public_names import public_names

# a page's sections, and the names in them; "module.*" is all of a module's
PAGES = {
    "neurons": {
        "The neuron": "lif LIF IF PLIF Output",
        "Kinds of neurons": "AdaptiveLIF CLIF CubaLIF MPBN PSN Integrator Recurrent",
        "By their equations": "Neuron QIF EIF AdEx Izhikevich BRF RefractoryLIF RefractoryCubaLIF",
        "Constants": "ms Gamma Normal Uniform UniformDecay",
        "Streaming": "streaming",
    },
    "surrogates": {
        "Shapes": "ATan Dspike Erf PiecewiseExponential Rectangle Sigmoid SuperSpike Triangle",
        "Around another": "Masked Parametric",
        "Your own": "Surrogate",
        "The mask": "dropped",
    },
    "layers": {
        "Layers over time": "OverTime Sequential block Dropout Delay",
        "Norms": "TDBN TEBN",
        "Networks of torch": "from_torch",
        "Fast convolutions": "set_convolution",
    },
    "methods": {
        "Methods": "mask_weight_gradients PotentialAdjustment scale_gradients",
        "Long sequences": "backward_in_chunks ottt",
        "Losses": "loss.*",
        "Readouts": "readout.*",
    },
    "data": {
        "Encoders": "encode.*",
        "Data": "data.*",
    },
    "recipes": {
        "Recipes": "Recipe recipes.*",
        "Networks": "models.*",
        "Initial weights": "init.*",
    },
    "training": {
        "Training": "fit resume evaluate",
        "Trained networks": "load Predictor",
        "Memory": "plan_memory keep_heap lean_heap release_heap",
    },
    "inside": {
        "Looking inside": "record summary explain examine check_gradients",
        "Plots": "plot.*",
    },
    "exchange": {
        "NIR": "nir.*",
        "ONNX": "onnx.*",
        "Other libraries": "convert convert_state_dict",
        "Streams": "stream",
    },
    "checks": {
        "Backends": "backends Unsupported",
        "The certificate": "certify.*",
        "Studies": "study.*",
    },
}
# values that are neither functions nor classes have no docstring
VALUES = {
    "certify.AXES": "The options that are combined, each with the values it takes.",
    "certify.TOLERANCE": "The largest relative error that passes, for each dtype.",
    "recipes.GRADES": "What the grades of evidence mean, as in the [methods](../methods.md).",
    "recipes.NAMES": "All shipped recipes by name; see the [gallery](../gallery/recipes.md).",
}
BUILDERS = {f.__name__ for f in vars(bs.models).values() if inspect.isfunction(f)} - {"pretrained"}


def page(folder: Path, name: str) -> str:
    """The sections of a page."""
    parts = []
    for title, words in PAGES[name].items():
        parts += [f"## {title}", *(_entry(found) for found in names(words))]
    return "\n\n".join(parts)


def names(words: str) -> list[str]:
    """The public names that the words stand for."""
    known = public_names()
    found: list[str] = []
    for word in words.split():
        inner = word.removesuffix("*")
        found += [n for n in known if n.startswith(inner)] if inner != word else [word]
    return found


def fields(folder: Path) -> str:
    """The fields of a recipe."""
    recipe = bs.Recipe()
    rows = [
        [f"`{field.name}`", f"`{getattr(recipe, field.name)!r}`", field.metadata.get("help", "")]
        for field in settings(recipe)
    ]
    return table(["field", "default", "meaning"], rows, "lll")


def _entry(name: str) -> str:
    if name in VALUES:
        return f"```{{py:data}} backspike.{name}\n{VALUES[name]}\n```"
    builder = name.removeprefix("models.")
    if builder in BUILDERS:
        return _builder(builder)
    kind = "class" if inspect.isclass(public_names()[name]) else "function"
    if kind == "class" and issubclass(public_names()[name], Exception):
        kind = "exception"
    members = (
        "\n   :members:\n   :show-inheritance:\n   :exclude-members: kind"
        if kind == "class"
        else ""
    )
    return f"```{{eval-rst}}\n.. auto{kind}:: backspike.{name}{members}\n```"


def _builder(name: str) -> str:
    (value,) = (
        kind.__name__ for kind in NETWORKS if kind.__name__.lower() == name.replace("_", "")
    )
    signature = inspect.signature(getattr(bs.models, name)).replace(
        return_annotation=inspect.Signature.empty
    )
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    text = (
        f"The module that [{value}](#backspike.models.{value}) builds, `[T, B, ...] -> [T, B, K]`."
    )
    call = f"backspike.models.{name}{signature.replace(parameters=bare)}"
    return f"```{{py:function}} {call}\n{text}\n```"
