"""Losses against a teacher's top-k lists: exact for k + 1 outcomes, on every library."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from list_oracle import bucketed, exact, truth

import amidmath as am
from amidmath.rows import forms

INF, NAN = math.inf, math.nan
V, K = 6, 3
ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (-1.0, 3.0)
DIVERGENCES = {"KL": am.KL(), "AB(.2,.7)": am.AlphaBeta(0.2, 0.7), "Rényi(2)": am.Renyi(2.0)}

by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
by_order = pytest.mark.parametrize("order", ORDERS)


def lists():
    """Students and lists: unrelated, nearly agreeing, padded; in numbers that float32 has, too."""
    rng = np.random.default_rng(44)
    student, teacher = rng.normal(size=(2, 3, V))
    teacher[1] = student[1] + 1e-2 * teacher[1]
    indices = np.array([rng.permutation(V)[:K] for _ in range(3)])
    logs = np.take_along_axis(teacher - np.log(np.exp(teacher).sum(-1, keepdims=True)), indices, -1)
    indices[2, 1], logs[2, 1] = -1, NAN
    student, logs = (a.astype("float32").astype("float64") for a in (student, logs))
    return student, logs, indices


def top(library, logs, indices, dtype=None):
    return am.TopK(library.array(logs, dtype), library.array(indices, "int32"))


def given(library):
    student, logs, indices = lists()
    return library.array(student), top(library, logs, indices)


# ---------------------------------------------------------------------------------------------
# Definitions


def check(oracle, library, loss, value, grad, temperature=1.0):
    """Every row's value and gradient against the truth of a loss, or of a sum of losses."""
    student, logs, indices = lists()
    parts = loss.parts if isinstance(loss, am.WeightedSum) else ((1.0, loss),)
    for row in range(len(student)):
        at = (exact(student[row]), tuple(logs[row]), tuple(indices[row]))
        wanted, slopes, size, scale = mpmath.mpf(0), [mpmath.mpf(0)] * V, 0, 0
        for weight, part in parts:
            whole, by_logit = truth(
                part.divergence, part.order, *at, part.alpha, part.lam, temperature
            )
            wanted += weight * whole.value
            slopes = [a + weight * b for a, b in zip(slopes, by_logit, strict=True)]
            size += abs(weight) * (abs(whole.value) * (16 + whole.span) + whole.terms)
            scale += abs(weight) * max(whole.terms, *map(abs, whole.slopes[:-2]))
        for got, want, bound in ((value, wanted, size), (grad, slopes, 16 * scale)):
            off = oracle.error(got[row], np.array(want, dtype=object)).max()
            allowed = library.eps * float(bound) + library.tiny
            assert off <= allowed, f"row {row}: {off / library.eps} eps, {float(bound)} allowed"


@by_order
@by_divergence
def test_value_and_gradient_are_those_of_the_bucketed_distributions(
    library, oracle, divergence, order
):
    student, teacher = given(library)
    for alpha in ALPHAS:
        loss = am.AMiD(divergence, order=order, alpha=alpha, lam=0.25)
        value, grad = loss.value_and_grad(student, teacher, reduction="none")
        check(oracle, library, loss, library.numpy(value), library.numpy(grad))
        called = library.numpy(loss(student, teacher, reduction="none"))
        np.testing.assert_allclose(called, library.numpy(value), rtol=4 * library.eps)


@pytest.mark.parametrize("summed", [False, True], ids=["one", "sum"])
def test_temperature_is_applied_before_the_tail_is_added_up(library, oracle, summed):
    """The list is at the temperature of the loss already."""
    loss = am.AMiD(am.KL(), order="pr", alpha=-1.0, lam=0.25, temperature=2.0)
    if summed:
        loss = 0.5 * loss + -2.0 * am.AMiD(am.KL(), order="rq", alpha=3.0, temperature=2.0)
    student, teacher = given(library)
    value, grad = loss.value_and_grad(student, teacher, reduction="none")
    check(oracle, library, loss, library.numpy(value), library.numpy(grad), temperature=2.0)


