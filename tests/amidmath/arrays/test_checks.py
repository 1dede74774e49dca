"""Bad input: the message names the argument, shows what came, and says what is accepted."""

from __future__ import annotations

import re

import array_api_strict
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import amidmath as am

LOGITS = np.zeros((2, 3, 4))
LOSS = am.AMiD()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"order": "qp"}, ValueError, ["order", "'qp'", "'pr'", "'rp'", "'qr'", "'rq'"]),
        ({"order": None}, ValueError, ["order", "None", "'pr'"]),
        ({"order": ["pr"]}, ValueError, ["order", "['pr']", "'pr'"]),
        ({"alpha": float("nan")}, ValueError, ["alpha", "nan", "±inf"]),
        ({"alpha": "1"}, TypeError, ["alpha", "number", "str", "'1'"]),
        ({"alpha": None}, TypeError, ["alpha", "number", "NoneType"]),
        ({"alpha": True}, TypeError, ["alpha", "number", "bool"]),
        ({"alpha": np.zeros(3, int)}, TypeError, ["alpha", "floating", "int64"]),
        ({"alpha": np.array([0.0, np.nan])}, ValueError, ["alpha", "number or ±inf", "1", "nan"]),
        ({"lam": np.array([0.5, 1.5, -1.0])}, ValueError, ["lam", "[0, 1]", "2", "1.5"]),
        ({"lam": torch.tensor([0.5, np.nan])}, ValueError, ["lam", "[0, 1]", "nan"]),
        ({"lam": jnp.asarray([2.0])}, ValueError, ["lam", "[0, 1]", "2.0"]),
        ({"lam": 1.2}, ValueError, ["lam", "1.2", "[0, 1]"]),
        ({"lam": -0.1}, ValueError, ["lam", "-0.1", "[0, 1]"]),
        ({"lam": float("nan")}, ValueError, ["lam", "nan"]),
        ({"lam": "half"}, TypeError, ["lam", "number", "'half'"]),
        ({"temperature": 0.0}, ValueError, ["temperature", "positive", "0.0"]),
        ({"temperature": -1}, ValueError, ["temperature", "positive", "-1"]),
        ({"temperature": float("inf")}, ValueError, ["temperature", "finite", "inf"]),
        ({"divergence": "kl"}, TypeError, ["divergence", "'kl'", "am.KL()"]),
        ({"divergence": am.KL}, TypeError, ["divergence", "am.KL()"]),
        (
            {"order": "pr", "detach_assistant": True},
            ValueError,
            ["detach_assistant", "'pr'", "'qr'", "'rq'"],
        ),
        ({"order": "rp", "detach_assistant": True}, ValueError, ["detach_assistant", "'rp'"]),
    ],
    ids=repr,
)
def test_constructor(arguments, error, words):
    with pytest.raises(error) as raised:
        am.AMiD(**arguments)
    for word in words:
        assert word in str(raised.value), str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([[0.0]], LOGITS), TypeError, ["student must", "array", "list", "[[0.0]]"]),
        ((LOGITS, None), TypeError, ["teacher must", "array", "NoneType"]),
        ((LOGITS, 1.0), TypeError, ["teacher must", "array", "float"]),
        ((LOGITS, torch.zeros(2, 3, 4)), TypeError, ["student and teacher", "torch"]),
        ((jnp.zeros((2, 4)), np.zeros((2, 4))), TypeError, ["student and teacher", "numpy", "jax"]),
        ((LOGITS, LOGITS[:, :, :3]), ValueError, ["student and teacher", "(2, 3, 4)", "(2, 3, 3)"]),
        ((LOGITS, LOGITS[0]), ValueError, ["same shape", "(2, 3, 4)", "(3, 4)"]),
        ((LOGITS.astype(int), LOGITS), TypeError, ["student must", "int64", "float32"]),
        ((LOGITS, LOGITS.astype(bool)), TypeError, ["teacher must", "bool", "float32"]),
        ((LOGITS.astype(complex), LOGITS), TypeError, ["student must", "complex128", "real"]),
        ((np.zeros(()), np.zeros(())), ValueError, ["student must", "vocabulary", "()"]),
        ((np.zeros((2, 0)), np.zeros((2, 0))), ValueError, ["student must", "(2, 0)"]),
        ((LOGITS, LOGITS, np.ones((2, 4), bool)), ValueError, ["mask", "(2, 3)", "(2, 4)"]),
        ((LOGITS, LOGITS, np.ones((2, 3, 4), bool)), ValueError, ["mask", "(2, 3)", "(2, 3, 4)"]),
        ((LOGITS, LOGITS, np.ones((2, 3))), TypeError, ["mask", "boolean", "float64"]),
        ((LOGITS, LOGITS, [[True] * 3] * 2), TypeError, ["mask", "array", "list"]),
        ((LOGITS, LOGITS, torch.ones(2, 3)), TypeError, ["mask", "torch", "numpy"]),
        ((LOGITS, LOGITS, None, "avg"), ValueError, ["reduction", "'avg'", "'mean'", "'none'"]),
        ((LOGITS, LOGITS, None, "sum", 3), ValueError, ["denominator", "'mean'", "'sum'", "3"]),
        ((LOGITS, LOGITS, None, "none", 3), ValueError, ["denominator", "'mean'", "'none'"]),
        ((LOGITS, LOGITS, None, "mean", 0), ValueError, ["denominator", "positive", "0"]),
        ((LOGITS, LOGITS, None, "mean", -2.0), ValueError, ["denominator", "positive", "-2.0"]),
        ((LOGITS, LOGITS, None, "mean", float("nan")), ValueError, ["denominator", "nan"]),
        ((LOGITS, LOGITS, None, "mean", np.ones(2)), ValueError, ["denominator", "scalar"]),
        ((LOGITS, LOGITS, None, "mean", "6"), TypeError, ["denominator", "number", "'6'"]),
        ((LOGITS, LOGITS, None, "mean", True), TypeError, ["denominator", "number", "True"]),
        (
            (LOGITS, LOGITS, None, "mean", torch.tensor(3.0)),
            TypeError,
            ["denominator", "torch", "numpy"],
        ),
    ],
    ids=lambda value: None,
)
def test_call(arguments, error, words):
    for call in (LOSS, LOSS.value_and_grad):
        with pytest.raises(error) as raised:
            call(*arguments)
        for word in words:
            assert word in str(raised.value), str(raised.value)


