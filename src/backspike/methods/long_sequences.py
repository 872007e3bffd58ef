"""Gradients of long sequences: the model runs over chunks of time, with its states carried along.

A first pass without gradients computes the outputs of all timesteps, and from them any loss, which
gives the gradient of each output. A second pass computes one chunk after the other again and
differentiates it, so that the activations of only one chunk are in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..neuron.streaming import Streaming, streaming

Chunk = tuple[Tensor, int, Tensor]  # input, seed, gradient of the outputs
States = dict[Streaming, tuple[Tensor, ...]]
Context = Callable[[], AbstractContextManager[object]]


def backward_in_chunks(
    model: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    size: int | None = None,
    *,
    truncate: bool = False,
    accumulating: Context = nullcontext,
) -> tuple[Tensor, Tensor]:
    """Adds the gradients of loss(model(x)) to the parameters, with less memory than `backward()`.

    x: `[T, B, ...]`; no gradient is computed for it. model: to `[T, B, ...]`.
    loss: a function of the outputs of all T timesteps; a scalar. It may contain any readout.
    size: timesteps in a chunk. None: about twice the square root of T.
    truncate=False: exact gradients. The states between the chunks are saved, so that memory grows
        with sqrt(T) for the default size.
    truncate=True: truncated back-propagation through time. No gradient passes from a chunk into the
        one before. Memory grows with `size`, and with T only by the outputs. With size=1, this is
        SLTT (Meng et al. 2023), and with `bs.ottt` around it, OTTT.
    accumulating: makes a context for all chunks except the last that is differentiated, such as
        `no_sync` of DistributedDataParallel.

    Returns loss and outputs, both detached. The model runs twice. Both passes draw the same masks
    and dropouts: a seed is drawn for each chunk. BatchNorm in training takes its statistics over
    the timesteps of a chunk and updates its running statistics once per chunk.
    Spiking layers of this package carry their states from chunk to chunk; other modules must be
    stateless. PDA and SGS, which look at the whole sequence, are not supported.

    Raises ValueError if size is below 1 or x has no timestep.
    """
    if size is not None and size < 1:
        raise ValueError(f"backward_in_chunks: size must be at least 1, got {size}")
    if not x.dim() or not len(x):
        raise ValueError(f"backward_in_chunks: x must be [T, B, ...], got shape {list(x.shape)}")
    chunks = x.split(size or 2 * math.isqrt(len(x) - 1) + 1)
    seeds: list[int] = torch.randint(2**63 - 1, (len(chunks),)).tolist()
    o, states = _first_pass(model, chunks, seeds, save_states=not truncate)
    o.requires_grad_()
    value = loss(o)
    value.backward()
    assert o.grad is not None
    grads = o.grad.split(len(chunks[0]))
    parts = list(zip(chunks, seeds, grads))
    if truncate:
        _truncated(model, parts, accumulating)
    else:
        _exact(model, parts, states, accumulating)
    return value.detach(), o.detach()


@torch.no_grad()
def _first_pass(
    model: nn.Module, chunks: Sequence[Tensor], seeds: Sequence[int], save_states: bool
) -> tuple[Tensor, list[States]]:
    """The outputs of all timesteps, and the states before each chunk if they are to be saved."""
    outputs: list[Tensor] = []
    states: list[States] = []
    buffers = [(b, b.clone()) for b in model.buffers()]  # the second pass updates them
    with streaming(model):
        for x, seed in zip(chunks, seeds):
            states += [_states(model)] if save_states else []
            with _seeded(seed, x.device):
                outputs.append(model(x))
    for buffer, before in buffers:
        buffer.copy_(before)
    return torch.cat(outputs), states


def _truncated(model: nn.Module, chunks: Sequence[Chunk], accumulating: Context) -> None:
    with streaming(model):
        for number, (x, seed, grad) in enumerate(chunks, 1):
            with nullcontext() if number == len(chunks) else accumulating():
                with _seeded(seed, x.device):
                    o = model(x)
                o.backward(grad)


def _exact(
    model: nn.Module, chunks: Sequence[Chunk], states: list[States], accumulating: Context
) -> None:
    """Differentiates the last chunk first. states: before each chunk; freed on the way."""
    later: States = {}  # the states before the chunk behind this one, with their gradients
    for number in reversed(range(len(chunks))):
        x, seed, grad = chunks[number]
        before = states.pop()
        with nullcontext() if number == 0 else accumulating(), streaming(model, detach=False):
            for layer, state in before.items():
                layer.carry(*(s.requires_grad_() for s in state))
            with _seeded(seed, x.device):
                o = model(x)
            after = _states(model)
            pairs = [(o, grad)]
            for layer, leaves in later.items():
                pairs += [(s, leaf.grad) for s, leaf in zip(after[layer], leaves)]  # type: ignore[misc]
            pairs = [(t, g) for t, g in pairs if g is not None and t.requires_grad]
            torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
        later = before


def _states(model: nn.Module) -> States:
    """The states that the layers carry at present."""
    layers = (m for m in model.modules() if isinstance(m, Streaming) and m.carried is not None)
    return {m: m.carried if isinstance(m.carried, tuple) else (m.carried,) for m in layers}


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws random numbers from this seed; the generators outside are unchanged."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` is slow, for every device
        if cuda:
            torch.cuda.manual_seed(seed)
        yield
