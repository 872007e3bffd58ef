"""A Python file of the user's that holds a recipe: `mine.py:recipe` names the file and a function.

Importing a file runs its code, so this happens only for a file that the user names: a run folder
stores the name and the SHA-256 of its file, and neither imports it. What is run is the text whose
SHA-256 is stored, so a file that has changed is noticed. This file does not import torch.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import BackspikeError, RecipeError, nearest

LARGEST = 1 << 20  # bytes of a file
DEFAULT = "recipe"  # the function of "mine.py"

# the modules of this process, by file and SHA-256
_modules: dict[tuple[str, str], ModuleType] = {}


@dataclass(frozen=True)
class Source:
    """A Python file, the function in it that makes a recipe, and the file's text."""

    file: str
    function: str
    sha256: str
    text: str = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.function}"

    @staticmethod
    def read(word: str) -> Source:
        """Reads the file in "mine.py:function"; runs nothing. Raises RecipeError."""
        name, _, function = word.rpartition(":") if not word.endswith(".py") else (word, "", "")
        path = Path(os.path.abspath(name))
        try:
            if not path.is_file():
                raise RecipeError(f"there is no file {name}; give a Python file and its function")
            if path.stat().st_size > LARGEST:
                raise RecipeError(f"{name}: a file with a recipe has at most {LARGEST} bytes")
            data = path.read_bytes()
            text = data.decode("utf-8-sig")
        except (OSError, ValueError) as e:
            if isinstance(e, RecipeError):
                raise
            raise RecipeError(f"{name} cannot be read: {e}") from e
        return Source(str(path), function or DEFAULT, hashlib.sha256(data).hexdigest(), text)

    def to_dict(self) -> dict[str, str]:
        return asdict(self)

    def module(self) -> ModuleType:
        """The file as a module; its code runs once per process. Raises RecipeError."""
        key = self.file, self.sha256
        if key not in _modules:
            _modules[key] = _run(self)
        return _modules[key]

    def make(self) -> Any:
        """What the function returns. Raises RecipeError."""
        module = self.module()
        function = getattr(module, self.function, None)
        if not callable(function):
            functions = [n for n, f in vars(module).items() if inspect.isfunction(f)]
            hint = nearest(self.function, functions) if functions else ""
            raise RecipeError(f"{self.file} has no function {self.function!r}{hint}")
        return call(function, {})

    def names(self) -> dict[str, Any]:
        """The functions and classes that the file defines, by name."""
        module = self.module()
        return {
            name: value
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        }


def is_file(word: str) -> bool:
    """Whether a word names a Python file, as "mine.py" or "mine.py:recipe"."""
    return re.fullmatch(r".*\.py(:\w*)?", word, re.DOTALL) is not None


def _run(source: Source) -> ModuleType:
    """Runs the text as the module of the file's name, as `import` does.

    So processes that load data can unpickle its classes. Modules beside it can be imported too.
    """
    path = Path(source.file)
    before = sys.modules.get(path.stem)
    if before is not None and before not in _modules.values():
        raise RecipeError(
            f"{path.name} has the name of the module {path.stem!r}, which is already imported; "
            "rename the file"
        )
    module = ModuleType(path.stem)
    module.__file__ = source.file
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[path.stem] = module
    try:
        exec(compile(source.text, source.file, "exec", dont_inherit=True), vars(module))
    except BaseException as e:
        del sys.modules[path.stem]
        if before is not None:
            sys.modules[path.stem] = before
        if isinstance(e, Exception) and not isinstance(e, BackspikeError):
            raise RecipeError(_explain(e, source.file)) from e
        raise
    return module


# ---- functions of the user's own -----------------------------------------------------------------


def parameters(function: Callable[..., Any]) -> list[str]:
    """The names of a function's parameters; [] if Python does not know them."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def call(function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Calls a function of the user's with those options that it has parameters for.

    Raises RecipeError that names the line for any error in it.
    """
    try:
        taken = {name: options[name] for name in parameters(function) if name in options}
        return function(**taken)
    except BackspikeError:
        raise
    except Exception as e:
        code = getattr(inspect.unwrap(function), "__code__", None)
        raise RecipeError(_explain(e, code.co_filename if code else "", text(function))) from e


def _explain(e: Exception, file: str, name: str = "") -> str:
    """The error in one line, with the last line of `file` that it passed through."""
    what = ": ".join([type(e).__name__, *str(e).strip().splitlines()[:1]])
    if isinstance(e, SyntaxError) and e.filename == file:
        return f"{Path(file).name}, line {e.lineno}: {type(e).__name__}: {e.msg}"
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == file]
    if lines:
        return f"{Path(file).name}, line {lines[-1]}: {what}"
    return f"{name}: {what}" if name else what


_ADDRESS = re.compile(
    r"<(?:function |class ')?(?:[\w<>]+\.)*(\w+|<lambda>)(?: object)?(?: at 0x[0-9a-fA-F]+|')>"
)


def text(value: Any) -> str:
    """repr(value), with functions and classes by their names and without addresses.

    So the text is the same in every process.
    """
    return _ADDRESS.sub(r"\1", repr(value))
