"""Training and held-out text, from the hub, a folder or a file, in TRL's columns."""

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

from amidmath.integrations.distill_arguments import AMiDConfig, DistillScriptArguments
from amidmath.integrations.distill_errors import InputError

READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text", ".csv": "csv"}


def load_splits(script: DistillScriptArguments, config: AMiDConfig) -> tuple[Dataset, Dataset]:
    """The training rows and the held-out rows.

    Raises:
        InputError: a dataset that cannot be read, a split or column that is missing, no rows.
    """
    splits = read("--dataset_name", str(script.dataset_name), script.dataset_config)
    train = _split(splits, script.dataset_train_split, "--dataset_train_split")
    check_rows("--dataset_name", train, config.dataset_text_field)
    if script.eval_dataset_name is not None:
        held_out = read("--eval_dataset_name", script.eval_dataset_name, None)
        name = script.dataset_test_split if script.dataset_test_split in held_out else "train"
        test = _split(held_out, name, "--dataset_test_split")
    elif script.dataset_test_split in splits:
        test = splits[script.dataset_test_split]
    else:
        if len(train) < 2:
            raise InputError(
                "--dataset_name: one row cannot be split into training and held-out rows; give "
                "more rows, or --eval_dataset_name"
            )
        halves = train.train_test_split(test_size=script.eval_fraction, seed=config.seed)
        train, test = halves["train"], halves["test"]
    check_rows("--eval_dataset_name", test, config.dataset_text_field)
    return train, test


def read(flag: str, name: str, config_name: str | None) -> DatasetDict:
    """All splits of a dataset: hub name, saved dataset, folder of files, or one file."""
    path = Path(name)
    try:
        if path.is_file():
            reader = READERS.get(path.suffix.lower())
            if reader is None:
                raise InputError(
                    f"{flag}: cannot tell the format of {name}; known endings are "
                    f"{', '.join(READERS)}"
                )
            if reader == "text":  # one row a paragraph; blank lines only separate
                paragraphs = load_dataset(reader, data_files=str(path), sample_by="paragraph")
                return paragraphs.filter(lambda row: row["text"].strip() != "")
            return load_dataset(reader, data_files=str(path))
        if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
            saved = load_from_disk(str(path))
            return saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
        if not path.exists() and path.suffix.lower() in READERS:
            raise InputError(f"{flag}: no such file: {name}")
        return load_dataset(name, name=config_name)
    except StopIteration as error:  # what datasets' JSON reader raises
        raise InputError(f"{flag}: {name} is empty, it has no rows") from error
    except DatasetGenerationError as error:
        cause = error.__cause__ or error
        raise InputError(f"{flag}: {name} cannot be read: {_first_line(cause)}") from error
    except (DatasetNotFoundError, DataFilesNotFoundError, ConnectionError, OSError) as error:
        raise InputError(
            f"{flag}: {name!r} is neither a file or folder of data here nor a dataset that could "
            f"be loaded from the hub: {_first_line(error)}"
        ) from error
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{flag}: {name} cannot be read: {_first_line(error)}") from error


def check_rows(flag: str, rows: Dataset, text_field: str) -> None:
    """Raise InputError unless there are rows, in a format that SFTTrainer trains on."""
    columns = set(rows.column_names)
    formats = (
        {"messages"},
        {"prompt", "completion"},
        {text_field},
        {"conversations"},
        {"input_ids"},
    )
    if not any(needed <= columns for needed in formats):
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


def _split(splits: DatasetDict, name: str, flag: str) -> Dataset:
    if name not in splits:
        raise InputError(f"{flag}: no split {name!r}; the dataset has {sorted(splits)}")
    return splits[name]


def _first_line(error: Any) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)
