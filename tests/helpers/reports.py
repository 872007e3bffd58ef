"""Shared by the tests: parts of what was in test_report.py."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

LAYERS = ("conv1", "conv2", "fc1")


FIELDS = {
    "data": "digits-dvs",
    "model": "ConvNet(widths=(32, 64), hidden=128)",
    "T": 8,
    "neuron.tau": 2.0,
    "neuron.surrogate": "Masked(Triangle(alpha=2), p=0.5)",
    "readout": "TWO(beta=0.7, start_epoch=5)",
    "epochs": 30,
    "seed": 0,
    "amp": None,
    "channels_last": True,
}


def make_run(
    path: Path,
    *,
    epochs: int = 30,
    finished: bool = True,
    events: bool = True,
    T: int = 8,
    **change: Any,
) -> Path:
    """A run folder as training leaves it; `change` overrides fields of the recipe."""
    path.mkdir(parents=True)
    (path / "recipe.json").write_text(
        json.dumps({"name": "digits", "fields": FIELDS | {"T": T} | change})
    )
    env = {
        "backspike": "0.1.0",
        "torch": "2.13.0",
        "cpu": "Example CPU @ 2.1 GHz",
        "threads": 2,
        "device": "cpu",
    }
    env |= {"command": "backspike train digits --seed 0", "parameters": 123456}
    env |= {"data_note": "simulated event camera recordings"} if events else {}
    (path / "env.json").write_text(json.dumps(env))
    lines = [epoch_line(e, T, epochs, change.get("seed", 0)) for e in range(epochs)]
    if finished:
        done = {
            "event": "done",
            "test_accuracy": 0.9722,
            "test_accuracy_last": 0.9694,
            "validation_accuracy": 0.983,
        }
        lines.append(done | {"best_epoch": epochs - 4, "epochs": epochs, "seconds": 96.3})
        np.savez(path / "evaluation.npz", **evaluation(T, events))
    (path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def epoch_line(e: int, T: int, epochs: int, seed: int) -> dict[str, Any]:
    fall, rng = np.exp(-e / (6 + seed)), np.random.default_rng((seed, e))
    weights = 1 + (1 - fall) * np.linspace(-0.35, 0.35, T) * (e > 5)
    return {
        "event": "epoch",
        "epoch": e,
        "loss": 0.05 + 2.2 * fall,
        "train_accuracy": 0.99 - 0.7 * fall,
        "validation_loss": 0.15 + 2.1 * fall + 0.03 * rng.random(),
        "validation_accuracy": 0.98 - 0.72 * fall - 0.02 * rng.random(),
        "lr": 1e-3 * (1 + np.cos(np.pi * e / epochs)) / 2,
        "seconds": 3.2,
        "samples_per_second": 1234.5,
        "masked_share": 0.5,
        "firing_rate": {name: 0.08 + 0.04 * i - 0.02 * fall for i, name in enumerate(LAYERS)},
        "support_share": {name: 0.3 + 0.1 * i for i, name in enumerate(LAYERS)},
        "readout_weights": list(weights),
        "widths": {name: 1 + 0.2 * (1 - fall) * (i - 1) for i, name in enumerate(LAYERS)},
    }


def evaluation(T: int, events: bool, S: int = 4, K: int = 10) -> dict[str, Any]:
    rng, L = np.random.default_rng(0), len(LAYERS)
    confusion = np.diag(np.full(K, 35))
    confusion[8, 1], confusion[9, 3], confusion[3, 5], confusion[5, 5] = 3, 2, 1, 31
    edges, z = np.linspace(-2, 2, 81), np.linspace(-2, 2, 201)
    counts = np.stack(
        [np.histogram(rng.normal(-0.8 + 0.2 * i, 0.5, 9999), edges)[0] for i in range(L)]
    )
    y = rng.permutation(K)[:S]
    logits = rng.normal(0, 0.5, (S, T, K)).cumsum(1)
    logits[np.arange(S), :, y] += np.linspace(0, 5, T)
    logits[-1, :, (y[-1] + 1) % K] += np.linspace(0, 9, T)
    x = (
        rng.poisson(0.15, (S, T, 2, 34, 34))
        if events
        else np.repeat(rng.random((S, 1, 1, 8, 8)), T, 1)
    )
    rate = np.linspace(0.04, 0.2, L)[:, None] * np.linspace(0.3, 1, T)
    spikes = {
        f"sample_spikes_{i}": (rng.random((S, T, 64)) < 0.15).astype(np.uint8) for i in range(L)
    }
    return spikes | {
        "classes": np.array([str(k) for k in range(K)]),
        "confusion": confusion,
        "layer_names": np.array(LAYERS),
        "firing_rate": rate,
        "support_share": 2.5 * rate,
        "membrane_counts": counts,
        "membrane_edges": edges,
        "surrogate_z": z,
        "surrogate_h": np.stack([np.maximum(0, 2 - 4 * abs(z))] * L),
        "accuracy_over_time": 0.97 - 0.6 * np.exp(-np.arange(T)),
        "sample_x": x.astype(np.float32),
        "sample_y": y,
        "sample_logits": logits,
        "readout_weights": np.ones(T),
        "spikes_per_image": np.array([5210.2, 1320.0, 64.25]),
    }


VOID = {"meta", "link", "img", "br", "path", "use"}


class Page(HTMLParser):
    """The tags of a page with their attributes, its text, and whether tags are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or (self.open and self.open[-1] in ("g", "defs", "svg")):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["title"]):
            self.text += data + " "

    @property
    def ids(self) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get("id"))]
