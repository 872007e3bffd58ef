"""`write`: a network as a NIR file, proven by execution before the file gets its name."""

from __future__ import annotations

import copy
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.formats import one_line
from ..errors import ExchangeError
from ..neuron.integrator import Integrator
from ..neuron.lif import LIF
from ..options.distribution import ms
from ..recipes.recipe import Recipe
from ..system import disk
from ..system.files import cannot_write
from . import nir_verify as verify
from .nir_read import DT, load
from .nir_walk import Options, Walk
from .trained import SILENT, find

logger = logging.getLogger("backspike")


@dataclass(frozen=True)
class Exported:
    """What `write` returns: the file, and what its proof compared."""

    path: Path
    layers: int  # spiking layers
    spikes: int  # equal ones, in all layers, timesteps and samples
    T: int
    samples: int
    dt: float  # seconds
    warnings: list[str]


def write(
    model_or_run: nn.Module | str | Path,
    path: str | Path,
    sample: Tensor | None = None,
    *,
    recipe: Recipe | str | None = None,
    dt: float | None = None,
    dialect: str = "1.0.8",
    pool: str = "average",
    gain: str = "trained",
) -> Exported:
    """Write a network as a NIR file and prove it: read back, it gives the same spikes.

    model_or_run: a network `[T, B, ...] -> [T, B, ...]`, or a run as for `bs.load`. sample: inputs
    `[T, B, ...]` for the proof; for a run its validation or test samples by default. recipe: of the
    run, as for `bs.load`. dt: seconds that a timestep stands for; None: the dt of the network's
    `bs.ms`, or 0.0001. dialect: "1.0.4" leaves out the field v_reset, on which the readers of nir
    1.0.4 fail; then every hard reset must be to 0. pool="sum": SumPool2d instead of AvgPool2d, with
    the divisor in the weights behind it, for readers that know only the one. gain: of a neuron's
    input; "unit" and "decayed" write R = tau/dt or R = 1 (and w_in alike) whatever the network was
    trained with, and scale v_threshold, v_reset and v_leak instead.
    Raises ExchangeError, one line, for a layer that NIR has no word for, and where the file read
    back differs: then it names the layer and the timestep, and writes nothing.
    """
    path, nir = Path(path), _library()
    model, sample, *_ = find(model_or_run, sample, recipe)
    dt = _timestep(model) if dt is None else dt
    options = Options(dt, dialect, pool, gain)
    network = copy.deepcopy(model).cpu().double().eval()
    sample = sample.detach().cpu().double()
    with torch.no_grad():
        writer = Walk(nir, network, tuple(sample.shape[2:]), options)
        graph = writer.graph(len(sample))
        temporary = disk.temporary(path)
        try:
            _save(nir, graph, temporary, dialect)
            back = load(temporary, trusted=True)
            found = verify.compare(writer.chain, back, writer.spiking, sample)
            disk.sync(temporary)
            disk.replace(temporary, path)
            disk.sync(path.parent)
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            with suppress(OSError):  # it was renamed, or the folder cannot be written
                temporary.unlink()
    if not found:
        writer.warn(SILENT)
    for warning in writer.warnings:
        logger.warning("%s: %s", path, warning)
    T, B = sample.shape[:2]
    return Exported(path, len(writer.spiking), found, T, B, dt, writer.warnings)


def _timestep(model: nn.Module) -> float:
    """dt in seconds. Raises ExchangeError if time constants have different ones."""
    kinds = [m for m in model.modules() if isinstance(m, LIF | Integrator)]
    options = [vars(m.options if isinstance(m, LIF) else m) for m in kinds]
    steps = {v.dt for o in options for v in o.values() if isinstance(v, ms)}
    if len(steps) > 1:
        raise ExchangeError(
            f"the time constants have different dt, {sorted(steps)} ms; give dt= in seconds"
        )
    return steps.pop() / 1000 if steps else DT


def _library() -> Any:
    try:
        import nir
    except Exception as error:  # a broken installation raises more than ImportError
        raise ExchangeError(
            f"NIR files are written by nir: pip install 'backspike[nir]' ({one_line(error)})"
        ) from error
    return nir


def _save(nir: Any, graph: Any, path: Path, dialect: str) -> None:
    import h5py

    try:
        nir.write(str(path), graph)
        if dialect == "1.0.4":
            with h5py.File(path, "a") as file:
                for node in file["node/nodes"].values():
                    if "v_reset" in node:
                        del node["v_reset"]
        nir.read(str(path))  # so that a file which the library itself refuses gets no name
    except OSError:
        raise
    except Exception as error:
        raise ExchangeError(f"the library nir refuses this network: {one_line(error)}") from error
