"""Records of local files, as they stand there: no text is taken for a number, a date or nothing.

Training, caching and evaluation all read files with it.
"""

import codecs
import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from amidmath.arrays.checks import shortened

Record = Mapping[str, Any]

# The longer ones first: UTF-32's begins with UTF-16's.
_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


class UnreadableFile(Exception):  # noqa: N818
    """A file that is not what its name says, and where; who was given it adds the name."""


def records(path: Path) -> Iterator[Record]:
    """The records of a file, by its ending, which is one of ``READERS``.

    Args:
        path: a file in UTF-8, with a byte order mark or without.

    Raises:
        UnreadableFile: another encoding, or a line or row that is none.
    """
    return READERS[path.suffix.lower()](path)


@contextmanager
def _opened(path: Path, newline: str | None) -> Iterator[TextIO]:
    with path.open("rb") as raw:
        start = raw.read(4)
    for name, marks in _MARKS.items():
        if start.startswith(marks):
            raise UnreadableFile(f"its encoding is {name}; convert it to UTF-8")
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        raise UnreadableFile(
            f"its encoding is not UTF-8 ({_undecodable(path)}); convert it, such as by "
            f"iconv -f LATIN1 -t UTF-8"
        ) from error


def _undecodable(path: Path) -> str:
    """The first byte that is no UTF-8, and its line."""
    with path.open("rb") as raw:
        for number, line in enumerate(raw, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"byte 0x{line[error.start]:02x} in line {number}"
    return "it ends within a character"


def _json(path: Path) -> Iterator[Record]:
    """A list of objects or texts, by itself or under "instances"; or one object a line."""
    with _opened(path, "\n") as file:
        begin = list(islice((line for line in file if line.strip()), 2))
    if not begin:
        return
    try:
        whole = len(begin) < 2 or not isinstance(json.loads(begin[0]), dict)
    except json.JSONDecodeError:
        whole = True  # an object or a list over several lines
    if not whole:
        yield from _json_lines(path)
        return
    with _opened(path, "\n") as file:
        content = _loaded(file.read(), "line 1")
    if isinstance(content, dict) and isinstance(content.get("instances"), list):
        content = content["instances"]
    for number, record in enumerate(content if isinstance(content, list) else [content]):
        yield _checked({"text": record} if isinstance(record, str) else record, f"row {number}")


def _json_lines(path: Path) -> Iterator[Record]:
    with _opened(path, "\n") as file:
        if file.read(64).lstrip().startswith("["):
            yield from _json(path)
            return
        file.seek(0)
        for number, line in enumerate(file, 1):
            if line.strip():
                record = _checked(_loaded(line, f"line {number}"), f"line {number}")
                if "\\ud" in line.lower():
                    _check_characters(record, f"line {number}")
                yield record


def _loaded(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UnreadableFile(f"{place} is no JSON: {error}") from error


def _checked(record: Any, place: str) -> Record:
    if not isinstance(record, dict):
        raise UnreadableFile(f"{place} is no JSON object but {shortened(record)}")
    return record


def _check_characters(record: Record, place: str) -> None:
    """Raise UnreadableFile where an escape stands for half of a character."""
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise UnreadableFile(f"{place} has {half!r}, which is half of a character") from error


def _table(delimiter: str) -> Callable[[Path], Iterator[Record]]:
    """Reads tables, all cells being texts."""

    def read(path: Path) -> Iterator[Record]:
        csv.field_size_limit(sys.maxsize)  # of a process, and 131,072 characters unless set
        with _opened(path, "") as file:
            rows = csv.DictReader(file, delimiter=delimiter, strict=True)
            try:
                names = rows.fieldnames or ()
                twice = next((name for name in names if names.count(name) > 1), None)
                if twice is not None:
                    raise UnreadableFile(f"it has two columns {twice!r}")
                for number, row in enumerate(rows):
                    if None in row or None in row.values():
                        raise UnreadableFile(f"row {number} has not as many cells as the header")
                    yield row
            except csv.Error as error:
                raise UnreadableFile(f"line {rows.line_num} is no CSV: {error}") from error

    return read


def _paragraphs(path: Path) -> Iterator[Record]:
    """One row a paragraph; blank lines only separate."""
    lines: list[str] = []
    with _opened(path, None) as file:
        for line in file:
            if line.strip():
                lines.append(line.rstrip("\n"))
            elif lines:
                yield {"text": "\n".join(lines)}
                lines = []
    if lines:
        yield {"text": "\n".join(lines)}


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".csv": _table(","),
    ".tsv": _table("\t"),
    ".txt": _paragraphs,
}
"""The reader of a file, by its ending."""
