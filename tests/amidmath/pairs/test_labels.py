"""Labels with students and teachers of every kind, by definition and where they are wrong."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from label_oracle import cross_entropy

import amidmath as am

ROWS, VOCABULARY = 4, 6
RNG = np.random.default_rng(1)
# In numbers that float32 has, too.
S, T = RNG.normal(size=(2, ROWS, VOCABULARY)).astype("float32").astype("float64")
LABELS = np.array([2, -100, 5, 0])
KL = am.AMiD(am.KL(), order="qr", alpha=-1.0, lam=0.3)
WARM = am.AMiD(am.KL(), order="pr", alpha=0.5, lam=0.25, temperature=2.0)
TEACHERS = ("logits", "lists", "states")


def pair(teacher, array, integers=None, temperature=1.0):
    """The student's logits, and a teacher of the kind."""
    if teacher == "states":  # with a head that changes nothing
        return array(S), am.Hidden(array(T), array(np.eye(VOCABULARY)))
    if teacher == "lists":
        top = am.top_k(T, 3, temperature)
        return array(S), am.TopK(array(top.log_probs), (integers or array)(top.indices))
    return array(S), array(T)


def pair_on(library, teacher, temperature=1.0):
    return pair(teacher, library.array, lambda a: library.array(a, "int32"), temperature)


by_teacher = pytest.mark.parametrize("teacher", TEACHERS)
by_loss = pytest.mark.parametrize("loss", [KL, 0.5 * WARM], ids=["KL", "warm"])


# ---------------------------------------------------------------------------------------------
# Values and gradients


@by_loss
@by_teacher
def test_the_cross_entropy_of_the_logits_at_temperature_1_is_added(any_library, teacher, loss):
    temperature = 1.0 if loss is KL else 2.0
    student, other = pair_on(any_library, teacher, temperature)
    values, grads = (
        any_library.numpy(a) for a in loss.value_and_grad(student, other, reduction="none")
    )
    by_label, slopes = cross_entropy(S, LABELS)
    got, by = loss.value_and_grad(
        student,
        other,
        reduction="none",
        labels=any_library.array(LABELS, "int64"),
        label_weight=0.3,
    )
    eps = any_library.eps
    np.testing.assert_allclose(any_library.numpy(got), values + 0.3 * by_label, rtol=16 * eps)
    np.testing.assert_allclose(any_library.numpy(by), grads + 0.3 * slopes, atol=16 * eps)


@by_teacher
def test_one_denominator_divides_both(eager, teacher):
    student, other = pair(teacher, eager)
    mask = np.array([True, True, False, True])
    options = {"labels": eager(LABELS), "ignore_index": -100}
    each = np.asarray(KL(student, other, eager(mask), "none", **options))
    wanted = KL(student, other, reduction="none")
    wanted = np.asarray(wanted) + cross_entropy(S, LABELS)[0]
    np.testing.assert_allclose(each, np.where(mask, wanted, 0.0), rtol=1e-14)
    for denominator, count in ((None, 3), (8, 8)):
        value = KL(student, other, eager(mask), "mean", denominator, **options)
        np.testing.assert_allclose(float(value), each.sum() / count, rtol=1e-14)


@by_teacher
@pytest.mark.parametrize("ignore_index", [-100, 5, 99])
def test_positions_without_a_label_have_the_loss_alone(eager, teacher, ignore_index):
    student, other = pair(teacher, eager)
    labels = np.array([2, ignore_index, ignore_index, 0])
    value, by = KL.value_and_grad(
        student, other, reduction="none", labels=eager(labels), ignore_index=ignore_index
    )
    alone, by_alone = KL.value_and_grad(student, other, reduction="none")
    values, slopes = cross_entropy(S, labels, ignore_index)
    np.testing.assert_allclose(np.asarray(value), np.asarray(alone) + values, rtol=1e-14)
    np.testing.assert_allclose(np.asarray(by), np.asarray(by_alone) + slopes, atol=1e-15)


@by_teacher
def test_labels_of_positions_that_are_left_out_are_not_read(eager, teacher):
    student, other = pair(teacher, eager)
    mask = eager(np.array([True, False, True, True]))
    results = [
        KL.value_and_grad(student, other, mask, labels=eager(np.array([2, label, 5, 0])))
        for label in (1, 999, -7)
    ]
    for value, by in results[1:]:
        assert value == results[0][0]
        np.testing.assert_array_equal(np.asarray(by), np.asarray(results[0][1]))


