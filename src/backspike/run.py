"""The run folder: everything that a training writes. A kill at any moment loses nothing.

`recipe.json`, `env.json`, `log.jsonl`, `last.ckpt`, `previous.ckpt`, `best.ckpt`,
`model.safetensors`, `evaluation.npz`, `anytime.json`, `report.html`, `doctor.html`. Files are
replaced atomically (temporary file, fsync, rename). The log is appended to; resuming restores it
from the checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import RecipeError, RunError, nearest, on_command_line, option
from .models import shipped
from .recipes.recipe import Recipe, from_source
from .recipes.source import Source
from .system import disk, hub
from .system.files import cannot_write, is_edited, is_sealed, read_json, read_regular, write_atomic

# An old run is deleted in this order, so that a kill in between leaves a run that is either
# finished or can be started again.
FILES = (
    "last.ckpt",
    "previous.ckpt",
    "log.jsonl",
    "env.json",
    "best.ckpt",
    "model.safetensors",
    "evaluation.npz",
    "anytime.json",
    "report.html",
    "doctor.html",
    "network.nir",
    "network.onnx",
    "step.onnx",
    "recipe.json",
)
LOCKS = (".lock", ".lock.owner")
CARD = "README.md"  # written on request; also a name for a file of the user's
TRAINED = ("recipe.json", "model.safetensors")  # what a trained network consists of
SHOWN = (*TRAINED, "env.json", "log.jsonl", "evaluation.npz", "anytime.json")


class Run:
    """A run folder.

    `Run.free(out)` and `created(recipe)` make one, `Run.open` opens one, and `Run.find` one to
    read, which may also be on the hub or in the package.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # the log as this process wrote it, for checkpoints; the file may become damaged
        self.logged = ""

    @staticmethod
    def free(out: str | Path, force: bool = False) -> Run:
        """The folder for a new run; changes nothing.

        Raises RunError if it contains a run (unless `force`) or any other files.
        """
        path = Path(out)
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; choose another folder ({option('out')})")
        names = [p.name for p in path.iterdir()] if path.exists() else []
        # ignore the leftovers of a run that was killed before it wrote its recipe
        there = [n for n in names if n not in LOCKS and not disk.is_temporary(n)]
        if there and "recipe.json" not in there:
            raise RunError(f"{path} holds other files; choose another folder ({option('out')})")
        if there and not force:
            raise RunError(
                f"{path} already holds a run; continue it with `backspike resume {path}`, "
                f"replace it with {option('force', True)}, "
                f"or choose another folder ({option('out')})"
            )
        if there and is_edited(path / CARD):
            raise RunError(
                f"{path / CARD} is the card of the old run, edited since; move it away first"
            )
        return Run(path)

    @contextmanager
    def created(
        self,
        recipe: Recipe,
        own: Sequence[str] = (),
        force: bool = False,
        classes: Sequence[str] = (),
    ) -> Iterator[None]:
        """Creates the folder with only its recipe in it, and locks it.

        own: what the user passed instead of the recipe's: any of "model", "data". classes: their
        names, if they have any.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise cannot_write(self.path, e) from e
        with self.locked():
            Run.free(self.path, force)  # another process may have made a run here meanwhile
            try:
                if self.has(CARD) and is_sealed(self.read(CARD)):
                    (self.path / CARD).unlink()
                for name in FILES[:-1]:
                    (self.path / name).unlink(missing_ok=True)
            except OSError as e:
                raise cannot_write(self.path, e) from e
            named = {"classes": list(classes)} if classes else {}
            source = {"source": recipe.source.to_dict()} if recipe.source else {}
            fields = {**recipe.to_dict(), "own": list(own), **named, **source}
            self.write_json("recipe.json", fields)
            yield

    @staticmethod
    def open(path: str | Path) -> Run:
        """An existing run folder; RunError if there is none."""
        run = Run(Path(path))
        if not (run.path / "recipe.json").is_file():
            raise RunError(
                f"{path}: no run folder (recipe.json is missing); "
                "give one that `backspike train` made"
            )
        return run

    @staticmethod
    def find(name: str | Path, files: Sequence[str] = TRAINED) -> Run:
        """A run to read: a folder, `hf://user/name[@revision]`, or a network of the package.

        A folder goes before a network of the package with the same name. files: what to download
        from the hub. Raises RunError.
        """
        if isinstance(name, str) and name.startswith(hub.SCHEME):
            run = Borrowed(hub.download(name, files))
            if missing := [file for file in TRAINED if not run.has(file)]:
                needed = " and ".join(TRAINED)
                raise RunError(f"{name} has no {missing[0]}; a network on the hub needs {needed}")
            return run
        if Path(name).exists():
            return Run.open(name)
        networks = shipped.folders()
        if str(name) in networks:
            return Borrowed(networks[str(name)])
        others = nearest(str(name), networks)
        raise RunError(f"{name} is neither a run folder nor a network of this package{others}")

    def output(self, name: str) -> Path:
        """Where a file that is made from this run goes by default."""
        return self.path / name

    def recipe(self, values: tuple[Any, ...] = (), own: Recipe | str | None = None) -> Recipe:
        """The recipe of the run.

        values: your own classes and functions that it names. own: the recipe itself, if your own
        code makes it: a `Recipe`, or "mine.py:recipe", which imports that file. What the run folder
        names is never imported. Raises RunError, also if the file has changed since the run began.
        """
        path = self.path / "recipe.json"
        start = self._own_recipe(own, named=bool(values))
        try:
            return start.restored(read_json(read_regular(path)), values)
        except (ValueError, OSError) as e:
            unknown = isinstance(e, RecipeError) and "unknown name" in str(e)
            restore = f"restore it, or train again with {option('force', True)}"
            hint = "pass your own classes and functions as values=" if unknown else restore
            raise RunError(f"{path} is damaged or of another version: {e}; {hint}") from e

    def _own_recipe(self, own: Recipe | str | None, named: bool) -> Recipe:
        """The recipe to start from: the user's own, or else the default one."""
        source = self.source()
        if own is None and source and not named:
            trust = " or --trust" if on_command_line() else ""
            raise RunError(
                f"the recipe of {self.path} comes from Python code, {source['file']}, which is "
                f"imported only if you say so: {option('recipe', source_name(source))}{trust}"
            )
        if not isinstance(own, str):
            return own or Recipe()
        made_by = Source.read(own)
        if source and made_by.sha256 != source["sha256"]:
            raise RunError(
                f"{made_by.file} has changed since {self.path} began (recipe.json holds "
                f"the text that it had); {_accept(own)}"
            )
        return from_source(made_by)

    def accept(self, source: Source) -> None:
        """Notes in recipe.json that the run goes on with this file, which has changed."""
        stored = self.read_json("recipe.json")
        before = self.source()
        if before and before["sha256"] != source.sha256:
            earlier = [*stored["source"].get("earlier", []), before["sha256"]]
            now = {**source.to_dict(), "earlier": earlier}
            self.write_json("recipe.json", {**stored, "source": now})

    def source(self) -> dict[str, str] | None:
        """What recipe.json says of the Python file that made the recipe; None if none did.

        Its keys are file, function, sha256 and text; none of it can be trusted.
        """
        source = self.read_json("recipe.json").get("source")
        names = ("file", "function", "sha256", "text")
        if source is None:
            return None
        if not isinstance(source, dict) or not all(isinstance(source.get(n), str) for n in names):
            raise RunError(
                f"{self.path / 'recipe.json'} is damaged (its source needs {', '.join(names)}); "
                "restore it or train again"
            )
        return {name: source[name] for name in names}

    def command(self, verb: str) -> list[str]:
        """The words after `backspike` that use this run, with the file that made its recipe."""
        source = self.source() if self.has("recipe.json") else None
        return [verb, str(self.path), *(["--recipe", source_name(source)] if source else [])]

    def own(self) -> list[str]:
        """What the user passed to `fit` instead of the recipe's: any of "model", "data"."""
        return self._texts("own")

    def classes(self) -> list[str]:
        """The names of the classes; empty if they are numbers."""
        return self._texts("classes")

    def _texts(self, key: str) -> list[str]:
        texts = self.read_json("recipe.json").get(key)
        return [t for t in texts if isinstance(t, str)] if isinstance(texts, list) else []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against other processes and removes unfinished temporary files.

        The lock ends with the process, even if it is killed.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(disk.lock(self.path / ".lock"))
                disk.sweep(self.path)
            except disk.Locked as e:
                raise RunError(
                    f"{self.path} is in use by {e}; "
                    f"wait for it or choose another folder ({option('out')})"
                ) from e
            except OSError as e:
                raise cannot_write(self.path / ".lock", e) from e
            yield

    def write(self, name: str, data: bytes) -> None:
        """Replaces a file atomically."""
        write_atomic(self.path / name, data)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=2).encode())

    def read(self, name: str) -> bytes:
        try:
            return read_regular(self.path / name)
        except OSError as e:
            raise RunError(f"{self.path / name} cannot be read: {e.strerror}") from e

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the folder."""
        try:
            value = read_json(self.read(name))
        except ValueError as e:
            raise RunError(f"{self.path / name} is damaged ({e}); restore it or train again") from e
        if not isinstance(value, dict):
            raise RunError(
                f"{self.path / name} is damaged (not a JSON object); restore it or train again"
            )
        return value

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def append_log(self, event: dict[str, Any]) -> None:
        line = json.dumps(event) + "\n"
        self.logged += line
        try:
            with open(self.path / "log.jsonl", "ab") as f:
                f.write(line.encode())
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise cannot_write(self.path / "log.jsonl", e) from e

    def put_back_log(self, text: str) -> None:
        """Restores the log from a checkpoint, which drops later events, a torn line or damage."""
        self.logged = text
        self.write("log.jsonl", text.encode())

    def keep(self, name: str, older: str) -> None:
        """Keeps the file `name` also as `older`, so that the next `write` replaces only `name`."""
        if not self.has(name):
            return
        newest, kept = self.path / name, self.path / older
        if kept.exists() and newest.samefile(kept):  # after a kill between the two steps
            return
        temporary = disk.temporary(kept)
        try:
            temporary.unlink(missing_ok=True)
            os.link(newest, temporary)
            disk.replace(temporary, kept)
        except OSError:  # a file system without hard links
            self.write(older, self.read(name))
        finally:
            with suppress(OSError):
                temporary.unlink()

    def log(self) -> list[dict[str, Any]]:
        """The events logged so far, without damaged lines or one torn by a kill."""
        return [event for event in self._lines() if event is not None]

    def done(self) -> dict[str, Any] | None:
        """The last event of a complete run; None if it is unfinished or its log is damaged."""
        events = self._lines()
        last = events[-1] if events else None
        return last if last and last.get("event") == "done" and None not in events else None

    def _lines(self) -> list[dict[str, Any] | None]:
        """The events of the log, with None for a damaged line."""
        if not self.has("log.jsonl"):
            return []
        return [_event(line) for line in self.read("log.jsonl").splitlines()]


def source_name(source: Mapping[str, str]) -> str:
    """The file and function of `Run.source` in one word, "mine.py:recipe"."""
    return f"{source['file']}:{source['function']}"


def _accept(word: str) -> str:
    """How to use a file that has changed."""
    if on_command_line():
        return "restore it, or use it as it is now with --accept-change"
    return f"restore it, or use it as it is now with recipe=bs.recipes.from_file({word!r})"


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = read_json(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


class Borrowed(Run):
    """A run of the package or in the hub's cache: what is made from it goes elsewhere."""

    def output(self, name: str) -> Path:
        return Path(name)

    def write(self, name: str, data: bytes) -> None:
        pass


class Elsewhere(Run):
    """The folder of a run that rank 0 writes; here it is not written and need not exist."""

    @contextmanager
    def created(
        self,
        recipe: Recipe,
        own: Sequence[str] = (),
        force: bool = False,
        classes: Sequence[str] = (),
    ) -> Iterator[None]:
        yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def write(self, name: str, data: bytes) -> None:
        pass

    def append_log(self, event: dict[str, Any]) -> None:
        pass

    def put_back_log(self, text: str) -> None:
        pass


def next_free(parent: Path, name: str) -> Path:
    """parent/name-1, or the first number that is free."""
    n = 1
    while (parent / f"{name}-{n}").exists():
        n += 1
    return parent / f"{name}-{n}"
