"""The base of every divergence, and the registry of those that have a name."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from amidmath.arrays import checks
from amidmath.arrays.annotations import Array, Namespace, Partials
from amidmath.formulas.pointwise import shared_support
from amidmath.rows import tables
from amidmath.rows.batches import Batches, batches
from amidmath.rows.distributions import check_normalized
from amidmath.rows.forms import RowForm
from amidmath.rows.tables import Table
from amidmath.values.operators import no_algebra

Evaluated = tuple[Array, tuple[Array, Array, Array] | None]
"""Values, and ∂D/∂log x, ∂D/∂log y and the sum of the two, where they are wanted."""

Checks = dict[str, Callable[[str, Any], Any]]
"""Functions of the name and the value of a parameter, which give it back or raise."""

REGISTRY: dict[str, type["Divergence"]] = {}
"""Divergences by name; a class that sets :attr:`Divergence.name` is in it."""


class Divergence(ABC):
    """A divergence D(x‖y) between distributions given by their logarithms, in nats.

    A subclass is a frozen dataclass whose fields are its parameters. -inf stands for probability
    zero: a token that is zero, or below the smallest normal number, on both sides adds nothing, and
    an infinite divergence is +inf. Docs: stable-evaluation, S8.

    Attributes:
        name: what :func:`divergence` knows it by; None for those that numbers cannot describe.
        on_measures: whether x and y may have any total mass; otherwise it must be 1.
        checks: what a parameter must be, where it is not any finite number.
        examples: parameter values that the tests and ``make certify`` run it at.
    """

    name: ClassVar[str | None] = None
    on_measures: ClassVar[bool] = False
    checks: ClassVar[Checks] = {}
    examples: ClassVar[tuple[tuple[Any, ...], ...]] = ((),)

    __array_ufunc__ = None  # an array on the left leaves the operator to us
    __add__ = __radd__ = __sub__ = __rsub__ = __neg__ = no_algebra
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __pow__ = no_algebra

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Put a class that names itself into the registry."""
        super().__init_subclass__(**kwargs)
        name = cls.__dict__.get("name")
        if name is not None:
            known = REGISTRY.setdefault(name, cls)
            if known.__qualname__ != cls.__qualname__:
                raise ValueError(f"name {name!r} is taken by {known.__qualname__}")

    def __post_init__(self) -> None:
        """Check the parameters."""
        for parameter in fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            name = parameter.name
            check: Callable[[str, Any], Any] = self.checks.get(name, checks.number)
            object.__setattr__(self, name, check(name, getattr(self, name)))

    @property
    def params(self) -> tuple[Any, ...]:
        """The parameters, in order."""
        return tuple(getattr(self, f.name) for f in fields(self))  # type: ignore[arg-type]

    @staticmethod
    @abstractmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """D(x‖y) as textbooks define it, for the tests to hold the code against.

        Args:
            x: positive numbers, a distribution.
            y: positive numbers, a distribution.
            params: the parameters.
            mp: a module with ``log``, ``sqrt``, ``fsum`` and the like, such as mpmath.
        """

    @abstractmethod
    def evaluate(
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """Rows of D(x‖y) and, if wanted, its derivatives, from logarithms and their difference.

        For those who know log(x/y) better than by subtraction; unchecked.

        Returns:
            The values, and ∂D/∂log x, ∂D/∂log y, and their sum, which is small where they cancel
            and which each divergence knows better than by addition.
        """

    def __call__(
        self,
        log_x: Array,
        log_y: Array,
        axis: int = -1,
        *,
        keepdims: bool = False,
        backend: str | None = None,
    ) -> Array:
        """D(x‖y) in nats, one value a pair of distributions.

        Differentiable with respect to both arguments where their library differentiates (torch,
        JAX), through the closed-form partial derivatives.

        Axes of batches broadcast as NumPy's do: shapes (N, 1, V) and (1, M, V) give a table (N, M).
        It is made a chunk of pairs at a time, so that besides the arguments, the values and the
        gradients there is nothing larger than a chunk; the backward pass makes the partial
        derivatives again, which takes about as long as the values and once more for each argument.
        Only under "reference", in ``torch.func`` and forward mode of torch, for shapes that are
        not known in ``jax.export``, and for a gradient that is differentiated by its cotangents,
        are all N·M pairs laid out in memory.

        Args:
            log_x: log-probabilities of x, any shape, real floating dtype.
            log_y: log-probabilities of y, same library and device, as many outcomes along ``axis``;
                the other axes broadcast with those of x.
            axis: the axis that runs over the outcomes, an integer, counted in each argument by
                itself. It does not broadcast.
            keepdims: keep that axis, with one entry.
            backend: None for the fastest that there is; "reference" for the array core, which
                torch and JAX then differentiate operation by operation, as often as asked;
                "compiled" for a row kernel or an error that says why not.

        Returns:
            Non-negative values, of the shape that the arguments' shapes without ``axis`` broadcast
            to, in float32 (float64 if an input is).

        Raises:
            TypeError: not plain arrays, of different libraries, or not real floating; no integer
                as the axis.
            ValueError: shapes that do not broadcast, different numbers of outcomes, different
                devices, no such axis, probabilities that do not sum to 1 (looked at on the CPU
                outside of jit, not elsewhere), or a backend that is unknown or cannot compute this.
            ModuleNotFoundError: backend "compiled" without llvmlite.

        Example:
            >>> import numpy as np, amidmath as am
            >>> log_p = np.log([[0.5, 0.5], [0.9, 0.1]])
            >>> print(am.KL()(log_p[:, None, :], log_p[None, :, :]).round(4))
            [[0.     0.5108]
             [0.3681 0.    ]]
        """
        checks.backend(backend)
        found, x, y, table, xp = self._rows(log_x, log_y, axis)
        values = tables.values(RowForm(DivergenceBlock(self)), table, x, y, backend)
        return found.placed(values, keepdims, xp)

    def value_and_grad(
        self,
        log_x: Array,
        log_y: Array,
        axis: int = -1,
        *,
        keepdims: bool = False,
        backend: str | None = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """D(x‖y) with its partial derivatives, on any library.

        The derivatives are those with x and y free: on the simplex only their projection
        matters, and constant multiples of x or y in them are a convention.

        Args:
            log_x: log-probabilities of x, as for calling the divergence.
            log_y: log-probabilities of y, likewise: axes of batches broadcast.
            axis: the axis that runs over the outcomes, an integer.
            keepdims: keep that axis in the values, with one entry.
            backend: as for calling the divergence; the derivatives are the closed form's in any
                case.

        Returns:
            The values, and (∂D/∂log x, ∂D/∂log y) in the shapes and dtypes of the inputs, summed
            over the axes along which an input is repeated. The sums are made a chunk of pairs at a
            time.

        Raises:
            TypeError: not arrays, of different libraries, or not real floating.
            ValueError: as for calling the divergence.
            ModuleNotFoundError: backend "compiled" without llvmlite.
        """
        checks.backend(backend)
        found, x, y, table, xp = self._rows(log_x, log_y, axis)
        form = RowForm(DivergenceBlock(self))
        values, grads = tables.value_and_gradients(form, table, x, y, backend)
        grad_x, grad_y = found.back(grads, (log_x, log_y), xp)
        return found.placed(values, keepdims, xp), (grad_x, grad_y)

    def _rows(
        self, log_x: Array, log_y: Array, axis: int
    ) -> tuple[Batches, Array, Array, Table, Namespace]:
        """Both arguments as rows (A, V) and (B, V), and how they are paired."""
        xp = checks.namespace(log_x=log_x, log_y=log_y)
        checks.real_floating(xp, log_x=log_x, log_y=log_y)
        checks.same_device(log_x=log_x, log_y=log_y)
        found = batches(axis, log_x=log_x, log_y=log_y)
        x, y = found.last((log_x, log_y), xp)
        table = Table.of(x.shape[:-1], y.shape[:-1])
        x, y = (xp.reshape(a, (-1, a.shape[-1])) for a in (x, y))
        if not self.on_measures:
            check_normalized(log_x=x, log_y=y)
        return found, x, y, table, xp


@dataclass(frozen=True)
class DivergenceBlock:
    """Rows of both arguments to values and partial derivatives."""

    divergence: Divergence

    def __call__(
        self, log_x: Array, log_y: Array, *, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        """The divergence's own; docs: design."""
        value, partials = self.divergence.evaluate(log_x, log_y, log_x - log_y, any(needs), xp)
        return value, (None, None) if partials is None else partials[:2]


class Separable(Divergence):
    """A divergence Σᵢ term(xᵢ, yᵢ) of non-negative terms.

    A subclass writes its formula once, in :meth:`term` and :meth:`partials`, over plain numbers or
    arrays; everything that computes it runs these two.
    """

    @staticmethod
    @abstractmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """The non-negative summand of one token.

        Args:
            log_x: log x, or -inf.
            log_y: log y, or -inf.
            log_ratio: log(x/y); ±inf where one of them is zero; both are never.
            params: the divergence's parameters.
            xp: the namespace that computes (see ``amidmath.formulas.pointwise``).
        """

    @staticmethod
    @abstractmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """∂D/∂log x and ∂D/∂log y at one token; the arguments are those of :meth:`term`."""

    @property
    def degree(self) -> float:
        """By which power of t the divergence grows when x and y are multiplied by t."""
        return 1.0

    def evaluate(
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """The terms, summed; the sum of the partials is the degree times the term, by Euler."""
        tokens = shared_support(log_x, log_y, log_ratio, xp)
        terms = self.term(*tokens, self.params, xp)
        value = xp.sum(terms, axis=-1)
        if not with_partials:
            return value, None
        by_x, by_y = self.partials(*tokens, self.params, xp)
        return value, (by_x, by_y, self.degree * terms)


def divergence(name: str, **params: Any) -> Divergence:
    """The divergence of that name with these parameters, as command lines and configs name it.

    Args:
        name: one of ``REGISTRY``: "kl", "jensen_shannon", "alpha_beta", …
        **params: its parameters, by the names of the class's arguments.

    Returns:
        An instance.

    Raises:
        TypeError: a parameter that it does not have, or one that it needs and did not get.
        ValueError: an unknown name, or a parameter out of its range.

    Example:
        >>> import amidmath as am
        >>> am.divergence("alpha_beta", alpha=0.2, beta=0.7)
        AlphaBeta(alpha=0.2, beta=0.7)
    """
    checks.choice("name", name, sorted(REGISTRY))
    cls = REGISTRY[name]
    known = list(cls.__match_args__)  # type: ignore[attr-defined]
    unknown = sorted(set(params) - set(known))
    if unknown:
        accepted = ", ".join(known) or "none"
        raise TypeError(f"{name} has no parameter {unknown[0]!r}; it takes: {accepted}")
    try:
        return cls(**params)
    except TypeError as error:
        if set(params) == set(known):
            raise
        raise TypeError(f"{name} needs the parameters {', '.join(known)}: {error}") from None
