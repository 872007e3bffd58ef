"""Whole networks with fused layers, against the same layers one after the other in plain torch."""

import copy

import pytest
import torch
from helpers.compiled import needs_compile
from torch import nn
from torch.nn import functional as F

import backspike as bs
from backspike.layers import sparsity
from backspike.models import plain, residual

T, B, K = 3, 4, 5
SEED = 7
# error of the gradients relative to the float64 network run layer by layer; see error()
EXACT = ("exact", "recompute", "checkpoint")
BOUND = {"exact": 1e-10, "recompute": 1e-10, "checkpoint": 1e-10, "bfloat16": 0.02, "8bit": 0.05}


def neuron(channels=None, **options):
    given = {
        "v_threshold": 0.4,
        "surrogate": bs.Masked(bs.ATan(), 0.3),
        "learn": ("tau", "threshold"),
    } | options
    if given.get("memory") == "8bit":
        given["learn"] = "threshold"  # this memory gives no gradient of tau
    return bs.LIF(channels=channels, **given)


def plain_net(**options):
    return bs.models.convnet(
        "4-6-P-5", K, 2, size=9, hidden=(7,), neuron=lambda channels: neuron(channels, **options)
    )


def resnet(kind, stem="cifar", **options):
    make = lambda channels: neuron(channels, **options)  # noqa: E731
    hidden = 7 if kind is residual.Bottleneck else 0
    return residual.ResNet(
        kind, (1, 1), (4, 6), make, num_classes=K, in_channels=2, stem=stem, hidden=hidden
    )


def max_pooled(**options):
    layers = [
        *(
            bs.OverTime(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)),
            neuron(4, **options),
            bs.OverTime(nn.MaxPool2d(2)),
        ),
        *(bs.OverTime(nn.Conv2d(4, 6, 3)), bs.OverTime(nn.BatchNorm2d(6)), neuron(6, **options)),
        bs.OverTime(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6, 7), nn.BatchNorm1d(7)),
        *(neuron(7, **options), nn.Linear(7, K)),
    ]
    return bs.Sequential(*layers)


NETWORKS = {
    "vgg": plain_net,
    "max pools": max_pooled,
    "resnet": lambda **o: resnet(residual.Basic, **o),
    "bottleneck": lambda **o: resnet(residual.Bottleneck, **o),
    "sew": lambda **o: resnet(residual.SEWBasic, **o),
    "sew bottleneck": lambda **o: resnet(residual.SEWBottleneck, "imagenet", **o),
    "ms": lambda **o: resnet(residual.MSBasic, **o),
}


def build(name, **options):
    torch.manual_seed(0)
    model = NETWORKS[name](**options).double()
    for m in model.modules():  # make it fire, with statistics other than 0 and 1
        if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 2.0)
            nn.init.uniform_(m.bias, 0.0, 0.6)
            nn.init.uniform_(m.running_mean, -0.2, 0.2)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return model


def images(steps=T, static=False):
    x = torch.randn(
        1 if static else steps,
        B,
        2,
        9,
        9,
        generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    )
    return x.expand(steps, -1, -1, -1, -1)


# -------------------------------------------------------------------------- layer by layer, by hand


def each_step(layer, x):
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def chain(layers, x):
    """Between norm and neuron the current has the dtype of the state, float32 for 16 bits."""
    layers = [layer for layer in layers if layer is not None]
    for layer, following in zip(layers, [*layers[1:], None]):
        if isinstance(layer, bs.LIF):
            x = layer(x)
        elif isinstance(following, bs.LIF) and isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            following.register_forward_hook(lambda m, args, s, dtype=x.dtype: s.to(dtype))
            x = each_step(layer, x.to(torch.promote_types(x.dtype, torch.float32)))
        else:
            x = each_step(layer, x)
    return x


