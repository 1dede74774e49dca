"""What torch and JAX differentiate is the closed form, under each of their transformations."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am

ORDERS = ("pr", "rp", "qr", "rq")
ALPHAS = (-5.0, 1.0, 3.0)
DIVERGENCES = {"KL": am.KL(), "AB(.2,.7)": am.AlphaBeta(0.2, 0.7)}
LOSS = am.AMiD(am.AlphaBeta(0.2, 0.7), order="rq", alpha=0.0, lam=0.3)

by_divergence = pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES)
by_order = pytest.mark.parametrize("order", ORDERS)


def logits(dtype="float64", shape=(4, 4)):
    rng = np.random.default_rng(8)
    return rng.normal(size=shape).astype(dtype), rng.normal(size=shape).astype(dtype)


def torch_logits(dtype="float64"):
    return tuple(torch.from_numpy(a) for a in logits(dtype))


def jax_logits():
    return tuple(jnp.asarray(a) for a in logits("float32"))


def close(got, wanted, eps):
    got, wanted = np.asarray(got), np.asarray(wanted)
    np.testing.assert_allclose(got, wanted, rtol=8 * eps, atol=8 * eps * np.abs(wanted).max())


@by_order
@by_divergence
def test_gradients_of_student_and_teacher(autodiff, oracle, divergence, order):
    """Against the oracle, each position's value pulled back by a factor of its own."""
    student, teacher = logits(autodiff.dtype)
    factors = np.array([1.0, -2.0, 0.25, 3.0])
    name = (type(divergence).__name__, *divergence.params)
    for alpha in ALPHAS:
        loss = am.AMiD(divergence, order=order, alpha=alpha, lam=0.3)
        _, grads = autodiff.derivatives(
            lambda s, t, f=loss: f(s, t, reduction="none"),
            autodiff.array(student),
            autodiff.array(teacher),
            cotangent=factors,
        )
        expected = oracle.amid(student, teacher, name, order, alpha, 0.3)
        for grad, wanted in zip(grads, (expected.student, expected.teacher), strict=True):
            error = oracle.error(grad, wanted * factors[:, None]).max(axis=-1)
            scale = np.maximum(oracle.largest(wanted), oracle.floats(expected.terms))
            assert np.all(error <= 16 * autodiff.eps * scale * np.abs(factors)), (
                f"α={alpha}: {error / autodiff.eps / scale} eps"
            )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_autograd_is_value_and_grad(any_autodiff, reduction):
    student, teacher = (any_autodiff.array(a) for a in logits(any_autodiff.dtype))
    mask = any_autodiff.array([True, False, True, True], "bool")
    for order in ORDERS:
        loss = am.AMiD(order=order, alpha=0.0)

        def f(s, t, loss=loss):
            return loss(s, t, mask=mask, reduction=reduction)

        value, (grad, _) = any_autodiff.derivatives(f, student, teacher)
        wanted, wanted_grad = loss.value_and_grad(student, teacher, mask, reduction)
        close(value, any_autodiff.numpy(wanted), any_autodiff.eps)
        close(grad, any_autodiff.numpy(wanted_grad), any_autodiff.eps)


