"""Evaluation sets as they are published, and what is said of rows that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from tiny import write_jsonl

from amidmath.integrations.common.errors import InputError
from amidmath.integrations.common.tasks.metrics import METRICS
from amidmath.integrations.common.tasks.reading import read_rows
from amidmath.integrations.common.tasks.rows import Languages, Row, as_messages, as_text
from amidmath.integrations.common.tasks.tasks import TASKS, cut_at_stop

INSTRUCTIONS = ["dolly", "self_inst", "vicuna", "sinst", "uinst"]


def user(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def one_row(tmp_path: Path, task: str, record: dict[str, Any], **options: Any) -> Row:
    path = write_jsonl(tmp_path / "rows.jsonl", [record])
    (row,) = read_rows(str(path), TASKS[task], **options).rows
    return row


@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_instructions_with_a_prompt_are_taken_as_they_are(tmp_path: Path, task: str) -> None:
    record = {
        "instruction": "Add.",
        "prompt": "Add.<n>1 and 2:",
        "input": "",
        "output": ["3", "III"],
    }
    assert one_row(tmp_path, task, record) == Row("Add.\n1 and 2:", ("3", "III"))


@pytest.mark.parametrize("record", [{"input": ""}, {"input": None}, {}])
def test_instructions_without_input(tmp_path: Path, record: dict[str, Any]) -> None:
    row = one_row(tmp_path, "dolly", {"instruction": "Why {so}?", "output": "So."} | record)
    assert row.prompt == (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nWhy {so}?\n\n### Response:\n"
    )
    assert row.references == ("So.",)


def test_instructions_with_input(tmp_path: Path) -> None:
    record = {"instruction": "Sum up.", "input": "A long text.", "output": "A text."}
    assert one_row(tmp_path, "sinst", record).prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSum up.\n\n### Input:\nA long text.\n\n### Response:\n"
    )


def test_instructions_are_sampled_as_published() -> None:
    for name in INSTRUCTIONS:
        task = TASKS[name]
        assert (task.temperature, task.seeds) == (1.0, (10, 20, 30, 40, 50))
        assert (task.max_new_tokens, task.stop) == (256, ())


def test_gsm8k(tmp_path: Path) -> None:
    answer = "She has 3*4=<<3*4=12>>12.\n#### 12"
    row = one_row(tmp_path, "gsm8k", {"question": "How many?", "answer": answer})
    assert row == Row(user("Q: How many? \n\nA:"), (answer,))


@pytest.mark.parametrize("task", ["gsm8k", "translation"])
def test_files_of_speculative_kd(tmp_path: Path, task: str) -> None:
    path = tmp_path / "mt_test.json"
    instances = [
        {"instruction": "Do it.", "response": "Done. #### 1"},
        {"instruction": "b", "response": "#### 2"},
    ]
    path.write_text(json.dumps({"instances": instances}))
    found = read_rows(str(path), TASKS[task])
    assert found.rows == [Row(user("Do it."), ("Done. #### 1",)), Row(user("b"), ("#### 2",), 1)]
    assert found.total == 2


@pytest.mark.parametrize(
    ("record", "languages"),
    [
        ({"translation": {"de": "Guten Tag", "en": "Good day"}}, ("de", "en")),
        ({"de": "Guten Tag", "en": "Good day", "id": 3}, ("de", "en")),
        (
            {"sentence_deu_Latn": "Guten Tag", "sentence_eng_Latn": "Good day"},
            ("deu_Latn", "eng_Latn"),
        ),
    ],
)
def test_parallel_texts(tmp_path: Path, record: dict[str, Any], languages: tuple[str, str]) -> None:
    row = one_row(
        tmp_path, "translation", record, languages=Languages("German", "English", *languages)
    )
    assert row.prompt == user(
        "Translate German sentence into English. This is the German sentence: Guten Tag Here is "
        "the English translation:"
    )
    assert row.references == ("Good day",)


@pytest.mark.parametrize(("ending", "mark"), [("tsv", "\t"), ("csv", ",")])
def test_tables_of_two_columns(tmp_path: Path, ending: str, mark: str) -> None:
    path = tmp_path / f"pairs.{ending}"
    path.write_text(f'German{mark}English\nTag{mark}"day, ""sir"""\n', encoding="utf-8")
    (row,) = read_rows(str(path), TASKS["translation"], languages=Languages("German")).rows
    assert row.references == ('day, "sir"',)


