"""The fuzzing targets: every reader of untrusted files, with a few valid files made by code.

A target takes bytes and returns, or raises one of its `refusals` with a message; anything else is a
crash. Random damage rarely passes a checksum, so the targets of run folders can also interpret
bytes as edits of the values in a checkpoint, or of the numbers, texts and arrays in a report.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gzip
import io
import json
import pickle
import random
import shutil
import struct
import tarfile
import wave
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from unittest import mock

import event_files
import nir_files
import numpy as np

from backspike.data import DataError, File, unpack
from backspike.data.formats import (
    hdf5,
    idx,
    image_batch,
    npy,
    picture,
    wav,
)
from backspike.data.sets import dvs128_gesture as gesture
from backspike.report import chart, read
from backspike.train import setup, trainer
from backspike.train.failures import step_errors
from backspike.train.fit import finished_result

RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Target:
    """seeds: returns valid inputs. run: takes one input. share: below 1 if inputs are slow."""

    seeds: Callable[[], list[bytes]]
    run: Callable[[bytes], Any]
    refusals: tuple[type[Exception], ...] = (DataError,)
    share: float = 1.0

    def __call__(self, data: bytes) -> None:
        """Raises any error that is not a documented refusal."""
        try:
            self.run(data)
        except self.refusals as refusal:
            if not str(refusal).strip():
                raise AssertionError("a refusal without a message") from refusal


# ---- changes to bytes ------------------------------------------------------------------------

KINDS = ("flip", "set", "cut", "drop", "repeat", "insert", "word")


def changed(data: bytes, where: float, kind: str, value: int) -> bytes:
    """Makes one change at a fraction `where` of the length; `value` is below 2^32."""
    at = int(where * len(data))
    head, tail = data[:at], data[at:]
    match kind:
        case "flip":
            return head + bytes([tail[0] ^ 1 << value % 8]) + tail[1:] if tail else data
        case "set":
            return head + bytes([value % 256]) + tail[1:]
        case "cut":
            return head
        case "drop":
            return head + tail[1 + value % 16 :]
        case "repeat":
            return head + tail[: value % 64] + tail
        case "insert":
            return head + value.to_bytes(4, "little") + tail
        case _:
            return head + value.to_bytes(4, "big") + tail[4:]


def mutants(seeds: list[bytes], rng: random.Random) -> Iterator[bytes]:
    """Yields the seeds, then endless mutants: one to six changes to a seed or two joined seeds."""
    yield from seeds
    while True:
        data = rng.choice(seeds)
        if rng.random() < 0.1:
            other = rng.choice(seeds)
            data = data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]
        for _ in range(rng.randint(1, 6)):
            value = rng.choice((0, 1, 255, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(1 << 32)))
            data = changed(data, rng.random(), rng.choice(KINDS), value)
        yield data


# ---- edits of values -------------------------------------------------------------------------

SCRIPT = "<script>alert(1)</script>"
VALUES = [
    *(None, True, -1, 0, 1, 2**31, 2**62, 10**30, -(10**30)),
    *(1e308, float("nan"), float("inf"), -float("inf"), 0.5),
    *("", "0", SCRIPT, "'\"><img src=x onerror=alert(1)>"),
    *("$\\frac$", "a\nb\x1b[2J", "\ud800", "x" * 3000, "é" * 50),
    *([], {}, [1], [[]], [None, "a", []], {"a": 1}, {"": []}, [0.5] * 100, [[1, 2], [3]]),
]


def edited(value: Any, data: bytes, hostile: Callable[[Any, int], Any]) -> Any:
    """A copy with one edit for each three bytes: two select a place, the third a new value."""
    value = copy.deepcopy(value)
    for i in range(0, len(data) - 2, 3):
        places = list(_places(value))
        if not places:
            break
        holder, key = places[int.from_bytes(data[i : i + 2], "big") % len(places)]
        if data[i + 2] == 255:
            del holder[key]
        else:
            holder[key] = hostile(holder[key], data[i + 2])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, part in items:
        yield value, key
        yield from _places(part)


def _plain(old: Any, which: int) -> Any:
    return copy.deepcopy(VALUES[which % len(VALUES)])


def _edits() -> list[bytes]:
    """No edit, and a few; mutation reaches most places with each kind of value."""
    rng = random.Random(0)
    return [b"", *(rng.randbytes(3 * n) for n in (1, 1, 1, 2, 5))]


# ---- data ------------------------------------------------------------------------------------


def _picture(kind: str) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (20, 24, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def _npy() -> bytes:
    out = io.BytesIO()
    np.save(out, RNG.random((5, 4)))
    return out.getvalue()


def _wav() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 8000, 50, "NONE", ""))
        file.writeframes(RNG.integers(-999, 999, 50, np.int16).tobytes())
    return out.getvalue()


def arrays_fit(out: Any, data: bytes) -> None:
    for array in out if isinstance(out, tuple) else (out,):
        assert array.nbytes <= 1100 * len(data)


def _no_check(out: Any, data: bytes) -> None:
    pass


def _cifar(**more: Any) -> bytes:
    return pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [3], **more}, 3)


# the function that decodes a whole file, a valid file, and a check of the result
READERS: dict[str, tuple[Callable[..., Any], bytes, Callable[[Any, bytes], None]]] = {
    **event_files.READERS,
    "labels": (
        gesture.labels,
        b"class,startTime_usec,endTime_usec\r\n1,5,9\r\n11,10,12\r\n",
        _no_check,
    ),
    "trials": (gesture.trials, b"user01_led.aedat\nuser29_natural.aedat\n", _no_check),
    "idx": (idx.decode, struct.pack(">HBB2I", 0, 8, 2, 4, 5) + bytes(20), arrays_fit),
    "cifar binary": (image_batch.decode_binary, bytes(3073), arrays_fit),
    "cifar python": (
        image_batch.decode_pickle,
        pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [3]}, 4),
        _no_check,
    ),
    "npy": (npy.decode, _npy(), arrays_fit),
    "wav": (lambda data, name="f": wav.decode(data, name)[0], _wav(), arrays_fit),
    "jpeg": (picture.decode, _picture("JPEG"), _no_check),
    "png": (picture.decode, _picture("PNG"), _no_check),
}


def _reader(name: str) -> Target:
    decode, good, fits = READERS[name]
    more = {
        "cifar python": [_cifar()],
        "png": [_picture("BMP"), _picture("WEBP")],
        "idx": [_zipped(good)],
    }.get(name, [])
    return Target(lambda: [good, *more], lambda data: fits(decode(data, "f"), data))


def _zipped(data: bytes) -> bytes:
    import gzip

    return gzip.compress(data, mtime=0)


def _spoken() -> bytes:
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for key, kind in (("times", "float16"), ("units", "uint16")):
            member = file.create_dataset(
                f"spikes/{key}", (6,), dtype=h5py.vlen_dtype(np.dtype(kind))
            )
            for i in range(6):
                member[i] = np.arange(i + 1).astype(kind) / (1 if key == "units" else 16)
        file.create_dataset(
            "labels", data=np.arange(6, dtype=np.uint8), chunks=(4,), compression="gzip"
        )
    return out.getvalue()


def _read_spoken(data: bytes) -> None:
    """An endless loop in HDF5 is refused, here after fewer seconds than by default."""
    hdf5.SECONDS = 4
    path = event_files.folder() / "f.h5"
    path.write_bytes(data)
    for events in hdf5.decode(path, range(len(hdf5.labels(path, 20)))):
        assert len(events.t) <= 1100 * len(data)


def _frames() -> list[bytes]:
    from backspike.data import packed

    path = event_files.folder() / "good.npy"
    packed.write(path, (3, 2, 5), [(0, np.arange(30, dtype=np.uint8).reshape(3, 2, 5))])
    return [path.read_bytes()]


def _read_frames(data: bytes) -> None:
    from backspike.data import packed

    path = event_files.folder() / "f.npy"
    path.write_bytes(data)
    assert packed.read(path, (3, 2, 5)).tolist() == np.arange(30).reshape(3, 2, 5).tolist()


def _names() -> list[bytes]:
    return [b"train/cat/1.JPEG\0train/dog/2.png\0val/cat/3.jpg\0val/dog/4.webp"]


def _read_names(data: bytes) -> None:
    """A folder of pictures with the bytes as file names; invalid names are skipped."""
    import os
    import shutil

    from backspike.data import picture_folder, source
    from backspike.data.source import Place

    root = event_files.folder() / "pictures"
    for part in ("train", "val"):
        (root / part).mkdir(parents=True)
    try:
        for raw in data.split(b"\0"):
            parts = [
                part
                for part in raw.split(b"/")
                if part not in (b"", b".", b"..") and len(part) < 200
            ][:4]
            try:
                path = root / os.fsdecode(b"/".join(parts))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
            except OSError:
                continue
        train, validation, test = picture_folder.read(source("imagenet"), Place(folder=root), 16)
        for split in (train, validation, test):
            for i in range(len(split)):
                try:
                    split[i]
                except DataError:
                    continue
    finally:
        shutil.rmtree(root)


def _sums() -> list[bytes]:
    import hashlib

    return [f"{hashlib.sha256(b'12345').hexdigest()}  00007.bin\n".encode()]


def _read_sums(data: bytes) -> None:
    from backspike.data import simulated
    from backspike.data.simulate import Camera

    root = event_files.folder() / "sums"
    root.mkdir(exist_ok=True)
    (root / "00007.bin").write_bytes(b"12345")
    (root / simulated.SUMS).write_bytes(data)
    pictures, labels = np.zeros((1, 1, 8, 8), np.uint8), np.array([7])
    # private: only a job verifies files
    job = simulated._Job("a", 0, 1, pictures, labels, Camera(), 0)  # noqa: SLF001
    job.verify(root)


# ---- recipes ---------------------------------------------------------------------------------


def _recipe_texts() -> list[bytes]:
    return [
        b"Masked(Triangle(alpha=2.0), p=0.5)",
        b"ConvNet('32-P-64-P', num_classes=10, size=28)",
        b"(Shift(1), CutMix(), OneOf((Roll(3), Rotate(10.0))))",
        b"PLIF(tau=-2e3, learn=('threshold',), v_reset=None)",
        b"[1, -inf, True, 0x7f, 'a']",
    ]


def _parse(data: bytes) -> None:
    from backspike.recipes.text import parse

    repr(parse(data.decode("utf-8", "replace")))


def _recipe() -> Any:
    from backspike import recipes

    return recipes.digits().to_dict()


def _recipe_files() -> list[bytes]:
    from backspike import recipes

    made = (
        recipes.digits(),
        recipes.get("cifar10"),
        recipes.digits().replace({"neuron": "PLIF(tau=3.0)", "norm": "TEBN()"}),
    )
    return [json.dumps(recipe.to_dict()).encode() for recipe in made]


def _read_recipe(data: bytes) -> None:
    from backspike.run import Run

    (event_files.folder() / "recipe.json").write_bytes(data)
    recipe = Run.open(event_files.folder()).recipe()
    Run.open(event_files.folder()).own()
    assert type(recipe).from_dict(recipe.to_dict()) == recipe


def _edit_recipe(data: bytes) -> None:
    _read_recipe(json.dumps(edited(_recipe(), data, _plain)).encode())


def _fields() -> list[bytes]:
    return [
        b"--epochs\0"
        b"3\0--neuron.surrogate=Triangle(2)\0--out\0x\0"
        b"--augment\0(Shift(1),)\0--name\0a\0--optimizer.lr\0.1"
    ]


@functools.cache
def _parser() -> Any:
    from backspike.cli import verb_parser

    return verb_parser("train")


def _read_fields(data: bytes) -> None:
    from backspike import recipes

    _, fields = _parser().split_fields(data.decode("utf-8", "surrogateescape").split("\0"))
    recipes.digits().replace(fields).to_dict()


# ---- run folders -----------------------------------------------------------------------------


@functools.cache
def _trained() -> Path:
    """A finished run folder; also makes one stopped in its second epoch, with a checkpoint."""
    import torch

    import backspike as bs

    torch.set_num_threads(1)
    recipe = bs.recipes.digits().replace(
        {
            "limit": 60,
            "batch_size": 20,
            "epochs": 2,
            "model": "ConvNet('4-P', size=8)",
            "readout": "TWO(start_epoch=0)",
            "potential": "PDA()",
            "ema": 0.5,
            "neuron.learn": "('tau',)",
        }
    )
    path = event_files.folder() / "trained"
    bs.fit(recipe, path, report=False)

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "batch" and event["epoch"] == 1 and event["batch"] == 2:
            raise KeyboardInterrupt

    other = event_files.folder() / "stopped"
    with contextlib.suppress(KeyboardInterrupt):
        bs.fit(recipe.replace({"checkpoint_seconds": 0.0}), other, listen=listen, report=False)
    return path


@functools.cache
def _spoiled() -> Path:
    """A copy of the trained run for the targets that damage it; others read the original."""
    return shutil.copytree(_trained(), event_files.folder() / "spoiled")


@functools.cache
def _training() -> Any:
    """The stopped run, built as by `resume`, before its checkpoint is read."""
    from backspike.run import Run

    _trained()
    run = Run.open(event_files.folder() / "stopped")
    recipe = run.recipe()
    return trainer.Trainer(run, setup.set_up(recipe, device="cpu"))


@functools.cache
def _checkpoint() -> bytes:
    _training()
    return (event_files.folder() / "stopped" / "last.ckpt").read_bytes()


@functools.cache
def _checkpoint_state() -> Any:
    import torch

    state = torch.load(io.BytesIO(_checkpoint()), weights_only=True)
    return {k: dict(v) if isinstance(v, dict) else v for k, v in state.items()}


def _restore(data: bytes) -> None:
    """Restores a checkpoint and trains one step, in which a wrong state would do harm."""
    import torch

    training = _training()
    training.run.write("last.ckpt", data)
    training.restore()
    # the restored generators
    torch.rand(1), np.random.rand(1), random.random()  # noqa: NPY002
    train = training.setup.train
    x, y = next(iter(train.training(0)))
    with step_errors("the next step"):
        training.step(x, y, train.parts(0))


def _pickled() -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(_checkpoint())) as archive:
        return [
            archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
        ]


def _restore_pickled(data: bytes) -> None:
    """Restores the checkpoint with another pickle and valid checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_checkpoint())) as archive, zipfile.ZipFile(out, "w") as other:
        for name in archive.namelist():
            other.writestr(name, data if name.endswith("data.pkl") else archive.read(name))
    _restore(out.getvalue())


