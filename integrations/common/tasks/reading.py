"""Evaluation sets from the hub or from files, read as a task's rows."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from amidmath.integrations.common.data.record_files import READERS, Record, UnreadableFile, records
from amidmath.integrations.common.errors import InputError, UnfitRow
from amidmath.integrations.common.tasks.rows import Languages, Row
from amidmath.integrations.common.tasks.tasks import Task


@dataclass(frozen=True)
class TaskRows:
    """The rows of a file and how many of it they are.

    Args:
        rows: those to evaluate.
        total: how many rows the file has.
        short: how many were left out because every reference is shorter than asked for.
        beyond: how many were left out beyond the largest number asked for.
    """

    rows: list[Row] = field(repr=False)
    total: int
    short: int = 0
    beyond: int = 0

    def describe(self) -> str:
        """The counts in words."""
        left_out = {
            "with shorter references than --min_reference_words": self.short,
            "beyond --max_eval_samples": self.beyond,
        }
        notes = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
        tail = f" (left out: {'; '.join(notes)})" if notes else ""
        return f"{len(self.rows):,} of {self.total:,} rows{tail}"


def read_rows(
    name: str,
    task: Task,
    *,
    languages: Languages | None = None,
    min_reference_words: int = 0,
    limit: int | None = None,
    split: str = "test",
    config_name: str | None = None,
    flag: str = "--dataset_name",
) -> TaskRows:
    """The rows of an evaluation set.

    Args:
        name: a .json, .jsonl, .csv, .tsv or .txt file; else a folder, a .parquet file or a hub
            name, which are read with ``datasets``.
        task: its format.
        languages: for translation.
        min_reference_words: keep only rows with a reference of at least so many words.
        limit: keep the first so many rows.
        split: of a dataset that has several.
        config_name: of a dataset on the hub.
        flag: the argument that named the set, for messages.

    Raises:
        InputError: it cannot be read, has no rows, or a row lacks something; the message names
            the file, the row, counted from 0, and what would be right.
    """
    records = _records(flag, name, split, config_name)
    rows: list[Row] = []
    for number, record in enumerate(records):
        try:
            row = task.convert(record, languages or Languages())
            _check(row)
        except UnfitRow as error:
            raise InputError(
                f"{flag}: {name}: row {number} {error}; task {task.name} expects {task.expects}"
            ) from None
        rows.append(replace(row, number=number))
    if not rows:
        raise InputError(f"{flag}: {name} has no rows")
    long = [row for row in rows if max(map(_words, row.references)) >= min_reference_words]
    kept = long if limit is None else long[:limit]
    if not kept:
        raise InputError(
            f"{flag}: none of the {len(rows)} rows of {name} has a reference of "
            f"{min_reference_words} words (--min_reference_words)"
        )
    return TaskRows(kept, len(rows), len(rows) - len(long), len(long) - len(kept))


def _check(row: Row) -> None:
    empty = [i for i, reference in enumerate(row.references) if not reference.strip()]
    if not row.references:
        raise UnfitRow("has an empty list of references")
    if empty:
        raise UnfitRow(f"has an empty reference (number {empty[0]})")
    if not isinstance(row.prompt, str) and not row.prompt:
        raise UnfitRow("has a prompt without messages")


def _words(text: str) -> int:
    return len(text.split())


def _records(flag: str, name: str, split: str, config_name: str | None) -> Iterable[Record]:
    path = Path(name)
    known = path.suffix.lower() in READERS
    if known and not path.exists():
        raise InputError(f"{flag}: no such file: {name}")
    if not known or not path.is_file():
        return _from_datasets(flag, name, split, config_name)
    try:
        return list(records(path))
    except (OSError, UnreadableFile) as error:
        raise InputError(f"{flag}: {name} cannot be read: {error}") from error


def _from_datasets(flag: str, name: str, split: str, config_name: str | None) -> Iterable[Record]:
    from amidmath.integrations.common.data.splits import read

    splits = read(flag, name, config_name)
    if split in splits:
        return cast("list[Record]", list(splits[split]))
    if len(splits) == 1:
        return cast("list[Record]", list(next(iter(splits.values()))))
    raise InputError(f"--dataset_split: no split {split!r}; {name} has {sorted(splits)}")