@pytest.mark.parametrize(
    ("record", "references"),
    [
        ({"id": "1", "summary": "They meet."}, ("They meet.",)),
        (
            {"fname": "t", "summary1": "A", "topic1": "x", "summary2": "B", "summary3": "C"},
            tuple("ABC"),
        ),
    ],
)
def test_dialogues(tmp_path: Path, record: dict[str, Any], references: tuple[str, ...]) -> None:
    dialogue = "#Person1#: Hello.\n#Person2#: Hi."
    row = one_row(tmp_path, "summarization", {"dialogue": dialogue} | record)
    assert row == Row(user(dialogue), references)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "2+2=", "completion": "4"}, "2+2="),
        (
            {"prompt": user("2+2?"), "completion": [{"role": "assistant", "content": "4"}]},
            user("2+2?"),
        ),
        ({"messages": [*user("2+2?"), {"role": "assistant", "content": "4"}]}, user("2+2?")),
    ],
)
def test_training_columns(tmp_path: Path, record: dict[str, Any], prompt: Any) -> None:
    assert one_row(tmp_path, "completion", record) == Row(prompt, ("4",))


def test_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one\ntwo\n\n \n\nthree\n")
    assert [row.references for row in read_rows(str(path), TASKS["text"]).rows] == [
        ("one\ntwo",),
        ("three",),
    ]


def test_line_separators_within_a_text_do_not_end_a_line_of_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a\u2028b"}\n\n{"text": "c"}\n', encoding="utf-8")
    assert [row.references for row in read_rows(str(path), TASKS["text"]).rows] == [
        ("a\u2028b",),
        ("c",),
    ]


def test_datasets_and_their_splits(tmp_path: Path) -> None:
    rows = {name: Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    DatasetDict(rows).save_to_disk(str(tmp_path / "saved"))
    found = read_rows(str(tmp_path / "saved"), TASKS["text"])
    assert found.rows == [Row("", ("test",))]
    with pytest.raises(InputError, match=r"--dataset_split: no split 'valid'; .*test"):
        read_rows(str(tmp_path / "saved"), TASKS["text"], split="valid")
    rows["train"].to_parquet(str(tmp_path / "one.parquet"))
    assert read_rows(str(tmp_path / "one.parquet"), TASKS["text"]).rows == [Row("", ("train",))]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    outputs = ["one", ["one", "one two three"], "one two three", "one two", "a b c d"]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "p", "output": o} for o in outputs])
    found = read_rows(str(path), TASKS["uinst"], min_reference_words=3, limit=2)
    assert [row.number for row in found.rows] == [1, 2]
    assert (found.total, found.short, found.beyond) == (5, 2, 1)
    assert found.describe() == (
        "2 of 5 rows (left out: 2 with shorter references than --min_reference_words; "
        "1 beyond --max_eval_samples)"
    )
    assert read_rows(str(path), TASKS["uinst"]).describe() == "5 of 5 rows"
    with pytest.raises(InputError, match=r"none of the 5 rows .*reference of 11 words"):
        read_rows(str(path), TASKS["uinst"], min_reference_words=11)


GOOD: dict[str, dict[str, Any]] = {
    "dolly": {"instruction": "a", "output": "b"},
    "gsm8k": {"question": "a", "answer": "#### 1"},
    "translation": {"Assamese": "a", "English": "b"},
    "summarization": {"dialogue": "a", "summary": "b"},
    "completion": {"prompt": "a", "completion": "b"},
    "text": {"text": "a"},
}