def _hostile_value(old: Any, which: int) -> Any:
    import torch

    if not isinstance(old, torch.Tensor) or which % 3 == 0:
        return _plain(old, which // 3)
    flat = old.reshape(-1)
    return [
        flat[:0],
        flat[:1].clone(),
        # the right size, in the memory of one number
        flat[:1].expand(old.shape) if old.dim() else old,
        old.double(),
        old.to(torch.complex64),
        old.bool(),
        old.unsqueeze(0),
        torch.full_like(old.float(), float("nan")),
        torch.full_like(old.float(), 1e38),
        old.to_sparse() if old.dim() else old,
        torch.zeros(3, dtype=torch.int64),
        old.repeat(2) if old.dim() < 2 else old.transpose(0, 1),
    ][which // 3 % 12]


def _restore_edited(data: bytes) -> None:
    import torch

    packed = io.BytesIO()
    torch.save(edited(_checkpoint_state(), data, _hostile_value), packed)
    _restore(packed.getvalue())


def _weights() -> list[bytes]:
    return [(_trained() / "model.safetensors").read_bytes()]


def _load_weights(data: bytes) -> None:
    from backspike import train
    from backspike.run import Run

    Run.open(_spoiled()).write("model.safetensors", data)
    train.load(_spoiled())


def _log() -> list[bytes]:
    return [(_trained() / "log.jsonl").read_bytes()]


def _read_log(data: bytes) -> None:
    from backspike.run import Run

    run = Run.open(_spoiled())
    run.write("log.jsonl", data)
    read.read_log(run.path / "log.jsonl")
    if run.log()[-1:] and run.log()[-1].get("event") == "done":
        finished_result(run, None, False)


def _arrays() -> list[bytes]:
    out = io.BytesIO()
    np.savez_compressed(
        out,
        confusion=np.eye(2, dtype=np.int64),
        classes=np.array(["a", "b"]),
        sample_y=np.arange(3),
    )
    stored = io.BytesIO()
    np.savez(
        stored, firing_rate=np.asfortranarray(RNG.random((2, 3))), layer_names=np.array(["1", "2"])
    )
    return [out.getvalue(), stored.getvalue()]


def _read_arrays(data: bytes) -> None:
    path = event_files.folder() / "f.npz"
    path.write_bytes(data)
    for array in read.read_run_arrays(path).values():
        assert array.nbytes <= 1100 * len(data)


class _Page(HTMLParser):
    """Fails on scripts, event handlers and external addresses in a page."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "form", "base"), f"<{tag}>"
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("href", "src", "xlink:href"):
                assert (value or "").startswith(("#", "data:")), f"<{tag} {name}={value}>"


def safe_page(page: str) -> None:
    """Raises AssertionError if a page can run or fetch anything."""
    assert SCRIPT not in page
    parser = _Page()
    parser.feed(page)
    parser.close()


@functools.cache
def _finished() -> tuple[Any, dict[str, np.ndarray]]:
    from backspike.system.files import read_arrays, read_json

    path = _trained()
    files = {name: read_json((path / name).read_bytes()) for name in ("recipe.json", "env.json")}
    log = [read_json(line) for line in (path / "log.jsonl").read_text().splitlines()]
    return {**files, "log": log}, read_arrays(path / "evaluation.npz")


def _hostile_array(old: Any, which: int) -> Any:
    if not isinstance(old, np.ndarray):
        return _plain(old, which)
    numbers = old if old.dtype.kind in "iuf" else np.zeros(old.shape)
    return [
        old[:0] if old.ndim else old,
        old[..., :1] if old.ndim else old,
        np.full(old.shape, np.nan),
        np.full(old.shape, -np.inf),
        np.full(old.shape, 1e308),
        -numbers.astype(np.float64),
        np.full(old.shape, SCRIPT),
        np.zeros(old.shape, complex),
        np.zeros(old.shape, bool),
        np.zeros(old.shape, np.int8),
        np.full(old.shape, 2**63 - 1, np.int64),
        np.zeros(old.shape, "datetime64[s]"),
        np.zeros(old.shape, [("a", np.int8)]),
        np.zeros((1,) * 5),
        np.zeros(()),
        np.zeros(old.shape, "V3"),
        np.full(old.shape, b"\xff"),
    ][which % 17]


def _report_edited(data: bytes) -> None:
    from backspike import report

    texts, arrays = _finished()
    both = edited({"texts": texts, "arrays": dict(arrays)}, data, _hostile_array)
    texts, arrays = both.get("texts"), both.get("arrays")
    path = event_files.folder() / "edited"
    path.mkdir(exist_ok=True)
    texts = texts if isinstance(texts, dict) else {}
    for name in ("recipe.json", "env.json"):
        (path / name).write_text(json.dumps(texts.get(name, {}), default=str))
    log = texts.get("log", [])
    (path / "log.jsonl").write_text(
        "\n".join(json.dumps(x, default=str) for x in (log if isinstance(log, list) else [log]))
    )
    arrays = arrays if isinstance(arrays, dict) else {}
    np.savez(
        path / "evaluation.npz", **{k: v for k, v in arrays.items() if isinstance(v, np.ndarray)}
    )
    with (
        contextlib.nullcontext()
        if sum(data) % 8 == 1
        else mock.patch.object(chart, "draw_svg", _plotted)
    ):
        safe_page(report.write(path).read_text("utf-8"))
        safe_page(report.compare([path, _trained()], path / "both.html").read_text("utf-8"))


def _plotted(name: str, label: str, plot: Callable[[Any], None], left: float = 0.125) -> str:
    """Plots a figure without writing it, which would take most of the time."""
    from matplotlib.figure import Figure

    plot(Figure().add_axes((left, 0.17, 0.985 - left, 0.8)))
    return ""


def _refused() -> tuple[type[Exception], ...]:
    from backspike.errors import RecipeError, ReportError, RunError

    return (RunError, RecipeError, ReportError, DataError)


def _archives() -> list[bytes]:
    """A zip and a tar.gz of two recordings, after a byte that tells them apart."""
    packed = {0: io.BytesIO(), 1: io.BytesIO()}
    with (
        zipfile.ZipFile(packed[0], "w") as zipped,
        tarfile.open(fileobj=packed[1], mode="w:gz") as tarred,
    ):
        for name in ("top/Train/0/1.bin", "top/Train/1/2.bin"):
            zipped.writestr(name, b"content")
            info = tarfile.TarInfo(name)
            info.size = 7
            tarred.addfile(info, io.BytesIO(b"content"))
    # a tar that is not compressed again, so that changes reach its headers
    plain = gzip.decompress(packed[1].getvalue())
    return [b"\0" + packed[0].getvalue(), b"\1" + packed[1].getvalue(), b"\2" + plain]


def _unpack(data: bytes) -> None:
    folder = event_files.folder() / "archive"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "inside").mkdir(parents=True)
    kind, content = data[:1], data[1:]
    name = "x.zip" if kind == b"\0" else "x.tar.gz"
    packed = gzip.compress(content, 1) if kind == b"\2" else content
    (folder / "inside" / name).write_bytes(packed)
    try:
        unpack.unpack(
            folder / "inside" / name,
            name,
            (File("Train", recordings=2),),
            folder / "inside" / "set",
        )
    finally:
        assert [p.name for p in folder.iterdir()] == ["inside"]
        assert {p.name for p in (folder / "inside").iterdir()} <= {name, "set"}


def _edit_nir(data: bytes) -> None:
    nir_files.read_tree(edited(nir_files.tree(), data, _hostile_array))


def _targets() -> dict[str, Target]:
    from backspike.errors import ExchangeError, UsageError

    run = _refused()
    return {
        **{name: _reader(name) for name in READERS},
        "archives": Target(_archives, _unpack, share=0.3),
        "shd": Target(lambda: [_spoken()], _read_spoken, share=0.1),
        "event hdf5": Target(event_files.hdf5_files, event_files.read_hdf5, share=0.05),
        "recording list": Target(event_files.lists, event_files.read_list),
        "frames": Target(_frames, _read_frames),
        "pictures": Target(_names, _read_names),
        "sums": Target(_sums, _read_sums, (ValueError, OSError)),  # damage, to `cached`
        "recipe text": Target(_recipe_texts, _parse, run),
        "recipe.json": Target(_recipe_files, _read_recipe, run),
        "recipe values": Target(_edits, _edit_recipe, run),
        "fields": Target(_fields, _read_fields, (*run, UsageError)),
        "weights": Target(_weights, _load_weights, run, share=0.5),
        "checkpoint": Target(lambda: [_checkpoint()], _restore, run, share=0.3),
        "checkpoint pickle": Target(_pickled, _restore_pickled, run, share=0.3),
        "checkpoint values": Target(_edits, _restore_edited, run, share=0.3),
        "log": Target(_log, _read_log, run),
        "npz": Target(_arrays, _read_arrays, run),
        "report": Target(_edits, _report_edited, run, share=0.1),
        "nir": Target(nir_files.files, nir_files.read_file, (ExchangeError,), share=0.05),
        "nir values": Target(_edits, _edit_nir, (ExchangeError,)),
    }


TARGETS = _targets()
