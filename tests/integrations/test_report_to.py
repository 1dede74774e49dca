"""What --report_to is given: every figure of metrics.jsonl."""

import json
from pathlib import Path

import pytest
from tiny import SENTENCES, write_jsonl

from amidmath.integrations.torch_distill import main

pytest.importorskip("tensorboard", reason="tensorboard is not installed")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_tensorboard_gets_our_figures(
    student_dir: Path, teacher_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events"
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(events))
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": s} for s in SENTENCES * 3])
    command = [
        *("--model_name_or_path", str(student_dir)),
        *("--teacher_model_name_or_path", str(teacher_dir)),
        *("--dataset_name", str(data), "--output_dir", str(tmp_path / "run"), "--use_cpu"),
        *("--max_length", "64", "--max_steps", "2", "--per_device_train_batch_size", "4"),
        *("--schedule", "lam=linear:0.1:0.9", "--eval_strategy", "steps", "--eval_steps", "1"),
        *("--logging_steps", "1", "--save_strategy", "no", "--report_to", "tensorboard"),
    ]
    assert main(command) == 0
    seen = EventAccumulator(str(next(events.rglob("events.*")).parent))
    seen.Reload()
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for tag, name in {
        **{f"train/{name}": name for name in ("loss", "kl", "overlap", "lam", "num_tokens")},
        **{f"eval/{name}": f"eval_{name}" for name in ("loss", "kl", "overlap")},
    }.items():
        ours = [(line["step"], pytest.approx(line[name])) for line in lines if name in line]
        assert len(ours) == 2
        assert [(event.step, event.value) for event in seen.Scalars(tag)] == ours, tag