def by_hand(model, x):
    """The equations of each network with every layer called by itself.

    The order of the neurons is that in which they draw seeds.
    """
    x = x.contiguous()
    if isinstance(model, plain.PlainNet):
        model = [*model.features, model.classifier]
    if not isinstance(model, residual.ResNet):
        flat = [m for part in model for m in (part if isinstance(part, bs.OverTime) else [part])]
        return chain(flat, x)
    x = chain((model.conv1, model.bn1, model.sn1, model.maxpool), x)
    for stage in (model.layer1, model.layer2):
        for m in stage:
            x = block_by_hand(m, x)
    return chain((model.sn, model.avgpool, model.fc1, model.sn_fc1, model.fc), x)


def block_by_hand(m, x):
    around = () if m.downsample is None else m.downsample
    if isinstance(m, residual.SEWBasic):
        return chain(around, x) + chain((m.conv1, m.bn1, m.sn1, m.conv2, m.bn2, m.sn2), x)
    if isinstance(m, residual.SEWBottleneck):
        layers = (m.conv1, m.bn1, m.sn1, m.conv2, m.bn2, m.sn2, m.conv3, m.bn3, m.sn3)
        return chain(around, x) + chain(layers, x)
    if isinstance(m, residual.MSBasic):
        return chain((m.sn1, m.conv1, m.bn1, m.sn2, m.conv2, m.bn2), x) + chain(around, x)
    if isinstance(m, residual.Bottleneck):
        currents = chain((m.conv1, m.bn1, m.sn1, m.conv2, m.bn2, m.sn2, m.conv3, m.bn3), x)
        return m.sn3(currents + chain(around, x))
    return m.sn2(chain((m.conv1, m.bn1, m.sn1, m.conv2, m.bn2), x) + chain(around, x))


def reference(model):
    """A copy whose neurons run the reference, differentiated by autograd."""
    model = copy.deepcopy(model)
    for m in model.modules():
        if isinstance(m, bs.LIF):
            m.backend = "reference"
    return model


