"""A Spikformer too large for one GPU: weights, gradients and optimizer state are sharded (FSDP2).

    torchrun --nproc-per-node=8 examples/sharded.py --dim 1536 --depth 12 --heads 24
    torchrun --nproc-per-node=2 examples/sharded.py --dim 32 --depth 2 --heads 4 --steps 4  # CPU

The weights of a block are gathered when it runs and freed after it, forward and backward, so their
memory is divided by the number of ranks. BatchNorm uses the statistics of the whole batch, so the
losses are those of one process.
"""

import argparse
import warnings

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

import backspike as bs
from backspike.layers import norm
from backspike.system import distributed

T = 4


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in {"dim": 384, "depth": 4, "heads": 12, "batch": 64, "steps": 100}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--out", help="file for the full weights, gathered from all ranks")
    options = parser.parse_args()
    with distributed.process_group() as together:
        train(options, together)


def train(options: argparse.Namespace, together: distributed.Ranks) -> None:
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", distributed.local_rank())
    split = bs.data.load("digits").train
    x = torch.from_numpy(split.x).float().div(255)
    x = x.repeat_interleave(4, 2).repeat_interleave(4, 3)  # [N, 1, 32, 32]
    y = torch.from_numpy(split.y)

    torch.manual_seed(0)
    surrogate = bs.Triangle(alpha=2.0)
    model = bs.models.spikformer(
        in_channels=1,
        dim=options.dim,
        depth=options.depth,
        heads=options.heads,
        neuron=lambda channels: bs.LIF(surrogate=surrogate),
    ).to(device)
    if together.size > 1:
        norm.sync_batch_norm(model)
        for encoder in model.encoders:
            fully_shard(encoder)
        fully_shard(model)
        # the views are not modified in place
        warnings.filterwarnings("ignore", message=".* returned a view tensor")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    order = torch.Generator().manual_seed(0)
    for step in range(options.steps):
        batch = together.shard(torch.randint(len(x), (options.batch,), generator=order))
        images, labels = x[batch].to(device), y[batch].to(device)
        o = model(images.expand(T, *images.shape))  # [T, B, 1, 32, 32] -> [T, B, 10]
        loss = torch.nn.functional.cross_entropy(o.mean(0), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        # all ranks have the same number of samples
        mean = together.all_reduce(float(loss.detach()) / together.size)[0]
        if together.first:
            print(f"step {step}  loss {mean:.5f}", flush=True)
    if options.out:
        state = get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        if together.first:
            torch.save(state, options.out)


if __name__ == "__main__":
    main()
