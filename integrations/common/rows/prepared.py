"""Prepared rows as training and caching both number them, and by what they are known again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers.utils.hub import cached_file

from amidmath.integrations.common.rows.marks import NO_LABEL
from amidmath.integrations.common.storage import fingerprints

ROW = "row"
"""The column, and the entry of a batch, that numbers the rows of the prepared dataset."""

_ROWS = 1000


@dataclass(frozen=True)
class PreparedRows:
    """The rows that a loop has made of a dataset.

    Args:
        rows: with ``input_ids`` and ``labels``, and ``seq_lengths`` where documents are packed.
        tokenizer: that the rows were made with.
        padding_free: batches keep packed documents apart, so that none predicts the first token of
            the next one.
    """

    rows: Dataset
    tokenizer: Any
    padding_free: bool = False

    def numbered(self, first: int = 0) -> Dataset:
        """The rows with their numbers, from ``first`` on."""
        return number_rows(self.rows, first)

    @cached_property
    def positions(self) -> list[NDArray[np.integer[Any]]]:
        """Which positions of every row count."""
        columns = (
            ["labels", "seq_lengths"] if "seq_lengths" in self.rows.column_names else ["labels"]
        )
        found = []
        parts: Any = self.rows.select_columns(columns).iter(batch_size=_ROWS)
        for part in parts:
            documents: Sequence[Any] = part.get("seq_lengths", ()) if self.padding_free else ()
            found += [
                counting_positions(labels, documents[i] if documents else None)
                for i, labels in enumerate(part["labels"])
            ]
        return found

    @cached_property
    def lengths(self) -> list[int]:
        """How many tokens every row has."""
        parts: Any = self.rows.select_columns(["input_ids"]).iter(batch_size=_ROWS)
        return [len(ids) for part in parts for ids in part["input_ids"]]

    @cached_property
    def fingerprints(self) -> Mapping[str, str]:
        """Of "tokenizer" and "data", as a cache is held against them."""
        return {
            "tokenizer": fingerprints.of_tokenizer(self.tokenizer),
            "data": fingerprints.of_rows(self.rows),
        }


def number_rows(rows: Dataset, first: int = 0) -> Dataset:
    """The prepared rows with the column ``row``; what is shuffled or selected later keeps it."""
    numbers = range(first, first + len(rows))
    return rows if ROW in rows.column_names else rows.add_column(ROW, list(numbers))


def counting_positions(
    labels: Sequence[int], documents: Sequence[int] | None
) -> NDArray[np.integer[Any]]:
    """Which positions of a prepared row predict a labelled token.

    Args:
        labels: of the row, -100 where nothing is learned.
        documents: the lengths of the documents packed into it, whose first tokens the document
            before does not predict; None where it is one sequence.
    """
    counts = np.asarray(labels) != NO_LABEL
    counts[[0, *np.cumsum(documents or [])[:-1]]] = False
    return np.flatnonzero(counts) - 1


def model_fingerprint(name: str, revision: str = "main") -> str:
    """The fingerprint of a model that is here: a folder, or one that was loaded from the hub.

    Raises:
        InputError: its weights are not here.
    """
    if Path(name).is_dir():
        return fingerprints.of_model(Path(name))
    config = cached_file(
        name, "config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    ) or cached_file(name, "adapter_config.json", revision=revision)
    return fingerprints.of_model(Path(str(config)).parent)
