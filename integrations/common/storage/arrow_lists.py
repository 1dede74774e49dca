"""Columns of lists as NumPy arrays, by way of Arrow."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

BATCH = 1000
"""Rows at a time, as datasets' map takes them."""


def lists_of(rows: Dataset, column: str) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """A column of lists, some rows at a time: their numbers end to end, and how many each has."""
    parts: Any = rows.select_columns([column]).with_format("arrow").iter(batch_size=BATCH)
    for part in parts:
        yield lists_in(part, column)


def lists_in(table: Any, column: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The same of one Arrow table."""
    lists = table.column(column).combine_chunks()
    numbers = lists.flatten().to_numpy(zero_copy_only=False)
    return numbers, lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)


def split(table: Any, column: str) -> list[NDArray[Any]]:
    """The lists of a column of an Arrow table, an array each."""
    numbers, lengths = lists_in(table, column)
    return np.split(numbers, np.cumsum(lengths)[:-1])
