"""Axes, empty axes, no axes, and masks that broadcast: the same at every entry point."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am
from amidmath import geometry

LOSS = am.AMiD(order="qr", alpha=3.0)
HEAD = np.random.default_rng(1).normal(size=(5, 3))


def uniform(shape):
    return np.full(shape, -np.log(shape[-1]) if shape and shape[-1] else 0.0)


# From an array of log-probabilities, and what it is called.
ENTRIES = {
    "AMiD": ("student", lambda a: LOSS(a, a)),
    "AMiD.value_and_grad": ("student", lambda a: LOSS.value_and_grad(a, a)),
    "akl": ("student", lambda a: am.methods.akl()(a, a)),
    "lists": ("student", lambda a: LOSS(a, am.TopK(a, a))),
    "top_k": ("teacher_logits", lambda a: am.top_k(a, 1)),
    "hidden states": ("states", lambda a: LOSS(am.Hidden(a, HEAD), am.Hidden(a, HEAD))),
    "KL": ("log_x", lambda a: am.KL()(a, a)),
    "KL.value_and_grad": ("log_x", lambda a: am.KL().value_and_grad(a, a)),
    "log_falpha_mean": ("logs", lambda a: am.log_falpha_mean(a, alpha=1.0, axis=-1)),
    "falpha_mean": ("values", lambda a: am.falpha_mean(a, alpha=1.0, axis=-1)),
    "alpha_mixture": ("log_p", lambda a: am.alpha_mixture(a, a, alpha=1.0, lam=0.5)),
    "barycenter": ("logs", lambda a: geometry.barycenter(a, alpha=1.0)),
    "jensen_divergence": ("logs", lambda a: geometry.jensen_divergence(a, alpha=1.0)),
    "geodesic": ("log_p", lambda a: geometry.geodesic(a, a, 0.5, alpha=1.0)),
    "fisher_metric": ("log_p", lambda a: geometry.fisher_metric(a, a, a)),
    "fisher_information": ("log_p", geometry.fisher_information),
    "amari_chentsov": ("log_p", lambda a: geometry.amari_chentsov(a, a, a, a)),
    "connection": ("log_p", lambda a: geometry.connection(a, a, a, alpha=0.0)),
    "natural_gradient": ("log_q", lambda a: geometry.natural_gradient(a, a)),
    "overlap": ("log_p", lambda a: geometry.overlap(a, a)),
    "mode_report": ("log_p", lambda a: geometry.mode_report(a, a, alpha=0.0, lam=0.5)),
}


@pytest.mark.parametrize("shape", [(), (2, 0), (0, 0)], ids=str)
@pytest.mark.parametrize(("argument", "call"), ENTRIES.values(), ids=ENTRIES)
def test_no_axis_and_no_outcome_are_refused(argument, call, shape):
    with pytest.raises(ValueError, match=argument) as raised:
        call(uniform(shape))
    assert str(shape) in str(raised.value)


def test_a_mean_of_no_sources_is_refused():
    for mean, name in ((am.log_falpha_mean, "logs"), (am.falpha_mean, "values")):
        with pytest.raises(ValueError, match=rf"{name} must have a source along axis 0.*\(0, 3\)"):
            mean(np.zeros((0, 3)), alpha=1.0)


EMPTY = {
    "AMiD": (lambda a, h: LOSS(a, a), ()),
    "sum": (lambda a, h: LOSS(a, a, reduction="sum"), ()),
    "none": (lambda a, h: LOSS(a, a, reduction="none"), (2, 0)),
    "denominator": (lambda a, h: LOSS(a, a, denominator=3), ()),
    "reference": (lambda a, h: LOSS(a, a, backend="reference"), ()),
    "gradient": (lambda a, h: LOSS.value_and_grad(a, a)[1], (2, 0, 3)),
    "akl": (lambda a, h: am.methods.akl()(a, a), ()),
    "lists": (lambda a, h: LOSS(a, am.top_k(a, 2)), ()),
    "top_k": (lambda a, h: am.top_k(a, 2).indices, (2, 0, 2)),
    "hidden states": (lambda a, h: LOSS(am.Hidden(a, h), am.Hidden(a, h)), ()),
    "by the head": (
        lambda a, h: (
            LOSS.value_and_grad(am.Hidden(a, h), am.Hidden(a, h), wrt="student.head")[1].weight
        ),
        (5, 3),
    ),
    "KL": (lambda a, h: am.KL()(a, a), (2, 0)),
    "mixture": (lambda a, h: am.alpha_mixture(a, a, alpha=1.0, lam=0.5), (2, 0, 3)),
    "mean": (lambda a, h: am.log_falpha_mean(a, alpha=1.0), (0, 3)),
    "fisher": (lambda a, h: geometry.fisher_metric(a, a, a), (2, 0)),
    "jensen": (lambda a, h: geometry.jensen_divergence(a, alpha=1.0), (0,)),
}


@pytest.mark.parametrize(("call", "shape"), EMPTY.values(), ids=EMPTY)
def test_no_positions(eager, call, shape):
    """The mean over none is 0, as over those of which a mask keeps none; and no NaN elsewhere."""
    got = np.asarray(call(eager(uniform((2, 0, 3))), eager(HEAD)))
    assert got.shape == shape
    assert not got.any()
    for backend in ("compiled", None):
        if isinstance(eager(0.0), (np.ndarray, torch.Tensor)):
            empty = eager(uniform((2, 0, 3)))
            assert LOSS(empty, empty, backend=backend) == 0.0


def test_no_positions_under_differentiation():
    rows, head = torch.zeros((0, 3)), torch.ones((5, 3))
    for call in (
        lambda x: LOSS(x, rows),
        lambda x: LOSS(am.Hidden(x, head), am.Hidden(rows, head)),
    ):
        leaf = torch.zeros((0, 3), requires_grad=True)
        value = call(leaf)
        assert value == 0.0
        value.backward()
        assert leaf.grad.shape == (0, 3)
    empty = jnp.zeros((0, 3))
    value, grad = jax.value_and_grad(LOSS)(empty, empty)
    assert (value, grad.shape) == (0.0, (0, 3))
    assert am.KL()(empty, empty).shape == (0,)


# ---------------------------------------------------------------------------------------------
# Masks

MASK = np.array([[True, False, True], [False, False, True]])
MASKS = {
    "whole": MASK,
    "integers": MASK.astype("u1"),
    "a row": MASK[0],
    "one row": MASK[:1],
    "a column": MASK[:, :1],
    "one": np.array([True]),
    "all": np.array(True),
    "none": np.array(False),
}


def entries_with_a_mask(array):
    rng = np.random.default_rng(0)
    s, t, h = (array(a) for a in rng.normal(size=(3, 2, 3, 3)))
    w = array(HEAD)
    top = am.top_k(t, 2)
    labels = array(np.array([[0, 1, 2], [2, -100, 1]]))
    return {
        "call": lambda m: LOSS(s, t, m),
        "value_and_grad": lambda m: LOSS.value_and_grad(s, t, m)[1],
        "compiled": lambda m: LOSS.value_and_grad(s, t, m, backend="compiled")[1],
        "none": lambda m: LOSS(s, t, m, reduction="none"),
        "lists": lambda m: LOSS(s, top, m),
        "hidden states": lambda m: (
            LOSS.value_and_grad(am.Hidden(h, w), am.Hidden(t, w), m)[1].states
        ),
        "labels": lambda m: LOSS(s, t, m, labels=labels),
        "akl": lambda m: am.methods.akl()(s, t, m),
    }


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_broadcast(eager, mask):
    wide = np.broadcast_to(mask, (2, 3))
    for name, call in entries_with_a_mask(eager).items():
        if name == "compiled" and not isinstance(eager(0.0), (np.ndarray, torch.Tensor)):
            continue
        got, wanted = call(eager(mask)), call(eager(wide.astype(bool)))
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted), err_msg=name)


def test_masks_broadcast_in_jax():
    calls = entries_with_a_mask(lambda a: jnp.asarray(a, jnp.float32))
    for mask in (MASK[0], MASK[:, :1]):
        wide = np.broadcast_to(mask, (2, 3))
        got, wanted = (jax.jit(calls["call"])(jnp.asarray(m)) for m in (mask, wide))
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (np.ones((3, 2), bool), ValueError, ["mask", "(2, 3)", "(3, 2)"]),
        (np.ones((2, 3, 1), bool), ValueError, ["mask", "(2, 3)", "(2, 3, 1)"]),
        (np.ones((2, 3)), TypeError, ["mask", "boolean or 0/1", "float64"]),
        (np.array([1, 0, -100]), ValueError, ["mask", "boolean or 0/1", "1 of them", "-100"]),
        (True, TypeError, ["mask", "array", "bool"]),
    ],
    ids=str,
)
def test_masks_that_are_none(mask, error, words):
    for call in entries_with_a_mask(np.array).values():
        with pytest.raises(error) as raised:
            call(mask)
        for word in words:
            assert word in str(raised.value), str(raised.value)


# ---------------------------------------------------------------------------------------------
# Axes

RNG = np.random.default_rng(2)
LOGITS = RNG.normal(size=(2, 4, 3))
P = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
ALONG = {
    "KL": lambda axis: am.KL()(P, P[::-1], axis),
    "KL.value_and_grad": lambda axis: am.KL().value_and_grad(P, P[::-1], axis)[1][0],
    "log_falpha_mean": lambda axis: am.log_falpha_mean(P, alpha=1.0, axis=axis),
    "falpha_mean": lambda axis: am.falpha_mean(np.exp(P), alpha=1.0, axis=axis),
    "alpha_mixture": lambda axis: am.alpha_mixture(P, P, alpha=1.0, lam=0.5, axis=axis),
    "barycenter": lambda axis: geometry.barycenter(P, alpha=1.0, outcomes=axis),
    "jensen_divergence": lambda axis: geometry.jensen_divergence(P, alpha=1.0, outcomes=axis),
    "fisher_metric": lambda axis: geometry.fisher_metric(P, LOGITS, LOGITS, axis=axis),
    "natural_gradient": lambda axis: geometry.natural_gradient(P, LOGITS, axis=axis),
    "overlap": lambda axis: geometry.overlap(P, P, axis=axis),
    "geodesic": lambda axis: geometry.geodesic(P, P, 0.5, alpha=1.0, axis=axis),
}


@pytest.mark.parametrize("call", ALONG.values(), ids=ALONG)
def test_axes(call):
    wanted = call(1)
    for axis in (-2, np.int64(1), np.int8(-2), torch.tensor(1), jnp.asarray(1)):
        np.testing.assert_array_equal(call(axis), wanted)
    for axis in (True, None, 1.0, (1,), (0, 1), [1], "1", np.array([1]), np.bool_(True)):
        with pytest.raises(TypeError, match=r"(axis|outcomes) must be one axis of .*an integer"):
            call(axis)
    for axis in (3, -4, np.int64(7)):
        with pytest.raises(ValueError, match=r"(axis|outcomes) must be an integer in \[-3, 2\]"):
            call(axis)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_axis_is_kept(any_library, axis):
    logs = any_library.array(np.moveaxis(P, 1, axis).copy())
    other = any_library.array(np.moveaxis(P[::-1], 1, axis).copy())
    kept = list(logs.shape)
    kept[axis] = 1
    for call in (
        lambda **how: am.KL()(logs, other, axis, **how),
        lambda **how: am.KL().value_and_grad(logs, other, axis, **how)[0],
        lambda **how: am.log_falpha_mean(logs, alpha=3.0, axis=axis, **how),
        lambda **how: am.falpha_mean(logs**2, alpha=3.0, axis=axis, **how),
    ):
        got, flat = (any_library.numpy(call(keepdims=keep)) for keep in (True, False))
        assert got.shape == tuple(kept)
        np.testing.assert_array_equal(np.squeeze(got, axis), flat)
