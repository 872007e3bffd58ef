"""The run folder: everything a training run leaves, written so that a kill at any moment loses nothing.

`recipe.json`, `env.json`, `log.jsonl`, `last.ckpt`, `best.ckpt`, `model.safetensors`, `evaluation.npz`, `anytime.json`,
`report.html`. Files are replaced whole (temporary file, fsync, rename); the log is appended to, and cut back to the checkpoint
on a resume.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .recipe import Recipe, RecipeError

FILES = (
    *("recipe.json", "env.json", "log.jsonl", "last.ckpt", "best.ckpt", "model.safetensors", "evaluation.npz", "anytime.json"),
    "report.html",
)


class RunError(RuntimeError):
    """A run folder cannot be used, or a run cannot go on; the message is one line that names the cure."""


def write_atomic(path: Path, data: bytes) -> None:
    """Replaces the file whole or not at all; what was there before stays intact when the disk is full."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise _cannot_write(path, e) from e


def _cannot_write(path: Path, e: OSError) -> RunError:
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"no space left to write {path}; free some and run: backspike resume {path.parent}")
    return RunError(f"cannot write {path}: {e.strerror or e}; make the folder writable or choose another with --out")


class Run:
    """A run folder. `Run.free(out)` and then `created(recipe)` make one, `Run.open` reads one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def free(out: str | Path, force: bool = False) -> Run:
        """The folder for a new run, untouched. Raises RunError if it holds a run (unless `force`) or anything else."""
        path = Path(out)
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file; choose another folder with --out")
        there = [p.name for p in path.iterdir()] if path.exists() else []
        if there and "recipe.json" not in there:
            raise RunError(f"{path} holds other files; choose another folder with --out")
        if there and not force:
            raise RunError(
                f"{path} holds a run; go on with `backspike resume {path}`, replace it with --force, or choose --out"
            )
        return Run(path)

    @contextmanager
    def created(self, recipe: Recipe, own: Sequence[str] = ()) -> Iterator[None]:
        """The folder with nothing but its recipe in it, locked. own: what the user gave in place of the recipe's."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise _cannot_write(self.path, e) from e
        with self.locked():
            try:
                for name in FILES:
                    (self.path / name).unlink(missing_ok=True)
            except OSError as e:
                raise _cannot_write(self.path, e) from e
            self.write_json("recipe.json", {**recipe.to_dict(), "own": list(own)})
            yield

    @staticmethod
    def open(path: str | Path) -> Run:
        run = Run(Path(path))
        if not (run.path / "recipe.json").is_file():
            raise RunError(f"{path} is no run folder (no recipe.json); name one made by `backspike train`")
        return run

    def recipe(self, values: tuple[type, ...] = ()) -> Recipe:
        path = self.path / "recipe.json"
        try:
            return Recipe.from_dict(json.loads(path.read_bytes()), values)
        except (ValueError, OSError) as e:
            hint = "; pass your own classes as values=" if isinstance(e, RecipeError) and "unknown name" in str(e) else ""
            raise RunError(f"{path} is damaged or of another version: {e}{hint}") from e

    def own(self) -> list[str]:
        """What the user gave to `fit` in place of the recipe's: any of "model", "data"."""
        stored = json.loads(self.read("recipe.json"))
        return [o for o in stored.get("own", []) if isinstance(o, str)] if isinstance(stored, dict) else []

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process out of the folder; the lock goes with the process, however it ends."""
        try:
            import fcntl
        except ImportError:  # not on this platform
            yield
            return
        try:
            file = open(self.path / ".lock", "w")  # noqa: SIM115  (closed below)
        except OSError as e:
            raise _cannot_write(self.path / ".lock", e) from e
        with file as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                raise RunError(f"{self.path} is in use by another process; wait for it or choose another --out") from e
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

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def append_log(self, event: dict[str, Any]) -> None:
        try:
            with open(self.path / "log.jsonl", "ab") as f:
                f.write(json.dumps(event).encode() + b"\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            raise _cannot_write(self.path / "log.jsonl", e) from e

    def log_size(self) -> int:
        path = self.path / "log.jsonl"
        return path.stat().st_size if path.exists() else 0

    def cut_log(self, size: int) -> None:
        """Forgets what was logged after a checkpoint was made, a torn line included."""
        path = self.path / "log.jsonl"
        path.touch()
        os.truncate(path, min(size, path.stat().st_size))

    def log(self) -> list[dict[str, Any]]:
        """The events logged so far; a line torn by a kill is left out."""
        if not self.has("log.jsonl"):
            return []
        events = []
        for line in self.read("log.jsonl").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events


def next_free(parent: Path, name: str) -> Path:
    """parent/name-1, or the first number that is not taken."""
    n = 1
    while (parent / f"{name}-{n}").exists():
        n += 1
    return parent / f"{name}-{n}"
