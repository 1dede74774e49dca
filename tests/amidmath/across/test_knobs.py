"""α, λ and the weights as arrays: values and derivatives against the definitions."""

from __future__ import annotations

import itertools
import math
from functools import partial

import definitions
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch
from definitions import log_softmax
from differences import at_200_digits, log_r_tilde, loss_and_slopes, slope

import amidmath as am

INF = math.inf
ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (-INF, -50.0, -5.0, -1.0, 0.0, 1 - 1e-9, 1.0, 3.0, 50.0, INF)
LAMS = (0.0, 1e-6, 0.3, 0.999, 1.0)
DIVERGENCES = {"KL": am.KL(), "AB(.2,.7)": am.AlphaBeta(0.2, 0.7)}
WRT = ("student", "teacher", "alpha", "lam")

by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
by_order = pytest.mark.parametrize("order", ORDERS)


def tokens(dtype):
    """Logits (10, 5, 3), α (10, 1) and λ (5,): every α with every λ, on rows of their own."""
    rng = np.random.default_rng(17)
    student, teacher = rng.normal(size=(2, len(ALPHAS), len(LAMS), 3))
    near = rng.random((len(ALPHAS), len(LAMS))) < 0.25
    teacher[near] = student[near] + 1e-3 * teacher[near]
    alpha, lam = np.array(ALPHAS)[:, None], np.array(LAMS)
    return tuple(a.astype(dtype) for a in (student, teacher, alpha, lam))


def expected(divergence, order, student, teacher, alpha, lam, oracle):
    """By position: values, gradients by what WRT names, terms, moved and span."""
    shape = student.shape[:-1]
    alpha, lam = np.broadcast_to(alpha, shape), np.broadcast_to(lam, shape)
    return {
        where: loss_and_slopes(
            divergence,
            order,
            (
                *oracle.exact(student[where]),
                *oracle.exact(teacher[where]),
                oracle.exact(alpha[where]),
                oracle.exact(lam[where]),
            ),
        )
        for where in np.ndindex(shape)
    }


@by_order
@by_divergence
def test_value_and_every_gradient(library, oracle, divergence, order):
    """16 eps of the largest entry, and what rounding forces.

    A power pᵏ of a number that is known by its logarithm is known to eps·|k log p|; a derivative
    by α or λ is a sum of terms that are at most ``terms·moved``.
    """
    arrays = tokens(library.dtype)
    student, teacher, alpha, lam = (library.array(a) for a in arrays)
    shape = arrays[0].shape[:-1]
    # Knobs of the full shape: a gradient a position.
    full = [library.array(np.broadcast_to(a, shape)) for a in arrays[2:]]
    loss = am.AMiD(divergence, order=order, alpha=full[0], lam=full[1])
    value, grads = loss.value_and_grad(student, teacher, reduction="none", wrt=WRT)
    value, grads = library.numpy(value), [library.numpy(g) for g in grads]
    assert {str(a.dtype) for a in (value, *grads)} == {library.dtype}
    assert [g.shape for g in grads] == [student.shape, teacher.shape, shape, shape]
    broadcast = am.AMiD(divergence, order=order, alpha=alpha, lam=lam)
    np.testing.assert_array_equal(
        library.numpy(broadcast(student, teacher, reduction="none")), value
    )
    failures = []
    largest = float(np.finfo(library.dtype).max)
    for where, wanted in expected(divergence, order, *arrays, oracle).items():
        wanted_value, slopes, terms, moved, span = wanted
        a, lam = ALPHAS[where[0]], LAMS[where[1]]
        exponent = min(abs(1 - a) / 2, 26.0) if math.isfinite(a) else 0.0
        rounding = 16 + exponent * float(span)
        bound = library.eps * (16 + float(span)) * float(abs(wanted_value)) + library.eps * float(
            terms
        )
        off = float(abs(mpmath.mpf(float(value[where])) - wanted_value))
        if not off <= bound + library.tiny:
            failures.append(f"α={a}, λ={lam}: value off by {off / library.eps} eps")
        for name, got, part, scale in (
            ("student", grads[0][where], slopes[:3], terms),
            ("teacher", grads[1][where], slopes[3:6], terms),
            ("alpha", grads[2][where], slopes[6], terms * moved[0]),
            ("lam", grads[3][where], slopes[7], terms * moved[1]),
        ):
            part = np.array(part, dtype=object)
            if max(abs(v) for v in part.flat) > largest / 8 or scale > largest / 8:
                continue
            scale = max(float(scale), *(float(abs(v)) for v in part.flat))
            off = oracle.error(got, part).max()
            if not off <= library.eps * rounding * scale + library.tiny:
                failures.append(
                    f"α={a}, λ={lam}, {name}: off by {off / library.eps / scale} eps, "
                    f"got {got}, wanted {oracle.floats(part)}"
                )
    assert not failures, "\n".join(failures)


