"""A spiking network in a plain PyTorch loop: no trainer, nothing to reset, MSG + TWO by hand."""

import torch
from torch.nn import functional as F

import backspike as bs

torch.manual_seed(0)
T, epochs = 4, 8
sets = bs.data.load("digits")  # bundled: 1,257 + 180 + 360 images of 8x8


def batches(split, size=64):
    for index in torch.randperm(len(split)).split(size):
        x = torch.from_numpy(split.x)[index].float() / 255
        yield x.expand(T, *x.shape), torch.from_numpy(split.y)[index]  # [T, B, 1, 8, 8], [B]


def spiking(channels):
    return bs.LIF(tau=2.0, v_threshold=0.5, surrogate=bs.Masked(bs.Triangle(alpha=2.0), p=0.5))


model = torch.nn.Sequential(
    bs.OverTime(torch.nn.Conv2d(1, 32, 3, padding=1, bias=False), torch.nn.BatchNorm2d(32)),
    spiking(32),
    bs.OverTime(
        torch.nn.AvgPool2d(2),
        torch.nn.Conv2d(32, 64, 3, padding=1, bias=False),
        torch.nn.BatchNorm2d(64),
    ),
    spiking(64),
    bs.OverTime(torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(64 * 4, 10)),
)
readout = bs.readout.TWO(T, start_epoch=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)

for _ in range(epochs):
    model.train()
    for x, y in batches(sets.train):
        o = model(x)  # [T, B, 10]
        loss = F.cross_entropy(readout(o), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        readout.observe(o.detach(), y)
    readout.end_epoch()

model.eval()
with torch.no_grad():
    right = sum(int((readout(model(x)).argmax(-1) == y).sum()) for x, y in batches(sets.test))
print(f"test accuracy {100 * right / len(sets.test):.1f} %")