LOSSES = {
    "KL": am.AMiD(am.KL(), order="pr", lam=0.25),
    "AB, rq": am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=3.0, temperature=0.5),
    "detached": am.AMiD(am.KL(), order="rq", alpha=1.0, detach_assistant=True, temperature=2.0),
    "α-JS": am.AlphaJensenShannon(alpha=0.5, temperature=2.0),
    "sum": 0.5 * am.AMiD(order="pr", temperature=4.0) + am.AMiD(order="qr", temperature=4.0),
}
by_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def temperature_of(loss):
    return (loss.parts[0][1] if isinstance(loss, am.WeightedSum) else loss).temperature


@by_loss
def test_all_tokens_listed_are_the_whole_vocabulary(any_library, loss):
    """Also those with probability zero, in any order; rounding leaves no tail."""
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(2, 3, V))
    teacher[0, 2] = student[0, 1] = -INF
    student, logits = any_library.array(student), any_library.array(teacher)
    value, grad = (any_library.numpy(a) for a in loss.value_and_grad(student, logits))
    listed = am.top_k(logits, V, temperature_of(loss))
    got, got_grad = (any_library.numpy(a) for a in loss.value_and_grad(student, listed))
    # The list's logarithms are rounded once more than the logits.
    rounding = 32 * any_library.eps
    np.testing.assert_allclose(got, value, rtol=rounding)
    np.testing.assert_allclose(got_grad, grad, atol=rounding * np.abs(grad).max())


@by_order
def test_tiny_tails_keep_their_digits(oracle, order):
    """The teacher's mass 1 - 1e-12, the student's 1 - 1e-20, in float64."""
    logs = np.array([[math.log1p(-4e-12), math.log(2e-12), math.log(1e-12)]])
    indices, student = np.array([[4, 0, 2]]), np.array([[-1.0, -46.0, -2.0, -47.5, 1.0, -46.5]])
    loss = am.AMiD(am.KL(), order=order, alpha=-1.0, lam=0.25)
    value, grad = loss.value_and_grad(student, am.TopK(logs, indices))
    row = (exact(student[0]), tuple(logs[0]), tuple(indices[0]))
    whole, slopes = truth(loss.divergence, order, *row, -1.0, 0.25)
    assert oracle.error(value, whole.value) <= 1e-15 * abs(whole.value) + 1e-30
    for got, wanted in zip(grad[0], slopes, strict=True):
        assert abs(got - wanted) <= 1e-13 * abs(wanted), f"{got}, wanted {float(wanted)}"


def test_a_mass_rounded_above_one_leaves_no_tail(library):
    """And the list is normalised."""
    logs = np.log([[0.5, 0.25, 0.25]] * 3) + 1e-5
    value = am.AMiD(am.KL(), lam=0.0)(
        library.array(np.zeros((3, V))), top(library, logs, [[0, 3, 4]] * 3)
    )
    wanted = math.log(V) - 1.5 * math.log(2.0)
    np.testing.assert_allclose(library.numpy(value), wanted, rtol=8 * library.eps)


# ---------------------------------------------------------------------------------------------
# Rows


def test_masked_positions_are_not_read(any_library):
    """Whatever they hold: no error, no NaN, zero gradient."""
    student, logs, indices = lists()
    loss = am.AMiD(order="rq", alpha=3.0)
    keep = np.array([True, False, True])
    mask = any_library.array(keep, "bool")
    clean = (any_library.array(student), top(any_library, logs, indices))
    wanted = [any_library.numpy(a) for a in loss.value_and_grad(*clean, mask)]
    unmasked = any_library.numpy(loss(*clean, reduction="none"))
    student[1], logs[1], indices[1] = NAN, 7.0, 99
    dirty = (any_library.array(student), top(any_library, logs, indices))
    got = [any_library.numpy(a) for a in loss.value_and_grad(*dirty, mask)]
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.all(got[1][1] == 0.0)
    each = any_library.numpy(loss(*dirty, mask, "none"))
    np.testing.assert_allclose(each, unmasked * keep, rtol=4 * any_library.eps)
    np.testing.assert_allclose(each.sum() / 2, got[0], rtol=4 * any_library.eps)
    nothing, grad = loss.value_and_grad(*dirty, any_library.array([False] * 3, "bool"))
    assert any_library.numpy(nothing) == 0.0
    assert np.all(any_library.numpy(grad) == 0.0)