def gradients(model, run, x):
    torch.manual_seed(SEED)
    o = run(x)
    weights = torch.randn(o.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (o * weights.to(o.dtype)).sum().backward()
    return o.detach(), {name: p.grad.double() for name, p in model.named_parameters()}


def assert_equal(got, want, bound):
    """Assert that all gradients are equal up to rounding."""
    torch.testing.assert_close(got[0].double(), want[0].double(), rtol=bound, atol=bound)
    assert got[1].keys() == want[1].keys()
    largest = max(g.abs().max() for g in want[1].values())
    assert largest > 0
    for name, g in want[1].items():
        assert (got[1][name] - g).abs().max() <= bound * max(g.abs().max(), 1e-3 * largest), name


def error(got, want):
    """The norm of the difference of all gradients, relative to the norm of the expected ones."""
    flat = [torch.cat([g[1][name].flatten() for name in want[1]]) for g in (got, want)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def statistics(model):
    return {name: b for name, b in model.named_buffers() if "running" in name or "tracked" in name}


# ---------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("memory", BOUND)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_networks_match_separate_layers(name, memory):
    model = build(name, memory=memory)
    plain = reference(model)
    got, want = (
        gradients(model, model, images()),
        gradients(plain, lambda x: by_hand(plain, x), images()),
    )
    # the forward pass does not depend on what is saved
    torch.testing.assert_close(got[0], want[0], rtol=1e-10, atol=1e-10)
    assert error(got, want) <= BOUND[memory]
    if memory in EXACT:
        assert_equal(got, want, 1e-9)
    for n, b in statistics(plain).items():
        torch.testing.assert_close(statistics(model)[n], b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["vgg", "max pools", "resnet", "sew", "ms"])
@pytest.mark.parametrize("memory", ["exact", "checkpoint"])
def test_all_input_kinds_and_modes_match_separate_layers(name, train, static, steps, memory):
    """A static input is computed once where possible; statistics count all T copies."""
    model = build(name, memory=memory).train(train)
    plain = reference(model)
    x = images(steps, static)
    assert_equal(gradients(model, model, x), gradients(plain, lambda x: by_hand(plain, x), x), 1e-9)
    for n, b in statistics(plain).items():
        torch.testing.assert_close(statistics(model)[n], b, rtol=1e-12, atol=1e-14)
    with torch.no_grad():  # folded, without seeds
        torch.testing.assert_close(
            model.eval()(x), by_hand(plain.eval(), x), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("name", ["vgg", "max pools", "resnet", "sew"])
def test_float32_channels_last_and_two_threads(name):
    model = build(name)
    plain = reference(model)
    want = gradients(plain, lambda x: by_hand(plain, x), images())
    fast = copy.deepcopy(model).float().to(memory_format=torch.channels_last)
    x = (
        images()
        .float()
        .flatten(0, 1)
        .contiguous(memory_format=torch.channels_last)
        .unflatten(0, (T, B))
    )
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            fast.zero_grad()
            assert_equal(gradients(fast, fast, x), want, 1e-3)
    finally:
        torch.set_num_threads(threads)
    spikes = {}
    with bs.record(fast) as recorded:
        fast(x)
        spikes.update({n: out.spikes for n, out in recorded.items() if out.spikes.dim() == 5})
    assert spikes
    assert all(
        s.flatten(0, 1).is_contiguous(memory_format=torch.channels_last) for s in spikes.values()
    )


@pytest.mark.parametrize("name", ["vgg", "max pools", "resnet", "sew", "ms"])
def test_bfloat16_autocast(name):
    model = build(name).float()
    plain = copy.deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = (
            gradients(model, model, images().float()),
            gradients(plain, lambda x: by_hand(plain, x), images().float()),
        )
    assert got[0].dtype == torch.bfloat16
    torch.testing.assert_close(got[0], want[0], rtol=0.02, atol=0.02)
    assert error(got, want) < 0.02


def test_recomputation_has_no_side_effects():
    """It draws nothing, updates no statistics, and reuses the mask; spikes are saved as bits."""
    kept = {}
    for memory in ("exact", "checkpoint"):
        model = build("vgg", memory=memory)
        torch.manual_seed(SEED)
        with bs.mask_weight_gradients(model, 0.5):
            o = model(images())
            before = copy.deepcopy(statistics(model))
            torch.manual_seed(SEED)
            o.square().sum().backward()
            after = torch.randint(1 << 60, ())
        for n, b in statistics(model).items():
            assert torch.equal(b, before[n])
            assert not n.endswith("tracked") or b == 1
        kept[memory] = {n: p.grad for n, p in model.named_parameters()} | {
            "next number": after.double()
        }
    assert all((g == 0).double().mean() > 0.3 for n, g in kept["exact"].items() if g.dim() > 1)
    assert_equal((o, kept["checkpoint"]), (o, kept["exact"]), 1e-9)
    spikes = bs.block(images(), model.features[0][0], model.features[0][1], model.features[1])
    s = bs.block(spikes, model.features[2][0], model.features[2][1], model.features[3])
    assert s.grad_fn.packed.bits == 1
    assert torch.equal(s.grad_fn.packed.unpack(), spikes)


def test_a_weight_changed_before_backward_is_detected():
    model = build("vgg", memory="checkpoint")
    o = model(images())
    with torch.no_grad():
        model.features[2][0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()


def linear_layers(**options):
    torch.manual_seed(0)
    lif = lambda: neuron(learn="threshold", **options)  # noqa: E731
    first, second = (
        [bs.OverTime(nn.Linear(64, 256)), lif()],
        [bs.OverTime(nn.Flatten(), nn.Linear(256, 256)), lif()],
    )
    return bs.Sequential(
        *first, *second, bs.OverTime(nn.Flatten()), bs.OverTime(nn.Linear(256, 128)), lif()
    )


@pytest.mark.parametrize("static", [False, True])
def test_spike_gradients_are_computed_only_where_the_neuron_needs_them(static):
    """Masked with p = 0.9, 90 % of the spikes need no gradient; all learned gradients are equal."""
    model = linear_layers(surrogate=bs.Masked(bs.ATan(), 0.9))
    twin = copy.deepcopy(model)
    x = torch.randn(1 if static else 4, 64, 64, generator=torch.Generator().manual_seed(3)).expand(
        4, -1, -1
    )
    got = gradients(model, model, x)
    want = gradients(twin, lambda x: nn.Sequential.forward(twin, x), x)
    assert_equal(got, want, 1e-4)
    assert {name: made.input for name, made in sparsity.plans(model)} == {
        "0.0": "dense",
        "2.1": "sample",
        "5.0": "sample",
    }
    assert {made.input for _, made in sparsity.plans(twin)} == {"dense"}
    assert all(0.08 < made.h < 0.12 for name, made in sparsity.plans(model) if name != "0.0")


@pytest.mark.parametrize(
    "surrogate",
    [bs.ATan(), bs.Masked(bs.ATan(), 0.5), bs.Masked(bs.Triangle(), 0.9, replace=bs.ATan())],
)
def test_nothing_is_recorded_if_all_gradients_are_needed(surrogate):
    model = linear_layers(surrogate=surrogate)
    model(torch.randn(4, 64, 64)).sum().backward()
    assert all(made.h is None for _, made in sparsity.plans(model))


# ---------------------------------------------------------------------- whoever looks at the layers


@pytest.mark.parametrize("name", NETWORKS)
def test_every_hook_fires_once_and_changes_no_result(name):
    model = build(name)
    torch.manual_seed(SEED)
    want = model(images())
    for path, m in model.named_modules():
        calls = []
        with m.register_forward_hook(lambda m, args, out, calls=calls: calls.append(out.shape)):
            torch.manual_seed(SEED)
            torch.testing.assert_close(model(images()), want, rtol=1e-9, atol=1e-9)
        assert len(calls) == 1, path
        backward = []
        with m.register_full_backward_hook(lambda m, gi, go, backward=backward: backward.append(1)):
            model(images().requires_grad_()).sum().backward()
        assert backward == [1], path


@pytest.mark.parametrize("name", ["vgg", "max pools", "sew", "resnet"])
@pytest.mark.parametrize(
    ("form", "memory"), [("moments", "exact"), ("moments", "checkpoint"), ("softmax", "exact")]
)
def test_potential_adjustment_gives_the_same_numbers(name, form, memory):
    model = build(name, memory=memory)
    plain = reference(model)
    found = []
    for m, run in ((model, model), (plain, lambda x: by_hand(plain, x))):
        with bs.PotentialAdjustment(m, 0.3, form=form) as pda:
            torch.manual_seed(SEED)
            (run(images()).square().mean() + pda.loss()).backward()
        found.append((torch.zeros(()), {n: p.grad for n, p in m.named_parameters()}))
    assert_equal(*found, 1e-8)


@pytest.mark.parametrize("name", ["vgg", "max pools", "sew", "ms"])
@pytest.mark.parametrize("bits", [16, 32])
def test_recording_shows_the_spikes_of_the_pass(name, bits):
    """They equal the spikes of an unrecorded pass, also in 16 bits."""
    model = build(name).float()
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16, enabled=bits == 16), torch.no_grad():
        for m in (model.train(), model.eval()):
            before = copy.deepcopy(m)(x)
            with bs.record(m) as recorded:
                assert torch.equal(copy.deepcopy(m)(x), before)
                assert torch.equal(m(x), before)
    assert {n for n, m in model.named_modules() if isinstance(m, bs.LIF)} == set(recorded)
    for out in recorded.values():
        assert out.membrane.dtype == torch.float32
        assert out.spikes.shape == out.membrane.shape


@pytest.mark.parametrize("name", NETWORKS)
def test_streaming_in_pieces_equals_one_pass(name):
    model, x = build(name).eval(), images(5)
    with torch.no_grad():
        whole = model(x)
        with bs.streaming(model):
            pieces = torch.cat([model(x[:2]), model(x[2:3]), model(x[3:])])
        torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(x), whole, rtol=0.0, atol=0.0)


def test_sequential_prints_and_slices_like_torchs():
    torch.manual_seed(0)
    layers = [
        bs.OverTime(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)),
        bs.LIF(),
        bs.OverTime(nn.AvgPool2d(2), nn.Flatten()),
    ]
    ours, torchs = bs.Sequential(*layers), nn.Sequential(*layers)
    assert str(ours) == str(torchs)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert isinstance(ours[:2], bs.Sequential)
    assert isinstance(ours, nn.Sequential)
    ours.append(bs.OverTime(nn.Linear(27, 2)))
    x = torch.rand(2, 3, 2, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), nn.Sequential.forward(ours, x))


