"""The walk over a program, with a target that computes what it is told to spell."""

from __future__ import annotations

import numpy as np
import pytest
from row_programs import LOSSES, NUMPY, row

import amidmath as am
from amidmath.compiler.lower import lower
from amidmath.compiler.memory import overwritable
from amidmath.compiler.program import row_program
from amidmath.rows.forms import RowForm

V = 7


class Computing:
    """One row in double precision: numbers outside of sweeps, arrays over the tokens inside."""

    def __init__(self, arrays, params, keep=True):
        self.arrays, self.params, self.keeps = arrays, params, keep
        self.buffers, self.tile, self.inside = {}, {}, False

    def choose(self, kept, left_out):
        (kept if self.keeps else left_out)()

    def constant(self, value):
        return np.asarray(value)

    def operand(self, name):
        if name.startswith("param"):
            return np.asarray(self.params[int(name.removeprefix("param"))])
        return np.asarray(self.arrays[name])

    def operation(self, node, args):
        assert all(a.shape == ((V,) if self.inside else ()) for a in args)
        with np.errstate(all="ignore"):
            return np.asarray(NUMPY[node.op](*args))

    def logit_at(self, which, place):
        return np.asarray(self.arrays[f"input{which}"][int(place)])

    def index(self, place):
        return np.asarray(place)

    def result(self, array, value):
        self.arrays[array] = float(value)

    def spread(self, which, value):
        self.arrays[f"partial{which}"][:] = value

    def across(self, value):
        assert value.shape == ()
        return np.full(V, value)

    def sweep(self, stages, turn):
        self.numbers = {}
        for stage in stages:
            self.inside = True
            turn(stage)
            self.inside = False
        self.tile = {}
        return self.numbers

    def logits(self, which):
        return self.arrays[f"input{which}"].copy()

    def positions(self):
        return np.arange(V)

    def add(self, total, value):
        with np.errstate(all="ignore"):
            self.numbers[total] = np.sum(value)

    def compare(self, extreme, value):
        self.numbers |= {extreme.largest: np.max(value), extreme.place: np.argmax(value)}

    def store(self, which, value):
        self.arrays[f"partial{which}"][:] = value

    # The memory

    def keep(self, buffer, value):
        self.buffers[buffer] = value

    def kept(self, buffer, type_):
        assert (self.buffers[buffer].dtype == bool) == (type_ == "bool")
        return self.buffers[buffer]

    def pass_on(self, place, value):
        assert place not in self.tile
        self.tile[place] = value

    def passed(self, place):
        return self.tile[place]


def lowered(loss, rows, *, memory, keep=True, in_place=False):
    """Value and gradients, by the target above."""
    program = row_program(
        RowForm(loss.block, masked=True, scaled=True), (True, True) + 2 * (False,), True
    )
    scheduled = program.scheduled(keeping=memory)
    arrays = {f"input{j}": a.copy() for j, a in enumerate(rows)} | {"scale": 0.5}
    arrays |= {f"partial{j}": np.full(V, np.nan) for j in (0, 1)}
    if in_place and overwritable(scheduled, 0):
        arrays["partial0"] = arrays["input0"]
    target = Computing(arrays, program.numbers, keep)
    lower(scheduled, target, masked=True, memory=target if memory else None)
    return arrays["value"], arrays["partial0"], arrays["partial1"]


@pytest.mark.parametrize("memory", [False, True], ids=["sweeps", "buffers and stages"])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_every_loss_is_lowered_to_what_it_computes(loss, memory):
    rows = row(3)
    value, *grads = lowered(loss, rows, memory=memory, in_place=True)
    wanted, wanted_grads = loss.value_and_grad(
        *rows, wrt=("student", "teacher"), backend="reference"
    )
    assert value == pytest.approx(wanted, rel=1e-12)
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        size = np.abs(wanted_grad).max()
        np.testing.assert_allclose(grad, 0.5 * wanted_grad, rtol=0, atol=1e-12 * size)


def test_a_row_that_is_left_out_is_zero():
    value, *grads = lowered(am.AMiD(), row(3), memory=True, keep=False)
    assert value == 0.0
    np.testing.assert_array_equal(grads, np.zeros((2, V)))
