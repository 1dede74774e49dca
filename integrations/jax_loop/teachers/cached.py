"""A teacher that is not there: its most probable tokens, cached by row of the prepared dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amidmath.integrations.common.rows.prepared import ROW
from amidmath.integrations.common.teacher_cache.cached_rows import CachedRows

Batch = Mapping[str, NDArray[Any]]


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


def bare(batch: Batch) -> dict[str, NDArray[Any]]:
    """A batch without what no model and no loss takes: the rows' numbers."""
    return {name: array for name, array in batch.items() if name != ROW}
