"""--dtype and what trains: float32 unless asked otherwise, and the header says what is so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny import save, tiny_model, words, write_jsonl

from amidmath.integrations.torch_loop.run.header import print_header
from amidmath.integrations.torch_loop.run.loading import prepare
from amidmath.integrations.torch_loop.settings.arguments import parse_arguments
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer


def prepared(folder: Path, **changes: Any) -> tuple[AMiDTrainer, str]:
    """A trainer and its header."""
    student = save(tiny_model(1, 2).to(torch.bfloat16), folder / "student")
    teacher = save(tiny_model(1, 1), folder / "teacher")
    settings = {
        "model_name_or_path": student,
        "teacher_model_name_or_path": teacher,
        "dataset_name": write_jsonl(folder / "rows.jsonl", [{"text": "some text"}] * 8),
        "output_dir": folder / "run",
        "max_length": 32,
        "max_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": "true",
        **changes,
    }
    command = words(settings)
    arguments, console = parse_arguments(command), Console(record=True, width=300)
    trainer = prepare(arguments)
    print_header(console, trainer, arguments)
    return trainer, console.export_text()


@pytest.mark.parametrize("dtype", ["bfloat16", "auto", "float32"])
def test_trained_weights_are_float32(dtype: str, tmp_path: Path) -> None:
    trainer, header = prepared(tmp_path, dtype=dtype)
    assert {p.dtype for p in trainer.student.parameters()} == {torch.float32}
    assert "trained weights and optimiser states in float32\n" in header
    before = [p.detach().clone() for p in trainer.student.parameters()]
    trainer.train()
    pairs = list(zip(before, trainer.student.parameters(), strict=True))
    moved = sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a in before)
    assert moved > 0.25  # the embeddings of letters that do not occur stay


def test_unless_asked_otherwise(tmp_path: Path) -> None:
    trainer, header = prepared(tmp_path, dtype="bfloat16", master_weights="false")
    assert {p.dtype for p in trainer.student.parameters()} == {torch.bfloat16}
    assert "optimiser states in bfloat16 (--master_weights true keeps float32" in header


def test_frozen_weights_are_as_asked(tmp_path: Path) -> None:
    trainer, header = prepared(
        tmp_path, dtype="bfloat16", use_peft="true", lora_target_modules="all-linear"
    )
    trained = {p.dtype for p in trainer.student.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    assert "states in float32, frozen weights in bfloat16" in header
