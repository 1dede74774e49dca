"""Rows that are tokenised already, with labels or masks if they have them."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, Features

from amidmath.arrays.checks import shortened
from amidmath.integrations.common.data.splits import NUMBER, SOURCE
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.rows.settings import RowSettings
from amidmath.integrations.common.rows.tokenised import IDS, masked
from amidmath.integrations.common.storage.arrow_lists import BATCH


def given_rows(rows: Dataset, settings: RowSettings, completions: bool, name: str) -> Dataset:
    """Their tokens and numbers; labels as given, or the tokens where the masks are not 0."""
    columns = rows.column_names
    masks = ["completion_mask"] if completions else []
    masks = ["labels"] if "labels" in columns else [*masks, "assistant_masks"]
    used = ["input_ids", *(mask for mask in masks if mask in columns)]
    kept = [c for c in (SOURCE, NUMBER) if c in columns]
    chosen = rows.select_columns([*used, *kept])
    made: Dataset = chosen.map(
        _take_labels,
        batched=True,
        batch_size=BATCH,
        remove_columns=chosen.column_names,
        features=Features({"input_ids": IDS, "labels": IDS, **{c: rows.features[c] for c in kept}}),
        num_proc=settings.dataset_num_proc,
        fn_kwargs={"used": used, "name": name},
        desc=f"Building labels for {name} dataset",
    )
    return made


def _take_labels(
    batch: Mapping[str, list[Any]], used: Sequence[str], name: str
) -> dict[str, list[Any]]:
    ids, numbers = batch["input_ids"], batch[NUMBER]
    for column in used:
        for number, values in zip(numbers, batch[column], strict=True):
            if not isinstance(values, list) or not all(map(_fits, values)):
                raise InputError(
                    f"{name} row {number} has no integers of 32 bits in column {column!r}, but "
                    f"{shortened(values)}"
                )
    for column in used[1:]:
        for number, row, values in zip(numbers, ids, batch[column], strict=True):
            if len(values) != len(row):
                raise InputError(
                    f"{name} row {number}: {column} has {len(values)} entries and input_ids "
                    f"{len(row)}; expected one for each token"
                )
    labels = ids
    for column in used[1:]:
        labels = batch[column] if column == "labels" else list(map(masked, labels, batch[column]))
    made = {"input_ids": ids, "labels": labels}
    return made | {name: batch[name] for name in (SOURCE, NUMBER) if name in batch}


def _fits(number: Any) -> bool:
    return isinstance(number, int) and -(2**31) <= number < 2**31