def test_reductions_and_denominators(any_library):
    student, teacher = given(any_library)
    loss = am.AMiD(order="qr", lam=0.5)
    each, grads = (any_library.numpy(a) for a in loss.value_and_grad(
        student, teacher, reduction="none"
    ))  # fmt: skip
    for reduction, denominator, scale in (
        ("mean", None, 1 / 3),
        ("sum", None, 1.0),
        ("mean", 8, 1 / 8),
        ("mean", any_library.array(8.0), 1 / 8),
    ):
        value, grad = loss.value_and_grad(student, teacher, None, reduction, denominator)
        rtol = 8 * any_library.eps
        np.testing.assert_allclose(any_library.numpy(value), each.sum() * scale, rtol=rtol)
        np.testing.assert_allclose(any_library.numpy(grad), grads * scale, rtol=rtol, atol=rtol)
        called = loss(student, teacher, None, reduction, denominator)
        np.testing.assert_allclose(any_library.numpy(called), each.sum() * scale, rtol=rtol)


def test_padding_is_no_token(any_library):
    """Wherever it is, whatever stands beside it."""
    student, logs, indices = (np.repeat(a[:1], 3, axis=0) for a in lists())
    loss = am.AMiD(order="pr", lam=0.25)
    short = am.TopK(logs[:1, : K - 1], indices[:1, : K - 1])
    wanted = loss.value_and_grad(student[:1], short)
    for row in range(3):
        for a, padding in ((logs, [NAN, 3.0, -INF][row]), (indices, -1)):
            a[row] = np.insert(a[row, : K - 1], row, padding)
    value, grad = loss.value_and_grad(
        any_library.array(student), top(any_library, logs, indices), reduction="none"
    )
    eps = any_library.eps
    np.testing.assert_allclose(any_library.numpy(value), [wanted[0]] * 3, rtol=32 * eps)
    np.testing.assert_allclose(any_library.numpy(grad), [wanted[1][0]] * 3, atol=32 * eps)


def test_an_empty_list_says_nothing(any_library):
    student, logs, indices = lists()
    nothing = top(any_library, logs, np.full_like(indices, -1))
    value, grad = am.AMiD(order="rq").value_and_grad(any_library.array(student), nothing)
    assert any_library.numpy(value) == 0.0
    assert np.all(any_library.numpy(grad) == 0.0)


def test_logits_of_minus_infinity(any_library):
    """Tokens that the student lacks: within its tail, listed, and the whole tail."""
    student = np.zeros((3, V))
    student[0, 0] = student[1, 1] = student[2, 0] = student[2, 2] = student[2, 5] = -INF
    p = np.array([[0.5, 0.25, 0.125]] * 3)
    teacher = top(any_library, np.log(p), [[1, 3, 4]] * 3)
    loss = am.AMiD(am.KL(), order="pr", lam=0.0)
    student = any_library.array(student)
    value, grad = loss.value_and_grad(student, teacher, reduction="none")
    value, grad = any_library.numpy(value), any_library.numpy(grad)
    outcomes = np.array([0.2, 0.2, 0.2, 0.4]), np.array([0.5, 0.25, 0.125, 0.125])
    wanted = np.sum(outcomes[1] * np.log(outcomes[1] / outcomes[0]))
    np.testing.assert_allclose(value, [wanted, INF, INF], rtol=8 * any_library.eps)
    wanted = [0.0, 0.2 - 0.5, 0.2 - 0.0625, 0.2 - 0.25, 0.2 - 0.125, 0.2 - 0.0625]
    np.testing.assert_allclose(grad[0], wanted, atol=4 * any_library.eps)
    # A tail that neither has takes no part.
    p[2] = 0.5, 0.25, 0.25
    teacher = top(any_library, np.log(p), [[1, 3, 4]] * 3)
    value, grad = loss.value_and_grad(student, teacher, reduction="none")
    wanted = math.log(3.0) - 1.5 * math.log(2.0)
    np.testing.assert_allclose(any_library.numpy(value)[2], wanted, rtol=1e-6)
    wanted = [0.0, 1 / 3 - 0.5, 0.0, 1 / 3 - 0.25, 1 / 3 - 0.25, 0.0]
    np.testing.assert_allclose(any_library.numpy(grad)[2], wanted, atol=4 * any_library.eps)


