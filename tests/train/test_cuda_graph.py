"""Recorded and replayed steps. There is no GPU here: `Tape` stands in for a CUDA graph.

Like a graph, it knows only kernels and addresses: every operator that reaches the device, with its
tensors and numbers, and nothing of Python. Recorded operators do not run. Reading a value on the
host is an error, and so is making a tensor from numbers on the host.
"""

from functools import partial

import pytest
import torch
from helpers.training import Own, Points, epochs, fit, own, same, tiny, weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import backspike as bs
from backspike.errors import RunError
from backspike.kernel import mask
from backspike.layers import synapse
from backspike.run import Run
from backspike.train import cuda_graph, setup, step
from backspike.train.cuda_graph import Replayed

CPU = torch.device("cpu")


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators, self.before, self.made = [], {}, set()

    def warm_up(self, run):
        run()

    def record(self, run):
        with self:
            run()
        with torch.no_grad():
            for tensor, value in self.before.values():
                tensor.copy_(value)

    def replay(self):
        with torch._C._AutoDispatchBelowAutograd():
            for operator, arguments, options, results in self.operators:
                now = operator(*arguments, **options)
                for old, new in zip(tree_leaves(results), tree_leaves(now)):
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        aten = torch.ops.aten
        # reads of values on the host, and tensors made from numbers on the host
        if func in (
            aten._local_scalar_dense.default,
            aten.nonzero.default,
            aten.equal.default,
            aten.lift_fresh.default,
        ):
            raise RuntimeError("operation not permitted when stream is capturing")
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[i] if i < len(args) else kwargs.get(argument.name)
                for tensor in tree_leaves(given):
                    self._remember(tensor)
        # its schema does not declare that it changes the running statistics
        if func is torch.ops.aten.native_batch_norm.default:
            for tensor in args[3:5]:
                self._remember(tensor)
        result = func(*args, **kwargs)
        inputs = {
            a.untyped_storage().data_ptr()
            for a in tree_leaves((args, kwargs))
            if isinstance(a, torch.Tensor)
        }
        fresh = {
            r.untyped_storage().data_ptr()
            for r in tree_leaves(result)
            if isinstance(r, torch.Tensor)
        } - inputs
        self.made |= fresh
        # the tape holds all results, so that no address is reused
        self.operators.append((func, args, kwargs, tree_map(lambda r: r, result)))
        return result

    def _remember(self, tensor):
        """Saves a tensor from outside before its first change."""
        at = tensor.untyped_storage().data_ptr() if isinstance(tensor, torch.Tensor) else None
        if at is not None and at not in self.made and at not in self.before:
            whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            self.before[at] = whole, whole.clone()


def refuse(why):
    raise AssertionError(why)


# ---- one step ------------------------------------------------------------------------------------


def test_a_replay_reads_its_current_inputs():
    seen = torch.zeros(3)
    step = Replayed(lambda x, y: seen.add_(x.sum(0) * y), CPU, refuse, Tape)
    for i in range(6):
        x, y = torch.full((2, 3), float(i)), torch.tensor(2.0)
        step(x, y)
        assert torch.equal(seen, torch.full((3,), 4.0 * sum(range(i + 1))))
    step(torch.ones(5, 3), torch.tensor(1.0))  # of another shape
    step(torch.ones(2, 3), torch.tensor(1.0))
    assert torch.equal(seen, torch.full((3,), 60.0 + 5 + 2))


def test_a_step_without_inputs_is_recorded_once():
    recorded, seen = [], torch.zeros(())
    step = Replayed(lambda: (recorded.append(1), seen.add_(1)), CPU, refuse, Tape)
    for _ in range(8):
        step()
    assert seen == 8
    assert len(recorded) == cuda_graph.WARM_UP + 1


def test_a_static_input_keeps_its_stride_of_zero():
    strides = []
    step = Replayed(lambda x: strides.append(x.stride(0)), CPU, refuse, Tape)
    for _ in range(5):
        step(torch.rand(1, 2).expand(4, 2))
    assert strides == [0] * (cuda_graph.WARM_UP + 1)  # replays run no Python


def test_replayed_masks_equal_those_of_direct_steps():
    def drawn(recorded):
        found = []
        out, p = torch.zeros(2, 40, dtype=torch.bool), torch.tensor(0.5)

        def step(x):
            for i in range(2):
                out[i].copy_(mask.dropped_at(mask.draw_seed(CPU), 0, (40,), p))

        run = Replayed(step, CPU, refuse, Tape) if recorded else step
        torch.manual_seed(4)
        for _ in range(7):
            run(torch.zeros(1))
            found.append(out.clone())
        return torch.stack(found)

    got = drawn(True)
    assert torch.equal(got, drawn(False))
    assert len({row.numpy().tobytes() for row in got.flatten(1)}) == 7


def test_a_users_own_graph_draws_a_new_seed_at_every_replay():
    tape, replays, seeds = (
        Tape(),
        torch.zeros((), dtype=torch.int64),
        torch.zeros((), dtype=torch.int64),
    )
    drawn = torch.tensor(5)
    tape.record(lambda: seeds.copy_(mask.advanced(drawn, replays)))
    found = []
    for _ in range(50):
        tape.replay()
        found.append(int(seeds))
    assert len(set(found)) == 50
    assert all(0 <= seed < 2**63 for seed in found)


