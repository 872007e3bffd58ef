"""OverTime against a loop over t, and repeated inputs against the full computation."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import backspike as bs
from backspike.layers.over_time import has_hooks


def layers():
    torch.manual_seed(0)
    return (
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
    )


def frames(T=3, B=5):
    return torch.randn(
        T, B, 2, 4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


def test_over_time_equals_a_loop_over_time():
    model = bs.OverTime(*layers()).double().eval()
    x, again = frames().requires_grad_(), frames().requires_grad_()
    want = torch.stack([nn.Sequential(*model)(step) for step in again])
    got = model(x)
    assert got.shape == (3, 5, 24)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    weights = torch.randn(want.shape, dtype=torch.float64)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-12, atol=1e-13)


def test_batchnorm_takes_its_statistics_over_time_batch_and_space():
    x = frames()
    model = bs.OverTime(nn.BatchNorm2d(2, eps=1e-15, momentum=1.0)).double()
    y = model(x)
    samples = x.transpose(2, 0).reshape(2, -1)
    mean, std = samples.mean(1), samples.std(1, correction=0)
    torch.testing.assert_close(
        y, (x - mean.view(2, 1, 1)) / std.view(2, 1, 1), rtol=1e-10, atol=1e-12
    )
    torch.testing.assert_close(model[0].running_mean, mean)
    torch.testing.assert_close(model[0].running_var, samples.var(1))


@pytest.mark.parametrize("train", [True, False])
def test_a_repeated_input_is_computed_once_with_the_same_result(train):
    T, B = 4, 5
    model = bs.OverTime(*layers()).double().train(train)
    full = copy.deepcopy(model)
    x, again = frames(1, B).requires_grad_(), frames(1, B).requires_grad_()
    samples = []
    for copied in (model, full):
        copied[0].register_forward_hook(lambda conv, args, out: samples.append(len(out)))
    got, want = model(x.expand(T, -1, -1, -1, -1)), full(again.repeat(T, 1, 1, 1, 1))
    assert samples == [B, T * B]
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    weights = torch.randn(want.shape, dtype=torch.float64)
    (got * weights).sum().backward()
    (want * weights).sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-9, atol=1e-11)
    for a, b in zip(model.parameters(), full.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(model[1].running_mean, full[1].running_mean)
    torch.testing.assert_close(model[1].running_var, full[1].running_var, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_the_running_variance_of_a_repeated_input_counts_every_timestep(momentum):
    """Two passes from statistics other than 0 and 1; and one sample, which has no variance."""
    once, full = (bs.OverTime(nn.BatchNorm1d(3, momentum=momentum)).double() for _ in range(2))
    for x in (torch.randn(1, 5, 3, dtype=torch.float64), torch.randn(1, 2, 3, dtype=torch.float64)):
        once(x.expand(4, -1, -1))
        full(x.repeat(4, 1, 1))
    torch.testing.assert_close(once[0].running_var, full[0].running_var, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(once[0].running_mean, full[0].running_mean, rtol=1e-12, atol=1e-15)
    x = torch.randn(1, 1, 3, dtype=torch.float64).expand(4, -1, -1)
    torch.testing.assert_close(once(x), full(x.clone()), rtol=0.0, atol=1e-10)


def test_random_layers_run_on_every_timestep():
    model = bs.OverTime(nn.Dropout(0.5))
    x = torch.ones(1, 2, 50).expand(4, -1, -1)
    y = model(x)
    assert not torch.equal(y[0], y[1])
    assert torch.equal(model.eval()(x), x)


def test_unknown_layers_run_on_every_timestep():
    class Noise(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    class NoisyLinear(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.randn(len(x), 3)

    x = torch.ones(1, 2, 5).expand(4, -1, -1)
    for layer in (Noise(), NoisyLinear(5, 3), nn.Sequential(nn.Identity(), Noise())):
        y = bs.OverTime(layer)(x)
        assert not torch.equal(y[0], y[1])


def test_one_timestep_and_an_empty_batch():
    model = bs.OverTime(nn.Linear(3, 2))
    assert model(torch.ones(1, 4, 3)).shape == (1, 4, 2)
    assert model(torch.ones(5, 0, 3)).shape == (5, 0, 2)


def test_slices_of_over_time_are_over_time():
    model = bs.OverTime(*layers())
    assert isinstance(model[:2], bs.OverTime)
    assert model[:2](frames().float()).shape == (3, 5, 4, 4, 6)


@pytest.mark.parametrize(
    "make",
    [bs.LIF, bs.IF, bs.Integrator, lambda: nn.Sequential(nn.Identity(), nn.Sequential(bs.LIF()))],
)
def test_a_spiking_layer_inside_is_refused(make):
    with pytest.raises(TypeError, match="put spiking layers next to it"):
        bs.OverTime(nn.Linear(2, 2), make())


def test_over_time_and_neurons_form_a_network():
    """Shapes are `[T, B, ...]` throughout, and all parameters get a gradient."""
    model = nn.Sequential(
        bs.OverTime(*layers()[:2]),
        bs.LIF(v_threshold=0.3, learn="threshold"),
        bs.OverTime(nn.Flatten(), nn.Linear(96, 7)),
    )
    y = model(frames().float())
    assert y.shape == (3, 5, 7)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_layers_import_without_private_names_of_new_torch():
    """torch 2.6 does not have `_has_any_global_hook`."""
    code = (
        "import torch.nn.modules.module as m; vars(m).pop('_has_any_global_hook', None); "
        "import backspike.layers.sequential"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ],
)
def test_global_hooks_of_torch_are_found(register):
    layer = nn.Linear(2, 2)
    assert not has_hooks(layer)
    handle = register(lambda *_: None)
    try:
        assert has_hooks(layer)
    finally:
        handle.remove()
    assert not has_hooks(layer)
