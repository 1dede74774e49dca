"""Arguments that are numbers: what counts as one does everywhere, and what does not, nowhere."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

import amidmath as am
from amidmath import geometry

S, T = np.random.default_rng(0).normal(size=(2, 3, 4))
P, Q = (a - np.log(np.exp(a).sum(axis=-1, keepdims=True)) for a in (S, T))
W = np.random.default_rng(1).normal(size=(5, 4))
LOSS = am.AMiD()


def head(**numbers):
    return LOSS(am.Hidden(S, am.Head(W, **numbers)), am.Hidden(T, W))


# Numbers only, by the names that errors give them.
ONLY = {
    "temperature": lambda x: am.AMiD(temperature=x)(S, T),
    "temperature ": lambda x: am.AlphaJensenShannon(temperature=x)(S, T),
    "kl's temperature": lambda x: am.methods.kl(x)(S, T),
    "akl's temperature": lambda x: am.methods.akl(temperature=x)(S, T),
    "temperature  ": lambda x: am.top_k(T, 2, x).log_probs,
    "alpha": lambda x: am.AlphaJensenShannon(alpha=x)(S, T),
    "lam": lambda x: am.AlphaJensenShannon(lam=x)(S, T),
    "rho": lambda x: am.Renyi(x)(P, Q),
    "beta": lambda x: am.AlphaBeta(1.0, x)(P, Q),
    "weight": lambda x: am.JensenShannon(x)(P, Q),
    "softcap": lambda x: head(softcap=x),
    "scale": lambda x: head(scale=x),
    "low_rank[2]": lambda x: head(low_rank=(W[:2], W[:, :2], x)),
    "label_weight": lambda x: LOSS(S, T, labels=np.array([0, 1, 2]), label_weight=x),
    "damping": lambda x: geometry.natural_gradient(P, S, damping=x),
    "alpha ": lambda x: geometry.connection(P, S, T, alpha=x),
    "alpha  ": lambda x: geometry.barycenter(P, alpha=x),
    "base": lambda x: am.methods.distillm2_skew(np.array([0.3]), 0.2, x),
    "progress": am.methods.distillm2_beta,
}
# Numbers or arrays, which an array of any library is there until there are logits.
EITHER = {
    "alpha": lambda x: am.AMiD(alpha=x)(S, T),
    "lam": lambda x: am.AMiD(lam=x)(S, T),
    "alpha ": lambda x: am.alpha_mixture(P, Q, alpha=x, lam=0.5),
    "lam ": lambda x: am.alpha_mixture(P, Q, alpha=-1.0, lam=x),
    "alpha  ": lambda x: am.log_falpha_mean(S, alpha=x),
    "t": lambda x: geometry.geodesic(P, Q, x, alpha=1.0),
    "gkd's beta": lambda x: am.methods.gkd(x)(S, T),
    "akl's mu": lambda x: am.methods.akl(mu=x)(S, T),
    "factor": lambda x: (LOSS * x)(S, T),
    "divisor": lambda x: (LOSS / x)(S, T),
    "denominator": lambda x: LOSS(S, T, denominator=x),
}
every = pytest.mark.parametrize(
    ("name", "call"),
    [*ONLY.items(), *EITHER.items()],
    ids=[*ONLY, *(f"{n}, array" for n in EITHER)],
)
HALVES = (np.float16(0.5), np.float64(0.5), np.longdouble(0.5), Fraction(1, 2), Decimal("0.5"))
SCALARS = (np.array(0.5), torch.tensor(0.5), jnp.asarray(0.5), ml_dtypes.bfloat16(0.5))
NOT = (True, np.True_, "0.5", None, 0.5j, [0.5], object(), np.complex64(1), np.datetime64(1, "s"))
NO_SCALARS = (
    *(np.array("0.5"), np.array(0.5, object), np.ma.array(0.5), np.array(0.5 + 0j)),
    *(np.array(True), torch.tensor(True), jnp.asarray(True), torch.tensor(0.5 + 0j)),
    *(np.zeros((), [("x", float)]), np.zeros((), jax.dtypes.float0), jax.random.key(0)),
)


@every
def test_numbers_of_any_kind(name, call):
    wanted = call(0.5)
    for half in HALVES:
        if name in ("factor", "divisor") and isinstance(half, Decimal):
            continue  # which has operators of its own
        np.testing.assert_array_equal(call(half), wanted)
    for one in (1, np.int8(1), np.uint64(1)):
        np.testing.assert_array_equal(call(one), call(1.0))


@pytest.mark.parametrize(("name", "call"), ONLY.items(), ids=ONLY)
def test_arrays_without_axes_are_numbers(name, call):
    for half in SCALARS:
        np.testing.assert_array_equal(call(half), call(0.5))
    for one in (np.array(1), torch.tensor(1), jnp.asarray(1)):
        np.testing.assert_array_equal(call(one), call(1.0))


@every
def test_what_is_no_number(name, call):
    for value in (*NOT, *NO_SCALARS):
        if value is None and name == "denominator":
            continue  # that of the positions
        if value is None and name == "softcap":
            continue
        with pytest.raises(TypeError) as raised:
            call(value)
        known = (name.strip(), "operand", "parts[0].weight", "mu")
        assert any(word in str(raised.value) for word in known), (value, str(raised.value))
    for value in (math.nan, np.float32(np.nan), Decimal("nan"), np.array(np.nan)):
        if name in ("factor", "divisor") and isinstance(value, Decimal):
            continue
        with pytest.raises(ValueError, match=r"nan|number|finite|positive|\[0, 1\]"):
            call(value)


@pytest.mark.parametrize(("name", "call"), ONLY.items(), ids=ONLY)
def test_an_array_in_place_of_a_number(name, call):
    for value in (np.array([0.5]), np.full((3,), 0.5), torch.zeros(1), jnp.ones(2)):
        with pytest.raises(TypeError, match=rf"{name.strip().replace('[', '.')[:-1]}.* a number"):
            call(value)


def test_temperatures_say_what_to_do_instead():
    how = "divide both logits by it"
    for value in (np.ones((3, 1)), torch.ones(3)):
        with pytest.raises(TypeError, match=how):
            am.AMiD(temperature=value)
    with pytest.raises(ValueError, match=f"constant.*requires a gradient.*{how}"):
        am.AMiD(temperature=torch.tensor(2.0, requires_grad=True))

    def of_temperature(temperature):
        return am.AMiD(temperature=temperature)(S, T)

    for traced in (jax.jit, jax.grad):
        with pytest.raises(TypeError, match=f"temperature must be a number that is known.*{how}"):
            traced(of_temperature)(2.0)
    with pytest.raises(TypeError, match=f"temperature must be a number that is known.*{how}"):
        torch.func.vmap(of_temperature)(torch.ones(2))
    with pytest.raises(TypeError, match=f"temperature must be a number that is known.*{how}"):
        am.AMiD(temperature=torch.ones((), device="meta"))


def test_whole_numbers_as_alpha():
    """A Python integer is a number; an array of them is asked to be of floats."""
    assert am.AMiD(alpha=1) == am.AMiD(alpha=1.0)
    for array in (np.array([1, 3]), torch.tensor([1, 3]), jnp.asarray([1, 3])):
        with pytest.raises(TypeError, match=r"alpha.*real floating.*int(32|64); convert it"):
            am.AMiD(alpha=array)


def test_flags():
    for value in (1, None, "no", np.True_):
        with pytest.raises(TypeError, match="detach_assistant must be True or False"):
            am.AMiD(order="qr", detach_assistant=value)