def test_rows_in_chunks(any_library, monkeypatch):
    student, logs, indices = lists()
    arrays = (any_library.array(student), top(any_library, logs, indices))
    mask = any_library.array([True, False, True], "bool")
    loss = am.AMiD(order="pr", alpha=any_library.array([-2.0, 0.0, 2.0]))
    wrt = ("student", "alpha")
    whole = loss.value_and_grad(*arrays, mask, wrt=wrt)
    monkeypatch.setattr(forms, "CPU_CHUNK", 2 * V)
    parts = loss.value_and_grad(*arrays, mask, wrt=wrt)
    for a, b in zip((whole[0], *whole[1]), (parts[0], *parts[1]), strict=True):
        a, b = any_library.numpy(a), any_library.numpy(b)
        np.testing.assert_allclose(b, a, rtol=8 * any_library.eps, atol=any_library.eps)


def test_knobs_are_those_of_the_k_plus_one_outcomes(any_library):
    student, logs, indices = lists()
    indices[2, 1], logs[2, 1] = next(i for i in range(V) if i not in indices[2]), -5.0
    rows = [bucketed(*row) for row in zip(map(exact, student), logs, indices, strict=True)]
    dense = [np.array(side, dtype=object).astype(float) for side in zip(*rows, strict=True)]
    alpha, lam = np.array([-0.5, 1.5, 2.0]), np.array(0.25)
    wrt = ("alpha", "lam")
    _, wanted = am.AMiD(order="qr", alpha=alpha, lam=lam).value_and_grad(*dense, wrt=wrt)
    loss = am.AMiD(order="qr", alpha=any_library.array(alpha), lam=any_library.array(lam))
    arrays = (any_library.array(student), top(any_library, logs, indices))
    _, got = loss.value_and_grad(*arrays, wrt=wrt)
    for a, b in zip(got, wanted, strict=True):
        a = any_library.numpy(a)
        assert a.shape == b.shape
        # What rounding does to logits shows where student and teacher nearly agree.
        np.testing.assert_allclose(a, b, rtol=1e3 * any_library.eps, atol=any_library.eps)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"])
def test_any_integers(any_library, dtype):
    student, logs, indices = lists()
    indices[2], logs[2] = indices[1], logs[1]
    loss = am.AMiD()
    wanted = loss(any_library.array(student), top(any_library, logs, indices))
    if any_library.name == "jax" and dtype == "int64":
        pytest.skip("JAX has them with float64 only")
    listed = am.TopK(any_library.array(logs), any_library.array(indices, dtype))
    got = loss(any_library.array(student), listed)
    assert any_library.numpy(got) == any_library.numpy(wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    student, logs, indices = (torch.tensor(a) for a in lists())
    student, logs = student.to(dtype), logs.to(dtype)
    loss = am.AMiD(order="rq", alpha=3.0)
    value, grad = loss.value_and_grad(student, am.TopK(logs, indices))
    wanted, wide = loss.value_and_grad(student.float(), am.TopK(logs.float(), indices))
    assert value.dtype == torch.float32
    assert grad.dtype == dtype
    assert value == wanted
    assert torch.equal(grad, wide.to(dtype))


# ---------------------------------------------------------------------------------------------
# Differentiation


def close(got, wanted, eps):
    got, wanted = np.asarray(got), np.asarray(wanted)
    np.testing.assert_allclose(got, wanted, rtol=16 * eps, atol=16 * eps * np.abs(wanted).max())


LOSS = am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=0.0, lam=0.25, temperature=2.0)
SUM = 0.5 * LOSS + am.AMiD(order="pr", temperature=2.0)


def traced(library, f):
    """Compiled as a whole where compiling operations one by one takes seconds."""
    return jax.jit(f) if library.name == "jax" else f


