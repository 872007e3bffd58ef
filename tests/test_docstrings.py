"""Every public name says what it takes, in which shapes and units, what it raises and its source.

What can be checked is checked: a tensor among the arguments or results needs a shape, a duration a
unit, an exception that the code raises its name, and what comes from a paper the paper.
"""

import ast
import inspect
import re
import sys
import textwrap

import pytest
from backspike_site.public_names import public_names

import backspike as bs

NAMES = public_names()
DOCUMENTED = {n: v for n, v in NAMES.items() if inspect.isclass(v) or inspect.isfunction(v)}

SHAPE = re.compile(r"\[(T|B|N|C|K|S|L|1|2|states|T - 1)\b[^\]]*\]|0-dim|scalar|\bshape\b|same size")
DURATION = re.compile(r"tau\w*|dt|window|hop|omega|max_delay|sigma|budget")
UNIT = re.compile(r"timesteps?\b|\bms\b|microseconds|\bseconds?\b|radians|\bbytes\b")
PAPER = re.compile(r"\b(19|20)\d\d\b|methods\.md|docs/methods|\bpaper [A-D]\b")
# where names stand for something published
PUBLISHED = (
    *("surrogate", "neuron", "methods", "models", "readout", "loss", "options.distribution"),
    *("layers.norm", "layers.mpbn", "layers.delay", "layers.dropout", "layers.from_torch"),
)
NO_SOURCE = {
    "Normal": "a distribution",
    "Uniform": "a distribution",
    "Output": "a result",
    "Surrogate": "the formula is the user's",
    "check_gradients": "a check",
    "record": "it observes",
    "streaming": "it carries states on",
    "readout.Last": "an output as it is",
    "readout.Mean": "a mean",
    "loss.of_logits": "torch's",
    "loss.cross_entropy": "torch's, of a mean",
    "loss.firing_rate_penalty": "a squared distance",
    "loss.spike_count_cross_entropy": "torch's, of a sum",
    "loss.spike_count_mse": "torch's, of a mean",
    "Recurrent": "any recurrent layer",
    "ms": "a conversion of units",
    "models.pretrained": "a list",
    "models.MLP": "any fully connected network",
    "models.mlp": "any fully connected network",
    "models.ConvNet": "any convolutional network",
    "models.convnet": "any convolutional network",
}


def own_text(value):
    """Its docstring; of a class also those of the public classes that it extends."""
    if not inspect.isclass(value):
        return inspect.getdoc(value) or ""
    public = [kind for kind in value.__mro__ if kind is value or kind in NAMES.values()]
    return "\n".join(vars(kind).get("__doc__") or "" for kind in public)


def callables(value):
    """The functions in which a class or function receives its arguments."""
    if not inspect.isclass(value):
        return [inspect.unwrap(value)]
    names = ("__init__", "__post_init__", "__new__", "forward", "__call__")
    return [f for f in map(vars(value).get, names) if inspect.isfunction(f)]


def annotations(function):
    return [str(a) for a in getattr(function, "__annotations__", {}).values()]


def takes_arrays(value):
    found = [text for f in callables(value) for text in annotations(f)]
    if inspect.isclass(value):
        found += [str(a) for a in vars(value).get("__annotations__", {}).values()]
    return any("Tensor" in text or "ndarray" in text for text in found)


def raised(value):
    """The exceptions that its code raises, with that of the functions of its file that it calls."""
    functions = callables(value)
    module = sys.modules[value.__module__]
    todo, seen, found = [*functions], set(), set()
    while todo:
        function = todo.pop()
        if function in seen or function.__module__ != value.__module__:
            continue
        seen.add(function)
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        except (OSError, SyntaxError):  # made by dataclass, or a lambda
            continue
        for node in reaching(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                found.add(exception(node.exc.func))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                called = vars(module).get(node.func.id)
                todo += [inspect.unwrap(called)] if inspect.isfunction(called) else []
    return found - {None, "NotImplementedError", "AttributeError"}


def reaching(tree):
    """All nodes but those from which every exception is caught and turned into another."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try) and any(
            exception(h.type) == "Exception" for h in node.handlers
        ):
            parts = [*node.handlers, *node.orelse, *node.finalbody]
        else:
            yield node
            parts = [node]
        for part in parts:
            yield from reaching(part)


def exception(node):
    """The class in `raise Class(...)` and `raise Class.at(...)`."""
    node = node.value if isinstance(node, ast.Attribute) else node
    return node.id if isinstance(node, ast.Name) and node.id[0].isupper() else None


def problems(name, value):
    """What the docstring of a public name lacks."""
    own = (vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__) or ""
    text = own_text(value)
    if not own.strip() or own.startswith(f"{value.__name__}("):
        yield "a docstring of its own"
        return
    if takes_arrays(value) and not SHAPE.search(text):
        yield "a shape"
    try:
        arguments = inspect.signature(value).parameters
    except ValueError:  # exceptions
        arguments = {}
    if any(map(DURATION.fullmatch, arguments)) and not UNIT.search(text):
        yield "a unit of time"
    for error in sorted(raised(value)):
        if error not in text:
            yield f"Raises {error}"
    if name not in NO_SOURCE and lacks_source(value):
        yield "its source"


def lacks_source(value):
    module = value.__module__.removeprefix("backspike.")
    published = any(module == place or module.startswith(f"{place}.") for place in PUBLISHED)
    return published and not PAPER.search(own_text(value))


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_name_is_documented(name):
    assert list(problems(name, DOCUMENTED[name])) == []


def test_exemptions_are_public_names_without_a_source():
    assert set(NO_SOURCE) - set(DOCUMENTED) == set()
    assert [name for name in NO_SOURCE if not lacks_source(DOCUMENTED[name])] == []
    assert len(DOCUMENTED) > 120
    assert bs.LIF in DOCUMENTED.values()


def undocumented(x: "torch.Tensor", tau: float = 2.0):  # noqa: F821
    """Nothing."""
    if tau < 1:
        raise ValueError("tau")


def test_missing_parts_are_found(monkeypatch):
    monkeypatch.setattr(undocumented, "__module__", "backspike.neuron.mine")
    monkeypatch.setitem(sys.modules, "backspike.neuron.mine", sys.modules[__name__])
    assert list(problems("mine", undocumented)) == [
        *("a shape", "a unit of time", "Raises ValueError", "its source")
    ]
