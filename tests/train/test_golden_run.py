"""A run of an earlier version, stopped within an epoch, resumes to that version's final weights."""

import shutil

import torch
from helpers.paths import TESTS
from safetensors.torch import load_file

import backspike as bs


def test_a_run_of_an_earlier_version_resumes(tmp_path):
    """With all methods. Bit-identical where it was made; elsewhere the order of sums differs."""
    run = tmp_path / "run"
    shutil.copytree(TESTS / "golden" / "run", run)
    bs.resume(run)
    got, want = (load_file(run / name) for name in ("model.safetensors", "expected.safetensors"))
    assert got.keys() == want.keys()
    moved = 0.0
    start = torch.load(TESTS / "golden" / "run" / "last.ckpt", weights_only=True)["network"]
    for name, value in want.items():
        torch.testing.assert_close(
            got[name], value, rtol=0.02, atol=0.01, msg=lambda m, name=name: f"{name}: {m}"
        )
        if value.is_floating_point():
            moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 0.03  # training changed more than the tolerance
