"""Programs as text, in a language that can be run here: Python, over arrays of NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from row_programs import LOSSES, NUMPY, row

import amidmath as am
from amidmath.compiler.builder import Builder
from amidmath.compiler.graph import UnsupportedError
from amidmath.compiler.operations import OPERATIONS
from amidmath.compiler.program import row_program
from amidmath.compiler.schedule import scheduled
from amidmath.compiler.text import Language, listed, number
from amidmath.rows.forms import RowForm

PYTHON = Language(
    operations={
        op: f"NUMPY[{op!r}]({', '.join(['{}'] * len(OPERATIONS[op].operands))})" for op in NUMPY
    },
    constant=lambda value: number(value, "np.inf", "True", "False"),
    logits=lambda which: f"input{which}[i]",
    logit=lambda which, place: f"input{which}[{place}]",
    positions="i",
)


def computed(listing, arrays, params):
    """The arrays that a listing writes."""
    names = {**arrays, **{f"param{j}": params[j] for j in listing.params}}
    names |= {"np": np, "NUMPY": NUMPY, "i": np.arange(len(arrays["input0"]))}

    def assign(lines):
        for name, expression in lines:
            assert name not in names
            with np.errstate(all="ignore"):
                names[name] = eval(expression, names)

    written = {}
    for before, loop in listing.steps:
        assign([*before, *loop.lines])
        names |= {name: np.sum(names[of]) for name, of in loop.totals}
        for name, place, of in loop.extremes:
            names[name] = np.max(names[of])
            if place:
                names[place] = np.argmax(names[of])
        written |= {array: names[value] for array, value in loop.stores}
    assign(listing.after)
    return written | {array: eval(value, names) for array, value in listing.results.once}


@pytest.mark.parametrize(
    "name",
    [n for n in LOSSES if n.split("-")[0] in ("kl", "fisher_rao", "renyi", "jensen_shannon")],
)
def test_the_lines_compute_the_loss(name):
    loss, rows = LOSSES[name], row(5)
    program = row_program(RowForm(loss.block), (True, False), True)
    listing = listed(program.scheduled(keeping=False), PYTHON)
    found = computed(listing, dict(zip(("input0", "input1"), rows, strict=True)), program.numbers)
    value, grad = loss.value_and_grad(*rows, backend="reference")
    assert found["value"] == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(found["partial0"], grad, rtol=0, atol=1e-12 * np.abs(grad).max())


def test_arrays_are_those_that_take_part_in_the_order_of_a_kernels_arguments():
    alpha, lam = np.array(0.3), np.array(0.1)
    form = RowForm(am.AMiD(alpha=alpha, lam=lam).block, knobs=2, masked=True, scaled=True)
    needs = (True, False, False, True, False, False)
    listing = listed(row_program(form, needs, False).scheduled(keeping=False), PYTHON)
    inputs, knobs = ["input0", "input1"], ["knob0", "knob1"]
    assert listing.arrays == [*inputs, *knobs, "scale", "value", "partial0", "partial3"]
    assert [stored.array for stored in listing.left_out.once] == ["value", "partial3"]
    assert [tuple(stored) for stored in listing.left_out.spread] == [("partial0", "0.0")]


def test_what_no_program_reads_is_no_argument():
    b = Builder()
    total = b.reduce("sum", b.apply("mul", b.leaf("input", 1), b.leaf("param", 3)))
    listing = listed(scheduled(total, [None, b.leaf("knob", 2)], keeping=False), PYTHON)
    assert listing.arrays == ["input1", "knob2", "value", "partial1"]
    assert listing.params == [3]
    assert [tuple(stored) for stored in listing.results.spread] == [("partial1", "knob2")]


def test_numbers_of_a_language():
    assert number(-0.5, "inf", "T", "F") == "(-0.5)"
    assert number(-math.inf, "inf", "T", "F") == "(-inf)"
    assert number(False, "inf", "T", "F") == "F"
    with pytest.raises(UnsupportedError, match="NaN"):
        number(math.nan, "inf", "T", "F")
