"""Other libraries run our NIR files, and we theirs: docs/nir.md shows the shares of equal spikes.

Slow, and only with BACKSPIKE_PEER_PYTHON; BACKSPIKE_PEER_FOLDERS names a folder with nir 1.0.4
(pip install --no-deps --target nir104 nir==1.0.4).
"""

import shutil

import h5py
import numpy as np
import pytest
import torch
from helpers import nir_matrix
from helpers.paths import ROOT

import backspike as bs

pytestmark = pytest.mark.slow
PAGE = ROOT / "docs" / "nir.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("nir")


@pytest.fixture(scope="module")
def rows(folder):
    return nir_matrix.measure(folder)


def cells(rows, writer, network):
    (found,) = (c for w, n, c in rows if (w, n) == (writer, network))
    return found


def test_the_page_shows_what_was_measured(rows):
    """Shares below 100 may move a little from processor to processor."""
    table, page = nir_matrix.table(rows).splitlines(), PAGE.read_text("utf-8").splitlines()
    start = page.index(table[0]) if table[0] in page else 0
    shown = page[start : start + len(table)]
    for line, measured in zip(shown, table, strict=True):
        for a, b in zip(line.split("|"), measured.split("|"), strict=True):
            if a != b:
                assert abs(float(a) - float(b)) < 3, "\n".join(["the table should be", *table])
                assert 100 not in (float(a), float(b)), "\n".join(["the table should be", *table])


def test_every_file_of_others_loads_here_with_their_spikes(rows):
    others = {(w, n): c["backspike"] for w, n, c in rows if w != "backspike"}
    # whose own networks do not have the equations that they write; docs/nir.md explains
    untrue = {("snnTorch", "RSynaptic"), ("Norse", "LIF")}
    assert {key for key, share in others.items() if share != 1} == untrue


def test_our_files_give_our_spikes_where_the_reader_has_nir_equations(rows):
    assert all(c["backspike"] == 1 for w, _, c in rows if w == "backspike")
    for network in ("LIF", 'LIF, `dialect="1.0.4"`', 'conv, LIF, `pool="sum"`'):
        found = cells(rows, "backspike", network)
        assert [found[r] for r in ("snntorch", "norse", "spikingjelly")] == [1, 1, 1], network
    found = cells(rows, "backspike", 'CubaLIF, `gain="unit"`')
    assert [found[r] for r in ("snntorch", "norse", "spikingjelly")] == [1, 1, 1]
    assert cells(rows, "backspike", "the same, currents in 0..1")["sinabs"] == 1


def test_snn_mlir_accepts_our_files_whose_v_reset_is_0(rows):
    refused = {
        n: c["snn_mlir"] for w, n, c in rows if w == "backspike" and c["snn_mlir"] is not True
    }
    assert set(refused) == {"LIF, `v_reset=-0.2`", "IF", "CubaLIF"}
    assert "input gain r = 10000 != 1" in refused["IF"]  # dt=1 makes it 1
    assert "input gain" in refused["CubaLIF"]  # gain="unit"


def test_nir_1_0_4_reads_only_its_dialect(rows):
    ours = {n: c["nir 1.0.4"] for w, n, c in rows if w == "backspike"}
    assert [n for n, outcome in ours.items() if outcome is True] == ['LIF, `dialect="1.0.4"`']


# ---- the differences, explained: with the same change here, the same spikes ----------------------


def number(network):
    return list(nir_matrix.OURS).index(network)


def changed(folder, network, change):
    """Our reading of a file after a change of each neuron's node."""
    i = number(network)
    path = folder / "changed.nir"
    shutil.copy(folder / f"ours-{i}.nir", path)
    with h5py.File(path, "a") as f:
        for node in f["node/nodes"].values():
            if node["type"][()] in (b"LIF", b"IF"):
                change(node)
    x = torch.from_numpy(np.load(folder / f"ours-{i}-x.npy"))
    with torch.no_grad():
        return bs.nir.read(path)(x).numpy()


def by(folder, network, reader):
    return np.load(folder / f"ours-{number(network)}-{reader}.npy")


def fill(key, value):
    def change(node):
        node[key][...] = value

    return change


def test_norse_takes_every_r_for_1(rows, folder):
    network = 'LIF, `gain="unit"`'
    assert np.array_equal(changed(folder, network, fill("r", 1)), by(folder, network, "norse"))


def test_norse_resets_every_lif_to_0(rows, folder):
    network = "LIF, `v_reset=-0.2`"
    found = changed(folder, network, fill("v_reset", 0))
    assert np.array_equal(found, by(folder, network, "norse"))


def test_norse_and_spikingjelly_reset_to_0_what_we_reset_by_subtraction(rows, folder):
    def hard(node):
        del node["metadata/reset"]
        node["metadata/reset"] = "hard"

    network = "IF, soft reset, `dt=1`"
    found = changed(folder, network, hard)
    assert np.array_equal(found, by(folder, network, "norse"))
    assert np.array_equal(found, by(folder, network, "spikingjelly"))


def test_sinabs_fires_several_times_a_timestep_and_has_a_floor(rows, folder):
    """v += x;  s = how often v contains the threshold;  v -= s theta;  v is at least -theta."""
    network = "IF, soft reset, `dt=1`"
    i = number(network)
    model = nir_matrix.OURS[network][0]()
    x = torch.from_numpy(np.load(folder / f"ours-{i}-x.npy"))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            v, out = torch.zeros_like(layer(x)[0]), []
            for current in layer(x):
                v = v + current
                s = torch.where(v > 0, v.trunc(), 0)
                v = (v - s).clamp(min=-1)
                out.append(s)
            x = torch.stack(out)
    assert x.max() > 1
    assert (x.numpy() == by(folder, network, "sinabs")).mean() > 0.999


def test_norse_and_spikingjelly_leave_out_the_bias_of_the_first_recurrent_step(rows):
    for reader in ("norse", "spikingjelly"):
        assert cells(rows, "backspike", "the same, no recurrent bias")[reader] == 1
        assert cells(rows, "backspike", 'recurrent CubaLIF, `gain="unit"`')[reader] > 0.95
