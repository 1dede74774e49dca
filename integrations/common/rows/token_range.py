"""Checks that models have embeddings for the tokens of rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from amidmath.integrations.common.data.splits import number_of
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.common.storage.arrow_lists import lists_of

ADVICE = "remove such rows, or give models that both have the token"


def check_tokens(rows: Dataset, sizes: Mapping[str, int], name: str, tokenizer: Any) -> None:
    """Raise InputError, with row and token, where a model cannot read a token of a row.

    Args:
        rows: with ``input_ids`` and ``labels``, in the dataset's order.
        sizes: how many tokens each model reads, by its role.
        name: what the rows are called in messages.
        tokenizer: of the rows, for the token's text; or None.
    """
    if not sizes:
        return
    role = min(sizes, key=lambda one: sizes[one])
    before = 0
    for ids, lengths in lists_of(rows, "input_ids"):
        row, at, token = _first(ids, lengths, sizes[role])
        if row >= 0:
            raise InputError(
                f"{name} row {number_of(rows, before + row)}: token {token}"
                f"{_text(tokenizer, token)} at position {at} {_beyond(role, sizes[role], token)}"
            )
        before += len(lengths)
    before = 0
    for labels, lengths in lists_of(rows, "labels"):
        row, at, token = _first(np.where(labels == NO_LABEL, 0, labels), lengths, sizes[role])
        if row >= 0:
            raise InputError(
                f"{name} row {number_of(rows, before + row)}: label {token} at position {at} "
                f"{_beyond(role, sizes[role], token)}; where nothing is learned it is {NO_LABEL}"
            )
        before += len(lengths)


def check_prompts(
    rows: Iterable[Sequence[int]],
    numbers: Iterable[int],
    sizes: Mapping[str, int],
    tokenizer: Any,
) -> None:
    """Raise InputError, with row and token, where a model cannot read a token of a prompt.

    Args:
        rows: token ids.
        numbers: what to call the rows.
        sizes: how many tokens each model reads, by its role.
        tokenizer: of the rows, for the token's text; or None.
    """
    role = min(sizes, key=lambda one: sizes[one])
    for number, ids in zip(numbers, rows, strict=True):
        token = next((token for token in ids if not 0 <= token < sizes[role]), None)
        if token is not None:
            raise InputError(
                f"row {number}: token {token}{_text(tokenizer, token)} "
                f"{_beyond(role, sizes[role], token)}"
            )


def _first(tokens: NDArray[Any], lengths: NDArray[np.int64], size: int) -> tuple[int, int, int]:
    """Row, position and number of the first token out of range; a row of -1 if there is none."""
    outside = ~((tokens >= 0) & (tokens < size))
    if not outside.any():
        return -1, 0, 0
    at = int(outside.argmax())
    ends = np.cumsum(lengths)
    row = int(np.searchsorted(ends, at, side="right"))
    return row, at - int(ends[row] - lengths[row]), int(tokens[at])


def _text(tokenizer: Any, token: int) -> str:
    """The token's text in brackets, where it has one."""
    if tokenizer is None or not 0 <= token < len(tokenizer):
        return ""
    return f" ({tokenizer.convert_ids_to_tokens(token)!r})"


def _beyond(role: str, size: int, token: int) -> str:
    if token < 0:
        return "is no token: they are numbered from 0 on"
    return f"is beyond those that the {role} reads, which end at {size - 1}: {ADVICE}"
