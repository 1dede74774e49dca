"""Operators of losses: what they make is the same combination of values and gradients, or an error.

And losses as values: equality, hash, repr, copies.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
import warnings

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import torch

import amidmath as am

A, B = am.AMiD(order="pr", lam=0.5), am.AMiD(am.JensenShannon(0.25), "qr", alpha=1.0)
SUM = 0.25 * A + B
POSITIONS = 3


def combinations(array):
    """Losses by operators, and what they are of the values of A and B."""
    w = array([0.5, -2.0, 4.0])
    return {
        "sum()": (sum([A, B, A]), lambda a, b: a + b + a),
        "0 +": (0 + A + 0.0, lambda a, b: a),
        "/": (A / 4, lambda a, b: a / 4),
        "/ array": (SUM / w, lambda a, b: (0.25 * a + b) / np.array([0.5, -2.0, 4.0])),
        "-": (-SUM, lambda a, b: -0.25 * a - b),
        "a - b": (A - B, lambda a, b: a - b),
        "a - (b - a)": (A - (B - SUM * w), lambda a, b: a - b + (0.25 * a + b) * [0.5, -2.0, 4.0]),
        "0 -": (0 - A, lambda a, b: -a),
        "a - a": (A - A, lambda a, b: 0.0 * a),
    }


def rows(array, vocabulary=4):
    rng = np.random.default_rng(0)
    return [array(a) for a in 2 * rng.normal(size=(2, POSITIONS, vocabulary))]


def numbers(array):
    return np.asarray(array.detach() if isinstance(array, torch.Tensor) else array, dtype=float)


def parts(call):
    """The values and gradients of A and B."""
    return [[numbers(a) for a in call(loss)] for loss in (A, B)]


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "reference") for name in combinations(np.array)),
        *((name, "compiled") for name in ("a - b", "/ array")),
    ],
)
def test_values_and_gradients(name, backend):
    loss, combined = combinations(np.array)[name]
    student, teacher = rows(np.array)

    def call(loss):
        return loss.value_and_grad(student, teacher, reduction="none", backend=backend)

    (a, grad_a), (b, grad_b) = parts(call)
    value, grad = call(loss)
    np.testing.assert_allclose(value, combined(a, b), atol=1e-14)
    np.testing.assert_allclose(grad.T, combined(grad_a.T, grad_b.T), atol=1e-14)


@pytest.mark.parametrize("name", ["a - b", "/ array"])
def test_every_library(any_library, name):
    loss, combined = combinations(any_library.array)[name]
    student, teacher = rows(any_library.array)
    (a, b) = (any_library.numpy(x(student, teacher, reduction="none")) for x in (A, B))
    got = any_library.numpy(loss(student, teacher, reduction="none"))
    np.testing.assert_allclose(got, combined(a, b), atol=16 * any_library.eps)


def test_differences_from_lists_and_from_hidden_states():
    student, teacher = rows(np.array)
    top = am.top_k(teacher, 2)
    values = [x(student, top) for x in (A - B, A, B)]
    np.testing.assert_allclose(values[0], values[1] - values[2], atol=1e-14)
    head = np.random.default_rng(1).normal(size=(7, 4))
    values = [x(am.Hidden(student, head), am.Hidden(teacher, head)) for x in (A - B, A, B)]
    np.testing.assert_allclose(values[0], values[1] - values[2], atol=1e-14)


@pytest.mark.parametrize("backend", ["reference", "compiled"])
def test_an_infinite_part_keeps_its_sign_and_two_of_opposite_signs_are_nan(backend):
    student, teacher = np.array([[0.0, -math.inf, 1.0]]), np.array([[0.0, 1.0, 1.0]])
    infinite = am.AMiD(lam=0.0)
    for loss, wanted in ((A - infinite, -math.inf), (infinite - A, math.inf)):
        assert loss(student, teacher, backend=backend) == wanted
    assert np.isnan((infinite - infinite)(student, teacher, backend=backend))


def test_arrays_without_axes_stay_parameters(any_library):
    """NumPy makes numbers of what it computes of them."""
    student, teacher = rows(any_library.array)
    for loss in (
        A * any_library.array(2.0) / any_library.array(0.5),
        2.0 * (A * any_library.array(2.0)),
    ):
        value, by_weight = loss.value_and_grad(student, teacher, wrt="parts[0].weight")
        np.testing.assert_allclose(
            any_library.numpy(value), 4.0 * any_library.numpy(by_weight), rtol=1e-6
        )


def test_what_an_array_of_a_divisor_is_differentiated_by():
    student, teacher = rows(torch.tensor)
    divisor = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64, requires_grad=True)
    (A / divisor)(student, teacher, reduction="sum").backward()
    values = A(student, teacher, reduction="none")
    torch.testing.assert_close(divisor.grad, -values / divisor.detach() ** 2)


TABLE = pd.DataFrame({"a": [1.0]})
with warnings.catch_warnings(action="ignore"):
    MATRIX = np.matrix([[1.0]])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: A + 1, TypeError, ["AMiD", "int 1", "cannot be added", "value"]),
        (lambda: 1.5 + A, TypeError, ["AMiD", "float 1.5", "cannot be added"]),
        (lambda: A + True, TypeError, ["bool True", "cannot be added"]),
        (lambda: A - 2, TypeError, ["int 2", "cannot be added"]),
        (lambda: np.ones(3) + A, TypeError, ["ndarray", "cannot be added"]),
        (lambda: torch.ones(3) + A, TypeError, ["Tensor", "cannot be added"]),
        (lambda: A + "b", TypeError, ["str 'b'", "cannot be added"]),
        (lambda: sum([A, 1.0]), TypeError, ["float 1.0", "cannot be added"]),
        (lambda: A + object(), TypeError, ["unsupported operand", "object"]),
        (lambda: A * B, TypeError, ["AMiD and AMiD", "multiplied", "values"]),
        (lambda: A * None, TypeError, ["unsupported operand", "NoneType"]),
        (lambda: A * "2", TypeError, ["AMiD", "factor", "number", "array", "str '2'"]),
        (lambda: A * True, TypeError, ["factor", "bool"]),
        (lambda: A * math.inf, ValueError, ["factor", "finite", "inf"]),
        (lambda: A * 10**400, ValueError, ["factor", "finite"]),
        (lambda: A * [1.0], TypeError, ["factor", "list [1.0]", "numpy.asarray"]),
        (lambda: [1.0] * A, TypeError, ["factor", "list [1.0]", "numpy.asarray"]),
        (lambda: A * TABLE, TypeError, ["factor", "DataFrame", ".to_numpy()"]),
        (lambda: TABLE * A, TypeError, ["factor", "DataFrame", ".to_numpy()"]),
        (lambda: A * MATRIX, TypeError, ["factor", "matrix", "numpy.asarray"]),
        (lambda: MATRIX * A, TypeError, ["factor", "matrix", "numpy.asarray"]),
        (lambda: A * np.arange(3), TypeError, ["factor", "real floating", "int64", "convert"]),
        (lambda: A * np.array([1.0, np.nan]), ValueError, ["factor", "finite", "nan"]),
        (lambda: A / 0, ValueError, ["divisor", "other than 0"]),
        (lambda: A / np.array([1.0, 0.0]), ValueError, ["divisor", "other than 0", "1 of them"]),
        (lambda: A / "2", TypeError, ["AMiD", "divisor", "str '2'"]),
        (lambda: A / B, TypeError, ["divided by AMiD", "value"]),
        (lambda: 2 / A, TypeError, ["divided by AMiD", "value"]),
        (lambda: np.ones(2) / A, TypeError, ["divided by AMiD", "value"]),
        (lambda: A**2, TypeError, ["AMiD", "powers", "value"]),
        (lambda: 0.5 * am.KL(), TypeError, ["KL", "divergence", "0.5 * am.AMiD(am.KL(…))"]),
        (lambda: am.KL() * 0.5, TypeError, ["KL", "divergence"]),
        (lambda: np.ones(2) * am.KL(), TypeError, ["KL", "divergence"]),
        (lambda: am.KL() + am.ReverseKL(), TypeError, ["KL", "divergence", "values"]),
        (lambda: A + am.KL(), TypeError, ["KL", "divergence"]),
        (lambda: sum([am.KL()]), TypeError, ["KL", "divergence"]),
        (lambda: -am.Renyi(2.0), TypeError, ["Renyi", "divergence"]),
        (lambda: am.KL() / 2, TypeError, ["KL", "divergence"]),
    ],
    ids=lambda value: None,
)
def test_refused(make, error, words):
    with pytest.raises(error) as raised:
        make()
    for word in words:
        assert word in str(raised.value), str(raised.value)
    assert len(str(raised.value)) < 300


# ---------------------------------------------------------------------------------------------
# Losses as values

ARRAYS = {
    "numpy": lambda a: np.array(a),
    "torch": lambda a: torch.tensor(a),
    "jax": lambda a: jnp.asarray(a),
}
by_array = pytest.mark.parametrize("array", ARRAYS.values(), ids=ARRAYS)


def losses(array):
    """Losses with array parameters, made anew."""
    alpha, lam = array([0.5, 1.0, -1.0]), array(0.25)
    one = am.AMiD(order="rq", alpha=alpha, lam=lam)
    return [one, 0.5 * one + array(2.0) * A, am.methods.akl(mu=lam)]


@by_array
def test_equal_arrays_make_equal_losses(array):
    for here, same in zip(losses(array), losses(array), strict=True):
        assert here == same
        assert here in [A, same]
        assert here != here * 2.0
    alpha = array([0.5, 1.0, -1.0])
    others = (array([0.5, 1.0, 2.0]), array([[0.5, 1.0, -1.0]]), array(0.5), 0.5)
    for other in others:
        assert am.AMiD(alpha=alpha) != am.AMiD(alpha=other)
    assert am.AMiD(alpha=alpha) != am.AMiD(alpha=alpha, order="qr")
    assert am.AMiD(alpha=np.array(0.5)) != am.AMiD(alpha=torch.tensor(0.5))


def test_arrays_whose_numbers_are_not_at_hand_are_equal_to_themselves_only():
    one, other = torch.zeros(3, device="meta"), torch.zeros(3, device="meta")
    assert am.AMiD(alpha=one) == am.AMiD(alpha=one)
    assert am.AMiD(alpha=one) != am.AMiD(alpha=other)


@by_array
def test_a_loss_with_arrays_has_no_hash(array):
    for loss in losses(array):
        with pytest.raises(TypeError, match=r"no hash.*argument"):
            hash(loss)
    assert len({A, am.AMiD(lam=0.5), am.AMiD(order="pr", lam=np.float64(0.5)), B}) == 2
    assert hash(2.0 * A + B) == hash(A * 2.0 + B)


@by_array
def test_copies(array):
    for loss in losses(array):
        for same in (copy.copy(loss), copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert same == loss
            assert list(same.knobs) == list(loss.knobs)
    loss = losses(array)[0]
    assert dataclasses.replace(loss, order="pr") == am.AMiD(alpha=loss.alpha, lam=loss.lam)
    with pytest.raises(ValueError, match="order"):
        dataclasses.replace(loss, order="ab")


@by_array
def test_repr_is_short_whatever_the_arrays(array):
    loss = am.AMiD(alpha=array(np.zeros((64, 64), "f4")), lam=array(0.25))
    shown = repr(0.5 * loss)
    assert len(shown) < 200
    assert "float32 (64, 64)" in shown
    assert repr(A) == (
        "AMiD(divergence=KL(), order='pr', alpha=-1.0, lam=0.5, temperature=1.0, "
        "detach_assistant=False)"
    )
    assert repr(A * 2) == f"WeightedSum(parts=((2.0, {A!r}),))"
    assert repr(am.AlphaJensenShannon()) == (
        "AlphaJensenShannon(alpha=-1.0, lam=0.5, temperature=1.0)"
    )