def by_numpy(loss, mask=None, reduction="mean", **wrt):
    """Value and gradient in float64."""
    student, logs, indices = lists()
    return loss.value_and_grad(student, am.TopK(logs, indices), mask, reduction, **wrt)


def test_libraries_differentiate_the_closed_form(autodiff):
    student, teacher = given(autodiff)
    keep, factors = np.array([True, True, False]), np.array([1.0, -2.0, 3.0])
    mask = autodiff.array(keep, "bool")
    value, each = by_numpy(SUM, keep, "none")
    f = traced(autodiff, lambda s: SUM(s, teacher, mask, "none"))
    got, (grad,) = autodiff.derivatives(f, student, cotangent=factors)
    close(got, value, autodiff.eps)
    close(grad, each * factors[:, None], autodiff.eps)
    if autodiff.name == "torch":  # whose sum over positions is differentiated as one
        value, wanted = by_numpy(SUM, keep)
        got, (grad,) = autodiff.derivatives(lambda s: SUM(s, teacher, mask), student)
        close(got, value, autodiff.eps)
        close(grad, wanted, autodiff.eps)


def test_array_knobs_are_differentiated(autodiff):
    student, teacher = given(autodiff)
    knobs = np.array([-0.5, 1.0, 2.0]), np.array(0.25)
    loss = am.AMiD(alpha=knobs[0], lam=knobs[1])
    _, wanted = by_numpy(loss, wrt=("student", "alpha", "lam"))
    f = traced(autodiff, lambda s, a, b: am.AMiD(alpha=a, lam=b)(s, teacher))
    _, grads = autodiff.derivatives(f, student, *map(autodiff.array, knobs))
    for a, b in zip(grads, wanted, strict=True):
        close(a, b, autodiff.eps)


class TestTorch:
    def lists(self):
        student, logs, indices = (torch.tensor(a) for a in lists())
        return student, am.TopK(logs, indices)

    def test_gradcheck(self):
        student, teacher = self.lists()
        student.requires_grad_()
        assert torch.autograd.gradcheck(lambda s: SUM(s, teacher), student)

    def test_second_derivatives_by_the_reference(self):
        student, teacher = self.lists()
        student.requires_grad_()

        def f(s):
            return LOSS(s, teacher, backend="reference")

        assert torch.autograd.gradcheck(f, student)
        assert torch.autograd.gradgradcheck(f, student)

    def test_func(self):
        student, teacher = self.lists()
        value, each = LOSS.value_and_grad(student, teacher, reduction="none")
        eps = torch.finfo(student.dtype).eps
        grads = torch.func.vmap(torch.func.grad(LOSS))(student, teacher)
        close(grads, each, eps)
        close(torch.func.vmap(LOSS)(student, teacher), value, eps)
        _, slope = torch.func.jvp(lambda s: LOSS(s, teacher), (student,), (student,))
        close(slope, (each * student).sum() / 3, eps)

    def test_compile_without_a_graph_break(self):
        student, teacher = self.lists()
        mask = torch.tensor([True, False, True])
        compiled = torch.compile(lambda s, t: SUM(s, t, mask), fullgraph=True, backend="aot_eager")
        leaf = student.clone().requires_grad_()
        value = compiled(leaf, teacher)
        value.backward()
        wanted, grad = SUM.value_and_grad(student, teacher, mask)
        eps = torch.finfo(student.dtype).eps
        close(value.detach(), wanted, eps)
        close(leaf.grad, grad, eps)

    def test_a_gradient_of_the_teacher_is_refused(self):
        student, teacher = self.lists()
        logs = teacher.log_probs.clone().requires_grad_()
        with pytest.raises(ValueError, match=r"teacher\.log_probs are constant.*detach"):
            LOSS(student, am.TopK(logs, teacher.indices))
        with torch.no_grad():
            LOSS(student, am.TopK(logs, teacher.indices))

    def test_what_cannot_be_looked_at_is_nan(self):
        student, (logs, indices) = self.lists()
        logs, indices = logs[:2].repeat(2, 1), indices[:2].repeat(2, 1)
        student = student[:2].repeat(2, 1)
        indices[0, 0] = V
        indices[1, 0] = indices[1, 1]
        logs[2, 0] = 1.0
        values = torch.func.vmap(LOSS)(student, am.TopK(logs, indices))
        assert values.isnan().tolist() == [True, True, True, False]
        grads = torch.func.vmap(torch.func.grad(LOSS))(student, am.TopK(logs, indices))
        assert grads.isnan().any(-1).tolist() == [True, True, True, False]