def test_parameter_names_are_unchanged():
    names = list(bs.models.convnet("4-P-6", 3, 1, size=8).state_dict())
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    blocks = [[f"features.{i}.0.weight", *(f"features.{i}.1.{n}" for n in norm)] for i in (0, 3)]
    assert names == [*blocks[0], *blocks[1], "classifier.1.weight", "classifier.1.bias"]


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_and_stored_weights(name, tmp_path):
    model = build(name).eval()
    torch.save(model.state_dict(), tmp_path / "weights")
    other = NETWORKS[name]().double().eval()
    other.load_state_dict(torch.load(tmp_path / "weights", weights_only=True))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        want = model(images())
        assert torch.equal(other(images()), want)
        for p in model.parameters():
            p.zero_()
        assert torch.equal(twin(images()), want)


def test_fusion_works_across_nested_sequentials_and_after_changes():
    conv, norm, lif, pool = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), bs.LIF(), nn.AvgPool2d(2)
    model = bs.Sequential(
        nn.Sequential(bs.OverTime(nn.Identity(), conv), bs.OverTime(norm)),
        bs.Sequential(lif),
        bs.OverTime(pool),
    )
    (block,) = model.spiking_blocks()
    assert (block.product, block.norm, block.neuron, block.pool) == (conv, norm, lif, pool)
    model[2] = bs.OverTime(nn.Flatten())
    assert model.spiking_blocks()[0].pool is None
    with model[1].register_forward_hook(lambda *_: None):
        assert model.spiking_blocks() == []


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Loud(bs.LIF):
    def forward(self, x, v0=None):
        return 3 * super().forward(x, v0)