class TestTorch:
    @pytest.mark.parametrize("alpha", [-5.0, -1.0, 0.0, 1.0, 3.0])
    @by_order
    def test_gradcheck(self, order, alpha):
        leaves = [a.requires_grad_() for a in torch_logits()]
        mask = torch.tensor([True, False, True, True])
        for divergence in DIVERGENCES.values():
            loss = am.AMiD(divergence, order=order, alpha=alpha, lam=0.3, temperature=2.0)
            assert torch.autograd.gradcheck(lambda s, t, f=loss: f(s, t, mask), leaves)

    def test_gradcheck_of_means_and_divergences(self):
        logs = [torch.log_softmax(a, -1).requires_grad_() for a in torch_logits()]
        for alpha in (-5.0, 1.0, 3.0):
            for normalize in (False, True):
                assert torch.autograd.gradcheck(
                    lambda p, q, a=alpha, n=normalize: am.alpha_mixture(
                        p, q, alpha=a, lam=0.3, normalize=n
                    ),
                    logs,
                )
            assert torch.autograd.gradcheck(
                lambda p, q, a=alpha: am.log_falpha_mean(torch.stack([p, q]), alpha=a), logs
            )
        for divergence in (*DIVERGENCES.values(), am.ReverseKL(), am.AlphaBeta(1.0, -1.0)):
            assert torch.autograd.gradcheck(divergence, logs)

    def test_only_the_teacher_needs_a_gradient(self):
        student, teacher = torch_logits()
        teacher.requires_grad_()
        both = [a.clone().requires_grad_() for a in (student, teacher)]
        (wanted,) = torch.autograd.grad(LOSS(*both), both[1:])
        (got,) = torch.autograd.grad(LOSS(student, teacher), teacher)
        assert torch.equal(got, wanted)

    def test_no_gradient_is_recorded_where_none_is_asked_for(self):
        student, teacher = torch_logits()
        assert not LOSS(student, teacher).requires_grad
        student.requires_grad_()
        with torch.no_grad():
            assert not LOSS(student, teacher).requires_grad
        value, grad = LOSS.value_and_grad(student, teacher)
        assert not value.requires_grad
        assert not grad.requires_grad

    @pytest.mark.parametrize("backend", [None, "reference"])
    def test_a_denominator_is_constant(self, backend):
        student, teacher = torch_logits("float32")
        count = torch.tensor(3.0, requires_grad=True)
        for dtype in (torch.float32, torch.float16):
            for leaf in (student, student.clone().requires_grad_()):
                arrays = leaf.to(dtype), teacher.to(dtype)
                value = LOSS(*arrays, denominator=count, backend=backend)
                assert value.requires_grad == leaf.requires_grad
                if leaf.requires_grad:
                    assert torch.autograd.grad(value, count, allow_unused=True) == (None,)

    def test_func_grad(self):
        student, teacher = torch_logits()
        _, wanted = LOSS.value_and_grad(student, teacher)
        assert torch.equal(torch.func.grad(LOSS)(student, teacher), wanted)
        grad, value = torch.func.grad_and_value(LOSS)(student, teacher)
        assert torch.equal(grad, wanted)
        assert torch.equal(value, LOSS(student, teacher))
        both = torch.func.grad(LOSS, argnums=(0, 1))(student, teacher)
        assert torch.equal(both[0], wanted)

    def test_func_vjp(self):
        student, teacher = torch_logits()
        value, pull = torch.func.vjp(lambda s: LOSS(s, teacher, reduction="none"), student)
        (grad,) = pull(torch.ones_like(value))
        _, wanted = LOSS.value_and_grad(student, teacher, reduction="sum")
        close(grad, wanted, torch.finfo(torch.float64).eps)

    def test_func_vmap_and_jacobians(self):
        student, teacher = torch_logits()
        value = LOSS(student, teacher, reduction="none")
        _, grad = LOSS.value_and_grad(student, teacher, reduction="none")
        eps = torch.finfo(torch.float64).eps
        close(torch.func.vmap(LOSS)(student, teacher), value, eps)
        close(torch.func.vmap(torch.func.grad(LOSS))(student, teacher), grad, eps)

        def f(s):
            return LOSS(s, teacher, reduction="none")

        close(torch.func.jacrev(f)(student).sum(dim=0), grad, eps)
        close(torch.func.jacfwd(f)(student).sum(dim=0), grad, eps)

    @pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
    def test_compile_without_a_graph_break(self, masked):
        student, teacher = torch_logits("float32")
        mask = torch.tensor([True, False, True, True]) if masked else None
        compiled = torch.compile(lambda s, t: LOSS(s, t, mask), fullgraph=True, backend="aot_eager")
        leaf = student.clone().requires_grad_()
        value = compiled(leaf, teacher)
        value.backward()
        wanted, wanted_grad = LOSS.value_and_grad(student, teacher, mask)
        eps = torch.finfo(torch.float32).eps
        close(value.detach(), wanted, eps)
        close(leaf.grad, wanted_grad, eps)

    def test_a_squared_loss_is_differentiated_once_and_refuses_a_second_time(self):
        """The partials are constants to autograd: a silent, wrong Hessian must not come out."""
        student, teacher = torch_logits()
        student.requires_grad_()
        (grad,) = torch.autograd.grad(LOSS(student, teacher) ** 2, student, create_graph=True)
        value, once = LOSS.value_and_grad(student.detach(), teacher)
        close(grad.detach(), 2 * value * once, torch.finfo(torch.float64).eps)
        with pytest.raises(RuntimeError):
            torch.autograd.grad(grad.sum(), student)

    def test_deepcopy_and_pickle(self):
        import copy
        import pickle

        assert copy.deepcopy(LOSS) == pickle.loads(pickle.dumps(LOSS)) == LOSS