def test_devices_that_differ():
    one, other = (
        array_api_strict.zeros((2, 3), device=array_api_strict.Device(name))
        for name in ("CPU_DEVICE", "device1")
    )
    with pytest.raises(ValueError, match=r"same device.*CPU_DEVICE.*device1"):
        LOSS(one, other)
    with pytest.raises(ValueError, match=r"student and teacher.*cpu.*meta"):
        LOSS(torch.zeros(2, 3), torch.zeros(2, 3, device="meta"))
    with pytest.raises(ValueError, match=r"student and mask.*device"):
        LOSS(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, dtype=bool, device="meta"))


LOGS = np.log([[0.5, 0.5], [0.2, 0.8]])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: am.log_falpha_mean([1.0], alpha=1.0), TypeError, ["logs", "array", "list"]),
        (lambda: am.log_falpha_mean(LOGS > 0, alpha=1.0), TypeError, ["logs", "bool"]),
        (lambda: am.log_falpha_mean(LOGS, alpha="x"), TypeError, ["alpha", "number", "'x'"]),
        (lambda: am.log_falpha_mean(LOGS, alpha=np.nan), ValueError, ["alpha", "nan"]),
        (lambda: am.log_falpha_mean(LOGS, alpha=1.0, axis=2), ValueError, ["axis", "2", "[-2, 1]"]),
        (lambda: am.log_falpha_mean(LOGS, alpha=1.0, axis=0.5), TypeError, ["axis", "integer"]),
        (
            lambda: am.log_falpha_mean(LOGS, alpha=1.0, weights=(0.5, 0.2, 0.3)),
            ValueError,
            ["weights", "2", "3"],
        ),
        (
            lambda: am.log_falpha_mean(LOGS, alpha=1.0, weights=(0.5, 0.6)),
            ValueError,
            ["weights", "sum to 1", "1.1"],
        ),
        (
            lambda: am.log_falpha_mean(LOGS, alpha=1.0, weights=(1.5, -0.5)),
            ValueError,
            ["weights[0]", "1.5", "[0, 1]"],
        ),
        (
            lambda: am.log_falpha_mean(LOGS, alpha=1.0, weights=np.array([0.5, 0.2, 0.3])),
            ValueError,
            ["weights", "one entry a source", "2", "3"],
        ),
        (
            lambda: am.log_falpha_mean(LOGS, alpha=1.0, weights=np.array([0.5, 0.6])),
            ValueError,
            ["weights", "sum 1", "2"],
        ),
        (
            lambda: am.log_falpha_mean(LOGS, alpha=1.0, weights=np.full((2, 3), 0.5)),
            ValueError,
            ["weights", "broadcast", "(2, 2)", "(2, 3)"],
        ),
        (
            lambda: am.log_falpha_mean(LOGS, alpha=1.0, weights={0.5}),
            TypeError,
            ["weights", "sequence of numbers", "set"],
        ),
        (
            lambda: am.log_falpha_mean(LOGS, alpha=np.zeros(3)),
            ValueError,
            ["alpha", "broadcast", "(2,)", "(3,)"],
        ),
        (
            lambda: am.log_falpha_mean(LOGS, alpha=torch.zeros(2)),
            TypeError,
            ["logs", "alpha", "numpy", "torch"],
        ),
        (lambda: am.falpha_mean(LOGS, alpha=1.0), ValueError, ["values", "non-negative", "-0."]),
        (
            lambda: am.alpha_mixture(LOGS, LOGS, alpha=1.0, lam=np.array([0.5, 1.2])),
            ValueError,
            ["lam", "[0, 1]", "1.2"],
        ),
        (lambda: am.KL()(LOGS, LOGS + 0.1), ValueError, ["log_y", "sum to 1", "1.105"]),
        (lambda: am.KL()(np.exp(LOGS), LOGS), ValueError, ["log_x", "log_softmax", "Generalized"]),
        (lambda: am.divergence("kullback"), ValueError, ["name", "'kullback'", "'kl'"]),
        (lambda: am.divergence("kl", alpha=1.0), TypeError, ["kl", "'alpha'", "none"]),
        (lambda: am.divergence("alpha_beta", alpha=1), TypeError, ["alpha_beta", "alpha, beta"]),
        (lambda: am.divergence("renyi", rho=-1), ValueError, ["rho", "positive", "-1"]),
        (lambda: am.JensenShannon(1.5), ValueError, ["weight", "[0, 1]", "1.5"]),
        (lambda: am.SkewKL("a"), TypeError, ["lam", "number", "'a'"]),
        (lambda: am.Chernoff(1.0), ValueError, ["rho", "(0, 1)", "1.0"]),
        (lambda: am.Gamma(-1.0), ValueError, ["gamma", "above -1", "-1.0"]),
        (lambda: am.Tsallis(0.0), ValueError, ["rho", "positive", "0.0"]),
        (lambda: am.ConcreteScore("z"), ValueError, ["first", "'z'", "'uniform'"]),
        (lambda: am.FDivergence("u"), TypeError, ["f", "function", "'u'"]),
        (lambda: am.Dual("kl"), TypeError, ["divergence", "am.KL()", "'kl'"]),
        (
            lambda: am.FDivergence(lambda u, xp: xp.erf(u))(LOGS, LOGS),
            AttributeError,
            ["erf"],
        ),
        (lambda: am.AMiD() * "2", TypeError, ["AMiD"]),
        (lambda: am.AMiD() * float("nan"), ValueError, ["factor", "finite", "nan"]),
        (lambda: am.AMiD() + 1, TypeError, ["int"]),
        (lambda: am.WeightedSum(()), ValueError, ["parts", "()"]),
        (lambda: am.WeightedSum(((1.0, am.KL()),)), TypeError, ["parts[0]", "loss"]),
        (lambda: am.AlphaJensenShannon(alpha=float("inf")), ValueError, ["alpha", "finite"]),
        (
            lambda: am.AMiD().value_and_grad(LOGS, LOGS, wrt="student_logits"),
            ValueError,
            ["wrt", "'student_logits'", "'student', 'teacher'"],
        ),
        (
            lambda: am.AMiD().value_and_grad(LOGS, LOGS, wrt=("alpha",)),
            ValueError,
            ["wrt", "'alpha'"],
        ),
        (
            lambda: am.AMiD(alpha=np.zeros(3))(LOGS, LOGS),
            ValueError,
            ["alpha", "broadcast", "(2,)", "(3,)"],
        ),
        (
            lambda: am.AMiD(alpha=torch.zeros(2))(LOGS, LOGS),
            TypeError,
            ["alpha", "student and", "numpy", "torch"],
        ),
        (
            lambda: am.alpha_mixture(LOGS, LOGS[0, :1], alpha=1.0, lam=0.5),
            ValueError,
            ["log_p", "log_q", "(2, 2)", "(1,)"],
        ),
        (
            lambda: am.alpha_mixture(LOGS, torch.zeros(2, 2), alpha=1.0, lam=0.5),
            TypeError,
            ["log_p", "log_q", "numpy", "torch"],
        ),
        (
            lambda: am.alpha_mixture(LOGS, LOGS, alpha=1.0, lam=1.2),
            ValueError,
            ["lam", "1.2", "[0, 1]"],
        ),
        (lambda: am.KL()(LOGS, LOGS.astype(int)), TypeError, ["log_y", "int64"]),
        (lambda: am.KL()(LOGS, LOGS[:, :1]), ValueError, ["log_x", "log_y", "(2, 2)", "(2, 1)"]),
        (lambda: am.KL()(LOGS, LOGS, axis=5), ValueError, ["axis", "5", "[-2, 1]"]),
        (lambda: am.KL()(np.zeros(()), np.zeros(())), ValueError, ["axis", "-1", "log_x"]),
        (lambda: am.KL()(np.zeros((3, 0)), np.zeros((3, 0))), ValueError, ["log_x", "(3, 0)"]),
        (lambda: am.AlphaBeta("a", 1.0), TypeError, ["alpha", "number", "'a'"]),
        (lambda: am.AlphaBeta(0.2, float("inf")), ValueError, ["beta", "finite", "inf"]),
    ],
    ids=lambda value: None,
)
def test_means_and_divergences(call, error, words):
    with pytest.raises(error) as raised:
        call()
    for word in words:
        assert word in str(raised.value), str(raised.value)


def test_messages_are_short_whatever_was_passed():
    with pytest.raises(TypeError) as raised:
        LOSS(list(range(10_000)), LOGITS)
    assert len(str(raised.value)) < 250
    with pytest.raises(ValueError, match="scalar array") as raised:
        LOSS(LOGITS, LOGITS, denominator=np.zeros(10_000))
    assert len(str(raised.value)) < 250


def test_numbers_of_any_library_are_numbers():
    assert am.AMiD(alpha=np.float32(0.5), lam=np.float64(0.5), temperature=jnp.asarray(2)) == (
        am.AMiD(alpha=0.5, lam=0.5, temperature=2.0)
    )
    assert re.fullmatch(r"AMiD\(.*alpha=1.0.*\)", repr(am.AMiD(alpha=1)))
