"""What every divergence is: pointwise terms and derivatives, summed over the last axis."""

from abc import ABC, abstractmethod
from typing import Any

from amidmath import _checks, _dispatch
from amidmath._pointwise import shared_support
from amidmath._rows import RowForm
from amidmath._typing import Array, Namespace, Partials


class Divergence(ABC):
    """A divergence D(x‖y) = Σᵢ term(xᵢ, yᵢ) between distributions given by their logarithms.

    A subclass is a frozen dataclass that writes its formula once, in :meth:`term` and
    :meth:`partials`, over plain numbers or arrays; everything that computes it runs these two.
    Values are in nats. -inf stands for probability zero: a token that is zero on both sides adds
    nothing, and an infinite divergence is +inf.
    """

    @property
    def params(self) -> tuple[float, ...]:
        """The numbers that :meth:`term` and :meth:`partials` take, none by default."""
        return ()

    @staticmethod
    @abstractmethod
    def term(log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any) -> Any:
        """The non-negative summand of one token.

        Args:
            log_x: log x, or -inf.
            log_y: log y, or -inf.
            log_ratio: log(x/y); ±inf where one of them is zero; both are never.
            params: the divergence's parameters.
            xp: the namespace that computes (see ``amidmath._pointwise``).
        """

    @staticmethod
    @abstractmethod
    def partials(
        log_x: Any, log_y: Any, log_ratio: Any, params: tuple[float, ...], xp: Any
    ) -> tuple[Any, Any]:
        """∂D/∂log x and ∂D/∂log y at one token; the arguments are those of :meth:`term`."""

    def __call__(self, log_x: Array, log_y: Array, axis: int = -1) -> Array:
        """D(x‖y) in nats, one value a distribution.

        Differentiable with respect to both arguments where their library differentiates (torch,
        JAX), through the closed-form partial derivatives.

        Args:
            log_x: log-probabilities of x, any shape, real floating dtype.
            log_y: log-probabilities of y, same shape, library and device.
            axis: the axis that runs over the outcomes.

        Returns:
            Non-negative values, of the shape without ``axis``, in float32 (float64 if an input is).

        Raises:
            TypeError: not arrays, of different libraries, or not real floating.
            ValueError: different shapes or devices, or no such axis.
        """
        x, y, shape, xp = self._rows(log_x, log_y, axis)
        return xp.reshape(_dispatch.apply(RowForm(self._block), -1, x, y), shape)

    def value_and_grad(
        self, log_x: Array, log_y: Array, axis: int = -1
    ) -> tuple[Array, tuple[Array, Array]]:
        """D(x‖y) with its partial derivatives, on any library.

        The derivatives are those of the sum of terms, with x and y free: on the simplex only
        their projection matters, and constant multiples of x or y in them are a convention.

        Args:
            log_x: log-probabilities of x, any shape, real floating dtype.
            log_y: log-probabilities of y, same shape, library and device.
            axis: the axis that runs over the outcomes.

        Returns:
            The values, and (∂D/∂log x, ∂D/∂log y) in the shapes and dtypes of the inputs.

        Raises:
            TypeError: not arrays, of different libraries, or not real floating.
            ValueError: different shapes or devices, or no such axis.
        """
        x, y, shape, xp = self._rows(log_x, log_y, axis)
        value, grads = _dispatch.value_and_partials(RowForm(self._block), (True, True), x, y)
        moved = (*shape, x.shape[-1])
        grad_x, grad_y = (xp.moveaxis(xp.reshape(g, moved), -1, axis) for g in grads)
        return xp.reshape(value, shape), (grad_x, grad_y)

    def _rows(
        self, log_x: Array, log_y: Array, axis: int
    ) -> tuple[Array, Array, tuple[int, ...], Namespace]:
        xp = _checks.namespace(log_x=log_x, log_y=log_y)
        _checks.real_floating(xp, log_x=log_x, log_y=log_y)
        _checks.same_shape(log_x=log_x, log_y=log_y)
        _checks.same_device(log_x=log_x, log_y=log_y)
        axis = _checks.axis_in_range(axis, log_x.ndim, "log_x and log_y")
        if log_x.shape[axis] == 0:
            raise ValueError(
                f"log_x must have an outcome along axis {axis}, got shape {tuple(log_x.shape)}"
            )
        x, y = xp.moveaxis(log_x, axis, -1), xp.moveaxis(log_y, axis, -1)
        flat = (-1, x.shape[-1])
        return xp.reshape(x, flat), xp.reshape(y, flat), x.shape[:-1], xp

    def _block(
        self, log_x: Array, log_y: Array, *, needs: tuple[bool, ...], xp: Namespace
    ) -> tuple[Array, Partials]:
        value, partials = self.evaluate(log_x, log_y, log_x - log_y, any(needs), xp)
        return value, partials or (None, None)

    def evaluate(
        self, log_x: Array, log_y: Array, log_ratio: Array, with_partials: bool, xp: Namespace
    ) -> tuple[Array, tuple[Array, Array] | None]:
        """Rows of D(x‖y) and, if wanted, of the partials, from logarithms and their difference.

        For those who know log(x/y) better than by subtraction; unchecked.
        """
        tokens = shared_support(log_x, log_y, log_ratio, xp)
        value = xp.sum(self.term(*tokens, self.params, xp), axis=-1)
        return value, self.partials(*tokens, self.params, xp) if with_partials else None
