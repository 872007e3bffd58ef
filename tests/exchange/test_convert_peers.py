"""bs.convert beside the libraries themselves, in their own environment (helpers/peers.py)."""

import functools

import pytest
from helpers import peers
from helpers.paths import TESTS
from helpers.peer_networks import CASES

pytestmark = pytest.mark.slow


@functools.cache
def found(library, extra=None):
    return peers.run(TESTS / "helpers/beside_peers.py", library, extra=extra)


def check(result, exact):
    assert not isinstance(result, str), result
    assert result["spikes"] > 50
    assert result["outputs"] < 1e-12
    assert result["gradients"] < exact
    assert result["same"]
    assert result["state"]


@pytest.mark.parametrize("name", CASES["snntorch"])
def test_snntorch(name):
    # its spikes, and so the gradients that pass through them, are float32
    check(found("snntorch")[name], 2e-6)


@pytest.mark.parametrize("name", CASES["norse"])
def test_norse(name):
    # sqrt(pi) is float32 in one of its surrogates
    check(found("norse")[name], 1e-7 if name == "heavi_erfc" else 1e-12)


@pytest.mark.parametrize("name", CASES["spikingjelly"])
def test_spikingjelly(name):
    check(found("spikingjelly")[name], 1e-12)


@pytest.mark.parametrize("name", CASES["spikingjelly"])
def test_spikingjelly_0_0_0_0_14(name):
    result = found("spikingjelly", peers.folder("0.0.0.0.14"))[name]
    if name in ("Rect", "SuperSpike"):
        assert "has no attribute" in result  # came with 2.0
    else:
        check(result, 1e-12)


@pytest.mark.parametrize("name", CASES["clock_driven"])
def test_spikingjelly_0_0_0_0_12(name):
    check(found("clock_driven", peers.folder("0.0.0.0.12"))[name], 1e-12)


@pytest.mark.parametrize("library", ["snntorch", "norse", "spikingjelly"])
def test_what_is_refused(library):
    """The table in docs/bridges.md."""
    page = (TESTS.parent / "docs/bridges.md").read_text("utf-8")
    refused = found(library)["refused"]
    assert len(refused) > 3
    for name, message in refused.items():
        assert message.startswith("ExchangeError"), (name, message)
        assert name.partition(" ")[0] in page
