"""Training and held-out text, from the hub, a folder or a file, in TRL's columns."""

from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetGenerationError

from amidmath.arrays.checks import shortened
from amidmath.integrations.common.data.record_files import READERS, UnreadableFile
from amidmath.integrations.common.data.record_tables import table
from amidmath.integrations.common.errors import InputError, UnfitRow, first_paragraph
from amidmath.integrations.common.text.conversations import conversation, is_conversation

ENDINGS = (*READERS, ".parquet")
DEFAULT_TEST_SPLIT = "test"

PAIR = ("prompt", "chosen", "rejected")
"""The columns of contrastive pairs: a prompt, the teacher's answer, the student's answer."""

SOURCE = "source"
"""The column that says who wrote a row's completion: 0 the teacher, 1 the student."""

NUMBER = "row_in_dataset"
"""The column that says which row of its split one is, by which messages name it."""


class DataArguments(Protocol):
    """The arguments that name a dataset and its splits, as TRL's ScriptArguments has them."""

    dataset_name: str | None
    dataset_config: str | None
    dataset_train_split: str
    dataset_test_split: str
    eval_dataset_name: str | None
    eval_fraction: float


def load_splits(script: DataArguments, text_field: str, seed: int) -> tuple[Dataset, Dataset]:
    """The training rows and the held-out rows.

    Args:
        script: which dataset.
        text_field: the column of rows that are text only.
        seed: of the drawing of held-out rows, where the dataset has none.

    Raises:
        InputError: a dataset that cannot be read, a split or column that is missing, no rows, or a
            row whose text is no text.
    """
    splits = read("--dataset_name", str(script.dataset_name), script.dataset_config)
    train = _split(splits, script.dataset_train_split, "--dataset_train_split")
    check_rows("--dataset_name", train, text_field)
    train = with_numbers(train)
    wanted = script.dataset_test_split
    asked_for = wanted != DEFAULT_TEST_SPLIT
    if script.eval_dataset_name is not None:
        held_out = read("--eval_dataset_name", script.eval_dataset_name, None)
        only = len(held_out) == 1 and not asked_for
        name = str(next(iter(held_out))) if only else wanted
        test = _split(held_out, name, "--dataset_test_split")
        check_rows("--eval_dataset_name", test, text_field)
        return train, test
    if wanted in splits or asked_for:
        test = _split(splits, wanted, "--dataset_test_split")
        check_rows("--dataset_test_split", test, text_field)
        return train, test
    if len(train) < 2:
        raise InputError(
            "--dataset_name: one row cannot be split into training and held-out rows; give "
            "more rows, or --eval_dataset_name"
        )
    halves = train.train_test_split(test_size=script.eval_fraction, seed=seed)
    return halves["train"], halves["test"]


def is_paired(rows: Dataset) -> bool:
    """Whether rows are contrastive pairs."""
    columns = set(rows.column_names)
    return columns.issuperset(PAIR) and "completion" not in columns


