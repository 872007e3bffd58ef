"""Surrogates against independent formulas in numpy, and against calculus."""

import copy
import itertools
import math
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from helpers.surrogates import FAMILIES, with_scale

import backspike as bs
from backspike import (
    ATan,
    Dspike,
    Erf,
    Masked,
    Parametric,
    PiecewiseExponential,
    Rectangle,
    Sigmoid,
    SuperSpike,
    Triangle,
)
from backspike import surrogate as surrogates

each_family = pytest.mark.parametrize("surrogate", FAMILIES, ids=lambda s: type(s).__name__)


def at(method, z):
    return method(torch.as_tensor(z, dtype=torch.float64)).numpy()


@each_family
def test_derivative_matches_the_formula(surrogate):
    h, _, _ = FAMILIES[surrogate]
    z = np.linspace(-3.017, 3.011, 1201)
    np.testing.assert_allclose(at(surrogate.derivative, z), h(z), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(
        at(with_scale(surrogate, 1.7).derivative, z), 1.7 * h(z), rtol=1e-12, atol=1e-15
    )


@each_family
def test_derivative_is_even(surrogate):
    z = np.linspace(0, 3, 301)
    np.testing.assert_array_equal(at(surrogate.derivative, z), at(surrogate.derivative, -z))


@each_family
def test_a_class_describes_its_curve(surrogate):
    z = np.linspace(-4, 4, 4001)
    h = at(surrogate.derivative, z)
    inside = np.abs(z) < surrogate.support
    assert h[inside].all()
    assert not h[~inside].any()
    assert surrogate.binary == (len(set(h[inside])) == 1)
    assert 1 <= len(surrogate.constants()) <= 3


def test_all_families_are_tested_and_codes_are_unique():
    assert {type(s) for s in FAMILIES} == set(surrogates.FAMILIES)
    codes = [family.code for family in surrogates.FAMILIES if family.code]
    assert len(codes) == len(set(codes))


def test_a_subclass_counts_as_a_custom_surrogate():
    class Mine(Rectangle):
        def derivative(self, z):
            return z.abs()

    assert surrogates.is_family(Rectangle())
    assert not surrogates.is_family(Mine())
    with pytest.raises(ValueError, match="memory='1bit' needs surrogate=Rectangle"):
        bs.LIF(surrogate=Mine(), v_reset=None, memory="1bit")


@each_family
def test_area_under_the_derivative(surrogate):
    """Gauss-Legendre quadrature between the kinks; phi = atan z covers heavy tails to infinity."""
    _, area, kinks = FAMILIES[surrogate]
    nodes, weights = np.polynomial.legendre.leggauss(160)
    edges = [-np.pi / 2, *np.arctan(kinks), np.pi / 2]
    total = 0.0
    for a, b in itertools.pairwise(edges):
        phi = (a + b) / 2 + (b - a) / 2 * nodes
        total += (
            (b - a) / 2 * np.sum(weights * at(surrogate.derivative, np.tan(phi)) / np.cos(phi) ** 2)
        )
    assert total == pytest.approx(area, rel=1e-7)


@each_family
def test_slope_of_the_primitive_is_the_derivative(surrogate):
    for value in (surrogate, with_scale(surrogate, 0.6)):
        _, _, kinks = FAMILIES[surrogate]
        z = np.linspace(-2.5, 2.5, 997)
        z = z[np.all([np.abs(z - k) > 1e-4 for k in kinks], axis=0)] if kinks else z
        slope = (at(value.primitive, z + 1e-6) - at(value.primitive, z - 1e-6)) / 2e-6
        np.testing.assert_allclose(slope, at(value.derivative, z), rtol=1e-6, atol=2e-9)


@each_family
def test_primitive_rises_from_zero_to_the_area(surrogate):
    _, area, _ = FAMILIES[surrogate]
    assert at(surrogate.primitive, -1e12) == pytest.approx(0, abs=1e-10)
    assert at(with_scale(surrogate, 1.7).primitive, -1e12) == pytest.approx(0, abs=1e-10)
    assert at(with_scale(surrogate, 1.7).primitive, 1e12) == pytest.approx(1.7 * area, abs=1e-10)
    assert at(surrogate.primitive, 0.0) == pytest.approx(area / 2)


@pytest.mark.parametrize(
    ("surrogate", "peak"),
    [
        (Triangle(), 2.0),
        (ATan(), 1.0),
        (Rectangle(), 1.0),
        (Sigmoid(), 1.0),
        (SuperSpike(), 1.0),
        (PiecewiseExponential(), 0.5),
        (Erf(), 2 / math.sqrt(math.pi)),
        (Dspike(), 3 / (2 * math.tanh(1.5))),
    ],
)
def test_default_peaks(surrogate, peak):
    assert at(surrogate.derivative, 0.0) == pytest.approx(peak, rel=1e-14)


def test_edges_are_excluded():
    """The widths are powers of two, so the edges are exact floats."""
    inside, edge = np.nextafter(0.25, 0), 0.25
    assert at(Rectangle(width=0.5).derivative, [-edge, -inside, inside, edge]).tolist() == [
        0,
        2,
        2,
        0,
    ]
    d = at(Dspike().derivative, [-0.5, -np.nextafter(0.5, 0), np.nextafter(0.5, 0), 0.5])
    assert d[0] == d[3] == 0
    assert d[1] == d[2] > 0
    assert at(Triangle(alpha=2.0).derivative, [-0.5, 0.5, 0.25]).tolist() == [0, 0, 1]


def test_shape_and_dtype_follow_z():
    z = torch.linspace(-1, 1, 12).view(3, 4)
    for surrogate in [*FAMILIES, Masked(Triangle()), Parametric(ATan())]:
        for dtype in (torch.float32, torch.float64):
            for method in (surrogate.derivative, surrogate.primitive):
                y = method(z.to(dtype))
                assert y.dtype == dtype
                assert y.shape == z.shape


VALUES = [
    *FAMILIES,
    Triangle(alpha=1.5, scale=0.5),
    Parametric(ATan(alpha=1.5), per_channel=True),
    Masked(Triangle(), p=0.3),
    Masked(Triangle(), p=0.25, replace=Rectangle(width=0.1)),
    Masked(Parametric(Sigmoid()), p=0.75, rescale=True),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_surrogate_is_a_value(value):
    same = eval(repr(value), dict(vars(surrogates)))
    assert same == value
    assert type(same) is type(value)
    assert hash(same) == hash(value)
    for duplicate in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
        assert duplicate == value
        assert duplicate is not None
    assert sum(other == value for other in VALUES) == 1
    with pytest.raises(AttributeError):
        value.p = 0.1
    assert isinstance(value, bs.Surrogate)


def test_parametric_of_masked_becomes_masked_of_parametric():
    inner = Masked(Triangle(alpha=3.0), p=0.3, replace=Rectangle(width=0.1))
    assert Parametric(inner, per_channel=True) == Masked(
        Parametric(Triangle(alpha=3.0), per_channel=True), p=0.3, replace=Rectangle(width=0.1)
    )
    assert Parametric(Masked(ATan(), p=0.2, rescale=True)) == Masked(
        Parametric(ATan()), p=0.2, rescale=True
    )


def test_wrappers_use_the_curve_of_the_base():
    z = np.linspace(-1, 1, 41)
    base = Sigmoid(alpha=2.5)
    for value in (Masked(base, p=0.9), Parametric(base), Masked(Parametric(base), p=1.0)):
        np.testing.assert_array_equal(at(value.derivative, z), at(base.derivative, z))
        np.testing.assert_array_equal(at(value.primitive, z), at(base.primitive, z))


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (
            lambda: Triangle(alpha=0.0),
            ValueError,
            "Triangle: alpha must be a positive number, got 0",
        ),
        (lambda: ATan(alpha=-1.0), ValueError, "ATan: alpha must be a positive number"),
        (
            lambda: Rectangle(width=math.inf),
            ValueError,
            "Rectangle: width must be a positive number",
        ),
        (lambda: Sigmoid(scale=0.0), ValueError, "Sigmoid: scale must be a positive number"),
        (
            lambda: SuperSpike(alpha=math.nan),
            ValueError,
            "SuperSpike: alpha must be a positive number",
        ),
        (
            lambda: PiecewiseExponential(alpha=0),
            ValueError,
            "PiecewiseExponential: alpha must be a positive",
        ),
        (lambda: Erf(alpha=0), ValueError, "Erf: alpha must be a positive"),
        (lambda: Dspike(temperature=0), ValueError, "Dspike: temperature must be a positive"),
        (lambda: Masked(Triangle(), p=1.1), ValueError, r"must lie in \[0, 1\], got 1.1"),
        (lambda: Masked(Triangle(), p=-0.1), ValueError, r"must lie in \[0, 1\]"),
        (lambda: Masked(Triangle(), p=math.nan), ValueError, r"must lie in \[0, 1\]"),
        (lambda: Masked(Triangle(), p=1.0, rescale=True), ValueError, "p must be below 1"),
        (
            lambda: Masked(Triangle(), replace=Triangle(), rescale=True),
            ValueError,
            "choose rescale or replace",
        ),
        (lambda: Masked(Masked(Triangle())), ValueError, "must not be Masked"),
        (lambda: Masked(Triangle(), replace=Masked(Triangle())), ValueError, "must not be Masked"),
        (
            lambda: Masked(Triangle(), replace=Parametric(Triangle())),
            ValueError,
            "nor replace Parametric",
        ),
        (lambda: Masked(Triangle(), replace=0.5), TypeError, "needs a surrogate such as"),
        (lambda: Masked(Triangle), TypeError, "needs a surrogate such as"),
        (lambda: Masked(0.5), TypeError, "needs a surrogate such as"),
        (lambda: Parametric("ATan"), TypeError, "needs a surrogate such as"),
        (lambda: Parametric(Parametric(ATan())), ValueError, "already Parametric"),
    ],
)
def test_invalid_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()


