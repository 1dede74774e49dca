"""Small gradients of large derivatives by log x: these are nearly a multiple of x.

As where the rows hardly meet, or an assistant is a multiple of a source but for a few tokens. What
is left of the derivatives when the multiple is taken off has its digits all the same: within a few
eps of its own largest entry, and what rounding of the logarithms forces. Docs: divergences, D24.
"""

from __future__ import annotations

import itertools

import pytest
from certify.measure import measure
from certify.subjects import DTYPES, ORDERS, Point

from amidmath.divergences import REGISTRY

CASES = ("masked by -10000", "apart 10", "spread 10", "zeros in the second")
MIXTURES = ((-1e4, 0.5), (-5.0, 0.9), (-0.5, 0.9), (1.0, 1e-6), (3.0, 0.5), (10.0, 0.1))
LEAST = 1e-6
BOUND = 32.0  # eps: twice what make certify asks for, as these rows are of the worst
FAMILIES = [
    *("amari_alpha", "cressie_read", "tsallis", "t_power", "pearson_chi2", "neyman_chi2"),
    *("skew_kl", "skew_reverse_kl", "skew_jensen_shannon"),
    *("renyi", "bhattacharyya", "chernoff", "gamma"),
]


def missed(points):
    """Gradients of some size that are beyond their bounds, and how many there are at all."""
    records = [r for point in points for r in measure(point)]
    gradients = [r for r in records if r.quantity == "gradients" and r.size >= LEAST]
    return [f"{r.point}: {r.error:.3g} eps" for r in gradients if not r.error <= BOUND], len(
        gradients
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_divergences(name):
    points = [
        Point("divergence", name, dtype, case, 4, (17, n), params)
        for params in REGISTRY[name].examples
        for n, (dtype, case) in enumerate(itertools.product(("float32", "float64"), CASES))
    ]
    wrong, count = missed(points)
    assert count > len(points) / 3
    assert not wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_losses(name):
    settings = itertools.cycle(itertools.product(MIXTURES, ORDERS))
    points = [
        Point("loss", name, DTYPES[n % 2], case, 3, (23, n), params, order, alpha, lam)
        for params in REGISTRY[name].examples
        for n, (case, ((alpha, lam), order)) in enumerate(zip(3 * CASES, settings, strict=False))
    ]
    wrong, count = missed(points)
    assert count > len(points) / 3
    assert not wrong
