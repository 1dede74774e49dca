"""Numbered batches of prepared rows, NumPy arrays of one shape for a whole run."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace
from datasets import Dataset
from numpy.typing import NDArray

from amidmath.integrations.common.data.splits import SOURCE
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.marks import NO_LABEL, NO_ROW
from amidmath.integrations.common.rows.order import order_of
from amidmath.integrations.common.rows.prepared import ROW
from amidmath.integrations.common.storage.arrow_lists import lists_in, lists_of

Batch: TypeAlias = dict[str, NDArray[np.int32]]

ORDERS = ("random", "sequential")
"""A new order of the rows in every epoch, or their own in all."""

_MULTIPLE = 8


class Batches:
    """The batches of every optimiser step of a run.

    Nothing is remembered between steps: a run goes on from the number of a step. As with
    transformers' trainer, an epoch's last batches are a step even if they are fewer, or smaller;
    what is missing is filled with rows of padding, in which no position counts.

    Args:
        rows: prepared ones (``rows.prepare_rows``). A column "row" has their numbers; without it
            they are counted from 0.
        batch_size: rows of a batch.
        accumulation: batches of an optimiser step.
        length: tokens of every row; None for those of the longest, up to a multiple of 8.
        pad: the token that fills rows.
        seed: of the orders.
        order: one of ``ORDERS``.

    Attributes:
        length: tokens of every row.
        steps_per_epoch: optimiser steps in which every row is trained on once.

    Raises:
        InputError: no rows, or a row longer than ``length``.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        rows: Dataset,
        *,
        batch_size: int,
        accumulation: int = 1,
        length: int | None = None,
        pad: int,
        seed: int = 0,
        order: str = "random",
    ) -> None:
        """Look how long the rows are."""
        for name, value in (("batch_size", batch_size), ("accumulation", accumulation)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if order not in ORDERS:
            raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
        self.rows, self.batch_size, self.accumulation = rows, batch_size, accumulation
        self.length, self.pad, self.seed, self.order = (
            fitting_length(rows, length),
            pad,
            seed,
            order,
        )
        self.steps_per_epoch = -(-len(rows) // (batch_size * accumulation))
        self._last_order: tuple[int, NDArray[np.int64]] | None = None

    def step(self, number: int) -> Batch:
        """The batches of an optimiser step, by its number from 0 on, over all epochs.

        Returns:
            int32 arrays whose first axis is the accumulation A: ``input_ids``, ``segments`` (0 for
            padding, from 1 on for the documents packed into a row), ``positions`` (of each token
            in its document) and ``labels``, (A, B, L); ``row``, (A, B), the rows' numbers, -1 for
            filling; ``source``, (A, B), if the rows have it.
        """
        epoch, step = divmod(number, self.steps_per_epoch)
        size = self.batch_size * self.accumulation
        chosen = np.full(size, NO_ROW)
        here = self._order(epoch)[step * size : (step + 1) * size]
        chosen[: len(here)] = here
        laid = laid_out_rows(self.rows, chosen, self.length, self.pad)
        shape = (self.accumulation, self.batch_size)
        return {name: array.reshape(*shape, *array.shape[1:]) for name, array in laid.items()}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The numbers of the rows in the order of an epoch."""
        if self.order == "sequential":
            return np.arange(len(self.rows))
        if self._last_order is None or self._last_order[0] != epoch:
            self._last_order = epoch, order_of(len(self.rows), self.seed, epoch)
        return self._last_order[1]


def held_out(
    rows: Dataset,
    *,
    batch_size: int,
    length: int | None = None,
    pad: int,
) -> Iterator[Batch]:
    """Batches of all rows once, in their order, the last filled with rows of padding.

    Args:
        rows: as of :class:`Batches`, and so are the next three.
        batch_size: rows of a batch.
        length: tokens of every row.
        pad: the token that fills rows.

    Yields:
        A batch as of :meth:`Batches.step`, without the axis of accumulation.
    """
    batches = Batches(rows, batch_size=batch_size, length=length, pad=pad, order="sequential")
    for number in range(batches.steps_per_epoch):
        yield {name: array[0] for name, array in batches.step(number).items()}


def fitting_length(rows: Dataset, length: int | None = None) -> int:
    """Tokens of the longest row, up to a multiple of 8; or ``length``, if no row is longer.

    Raises:
        InputError: one is, or there are no rows.
    """
    if len(rows) == 0:
        raise InputError("there are no rows to make batches of")
    lengths = np.concatenate([part for _, part in lists_of(rows, "input_ids")])
    longest = int(lengths.max())
    if length is None:
        return -(-longest // _MULTIPLE) * _MULTIPLE
    if longest > length:
        raise InputError(
            f"length {length}: row {lengths.argmax()} has {longest} tokens; give at least that, "
            "or cut the rows"
        )
    return length


def lay_out(
    ids: NDArray[Any],
    labels: NDArray[Any],
    lengths: NDArray[np.int64],
    *,
    length: int,
    pad: int,
    documents: tuple[NDArray[Any], NDArray[np.int64]] | None = None,
) -> Batch:
    """A batch of rows that are given end to end.

    Args:
        ids: their tokens.
        labels: of each token.
        lengths: of the rows, (B,); 0 for one of padding only.
        length: of the rows in the batch, L.
        pad: the token that fills them.
        documents: the lengths of the documents in the rows end to end, and how many each row has;
            None if a row is one.

    Returns:
        ``input_ids``, ``segments``, ``positions`` and ``labels``, (B, L).
    """
    inside = np.arange(length) < lengths[:, None]
    in_document, counts = documents or (lengths, np.ones_like(lengths))
    segments = np.repeat(_counted_up(counts) + 1, in_document)

    def laid(numbers: NDArray[Any], filling: int) -> NDArray[np.int32]:
        array = np.full(inside.shape, filling, np.int32)
        array[inside] = numbers
        return array

    return {
        "input_ids": laid(ids, pad),
        "segments": laid(segments, 0),
        "positions": laid(_counted_up(in_document), 0),
        "labels": laid(labels, NO_LABEL),
    }


def targets(batch: Mapping[str, Any]) -> Any:
    """The label that each position predicts, -100 where none counts: (…, L), as ``labels``.

    Args:
        batch: ``labels`` and ``segments``, NumPy's arrays or JAX's.
    """
    labels, segments = batch["labels"], batch["segments"]
    xp = array_namespace(labels, segments)
    inside = segments[..., 1:] == segments[..., :-1]
    none = xp.full_like(labels[..., :1], NO_LABEL)
    return xp.concat([xp.where(inside, labels[..., 1:], none), none], axis=-1)


def counted(batch: Mapping[str, Any]) -> Any:
    """Which positions count: those that predict a label of their own document. (…, L)."""
    return targets(batch) != NO_LABEL


def laid_out_rows(rows: Dataset, chosen: NDArray[np.int64], length: int, pad: int) -> Batch:
    """Some rows as one batch.

    Args:
        rows: as of :class:`Batches`.
        chosen: their places, (B,); ``NO_ROW`` for one of padding.
        length: tokens of every row of the batch.
        pad: the token that fills rows.
    """
    present = chosen != NO_ROW
    columns = rows.column_names
    table: Any = rows.with_format("arrow")[chosen[present].tolist()]
    ids, found = lists_in(table, "input_ids")
    labels, _ = lists_in(table, "labels")
    lengths = _spread(found, present, 0)
    documents = None
    if "seq_lengths" in columns:
        in_document, counts = lists_in(table, "seq_lengths")
        documents = in_document, _spread(counts, present, 0)
    batch = lay_out(ids, labels, lengths, length=length, pad=pad, documents=documents)
    numbers = table.column(ROW).to_numpy() if ROW in columns else chosen[present]
    batch["row"] = _spread(numbers, present, NO_ROW).astype(np.int32)
    if SOURCE in columns:
        batch[SOURCE] = _spread(table.column(SOURCE).to_numpy(), present, 0).astype(np.int32)
    return batch


def _spread(numbers: NDArray[Any], present: NDArray[np.bool_], filling: int) -> NDArray[np.int64]:
    """One number for every row, ``filling`` where there is none."""
    spread = np.full(len(present), filling, np.int64)
    spread[present] = numbers
    return spread


def _counted_up(counts: NDArray[Any]) -> NDArray[np.int64]:
    """0, 1, … up to each count, one after the other."""
    starts: NDArray[np.int64] = np.repeat(np.cumsum(counts) - counts, counts)
    return np.arange(len(starts)) - starts
