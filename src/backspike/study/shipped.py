"""The shipped studies. Each is a function from the name of a data set to a `Study`, sized for two
cores.

`NAMES` lists them for the command line; `backspike study` prints the first line of each docstring.
Every study starts from the recipe of its data set with all methods and weight averaging switched
off (`plain`); its arms switch methods on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .. import recipes
from ..errors import StudyError, nearest
from ..models import ConvNet, Model
from ..recipes.recipe import Recipe, from_source
from ..recipes.source import Source, text
from ..recipes.values import PDA, SGS, TWO, Mean
from ..surrogate import ATan, Masked, Parametric, Surrogate, Triangle
from .spec import Arm, Study

if TYPE_CHECKING:
    from .single_neuron import Experiment


class _Size(NamedTuple):
    # a second network, for accuracy against the mask's probability
    small: Model | Callable
    # with pairs of layers of the same size, between which SGS can scale
    even: Model | Callable
    epochs: int = 0
    limit: int = 0
    recipe: str = ""  # if its name is not that of the data set


_SIZES = {
    "digits": _Size(ConvNet("8-P-16-P", size=8), ConvNet("16-16-P-32-32-P", size=8), 20, 0),
    "digits-dvs": _Size(
        ConvNet("8-P-16-P", in_channels=2, size=17),
        ConvNet("8-8-P-16-16-P", in_channels=2, size=17),
        12,
        0,
    ),
    "mnist": _Size(ConvNet("8-P-16-P", size=28), ConvNet("8-8-P-16-16-P", size=28), 5, 5000),
    "cifar10": _Size(
        ConvNet("32-P-64-P-128-P", in_channels=3, size=32),
        ConvNet("32-32-P-64-64-P-128-128-P", in_channels=3, size=32),
        15,
        0,
        "cifar10-small",
    ),
}
TRIANGLE = Triangle(alpha=2.0)


def _recipe(data: str) -> tuple[Recipe, _Size]:
    """The recipe of a data set, shortened, or of a Python file of the user's, as it is."""
    if recipes.is_file(data):
        recipe = recipes.from_file(data)
        return recipe, _Size(recipe.model, recipe.model)
    size = _SIZES[data]
    recipe = recipes.get(size.recipe or data)
    return recipe.replace({"epochs": size.epochs, "limit": size.limit}), size


def plain(data: str) -> Recipe:
    """The recipe of a data set without a mask, with the mean over time as readout, shortened.

    It uses float32 on every machine, so that arms differ only in their methods.
    """
    changes = {"neuron.surrogate": TRIANGLE, "readout": Mean(), "ema": 0.0, "precision": "float32"}
    return _recipe(data)[0].replace(changes)


def _two(data: str) -> TWO:
    """The readout TWO of the data set's recipe, or of its own if a user's recipe has another."""
    readout = _recipe(data)[0].readout
    return readout if isinstance(readout, TWO) else TWO(start_epoch=1)  # such runs may be short


def ablation(data: str) -> Study:
    """MSG, TWO and both against neither (paper A)."""
    masked = {"neuron.surrogate": Masked(TRIANGLE, p=0.5)}
    two = {"readout": _two(data)}
    arms = (
        Arm("baseline"),
        Arm("TWO", two),
        Arm("MSG", masked),
        Arm("MSG + TWO", {**masked, **two}),
    )
    return Study(
        "", "", plain(data), arms, "baseline", ("dots", "curves", "firing", "weights"), seeds=10
    )


