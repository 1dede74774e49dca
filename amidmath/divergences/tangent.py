"""f-divergences with partials that vanish where the mass is; docs: divergences, D24."""

import math
from abc import abstractmethod
from typing import Any

from amidmath.arrays.annotations import Array, Namespace
from amidmath.divergences.base import Divergence, Evaluated, Separable
from amidmath.formulas.pointwise import absent, without
from amidmath.formulas.simplex import at, top_outcome

# How much of its largest mass y must have where x has its own for one base to do for both.
KEPT = 0.25
LARGE = 1e30

Bases = tuple[Any, Any]
"""The log ratios at which ∂D/∂log x and ∂D/∂log y vanish."""

ORIGIN: Bases = (0.0, 0.0)

Tops = tuple[Any, Any]
"""The outcomes that have these ratios, true once a row each."""


def tops(log_x: Array, log_y: Array, xp: Namespace) -> Tops:
    """Where to anchor the partials by log x and by log y; docs: divergences, D24.

    At the top outcome of either for both, if the other has not lost it, or each at its own.
    """
    x, y = xp.exp(log_x), xp.exp(log_y)
    top_x, top_y = top_outcome(x, xp), top_outcome(y, xp)
    y_has = at(top_x, y, xp) > KEPT * at(top_y, y, xp)
    x_has = at(top_y, x, xp) > KEPT * at(top_x, x, xp)
    return xp.where(x_has & ~y_has, top_y, top_x), xp.where(y_has, top_x, top_y)


def limited(exponent: Array, factor: float, xp: Namespace) -> Array:
    """A number whose product with the factor has an exponential within √max; NaN stays."""
    reach = 0.5 * math.log(xp.finfo(exponent.dtype).max)
    most = min(reach / abs(factor), LARGE) if factor else LARGE
    return xp.where(exponent > most, most, xp.where(exponent < -most, -most, exponent))


class Anchored(Divergence):
    """A divergence whose partials are relative to those at outcomes that may be chosen."""

    @abstractmethod
    def evaluate(
        self,
        log_x: Array,
        log_y: Array,
        log_ratio: Array,
        with_partials: bool,
        xp: Namespace,
        anchors: Tops | None = None,
    ) -> Evaluated:
        """Rows of D(x‖y) and, if wanted, its derivatives, which vanish at the anchors.

        Anchors are those of :func:`tops` if they are not given; docs: divergences, D24.
        """


class Tangent(Anchored, Separable):
    """Σ y f(x/y), whose partials may be those of f less any of its tangents.

    A tangent adds a number to the sum over distributions, and multiples of x and of y to the
    partials. With that at a ratio that x and y have where their mass is, the partials are small
    there, and so is the rounding in them. Docs: divergences, D24.
    """

    @staticmethod
    @abstractmethod
    def orders(params: tuple[float, ...]) -> tuple[float, float]:
        """By which powers of x/y the partials by log y and by log x grow, or more."""

    @staticmethod
    @abstractmethod
    def term(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        base: Any = 0.0,
    ) -> Any:
        """The summand of one token, less the tangent at the log ratio ``base``: non-negative."""

    @staticmethod
    @abstractmethod
    def partials(
        log_x: Any,
        log_y: Any,
        log_ratio: Any,
        params: tuple[float, ...],
        xp: Any,
        bases: Bases = ORIGIN,
    ) -> tuple[Any, Any]:
        """∂D/∂log x and ∂D/∂log y at one token, less those of the tangents at the bases."""

    def evaluate(
        self,
        log_x: Array,
        log_y: Array,
        log_ratio: Array,
        with_partials: bool,
        xp: Namespace,
        anchors: Tops | None = None,
    ) -> Evaluated:
        """The terms, summed; the sum of partials of one tangent is the term above it, by Euler."""
        nothing = absent(log_x, log_y, xp)
        tokens = without(nothing, log_x, log_y, log_ratio, xp)
        value = xp.sum(self.term(*tokens, self.params, xp), axis=-1)
        if not with_partials:
            return value, None
        top_x, top_y = anchors or tops(log_x, log_y, xp)
        a, b = self.orders(self.params)
        there = at(top_x, tokens[2], xp)
        base_x, base_y = limited(there, b, xp), limited(at(top_y, tokens[2], xp), a, xp)
        one = base_x == base_y
        by_x, by_y = self.partials(*tokens, self.params, xp, (base_x, base_y))
        above = self.term(*tokens, self.params, xp, xp.where(one, base_x, 0.0))
        partials = (by_x, by_y, xp.where(one, above, by_x + by_y))
        by_x, by_y, both = (xp.where(nothing, 0.0, p) for p in partials)
        return value, (by_x, by_y, both)
