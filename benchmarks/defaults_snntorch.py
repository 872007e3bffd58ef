"""snnTorch's side of `benchmarks/defaults.py`: its tutorial 5, one epoch of MNIST.

    python benchmarks/defaults_snntorch.py DATA.pt SEED membrane|spikes

Prints the test accuracy by spike count. Runs in an environment with snnTorch, without backspike.
The current into the first layer, the same at every timestep, is computed once.
"""

import sys

import snntorch
import torch
from torch import nn
from torch.nn.functional import cross_entropy


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(784, 1000), nn.Linear(1000, 10)
        self.lif1, self.lif2 = snntorch.Leaky(beta=0.95), snntorch.Leaky(beta=0.95)

    def forward(self, x: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        current, spikes, membranes = self.fc1(x), [], []
        for _ in range(steps):
            spk1, mem1 = self.lif1(current, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


def main(file: str, seed: int, read: str) -> float:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    data = torch.load(file)
    net, steps = Net(), data["T"]
    optimizer = torch.optim.Adam(net.parameters(), lr=data["lr"])
    for index in torch.randperm(len(data["y"])).split(data["batch"]):
        spikes, membranes = net(data["x"][index].flatten(1), steps)
        y = data["y"][index]
        if read == "membrane":
            loss = sum((cross_entropy(mem, y) for mem in membranes), torch.zeros(()))
        else:
            loss = cross_entropy(spikes.sum(0), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        answers = [net(x.flatten(1), steps)[0].sum(0).argmax(-1) for x in data["x_test"].split(500)]
    return float((torch.cat(answers) == data["y_test"]).float().mean())


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
