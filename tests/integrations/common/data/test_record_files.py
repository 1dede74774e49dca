"""Files as people have them: what stands in them is what is trained and judged on."""

import codecs
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from amidmath.integrations.common.data.record_files import records
from amidmath.integrations.common.data.splits import check_rows, read
from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.tasks.reading import read_rows
from amidmath.integrations.common.tasks.tasks import TASKS

TEXTS = [
    *("12", "1e5", "-0", "007", "NA", "N/A", "None", "null", "nan", "NULL", "true", "False", "[1]"),
    *('{"a": 1}', '"so"', "2020-01-01", "2020-01-01 10:00:00", "10:00", " so ", "a, b", 'a "b"'),
    *("tschüß", "日本", "line one\nline two", "a\u2028b", "\ufeff"),
]


def write_table(path: Path, rows: list[dict[str, str]], encoding: str, delimiter: str) -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_lines(path: Path, rows: list[dict[str, Any]], encoding: str, ascii_: bool) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_) for row in rows)
    path.write_text(text, encoding=encoding)


Write = Callable[[Path, list[dict[str, Any]], str], object]
WAYS: dict[str, Write] = {
    ".csv": lambda path, rows, encoding: write_table(path, rows, encoding, ","),
    ".tsv": lambda path, rows, encoding: write_table(path, rows, encoding, "\t"),
    ".jsonl": lambda path, rows, encoding: write_lines(path, rows, encoding, True),
    ".json": lambda path, rows, encoding: write_lines(path, rows, encoding, False),
    "list.json": lambda path, rows, encoding: path.write_text(
        json.dumps(rows, indent=1), encoding=encoding
    ),
    "list.jsonl": lambda path, rows, encoding: path.write_text(
        json.dumps(rows, ensure_ascii=False), encoding=encoding
    ),
    ".txt": lambda path, rows, encoding: path.write_text(
        "\n\n".join(row["text"] for row in rows), encoding=encoding
    ),
}


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("way", WAYS)
def test_a_text_is_that_text(way: str, mark: str, tmp_path: Path) -> None:
    path, columns = tmp_path / f"rows{way}", ("prompt", "completion")
    texts = TEXTS
    if way == ".txt":
        texts, columns = [t for t in TEXTS if t.strip() and t != "\ufeff"], ("text",)
    # Each alone, since a column of such texts only is what readers guess about; then all.
    for chosen in [[text, text] for text in texts[-6:] + texts[:8]] + [texts]:
        rows = [dict.fromkeys(columns, text) for text in chosen]
        WAYS[way](path, rows, mark)
        assert list(records(path)) == rows
        found = read("--dataset_name", str(path), None)["train"]
        assert found.to_list() == rows
        check_rows("--dataset_name", found, "text")


@pytest.mark.parametrize("kind", ["text", "parts"])
def test_messages_are_what_they_were(kind: str, tmp_path: Path) -> None:
    for text in (*TEXTS, "why"):
        content = text if kind == "text" else [{"type": "text", "text": text}]
        rows = [
            {"messages": [{"role": "user", "content": text}], "extra": 1},
            {
                "messages": [
                    {"role": "user", "content": content},
                    {"role": "assistant", "content": text, "tool_calls": [{"name": "x"}]},
                ],
                "tools": [{"name": text, "parameters": {text: None}}],
            },
        ]
        path = tmp_path / "rows.jsonl"
        WAYS[".jsonl"](path, rows, "utf-8")
        found = read("--dataset_name", str(path), None)["train"]
        assert [row["messages"] for row in found] == [row["messages"] for row in rows]
        assert found["tools"][:] == [None, rows[1]["tools"]]


ENCODINGS = {
    "latin-1": "ä".encode("latin-1"),
    "utf-16": codecs.BOM_UTF16_LE + "ä".encode("utf-16-le"),
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32": codecs.BOM_UTF32_LE,
    "cut": "ä".encode()[:1],
}


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".txt"])
def test_other_encodings_are_named(name: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{ending}"
    content = ENCODINGS[name]
    begin = b"" if name.startswith("utf") else {".csv": b"text\n", ".tsv": b"text\n"}.get(
        ending, b'{"text": "a"}\n' * (ending != ".txt")
    )  # fmt: skip
    path.write_bytes(begin + content)
    for reading in (
        lambda: read("--dataset_name", str(path), None),
        lambda: read_rows(str(path), TASKS["text"]),
    ):
        with pytest.raises(InputError) as caught:
            reading()
        message = str(caught.value)
        assert message.startswith(f"--dataset_name: {path} cannot be read: its encoding is ")
        if name.startswith("utf"):
            assert f"is {name.upper()[:6]};" in message
        elif name == "latin-1":
            assert f"byte 0xe4 in line {2 if begin else 1}" in message


BROKEN = {
    "no.jsonl": ('{"text": "a"}\n\n{"text', "line 3 is no JSON"),
    "none.jsonl": ('{"text": "a"}\n3\n', "line 2 is no JSON object but 3"),
    "half.jsonl": ('{"text": "a"}\n{"text": "\\ud83d"}\n', "line 2 has '\\ud83d', which is half"),
    "empty.json": ("", "it is empty"),
    "blank.jsonl": ("\n \n", "it is empty"),
    "twice.csv": ("text,text\na,b\n", "two columns 'text'"),
    "short.csv": ("text,more\na,b\nc\n", "row 1 has not as many cells"),
    "quote.csv": ('text\n"a\n', "is no CSV: unexpected end"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_record_is_named(name: str, tmp_path: Path) -> None:
    content, says = BROKEN[name]
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read("--dataset_name", str(path), None)
    assert f"--dataset_name: {path} cannot be read: " in str(caught.value)
    assert says in str(caught.value)


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text in ("so", "no", "not so"):
        WAYS[".csv"](path, [{"text": text}], "utf-8")
        assert read("--dataset_name", str(path), None)["train"]["text"][:] == [text]


def test_folders(tmp_path: Path) -> None:
    for name, text in (("train-0.csv", "12"), ("train-1.csv", "NA"), ("test.csv", "None")):
        WAYS[".csv"](tmp_path / name, [{"text": text}], "utf-8-sig")
    found = read("--dataset_name", str(tmp_path), None)
    assert {split: rows["text"][:] for split, rows in found.items()} == {
        "train": ["12", "NA"],
        "test": ["None"],
    }
    (tmp_path / "train-1.csv").write_text("text\na,b\n")
    with pytest.raises(InputError, match=r"train-1\.csv: row 0 has not as many cells"):
        read("--dataset_name", str(tmp_path), None)


def test_a_long_cell(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    WAYS[".csv"](path, [{"text": "a" * 200_000}], "utf-8")
    assert len(read("--dataset_name", str(path), None)["train"][0]["text"]) == 200_000
