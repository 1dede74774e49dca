"""Graphs as they are built: equal nodes are one, and what needs no computing is left out."""

from __future__ import annotations

import math

import pytest

from amidmath.compiler.builder import Builder
from amidmath.compiler.graph import UnsupportedError
from amidmath.compiler.operations import ROW


def test_equal_nodes_are_one():
    b = Builder()
    x, y = b.leaf("input", 0), b.leaf("input", 1)
    assert b.apply("add", x, y) is b.apply("add", y, x)
    assert b.apply("sub", x, y) is not b.apply("sub", y, x)
    assert b.const(0.0) is not b.const(-0.0)
    assert b.const(1.0) is not b.const(True)
    assert b.const(math.nan) is b.const(math.nan)


def test_a_sum_that_one_token_alone_is_in_is_that_tokens_number():
    b = Builder()
    x, place = b.leaf("input", 0), b.reduce("argmax", b.leaf("input", 1))
    alone = b.apply("eq", b.leaf("iota"), place)
    total = b.reduce("sum", b.apply("select", alone, b.apply("exp", x), b.const(0.0)))
    assert (total.op, total.kind, total.args) == ("at", ROW, (place, b.apply("exp", x)))


def test_the_largest_is_where_it_is_without_what_is_the_same_for_all_tokens():
    b = Builder()
    x = b.leaf("input", 0)
    shifted = b.apply("sub", b.apply("mul", x, b.const(2.0)), b.leaf("scale"))
    assert b.reduce("argmax", b.apply("exp", shifted)) is b.reduce("argmax", x)
    assert b.reduce("argmax", b.apply("mul", x, b.const(-2.0))).args[0] is not x


def test_what_is_for_numbers_of_the_row_alone_is_refused_for_tokens():
    b = Builder()
    assert b.apply("asin", b.leaf("knob", 0)).kind == ROW
    with pytest.raises(UnsupportedError, match="asin of one number a token"):
        b.apply("asin", b.leaf("input", 0))
