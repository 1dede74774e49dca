"""Every place where an array goes, for the table of tests/helpers/array_kinds.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import amidmath as am
from amidmath import geometry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Place:
    """A place where an array goes.

    Args:
        argument: as errors name it; several names are divided by a stroke.
        values: an array that belongs there.
        call: from the array and a function that makes those of the other arguments.
        dear: whether it is computed even where that takes seconds to compile.
    """

    argument: str
    values: np.ndarray
    call: Callable[[Any, Callable[[np.ndarray], Any]], Any]
    dear: bool = False


RNG = np.random.default_rng(0)
LOSS = am.AMiD()
# Of measures: logarithms of probabilities that are rounded to bfloat16 have not the sum 1.
MEASURES = am.GeneralizedKL()


def normal(*shape):
    return RNG.normal(size=shape).astype("f4")


def places_of_rows(shape) -> Iterator[Place]:
    """Where rows go, which kernels compute from 65,536 logits on."""
    positions = shape[:-1]
    s, t = normal(*shape), normal(*shape)
    alpha, lam = normal(*positions), RNG.random(positions).astype("f4")
    mask = RNG.random(positions) < 0.6
    mask[0] = True
    both = ("student", "teacher")
    yield Place("student", s, lambda a, f: LOSS.value_and_grad(a, f(t), wrt=both), True)
    yield Place("student", s, lambda a, f: LOSS(a, f(t), reduction="none"))
    yield Place("student", s, lambda a, f: differentiated(lambda x: LOSS(x, f(t)), a))
    yield Place("teacher", t, lambda a, f: LOSS.value_and_grad(f(s), a, wrt=both))
    yield Place("mask", mask, lambda a, f: LOSS.value_and_grad(f(s), f(t), a), True)
    yield Place(
        "alpha",
        alpha,
        lambda a, f: am.AMiD(alpha=a).value_and_grad(f(s), f(t), wrt=(both[0], "alpha")),
        True,
    )
    yield Place("lam", lam, lambda a, f: am.AMiD(lam=a).value_and_grad(f(s), f(t)))
    yield Place(
        "factor|parts[0].weight|operand", alpha, lambda a, f: (LOSS * a).value_and_grad(f(s), f(t))
    )
    yield Place("denominator", np.asarray(3.0, "f4"), lambda a, f: LOSS(f(s), f(t), denominator=a))
    yield Place("log_x", s, lambda a, f: MEASURES.value_and_grad(a, f(t)))
    yield Place("log_y", t, lambda a, f: MEASURES(f(s), a))
    x, y = (np.moveaxis(a, -1, 0).copy() for a in (s, t))
    yield Place("log_x", x, lambda a, f: MEASURES.value_and_grad(a, f(y), axis=0))


def differentiated(f, array):
    """What the library of the array makes of the function, with its gradient."""
    if isinstance(array, torch.Tensor) and array.is_floating_point() and not array.is_mkldnn:
        leaf = array.detach().clone() if array.is_inference() else array.detach()
        value = f(leaf.requires_grad_())
        value.backward()
        return value, leaf.grad
    if isinstance(array, jax.Array) and array.dtype == jnp.float32 and not array.is_deleted():
        return jax.value_and_grad(f)(array)
    return f(array)


def other_places() -> Iterator[Place]:
    s, t, lam = normal(2, 3, 5), normal(2, 3, 5), RNG.random((2, 3)).astype("f4")
    p, q = ((a - np.log(np.exp(a).sum(-1, keepdims=True))).astype("f4") for a in (s, t))
    mask = lam > 0.3
    weights = np.array([0.25, 0.75], "f4")
    yield Place(
        "temperature", np.asarray(2.0, "f4"), lambda a, f: am.AMiD(temperature=a)(f(s), f(t))
    )
    yield Place("divisor|parts[0].weight|operand", 1.0 + lam, lambda a, f: (LOSS / a)(f(s), f(t)))

    yield Place("logs", s, lambda a, f: am.log_falpha_mean(a, alpha=-1.0))
    yield Place("values", np.exp(s), lambda a, f: am.falpha_mean(a, alpha=-1.0))
    yield Place("weights", weights, lambda a, f: am.falpha_mean(f(lam), alpha=3.0, weights=a))
    yield Place("alpha", s[0], lambda a, f: am.log_falpha_mean(f(s), alpha=a))
    yield Place("log_p", p, lambda a, f: am.alpha_mixture(a, f(q), alpha=-1.0, lam=0.5))
    yield Place("lam", lam, lambda a, f: am.alpha_mixture(f(p), f(q), alpha=-1.0, lam=a))

    lists = am.top_k(t, 2)
    logs, indices = lists.log_probs, lists.indices.astype("i4")
    listed = LOSS.value_and_grad
    yield Place("teacher_logits", t, lambda a, f: am.top_k(a, 2).log_probs)
    yield Place("student", s, lambda a, f: listed(a, am.TopK(f(logs), f(indices))))
    yield Place("teacher.log_probs", logs, lambda a, f: listed(f(s), am.TopK(a, f(indices))))
    yield Place("teacher.indices", indices, lambda a, f: listed(f(s), am.TopK(f(logs), a)))
    yield Place("mask", mask, lambda a, f: listed(f(s), am.TopK(f(logs), f(indices)), a))
    yield Place("denominator", np.asarray(3.0, "f4"), lambda a, f: LOSS(
        f(s), am.TopK(f(logs), f(indices)), denominator=a))  # fmt: skip

    h, th, w, bias = normal(2, 3, 4), normal(2, 3, 4), normal(5, 4), normal(5)
    low, high = normal(2, 4), normal(5, 2)
    labels = RNG.integers(0, 5, (2, 3)).astype("i4")

    def dense(f, **changed):
        """The gradient of hidden states against hidden states, in its arrays."""
        given = {"states": h, "head": w, "teacher_states": th, "teacher_head": w}
        made = {name: changed.pop(name) if name in changed else f(a) for name, a in given.items()}
        student = am.Hidden(made["states"], made["head"])
        teacher = am.Hidden(made["teacher_states"], made["teacher_head"])
        value, grad = changed.pop("loss", LOSS).value_and_grad(student, teacher, **changed)
        return value, list(grad.arrays().values())

    yield Place("states", h, lambda a, f: dense(f, states=a))
    yield Place("head", w, lambda a, f: dense(f, head=a))
    yield Place("states", th, lambda a, f: dense(f, teacher_states=a))
    yield Place("head", w, lambda a, f: dense(f, teacher_head=a))
    yield Place("bias", bias, lambda a, f: dense(f, head=am.Head(f(w), a)))
    yield Place("low_rank[0]", low, lambda a, f: dense(
        f, head=am.Head(f(w), low_rank=(a, f(high), 0.5))))  # fmt: skip
    yield Place("labels", labels, lambda a, f: dense(f, labels=a), True)
    yield Place("mask", mask, lambda a, f: dense(f, mask=a))
    yield Place("alpha", lam, lambda a, f: dense(f, loss=am.AMiD(alpha=a)))
    yield Place("denominator", np.asarray(3.0, "f4"), lambda a, f: dense(f, denominator=a))
    yield Place("student", s, lambda a, f: LOSS.value_and_grad(a, f(t), labels=f(labels)))
    yield Place("labels", labels, lambda a, f: LOSS.value_and_grad(f(s), f(t), labels=a))
    yield Place("labels", labels, lambda a, f: listed(
        f(s), am.TopK(f(logs), f(indices)), labels=a))  # fmt: skip

    yield Place("log_p", p, lambda a, f: geometry.fisher_metric(a, f(s), f(t)))
    yield Place("u", s, lambda a, f: geometry.fisher_metric(f(p), a, f(t)))
    yield Place("grad", s, lambda a, f: geometry.natural_gradient(f(p), a))
    yield Place("t", lam, lambda a, f: geometry.geodesic(f(p), f(q), a, alpha=1.0))
    yield Place("logs", p, lambda a, f: geometry.barycenter(a, alpha=1.0))
    yield Place("weights", weights, lambda a, f: geometry.jensen_divergence(
        f(p), alpha=1.0, weights=a))  # fmt: skip
    yield Place("alpha", lam, lambda a, f: geometry.mode_report(f(p), f(q), alpha=a, lam=0.5))

    yield Place("gkd's beta|parts[0].weight", lam, lambda a, f: am.methods.gkd(a)(f(s), f(t)))
    yield Place("akl's mu|mu", lam, lambda a, f: am.methods.akl(a)(f(s), f(t)))
    yield Place("gap", lam, lambda a, f: am.methods.distillm2_skew(a, f(lam / 2)))
