"""The arguments of neurons: what type checkers see, and one clear line for wrong types."""

import copy
import dataclasses
import io
import pickle
import re
import typing

import pytest
import torch
from torch import nn

import backspike as bs
from backspike import options
from backspike.neuron import arguments
from backspike.neuron.foreign_names import INSTEAD

X = torch.rand(4, 3, 2, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("typed", "kind", "named"),
    [
        (
            arguments.FunctionArguments,
            options.LIF,
            {"tau", "v_threshold", "backend", "learn", "per"},
        ),
        (arguments.LayerArguments, options.LIF, {"tau"}),
        (arguments.CubaArguments, options.CubaLIF, {"tau"}),
        (arguments.AdaptiveArguments, options.AdaptiveLIF, {"tau"}),
    ],
)
def test_type_checkers_see_the_fields_of_the_options(typed, kind, named):
    """The typed dictionaries are a second list, held equal to the dataclass."""
    seen = typing.get_type_hints(typed)
    fields = {f.name: f.type for f in dataclasses.fields(kind) if f.name not in named}
    assert set(seen) == set(fields)
    hints = typing.get_type_hints(kind)
    for name in fields:
        want = hints[name] | str if name == "learn" else hints[name]
        want = want | torch.Tensor if name in options.VARYING else want
        assert seen[name] == want


def layers():
    block = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
    torch.manual_seed(0)
    return {
        "LIF": bs.LIF(surrogate=bs.Masked(bs.Parametric(bs.ATan())), learn=("tau", "threshold")),
        "IF": bs.IF(),
        "PLIF": bs.PLIF(),
        "CLIF": bs.CLIF(),
        "CubaLIF": bs.CubaLIF(learn="tau_synapse"),
        "AdaptiveLIF": bs.AdaptiveLIF(learn=("a", "b"), channels=2),
        "PSN": bs.PSN(4, order=2),
        "Delay": bs.Delay(2, 3),
        "MPBN": bs.MPBN(channels=2),
        "Integrator": bs.Integrator(tau=3.0),
        "Recurrent": bs.Recurrent(nn.Linear(5, 5), bs.LIF()),
        "TDBN": bs.OverTime(bs.TDBN(2)),
        "TEBN": bs.TEBN(2, T=4),
        "OverTime": bs.OverTime(*block),
        "Sequential": bs.Sequential(bs.OverTime(*block), bs.LIF(), bs.OverTime(nn.AvgPool2d(1))),
        "from_torch": bs.from_torch(nn.Sequential(nn.Linear(5, 5), nn.ReLU())),
        "MLP": bs.models.mlp(3, 5, hidden=(4,), recurrent=True),
    }


@pytest.mark.parametrize("kind", layers())
def test_every_layer_prints_copies_and_pickles(kind):
    layer = layers()[kind].eval()
    x = X[:, :, 0] if kind == "MLP" else X[..., None] if kind in ("OverTime", "Sequential") else X
    want = layer(x)
    (want if isinstance(want, torch.Tensor) else want.spikes).sum()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
        assert repr(other) == repr(layer)
        assert other.state_dict().keys() == layer.state_dict().keys()
        assert torch.equal(other(x), want)
    assert all(len(line) < 120 for line in repr(layer).splitlines())


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (bs.LIF(), "LIF(tau=2.0)"),
        (bs.LIF(3.0, v_reset=0.0, learn="tau"), "LIF(tau=3.0, v_reset=0.0, learn=('tau',))"),
        (bs.LIF(surrogate=bs.Erf(3.0)), "LIF(tau=2.0, surrogate=Erf(alpha=3.0))"),
        (bs.LIF(memory="8bit", channels=7), "LIF(tau=2.0, memory='8bit', channels=7)"),
        (bs.IF(), "IF()"),
        (bs.IF(v_threshold=0.5), "IF(v_threshold=0.5)"),
        (bs.CLIF(), "CLIF(tau=2.0)"),
        (bs.CubaLIF(tau_synapse=5.0), "CubaLIF(tau=2.0, tau_synapse=5.0)"),
        (bs.AdaptiveLIF(5.0, b=0.0), "AdaptiveLIF(tau=5.0, b=0.0)"),
        (bs.PSN(8), "PSN(T=8)"),
        (bs.PSN(8, 3, v_threshold=0.5), "PSN(T=8, order=3, v_threshold=0.5)"),
        (bs.Delay(7, 25), "Delay(7, max_delay=25)"),
        (bs.Integrator(), "Integrator(tau=None)"),
        (bs.Integrator(2.0, decay_input=False), "Integrator(tau=2.0, decay_input=False)"),
        (bs.TDBN(4), "TDBN(4)"),
        (bs.TDBN(4, 2, v_threshold=0.5), "TDBN(4, branches=2, v_threshold=0.5)"),
        (bs.TEBN(4, 8), "TEBN(4, T=8)"),
        (bs.readout.TWO(4), "TWO(T=4, beta=0.7, start_epoch=5)"),
    ],
)
def test_a_repr_shows_what_differs_from_the_defaults(layer, text):
    assert repr(layer) == text


