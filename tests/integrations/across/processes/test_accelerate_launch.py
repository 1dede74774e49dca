"""The whole script under accelerate's launcher: two processes give what one gives.

One launch, which takes half a minute: everything is imported three times. It goes without --cpu,
with which the launcher starts one process, whatever --num_processes says.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import SENTENCES, write_jsonl

from amidmath.integrations import torch_distill

CONFIGS = Path(__file__).parents[4] / "integrations" / "configs" / "accelerate"
# 5 held-out rows in batches of 2: two processes are given three of them twice. Each is longer than
# half of --max_length, so that packing leaves it alone in its sequence.
HELD_OUT = [
    {"prompt": s[: 9 + i], "completion": s[9 + i :]}
    for i, s in enumerate([*SENTENCES, SENTENCES[0]])
]
# Not the KL and overlap of training steps, which are estimated on positions of each batch.
FIGURES = (
    *("loss", "grad_norm", "num_tokens", "eval_loss", "eval_kl", "eval_overlap"),
    *("eval_rouge_l", "eval_unfinished"),
)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]


def results(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "results.json").read_text())
    return found


@pytest.fixture
def command(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> list[str]:
    """Packed rows, which a batch has in one sequence without padding."""
    rows = [{"prompt": s[:9], "completion": s[9:]} for s in SENTENCES * 2]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", HELD_OUT)
    return [
        *("--model_name_or_path", str(teacher_dir)),
        *("--teacher_model_name_or_path", str(student_dir)),
        *("--dataset_name", str(data), "--eval_dataset_name", str(held_out)),
        *("--max_length", "64", "--max_steps", "2", "--logging_steps", "1"),
        *("--learning_rate", "1e-3", "--train_sampling_strategy", "sequential"),
        *("--eval_strategy", "steps", "--eval_steps", "2", "--per_device_eval_batch_size", "2"),
        *("--packing", "--save_strategy", "no", "--report_to", "none", "--use_cpu"),
        *("--gradient_checkpointing", "false"),
        *("--eval_task", "completion", "--eval_task_dataset", str(held_out)),
        *("--eval_task_max_new_tokens", "16"),
    ]


def test_ddp_gives_what_one_process_gives(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch"),
            *("--config_file", str(CONFIGS / "ddp.yaml"), "--num_processes", "2"),
            *("--mixed_precision", "no", "--main_process_port", "0"),
            *("-m", "amidmath.integrations.torch_distill"),
            *(*command, "--per_device_train_batch_size", "2"),
            *("--output_dir", str(tmp_path / "two")),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Student, metrics and curves") == 1  # one of them speaks
    alone = [*command, "--per_device_train_batch_size", "4"]
    assert torch_distill.main([*alone, "--output_dir", str(tmp_path / "one")]) == 0

    two, one = (results(tmp_path / name) for name in ("two", "one"))
    assert list(two) == list(one) == ["teacher", "student before", "student after"]
    assert two["student after"]["rouge_l"] > 0.0
    for model, figures in one.items():
        assert two[model] == pytest.approx(figures, rel=1e-5), model
    for mine, theirs in zip(lines(tmp_path / "two"), lines(tmp_path / "one"), strict=True):
        for name in theirs.keys() & set(FIGURES):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-5), (name, theirs["step"])
    seen = {name for line in lines(tmp_path / "two") for name in line}
    assert seen.issuperset(FIGURES)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2