# ---------------------------------------------------------------------------------------------
# Shapes, masks, reductions


SHAPES = [((), (2,)), ((2, 1), (2, 2))]


def batch(library, alpha_shape, lam_shape):
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(2, 2, 2, 4))
    alpha = rng.choice([-5.0, -1.0, 0.5, 1.0, 3.0], size=alpha_shape)
    lam = rng.choice([0.125, 0.25, 0.75], size=lam_shape)
    return tuple(library.array(a) for a in (student, teacher, alpha, lam))


def summed_back(grad, shape):
    """The gradient of what was broadcast: the sum over the positions it went to."""
    lead = tuple(range(grad.ndim - len(shape)))
    grad = grad.sum(axis=lead)
    ones = tuple(i for i, size in enumerate(shape) if size == 1)
    return grad.sum(axis=ones, keepdims=True)


def test_a_number_for_every_position_is_that_number(any_library):
    student, teacher, alpha, lam = batch(any_library, (2, 1), (1, 2))
    loss = am.AMiD(order="rq", alpha=alpha, lam=lam)
    value, grads = loss.value_and_grad(student, teacher, reduction="none", wrt=WRT[:2])
    alphas, lams = (np.broadcast_to(any_library.numpy(a), (2, 2)) for a in (alpha, lam))
    rtol = 64 * any_library.eps
    for i, j in np.ndindex(2, 2):
        one = am.AMiD(order="rq", alpha=float(alphas[i, j]), lam=float(lams[i, j]))
        wanted, wanted_grads = one.value_and_grad(student, teacher, reduction="none", wrt=WRT[:2])
        for got, want in zip((value, *grads), (wanted, *wanted_grads), strict=True):
            got, want = any_library.numpy(got)[i, j], any_library.numpy(want)[i, j]
            np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_masks_and_reductions(any_library, shapes, masked):
    """Knobs are shared by the positions kept, and by no others."""
    student, teacher, alpha, lam = batch(any_library, *shapes)
    keep = np.array([[1, 0], [1, 1]], bool) if masked else np.ones((2, 2), bool)
    mask = any_library.array(keep, "bool") if masked else None
    full = [
        any_library.array(np.broadcast_to(any_library.numpy(a), (2, 2)).copy())
        for a in (alpha, lam)
    ]
    each = am.AMiD(order="rq", alpha=full[0], lam=full[1])
    values, grads = each.value_and_grad(student, teacher, reduction="none", wrt=WRT)
    values, *grads = (any_library.numpy(a) for a in (values, *grads))
    loss = am.AMiD(order="rq", alpha=alpha, lam=lam)
    cases = [
        ("sum", None, 1.0),
        ("mean", None, float(keep.sum())),
        ("mean", 7.0, 7.0),
        ("mean", any_library.array(7.0), 7.0),
        ("none", None, 1.0),
    ]
    for reduction, denominator, divisor in cases:
        value, got = loss.value_and_grad(student, teacher, mask, reduction, denominator, wrt=WRT)
        total = np.where(keep, values, 0.0)
        total = total if reduction == "none" else total.sum() / divisor
        np.testing.assert_allclose(any_library.numpy(value), total, rtol=16 * any_library.eps)
        called = loss(student, teacher, mask, reduction, denominator)
        np.testing.assert_array_equal(any_library.numpy(called), any_library.numpy(value))
        for name, grad, whole in zip(WRT, got, grads, strict=True):
            kept = np.where(keep if whole.ndim == 2 else keep[..., None], whole, 0.0) / divisor
            operand = {"alpha": alpha, "lam": lam}.get(name, student)
            wanted = summed_back(kept, tuple(operand.shape))
            assert tuple(grad.shape) == tuple(operand.shape), name
            assert grad.dtype == operand.dtype
            np.testing.assert_allclose(
                any_library.numpy(grad),
                wanted,
                rtol=16 * any_library.eps,
                atol=16 * any_library.eps * np.abs(kept).max(),
                err_msg=f"{name}, {reduction}",
            )


