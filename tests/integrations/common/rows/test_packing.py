"""Rows put together: everything in it once, nothing beyond the size, little room left."""

import numpy as np
import pyarrow as pa
import pytest

from amidmath.integrations.common.rows.packing import best_fit, cut, packed_apart, packed_on

ROWS = [[1, 2, 3], [4], [], [5, 6, 7, 8], [9, 10]]


def table() -> pa.Table:
    return pa.table({"input_ids": ROWS, "labels": [[-number for number in row] for row in ROWS]})


def test_the_longest_row_is_placed_where_it_leaves_the_least_room() -> None:
    # 7 opens a group, 6 another, 3 fills the first, 2 the second with 2 left, 2 fills that.
    assert best_fit([2, 7, 3, 2, 6], 10) == [[1, 2], [4, 0, 3]]
    # Of two groups with as much room, the one that has had it for longest.
    assert best_fit([6, 6, 1, 1], 10) == [[0, 2, 3], [1]]


@pytest.mark.parametrize("seed", range(4))
def test_every_row_is_in_one_group_that_holds_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 20, 200).tolist()
    groups = best_fit(lengths, 19)
    rows = sorted(row for group in groups for row in group)
    assert rows == [row for row, length in enumerate(lengths) if length]
    sizes = [sum(lengths[row] for row in group) for group in groups]
    assert max(sizes) <= 19
    assert len(groups) <= -(-11 * sum(lengths) // (9 * 19)) + 1  # best fit's bound, 11/9 OPT + 1


def test_one_stream_is_cut_anywhere() -> None:
    made = packed_on(table(), 4)
    assert [piece.tolist() for piece in made["input_ids"]] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    assert [piece.tolist() for piece in made["labels"]][2] == [-9, -10]


def test_rows_that_are_kept_apart_say_where_each_begins() -> None:
    made = packed_apart(table(), 4)
    assert [row.tolist() for row in made["input_ids"]] == [[5, 6, 7, 8], [1, 2, 3, 4], [9, 10]]
    assert made["seq_lengths"] == [[4], [3, 1], [2]]
    assert all((-a == b).all() for a, b in zip(made["input_ids"], made["labels"], strict=True))


def test_a_cut_keeps_the_beginning_and_the_source() -> None:
    marked = table().append_column("source", pa.array([0, 1, 0, 1, 0]))
    made = cut(marked, 2)
    assert [row.tolist() for row in made["input_ids"]] == [[1, 2], [4], [], [5, 6], [9, 10]]
    assert made["source"] == [0, 1, 0, 1, 0]
