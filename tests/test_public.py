"""The public names exist, load lazily, and are visible to type checkers."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import backspike as bs
from backspike.recipes import values


@pytest.mark.parametrize("name", bs.__all__)
def test_every_public_name_exists(name):
    assert getattr(bs, name) is not None
    assert name in dir(bs)


def test_public_names_match_their_objects():
    assert len(set(bs.__all__)) == len(bs.__all__)
    for name in bs.__all__:
        value = getattr(bs, name)
        assert getattr(value, "__name__", name).split(".")[-1] == name
        assert (getattr(value, "__module__", None) or value.__name__).startswith("backspike")


def test_type_checkers_see_the_same_names():
    """The imports under TYPE_CHECKING are a second list, which must equal the first."""
    tree = ast.parse(Path(bs.__file__).read_text(encoding="utf8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    imports = [alias for n in block.body if isinstance(n, ast.ImportFrom) for alias in n.names]
    assert sorted(alias.asname for alias in imports) == bs.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Lif'"):
        bs.Lif  # noqa: B018


@pytest.mark.parametrize("module", ["backspike", "backspike.surrogate"])
def test_importing_does_not_load_torch(module):
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_surrogates_can_be_used_without_torch():
    code = "import sys, backspike as bs; bs.Masked(bs.Triangle()); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("value", "public"),
    [
        (values.TWO, bs.readout.TWO),
        (values.TET, bs.loss.tet),
        (values.PDA, bs.PotentialAdjustment),
        (values.SGS, bs.scale_gradients),
    ],
)
def test_recipe_values_have_the_options_of_what_they_build(value, public):
    """Names and defaults; leading arguments without a default, such as the model, are excluded."""
    of_public = inspect.signature(public).parameters.values()
    options = {p.name: p.default for p in of_public if p.default is not p.empty}
    options.pop("weight", None)  # of classes: the recipe's class_weights
    assert {f.name: f.default for f in dataclasses.fields(value)} == options


def test_no_file_imports_private_names_of_another():
    """Ruff's PLC2701 ignores relative imports."""
    found = []
    for path in sorted(Path(bs.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                names = [alias.name for alias in node.names]
                found += [
                    f"{path.name}: {name}"
                    for name in names
                    if name.startswith("_") and not name.startswith("__")
                ]
    assert found == []
