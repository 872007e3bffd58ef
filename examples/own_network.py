"""A network and an event set of your own: backspike train examples/own_network.py:recipe"""

import numpy as np
from torch import nn

import backspike as bs
from backspike.recipes.values import AdamW

SIDE = 16  # pixels of the sensor


def record(direction, rng):
    """A bright bar crosses the sensor to the right, left, bottom or top: ON ahead, OFF behind."""
    t, p = np.sort(rng.integers(0, 100_000, 400)), rng.integers(0, 2, 400)  # t in microseconds
    along = np.clip(t * SIDE // 100_000 - 2 * (1 - p) + rng.integers(-1, 2, 400), 0, SIDE - 1)
    along = SIDE - 1 - along if direction % 2 else along
    x, y = along, rng.integers(0, SIDE, 400)
    return bs.data.Events(*((x, y) if direction < 2 else (y, x)), t, p)


def make_data(T):
    rng = np.random.default_rng(0)
    y = np.arange(600) % 4
    x = np.stack([bs.data.frames(record(k, rng), T, SIDE) for k in y]).astype(np.uint8)
    parts = np.split(np.arange(600), [400, 500])  # training, validation, test
    return [bs.data.Split(x[i], y[i], i) for i in parts]


def make_network(neuron):
    return nn.Sequential(
        bs.OverTime(nn.Conv2d(2, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)),
        neuron(channels=16),
        bs.OverTime(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16 * 16, 4)),
    )


def recipe():
    return bs.Recipe(
        model=make_network, data=make_data, T=8, epochs=5, batch_size=32, optimizer=AdamW(lr=0.01)
    )
