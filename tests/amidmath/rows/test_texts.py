"""Closed forms as a text and numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from certify.subjects import REGISTRY

import amidmath as am
from amidmath.rows import texts
from amidmath.rows.forms import RowForm


def test_forms_come_back():
    """What a text and numbers say is what was told, for every divergence that has a name."""
    for cls in REGISTRY.values():
        for parameters in cls.examples:
            block = am.AMiD(cls(*parameters), order="qr", alpha=float("-inf")).block
            form = RowForm(block, knobs=1, masked=True)
            text, numbers = texts.described(form)
            assert texts.restored(text, numbers) == form
            assert "kept" not in text


def test_what_has_no_name_is_kept():
    @dataclass(frozen=True)
    class Local:
        weight: float
        function: object

    value = Local(0.25, np.sin)
    text, numbers = texts.described(value)
    assert texts.restored(text, numbers) == value
    for _ in range(texts.MOST):
        texts.kept(object())
    texts._parsed.cache_clear()
    with pytest.raises(RuntimeError, match="trace it again"):
        texts.restored(text, numbers)
