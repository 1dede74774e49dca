"""Heads as values: what they are made of, and what is refused."""

from __future__ import annotations

import re

import array_api_strict
import numpy as np
import pytest

import amidmath as am

W = np.zeros((4, 3))
WRONG_HEADS = {
    "weight": ((np.zeros(4),), {}, ValueError, r"weight must have shape \(V, H\), got \(4,\)"),
    "no weight": (([1.0],), {}, TypeError, "weight must be an array"),
    "integers": ((W.astype(int),), {}, TypeError, "weight must have a real floating-point dtype"),
    "bias": ((W, np.zeros(3)), {}, ValueError, r"bias must have shape \(V,\) = \(4,\)"),
    "another library": (
        (W, array_api_strict.zeros(4)),
        {},
        TypeError,
        "weight and bias must come from one array library",
    ),
    "softcap": ((W,), {"softcap": 0.0}, ValueError, "softcap must be positive, got 0.0"),
    "scale": ((W,), {"scale": np.inf}, ValueError, "scale must be finite, got inf"),
    "low_rank": ((W,), {"low_rank": (W, W)}, TypeError, r"low_rank must be a tuple \(A, B, fa"),
    "its shapes": (
        (W,),
        {"low_rank": (np.zeros((2, 3)), np.zeros((2, 4)), 1.0)},
        ValueError,
        r"low_rank must have A of shape \(r, H\) = \(r, 3\) and B of shape \(V, r\) = \(4, r\), "
        r"got \(2, 3\) and \(2, 4\)",
    ),
    "its factor": (
        (W,),
        {"low_rank": (np.zeros((2, 3)), np.zeros((4, 2)), None)},
        TypeError,
        re.escape("low_rank[2] must be a number"),
    ),
}


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "message"), WRONG_HEADS.values(), ids=WRONG_HEADS
)
def test_wrong_heads(arguments, options, kind, message):
    with pytest.raises(kind, match=message):
        am.Head(*arguments, **options)


def test_a_head_does_not_change():
    with pytest.raises(AttributeError):
        am.Head(W).scale = 2.0


def test_arrays_have_the_names_of_their_fields():
    a, b = np.ones((2, 3)), np.ones((4, 2))
    head = am.Head(W, np.zeros(4), low_rank=(a, b, 1))
    arrays = head.arrays()
    assert list(arrays) == ["weight", "bias", "low_rank[0]", "low_rank[1]"]
    assert arrays["low_rank[1]"] is b
    assert head.holding(arrays) == head
    assert head.low_rank[2] == 1.0
    assert isinstance(head.low_rank[2], float)
    assert list(am.Head(W).arrays()) == ["weight"]


def test_equality_and_how_it_is_shown():
    head = am.Head(W, softcap=30)
    assert head == am.Head(W.copy(), softcap=30.0)
    assert head not in [am.Head(W), am.Head(W, softcap=30.0, scale=2.0), am.Head(W + 1, softcap=30)]
    assert head != am.Head(W, np.zeros(4), softcap=30.0)
    assert repr(head) == (
        "Head(weight=<numpy float64 (4, 3)>, bias=None, softcap=30.0, scale=1.0, low_rank=None)"
    )
    with pytest.raises(TypeError, match="no hash"):
        hash(head)
