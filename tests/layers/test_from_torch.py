"""from_torch: image networks against the networks of bs.models and against loops over time."""

import copy
import math
import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import backspike as bs


class Basic(nn.Module):
    """A residual block in the usual style, with one ReLU for two calls."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """An ANN with the parameter names of torchvision's ResNet18 and other widths."""

    def __init__(self, widths=(64, 128, 256, 512), classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = widths[0]
        for i, width in enumerate(widths, 1):
            stage = nn.Sequential(Basic(inputs, width, 2 if i > 1 else 1), Basic(width, width, 1))
            self.add_module(f"layer{i}", stage)
            inputs = width
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def neuron(channels=None):
    return bs.LIF(v_threshold=0.3)


def test_a_resnet_becomes_the_spiking_resnet_of_the_same_weights():
    torch.manual_seed(0)
    ann = ResNet().double()
    for norm in (m for m in ann.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.constant_(norm.bias, 0.4)
    model, ours = bs.from_torch(ann, neuron), bs.models.resnet18(5, neuron=neuron).double()
    assert list(model.state_dict()) == list(ann.state_dict())
    model.load_state_dict(ann.state_dict(), strict=True)
    ours.load_state_dict(ann.state_dict(), strict=True)
    x = torch.rand(3, 2, 3, 32, 32, dtype=torch.float64)
    for train in (True, False):
        y, want = model.train(train)(x), ours.train(train)(x)
        assert y.shape == (3, 2, 5)
        assert (want[0] != want[2]).any()
        torch.testing.assert_close(y, want, rtol=1e-9, atol=1e-9)
    y.square().sum().backward()
    want.square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(
            p.grad, q.grad, rtol=1e-7, atol=1e-9 * float(q.grad.abs().max()), msg=name
        )
    assert sum(isinstance(m, nn.ReLU) for m in ann.modules()) == 9  # the original is unchanged
    assert bs.explain(model).count("LIF") == 9


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU6(), nn.Linear(5, 3)
    )


def test_a_converted_mlp_equals_its_layers():
    ann, x = mlp().eval(), torch.randn(5, 7, 4) * 3
    model = bs.from_torch(ann, neuron)
    y = neuron()(ann[1](ann[0](x.flatten(0, 1))).unflatten(0, (5, 7)))
    want = ann[5](neuron()(ann[3](y)))
    assert 0 < y.mean() < 1
    torch.testing.assert_close(model(x), want)
    again = copy.deepcopy(model)
    torch.testing.assert_close(again(x[:2]), want[:2])
    with bs.streaming(model):
        torch.testing.assert_close(torch.cat([model(x[:2]), model(x[2:])]), want)


def test_learned_constants_are_parameters_and_layers_are_found():
    model = bs.from_torch(mlp(), lambda: bs.LIF(learn="threshold", v_threshold=0.3))
    model(torch.randn(4, 8, 4) * 3).sum().backward()
    bs.check_gradients(model)
    with bs.record(model) as layers:
        model(torch.randn(4, 8, 4))
    assert [out.spikes.shape for out in layers.values()] == [(4, 8, 6), (4, 8, 5)]


def test_a_relu_with_two_names_becomes_one_neuron():
    relu = nn.ReLU()
    model = bs.from_torch(nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu))
    assert model[1] is model[3]


def test_a_subclass_of_sequential_and_other_activations_convert():
    model = bs.from_torch(nn.Sequential(nn.Linear(2, 3), nn.SiLU()), neuron, replace=(nn.SiLU,))
    assert set(model(torch.randn(4, 9, 2) * 9).unique().tolist()) == {0.0, 1.0}


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return F.relu(self.fc(x))


CANNOT = [
    (
        nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.GELU())),
        r"1\.0 is a GELU, not a ReLU.*nn\.GELU\)",
    ),
    (Functional(), "Functional has no module of type ReLU, ReLU6.*write functions such as F.relu"),
    (
        nn.Sequential(nn.ReLU(), nn.LSTM(2, 2)),
        "1 is a LSTM, whose batch is dimension 1; set batch_first=True",
    ),
    (
        nn.Sequential(nn.ReLU(), nn.MultiheadAttention(2, 1)),
        "1 is a MultiheadAttention, whose batch is dimension 1",
    ),
    (nn.Sequential(nn.ReLU(), bs.LIF()), "1 is a LIF, which has a time dimension already"),
]


@pytest.mark.parametrize(
    ("model", "message"), CANNOT, ids=["GELU", "function", "LSTM", "attention", "LIF"]
)
def test_an_error_names_what_cannot_be_converted(model, message):
    with pytest.raises(ValueError, match=message):
        bs.from_torch(model)


def test_a_converted_model_explains_wrong_use():
    model = bs.from_torch(ResNet((4, 4, 6, 8)))
    with pytest.raises(RuntimeError, match="call the whole model"):
        model.layer1(torch.rand(2, 4, 8, 8))
    with pytest.raises(ValueError, match=r"one input \[T, B, ...\], got shape \[3\]"):
        model(torch.rand(3))
    with (
        pytest.raises(RuntimeError, match="a ReLU or neuron that the model calls twice"),
        bs.streaming(model),
    ):
        model(torch.rand(2, 2, 3, 32, 32))
    moved = bs.from_torch(nn.Sequential(nn.Flatten(0, 1), nn.Unflatten(0, (5, -1)), nn.ReLU()))
    with pytest.raises(ValueError, match=r"shape \[5, 12, 4\] does not contain T=3 timesteps"):
        moved(torch.rand(3, 2, 10, 4))
    assert model(torch.rand(2, 2, 3, 32, 32)).shape == (2, 2, 5)  # an error leaves no state behind