class TestJax:
    eps = float(np.finfo("float32").eps)

    def lists(self):
        student, logs, indices = lists()
        as_float = [jnp.asarray(a, dtype="float32") for a in (student, logs)]
        return as_float[0], am.TopK(as_float[1], jnp.asarray(indices, dtype="int32"))

    def test_jit_and_grad(self):
        student, teacher = self.lists()
        mask = jnp.asarray([True, False, True])
        for loss, f in (
            (SUM, jax.value_and_grad(SUM)),
            (am.AMiD(), am.AMiD().value_and_grad),
        ):
            for got, wanted in zip(
                jax.jit(f)(student, teacher, mask), by_numpy(loss, np.asarray(mask)), strict=True
            ):
                close(got, wanted, self.eps)

    def test_vmap_and_forward_mode(self):
        student, teacher = self.lists()
        _, each = by_numpy(LOSS, reduction="none")
        close(jax.jit(jax.vmap(jax.grad(LOSS)))(student, teacher), each, self.eps)
        along = jax.jit(lambda s: jax.jvp(lambda x: LOSS(x, teacher), (s,), (s,)))
        close(along(student)[1], (each * lists()[0]).sum() / 3, self.eps)

    def test_a_gradient_of_the_teacher_is_refused(self):
        student, teacher = self.lists()

        def f(logs):
            return LOSS(student, am.TopK(logs, teacher.indices))

        with pytest.raises(ValueError, match="stop_gradient"):
            jax.grad(f)(teacher.log_probs)
        jax.grad(lambda logs: f(jax.lax.stop_gradient(logs)))(teacher.log_probs)

    def test_what_cannot_be_looked_at_is_nan(self):
        student, (logs, indices) = self.lists()
        indices = indices.at[0, 0].set(V).at[1, 0].set(indices[1, 1])
        values = jax.jit(lambda *a: LOSS(*a, reduction="none"))(student, am.TopK(logs, indices))
        assert jnp.isnan(values).tolist() == [True, True, False]


# ---------------------------------------------------------------------------------------------
# What a list loses


def random_rows(seed=7, rows=500):
    return np.random.default_rng(seed).normal(scale=2.0, size=(2, rows, V))


@by_order
@pytest.mark.parametrize("divergence", [am.KL(), am.SquaredHellinger(), am.Renyi(2.0)], ids=str)
def test_a_list_bounds_the_loss_from_below_for_arithmetic_mixtures(divergence, order):
    student, logits = random_rows()
    loss = am.AMiD(divergence, order=order, alpha=-1.0, lam=0.25)
    whole = loss(student, logits, reduction="none")
    before = np.zeros(len(whole))
    for k in range(1, V + 1):
        value = loss(student, am.top_k(logits, k), reduction="none")
        # A teacher's small tail is a difference to 1, and has its rounding.
        assert np.all(before <= value * (1 + 1e-9) + 1e-10)
        assert np.all(value <= whole * (1 + 1e-9) + 1e-10)
        before = value


@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.5, 1.0, 3.0])
def test_a_list_bounds_the_spread_from_below(alpha):
    student, logits = random_rows()
    loss = am.AlphaJensenShannon(alpha, lam=0.25)
    value = loss(student, am.top_k(logits, 2), reduction="none")
    assert np.all(value <= loss(student, logits, reduction="none"))


def test_no_bound_at_other_mixtures():
    """The assistant of the bucketed is not the bucketed assistant."""
    with np.errstate(divide="ignore"):
        p, q = np.log([[0.5, 0.5, 0.0]]), np.log([[0.25, 0.25, 0.5]])
    loss = am.AMiD(am.KL(), order="pr", alpha=1.0, lam=0.5)
    assert loss(q, p) == pytest.approx(0.0, abs=1e-15)
    assert loss(q, am.TopK(p[:, :1], np.array([[0]]))) > 0.01