def test_subclasses_and_parametrizations_keep_their_behaviour():
    torch.manual_seed(0)
    weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
    for conv, lif in (
        (Doubled(2, 4, 3), bs.LIF(v_threshold=0.4)),
        (nn.Conv2d(2, 4, 3), Loud(v_threshold=0.4)),
    ):
        layers = [
            bs.OverTime(conv, nn.BatchNorm2d(4)),
            lif,
            bs.OverTime(weighted, nn.GroupNorm(2, 4)),
            bs.LIF(v_threshold=0.4),
        ]
        model = bs.Sequential(*layers, bs.OverTime(nn.MaxPool2d(3))).double()
        x = images().requires_grad_()
        got, want = model(x), nn.Sequential.forward(model, x)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
        assert 0 < got.mean() < 1


def test_folding_of_batchnorm_is_exact():
    """W' = gamma W / sqrt(var + eps), b' = beta + gamma (b - mean) / sqrt(var + eps).

    Only without gradients.
    """
    torch.manual_seed(0)
    for bias, affine, padding in (
        (True, True, "zeros"),
        (False, True, "reflect"),
        (True, False, "zeros"),
    ):
        conv = nn.Conv2d(2, 3, 3, padding=1, bias=bias, padding_mode=padding).double()
        norm = nn.BatchNorm2d(3, affine=affine).double().eval()
        for p in (norm.running_mean, *norm.parameters()):
            nn.init.normal_(p)
        nn.init.uniform_(norm.running_var, 0.2, 3.0)
        model, x = bs.OverTime(conv, norm), images()
        want = norm(conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        normed = []
        with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "batch_norm", lambda *a, seen=normed, **k: seen.append(1))
            torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)
        assert not normed
        assert model(x).grad_fn is not None
        with torch.no_grad(), norm.register_forward_hook(lambda *_, seen=normed: seen.append(2)):
            torch.testing.assert_close(model(x), want, rtol=1e-12, atol=1e-12)
        assert normed == [2]