def test_what_is_masked_is_not_read(any_library):
    student, teacher, alpha, lam = batch(any_library, (2, 2), (2, 2))
    keep = np.array([[1, 0], [1, 1]], bool)
    spoiled = [
        any_library.array(np.where(k, any_library.numpy(a), np.nan))
        for a, k in ((student, keep[..., None]), (teacher, keep[..., None]))
    ]
    # An α at which every power overflows; a NaN would be refused.
    wild = any_library.array(np.where(keep, any_library.numpy(alpha), -1e30))
    mask = any_library.array(keep, "bool")
    wanted, wanted_grads = am.AMiD(alpha=alpha, lam=lam).value_and_grad(
        student, teacher, mask, wrt=WRT
    )
    value, grads = am.AMiD(alpha=wild, lam=lam).value_and_grad(*spoiled, mask, wrt=WRT)
    for got, want in zip((value, *grads), (wanted, *wanted_grads), strict=True):
        np.testing.assert_array_equal(any_library.numpy(got), any_library.numpy(want))


def test_one_knob_alone(any_library):
    """α an array and λ a number, and the other way; each can be asked for by its name alone."""
    student, teacher, alpha, lam = batch(any_library, (2,), (2, 1))
    both = am.AMiD(alpha=alpha, lam=lam)
    for knob, other in (("alpha", "lam"), ("lam", "alpha")):
        number = {"alpha": 0.5, "lam": 0.25}[other]
        array = {"alpha": alpha, "lam": lam}[knob]
        loss = am.AMiD(**{knob: array, other: number})
        assert list(loss.knobs) == [knob]
        spread = am.AMiD(**{knob: array, other: any_library.array(number)})
        wanted, wanted_grad = spread.value_and_grad(student, teacher, wrt=knob)
        value, grad = loss.value_and_grad(student, teacher, wrt=knob)
        assert tuple(grad.shape) == tuple(array.shape)
        for got, want in ((value, wanted), (grad, wanted_grad)):
            np.testing.assert_allclose(
                any_library.numpy(got), any_library.numpy(want), rtol=64 * any_library.eps
            )
        with pytest.raises(ValueError, match="wrt"):
            loss.value_and_grad(student, teacher, wrt=other)
    assert list(both.knobs) == ["alpha", "lam"]


def test_the_order_of_wrt_is_the_callers(any_library):
    student, teacher, alpha, lam = batch(any_library, (2,), (2, 1))
    loss = am.AMiD(alpha=alpha, lam=lam)
    _, forwards = loss.value_and_grad(student, teacher, wrt=WRT)
    _, backwards = loss.value_and_grad(student, teacher, wrt=WRT[::-1])
    for one, other in zip(forwards, backwards[::-1], strict=True):
        np.testing.assert_array_equal(any_library.numpy(one), any_library.numpy(other))


def test_a_detached_assistant_has_knobs_without_a_gradient(any_library):
    """r is held constant, and α and λ act through r alone (docs: gradients, G7)."""
    student, teacher, alpha, lam = batch(any_library, (2,), (2, 1))
    loss = am.AMiD(order="rq", alpha=alpha, lam=lam, detach_assistant=True)
    _, (by_alpha, by_lam) = loss.value_and_grad(student, teacher, wrt=("alpha", "lam"))
    np.testing.assert_array_equal(any_library.numpy(by_alpha), 0.0)
    np.testing.assert_array_equal(any_library.numpy(by_lam), 0.0)


