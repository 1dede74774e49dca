"""The JAX evaluation script says what the torch script says."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import save, tiny_model, write_jsonl

from amidmath.integrations import jax_eval, torch_eval
from amidmath.integrations.jax_loop.models.generation import _answers

ROWS: list[dict[str, Any]] = [
    {"prompt": "the teacher", "output": "knows the answer."},
    {"prompt": "a mixture of", "output": ["two distributions lies between them.", "both"]},
    {"prompt": "every", "output": "token has a probability."},
]
SCRIPTS = {"torch": torch_eval.main, "jax": jax_eval.main}


@pytest.fixture
def words(teacher_dir: Path, tmp_path: Path) -> list[str]:
    """An evaluation of greedy answers, three rows in two batches."""
    rows = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return [
        *("--model_name_or_path", str(teacher_dir), "--task", "dolly"),
        *("--dataset_name", str(rows), "--max_new_tokens", "24", "--temperature", "0"),
        *("--batch_size", "2"),
    ]


def outcome(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """results.json and the lines of predictions.jsonl."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results, (folder / "predictions.jsonl").read_text().splitlines()


def both(words: list[str], folder: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """What each script makes of a command."""
    for name, main in SCRIPTS.items():
        assert main([*words, "--output_dir", str(folder / name)]) == 0, name
    return {name: outcome(folder / name) for name in SCRIPTS}


def test_both_scripts_say_the_same(words: list[str], tmp_path: Path) -> None:
    padded = save(tiny_model(1, 2, vocab_size=448), tmp_path / "padded")
    teacher = words[1]
    more = ["--model_name_or_path", str(padded), "--teacher_model_name_or_path", teacher]
    more += ["--vocab", "common", "--generate_with_teacher"]
    programs = _answers._cache_size()
    found = both([*words, *more], tmp_path)
    assert _answers._cache_size() <= programs + 2  # one for each model, however many batches
    (ours, answers), (theirs, expected) = found["jax"], found["torch"]
    assert answers == expected
    assert len(answers) == 6
    assert "jax" in ours["versions"]
    for part in ("arguments", "decoding", "rows"):
        assert ours[part] == theirs[part]
    assert list(ours["results"]) == list(theirs["results"]) == ["student", "teacher"]
    for role, figures in theirs["results"].items():
        of = ours["results"][role]
        assert of["scores"] == figures["scores"]
        assert of["unfinished"] == figures["unfinished"]
        assert of["tokens"] == figures["tokens"]
        for name in ("kl", "agreement", "perplexity"):
            assert of[name] == pytest.approx(figures[name], rel=1e-5, abs=1e-6), (role, name)
    assert theirs["results"]["student"]["kl"] > 0.01
    assert theirs["results"]["teacher"]["scores"]["rouge_l"]["mean"] > 0.0


def test_a_student_alone(words: list[str], tmp_path: Path) -> None:
    more = ["--max_prompt_length", "5", "--prompt_style", "chat", "--dtype", "auto"]
    found = both([*words, *more], tmp_path)
    (ours, answers), (theirs, expected) = found["jax"], found["torch"]
    assert answers == expected
    assert ours["rows"] == theirs["rows"]
    student, theirs_student = (of["results"]["student"] for of in (ours, theirs))
    assert (student["kl"], student["agreement"]) == (None, None)
    assert student["perplexity"] == pytest.approx(theirs_student["perplexity"], rel=1e-5)


def test_bad_input(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words += ["--output_dir", str(tmp_path / "out")]
    assert jax_eval.main([*words, "--model_name_or_path", "no/model"]) == 2
    assert "--model_name_or_path: 'no/model'" in capsys.readouterr().err
    assert jax_eval.main([*words, "--max_new_tokens", "120"]) == 2
    assert "row 0: its prompt has 11 tokens" in capsys.readouterr().err
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    assert jax_eval.main(words) == 2
    assert "several processes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
