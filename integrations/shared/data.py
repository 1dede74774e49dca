"""Training and held-out text, from the hub, a folder or a file, in TRL's columns."""

from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

from amidmath._checks import shortened
from amidmath.integrations.shared.conversations import conversation, is_conversation
from amidmath.integrations.shared.errors import InputError, UnfitRow, first_paragraph

READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text", ".csv": "csv"}


DEFAULT_TEST_SPLIT = "test"

PAIR = ("prompt", "chosen", "rejected")
"""The columns of contrastive pairs: a prompt, the teacher's answer, the student's answer."""

SOURCE = "source"
"""The column that says who wrote a row's completion: 0 the teacher, 1 the student."""


class DataArguments(Protocol):
    """What names a dataset and its splits, as TRL's ScriptArguments does."""

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
    """Two rows of each pair, one after the other: the teacher's completion, then the student's."""

    def both(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        columns = ([_in_one_form(value, name) for value in batch[name]] for name in PAIR)
        pairs = list(zip(*columns, strict=True))
        return {
            "prompt": [prompt for prompt, _, _ in pairs for _ in range(2)],
            "completion": [answer for _, *answers in pairs for answer in answers],
            SOURCE: [source for _ in pairs for source in range(2)],
        }

    return rows.map(both, batched=True, remove_columns=rows.column_names)


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
    except StopIteration as error:  # what datasets' JSON reader raises
        raise InputError(f"{flag}: {name} is empty, it has no rows") from error
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
    """What a value is, in words; "" for what nothing is learned from."""
    if isinstance(value, str):
        return "a text"
    return "messages" if is_conversation(value) else ""


def _split(splits: DatasetDict, name: str, flag: str) -> Dataset:
    if name not in splits:
        raise InputError(f"{flag}: no split {name!r}; the dataset has {sorted(splits)}")
    return splits[name]


def _read(flag: str, name: str, path: Path, config_name: str | None) -> DatasetDict:
    if path.is_file():
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise InputError(
                f"{flag}: cannot tell the format of {name}; known endings are {', '.join(READERS)}"
            )
        if reader == "text":
            return _paragraphs(load_dataset(reader, data_files=str(path), sample_by="paragraph"))
        return load_dataset(reader, data_files=str(path))
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        saved = load_from_disk(str(path))
        return saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
    if path.is_dir() and any(path.glob("*.txt")):
        return _paragraphs(load_dataset("text", data_dir=str(path), sample_by="paragraph"))
    if not path.exists() and path.suffix.lower() in READERS:
        raise InputError(f"{flag}: no such file: {name}")
    return load_dataset(name, name=config_name)


def _paragraphs(splits: DatasetDict) -> DatasetDict:
    """One row a paragraph of a text file; blank lines only separate."""
    return splits.filter(lambda row: row["text"].strip() != "")