def test_detached_assistant_teacher_gradient_is_zero(any_library):
    student, teacher, alpha, lam = batch(any_library, (2,), (2, 1))
    for knobs in ({"alpha": alpha, "lam": lam}, {"alpha": 0.5, "lam": 0.25}):
        loss = am.AMiD(order="qr", **knobs, detach_assistant=True)
        _, grad = loss.value_and_grad(student, teacher, wrt="teacher")
        np.testing.assert_array_equal(any_library.numpy(grad), 0.0)


def test_knobs_in_chunks(any_library, monkeypatch):
    from amidmath.rows import forms

    student, teacher, alpha, lam = batch(any_library, (1, 2), (2, 1))
    mask = any_library.array([[1, 0], [1, 1]], "bool")
    loss = am.AMiD(order="qr", alpha=alpha, lam=lam)
    wanted, wanted_grads = loss.value_and_grad(student, teacher, mask, wrt=WRT)
    for constant in ("CPU_CHUNK", "ACCELERATOR_CHUNK"):
        monkeypatch.setattr(forms, constant, 9)  # two rows
    value, grads = loss.value_and_grad(student, teacher, mask, wrt=WRT)
    for got, want in zip((value, *grads), (wanted, *wanted_grads), strict=True):
        want = any_library.numpy(want)
        atol = 8 * any_library.eps * np.abs(want).max()
        np.testing.assert_allclose(any_library.numpy(got), want, rtol=0, atol=atol)


@pytest.mark.parametrize("logits", ["float16", "bfloat16"])
@pytest.mark.parametrize("knob", ["float16", "float32", "float64"])
def test_dtypes_of_knobs(logits, knob):
    """The logits decide what is computed; each gradient has its own argument's dtype."""
    rng = np.random.default_rng(0)
    student, teacher = (torch.tensor(rng.normal(size=(2, 4))).to(getattr(torch, logits)),) * 2
    teacher = -teacher
    alpha = torch.tensor([0.5, 3.0], dtype=getattr(torch, knob))
    value, grads = am.AMiD(alpha=alpha).value_and_grad(student, teacher, wrt=("student", "alpha"))
    assert value.dtype == torch.float32
    assert [g.dtype for g in grads] == [student.dtype, alpha.dtype]
    leaf = alpha.clone().requires_grad_()
    am.AMiD(alpha=leaf)(student, teacher).backward()
    assert leaf.grad.dtype == alpha.dtype
    torch.testing.assert_close(leaf.grad, grads[1])


# ---------------------------------------------------------------------------------------------
# The libraries' own differentiation


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_autodiff_through_arrays(any_autodiff, shapes):
    """What torch and JAX make of it is value_and_grad's, with a factor for every position."""
    arrays = batch(any_autodiff, *shapes)
    keep = any_autodiff.array([[1, 0], [1, 1]], "bool")
    factors = np.array([[1.0, -2.0], [3.0, 0.5]])

    def f(student, teacher, alpha, lam):
        return am.AMiD(order="rq", alpha=alpha, lam=lam)(student, teacher, keep, reduction="none")

    value, grads = any_autodiff.derivatives(any_autodiff.compiled(f), *arrays, cotangent=factors)
    full = [
        any_autodiff.array(np.broadcast_to(any_autodiff.numpy(a), (2, 2)).copy())
        for a in arrays[2:]
    ]
    loss = am.AMiD(order="rq", alpha=full[0], lam=full[1])
    wanted, each = loss.value_and_grad(*arrays[:2], keep, "none", wrt=WRT)
    np.testing.assert_allclose(value, any_autodiff.numpy(wanted), rtol=8 * any_autodiff.eps)
    for grad, whole, array in zip(grads, each, arrays, strict=True):
        whole = any_autodiff.numpy(whole)
        scaled = whole * (factors if whole.ndim == 2 else factors[..., None])
        want = summed_back(scaled, tuple(array.shape))
        assert grad.dtype == any_autodiff.dtype
        atol = 16 * any_autodiff.eps * np.abs(scaled).max()
        np.testing.assert_allclose(grad, want, rtol=0, atol=atol)