@pytest.mark.parametrize(
    ("task", "changes", "says"),
    [
        ("dolly", {"output": None}, ["has 'output' = None", "no text"]),
        ("dolly", {"output": ["a", 3]}, ["'output' = ['a', 3]", "no list of texts"]),
        ("dolly", {"output": []}, ["empty list of references"]),
        ("dolly", {"output": ["a", " "]}, ["an empty reference (number 1)"]),
        ("dolly", {"instruction": ...}, ["has no 'instruction', only ['output']"]),
        ("dolly", {"input": 3}, ["'input' = 3"]),
        ("dolly", {"prompt": 3}, ["'prompt' = 3"]),
        ("gsm8k", {"answer": "it is 1"}, ["without '#### NUMBER'", "it is 1"]),
        ("gsm8k", {"answer": "#### none"}, ["without '#### NUMBER'"]),
        ("gsm8k", {"instruction": "a", "response": "b"}, ["without '#### NUMBER'"]),
        ("gsm8k", {"question": ...}, ["has no 'question'"]),
        ("translation", {"English": ...}, ["no text under 'English'", "--target_column"]),
        ("translation", {"translation": "a"}, ["'translation' = 'a'", "maps no languages"]),
        ("summarization", {"summary": ""}, ["an empty reference"]),
        ("summarization", {"dialogue": ...}, ["has no 'dialogue'"]),
        ("completion", {"prompt": []}, ["'completion' = 'b'", "no list of messages"]),
        ("completion", {"messages": user("a")}, ["end with 'user'", "no answer"]),
        ("completion", {"messages": [{"who": "me"}]}, ["no message with 'role' and 'content'"]),
        ("completion", {"messages": [{"role": "assistant", "content": "a"}]}, ["without messages"]),
        ("text", {"text": ["a"]}, ["'text' = ['a']"]),
    ],
)
def test_unfit_rows(tmp_path: Path, task: str, changes: dict[str, Any], says: list[str]) -> None:
    bad = {k: v for k, v in (GOOD[task] | changes).items() if v is not ...}
    path = write_jsonl(tmp_path / "rows.jsonl", [GOOD[task], bad])
    with pytest.raises(InputError) as caught:
        read_rows(str(path), TASKS[task])
    message = str(caught.value)
    assert message.startswith(f"--dataset_name: {path}: row 1 ")
    for words in (*says, f"task {task} expects", TASKS[task].expects):
        assert words in message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text', ["line 2 is no JSON"]),
        ("a.jsonl", '{"text": "a"}\n[1]\n', ["line 2 is no JSON object but [1]"]),
        ("a.json", '[{"text": "a"}, 3]', ["row 1 is no JSON object but 3"]),
        ("a.json", "[1, 2", ["line 1 is no JSON"]),
        ("a.jsonl", "", ["has no rows"]),
        ("a.json", "[]", ["has no rows"]),
        ("a.csv", "text\n", ["has no rows"]),
        ("a.csv", "text,more\na\n", ["row 0", "as many cells as the header"]),
        ("a.csv", "text\na,b\n", ["row 0", "as many cells as the header"]),
        ("a.txt", "\n \n", ["has no rows"]),
        ("a.xyz", "a", ["a.xyz"]),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: str, says: list[str]) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_rows(str(path), TASKS["text"])
    for words in ("--dataset_name", str(path), *says):
        assert words in str(caught.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "\xff"}')
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read"):
        read_rows(str(path), TASKS["text"])


def test_missing_file() -> None:
    with pytest.raises(InputError, match=r"--dataset_name: no such file: no\.jsonl"):
        read_rows("no.jsonl", TASKS["text"])


def test_every_task_has_metrics_that_there_are() -> None:
    assert all(name in METRICS for task in TASKS.values() for name in task.metrics)
    assert [name for name, task in TASKS.items() if not task.metrics] == ["text"]


def test_prompts_as_text_and_as_messages() -> None:
    chat = [{"role": "system", "content": "Be brief."}, *user("Why?")]
    assert as_text(chat) == "Be brief.\n\nWhy?"
    assert as_text("Why?") == "Why?"
    assert as_messages("Why?") == user("Why?")
    assert as_messages(chat) == chat


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("a\nuser b", ("\nuser", "\n"), "a"),
        ("ab", ("b", "a"), ""),
        ("ab", (), "ab"),
        ("ab", ("c",), "ab"),
    ],
)
def test_stop(text: str, stop: tuple[str, ...], expected: str) -> None:
    assert cut_at_stop(text, stop) == expected