def test_a_step_that_reads_values_runs_without_a_recording():
    said, seen = [], torch.zeros(())
    step = Replayed(lambda x: seen.add_(x.sum().item()), CPU, said.append, Tape)
    for _ in range(6):
        step(torch.ones(2))
    assert said == ["operation not permitted when stream is capturing"]
    assert seen == 12


# ---- training ------------------------------------------------------------------------------------


def as_on_a_gpu(monkeypatch, recorder=Tape, warm_up=1):
    """The code path of a GPU on this CPU: no C kernels, rare reads of values, recorded steps."""
    monkeypatch.setattr(synapse, "_plain", lambda x, layer, bits: False)
    monkeypatch.setattr(step, "Replayed", partial(Replayed, recorder=recorder))
    monkeypatch.setattr(cuda_graph, "WARM_UP", warm_up)
    monkeypatch.setattr(
        setup, "_records_steps", lambda recipe, device: recipe.cuda_graph is not False
    )
    monkeypatch.setattr(step.Step, "waits", False)


OPTIONS = {
    "plain": {},
    "all that can be recorded": {
        "optimizer": "SGD(lr=0.05)",
        "clip": 1.0,
        "ema": 0.9,
        "accumulate": 2,
        "weight_mask": 0.2,
        "freeze_width": 2,
        "neuron.surrogate": "Masked(Parametric(Triangle()), p=0.4)",
        "mask_p_end": 0.1,
        "neuron.learn": "('threshold',)",
        "potential": "PDA(strength=0.1)",
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_recorded_run_equals_an_unrecorded_one(name, tmp_path, monkeypatch):
    """Bit-identical weights and the same log: steps depend only on tensors."""
    recipe = tiny(**{"limit": 104, "neuron.backend": "eager", **OPTIONS[name]})
    with monkeypatch.context() as m:
        as_on_a_gpu(m, warm_up=10**9)
        fit(recipe, tmp_path / "plain")
    replays = []
    with monkeypatch.context() as m:
        as_on_a_gpu(m)
        m.setattr(
            Tape, "replay", lambda self, replay=Tape.replay: (replays.append(1), replay(self))[1]
        )
        fit(recipe, tmp_path / "recorded")
    assert len(replays) >= 7
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "recorded"))
    assert epochs(tmp_path / "plain") == epochs(tmp_path / "recorded")


def test_a_recorded_run_resumes_exactly(tmp_path, monkeypatch):
    as_on_a_gpu(monkeypatch)
    recipe = tiny(**{"limit": 104, "neuron.backend": "eager"})
    fit(recipe, tmp_path / "whole")

    def stop(event):
        if event["event"] == "batch" and (event["epoch"], event["batch"]) == (1, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(recipe.replace({"checkpoint_seconds": 0}), tmp_path / "run", listen=stop)
    bs.resume(tmp_path / "run", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_nonfinite_loss_is_found_later_and_never_saved(tmp_path, monkeypatch):
    as_on_a_gpu(monkeypatch)
    with pytest.raises(
        RunError,
        match=r"became (nan|inf|-inf) in epoch 1, batch \d+ or in the 19 steps before it; .*lower",
    ):
        fit(own().replace({"optimizer": "SGD(lr=1e38)"}), tmp_path / "run", Own(), Points())
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "run").values())


def test_without_a_gpu_recording_is_refused_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"cuda_graph needs a GPU; leave it out"):
        fit(tiny(cuda_graph=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class _Looks(torch.nn.Module):
    """A user's network that reads a value on the host."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.linear(x.flatten(2)) * (1.0 if x.sum().item() > 0 else 2.0)


def test_a_network_that_cannot_be_recorded_trains_without_a_recording(tmp_path, monkeypatch):
    as_on_a_gpu(monkeypatch)
    events = []
    fit(tiny(), tmp_path / "run", model=_Looks(), listen=events.append)
    (said,) = [e for e in events if e["event"] == "cuda_graph"]
    assert "cannot be recorded" in said["text"]
    with pytest.raises(RunError, match=r"cuda_graph: .*set cuda_graph=False"):
        fit(tiny(cuda_graph=True), tmp_path / "other", model=_Looks())


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")],
    ids=str,
)
def test_running_out_of_memory_is_explained_and_the_checkpoint_is_intact(
    error, tmp_path, monkeypatch
):
    steps, compute = [], step.Step.compute

    def fail(self, x, y):
        steps.append(1)
        if len(steps) == 6:
            raise error
        compute(self, x, y)

    fit(tiny(checkpoint_seconds=0), tmp_path / "whole")
    monkeypatch.setattr(step.Step, "compute", fail)
    with pytest.raises(
        RunError, match=r"out of memory with batch_size=32 .*accumulate=2 .*bs\.plan_memory"
    ):
        fit(tiny(checkpoint_seconds=0), tmp_path / "run")
    assert Run.open(tmp_path / "run").has("last.ckpt")
    bs.resume(tmp_path / "run", report=False)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


def test_a_scheduler_of_the_momentum_cannot_be_recorded(tmp_path, monkeypatch):
    as_on_a_gpu(monkeypatch)
    options = {"schedule": "OneCycleLR()", "warmup_epochs": 0.0, "neuron.backend": "eager"}
    with pytest.raises(RunError, match="set cycle_momentum=False"):
        fit(tiny(**options, cuda_graph=True), tmp_path / "run")
    fit(tiny(**options), tmp_path / "run")
