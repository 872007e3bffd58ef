"""The networks of the shipped recipes as NIR files, and runs of some that were trained."""

import logging

import pytest
import torch
from helpers.paths import ROOT
from torch import nn

import backspike as bs
from backspike.errors import BackspikeError
from backspike.exchange.nir_walk import Options, Walk

nir = pytest.importorskip("nir")
pytestmark = pytest.mark.slow
SHAPES = {
    **{"digits": (1, 8, 8), "mnist": (1, 28, 28), "shd": (700,)},
    **{"cifar10": (3, 32, 32), "cifar100": (3, 32, 32), "imagenet": (3, 224, 224)},
    **{"nmnist": (2, 34, 34), "digits-dvs": (2, 17, 17), "yinyang": (4,), "scifar10": (96,)},
    **{"spoken-digits": (80,), "ssc": (700,)},
}


def refusal(recipe):
    """Why the network of a recipe has no graph in NIR, or nothing; it is not run here."""
    shape = SHAPES.get(recipe.data, (2, recipe.size, recipe.size))
    if recipe.data in ("smnist", "psmnist"):
        shape = (784 // recipe.T,)
    with torch.no_grad():
        try:
            Walk(nir, recipe.network().double().eval(), shape, Options()).graph(recipe.T)
        except BackspikeError as error:
            return str(error)
    return ""


def test_the_page_tells_which_recipes_are_exported():
    page = (ROOT / "docs" / "nir.md").read_text("utf-8")
    table = page[page.index("| recipes | |") : page.index("Refused too,")]
    yes, refused = table[: table.index("| `imagenet`")], table[table.index("| `imagenet`") :]
    for name in bs.recipes.NAMES:
        why = refusal(bs.recipes.get(name))
        if not why:
            assert f"`{name}`" in yes, name
        else:
            assert "maxpool is a MaxPool2d" in why
            assert "stem='cifar'" in why
            assert name == "imagenet" or "resnet18" in name, name
            assert f"`{name.split('18')[0]}" in refused, name
    residual = bs.recipes.get("cifar100-resnet18").replace({"model.stem": "cifar"})
    assert refusal(residual) == ""


@pytest.mark.parametrize("name", ["digits", "digits-dvs"])
def test_a_run_trained_to_its_end(name, tmp_path):
    """Its file gives all spikes of 16 samples, and in float32 the same answers."""
    recipe = bs.recipes.get(name)
    bs.fit(recipe, tmp_path / "run", report=False)
    made = bs.nir.write(tmp_path / "run", tmp_path / "a.nir")
    assert made.spikes > 10_000
    network, graph = bs.load(tmp_path / "run"), bs.nir.read(tmp_path / "a.nir")
    events = {"T": recipe.T, "size": recipe.size} if name == "digits-dvs" else {}
    data = bs.data.load(name, **events)
    x = torch.stack([torch.as_tensor(data.test[i][0]) for i in range(100)]).float()
    x = x.transpose(0, 1) if events else (x / 255).expand(recipe.T, *x.shape)
    with torch.no_grad():
        same = graph.readout(graph(x)).argmax(1) == network(x).argmax(1)
    assert same.float().mean() >= 0.99


def test_a_recurrent_network_trained_on_rows_of_digits(tmp_path):
    logging.getLogger("backspike").setLevel(logging.ERROR)
    torch.manual_seed(0)
    data = bs.data.load("digits").train
    x = torch.from_numpy(data.x).float().view(-1, 8, 8).transpose(0, 1) / 255
    y = torch.from_numpy(data.y).long()
    model = bs.models.mlp(10, 8, hidden=(64,), recurrent=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).mean(0), y)
        loss.backward()
        optimizer.step()
    accuracy = (model.eval()(x).mean(0).argmax(1) == y).float().mean()
    assert accuracy > 0.8
    assert bs.nir.write(model, tmp_path / "a.nir", x[:, :100]).spikes > 1000
