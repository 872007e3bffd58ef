"""Fine-tuning: starts with the weights of another run; layers that do not learn."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import nn

from ..analysis.finding import list_names
from ..errors import RunError
from ..run import Run
from .failures import first_line
from .network import Network


@torch.no_grad()
def load_weights(network: Network, name: str) -> dict[str, Any]:
    """Copies the weights of a run into the model, by name where the shapes are the same.

    name: as for `bs.load`. Returns the event `weights`, which says what was loaded and what was
    not. The readout starts anew. Raises RunError if there are no weights, or none fits.
    """
    run = Run.find(name)
    if not run.has("model.safetensors"):
        raise RunError(f"{run.path} has no model.safetensors; finish it, or start from another run")
    try:
        stored = load_safetensors(run.read("model.safetensors"))
    except Exception as e:  # a damaged file can raise almost anything
        raise RunError(f"{run.path / 'model.safetensors'} is damaged: {first_line(e)}") from e
    stored = {k.removeprefix("model."): v for k, v in stored.items() if k.startswith("model.")}
    own = network.model.state_dict()
    loaded = [k for k in own if k in stored and stored[k].shape == own[k].shape]
    if not any(name in loaded for name, _ in network.model.named_parameters()):
        raise RunError(
            f"no weight of {name} has the name and shape of one in this network; "
            "fine-tune the same kind of network"
        )
    for key in loaded:
        own[key].copy_(stored[key])
    shapes = {
        k: f"{k} (here {list(own[k].shape)}, there {list(stored[k].shape)})"
        for k in own
        if k in stored and k not in loaded
    }
    new = [shapes.get(k, k) for k in own if k not in loaded]
    unused = [k for k in stored if k not in own]
    parts = [f"{len(loaded)} tensors from {name}"]
    parts += [f"new, with initial values: {list_names(new)}"] if new else []
    parts += [f"not in this network: {list_names(unused)}"] if unused else []
    return {
        "event": "weights",
        "from": name,
        "loaded": loaded,
        "new": [k for k in own if k not in loaded],
        "unused": unused,
        "text": "; ".join(parts),
    }


def freeze(model: nn.Module, names: str) -> list[nn.Module]:
    """Stops the learning of the parameters and layers that the patterns name.

    names: of parameters or of layers that contain them, with * and ?, separated by commas.
    Returns the BatchNorms in frozen layers, whose running statistics must not change either: they
    have to be put in evaluation mode. Raises RunError for a pattern that names nothing, and if
    nothing is left to learn.
    """
    patterns = [p.strip() for p in names.split(",") if p.strip()]
    if not patterns:
        return []
    for pattern in patterns:
        if not any(_matches(name, pattern) for name, _ in model.named_parameters()):
            learning = {name.rpartition(".")[0]: None for name, _ in model.named_parameters()}
            layers = list_names(list(learning))
            raise RunError(f"freeze: {pattern!r} names nothing that learns; layers: {layers}")
    for name, parameter in model.named_parameters():
        if any(_matches(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise RunError(f"freeze={names!r} leaves nothing to learn; name fewer layers")
    return [
        m
        for name, m in model.named_modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)
        and any(_matches(f"{name}.running_mean", pattern) for pattern in patterns)
    ]


def _matches(name: str, pattern: str) -> bool:
    """Whether the pattern names the parameter or a layer that contains it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))
