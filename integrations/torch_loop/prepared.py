"""Prepared rows as training and caching both number them, and by what they are known again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from amidmath.integrations.shared import fingerprints
from amidmath.integrations.torch_loop.teacher_cache import (
    counting_positions,
    number_rows,
)

_ROWS = 1000


@dataclass(frozen=True)
class PreparedRows:
    """The rows that a trainer has made of a dataset, and how it makes batches of them.

    Args:
        rows: with ``input_ids`` and ``labels``, and ``seq_lengths`` where documents are packed.
        collator: the trainer's.
        tokenizer: that the rows were made with.
    """

    rows: Dataset
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def numbered(self) -> Dataset:
        """The rows with their numbers, to train on."""
        return number_rows(self.rows)

    @cached_property
    def positions(self) -> list[NDArray[np.integer[Any]]]:
        """Which positions of every row count."""
        packed = getattr(self.collator, "padding_free", False)
        columns = (
            ["labels", "seq_lengths"] if "seq_lengths" in self.rows.column_names else ["labels"]
        )
        found = []
        parts: Any = self.rows.select_columns(columns).iter(batch_size=_ROWS)
        for part in parts:
            documents: Sequence[Any] = part.get("seq_lengths", ()) if packed else ()
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
