"""Writes spikingjelly.json: names and shapes of the weights of SpikingJelly's networks.

Also their outputs for made-up weights.

Run where SpikingJelly is installed: `python -P tests/golden/spikingjelly.py`.
The tests read the file and need no SpikingJelly.
"""

import json
import math
from importlib.metadata import version
from pathlib import Path

import torch

FILE = Path(__file__).with_name("spikingjelly.json")
T, SIZE, CLASSES = 3, 32, 5
PLIF = {"v_threshold": 0.3}  # at 1 no neuron of the last layers fires


def weights(shapes):
    """Made-up weights in float64, the same on every machine: waves that make every layer spike."""
    made = {}
    for i, (name, shape) in enumerate(shapes.items()):
        first = (
            7 * i if name.endswith(".w") else 0
        )  # a wave of one number is another one in each layer
        wave = torch.sin(
            (first + torch.arange(math.prod(shape), dtype=torch.float64)) * (1.1 + i / 97)
        ).reshape(shape)
        kind = name.rsplit(".", 1)[1]
        if kind == "num_batches_tracked":
            made[name] = torch.tensor(3)
        elif len(shape) > 1:
            made[name] = wave * 2 / math.sqrt(math.prod(shape[1:]))
        elif kind == "w":  # of PLIF: 1/tau = sig(w)
            made[name] = wave
        elif kind in ("weight", "running_var"):
            made[name] = 1.2 + 0.3 * wave
        else:
            made[name] = 0.2 + 0.2 * wave if kind == "bias" else 0.1 * wave
    return made


def image():
    """[T, 1, 3, H, W], other pixels at each timestep."""
    return torch.sin(torch.arange(T * 3 * SIZE * SIZE, dtype=torch.float64) * 0.7).reshape(
        T, 1, 3, SIZE, SIZE
    )


def main():
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.model import sew_resnet, spiking_resnet

    networks = {}
    names = (
        "sew_resnet18",
        "sew_resnet34",
        "sew_resnet50",
        "spiking_resnet18",
        "spiking_resnet34",
        "spiking_resnet50",
    )
    plif = [
        (f"{name}_plif", name, neuron.ParametricLIFNode) for name in names if name.endswith("18")
    ]
    for key, name, kind in [*((name, name, neuron.IFNode) for name in names), *plif]:
        make = getattr(sew_resnet if name.startswith("sew") else spiking_resnet, name)
        options = ({"cnf": "ADD"} if name.startswith("sew") else {}) | (
            PLIF if key.endswith("_plif") else {}
        )
        model = make(pretrained=False, num_classes=CLASSES, spiking_neuron=kind, **options).double()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict(weights(shapes))
        functional.set_step_mode(model, "m")
        out = []
        for mode in (False, True):
            model.train(mode)
            functional.reset_net(model)
            out.append(model(image()).detach().flatten(1).tolist())
        networks[key] = {"shapes": shapes, "eval": out[0], "train": out[1]}
    FILE.write_text(
        json.dumps({"spikingjelly": version("spikingjelly"), "networks": networks}) + "\n"
    )


if __name__ == "__main__":
    main()