# ---- trained networks: thresholds from activations -----------------------------------------------


def trained():
    """A network of ReLUs that learned the bundled digits, in a second, and its images."""
    torch.manual_seed(0)
    splits = bs.data.load("digits")
    (x, y), (tx, ty) = (
        (torch.as_tensor(split.x).flatten(1).float() / 255, torch.as_tensor(split.y).long())
        for split in (splits.train, splits.test)
    )
    net = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32))
    net.extend([nn.ReLU(), nn.Linear(32, 10)])
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval(), x, tx, ty


@pytest.fixture(scope="module")
def digits():
    return trained()


def accuracy(out, y):
    return float((out.argmax(-1) == y).float().mean())


def test_a_calibrated_network_approaches_the_original(digits):
    net, x, tx, ty = digits
    snn = bs.from_torch(net, calibrate=x, timesteps=(4, 16, 64))
    want = accuracy(net(tx), ty)
    assert want > 0.93
    out = snn(tx.expand(64, *tx.shape)).cumsum(0)
    assert accuracy(out[63], ty) == pytest.approx(want, abs=0.01)
    assert accuracy(out[15], ty) == pytest.approx(want, abs=0.02)
    loss = snn.calibration.loss
    assert list(loss) == [4, 16, 64]
    for name in ("2", "4", "output"):
        assert loss[4][name] > loss[16][name] > loss[64][name]
        assert loss[64][name] < 0.08
    assert re.search(r"^4 .* to .*%.*%.*%$", str(snn.calibration), re.M)


def test_the_loss_is_the_distance_of_the_mean_from_the_activations(digits):
    net, x, _, _ = digits
    snn = bs.from_torch(net, calibrate=x, timesteps=(8,))
    x = x[:64]
    first = net[:3](x)
    lam = snn.calibration.thresholds["2"]
    v, total = 0.5 * lam.expand_as(first).clone(), torch.zeros_like(first)
    for _ in range(8):  # the recursion itself, in the units of the activations
        v = v + net[:2](x)
        spikes = (v >= lam).float() * lam
        v, total = v - spikes, total + spikes
    want = float(((total / 8 - first).norm() / first.norm()).detach())
    assert snn.calibration.loss[8]["2"] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("percentile", [100, 99, 80])
def test_thresholds_are_percentiles_over_all_batches(digits, percentile):
    net, x, _, _ = digits
    batches = [(part, None) for part in x.split((7, 300, len(x) - 307))]
    found = bs.from_torch(net, calibrate=batches, percentile=percentile, timesteps=(1,))
    y = net[:3](x)
    rank = math.ceil(len(x) * (1 - percentile / 100)) + 1
    want = y.sort(0, descending=True).values[rank - 1]
    want = torch.where(want > 0, want, want.max())
    torch.testing.assert_close(found.calibration.thresholds["2"], want)
    whole = bs.from_torch(net, calibrate=x, percentile=percentile, timesteps=(1,))
    torch.testing.assert_close(whole.calibration.thresholds["4"], found.calibration.thresholds["4"])


def test_a_calibrated_network_learns_and_is_saved(digits):
    net, x, tx, _ = digits
    before = {key: value.clone() for key, value in net.state_dict().items()}
    snn = bs.from_torch(net, calibrate=x, percentile=90, timesteps=(1,)).train()
    optimizer = torch.optim.SGD(snn.parameters(), 0.02)
    target = (net(x[:200]).argmax(-1) + 1) % 10  # other classes than it knows
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(snn(x[:200].expand(2, 200, 64)).mean(0), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad.abs().sum() > 0 for p in snn.parameters())
    assert losses[-1] < 0.7 * losses[0]
    again = bs.from_torch(net, calibrate=tx, timesteps=(1,))
    again.load_state_dict(snn.state_dict())
    some = tx.expand(4, *tx.shape)
    assert torch.equal(again.eval()(some), snn.eval()(some))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


NO_RATE = [
    (nn.MaxPool2d(2), "1 is a MaxPool2d, and the maximum of spikes .* train with average pools"),
    (nn.LayerNorm(4), "1 is a LayerNorm, which has no counterpart for spike rates"),
    (nn.Softmax(1), "1 is a Softmax, which has no counterpart for spike rates"),
]


@pytest.mark.parametrize(("layer", "message"), NO_RATE, ids=lambda v: type(v).__name__)
def test_what_has_no_rate_is_refused(layer, message):
    with pytest.raises(ValueError, match=message):
        bs.from_torch(nn.Sequential(nn.ReLU(), layer), calibrate=torch.rand(9, 3, 4, 4))


def test_calibration_explains_wrong_use():
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.rand(9, 4)
    with pytest.raises(ValueError, match=r"give neuron= or calibrate=, which uses"):
        bs.from_torch(net, neuron, calibrate=x)
    with pytest.raises(ValueError, match=r"percentile must lie in \(0, 100\], got 0"):
        bs.from_torch(net, calibrate=x, percentile=0)
    for timesteps in ((), (0, 4)):
        with pytest.raises(ValueError, match="timesteps must be numbers from 1 on"):
            bs.from_torch(net, calibrate=x, timesteps=timesteps)
    for nothing in (x[:0], []):
        with pytest.raises(ValueError, match="calibrate contains no inputs"):
            bs.from_torch(net, calibrate=nothing)
    with pytest.raises(TypeError, match=r"calibrate must be inputs \[N, \.\.\.\]"):
        bs.from_torch(net, calibrate=[1, 2])
    nn.init.constant_(net[0].weight, 0)
    nn.init.constant_(net[0].bias, -1)
    with pytest.raises(ValueError, match="1 is never active on the calibration data"):
        bs.from_torch(net, calibrate=x)
