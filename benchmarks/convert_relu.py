"""Trained networks of ReLUs made spiking: accuracy against T, beside SpikingJelly's converter.

    BACKSPIKE_DATA=... python benchmarks/convert_relu.py [digits] [cifar10]

Trains a small network of ReLUs, calibrates `bs.from_torch` on training images and prints the
accuracy on the test set at every T; if SpikingJelly 2.0 can be imported (and requests, which its
converter imports), also that of its `ann2snn` on the same network and images.
"""

import copy
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

import backspike as bs

TIMESTEPS = (1, 4, 8, 16, 32, 64)
CALIBRATION, BATCH = 512, 250
EPOCHS, IMAGES = {"digits": 30, "cifar10": 4}, {"digits": None, "cifar10": 10_000}
TESTED = 500  # images at every T


def block(inputs, width, *more):
    return (
        nn.Conv2d(inputs, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *more,
    )


def network(name):
    if name == "digits":
        pool = nn.AvgPool2d(2)
        return nn.Sequential(
            *block(1, 32, pool), *block(32, 64, pool), nn.Flatten(), nn.Linear(256, 10)
        )
    widths = (32, 64, 128)  # those of the recipe cifar10-small
    layers = [layer for a, b in zip((3, *widths), widths) for layer in block(a, b, nn.AvgPool2d(2))]
    return nn.Sequential(
        *layers, *block(128, 256), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)
    )


def images(split):
    loaded = [split[i] for i in range(len(split))]
    x = torch.stack([torch.as_tensor(a) for a, _ in loaded]).float()
    return x / 255, torch.tensor([int(b) for _, b in loaded])


def train(net, x, y, epochs, rate=0.05, batch=128):
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.SGD(
        net.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    net.train()
    for _ in range(epochs):
        for i in torch.randperm(len(x)).split(batch):
            if len(i) == batch:
                optimizer.zero_grad()
                F.cross_entropy(net(shifted(x[i])), y[i], label_smoothing=0.1).backward()
                optimizer.step()
                schedule.step()
    return net.eval()


def shifted(x):
    """Moved by up to a pixel in eight, and, if in colour, mirrored at random."""
    side = x.shape[-1]
    m = side // 8
    i, j = (int(torch.randint(2 * m + 1, ())) for _ in range(2))
    x = F.pad(x, (m, m, m, m))[..., i : i + side, j : j + side]
    return x.flip(-1) if x.shape[1] == 3 and torch.rand(()) < 0.5 else x


@torch.no_grad()
def accuracy(step, reset, x, y):
    """Of the sum of the outputs after 1, 2, ... timesteps of the same input, at TIMESTEPS."""
    right = dict.fromkeys(TIMESTEPS, 0)
    for a, b in zip(x.split(BATCH), y.split(BATCH)):
        reset()
        total = 0
        for t in range(1, TIMESTEPS[-1] + 1):
            total = total + step(a)
            if t in right:
                right[t] += int((total.argmax(1) == b).sum())
    return [right[t] / len(x) for t in TIMESTEPS]


def ours(net, data, **options):
    snn = bs.from_torch(net, calibrate=data, timesteps=TIMESTEPS, **options).eval()
    print(snn.calibration)
    return snn


def accuracy_of_ours(snn, x, y):
    out = []
    for a, b in zip(x.split(BATCH), y.split(BATCH)):
        with bs.streaming(snn):
            out.append(
                torch.tensor(accuracy(lambda a: snn(a[None])[0], lambda: None, a, b)) * len(a)
            )
    return (sum(out) / len(x)).tolist()


def theirs(net, data, x, y, **options):
    from spikingjelly.activation_based import ann2snn, functional

    recipe = ann2snn.RateCodingRecipe(dataloader=[(data, 0)], **options)
    snn = ann2snn.Converter(recipe).convert(copy.deepcopy(net)).eval()
    return accuracy(snn, lambda: functional.reset_net(snn), x, y)


def main(names):
    for name in names:
        torch.manual_seed(0)
        splits = bs.data.load(name, limit=IMAGES[name])
        (x, y), (tx, ty) = images(splits.train), images(splits.test)
        if name == "cifar10":
            mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
            x, tx = (x - mean) / std, (tx - mean) / std
        start = time.perf_counter()
        net = train(network(name), x, y, EPOCHS[name])
        with torch.no_grad():
            exact = sum(
                int((net(a).argmax(1) == b).sum()) for a, b in zip(tx.split(500), ty.split(500))
            )
        print(
            f"{name}: ReLU {exact / len(tx):.4f} after {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        data = x[:CALIBRATION]
        tx, ty = tx[:TESTED], ty[:TESTED]
        rows = {
            "backspike, 99.9": accuracy_of_ours(ours(net, data), tx, ty),
            "backspike, 99": accuracy_of_ours(ours(net, data, percentile=99), tx, ty),
        }
        try:
            rows["SpikingJelly, Max"] = theirs(net, data, tx, ty, mode="Max")
            rows["SpikingJelly, 99.9%"] = theirs(net, data, tx, ty, mode="99.9%")
            half = {"mode": "99.9%", "channel_wise": True, "half_threshold": True}
            rows["SpikingJelly, 99.9%, channel_wise, half_threshold"] = theirs(
                net, data, tx, ty, **half
            )
        except ImportError as error:
            print(f"without SpikingJelly: {error}")
        print("| converter |", " | ".join(f"T={T}" for T in TIMESTEPS), "|")
        for what, values in rows.items():
            print(f"| {what} |", " | ".join(f"{v:.2%}" for v in values), "|", flush=True)
        with torch.no_grad():
            same = sum(
                int((net(a).argmax(1) == b).sum()) for a, b in zip(tx.split(500), ty.split(500))
            )
        print(f"ReLU on these {len(tx)}: {same / len(tx):.2%}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:] or ["digits", "cifar10"])