def mask_probability(data: str) -> Study:
    """Accuracy against the mask's probability, for several networks and surrogates (paper A)."""
    base = plain(data)
    small = _recipe(data)[1].small
    models = (base.model,) if data == "digits-dvs" or small is base.model else (base.model, small)
    arms = []
    # fewer arms on event data, where a run takes several times as long
    few = data == "digits-dvs"
    for model in models:
        for surrogate in (TRIANGLE,) if few else (TRIANGLE, ATan(alpha=2.0)):
            name = getattr(model, "layout", None) or text(model).partition("(")[0]
            line = f"{name} {type(surrogate).__name__}"
            for p in (0.0, 0.25, 0.5, 0.75, 0.9) if few else (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
                changes = {"model": model, "neuron.surrogate": Masked(surrogate, p=p)}
                arms.append(Arm(f"{line} p={p:g}", changes, against=f"{line} p=0", x=p, line=line))
    return Study(
        "", "", base, tuple(arms), arms[0].name, ("sweep",), xlabel="probability of the mask"
    )


def surrogate_width(data: str) -> Study:
    """Surrogates from too narrow to too wide, with and without the mask (paper A)."""
    arms = []
    for line, wrap in (("no mask", _same), ("MSG", _masked)):
        for width in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0):
            name = f"width {width:g}" + (" MSG" if wrap is _masked else "")
            arms.append(
                Arm(name, {"neuron.surrogate": wrap(Triangle(alpha=1 / width))}, x=width, line=line)
            )
    xlabel = "half width of the triangle"
    return Study(
        "",
        "",
        plain(data),
        tuple(arms),
        "width 0.5",
        ("gradients", "sweep"),
        xlabel=xlabel,
        log_x=True,
    )


def _same(surrogate: Surrogate) -> Surrogate:
    return surrogate


def _masked(surrogate: Surrogate) -> Surrogate:
    return Masked(surrogate, p=0.5)


def tsbp_toy(data: str) -> Experiment:
    """One neuron learns a spike train: three gradient rules over learning rates (paper B)."""
    from .single_neuron import Experiment

    return Experiment()


def reset_gradient(data: str) -> Study:
    """Spatial only, STBP (detached reset) and TSBP (gradient through the reset) (paper B)."""
    arms = (
        Arm("spatial only", {"neuron.temporal_gradient": False}),
        Arm("STBP", {"neuron.reset_gradient": 0.0}),
        Arm("TSBP", {"neuron.reset_gradient": 1.0}),
    )
    return Study("", "", plain(data), arms, "STBP", ("dots", "curves", "firing"), seeds=10)


def psg_pda(data: str) -> Study:
    """Learned widths, adjusted potentials and both against neither (paper C)."""
    psg, pda = {"neuron.surrogate": Parametric(TRIANGLE)}, {"potential": PDA(strength=1e-2)}
    arms = (Arm("baseline"), Arm("PSG", psg), Arm("PDA", pda), Arm("PSG + PDA", {**psg, **pda}))
    return Study(
        "",
        "",
        plain(data),
        arms,
        "baseline",
        ("dots", "curves", "membranes", "widths", "firing"),
        seeds=10,
    )


def gradient_scaling(data: str) -> Study:
    """Gradients scaled by local spikes, at two strengths and two pairings (paper D)."""
    scaled = [
        Arm(f"SGS {alpha:g} {pair}", {"scaling": SGS(alpha, pair)})
        for alpha in (0.1, 0.5)
        for pair in ("pre_post", "pre_pre")
    ]
    base = dataclasses.replace(plain(data), model=_recipe(data)[1].even)
    return Study(
        "",
        "",
        base,
        (Arm("baseline"), *scaled),
        "baseline",
        ("spikes", "dots", "curves", "firing"),
        seeds=10,
    )


def precision(data: str) -> Study:
    """The recipe in float32 and in bfloat16 (autocast): the cost in accuracy of the faster one."""
    base, _ = _recipe(data)
    arms = (Arm("float32", {"precision": "float32"}), Arm("bfloat16", {"precision": "bfloat16"}))
    return Study("", "", base, arms, "float32", ("dots", "curves", "firing"), seeds=10)


def convolution(data: str) -> Study:
    """Convolutions as torch computes them and fast (Winograd, 16 bits): the cost in accuracy."""
    base, _ = _recipe(data)
    arms = (Arm("exact"), Arm("fast", {"convolution": "fast"}))
    return Study("", "", base, arms, "exact", ("dots", "curves", "firing"), seeds=6)