@by_order
def test_derivatives_by_the_knobs_at_zeros(any_autodiff, order):
    """Entries at -inf, on either side or both, make no NaN where the loss is finite."""
    student = np.array([[0.5, -INF, 1.0, -INF], [0.0, 1.0, -1.0, 0.5]] * len(ALPHAS))
    teacher = np.array([[1.0, 0.0, -0.5, -INF], [0.5, 0.0, 1.0, -INF]] * len(ALPHAS))
    alpha = np.repeat(ALPHAS, 2)

    def f(s, t, a, lam):
        return am.AMiD(order=order, alpha=a, lam=lam)(s, t, reduction="none")

    arrays = [any_autodiff.array(a) for a in (student, teacher, alpha, np.full(alpha.shape, 0.25))]
    value, grads = any_autodiff.derivatives(any_autodiff.compiled(f), *arrays)
    assert not np.any(np.isnan(value))
    finite = np.isfinite(value)
    assert np.any(finite)
    for name, grad in zip(WRT, grads, strict=True):
        bad = [a for a, ok, g in zip(alpha, finite, grad, strict=True) if ok and np.isnan(g).any()]
        assert not bad, f"{name} at α = {bad}"


class TestLearning:
    """α and λ as parameters of a training step."""

    def test_a_learnable_alpha_and_lam_in_torch(self):
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 16, 8, generator=generator)
        alpha = torch.nn.Parameter(torch.tensor(0.5))
        logit = torch.nn.Parameter(torch.tensor(0.0))
        optimiser = torch.optim.SGD([alpha, logit], lr=0.5)
        values = []
        for _ in range(8):
            optimiser.zero_grad()
            value = am.AMiD(order="qr", alpha=alpha, lam=torch.sigmoid(logit))(student, teacher)
            value.backward()
            optimiser.step()
            values.append(value.item())
        assert all(late < early for early, late in itertools.pairwise(values))
        assert float(alpha.detach()) != 0.5

    def test_gradcheck(self):
        rng = np.random.default_rng(0)
        arrays = [
            *rng.normal(size=(2, 3, 2, 4)),
            np.array([[-5.0, 1.0]]),
            np.array([[0.1], [0.5], [0.9]]),
        ]
        leaves = [torch.from_numpy(a).requires_grad_() for a in arrays]
        for order in ORDERS:
            assert torch.autograd.gradcheck(
                lambda s, t, a, lam, o=order: am.AMiD(order=o, alpha=a, lam=lam)(s, t), leaves
            )

    def test_torch_func_and_compile(self):
        rng = np.random.default_rng(0)
        student, teacher = (torch.from_numpy(a) for a in rng.normal(size=(2, 3, 4)))
        alpha = torch.tensor(0.5, dtype=torch.float64)

        divergence = am.KL()  # Dynamo cannot make one

        def f(alpha):
            return am.AMiD(divergence, alpha=alpha)(student, teacher)

        leaf = alpha.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(f(leaf), leaf)
        torch.testing.assert_close(torch.func.grad(f)(alpha), wanted)
        each = torch.func.vmap(torch.func.grad(f))(torch.stack([alpha, alpha + 1.0]))
        torch.testing.assert_close(each[0], wanted)
        compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
        leaf = alpha.clone().requires_grad_()
        compiled(leaf).backward()
        torch.testing.assert_close(leaf.grad, wanted)

    def test_a_learnable_alpha_in_jax(self):
        rng = np.random.default_rng(0)
        student, teacher = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 16, 8)))

        @jax.jit
        def loss(params):
            lam = jax.nn.sigmoid(params["logit"])
            return am.AMiD(order="qr", alpha=params["alpha"], lam=lam)(student, teacher)

        step = jax.jit(jax.value_and_grad(loss))
        params = {"alpha": jnp.asarray(0.5), "logit": jnp.asarray(0.0)}
        values = []
        for _ in range(8):
            value, grads = step(params)
            params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
            values.append(float(value))
        assert all(late < early for early, late in itertools.pairwise(values))
        h = 1e-2
        up, down = (float(loss({**params, "alpha": params["alpha"] + d})) for d in (h, -h))
        np.testing.assert_allclose(step(params)[1]["alpha"], (up - down) / (2 * h), rtol=2e-2)

    def test_forward_mode_and_vmap_in_jax(self):
        rng = np.random.default_rng(0)
        student, teacher = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 3, 4)))
        alphas = jnp.asarray([-1.0, 1.0, 3.0])

        @jax.jit
        def f(alpha, lam):
            return am.AMiD(alpha=alpha, lam=lam)(student, teacher)

        lam = jnp.asarray(0.25)
        by_alpha = jax.vmap(jax.grad(f), in_axes=(0, None))(alphas, lam)
        for got, alpha in zip(by_alpha, alphas, strict=True):
            _, wanted = jax.jvp(lambda a: f(a, lam), (alpha,), (jnp.asarray(1.0),))
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------------------------
# Mixtures and means


