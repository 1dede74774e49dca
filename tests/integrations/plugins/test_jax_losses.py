"""The losses as Optax has its own: against mpmath, against Optax, under JAX's transformations."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import definitions
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

import amidmath as am
from amidmath.integrations.plugins import jax_losses
from amidmath.integrations.plugins.jax_losses import am_loss

PAGE = Path(__file__).parents[3] / "docs" / "jax-plugins.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
WHERE = np.array([[1, 0, 1], [1, 1, 0]], bool)


def arrays(*shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def pair(shape=(2, 3, 5), dtype=np.float32):
    return arrays(shape, shape, dtype=dtype)


def exact_kl_to_mixture(student, teacher, lam):
    """KL(p‖λp + (1-λ)q) of every row, by definition."""

    def of(x, y):
        q, p = (
            [mpmath.exp(v) for v in definitions.log_softmax([mpmath.mpf(float(z)) for z in row])]
            for row in (x, y)
        )
        r = [definitions.mean(both, (lam, 1 - lam), -1) for both in zip(p, q, strict=True)]
        return float(mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, r, strict=True)))

    flat = (np.asarray(a).reshape(-1, a.shape[-1]) for a in (student, teacher))
    return np.array([of(*rows) for rows in zip(*flat, strict=True)]).reshape(student.shape[:-1])


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_every_example_has_its_value(axis):
    student, teacher = pair()
    given = (jnp.moveaxis(a, -1, axis) for a in (student, teacher))
    values = am_loss(*given, axis, lam=0.3)
    wanted = exact_kl_to_mixture(student, teacher, mpmath.mpf("0.3"))
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, wanted, rtol=1e-5)


@pytest.mark.parametrize("jitted", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_kl_is_optax_own(jitted):
    student, teacher = pair()
    weights = jnp.arange(6.0).reshape(2, 3)

    def ours(s):
        return (weights * am_loss(s, teacher, loss="kl")).sum()

    def theirs(s):
        log_q, p = jax.nn.log_softmax(s), jax.nn.softmax(teacher)
        return (weights * optax.losses.kl_divergence(log_q, p)).sum()

    value, grad = jitted(jax.value_and_grad(ours))(student)
    wanted, wanted_grad = jax.value_and_grad(theirs)(student)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transformed", ["vmap", "vmap of vmap", "vmap of where"])
def test_vmap_is_the_batch(transformed):
    student, teacher = pair()
    whole = am_loss(student, teacher, where=WHERE if "where" in transformed else None)
    function = jax.vmap(am_loss)
    if transformed == "vmap of vmap":
        function = jax.vmap(function)
    if transformed == "vmap of where":
        function = jax.vmap(lambda s, t, w: am_loss(s, t, where=w))
    mapped = function(*(student, teacher), *([jnp.asarray(WHERE)] * ("where" in transformed)))
    np.testing.assert_allclose(mapped, whole, rtol=1e-6)


@pytest.mark.parametrize("kind", [bool, np.int32])
def test_what_is_left_out_is_never_read(kind):
    student, teacher = pair()
    whole, whole_grad = am_loss(student, teacher), jax.grad(lambda s: am_loss(s, teacher).sum())
    spoilt = [jnp.where(WHERE[..., None], a, jnp.nan) for a in (student, teacher)]
    where = jnp.asarray(WHERE, kind)
    values = am_loss(*spoilt, where=where)
    np.testing.assert_allclose(values, np.where(WHERE, whole, 0.0), rtol=1e-6)
    grad = jax.grad(lambda s: am_loss(s, spoilt[1], where=where).sum())(spoilt[0])
    wanted = np.where(WHERE[..., None], whole_grad(student), 0.0)
    np.testing.assert_allclose(grad, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["reverse_kl", "gkd", "abkd"])
@pytest.mark.parametrize("axis", [-1, 1])
def test_tokens_that_are_left_out_might_as_well_not_be_there(loss, axis):
    student, teacher = pair((3, 7))
    student, teacher = student.at[:, 2].set(jnp.nan), teacher.at[:, 4].set(jnp.inf)
    tokens = np.array([1, 1, 0, 1, 0, 1, 1], bool)
    left = am_loss(student[:, tokens], teacher[:, tokens], loss=loss)
    where = np.broadcast_to(tokens, (3, 7)) & np.array([[True], [True], [False]])
    function = jax.value_and_grad(lambda s: am_loss(s, teacher, axis, where, loss=loss)[:2].sum())
    value, grad = function(student)
    np.testing.assert_allclose(value, left[:2].sum(), rtol=1e-5)
    assert am_loss(student, teacher, axis, where, loss=loss)[2] == 0.0
    assert np.all(np.isfinite(grad))
    assert not np.any(np.asarray(grad)[~where])


def test_half_precision_is_computed_in_single():
    student, teacher = pair(dtype=jnp.bfloat16)
    values, pull = jax.vjp(lambda s: am_loss(s, teacher, loss="kl"), student)
    assert values.dtype == np.float32
    wanted = exact_kl_to_mixture(student.astype(float), teacher.astype(float), 0)
    np.testing.assert_allclose(values, wanted, rtol=1e-5)
    assert pull(jnp.ones_like(values))[0].dtype == jnp.bfloat16


def test_a_parameter_that_is_an_array_is_not_compiled_anew():
    student, teacher = pair()
    traced = []

    @jax.jit
    def values(lam):
        traced.append(lam)
        return am_loss(student, teacher, lam=lam)

    for lam in (0.1, 0.7):
        wanted = exact_kl_to_mixture(student, teacher, mpmath.mpf(lam))
        np.testing.assert_allclose(values(jnp.float32(lam)), wanted, rtol=1e-5)
    assert len(traced) == 1


def test_numpy_arrays_are_taken_as_optax_takes_them():
    student, teacher = (np.asarray(a) for a in pair())
    assert isinstance(am_loss(student, teacher, where=WHERE), jax.Array)


def hidden_case(dtype=np.float32):
    return arrays((2, 3, 4), (7, 4), (2, 3, 6), (7, 6), dtype=dtype, seed=1)


def test_hidden_states_give_what_logits_give():
    hidden, head, other, other_head = hidden_case()

    def whole(hidden, head):
        return am_loss(hidden @ head.T, other @ other_head.T, where=WHERE, loss="gkd", beta=0.3)

    def chunked(hidden, head):
        student = am.Hidden(hidden, head, chunk_rows=2)
        return am_loss(student, am.Hidden(other, other_head), where=WHERE, loss="gkd", beta=0.3)

    cotangent = jnp.arange(6.0).reshape(2, 3)
    values, pull = jax.vjp(chunked, hidden, head)
    wanted, wanted_pull = jax.vjp(whole, hidden, head)
    assert values.shape == (2, 3)
    np.testing.assert_allclose(values, wanted, rtol=1e-5)
    for got, expected in zip(pull(cotangent), wanted_pull(cotangent), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_hidden_states_with_labels_reduced():
    hidden, head, other, other_head = hidden_case()
    labels = jnp.where(WHERE, jnp.arange(6).reshape(2, 3), -100)
    bias = jnp.arange(7.0) / 7
    value = am_loss(
        am.Hidden(hidden, am.Head(head, bias, softcap=3.0)),
        am.Hidden(other, other_head),
        where=WHERE,
        loss=am.methods.kl(),
        reduction="mean",
        labels=labels,
        label_weight=0.4,
    )
    logits = 3.0 * jnp.tanh((hidden @ head.T + bias) / 3.0)
    hard = optax.losses.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    p = jax.nn.softmax(other @ other_head.T)
    soft = optax.losses.kl_divergence(jax.nn.log_softmax(logits), p)
    np.testing.assert_allclose(value, (soft + 0.4 * hard).mean(where=WHERE), rtol=1e-5)


def test_lists_and_labels_of_plain_logits():
    student, teacher = pair()
    labels = jnp.where(WHERE, 1, -100)
    values = am_loss(student, am.top_k(teacher, 5), loss="kl", labels=labels, label_weight=0.5)
    hard = optax.losses.softmax_cross_entropy_with_integer_labels(student, jnp.ones((2, 3), int))
    soft = optax.losses.kl_divergence(jax.nn.log_softmax(student), jax.nn.softmax(teacher))
    np.testing.assert_allclose(values, soft + 0.5 * jnp.where(WHERE, hard, 0.0), rtol=1e-5)


def test_a_teacher_with_more_tokens():
    hidden, head, other, _ = hidden_case()
    (longer,) = arrays((9, 6), seed=2)
    student, teacher = am.Hidden(hidden, head, vocab="common"), am.Hidden(other, longer)
    values = am_loss(student, teacher, loss="reverse_kl")
    p = jax.nn.softmax(other @ longer.T)[..., :7]
    log_q = jax.nn.log_softmax(hidden @ head.T)
    wanted = (jnp.exp(log_q) * (log_q - jnp.log(p))).sum(-1)
    np.testing.assert_allclose(values, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"loss": "klk"}, ValueError, r"loss must be one of .*got 'klk'"),
        ({"loss": 3}, TypeError, r"loss must be the name .*got int: 3"),
        ({"loss": am.AMiD(), "beta": 1.0}, TypeError, r"got beta beside loss=AMiD"),
        ({"loss": "gkd", "skew": 0.1}, TypeError, r"gkd has no parameter 'skew'"),
        ({"lam": 1.5}, ValueError, r"amid's lam .*1\.5"),
        ({"loss": "distillm2"}, ValueError, r"distillm2 has a loss for each source of rows"),
        ({"axis": 3}, ValueError, r"axis must be an integer in \[-3, 2\] .*got 3"),
        ({"axis": (0, 1)}, ValueError, r"axis must be an integer .*got \(0, 1\)"),
        ({"where": np.ones((2, 5))}, ValueError, r"where must have .*\(2, 3\).*got \(2, 5\)"),
        ({"where": np.full((2, 3), 0.5)}, TypeError, r"where must be boolean or 0/1 .*float"),
        ({"teacher": jnp.ones((2, 3, 4))}, ValueError, r"must have the same shape"),
        ({"student": jnp.ones((2, 3, 5), int)}, TypeError, r"student .*int32"),
        (
            {"teacher": am.TopK(jnp.zeros((2, 3, 1)), jnp.zeros((2, 3, 1), int)), "axis": 1},
            ValueError,
            r"axis goes with logits on both sides, got axis 1",
        ),
    ],
)
def test_what_does_not_fit(arguments, error, says):
    student, teacher = pair()
    with pytest.raises(error, match=says):
        am_loss(**{"student": student, "teacher": teacher, **arguments})


def test_the_docstrings_examples():
    failed, tried = doctest.testmod(jax_losses)
    assert (failed, tried > 10) == (0, True)


@pytest.mark.parametrize("example", [example for example in EXAMPLES if "tunix" not in example])
def test_the_page_s_examples(example, capsys):
    exec(compile(example, PAGE.name, "exec"), {})
    printed = capsys.readouterr().out
    losses = [float(value) for value in re.findall(r"step \d+: (\S+)", printed)]
    assert losses[-1] < 0.5 * losses[0] if losses else "(4, 16, 8) (1000, 8)" in printed


def test_the_page_has_every_kind_of_example():
    assert ["tunix" in example for example in EXAMPLES] == [False, False, True]


def test_a_strategy_without_tunix_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tunix", None)
    monkeypatch.delitem(sys.modules, "amidmath.integrations.plugins.tunix_strategy", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"needs google-tunix.*pip install google-tunix"):
        importlib.import_module("amidmath.integrations.plugins.tunix_strategy")


def test_no_other_framework_is_imported():
    code = (
        "import sys, amidmath.integrations.plugins.jax_losses\n"
        "assert not {'torch', 'optax', 'flax', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
