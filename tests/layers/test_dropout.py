"""`bs.Dropout`: one mask for all timesteps."""

import pytest
import torch
from torch import nn

import backspike as bs


def dropped(y):
    return (y == 0).all(0)


def test_the_mask_is_the_same_at_all_timesteps_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.rand(5, 40, 50) + 0.5
    y = bs.Dropout(0.3)(x)
    kept = y != 0
    assert torch.equal(kept, kept[:1].expand_as(kept))
    torch.testing.assert_close(y[kept], x[kept] / 0.7)
    # 2000 draws: five standard deviations are 0.051
    assert dropped(y).float().mean().item() == pytest.approx(0.3, abs=0.052)
    each = bs.OverTime(nn.Dropout(0.3))(x)
    assert not torch.equal((each == 0)[0], (each == 0)[1])


def test_the_gradient_is_the_mask():
    x = torch.rand(3, 4, 6, requires_grad=True)
    y = bs.Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, (y / x).detach().round())


def test_the_seed_is_torchs():
    x, layer = torch.ones(2, 3, 8), bs.Dropout()
    torch.manual_seed(3)
    first = layer(x)
    assert not torch.equal(layer(x), first)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)


def test_in_evaluation_and_with_p_zero_it_is_the_identity():
    x = torch.rand(2, 3, 4)
    assert bs.Dropout(0.5).eval()(x) is x
    assert bs.Dropout(0.0)(x) is x
    assert not bs.Dropout(1.0)(x).any()
    for p in (-0.1, 1.1):
        with pytest.raises(ValueError, match="must lie in"):
            bs.Dropout(p)


def test_a_static_input_stays_static():
    x = torch.rand(3, 8).expand(6, 3, 8)
    y = bs.Dropout(0.5)(x)
    assert y.stride(0) == 0
    assert y.shape == x.shape


def test_inside_over_time_it_is_refused():
    with pytest.raises(TypeError, match=r"next to it, not inside it, and bs\.Dropout too"):
        bs.OverTime(nn.Linear(2, 2), bs.Dropout())


def test_while_streaming_the_mask_stays():
    layer, x = bs.Dropout(0.5), torch.ones(1, 2, 50)
    with bs.streaming(layer):
        assert torch.equal(layer(x), layer(x))
        with pytest.raises(ValueError, match="carries a state of shape"):
            layer(torch.ones(1, 3, 50))
    assert not torch.equal(layer(x), layer(x))


@pytest.mark.parametrize("truncate", [False, True])
def test_chunks_of_time_share_the_mask(truncate):
    torch.manual_seed(0)
    layer = nn.Linear(4, 30).double()
    model = nn.Sequential(bs.OverTime(layer), bs.Dropout(0.4))
    x = torch.rand(7, 2, 4, dtype=torch.float64) + 0.1
    _, o = bs.backward_in_chunks(model, x, lambda o: (o**2).sum(), 3, truncate=truncate)
    gone = dropped(o)
    assert gone.any()
    assert not gone.all()
    assert torch.equal(gone.expand_as(o), o == 0)
    found = layer.weight.grad.clone()
    # the same mask, written out
    layer.weight.grad = None
    ((layer(x) * (~gone).double() / 0.6) ** 2).sum().backward()
    torch.testing.assert_close(found, layer.weight.grad, rtol=1e-12, atol=1e-12)


def spiking(*between):
    torch.manual_seed(1)
    first, last = nn.Linear(6, 8), nn.Linear(8, 3)
    options = {"v_threshold": 0.3, "v_reset": 0.0, "decay_input": True}
    return bs.Sequential(bs.OverTime(first), bs.LIF(**options), *between, bs.OverTime(last)).eval()


def test_explain_shows_it():
    text = bs.explain(spiking(bs.Dropout(0.25)))
    assert "Dropout" in text
    assert "p = 0.25, one mask for all timesteps" in text


def test_nir_and_onnx_files_are_those_without_it(tmp_path):
    x = torch.rand(4, 2, 6)
    pytest.importorskip("nir")
    files = []
    for name, model in (("a", spiking()), ("b", spiking(bs.Dropout(0.5)))):
        bs.nir.write(model, tmp_path / f"{name}.nir", x)
        files.append(bs.nir.read(tmp_path / f"{name}.nir"))
    torch.testing.assert_close(files[0](x), files[1](x), rtol=0, atol=0)
    pytest.importorskip("onnxscript")
    bs.onnx.write(spiking(bs.Dropout(0.5)), tmp_path / "b.onnx", x)  # verified by execution
    assert (tmp_path / "b.onnx").is_file()