def methods(data: str) -> Study:
    """Each method of papers A to C alone against one baseline, and all of them together."""
    paper_a = ablation(data)
    others = (
        *(Arm(f"MSG p={p:g}", {"neuron.surrogate": Masked(TRIANGLE, p=p)}) for p in (0.25, 0.75)),
        *reset_gradient(data).arms[1:],
        *psg_pda(data).arms[1:],
        Arm("all", _parts(data, "MSG", "TWO", "PSG", "PDA", "TSBP")),
    )
    base = paper_a.base  # it is either STBP or TSBP
    more = [arm for arm in others if base.replace(dict(arm.changes)) != base]
    return dataclasses.replace(paper_a, arms=(*paper_a.arms, *more), seeds=6)


def everything(data: str) -> Study:
    """All methods of the four papers together, and each left out in turn."""
    parts = ("MSG", "TWO", "PSG", "PDA", "SGS", "TSBP")
    left_out = [Arm(f"no {part}", _parts(data, *(p for p in parts if p != part))) for part in parts]
    arms = (Arm("everything", _parts(data, *parts)), *left_out, Arm("nothing", _parts(data)))
    base = dataclasses.replace(plain(data), model=_recipe(data)[1].even)
    return Study("", "", base, arms, "everything", ("dots", "curves", "firing"), seeds=10)


def _parts(data: str, *parts: str) -> dict[str, object]:
    """The fields that switch these methods on and the others off."""
    surrogate: Surrogate = Parametric(TRIANGLE) if "PSG" in parts else TRIANGLE
    return {
        "neuron.surrogate": Masked(surrogate, p=0.5) if "MSG" in parts else surrogate,
        "neuron.reset_gradient": 1.0 if "TSBP" in parts else 0.0,
        "readout": _two(data) if "TWO" in parts else Mean(),
        "potential": PDA(strength=1e-2) if "PDA" in parts else None,
        "scaling": SGS(alpha=0.5) if "SGS" in parts else None,
    }


NAMES: dict[str, Callable[[str], Study | Experiment]] = {
    "ablation": ablation,
    "mask-probability": mask_probability,
    "surrogate-width": surrogate_width,
    "tsbp-toy": tsbp_toy,
    "reset-gradient": reset_gradient,
    "psg-pda": psg_pda,
    "gradient-scaling": gradient_scaling,
    "precision": precision,
    "convolution": convolution,
    "methods": methods,
    "everything": everything,
}


def from_file(word: str) -> Study:
    """The study that a function in your own Python file returns: "mine.py:arms".

    Imports the file. Raises RecipeError, and StudyError if the function returns something else.
    """
    source = Source.read(word)
    study = source.make()
    if not isinstance(study, Study):
        raise StudyError(
            f"{source} must return a bs.study.Study, got {type(study).__name__}; to compare "
            f"methods on a recipe: backspike study ablation --data {word}"
        )
    return dataclasses.replace(study, base=from_source(source))


def about(name: str) -> str:
    """What the study compares, in one line."""
    return (NAMES[name].__doc__ or "").splitlines()[0]


def get(name: str, data: str = "digits") -> Study | Experiment:
    """The study of that name on a data set, or on your own recipe ("mine.py:recipe").

    Raises StudyError if there is none, and RecipeError.
    """
    if name not in NAMES:
        raise StudyError(f"unknown study {name!r}{nearest(name, NAMES)}")
    if data not in _SIZES and not recipes.is_file(data):
        raise StudyError(
            f"there are no studies for the data set {data!r}; choose one of: {', '.join(_SIZES)}, "
            "or your own recipe, as in mine.py:recipe"
        )
    study = dataclasses.replace(NAMES[name](data), name=name, about=about(name))
    return dataclasses.replace(study, shipped=study.base) if isinstance(study, Study) else study