def test_a_certain_student_is_infinitely_wrong_or_right():
    student = np.array([[0.0, -np.inf, 0.0], [0.0, -np.inf, -np.inf]])
    value, by = (0.0 * KL).value_and_grad(
        student, np.zeros((2, 3)), reduction="none", labels=np.array([1, 0])
    )
    assert value.tolist() == [np.inf, 0.0]
    assert by.tolist() == [[0.5, -1.0, 0.5], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_any_integers(any_library, dtype):
    student, teacher = (any_library.array(a) for a in RNG.normal(size=(2, 5, 300)))
    labels = np.array([0, 7, 99, 127, 3])
    value = KL(student, teacher, labels=any_library.array(labels, dtype))
    logits = any_library.numpy(student).astype(float)
    wanted = KL(logits, any_library.numpy(teacher).astype(float), reduction="none")
    wanted = (wanted + cross_entropy(logits, labels)[0]).mean()
    np.testing.assert_allclose(any_library.numpy(value), wanted, rtol=16 * any_library.eps)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    student, teacher = (torch.tensor(a).to(dtype) for a in (S, T))
    labels = torch.tensor(LABELS)
    value, by = KL.value_and_grad(student, teacher, labels=labels)
    wanted, wide = KL.value_and_grad(student.float(), teacher.float(), labels=labels)
    assert (value.dtype, by.dtype) == (torch.float32, dtype)
    assert value == wanted
    assert torch.equal(by, wide.to(dtype))


def test_the_teacher_is_constant_beside_labels():
    student, teacher = (torch.tensor(a) for a in (S, T))
    with pytest.raises(ValueError, match="wrt must be one of 'student', got 'teacher'"):
        KL.value_and_grad(student, teacher, labels=torch.tensor(LABELS), wrt="teacher")
    teacher.requires_grad_()
    with pytest.raises(ValueError, match=r"teacher must not require a gradient.*detach"):
        KL(student, teacher, labels=torch.tensor(LABELS))
    student, teacher = (jnp.asarray(a, "float32") for a in (S, T))
    by = jax.grad(lambda t: KL(student, t, labels=jnp.asarray(LABELS)))(teacher)
    assert not by.any()


def test_labels_change_nothing_of_the_students_logits():
    """The gradient of a chunk is written over its outputs, which here are not its own."""
    for array in (np.array, torch.tensor):
        student, teacher = array(S), array(T)
        KL.value_and_grad(student, teacher, labels=array(LABELS))
        np.testing.assert_array_equal(np.asarray(student), S)
        np.testing.assert_array_equal(np.asarray(teacher), T)


# ---------------------------------------------------------------------------------------------
# Compiled, and transformed


@by_teacher
def test_one_graph_of_torch(teacher):
    student, other = pair(teacher, torch.tensor)
    labels = torch.tensor(LABELS)
    _, wanted = KL.value_and_grad(student, other, labels=labels)

    def model(logits):
        return 2.0 * KL(torch.exp(torch.log(logits + 9.0)) - 9.0, other, labels=labels)

    leaf = student.clone().requires_grad_()
    torch.compiler.reset()
    torch.compile(model, backend="aot_eager", fullgraph=True)(leaf).backward()
    np.testing.assert_allclose(leaf.grad, 2.0 * wanted, atol=1e-13)


@by_teacher
def test_functional_gradients_of_torch(teacher):
    student, other = pair(teacher, torch.tensor)
    labels = torch.tensor(LABELS)
    _, wanted = KL.value_and_grad(student, other, labels=labels)
    got = torch.func.grad(lambda s: KL(s, other, labels=labels))(student)
    torch.testing.assert_close(got, wanted)


def test_vmap_and_wrong_labels_in_jax():
    """A label outside the vocabulary is seen where labels are at hand, and NaN elsewhere."""
    student, teacher = (jnp.asarray(a, "float32") for a in (S, T))
    labels = jnp.asarray([2, -100, VOCABULARY, -1])

    def loss(labels, reduction="none"):
        return KL(student, teacher, reduction=reduction, labels=labels)

    with pytest.raises(ValueError, match="labels must be tokens"):
        loss(labels)
    assert jnp.isnan(jax.jit(loss)(labels)).tolist() == [False, False, True, True]

    def one(student, teacher, label):
        return KL(student, teacher, labels=label)

    values, by = jax.jit(jax.vmap(jax.value_and_grad(one)))(student, teacher, labels)
    assert jnp.isnan(values).tolist() == [False, False, True, True]
    wanted, slopes = KL.value_and_grad(S[:2], T[:2], reduction="none", labels=LABELS[:2])
    np.testing.assert_allclose(values[:2], wanted, rtol=1e-5)
    np.testing.assert_allclose(by[:2], slopes, atol=1e-6)


# ---------------------------------------------------------------------------------------------
# Errors

WRONG = {
    "shape": ({"labels": np.zeros(3, int)}, ValueError, r"labels must have the shape .*\(4,\)"),
    "dtype": ({"labels": np.zeros(4)}, TypeError, "labels must be integers, got dtype float64"),
    "library": ({"labels": torch.zeros(4).int()}, TypeError, "and labels must come from one"),
    "no array": ({"labels": [0, 1, 2, 3]}, TypeError, "labels must be an array.*list"),
    "token": (
        {"labels": np.array([0, 4, 6, 1])},
        ValueError,
        r"labels must be tokens in \[0, 6\) or ignore_index -100, but 1 of them are not; .* 6.0",
    ),
    "negative": ({"labels": np.array([0, 4, -1, 1])}, ValueError, "labels must be tokens.* -1.0"),
    "label_weight": ({"label_weight": np.nan}, ValueError, "label_weight must be finite"),
    "no number": ({"label_weight": "1"}, TypeError, "label_weight must be a number"),
    "ignore_index": ({"ignore_index": 0.5}, TypeError, "ignore_index must be an integer, got 0.5"),
    "a flag": ({"ignore_index": True}, TypeError, "ignore_index must be an integer, got True"),
}


@by_teacher
@pytest.mark.parametrize(("change", "kind", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(teacher, change, kind, message):
    student, other = pair(teacher, np.array)
    states = am.Hidden(student, np.eye(VOCABULARY))
    for call in (KL, KL.value_and_grad):
        for side in (student, states):
            with pytest.raises(kind, match=message):
                call(side, other, **({"labels": LABELS} | change))