@at_200_digits
def mixture_and_slopes(log_p, log_q, alpha, lam, cotangent, normalize):
    """log r (or log r̃), the derivatives of Σ c log r, and the largest ∂log r̃/∂(α, λ)."""
    n = len(log_p)

    def unnormalised(point):
        return log_r_tilde(point[:n], point[n : 2 * n], *point[2 * n :])

    def logs(point):
        return log_softmax(unnormalised(point)) if normalize else unnormalised(point)

    def total(point):
        return mpmath.fsum(c * v for c, v in zip(cotangent, logs(point), strict=True))

    point = (*log_p, *log_q, alpha, lam)
    slopes = tuple(slope(total, point, i) for i in range(2 * n + 2))
    moved = [
        max(abs(slope(lambda v, j=j: unnormalised(v)[j], point, 2 * n + i)) for j in range(n))
        for i in (0, 1)
    ]
    return logs(point), slopes, moved


@pytest.mark.parametrize("normalize", [False, True], ids=["unnormalised", "normalised"])
def test_alpha_mixture(library, oracle, normalize):
    """Every α with every λ, values and (torch, JAX) derivatives by all four."""
    student, teacher, alpha, lam = tokens(library.dtype)
    logs = [
        (a - np.log(np.exp(a).sum(axis=-1, keepdims=True))).astype(library.dtype)
        for a in (teacher, student)
    ]
    cotangent = np.array([0.5, -1.0, 2.0])
    arrays = [
        *(library.array(a) for a in logs),
        *(library.array(np.broadcast_to(a, (10, 5)).copy()) for a in (alpha, lam)),
    ]

    def f(log_p, log_q, alpha, lam):
        return am.alpha_mixture(log_p, log_q, alpha=alpha, lam=lam, normalize=normalize)

    value, grads = library.numpy(f(*arrays)), None
    if library.differentiates:
        spread = np.broadcast_to(cotangent, value.shape).astype(library.dtype)
        again, grads = library.derivatives(f, *arrays, cotangent=spread)
        np.testing.assert_array_equal(again, value)
    small = [arrays[0], arrays[1], library.array(alpha), library.array(lam)]
    np.testing.assert_array_equal(library.numpy(f(*small)), value)
    failures = []
    for i, j in np.ndindex(10, 5):
        wanted, slopes, moved = mixture_and_slopes(
            oracle.exact(logs[0][i, j]),
            oracle.exact(logs[1][i, j]),
            oracle.exact(alpha[i, 0]),
            oracle.exact(lam[j]),
            oracle.exact(cotangent),
            normalize,
        )
        span = max(1.0, *(float(np.abs(a[i, j]).max()) for a in logs))
        units = (5 if library.name == "jax" else 2.5) * (2 if normalize else 1)
        off = oracle.error(value[i, j], wanted).max()
        if not off <= units * library.eps * span:
            failures.append(f"α={ALPHAS[i]}, λ={LAMS[j]}: off by {off / library.eps / span} eps")
        if grads is None:
            continue
        a = ALPHAS[i]
        exponent = min(abs(1 - a) / 2, 26.0) if math.isfinite(a) else 0.0
        for name, got, part, scale in (
            ("log p", grads[0][i, j], slopes[:3], 1.0),
            ("log q", grads[1][i, j], slopes[3:6], 1.0),
            ("alpha", grads[2][i, j], slopes[6], moved[0]),
            ("lam", grads[3][i, j], slopes[7], moved[1]),
        ):
            part = np.array(part, dtype=object)
            largest = float(np.finfo(library.dtype).max) / 8
            if max(abs(v) for v in (*part.flat, scale)) > largest:
                continue
            scale = max(float(scale), *(float(abs(v)) for v in part.flat))
            off = oracle.error(got, part).max()
            if not off <= library.eps * (16 + exponent * span) * scale + library.tiny:
                failures.append(
                    f"α={a}, λ={LAMS[j]}, {name}: off by {off / library.eps / scale} eps, "
                    f"got {got}, wanted {oracle.floats(part)}"
                )
    assert not failures, "\n".join(failures)