@pytest.mark.parametrize("x", [(X, X), [X, X], {"x": X}, None, 1.0], ids=lambda x: str(type(x)))
@pytest.mark.parametrize(
    "call",
    [
        bs.LIF(),
        bs.CLIF(),
        bs.CubaLIF(),
        bs.AdaptiveLIF(),
        bs.PSN(order=2),
        bs.Delay(2, 3),
        bs.MPBN(channels=2),
        bs.Integrator(),
        bs.Recurrent(nn.Linear(5, 5), bs.LIF()),
        bs.lif,
        bs.OverTime(nn.Linear(5, 5)),
        bs.OverTime(),
        bs.OverTime(nn.Flatten()),
        bs.Sequential(bs.LIF()),
        bs.Sequential(bs.OverTime(nn.Linear(5, 5)), bs.LIF()),
        bs.Sequential(bs.OverTime(nn.Linear(5, 5)), bs.LIF(memory="checkpoint")),
        bs.Sequential(nn.Linear(5, 5)),
        lambda x: bs.block(x, nn.Linear(5, 5), None, bs.LIF()),
        bs.models.vggsnn(),
        bs.models.mlp(3, 5),
        bs.models.resnet19(),
        bs.models.spikformer(),
    ],
    ids=lambda call: type(call).__name__,
)
def test_an_input_that_is_no_tensor_is_named(call, x):
    with pytest.raises(TypeError, match=r"input must be one tensor \[T, B, .*, got ") as error:
        call(x)
    assert type(x).__name__ in str(error.value)
    assert "\n" not in str(error.value)
    assert ("torch.stack" in str(error.value)) == isinstance(x, tuple | list)


def test_a_streamed_input_that_is_no_tensor_is_named():
    for layer in (bs.LIF(), bs.Integrator(), bs.CubaLIF()):
        with bs.streaming(layer):
            layer(X)
            with pytest.raises(TypeError, match="input must be one tensor"):
                layer([X])


def test_a_state_that_is_no_tensor_is_named():
    for layer in (bs.LIF(), bs.CLIF(), bs.CubaLIF(), bs.Integrator()):
        with pytest.raises(TypeError, match=r"v0 must be a tensor, as in `out.state`, got Output"):
            layer(X, bs.lif(X))


@pytest.mark.parametrize("surrogate", [lambda z: z, "ATan", bs.ATan, None, 2.0])
@pytest.mark.parametrize(
    "make",
    [bs.LIF, bs.IF, bs.PLIF, bs.CLIF, bs.CubaLIF, lambda surrogate: bs.lif(X, surrogate=surrogate)],
)
def test_a_wrong_surrogate_is_named(make, surrogate):
    with pytest.raises(TypeError, match=r"surrogate must be an object such as bs.ATan\(\)") as e:
        make(surrogate=surrogate)
    assert repr(surrogate) in str(e.value)
    assert "\n" not in str(e.value)


class Ramp:
    """A surrogate of a user's own."""

    def derivative(self, z):
        return (z.abs() < 1).to(z.dtype)

    def primitive(self, z):
        return z.clamp(-1, 1)


def test_an_own_surrogate_is_accepted():
    assert bs.LIF(surrogate=Ramp())(X).shape == X.shape