class TestJax:
    eps = float(np.finfo("float32").eps)

    def test_jit(self):
        student, teacher = jax_logits()
        mask = jnp.asarray([True, False, True, True])
        wanted, wanted_grad = LOSS.value_and_grad(student, teacher, mask)
        value, grad = jax.jit(jax.value_and_grad(LOSS))(student, teacher, mask)
        close(value, wanted, self.eps)
        close(grad, wanted_grad, self.eps)
        value, grad = jax.jit(LOSS.value_and_grad)(student, teacher, mask)
        close(value, wanted, self.eps)
        close(grad, wanted_grad, self.eps)

    def test_the_loss_is_a_static_argument(self):
        """Equal losses share one compilation, unequal ones do not."""
        traces = []

        def f(loss, s, t):
            traces.append(loss)
            return loss(s, t)

        jitted = jax.jit(f, static_argnums=0)
        for loss in (am.AMiD(alpha=1.0), am.AMiD(alpha=1.0), am.AMiD(alpha=3.0)):
            jitted(loss, *jax_logits())
        assert len(traces) == 2

    def test_vmap(self):
        student, teacher = jax_logits()
        each = jax.jit(jax.vmap(LOSS))(student, teacher)
        close(each, LOSS(student, teacher, reduction="none"), self.eps)
        grads = jax.jit(jax.vmap(jax.grad(LOSS)))(student, teacher)
        close(grads, LOSS.value_and_grad(student, teacher, reduction="none")[1], self.eps)
        only_student = jax.jit(jax.vmap(LOSS, in_axes=(0, None)))(student, teacher[0])
        assert only_student.shape == (4,)

    def test_jvp(self):
        student, teacher = jax_logits()
        rng = np.random.default_rng(1)
        directions = tuple(jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for _ in range(2))
        value, tangent = jax.jvp(LOSS, (student, teacher), directions)
        grads = jax.grad(LOSS, argnums=(0, 1))(student, teacher)
        wanted = sum(jnp.sum(g * d) for g, d in zip(grads, directions, strict=True))
        close(value, LOSS(student, teacher), self.eps)
        np.testing.assert_allclose(tangent, wanted, atol=32 * self.eps)

    def test_one_operand_alone(self):
        student, teacher = jax_logits()
        both = jax.grad(LOSS, argnums=(0, 1))(student, teacher)
        for argnum, wanted in enumerate(both):
            close(jax.grad(LOSS, argnums=argnum)(student, teacher), wanted, self.eps)

    def test_jacobian_of_every_position(self):
        student, teacher = jax_logits()

        def f(s):
            return LOSS(s, teacher, reduction="none")

        backward, forward = (
            jax.jit(transform(f))(student) for transform in (jax.jacrev, jax.jacfwd)
        )
        np.testing.assert_allclose(forward, backward, atol=16 * self.eps)
        for i, j in itertools.permutations(range(4), 2):
            np.testing.assert_array_equal(backward[i, j], 0.0)

    def test_checkpoint_and_scan(self):
        """The transformations that a training step is made of."""
        student, teacher = jax_logits()
        wanted = LOSS.value_and_grad(student, teacher, reduction="sum")[1]
        rematerialised = jax.checkpoint(lambda s: LOSS(s, teacher, reduction="sum"))
        close(jax.jit(jax.grad(rematerialised))(student), wanted, self.eps)

        def total(s):
            def step(carry, row):
                return carry + LOSS(*row), None

            return jax.lax.scan(step, jnp.zeros(()), (s, teacher))[0]

        close(jax.jit(jax.grad(total))(student), wanted, self.eps)