@at_200_digits
def mean_and_slopes(sources, weights, alpha, linear):
    """The mean of sources (or its logarithm) with weights over their sum, and its slopes."""
    n = len(sources)

    def mean(point):
        xs, raw, alpha = point[:n], point[n : 2 * n], point[2 * n]
        total = mpmath.fsum(raw)
        xs = xs if linear else [mpmath.exp(v) for v in xs]
        result = definitions.mean(xs, [w / total for w in raw], alpha)
        return result if linear else mpmath.log(result)

    point = (*sources, *weights, alpha)
    return mean(point), tuple(slope(mean, point, i) for i in range(2 * n + 1))


WEIGHTS = {
    "uneven": (0.125, 0.625, 0.25),
    "one of zero": (0.25, 0.0, 0.75),
    "next to zero": (1e-6, 0.3, 0.699999),
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("linear", [False, True], ids=["log_falpha_mean", "falpha_mean"])
def test_means(library, oracle, linear, weights):
    """α for every column, and the weights, as arrays; derivatives by sources, weights and α."""
    rng = np.random.default_rng(4)
    logs = rng.normal(size=(3, len(ALPHAS)))
    logs[:, ::3] = logs[:1, ::3] + 1e-3 * logs[:, ::3]
    sources = (np.exp(logs) if linear else logs).astype(library.dtype)
    alpha, weights = (np.array(a).astype(library.dtype) for a in (ALPHAS, weights))
    mean = am.falpha_mean if linear else am.log_falpha_mean

    def f(sources, weights, alpha):
        return mean(sources, alpha=alpha, weights=weights)

    spread = np.broadcast_to(weights[:, None], sources.shape).copy()
    arrays = [library.array(a) for a in (sources, spread, alpha)]
    value, grads = library.numpy(f(*arrays)), None
    short = f(arrays[0], library.array(weights), arrays[2])
    np.testing.assert_array_equal(library.numpy(short), value)
    if library.differentiates:
        again, grads = library.derivatives(f, *arrays)
        np.testing.assert_array_equal(again, value)
        _, (_, back, _) = library.derivatives(f, arrays[0], library.array(weights), arrays[2])
        atol = 8 * library.eps * np.abs(grads[1]).max()
        np.testing.assert_allclose(back, grads[1].sum(axis=1), rtol=0, atol=atol)
    failures = []
    for i, a in enumerate(ALPHAS):
        column = oracle.exact(sources[:, i]), oracle.exact(weights), oracle.exact(alpha[i])
        wanted, slopes = mean_and_slopes(*column, linear)
        scale = float(abs(wanted)) if linear else max(1.0, float(np.abs(sources[:, i]).max()))
        off = oracle.error(value[i], wanted)
        span = float(np.abs(logs[:, i]).max())
        units = 4 * (1 + span) if linear else 4
        if not off <= units * library.eps * scale:
            failures.append(f"α={a}: off by {off / library.eps / scale} eps")
        if grads is None:
            continue
        exponent = min(abs(1 - a) / 2, 26.0) if math.isfinite(a) else 0.0
        for name, got, part in (
            ("sources", grads[0][:, i], slopes[:3]),
            ("weights", grads[1][:, i], slopes[3:6]),
            ("alpha", grads[2][i], slopes[6]),
        ):
            part = np.array(part, dtype=object)
            if max(abs(v) for v in part.flat) > float(np.finfo(library.dtype).max) / 8:
                continue
            scale = max(float(abs(v)) for v in part.flat)
            off = oracle.error(got, part).max()
            if not off <= library.eps * (16 + (1 + exponent) * span) * scale + library.tiny:
                failures.append(
                    f"α={a}, {name}: off by {off / library.eps / max(scale, 1e-300)} eps, "
                    f"got {got}, wanted {oracle.floats(part)}"
                )
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_knobs_of_a_mean_along_any_axis(any_library, axis):
    """α of the result's shape, or any that broadcasts to it; weights of K, or of every source."""
    rng = np.random.default_rng(0)
    logs = any_library.array(rng.normal(size=(3, 3, 3)))
    weights = any_library.array([0.125, 0.625, 0.25])
    for shape in ((), (3,), (3, 1), (3, 3)):
        alpha = rng.normal(size=shape)
        got = am.log_falpha_mean(logs, alpha=any_library.array(alpha), weights=weights, axis=axis)
        for i, j in np.ndindex(3, 3):
            one = am.log_falpha_mean(
                logs,
                alpha=float(any_library.array(np.broadcast_to(alpha, (3, 3))[i, j])),
                weights=(0.125, 0.625, 0.25),
                axis=axis,
            )
            np.testing.assert_allclose(
                any_library.numpy(got)[i, j],
                any_library.numpy(one)[i, j],
                rtol=0,
                atol=8 * any_library.eps * 4,
            )


@pytest.mark.parametrize("axis", [0, 1, 2, -3])
def test_knobs_of_a_mixture_along_any_axis(any_library, axis):
    rng = np.random.default_rng(0)
    logs = -rng.random((2, 2, 3, 4))
    shape = tuple(np.delete((2, 3, 4), axis))
    knobs = [any_library.array(a) for a in (rng.normal(size=shape), rng.random((shape[0], 1)))]
    turned = [any_library.array(np.moveaxis(a, axis, -1).copy()) for a in logs]

    def mixture(p, q, alpha, lam, axis=-1):
        return am.alpha_mixture(p, q, alpha=alpha, lam=lam, axis=axis)

    along = any_library.compiled(partial(mixture, axis=axis))
    got = along(*(any_library.array(a) for a in logs), *knobs)
    last = any_library.compiled(mixture)(*turned, *knobs)
    np.testing.assert_allclose(
        any_library.numpy(got),
        np.moveaxis(any_library.numpy(last), -1, axis),
        rtol=0,
        atol=16 * any_library.eps,
    )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda a: am.AMiD(alpha=a((5,)))(a((2, 3, 4)), a((2, 3, 4))), ["alpha", "(2, 3)", "(5,)"]),
        (lambda a: am.AMiD(lam=a((2, 3, 1)))(a((2, 3, 4)), a((2, 3, 4))), ["lam", "(2, 3, 1)"]),
        (
            lambda a: am.alpha_mixture(a((2, 4)), a((2, 4)), alpha=a((4,)), lam=0.5),
            ["alpha", "(2,)", "(4,)"],
        ),
        (lambda a: am.falpha_mean(a((2, 4)), alpha=a((2,))), ["alpha", "(4,)", "(2,)"]),
        (
            lambda a: am.falpha_mean(a((2, 4)), alpha=0.0, weights=a((4,))),
            ["weights", "2", "4"],
        ),
        (
            lambda a: am.falpha_mean(a((2, 4)), alpha=0.0, weights=a((3, 4))),
            ["weights", "(2, 4)", "(3, 4)"],
        ),
    ],
    ids=["alpha", "lam", "alpha of a mixture", "alpha of a mean", "weights", "wide weights"],
)
def test_knobs_that_do_not_fit(any_library, make, words):
    with pytest.raises(ValueError, match=words[0]) as raised:
        make(lambda shape: any_library.array(np.full(shape, 0.25)))
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_knobs_of_another_library():
    logits, alpha = np.zeros((2, 4)), torch.zeros(2)
    with pytest.raises(TypeError, match="alpha"):
        am.AMiD(alpha=alpha)(logits, logits)
    with pytest.raises(TypeError, match="alpha"):
        am.alpha_mixture(logits, logits, alpha=alpha, lam=0.5)
    with pytest.raises(TypeError, match="alpha"):
        am.falpha_mean(logits, alpha=alpha)