@pytest.mark.parametrize(
    ("layer", "shape", "expects"),
    [
        (nn.Conv2d(2, 3, 3), (4, 2, 8, 8), r"Conv2d needs \[T, B, C, H, W\]"),
        (nn.Conv1d(2, 3, 3), (4, 2, 8), r"Conv1d needs \[T, B, C, L\]"),
        (nn.Conv3d(2, 3, 3), (4, 2, 8, 8, 8), r"Conv3d needs \[T, B, C, D, H, W\]"),
        (nn.BatchNorm2d(2), (4, 2, 8, 8), r"BatchNorm2d needs \[T, B, C, H, W\]"),
        (nn.BatchNorm3d(2), (4, 2, 8, 8, 8), r"BatchNorm3d needs \[T, B, C, D, H, W\]"),
        (nn.Linear(5, 3), (4, 5), r"Linear needs \[T, B, ..., C\]"),
        (nn.Flatten(), (4,), r"Flatten needs \[T, B, ...\]"),
    ],
)
def test_a_forgotten_time_axis_is_named(layer, shape, expects):
    message = rf"{expects}, got shape \[.*\]; add time with x.expand\(T, \*x.shape\)"
    for call in (
        bs.OverTime(layer),
        bs.Sequential(bs.OverTime(layer), bs.LIF()),
        bs.Sequential(bs.OverTime(layer), bs.LIF(memory="checkpoint")),
    ):
        with pytest.raises(ValueError, match=message):
            call(torch.rand(shape))


def test_a_parameter_per_channel_needs_the_time_axis():
    layer = bs.LIF(surrogate=bs.Parametric(bs.ATan(), per_channel=True), channels=5)
    with pytest.raises(ValueError, match=r"x must be \[T, B, C, ...\], got shape \[3, 5\]"):
        layer(torch.rand(3, 5))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: bs.LIF(beta=0.9), TypeError, "LIF has no argument 'beta'; give tau = 1 / (1 -"),
        (
            lambda: bs.Integrator(beta=0.9),
            TypeError,
            "Integrator has no argument 'beta'; give tau = 1 / (1 -",
        ),
        (lambda: bs.IF(threshold=0.5), TypeError, "IF has no argument 'threshold'; it is called"),
        (lambda: bs.CLIF(detach_reset=True), TypeError, "'detach_reset'; give reset_gradient=0.0"),
        (lambda: bs.CubaLIF(alpha=0.8), TypeError, "'alpha'; give tau_synapse = 1 / (1 - alpha)"),
        (
            lambda: bs.lif(X, step_mode="m"),
            TypeError,
            "bs.lif has no argument 'step_mode'; a layer",
        ),
        (lambda: bs.LIF(v_treshold=1.0), TypeError, "'v_treshold'; did you mean v_threshold or"),
        (lambda: bs.LIF().init_leaky(), AttributeError, "starts each call from rest"),
        (
            lambda: bs.LIF().reset(),
            AttributeError,
            "'LIF' object has no attribute 'reset'; a layer",
        ),
        (lambda: bs.Integrator().reset_mem(), AttributeError, "bs.streaming(model)"),
        (lambda: bs.functional.reset_net, AttributeError, "nothing to reset"),
        (lambda: bs.Leaky, AttributeError, "has no attribute 'Leaky'; the layer is bs.LIF"),
    ],
)
def test_habits_of_other_libraries_get_what_to_do_here(call, error, text):
    with pytest.raises(error, match=re.escape(text)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_to_use_instead_exists():
    """Each name that a message recommends, and none that it warns of."""
    known = {f.name for kind in (options.LIF, options.CubaLIF) for f in dataclasses.fields(kind)}
    for name, text in INSTEAD.items():
        assert name not in known
        for word in re.findall(r"\bbs\.(\w+)", text):
            assert word in bs.__all__
        for word in re.findall(r"\b(\w+)=", text):
            assert word in known


def test_an_attribute_that_does_not_exist_is_still_missing():
    """Libraries ask with hasattr, for example whether a layer has to be reset."""
    assert not hasattr(bs.LIF(), "reset")
    assert not hasattr(bs.LIF(), "anything")
    with pytest.raises(AttributeError, match=r"no attribute 'anything'$"):
        bs.LIF().anything  # noqa: B018
