"""The run folder: everything a training run leaves, written so that a kill at any moment loses nothing.

`recipe.json`, `env.json`, `log.jsonl`, `last.ckpt`, `previous.ckpt`, `best.ckpt`, `model.safetensors`, `evaluation.npz`,
`anytime.json`, `report.html`, `doctor.html`. Files are replaced whole (temporary file, fsync, rename); the log is appended
to, and on a resume put back as the checkpoint holds it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import RecipeError, RunError
from .recipes.recipe import Recipe
from .system import disk
from .system.files import cannot_write, read_json, write_atomic

# in the order in which an old run is deleted, so that a kill meanwhile leaves a run that is done, or one that starts again
FILES = (
    *(
        "last.ckpt",
        "previous.ckpt",
        "log.jsonl",
        "env.json",
        "best.ckpt",
        "model.safetensors",
        "evaluation.npz",
    ),
    *("anytime.json", "report.html", "doctor.html", "recipe.json"),
)
LOCKS = (".lock", ".lock.owner")


class Run:
    """A run folder. `Run.free(out)` and then `created(recipe)` make one, `Run.open` reads one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logged = ""  # what a checkpoint holds of the log: as this process wrote it, whatever becomes of the file

    @staticmethod
    def free(out: str | Path, force: bool = False) -> Run:
        """The folder for a new run, untouched. Raises RunError if it holds a run (unless `force`) or anything else."""
        path = Path(out)
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; choose another folder with --out")
        names = [p.name for p in path.iterdir()] if path.exists() else []
        # what a run leaves that was killed before it had its recipe does not count
        there = [n for n in names if n not in LOCKS and not disk.is_temporary(n)]
        if there and "recipe.json" not in there:
            raise RunError(f"{path} holds other files; choose another folder with --out")
        if there and not force:
            raise RunError(
                f"{path} holds a run; go on with `backspike resume {path}`, replace it with --force, or choose --out"
            )
        return Run(path)

    @contextmanager
    def created(
        self, recipe: Recipe, own: Sequence[str] = (), force: bool = False
    ) -> Iterator[None]:
        """The folder with nothing but its recipe in it, locked. own: what the user gave in place of the recipe's."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise cannot_write(self.path, e) from e
        with self.locked():
            Run.free(
                self.path, force
            )  # another process may have made a run here since it was asked
            try:
                for name in FILES[:-1]:
                    (self.path / name).unlink(missing_ok=True)
            except OSError as e:
                raise cannot_write(self.path, e) from e
            self.write_json("recipe.json", {**recipe.to_dict(), "own": list(own)})
            yield

    @staticmethod
    def open(path: str | Path) -> Run:
        run = Run(Path(path))
        if not (run.path / "recipe.json").is_file():
            raise RunError(
                f"{path} is no run folder (no recipe.json); name one made by `backspike train`"
            )
        return run

    def recipe(self, values: tuple[type, ...] = ()) -> Recipe:
        path = self.path / "recipe.json"
        try:
            return Recipe.from_dict(read_json(path.read_bytes()), values)
        except (ValueError, OSError) as e:
            hint = (
                "; pass your own classes as values="
                if isinstance(e, RecipeError) and "unknown name" in str(e)
                else ""
            )
            raise RunError(
                f"{path} is damaged or of another version: {e}{hint or '; put it back, or train anew with --force'}"
            ) from e

    def own(self) -> list[str]:
        """What the user gave to `fit` in place of the recipe's: any of "model", "data"."""
        own = self.read_json("recipe.json").get("own")
        return [o for o in own if isinstance(o, str)] if isinstance(own, list) else []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out of the folder, and removes what killed ones left half written.

        The lock goes with the process, however it ends.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(disk.lock(self.path / ".lock"))
                disk.sweep(self.path)
            except disk.Locked as e:
                raise RunError(
                    f"{self.path} is in use by {e}; wait for it or choose another --out"
                ) from e
            except OSError as e:
                raise cannot_write(self.path / ".lock", e) from e
            yield

    def write(self, name: str, data: bytes) -> None:
        write_atomic(self.path / name, data)

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=2).encode())

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except OSError as e:
            raise RunError(f"{self.path / name} cannot be read: {e.strerror}") from e

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the folder."""
        try:
            value = read_json(self.read(name))
        except ValueError as e:
            raise RunError(
                f"{self.path / name} is damaged ({e}); restore the file or train again"
            ) from e
        if not isinstance(value, dict):
            raise RunError(
                f"{self.path / name} is damaged (no JSON object); restore the file or train again"
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
        """Makes the log what a checkpoint knew of it: without what came after it, a torn line, or damage."""
        self.logged = text
        self.write("log.jsonl", text.encode())

    def keep(self, name: str, older: str) -> None:
        """Keeps what is in file `name` as file `older` too, so that the next `write` of it replaces only one of them."""
        if not self.has(name):
            return
        newest, kept = self.path / name, self.path / older
        if kept.exists() and newest.samefile(kept):  # as a kill in between left them
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
        """The events logged so far; a line torn by a kill, or damaged, is left out."""
        return [event for event in self._lines() if event is not None]

    def done(self) -> dict[str, Any] | None:
        """The event that ends a complete run; None if it is not there yet, or if anything in the log is damaged."""
        events = self._lines()
        last = events[-1] if events else None
        return last if last and last.get("event") == "done" and None not in events else None

    def _lines(self) -> list[dict[str, Any] | None]:
        """The events of the log, None for a line that is none."""
        return (
            [_event(line) for line in self.read("log.jsonl").splitlines()]
            if self.has("log.jsonl")
            else []
        )


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = read_json(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


class Elsewhere(Run):
    """The folder of a run that another process writes: here nothing is written to it, nor need it be there."""

    @contextmanager
    def created(
        self, recipe: Recipe, own: Sequence[str] = (), force: bool = False
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
    """parent/name-1, or the first number that is not taken."""
    n = 1
    while (parent / f"{name}-{n}").exists():
        n += 1
    return parent / f"{name}-{n}"