def unpaired(rows: Dataset) -> Dataset:
    """Two rows of each pair, one after the other: the teacher's completion, then the student's.

    Both have the pair's number, if it has one.
    """
    kept = [NUMBER] if NUMBER in rows.column_names else []

    def both(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = ([_in_one_form(value, name) for value in batch[name]] for name in PAIR)
        pairs = list(zip(*columns, strict=True))
        return {
            "prompt": [prompt for prompt, _, _ in pairs for _ in range(2)],
            "completion": [answer for _, *answers in pairs for answer in answers],
            SOURCE: [source for _ in pairs for source in range(2)],
            **{name: [n for n in batch[name] for _ in range(2)] for name in kept},
        }

    return rows.map(both, batched=True, remove_columns=rows.column_names)


def with_numbers(rows: Dataset) -> Dataset:
    """The rows with their numbers; those that are drawn of them keep theirs."""
    if NUMBER in rows.column_names:
        return rows
    return rows.add_column(NUMBER, cast("Any", np.arange(len(rows))))


def number_of(rows: Dataset, place: int) -> int:
    """The name of a row in messages: its number, or else its place."""
    return int(rows[NUMBER][place]) if NUMBER in rows.column_names else place


def _in_one_form(value: Any, column: str) -> Any:
    """A text as it is, or messages whose contents are texts, which fit one table."""
    return conversation(value, column) if is_conversation(value) else value


def read(flag: str, name: str, config_name: str | None) -> DatasetDict:
    """All splits of a dataset: hub name, saved dataset, folder of files, or one file."""
    path = Path(name)
    if path.exists() and config_name is not None:
        raise InputError(
            f"--dataset_config {config_name}: {name} is local and has no configurations"
        )
    try:
        return _read(flag, name, path, config_name)
    except InputError:
        raise
    except UnreadableFile as error:
        raise InputError(f"{flag}: {name} cannot be read: {error}") from error
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise InputError(f"{flag}: {name} cannot be read: {first_paragraph(cause)}") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        if path.exists():
            raise InputError(f"{flag}: {name} cannot be read: {first_paragraph(error)}") from error
        raise InputError(
            f"{flag}: {name!r} is neither a file or folder of data here nor a dataset that could "
            f"be loaded from the hub: {first_paragraph(error)}"
        ) from error


def check_rows(flag: str, rows: Dataset, text_field: str) -> None:
    """Raise InputError unless there are rows, in a format that SFTTrainer trains on."""
    columns = set(rows.column_names)
    formats = (
        ("messages",),
        ("prompt", "completion"),
        PAIR,
        (text_field,),
        ("conversations",),
    )
    needed = next((names for names in formats if columns.issuperset(names)), None)
    if needed is None and "input_ids" not in columns:
        hint = (
            " (a prompt without completion gives nothing to train on)"
            if "prompt" in columns
            else ""
        )
        raise InputError(
            f"{flag}: the columns {sorted(columns)} hold no training text{hint}. Expected "
            f"'messages', or 'prompt' and 'completion', or {text_field!r}; "
            "--dataset_text_field names another text column"
        )
    if len(rows) == 0:
        raise InputError(f"{flag}: the dataset has no rows")
    for name in needed or ():
        first = ""
        for number, value in enumerate(rows[name]):
            kind = _kind(value)
            if not kind:
                raise InputError(
                    f"{flag}: row {number} has no text in column {name!r}, but {shortened(value)}; "
                    "expected a string, or a list of messages with 'role' and 'content'"
                )
            first = first or kind
            if kind != first:
                raise InputError(
                    f"{flag}: row {number} has {kind} in column {name!r}, and row 0 {first}: all "
                    "rows must have one or the other"
                )
            if is_conversation(value):
                try:
                    conversation(value, name)
                except UnfitRow as error:
                    raise InputError(f"{flag}: row {number} {error}") from error


def _kind(value: Any) -> str:
    """The kind of a value in words; "" for one that nothing is learned from."""
    if isinstance(value, str):
        return "a text"
    return "messages" if is_conversation(value) else ""


def _split(splits: DatasetDict, name: str, flag: str) -> Dataset:
    if name not in splits:
        raise InputError(f"{flag}: no split {name!r}; the dataset has {sorted(splits)}")
    return splits[name]


def _read(flag: str, name: str, path: Path, config_name: str | None) -> DatasetDict:
    if path.is_file():
        if path.suffix.lower() == ".parquet":
            return load_dataset("parquet", data_files=str(path))
        if path.suffix.lower() not in READERS:
            raise InputError(
                f"{flag}: cannot tell the format of {name}; known endings are {', '.join(ENDINGS)}"
            )
        return DatasetDict({"train": table([path])})
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        saved = load_from_disk(str(path))
        return saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
    if path.is_dir():
        files = _files(path)
        if files:
            return DatasetDict({split: table(paths) for split, paths in files.items()})
    if not path.exists() and path.suffix.lower() in ENDINGS:
        raise InputError(f"{flag}: no such file: {name}")
    return load_dataset(name, name=config_name)


def _files(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder by split, as datasets finds them; none where it is for datasets to say.

    That is where a card describes the folder, or there are other files than texts and tables. Of
    texts beside other files, the texts count.
    """
    if (folder / "README.md").is_file():
        return {}
    patterns = get_data_patterns(str(folder.absolute()))
    splits = DataFilesDict.from_local_or_remote(
        {str(split): names for split, names in patterns.items()}, base_path=str(folder.absolute())
    )
    found = {split: [Path(name) for name in names] for split, names in splits.items()}
    endings = {path.suffix.lower() for paths in found.values() for path in paths}
    if ".txt" in endings:
        endings = {".txt"}
    if len(endings) != 1 or not endings <= READERS.keys():
        return {}
    kept = {
        split: [path for path in paths if path.suffix.lower() in endings]
        for split, paths in found.items()
    }
    return {split: paths for split, paths in kept.items() if paths}