@dataclass(frozen=True)
class Cauchy:
    """A custom surrogate that equals ATan(alpha=2/pi)."""

    gamma: float = 1.0

    def derivative(self, z):
        return 1 / (math.pi * self.gamma * (1 + (z / self.gamma) ** 2))

    def primitive(self, z):
        return (z / self.gamma).atan() / math.pi + 0.5


@pytest.mark.parametrize("backend", ["auto", *bs.backends()])
@pytest.mark.parametrize(
    "wrap",
    [lambda s: s, lambda s: Masked(s, p=0.4), Parametric],
    ids=["plain", "masked", "parametric"],
)
def test_a_custom_surrogate_works_in_a_layer(backend, wrap):
    """On every backend that accepts it; `auto`, `eager` and `reference` must."""
    gradients = []
    for surrogate in (Cauchy(), ATan(alpha=2 / math.pi)):
        layer = bs.LIF(tau=2.5, v_threshold=0.6, surrogate=wrap(surrogate), backend=backend)
        torch.manual_seed(5)
        x = torch.randn(4, 3, 2, dtype=torch.float64).requires_grad_()
        try:
            layer(x).mul(torch.randn(4, 3, 2, dtype=torch.float64)).sum().backward()
        except bs.Unsupported:
            assert backend not in ("auto", "eager", "reference")
            pytest.skip(f"{backend} refuses custom surrogates")
        gradients.append([x.grad, *(p.grad for p in layer.parameters())])
    for custom, built_in in zip(*gradients):
        assert custom.abs().sum() > 0
        torch.testing.assert_close(custom, built_in, rtol=1e-6, atol=1e-12)
