"""Teachers of a batch: a model in memory, the student's base, or a cache."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flax import nnx
from numpy.typing import NDArray

from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.recipe.supports import check_finite
from amidmath.integrations.common.text.vocabularies import compared_first
from amidmath.integrations.jax_loop.models.decoder import Decoder
from amidmath.integrations.jax_loop.teachers.cached import Batch, CachedTeacher, bare


class _WithoutLists:
    """A teacher without lists to add to a batch."""

    def with_lists(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """A batch as it goes to the devices."""
        return bare(batch)


@dataclass(frozen=True)
class ModelTeacher(_WithoutLists):
    """A model in memory, which stays as it is.

    Args:
        model: the model.
        name: for people.
    """

    model: Decoder
    name: str

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        graph, parameters = nnx.split(self.model)
        return graph, parameters

    @property
    def graph(self) -> Any:
        """Its structure, a constant of what is compiled."""
        return self._parts[0]

    @property
    def parameters(self) -> Any:
        """Its parameters."""
        return self._parts[1]

    def current(self) -> Any:
        """Its parameters, as they always are."""
        return self.parameters

    def describe(self) -> str:
        """Its name."""
        return self.name


@dataclass(frozen=True)
class BaseTeacher(_WithoutLists):
    """The student's own base model: the student without its adapter, whose weights it has.

    Args:
        graph: the base's structure.
        current: the student's parameters that do not train, as they are now. A training step has
            them already, as part of what it changes.
    """

    graph: Any
    current: Callable[[], Any]
    parameters = None

    @property
    def model(self) -> Decoder:
        """The model."""
        merged: Decoder = nnx.merge(self.graph, self.current())
        return merged

    def describe(self) -> str:
        """In one line."""
        return "the student's base model (its adapter off)"


@dataclass(frozen=True)
class NoTeacher(_WithoutLists):
    """Labels are all there is to learn from."""

    graph = None
    parameters = None
    model = None

    def describe(self) -> str:
        """In one line."""
        return "none"


InMemory = ModelTeacher | BaseTeacher
Teacher = ModelTeacher | BaseTeacher | CachedTeacher | NoTeacher


def compared_with(
    teacher: Teacher, ours: int, vocab: str, recipe: Recipe
) -> tuple[int, int | None]:
    """How many logits a teacher has for a student of ``ours``, and how many first ones count.

    Returns:
        The teacher's, and over how many first tokens the loss is where others are left out, None
        where none are.

    Raises:
        InputError: the loss would be infinite whatever the student learns.
    """
    if isinstance(teacher, CachedTeacher):
        return ours, teacher.rows.tokens
    if not isinstance(teacher, ModelTeacher):
        return ours, None
    theirs = teacher.model.config.vocabulary
    check_finite(recipe, vocab, ours, theirs)
    return theirs, compared_first(vocab, ours, theirs)
