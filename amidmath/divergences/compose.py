"""Divergences made of others: the dual and the symmetrisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from amidmath.arrays.annotations import Array, Namespace
from amidmath.divergences.base import Divergence, Evaluated


@dataclass(frozen=True)
class _Of(Divergence):
    divergence: Divergence

    def __post_init__(self) -> None:
        """Check that it is a divergence."""
        if not isinstance(self.divergence, Divergence):
            raise TypeError(
                f"divergence must be a Divergence such as am.KL(), got {self.divergence!r}"
            )
        object.__setattr__(self, "on_measures", self.divergence.on_measures)


@dataclass(frozen=True)
class Dual(_Of):
    """The dual divergence D*(x‖y) = D(y‖x).

    Of an f-divergence it is that of f*(u) = u f(1/u) (TFP's ``dual_csiszar_function``).

    Source: docs: divergences, D21.

    Args:
        divergence: D.

    Raises:
        TypeError: not a divergence.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> bool(am.Dual(am.KL())(log_x, log_y) == am.KL()(log_y, log_x))
        True
    """

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """D(y‖x)."""
        (divergence,) = params
        return divergence.definition(y, x, divergence.params, mp)

    def evaluate(
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """D's, with everything exchanged."""
        value, partials = self.divergence.evaluate(log_y, log_x, -log_ratio, with_partials, xp)
        return value, None if partials is None else (partials[1], partials[0], partials[2])


@dataclass(frozen=True)
class Symmetrized(_Of):
    """The symmetrised divergence ½ D(x‖y) + ½ D(y‖x).

    With the ½ (TFP's ``symmetrized_csiszar_function`` has it too); Jeffreys' divergence is twice
    the symmetrised KL.

    Source: docs: divergences, D21.

    Args:
        divergence: D.

    Raises:
        TypeError: not a divergence.

    Example:
        >>> import numpy as np, amidmath as am
        >>> log_x, log_y = np.log([0.5, 0.5]), np.log([0.25, 0.75])
        >>> print(f"{2 * am.Symmetrized(am.KL())(log_x, log_y):.6f}")
        0.274653
    """

    @staticmethod
    def definition(x: Sequence[Any], y: Sequence[Any], params: tuple[Any, ...], mp: Any) -> Any:
        """½ D(x‖y) + ½ D(y‖x)."""
        (divergence,) = params
        there = divergence.definition(x, y, divergence.params, mp)
        return (there + divergence.definition(y, x, divergence.params, mp)) / 2

    def evaluate(
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> Evaluated:
        """Half of D's both ways."""
        there, partials = self.divergence.evaluate(log_x, log_y, log_ratio, with_partials, xp)
        back, reverse = self.divergence.evaluate(log_y, log_x, -log_ratio, with_partials, xp)
        value = 0.5 * there + 0.5 * back
        if partials is None or reverse is None:
            return value, None
        by_x, by_y, both = partials
        back_y, back_x, reverse_both = reverse
        sums = (by_x + back_x, by_y + back_y, both + reverse_both)
        return value, (0.5 * sums[0], 0.5 * sums[1], 0.5 * sums[2])
