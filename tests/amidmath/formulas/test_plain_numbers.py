"""The formulas on plain numbers, as a compiled kernel runs them: no array, no library."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import amidmath as am
from amidmath.formulas.assistant import exponent, log_mixture, mixture_ratios


def scalar(function):
    """A NumPy function on one number, infinities and all."""

    def call(value):
        with np.errstate(all="ignore"):
            return float(function(value))

    return call


XP = SimpleNamespace(
    inf=math.inf,
    abs=abs,
    where=lambda condition, yes, no: yes if condition else no,
    zeros_like=lambda _: 0.0,
    **{name: scalar(getattr(np, name)) for name in ("exp", "expm1", "log", "log1p")},
)
POINTS = [(-1.0, -1.5), (-2.0, -2.0 + 1e-6), (-30.0, -0.1), (-0.5, -math.inf), (-math.inf, -2.0)]
DIVERGENCES = [
    cls(*example)
    for cls in am.divergences.REGISTRY.values()
    for example in cls.examples
    if issubclass(cls, am.divergences.Separable)
]


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=repr)
@pytest.mark.parametrize(("log_x", "log_y"), POINTS)
def test_divergences(divergence, log_x, log_y):
    arrays = (np.array([v]) for v in (log_x, log_y, log_x - log_y))
    with np.errstate(all="ignore"):
        # As they are, and not relative to those of a row's tops.
        value, (*grads, _) = am.divergences.Separable.evaluate(divergence, *arrays, True, np)
    token = (log_x, log_y, log_x - log_y, divergence.params, XP)
    assert divergence.term(*token) == pytest.approx(float(value), rel=1e-14)
    for got, grad in zip(divergence.partials(*token), grads, strict=True):
        assert got == pytest.approx(float(grad[0]), rel=1e-14, nan_ok=True)


@pytest.mark.parametrize("alpha", [-math.inf, -5.0, -1.0, 0.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize(("log_p", "log_q"), POINTS)
def test_mixture(alpha, log_p, log_q):
    arrays = np.array([log_p]), np.array([log_q])
    wanted = am.alpha_mixture(*arrays, alpha=alpha, lam=0.3, normalize=False)
    k = exponent(alpha)
    _, _, pi, w = ratios = mixture_ratios(log_p - log_q, k, 0.3, XP)
    assert pi + w == pytest.approx(1.0)
    got = log_mixture(log_p, log_q, ratios, XP)
    assert got == pytest.approx(float(wanted[0]), rel=1e-14)