@needs_compile
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["max pools", "sew"])
def test_a_compiled_network_is_one_graph(name):
    model = build(name)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    assert_equal(gradients(twin, compiled, images()), gradients(model, model, images()), 1e-9)


def test_one_neuron_without_a_batch():
    x = torch.rand(5)
    assert torch.equal(bs.Sequential(bs.LIF(v_threshold=0.3))(x), bs.LIF(v_threshold=0.3)(x))
    x = torch.rand(1).expand(5)
    assert torch.equal(bs.block(x, neuron=bs.LIF(v_threshold=0.3)), bs.LIF(v_threshold=0.3)(x))


def test_explain_shows_what_is_fused():
    model = max_pooled()
    model.append(bs.LIF())
    model.append(bs.OverTime(nn.MaxPool2d(3)))
    lines = bs.explain(model).splitlines()
    assert "fused with BatchNorm2d 0.1 and MaxPool2d 2.0" in lines[0]
    assert "fused with BatchNorm2d 4.0 and MaxPool2d 6.0" in lines[1]
    assert "MaxPool2d 10.0 not fused: fused only with a BatchNorm" in lines[3]
    with model[0][1].register_forward_hook(lambda *_: None):
        assert "BatchNorm2d 0.1 not fused: it has hooks" in bs.explain(model)
    with model[1].register_forward_hook(lambda *_: None):
        assert "called by itself: it is not LIF, IF or PLIF, or has hooks" in bs.explain(model)
    text = bs.explain(bs.models.sew_resnet18(stem="imagenet"))
    assert "layer2.0.downsample.2  LIF  cpu" in text
    assert "fused with BatchNorm2d layer2.0.downsample.1" in text
    assert "MaxPool2d maxpool not fused: it is not torch's 2x2 pool" in text


@pytest.mark.parametrize(
    ("memory", "joined", "alone"),
    [
        ("exact", "saves the input of the norm, fused", "saves the membrane"),
        (
            "8bit",
            "saves the input of the norm, fused",
            "saves the distance to the threshold in 8 bits",
        ),
        ("checkpoint", "saves the input of 0.0, fused", "saves its input"),
    ],
)
def test_explain_shows_what_is_saved(memory, joined, alone):
    model = max_pooled(memory=memory)
    model.extend([bs.LIF(memory=memory), bs.LIF(memory=memory)])
    lines = bs.explain(model).splitlines()
    assert joined in lines[0]
    assert alone in lines[-1]
    assert "one op" not in lines[-1]
    lines = bs.explain(max_pooled(memory=memory, backend="eager")).splitlines()
    assert "BatchNorm2d 0.1 not fused: backend eager fuses nothing" in lines[0]


def test_explain_shows_the_sparsity_plan():
    model = linear_layers(surrogate=bs.Masked(bs.ATan(), 0.9))
    assert "Linear " not in bs.explain(model)
    model(torch.randn(4, 64, 64)).sum().backward()
    rows = {line.split()[0]: line for line in bs.explain(model).splitlines()}
    assert list(rows) == ["0.0", "1", "2.1", "3", "5.0", "6"]
    assert "input gradient sampled (h " in rows["2.1"]
    assert "input gradient dense" in rows["0.0"]
