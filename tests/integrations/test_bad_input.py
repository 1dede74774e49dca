"""What a person reads when something given does not fit; nothing is written then."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from amidmath.integrations.torch_distill import main

ROWS = [{"text": "the teacher knows the answer. "}] * 8


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def good(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> dict[str, str]:
    """Arguments of a run that would work."""
    return {
        "--model_name_or_path": str(student_dir),
        "--teacher_model_name_or_path": str(teacher_dir),
        "--dataset_name": write_jsonl(tmp_path / "rows.jsonl", ROWS),
        "--output_dir": str(tmp_path / "run"),
        "--max_length": "64",
        "--max_steps": "1",
    }


@pytest.fixture
def refuse(
    good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[[dict[str, str | None]], str]:
    """Run with changed arguments (None leaves one out); gives the one-line error."""

    def run(changes: dict[str, str | None]) -> str:
        merged = {flag: value for flag, value in (good | changes).items() if value is not None}
        command = [word for flag, value in merged.items() for word in (flag, value) if word]
        try:
            status = main(command)
        except SystemExit as stop:  # argparse's own errors
            status = int(stop.code or 0)
        assert status == 2
        assert not (tmp_path / "run").exists()
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "error: " in error
        return error

    return run


Refuse = Callable[[dict[str, str | None]], str]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"--model_name_or_path": None}, ["--model_name_or_path must be given"]),
        ({"--dataset_name": None}, ["--dataset_name must be given"]),
        ({"--model_name_or_path": "no/model"}, ["--model_name_or_path", "'no/model'", "folder"]),
        ({"--teacher_model_name_or_path": "no/model"}, ["--teacher_model_name_or_path", "no/mo"]),
        ({"--dataset_name": "no/dataset"}, ["--dataset_name", "'no/dataset'"]),
        ({"--dataset_name": "no.jsonl"}, ["--dataset_name", "no such file: no.jsonl"]),
        ({"--dataset_train_split": "training"}, ["--dataset_train_split", "'training'", "train"]),
        ({"--lam": "1.2"}, ["--lam", "[0, 1]", "1.2"]),
        ({"--alpha": "nan"}, ["--alpha", "nan"]),
        ({"--temperature": "0"}, ["--temperature must be positive", "0.0"]),
        ({"--order": "qp"}, ["--order", "'qp'", "pr", "rq"]),
        ({"--divergence": "kl2"}, ["--divergence", "'kl2'", "alpha_beta"]),
        ({"--eval_fraction": "1.5"}, ["--eval_fraction", "between 0 and 1", "1.5"]),
        ({"--max_eval_samples": "0"}, ["--max_eval_samples", "at least 1"]),
        ({"--max_length": "4096"}, ["--max_length 4096", "context of 128", "--max_length 128"]),
        ({"--label_smoothing_factor": "0.1"}, ["--label_smoothing_factor 0.1", "leave it out"]),
        ({"--loss_type": "dft"}, ["--loss_type dft", "leave it out"]),
        ({"--trust_remote_code": "true"}, ["--trust_remote_code", "never run"]),
        ({"--dataset_streaming": "true"}, ["--dataset_streaming"]),
        ({"--config": "no.yaml"}, ["--config", "no.yaml"]),
        ({"--lambda": "0.1"}, ["unknown argument --lambda", "did you mean --lam?"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_arguments(refuse: Refuse, changes: dict[str, str | None], says: list[str]) -> None:
    error = refuse(changes)
    for words in says:
        assert words in error


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], ["has no rows"]),
        ([{"question": "why?"}] * 4, ["['question']", "'messages'", "--dataset_text_field"]),
        ([{"prompt": "why?"}] * 4, ["['prompt']", "completion"]),
        ([{"text": "only one"}], ["one row"]),
        (
            [{"prompt": "why? " * 20, "completion": "so"}] * 4,
            ["prompt has 100 tokens", "--max_length 64", "raise --max_length"],
        ),
        ([{"prompt": "why?", "completion": ""}] * 4, ["no token to learn", "drop_unlearnable"]),
    ],
    ids=["empty", "columns", "no-completion", "one-row", "long-prompt", "no-answer"],
)
def test_datasets(
    refuse: Refuse, rows: list[dict[str, object]], says: list[str], tmp_path: Path
) -> None:
    error = refuse({"--dataset_name": write_jsonl(tmp_path / "bad.jsonl", rows)})
    for words in says:
        assert words in error


@pytest.mark.parametrize("name", ["broken.jsonl", "broken.parquet", "data.xyz"])
def test_unreadable_files(refuse: Refuse, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"text": "never closed')
    assert str(path) in refuse({"--dataset_name": str(path)})


def test_unequal_tokenizers(
    refuse: Refuse, student_dir: Path, make_model: Callable, save_model: Callable, tmp_path: Path
) -> None:
    folder = save_model(make_model(1, 0), tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["teacher"])
    tokenizer.save_pretrained(folder)
    error = refuse({"--teacher_model_name_or_path": str(folder)})
    assert "different tokenizers" in error
    assert "'teacher'" in error
    assert "one model family" in error


def test_unequal_vocabularies(
    refuse: Refuse, make_model: Callable, save_model: Callable, tmp_path: Path
) -> None:
    folder = save_model(make_model(1, 0, vocab_size=512), tmp_path / "padded")
    error = refuse({"--teacher_model_name_or_path": str(folder)})
    assert "384 and 512" in error


def test_an_output_that_is_a_file(refuse: Refuse, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_text("mine")
    assert "is a file" in refuse({"--output_dir": str(path)})
    assert path.read_text() == "mine"


def test_rows_left_out_on_request_are_counted(
    good: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "why? ", "completion": "so"}] * 8
    rows[3] = {"prompt": "why? " * 20, "completion": "so"}
    data = write_jsonl(tmp_path / "some.jsonl", rows)
    changed = good | {"--dataset_name": data, "--eval_dataset_name": good["--dataset_name"]}
    command = [word for pair in changed.items() for word in pair]
    assert main([*command, "--drop_unlearnable_rows"]) == 0
    assert "Left out: 1 of 8 train rows" in capsys.readouterr().out
