"""Adapters: how closed forms run on the arrays of one library, and how it differentiates them.

Each library has one adapter, in ``amidmath.backends``, which registers how to load it. Nothing
below knows which libraries there are, and no library is imported before its arrays come.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from amidmath.arrays import libraries
from amidmath.arrays.annotations import Array, ClosedForm, Namespace, Partials


class Adapter(Protocol):
    """The protocol of a library's adapter.

    A *closed form* is a hashable callable ``f(*operands, needs, xp) -> (value, partials)`` that
    gives a value together with its partial derivatives in one go, for the operands that ``needs``
    marks. The tangent of the value is ``Σ_j partials[j]·d operand_j``, summed over an axis (over
    none where that is None). So much is enough for torch's autograd and JAX's forward and reverse
    modes to use it, and adapters are the only places that know about them.
    """

    plans_memory: bool
    """Whether the library's compiler plans temporaries, so that rows need not go in chunks."""

    def check(self, name: str, array: Array) -> None:
        """Raise unless the numbers of an argument are what they seem to be, where they seem to lie.

        Raises:
            TypeError: a kind of array that is not taken.
            ValueError: a view or a buffer that has to be turned into numbers first.
        """
        ...

    def largest(self, rows: Array, k: int, xp: Namespace) -> tuple[Array, Array]:
        """The k largest numbers along the last axis and their places, the largest first."""
        ...

    def put(self, rows: Array, at: Array, values: Array, xp: Namespace) -> Array:
        """A copy of rows (N, V) with values (N, k) at places (N, k) of the last axis."""
        ...

    def at_hand(self, array: Array) -> bool:
        """Whether the values can be looked at without waiting for a device or a trace."""
        ...

    def on_cpu(self, array: Array) -> bool:
        """Whether it is in the memory of the CPU; if it is traced, whether it would be."""
        ...

    def apply(
        self, form: ClosedForm, axis: int | None, operands: tuple[Array, ...], backend: str | None
    ) -> Array:
        """The value of a closed form, differentiable where the library differentiates."""
        ...

    def total(
        self,
        form: Any,
        scale: Array | float | None,
        operands: tuple[Array, ...],
        backend: str | None,
    ) -> Array:
        """The sum of the values of a form by rows, times a scale (None is 1); differentiable."""
        ...

    def value_and_partials(
        self,
        form: ClosedForm,
        needs: tuple[bool, ...],
        operands: tuple[Array, ...],
        backend: str | None,
        overwrite: bool,
    ) -> tuple[Array, Partials]:
        """The value and the partial derivatives asked for."""
        ...

    def table_values(self, form: Any, table: Any, x: Array, y: Array, backend: str | None) -> Array:
        """The values (P,) of all pairs of rows of an :class:`amidmath.rows.tables.Table`."""
        ...

    def table_gradients(
        self, form: Any, table: Any, x: Array, y: Array, backend: str | None
    ) -> tuple[Array, Partials]:
        """The values, and the gradients of their sum by x and by y."""
        ...

    def chunked_value(self, call: Any) -> Array:
        """The reduced value of an :class:`amidmath.pairs.chunked.ChunkedCall`, differentiable."""
        ...

    def chunked_partials(self, call: Any, wanted: Sequence[str]) -> tuple[Array, dict[str, Array]]:
        """Its values, and its gradients by name."""
        ...

    def ranks(self, group: Any, array: Array) -> Any:
        """Those who hold shards beside an array: :class:`amidmath.pairs.sharded.Ranks`.

        Raises:
            TypeError: a group of another library, or a library without ranks.
        """
        ...


_loaders: dict[str, Callable[[], Adapter]] = {}
_loaded: dict[str, Adapter] = {}


def register(library: str, load: Callable[[], Adapter]) -> None:
    """Say how the adapter of a library is loaded, by a name of :func:`libraries.name_of`."""
    _loaders[library] = load


def adapter_of(array: Array) -> Adapter:
    """The adapter of the library that an array belongs to."""
    name = libraries.name_of(array)
    found = _loaded.get(name)
    if found is None:
        found = _loaded[name] = _loaders[name]()
    return found
