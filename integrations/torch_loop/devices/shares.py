"""Shares of rows for several processes, and what they found put together."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import gather_object

T = TypeVar("T")

Batch = dict[str, Any]

LENGTHS = "row_lengths"
"""The entry of a batch with the tokens of each row, where a collator joins rows into one."""


def ignore_repeated_rows(
    labels: torch.Tensor, accelerator: Accelerator, lengths: Sequence[int] | None = None
) -> None:
    """Take the labels off rows that the last batch of a loader repeats to be of full size.

    accelerate gives every process as many rows, the first ones again where they do not suffice.

    Args:
        labels: of this process's batch, (B, L); changed in place.
        accelerator: whose loader gave the batch.
        lengths: the tokens of each row, where a collator joins all rows into one
            (``padding_free``): labels are (1, L) then.
    """
    state = accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return
    rows = len(labels) if lengths is None else len(lengths)
    kept = max(0, state.remainder - accelerator.process_index * rows)
    if lengths is None:
        labels[kept:] = -100
    else:
        labels[:, sum(lengths[:kept]) :] = -100


class WithLengths:
    """A collator whose batches say how many tokens each row has, under ``LENGTHS``.

    Args:
        collator: of examples with ``input_ids``.
    """

    def __init__(self, collator: Callable[[list[dict[str, Any]]], Batch]) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        """The collator's batch and the lengths, (B,)."""
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        return {**self.collator(examples), LENGTHS: lengths}


def own_batches(
    rows: Sequence[Any], collate: Callable[[list[Any]], Batch], batch_size: int
) -> Iterator[Batch]:
    """Batches of this process's share of rows: every row on one process, once.

    Each process gets as many batches, since engines that keep weights in parts need all of them
    in each forward pass; where its rows do not suffice, a batch has no labels.

    Args:
        rows: all rows, the same on every process; at least one.
        collate: makes a batch with ``labels``.
        batch_size: rows of a batch at most.
    """
    state = PartialState()
    mine = range(state.process_index, len(rows), state.num_processes)
    most = -(-len(rows) // state.num_processes)
    for start in range(0, most, batch_size):
        share = mine[start : start + batch_size]
        batch = collate([rows[row] for row in share or (0,)])
        if not share:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        yield batch


def own_rows(count: int) -> tuple[list[int], list[bool]]:
    """This process's share of rows, as ``own_batches`` has it, as many on each process.

    Args:
        count: how many rows there are in all; at least one.

    Returns:
        Their numbers, and which of them are its own; where a share does not suffice, row 0 fills
        it up. ``in_order`` puts together what all processes have of their own rows.
    """
    state = PartialState()
    mine = list(range(state.process_index, count, state.num_processes))
    filled = -(-count // state.num_processes) - len(mine)
    return mine + [0] * filled, [True] * len(mine) + [False] * filled


def summed(values: torch.Tensor) -> torch.Tensor:
    """Added up over the processes, in float64, on the CPU."""
    state = PartialState()
    whole = values.detach().to("cpu", torch.float64)
    if state.num_processes == 1:
        return whole
    # A device that has no float64 would round; a gathered list of numbers does not.
    return torch.tensor(gather_object([whole.tolist()]), dtype=torch.float64).sum(0)


def in_order(mine: Sequence[T]) -> list[T]:
    """The results of all processes for rows of ``own_batches``, in the order of all rows."""
    state = PartialState()
    if state.num_processes == 1:
        return list(mine)
    parts: list[list[T]] = gather_object([list(mine)])
    total = sum(map(len, parts))
    return [parts[row % len(parts)][row // len(parts)] for row in range(total)]
