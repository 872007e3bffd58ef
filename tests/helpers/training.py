"""Shared by the tests: parts of what was in test_train.py."""

from dataclasses import dataclass

import numpy as np
import torch

import backspike as bs
from backspike.recipes.values import AdamW, Mean
from backspike.run import Run
from backspike.train import checkpoint

TINY = {
    "limit": 120,
    "epochs": 3,
    "ema": 0.0,
    "batch_size": 32,
    "model": "ConvNet('6-P-8-P', size=8)",
    "readout": "TWO(start_epoch=0)",
}


def tiny(**changes):
    return bs.recipes.digits().replace({**TINY, **changes})


def fit(*arguments, **options):
    """Without the report, whose tests are elsewhere."""
    return bs.fit(*arguments, report=False, **options)


def weights(run):
    return checkpoint.read(Run.open(run), "last.ckpt")["network"]


def change_checkpoint(run, change):
    """Replace `last.ckpt` of the run by its state after `change(state)`."""
    state = checkpoint.read(run, "last.ckpt")
    change(state)
    run.write("last.ckpt", checkpoint.to_bytes(state))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def epochs(run):
    timing = ("seconds", "samples_per_second")
    return [
        {k: v for k, v in e.items() if k not in timing}
        for e in Run.open(run).log()
        if e["event"] == "epoch"
    ]


class Stop(Exception):
    pass


def stop_after(batches):
    """A listener that stops the run from outside, as a kill does, after so many batches."""
    seen = 0

    def listen(event):
        nonlocal seen
        seen += event["event"] == "batch"
        if seen >= batches:
            raise Stop

    return listen


@dataclass
class Points:
    """A user's own data set: two Gaussian blobs in the plane, floats."""

    n: int = 64
    poison: float = 0.0
    label: int = 0

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        y = i % 2
        x = np.random.default_rng(i).normal(2 * y - 1, 0.3, 2).astype(np.float32)
        return x * 0 + np.float32("nan") if self.poison and i == 5 else x, y + self.label


class Own(torch.nn.Module):
    def __init__(self, K=2, hidden=16):
        super().__init__()
        self.net = torch.nn.Sequential(
            bs.OverTime(torch.nn.Linear(2, hidden)),
            bs.LIF(v_threshold=0.5),
            bs.OverTime(torch.nn.Linear(hidden, K)),
        )

    def forward(self, x):
        return self.net(x)


def own(**changes):
    return bs.Recipe(
        name="own", readout=Mean(), optimizer=AdamW(lr=0.02), epochs=4, batch_size=16, **changes
    )