@by_order
@pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.0])
def test_a_truncated_teacher_loses_nothing(order, alpha):
    """Its probabilities here add up to 1 without rounding."""
    student, _ = random_rows(rows=20)
    with np.errstate(divide="ignore"):
        logits = np.log(np.array([[0.0, 0.5, 0.0, 0.25, 0.0, 0.25]] * 20))
    for divergence in (am.KL(), am.SquaredHellinger(), am.Renyi(0.5)):
        loss = am.AMiD(divergence, order=order, alpha=alpha, lam=0.25)
        np.testing.assert_allclose(
            loss(student, am.top_k(logits, 3), reduction="none"),
            loss(student, logits, reduction="none"),
            rtol=1e-11,
        )


# ---------------------------------------------------------------------------------------------
# Errors


STUDENT, TOP = np.zeros((2, 5)), am.TopK(np.log(np.full((2, 2), 0.25)), np.array([[0, 1], [2, 4]]))


@pytest.mark.parametrize(
    ("teacher", "error", "words"),
    [
        (TOP.log_probs, ValueError, ["student and teacher", "(2, 5) and (2, 2)"]),
        (tuple(TOP), TypeError, ["teacher must be an array", "tuple"]),
        (am.TopK(0.5, TOP.indices), TypeError, ["teacher.log_probs", "array", "0.5"]),
        (am.TopK(*map(torch.tensor, TOP)), TypeError, ["student and teacher.log_probs"]),
        (am.TopK(TOP.indices, TOP.indices), TypeError, ["teacher.log_probs", "int64"]),
        (am.TopK(TOP.log_probs, TOP.log_probs), TypeError, ["teacher.indices", "float64"]),
        (am.TopK(TOP.log_probs, TOP.indices[:, :1]), ValueError, ["same shape", "(2, 1)"]),
        (am.TopK(*(a[:1] for a in TOP)), ValueError, ["positions", "(1, 2)", "(2, 5)"]),
        (am.TopK(*(a[:, :0] for a in TOP)), ValueError, ["k >= 1", "(2, 0)"]),
        (am.TopK(*(a[0] for a in TOP)), ValueError, ["positions", "(2,)", "(2, 5)"]),
        (TOP._replace(indices=TOP.indices + 1), ValueError, ["[0, 5)", "-1", "first is 5.0"]),
        (TOP._replace(indices=TOP.indices - 2), ValueError, ["[0, 5)", "1 of them", "-2.0"]),
        (TOP._replace(indices=0 * TOP.indices), ValueError, ["every position", "different"]),
        (TOP._replace(log_probs=TOP.log_probs + 1), ValueError, ["at most 1", "1.359"]),
        (TOP._replace(log_probs=NAN * TOP.log_probs), ValueError, ["numbers or -inf", "4 of them"]),
    ],
)
def test_wrong_teachers(teacher, error, words):
    for call in (am.AMiD(), am.AMiD().value_and_grad):
        with pytest.raises(error) as raised:
            call(STUDENT, teacher)
        for word in words:
            assert word in str(raised.value)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: am.AMiD()([[0.0]], TOP), TypeError, ["student must", "list"]),
        (lambda: am.AMiD()(STUDENT, TOP, np.ones(3) > 0), ValueError, ["mask", "(3,)"]),
        (lambda: am.AMiD()(STUDENT, TOP, None, "avg"), ValueError, ["reduction", "'avg'"]),
        (
            lambda: am.AMiD()(STUDENT, TOP, backend="compiled"),
            ValueError,
            ["backend", "whole rows"],
        ),
        (
            lambda: am.AMiD().value_and_grad(STUDENT, TOP, wrt="teacher"),
            ValueError,
            ["wrt must be one of 'student', got 'teacher'"],
        ),
        (
            lambda: (am.AMiD(temperature=2.0) + am.AMiD())(STUDENT, TOP),
            ValueError,
            ["one temperature", "1.0, 2.0", "each part"],
        ),
    ],
)
def test_wrong_arguments(call, error, words):
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value)
