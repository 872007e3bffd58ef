"""The file formats that are read, from the docstrings of their readers."""

import inspect
from importlib import import_module
from pathlib import Path

from .markdown import table

EVENTS = {
    "columns": ".npy, .npz, .csv, .txt",
    "hdf5": ".h5, .hdf5, .hdf",
    "dat": ".dat",
    "evt2": ".raw",
    "evt3": ".raw",
    "aedat2": ".aedat",
    "aedat3": ".aedat",
    "aedat4": ".aedat4",
    "atis": ".bin",
}
OTHERS = {
    "idx": "MNIST and its kin",
    "image_batch": "CIFAR-10 and CIFAR-100",
    "picture": "folders of pictures, ImageNet",
    "wav": "spoken digits",
    "npy": "arrays",
}


def event_formats(folder: Path) -> str:
    """A table of the formats of recordings."""
    rows = [[f"`{names}`", _about(module)] for module, names in EVENTS.items()]
    return table(["files", "what is in them"], rows, "ll")


def other_formats(folder: Path) -> str:
    """A table of the formats of images, sounds and arrays."""
    rows = [[names, _about(module)] for module, names in OTHERS.items()]
    return table(["of", "what is in them"], rows, "ll")


def _about(module: str) -> str:
    text = inspect.getdoc(import_module(f"backspike.data.formats.{module}")) or ""
    return " ".join(text.split())
