"""Families that make logits in a way of their own, or keep activations, train; it is said."""

from pathlib import Path
from typing import Any

import pytest
from families.build import tiny_family
from tiny import byte_tokenizer, save, tiny_model, words, write_jsonl

from amidmath.integrations import cache_teacher, torch_distill
from amidmath.integrations.common.run import run_folder

ROWS = [{"prompt": f"{name}: ", "completion": "an answer"} for name in "abcdefgh"]


def run(folder: Path, main: Any, **arguments: Any) -> int:
    settings = {
        "dataset_name": write_jsonl(folder / "rows.jsonl", ROWS),
        "output_dir": folder / "run",
        "max_length": 48,
        **arguments,
    }
    return int(main(words(settings)))


def saved(family: str, folder: Path) -> Path:
    tiny_family(family).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("role", ["student", "teacher", "cache"])
def test_whole_logits(role: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = saved("bert", tmp_path / "bert")
    other = save(tiny_model(1, 1), tmp_path / "llama")
    student, teacher = (own, other) if role == "student" else (other, own)
    models = {"model_name_or_path": student, "teacher_model_name_or_path": teacher}
    if role == "cache":
        assert run(tmp_path, cache_teacher.main, **models, k=16) == 0
        return
    training = {"max_steps": 2, "save_strategy": "no", "logging_steps": 1, "disable_tqdm": "true"}
    assert run(tmp_path, torch_distill.main, **models, **training, dry_run="true") == 0
    assert "whole logits and their gradients" in capsys.readouterr().out
    assert run(tmp_path, torch_distill.main, **models, **training) == 0
    assert f"the {role} makes logits in a way of its own" in capsys.readouterr().out
    lines = run_folder.read_metrics(tmp_path / "run")
    assert all(0.0 < line["loss"] < 10.0 for line in lines if "loss" in line)


def test_without_activation_checkpointing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {
        "model_name_or_path": saved("ctrl", tmp_path / "ctrl"),
        "teacher_model_name_or_path": save(tiny_model(1, 1), tmp_path / "llama"),
    }
    training = {"max_steps": 1, "save_strategy": "no", "disable_tqdm": "true"}
    assert run(tmp_path, torch_distill.main, **models, **training, baseline="true") == 0
    assert "off: CTRLLMHeadModel cannot compute activations again" in capsys.readouterr().out
