"""The trained networks that ship in the package: a run folder each, with its card, in `weights/`.

`benchmarks/pretrained.py` makes them. `bs.load("digits")` loads one. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..system.files import read_json

WEIGHTS = Path(__file__).with_name("weights")


class Pretrained(NamedTuple):
    """A trained network of the package.

    accuracy: on the test set, in [0, 1]. T: timesteps. size: bytes of its weights. card: its model
    card, Markdown. note: what every result on its data must mention, such as "simulated".
    """

    name: str
    recipe: str
    data: str
    accuracy: float
    T: int
    size: int
    card: Path
    note: str


def pretrained() -> list[Pretrained]:
    """Lists the networks that `bs.load(name)` loads without a file or a download."""
    return [_describe(name, folder) for name, folder in folders().items()]


def folders() -> dict[str, Path]:
    """The run folder of each network of the package, by name."""
    return {path.parent.name: path.parent for path in sorted(WEIGHTS.glob("*/recipe.json"))}


def _describe(name: str, folder: Path) -> Pretrained:
    recipe = read_json((folder / "recipe.json").read_bytes())
    done = read_json((folder / "log.jsonl").read_bytes().splitlines()[-1])
    env = read_json((folder / "env.json").read_bytes())
    return Pretrained(
        name=name,
        recipe=recipe["name"],
        data=recipe["fields"]["data"],
        accuracy=done["test_accuracy"],
        T=recipe["fields"]["T"],
        size=(folder / "model.safetensors").stat().st_size,
        card=folder / "README.md",
        note=env["data_note"],
    )
