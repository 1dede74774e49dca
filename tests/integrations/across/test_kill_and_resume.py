"""SIGKILL at any moment, then the same command: the same student and metrics as without it."""

import json
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
import pytest
from tiny import SENTENCES, write_jsonl

from amidmath.integrations import torch_distill
from amidmath.integrations.common.run.progress import TIME_FIELDS

STEPS = 6
LIMIT_SECONDS = 120

# What a run is told beside models, data and folder; one entry a data policy.
POLICIES: dict[str, list[str]] = {
    "off-policy": [],
    "generating": ["--policy", "mixed", "--student_fraction", "0.5", "--max_new_tokens", "6"],
}
ALL_POLICIES: dict[str, list[str]] = POLICIES | {
    "on-policy": ["--policy", "on_policy", "--max_new_tokens", "6"],
    "adaptive": [
        *("--policy", "adaptive", "--init_threshold", "0.5", "--buffer_capacity", "8"),
        *("--max_new_tokens", "6", "--eval_strategy", "steps", "--eval_steps", "2"),
    ],
    "sequence-level": ["--policy", "sequence_level", "--max_new_tokens", "6"],
    "scheduled": ["--schedule", "lam=linear:0.1:0.9"],
    "epochs": ["--eval_strategy", "epoch", "--per_device_train_batch_size", "4"],
}


class Run:
    """One command, started as often as it takes.

    Args:
        command: the arguments of the distillation script.
        folder: its run folder.
        rng: draws the moments at which it is killed.
    """

    def __init__(self, command: Sequence[str], folder: Path, rng: random.Random) -> None:
        self.command, self.folder, self.rng = command, folder, rng
        self.kills: list[str] = []

    def finish(self) -> str:
        """Run to the end; gives what was printed."""
        process = forked.start(torch_distill.main, self.command, said=self.said)
        process.join(LIMIT_SECONDS)
        assert process.exitcode == 0, self.said.read_text()
        return self.said.read_text()

    def kill_when(self, name: str, pattern: str, delay: float = 0.0) -> None:
        """Start, and kill the process some time after a path appears in the run folder."""
        process = forked.start(torch_distill.main, self.command, said=self.said)
        end = time.monotonic() + LIMIT_SECONDS
        try:
            while process.is_alive() and not any(self.folder.glob(pattern)):
                assert time.monotonic() < end, f"{pattern} did not appear in {self.folder}"
                time.sleep(0.0005)
            time.sleep(delay)
        finally:
            process.kill()
            process.join()
        assert process.exitcode == -signal.SIGKILL, f"ended before {name} ({process.exitcode})"
        self.kills.append(name)

    @property
    def said(self) -> Path:
        """What it prints."""
        return self.folder.with_suffix(".txt")

    def outcome(self) -> tuple[bytes, list[dict[str, Any]], str]:
        """The student's weights, the metrics without what depends on time, and the results."""
        text = (self.folder / "metrics.jsonl").read_text().splitlines()
        lines = [{k: v for k, v in json.loads(t).items() if k not in TIME_FIELDS} for t in text]
        weights = (self.folder / "student" / "model.safetensors").read_bytes()
        return weights, lines, (self.folder / "results.json").read_text()


@pytest.fixture
def make_run(student_dir: Path, teacher_dir: Path, tmp_path: Path) -> Any:
    rows = [{"prompt": s[:9], "completion": s[9:]} for s in SENTENCES * 6]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)

    def make(name: str, extra: Sequence[str], seed: int = 0) -> Run:
        folder = tmp_path / name
        command = [
            *("--model_name_or_path", str(student_dir)),
            *("--teacher_model_name_or_path", str(teacher_dir)),
            *("--dataset_name", str(data)),
            *("--output_dir", str(folder)),
            *("--max_length", "64", "--max_steps", str(STEPS), "--learning_rate", "1e-2"),
            *("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"),
            *("--gradient_checkpointing", "false", "--use_cpu", "--report_to", "none"),
            *("--logging_steps", "2", "--save_steps", "1", "--save_total_limit", "3"),
            *extra,
        ]
        return Run(command, folder, random.Random(seed))

    return make


def check_no_leftovers(folder: Path) -> None:
    """Nothing half-written is left, and every checkpoint has its manifest."""
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]
    assert not list(folder.glob("*.partial"))
    assert all((p / "complete.json").exists() for p in folder.glob("checkpoint-*"))
    assert json.loads((folder / "run.json").read_text())["status"] == "complete"


@pytest.mark.parametrize("policy", POLICIES)
def test_killed_between_and_while_saving(make_run: Any, policy: str) -> None:
    whole = make_run("whole", POLICIES[policy])
    whole.finish()
    run = make_run("killed", POLICIES[policy])
    run.kill_when("a save", ".partial-checkpoint-3", delay=run.rng.uniform(0.0, 0.01))
    run.kill_when("a later step", "checkpoint-5", delay=run.rng.uniform(0.0, 0.01))
    printed = run.finish()
    assert "Going on from step" in printed
    assert run.outcome() == whole.outcome()
    check_no_leftovers(run.folder)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ALL_POLICIES)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again_at_random(make_run: Any, policy: str, seed: int) -> None:
    whole = make_run("whole", ALL_POLICIES[policy])
    whole.finish()
    run = make_run("killed", ALL_POLICIES[policy], seed)
    for _ in range(6):
        # Anything that training changes may be the sign, and then some time goes by.
        signs = [f".partial-checkpoint-{i}" for i in range(1, STEPS)]
        done = {p.name for p in run.folder.glob("checkpoint-*")}
        left = [s for s in signs if s.removeprefix(".partial-") not in done]
        newest = max((int(name.split("-")[1]) for name in done), default=0)
        left = [s for s in left if int(s.rsplit("-", 1)[1]) > newest]
        if not left:
            break
        run.kill_when("a moment", run.rng.choice(left[:2]), delay=run.rng.uniform(0.0, 0.1))
    assert run.kills
    run.finish()
    assert run.outcome() == whole.outcome()
    check_no_leftovers(run.folder)
