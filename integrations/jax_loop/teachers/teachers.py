"""Where a batch's teacher comes from: a model in memory, or a cache of its most probable tokens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from flax import nnx
from numpy.typing import NDArray

from amidmath.integrations.common.recipe.recipe import Recipe
from amidmath.integrations.common.recipe.supports import check_finite
from amidmath.integrations.common.rows.prepared import ROW
from amidmath.integrations.common.teacher_cache.cached_rows import CachedRows
from amidmath.integrations.common.text.vocabularies import compared_first
from amidmath.integrations.jax_loop.models.decoder import Decoder

Batch = Mapping[str, NDArray[Any]]


class _WithoutLists:
    """What has no lists to add to a batch."""

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
class CachedTeacher:
    """The most probable tokens that a model gave beforehand.

    Args:
        rows: the cache, of the training rows and the held-out ones.
    """

    rows: CachedRows
    graph = None
    parameters = None
    model = None

    def with_lists(self, batch: Batch) -> dict[str, NDArray[Any]]:
        """A batch with the lists of its rows."""
        found = bare(batch)
        numbers = batch[ROW]
        length = batch["input_ids"].shape[-1]
        flat = numbers.ravel()
        lists = self.rows.lists((len(flat), length), flat.tolist())
        shape = (*numbers.shape, length, -1)
        found["top_log_probs"] = np.asarray(lists.log_probs).reshape(shape)
        found["top_indices"] = np.asarray(lists.indices).reshape(shape)
        return found

    def describe(self) -> str:
        """The cache in one line."""
        return self.rows.describe()


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


def bare(batch: Batch) -> dict[str, NDArray[Any]]:
    """A batch without what no model and no loss takes: the rows' numbers."""
    return {name: array for name, array in batch.items() if name != ROW}


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
