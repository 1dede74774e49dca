"""The libraries that every test of the core runs on, and the oracle it is held against.

The oracle works from definitions, at 60 digits, on lists of mpmath numbers: powers for the mixture,
each divergence's textbook formula, and central differences of the defined loss for gradients. It
knows nothing of how amidmath computes.
"""

from __future__ import annotations

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import contextlib
import functools
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import array_api_strict
import dask
import dask.array
import definitions
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import torch

import amidmath as am

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

mpmath.mp.dps = 60
STEP = mpmath.mpf(10) ** -20

Row = tuple[Any, ...]


# ---------------------------------------------------------------------------------------------
# Libraries


@dataclass(frozen=True)
class Library:
    """One array library at one dtype: how its arrays are made and read."""

    name: str
    dtype: str

    @property
    def eps(self) -> float:
        return float(np.finfo(self.dtype).eps)

    @property
    def tiny(self) -> float:
        """What may be lost: numbers below the smallest normal, the oracle's own 1e-30."""
        return max(1e-30, float(np.finfo(self.dtype).smallest_normal))

    @property
    def differentiates(self) -> bool:
        return self.name in ("torch", "jax")

    def array(self, values: Any, dtype: str | None = None) -> Any:
        """The values as an array of the library, in its dtype unless another is named."""
        values = np.array(values, dtype=dtype or self.dtype)
        if self.name == "numpy":
            return values
        if self.name == "read-only numpy":
            values.flags.writeable = False
            return values
        if self.name == "array-api-strict":
            return array_api_strict.asarray(values)
        if self.name == "torch":
            return torch.from_numpy(values)
        if self.name == "dask":
            halves = tuple(max(1, -(-n // 2)) if i == 0 else n for i, n in enumerate(values.shape))
            return dask.array.from_array(values, chunks=halves)
        return jnp.asarray(values)

    def numpy(self, array: Any) -> np.ndarray:
        """An array of the library as a NumPy array, after a check of its type."""
        kind = {
            "numpy": (np.ndarray, np.generic),
            "read-only numpy": (np.ndarray, np.generic),
            "array-api-strict": type(array_api_strict.asarray(0.0)),
            "torch": torch.Tensor,
            "jax": jax.Array,
            "dask": dask.array.Array,
        }[self.name]
        assert isinstance(array, kind), f"{self.name} gave back a {type(array)}"
        return np.asarray(array.detach() if self.name == "torch" else array)

    def compiled(self, f: Callable[..., Any]) -> Callable[..., Any]:
        """The function; for JAX in one piece, where every operation would be compiled by itself.

        That takes a quarter of the time where shapes are new, and more where they are not.
        """
        return jax.jit(f) if self.name == "jax" else f

    def derivatives(
        self, f: Callable[..., Any], *arrays: Any, cotangent: Any = None
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Value and gradients of f by the library's own differentiation (sum for non-scalars)."""
        if self.name == "torch":
            leaves = [a.clone().requires_grad_() for a in arrays]
            value = f(*leaves)
            seed = torch.ones_like(value) if cotangent is None else self.array(cotangent)
            grads = torch.autograd.grad(value, leaves, seed)
        else:
            value, pull = jax.vjp(f, *arrays)
            seed = jnp.ones_like(value) if cotangent is None else self.array(cotangent)
            grads = pull(seed)
        return self.numpy(value), tuple(self.numpy(g) for g in grads)


LIBRARIES = ("numpy", "read-only numpy", "array-api-strict", "torch", "jax")
# JAX in float64 takes the most time of all, for formulas that the others check in float64: it has
# the tests of ONCE.
EVERY = [Library(name, dtype) for dtype in ("float32", "float64") for name in LIBRARIES]
EVERY.remove(Library("jax", "float64"))
MIXED = [
    Library("numpy", "float64"),
    Library("read-only numpy", "float32"),
    Library("array-api-strict", "float64"),
    Library("torch", "float32"),
    Library("jax", "float32"),
    # Minutes of graphs for what the table of capabilities checks in seconds: only with -m dask.
    pytest.param(Library("dask", "float64"), marks=pytest.mark.dask),
]
STRICTEST = {
    "boolean_indexing": False,
    "data_dependent_shapes": False,
    "enabled_extensions": (),
}


@contextlib.contextmanager
def as_configured(library: Library) -> Iterator[Library]:
    """array-api-strict at its strictest, JAX with 64 bits for float64 only, no warnings.

    dask computes in this thread, so that what it computes is seen where it is asked for.
    """
    if library.name == "array-api-strict":
        with array_api_strict.ArrayAPIStrictFlags(**STRICTEST), np.errstate(all="ignore"):
            yield library
        return
    if library.name == "dask":  # lazy: what overflows does so when it is looked at
        with dask.config.set(scheduler="synchronous"), np.errstate(all="ignore"):
            yield library
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with jax.enable_x64(library.name == "jax" and library.dtype == "float64"):
            yield library


@pytest.fixture(params=EVERY, ids=lambda library: f"{library.name}-{library.dtype}")
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    with as_configured(request.param) as configured:
        yield configured


@pytest.fixture(params=MIXED, ids=lambda library: f"{library.name}-{library.dtype}")
def any_library(request: pytest.FixtureRequest) -> Iterator[Library]:
    """Every library once, for what does not depend on the dtype."""
    with as_configured(request.param) as configured:
        yield configured


@pytest.fixture(params=[a for a in EVERY if a.differentiates], ids=lambda a: f"{a.name}-{a.dtype}")
def autodiff(request: pytest.FixtureRequest) -> Iterator[Library]:
    """The libraries that differentiate: torch and JAX."""
    with as_configured(request.param) as configured:
        yield configured


# float32 where a float64 would be a mistake that torch shows, and the other way in JAX.
ONCE = [Library("torch", "float32"), Library("jax", "float64")]


@pytest.fixture(params=ONCE, ids=lambda a: f"{a.name}-{a.dtype}")
def any_autodiff(request: pytest.FixtureRequest) -> Iterator[Library]:
    """Both once, for what does not depend on the dtype."""
    with as_configured(request.param) as configured:
        yield configured


@pytest.fixture(params=["numpy", "array-api-strict", "torch"])
def eager(request):
    """The libraries of the one loop, quickly; JAX has its own loop and its own tests."""
    make = {"numpy": np.array, "array-api-strict": array_api_strict.asarray, "torch": torch.tensor}
    with contextlib.nullcontext() if request.param == "numpy" else np.errstate(all="ignore"):
        yield make[request.param]


# ---------------------------------------------------------------------------------------------
# Comparing


def as_floats(values: Any) -> np.ndarray:
    return np.array(values, dtype=object).astype(float)


def error(got: np.ndarray, wanted: Any) -> np.ndarray:
    """|got - wanted|, subtracted at 60 digits; NaN where either is; 0 for equal infinities."""
    got, wanted = np.asarray(got), np.array(wanted, dtype=object)
    assert got.shape == wanted.shape, f"shape {got.shape}, wanted {wanted.shape}"
    result = np.empty(got.shape)
    for index in np.ndindex(got.shape):
        here, there = mpmath.mpf(float(got[index])), wanted[index]
        result[index] = 0.0 if here == there else float(abs(here - there))
    return result


def largest(rows: np.ndarray) -> np.ndarray:
    """max |·| over the last axis."""
    return np.abs(as_floats(rows)).max(axis=-1)


# ---------------------------------------------------------------------------------------------
# Definitions


def exact(values: Any) -> Any:
    """Binary floating-point numbers as mpmath numbers, unchanged."""
    array = np.asarray(values)
    if array.ndim == 0:
        return mpmath.mpf(float(array))
    return tuple(exact(v) for v in array)


def log_softmax(logits: Row) -> Row:
    return tuple(definitions.log_softmax(logits))


mean = functools.cache(definitions.mean)
# Whose partial derivatives with x and y free are those that the code gives.
ON_MEASURES = {"KL": am.GeneralizedKL(), "ReverseKL": am.Dual(am.GeneralizedKL())}


@functools.cache
def divergence(name: tuple[Any, ...], log_x: Row, log_y: Row, *, simplex: bool) -> Any:
    """D(x‖y) for ("KL",), ("AlphaBeta", a, b) and so on, with digits to spare next to limits."""
    here = getattr(am, name[0])(*name[1:])
    if not simplex:
        here = ON_MEASURES.get(name[0], here)
    exponents = [abs(mpmath.mpf(c)) for c in (*name[1:], sum(name[1:]))]
    lost = mpmath.fprod(c for c in exponents if c != 0)
    with mpmath.workdps(mpmath.mp.dps + max(0, int(-mpmath.log10(lost)) * 2)):
        x, y = ([mpmath.exp(v) for v in row] for row in (log_x, log_y))
        return +definitions.divergence_of(here, x, y)


@functools.cache
def log_assistant(log_p: Row, log_q: Row, alpha: float, lam: float) -> tuple[Row, Any]:
    """log r of the normalised α-mixture, and log Z."""
    lam = mpmath.mpf(lam)
    r = [
        mean((mpmath.exp(u), mpmath.exp(v)), (lam, 1 - lam), alpha)
        for u, v in zip(log_p, log_q, strict=True)
    ]
    log_z = definitions.log(mpmath.fsum(r))
    logs = (definitions.log(x) for x in r)
    return tuple(v - log_z if v > -mpmath.inf else v for v in logs), log_z


@functools.cache
def partial_derivatives(name: tuple[Any, ...], log_x: Row, log_y: Row) -> tuple[Row, Row]:
    """∂D/∂log x and ∂D/∂log y, x and y free, by central differences; a sum over tokens."""
    over_x, over_y = [], []
    for u, v in zip(log_x, log_y, strict=True):

        def token(u: Any, v: Any) -> Any:
            return divergence(name, (u,), (v,), simplex=False)

        over_x.append(_difference(lambda h, u=u, v=v: token(u + h, v), u))
        over_y.append(_difference(lambda h, u=u, v=v: token(u, v + h), v))
    return tuple(over_x), tuple(over_y)


def _difference(f: Callable[[Any], Any], log_v: Any) -> Any:
    if log_v == -mpmath.inf:
        return mpmath.mpf(0)
    return (f(STEP) - f(-STEP)) / (2 * STEP)


@dataclass(frozen=True)
class Expected:
    """What a loss and its gradients with respect to the logits are, for every row.

    ``terms`` is the largest of the partial derivatives ∂D/∂log x and ∂D/∂log y: a gradient with
    respect to logits is made of differences of those, so it cannot be more precise than
    eps·terms. ``log_z`` is log Z of the mixture, which every log r is a difference to, and
    ``span`` the largest |log p| or |log q|.
    """

    value: np.ndarray
    student: np.ndarray
    teacher: np.ndarray
    terms: np.ndarray
    log_z: np.ndarray
    span: np.ndarray


class Oracle:
    """Losses by definition; each is computed once a session, whatever asks for it."""

    mp = mpmath
    exact = staticmethod(exact)
    mean = staticmethod(mean)
    divergence = staticmethod(divergence)
    log_softmax = staticmethod(log_softmax)
    log_assistant = staticmethod(log_assistant)
    error = staticmethod(error)
    floats = staticmethod(as_floats)
    partials = staticmethod(partial_derivatives)
    largest = staticmethod(largest)

    def amid(
        self,
        student: np.ndarray,
        teacher: np.ndarray,
        name: tuple[Any, ...],
        order: str,
        alpha: float,
        lam: float,
        temperature: float = 1.0,
        detach_assistant: bool = False,
    ) -> Expected:
        """The rows' losses D(first‖second) with gradients by central differences."""
        rows = [
            _amid_row(exact(s), exact(t), name, order, alpha, lam, temperature, detach_assistant)
            for s, t in zip(student, teacher, strict=True)
        ]
        return Expected(*(np.array(column, dtype=object) for column in zip(*rows, strict=True)))


@functools.cache
def _states(
    student: Row, teacher: Row, alpha: float, lam: float, temperature: float, detached: bool
) -> tuple[tuple[Row, Row, Row], ...]:
    """log p, log q, log r at the point, then a step up and down along every finite logit."""
    n = len(student)
    point = (*student, *teacher)

    def state(v: Row) -> tuple[Row, Row, Row]:
        log_q = log_softmax(tuple(x / mpmath.mpf(temperature) for x in v[:n]))
        log_p = log_softmax(tuple(x / mpmath.mpf(temperature) for x in v[n:]))
        log_r = base[2] if detached and base else log_assistant(log_p, log_q, alpha, lam)[0]
        return log_p, log_q, log_r

    base: tuple[Row, Row, Row] | None = None
    base = state(point)
    states = [base]
    for i, v in enumerate(point):
        if v > -mpmath.inf:
            states += [state((*point[:i], v + h, *point[i + 1 :])) for h in (STEP, -STEP)]
    return tuple(states)


@functools.cache
def _amid_row(
    student: Row,
    teacher: Row,
    name: tuple[Any, ...],
    order: str,
    alpha: float,
    lam: float,
    temperature: float,
    detached: bool,
) -> tuple[Any, Row, Row]:
    states = iter(_states(student, teacher, alpha, lam, temperature, detached))

    def loss() -> Any:
        log_p, log_q, log_r = next(states)
        named = {"p": log_p, "q": log_q, "r": log_r}
        return divergence(name, named[order[0]], named[order[1]], simplex=True)

    value = loss()
    grad = tuple(
        (loss() - loss()) / (2 * STEP) if v > -mpmath.inf else mpmath.mpf(0)
        for v in (*student, *teacher)
    )
    n = len(student)
    log_p, log_q, log_r = _states(student, teacher, alpha, lam, temperature, detached)[0]
    named = {"p": log_p, "q": log_q, "r": log_r}
    partials = partial_derivatives(name, named[order[0]], named[order[1]])
    terms = max(abs(v) for side in partials for v in side)
    log_z = log_assistant(log_p, log_q, alpha, lam)[1]
    span = max(-v for v in (*log_p, *log_q) if v > -mpmath.inf)
    return value, grad[:n], grad[n:], terms, log_z, span


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return Oracle()
