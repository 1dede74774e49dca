"""Rows of one length: cut, laid end to end, or put together by best-fit decreasing."""

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amidmath.integrations.common.data.splits import SOURCE
from amidmath.integrations.common.storage.arrow_lists import lists_in, split


def best_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Which rows are put together: best-fit decreasing.

    The longest row is placed first, each where it leaves the least room, or in a new group where
    there is no room; of groups with as much room, the one that has had it for longest.

    Args:
        lengths: of the rows, at most ``size``; those of length 0 are left out.
        size: of a group.

    Returns:
        The numbers of the rows of every group.
    """
    groups: list[list[int]] = []
    rooms: list[int] = []  # different ones, ascending
    with_room: defaultdict[int, deque[list[int]]] = defaultdict(deque)
    filled = (row for row in range(len(lengths)) if lengths[row])
    for row in sorted(filled, key=lambda row: -lengths[row]):
        at = bisect_left(rooms, lengths[row])
        if at < len(rooms):
            room = rooms[at]
            group = with_room[room].popleft()
            if not with_room[room]:
                del rooms[at]
        else:
            room, group = size, []
            groups.append(group)
        group.append(row)
        left = room - lengths[row]
        if left:
            if not with_room[left]:
                insort(rooms, left)
            with_room[left].append(group)
    return groups


def packed_on(table: Any, size: int) -> dict[str, list[NDArray[Any]]]:
    """The rows as one stream, a piece of ``size`` tokens after the other."""
    made = {}
    for name in table.column_names:
        numbers, _ = lists_in(table, name)
        made[name] = np.split(numbers, range(size, len(numbers), size))
    return made


def packed_apart(table: Any, size: int) -> dict[str, list[Any]]:
    """The rows, none longer than ``size``, put together so that little room is left."""
    columns = {name: [row[:size] for row in split(table, name)] for name in table.column_names}
    lengths = [len(row) for row in columns["input_ids"]]
    groups = best_fit(lengths, size)
    made: dict[str, list[Any]] = {
        name: [np.concatenate([rows[i] for i in group]) for group in groups]
        for name, rows in columns.items()
    }
    return made | {"seq_lengths": [[lengths[i] for i in group] for group in groups]}


def cut(table: Any, size: int) -> dict[str, Any]:
    """The first ``size`` tokens of every row."""
    made = {}
    for name in table.column_names:
        if name == SOURCE:
            made[name] = table.column(name).to_pylist()
        else:
            made[name] = [row[:size] for row in split(table, name)]
    return made
