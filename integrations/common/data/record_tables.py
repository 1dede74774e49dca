"""Local files as datasets: a first pass finds out the columns, a second one writes them down."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, Value
from datasets import List as ListOf

from amidmath.integrations.common.data.record_files import Record, UnreadableFile, records

_NUMBERS = {"bool": "bool", "int": "int64", "float": "float64"}


def table(paths: Sequence[Path]) -> Dataset:
    """The records of files, on disk: a text is that text, and messages have what they were given.

    Columns of texts, numbers and lists of integers are what they are; all others are kept as JSON.

    Args:
        paths: files that ``files.records`` reads, one after the other.

    Raises:
        UnreadableFile: one cannot be read, or there are no records.
    """
    features = _features(_all(paths))
    if not features:
        raise UnreadableFile("it is empty, it has no rows")
    stamps = tuple((str(path.absolute()), *_stamp(path)) for path in paths)
    made: Dataset = Dataset.from_generator(
        _rows, features=features, gen_kwargs={"stamps": stamps, "columns": tuple(features.items())}
    )
    return made


def _stamp(path: Path) -> tuple[int, int]:
    """By what datasets notices that a file has changed since it wrote the table."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _all(paths: Sequence[Path]) -> Iterator[Record]:
    if len(paths) == 1:
        yield from records(paths[0])
        return
    for path in paths:
        try:
            yield from records(path)
        except UnreadableFile as error:
            raise UnreadableFile(f"{path}: {error}") from error


def _features(found: Iterable[Record]) -> Features:
    kinds: dict[str, set[str]] = {}
    for record in found:
        for name, value in record.items():
            kinds.setdefault(name, set()).add(_kind(value))
    return Features({name: _feature(of - {"null"}) for name, of in kinds.items()})


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) < 2**63 else "other"
    if isinstance(value, str):
        return "text"
    if isinstance(value, float):
        return "float"
    if isinstance(value, list):
        if all(isinstance(entry, dict) for entry in value):
            return "objects"
        plain = all((type(n) is int and abs(n) < 2**63) or n is None for n in value)
        return "ids" if plain else "other"
    return "other"


def _feature(kinds: set[str]) -> Any:
    if not kinds:
        return Value("null")
    if kinds == {"text"}:
        return Value("string")
    if kinds <= {"int", "float"}:
        return Value("float64" if "float" in kinds else "int64")
    if kinds == {"bool"}:
        return Value("bool")
    if kinds == {"objects"}:
        return ListOf(Json())
    if kinds <= {"ids", "objects"}:  # a list of nothing is both
        return ListOf(Value("int64"))
    return Json()


def _rows(
    stamps: Sequence[tuple[str, int, int]], columns: Sequence[tuple[str, Any]]
) -> Iterator[dict[str, Any]]:
    for record in _all([Path(name) for name, *_ in stamps]):
        yield {name: _encoded(record.get(name), feature) for name, feature in columns}


def _encoded(value: Any, feature: Any) -> Any:
    """The value, in JSON where datasets would else guess whether a text is JSON already."""
    if value is None:
        return None
    if isinstance(feature, Json):
        return json.dumps(value)
    if isinstance(feature, ListOf) and isinstance(feature.feature, Json):
        return [json.dumps(entry) for entry in value]
    return value
