"""The JAX script: what a run leaves, how it goes on, where sequences come from, what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from compiled import compilations
from safetensors.numpy import load_file
from tiny import write_jsonl
from transformers import AutoModelForCausalLM

import amidmath as am
from amidmath.integrations import jax_distill
from amidmath.integrations.common.policies.base import Source
from amidmath.integrations.common.run.progress import TIME_FIELDS
from amidmath.integrations.jax_loop.run.loading import prepare
from amidmath.integrations.jax_loop.training import trainer as trainer_module
from amidmath.integrations.jax_loop.training.trainer import JaxTrainer

ROWS = [
    {"prompt": f"{name}: ", "completion": f"an answer of {n} words"}
    for n, name in enumerate("abcdefghijklmnop")
]
Run = Callable[..., int]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def arguments(student_dir: Path, teacher_dir: Path, data: Path) -> Callable[..., list[str]]:
    def build(folder: Path, **changes: Any) -> list[str]:
        settings = {
            "model_name_or_path": student_dir,
            "teacher_model_name_or_path": teacher_dir,
            "dataset_name": data,
            "eval_dataset_name": data,
            "output_dir": folder,
            "max_steps": 6,
            "learning_rate": 1e-2,
            "per_device_train_batch_size": 2,
            "max_length": 40,
            "max_new_tokens": 8,
            "logging_steps": 1,
            "save_steps": 2,
            "max_eval_samples": 4,
            "alpha": 0.0,
            "disable_tqdm": "true",
            **changes,
        }
        words: list[str] = []
        for name, value in settings.items():
            if value is not None:
                values = value if isinstance(value, list) else [value]
                words += [f"--{name}", *map(str, values)]
        return words

    return build


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a run, without what depends on the machine."""
    texts = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(t).items() if k not in TIME_FIELDS} for t in texts]


def same_runs(one: Path, other: Path) -> None:
    """Weights and metrics are the same to the last bit."""
    first, second = (load_file(run / "student" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert lines(one) == lines(other)


def test_a_run(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = arguments(run, eval_strategy="steps", eval_steps=3, baseline="true", max_steps=12)
    assert jax_distill.main(words) == 0
    results = json.loads((run / "results.json").read_text())
    assert list(results) == ["teacher", "student before", "student after", "cross-entropy only"]
    assert results["student after"]["kl"] < 0.9 * results["student before"]["kl"]
    assert results["teacher"]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert json.loads((run / "run.json").read_text())["status"] == "complete"
    logged = lines(run)
    assert [line["step"] for line in logged if "eval_loss" in line] == [3, 6, 9, 12]
    assert {line["model"] for line in logged} == {"student", "baseline"}
    assert {"loss", "kl", "overlap", "grad_norm", "learning_rate", "num_tokens"} <= logged[0].keys()
    card = (run / "student" / "README.md").read_text()
    assert "amid(divergence = KL()" in card
    assert "12 steps of 2 sequences" in card
    assert (run / "curves.png").stat().st_size > 1000
    student = AutoModelForCausalLM.from_pretrained(run / "student")
    assert student.config.num_hidden_layers == 1
    assert jax_distill.main(words) == 0  # complete: nothing to do


POLICIES: dict[str, dict[str, Any]] = {
    "on_policy": {},
    "mixed": {"gradient_accumulation_steps": 2},
    "adaptive": {
        "init_threshold": 1.0,
        "buffer_capacity": 4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "eval_on_start": "true",
        "replay_ratio": "constant",
    },
    "sequence_level": {},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_goes_on_as_if_there_had_been_no_break(
    policy: str,
    arguments: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources: list[Source] = []
    batch = trainer_module.Rollouts.batch

    def watched(self: Any, source: Source, given: Any) -> Any:
        sources.append(source)
        return batch(self, source, given)

    monkeypatch.setattr(trainer_module.Rollouts, "batch", watched)
    settings = {"policy": policy, "generation_temperature": 0.8, **POLICIES[policy]}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert jax_distill.main(arguments(whole, **settings)) == 0
    expected = {
        "on_policy": {Source.STUDENT},
        "mixed": {Source.STUDENT, Source.DATASET},
        "adaptive": {Source.STUDENT, Source.BUFFER},
        "sequence_level": {Source.TEACHER},
    }
    assert set(sources) == expected[policy]
    step = JaxTrainer.make_step

    def stops(self: JaxTrainer) -> None:
        if self.step == 5:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(JaxTrainer, "make_step", stops)
    assert jax_distill.main(arguments(broken, **settings)) == 130
    monkeypatch.setattr(JaxTrainer, "make_step", step)
    assert jax_distill.main(arguments(broken, **settings)) == 0
    same_runs(whole, broken)


def test_nothing_is_compiled_after_the_first_step(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    """However long the prompts of a step are, and however long their answers may be."""
    lengths = (3, 30, 9, 36, 20, 12, 37, 5)
    rows = [{"prompt": "p" * length, "completion": "x"} for length in lengths]
    data = write_jsonl(tmp_path / "prompts.jsonl", rows)
    words = arguments(tmp_path / "run", dataset_name=data, policy="on_policy", max_steps=4)
    trainer = prepare(jax_distill.parse_arguments(words), print).trainer
    with compilations() as programs:
        for _ in range(4):
            trainer.make_step()
    assert programs.count("jit(_train)") == 1
    assert programs.count("jit(_answers)") <= 1  # another test may have compiled that one


def test_a_killed_run_goes_on(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {"schedule": ["t=taid:0.4:1"], "method": "taid", "alpha": None, "save_steps": 1}
    assert jax_distill.main(arguments(whole, **settings)) == 0
    process = subprocess.Popen(
        [sys.executable, jax_distill.__file__, *arguments(killed, **settings)],
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 180
    while not list(killed.glob("checkpoint-*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert jax_distill.main(arguments(killed, **settings)) == 0
    same_runs(whole, killed)


def test_a_damaged_checkpoint_is_passed_over(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    assert jax_distill.main(arguments(other)) == 0
    assert jax_distill.main(arguments(run)) == 0
    content = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**content, "status": "running"}))
    for file in (run / "checkpoint-6" / "arrays").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-1])
    capsys.readouterr()
    assert jax_distill.main(arguments(run)) == 0
    said = capsys.readouterr().out
    assert "checkpoint-6 is damaged" in said.replace("\n", "")
    assert "Going on from step 4" in said
    same_runs(run, other)


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments(tmp_path / "run", learning_rate=1e30, max_grad_norm=0, optim="sgd")
    assert jax_distill.main(words) == 1
    error = capsys.readouterr().err
    assert "the gradient's norm is" in error
    assert "the step was not made" in error


def test_the_dry_run_says_what_it_would_take(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert jax_distill.main([*arguments(run), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "Memory of a training step on each device" in said
    assert "6 steps of 2 sequences" in said
    assert not run.exists()


@pytest.mark.parametrize("method", sorted(am.methods.METHODS))
def test_every_method_has_a_step(
    method: str, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    policy = "mixed" if method == "distillm2" else "off_policy"
    words = arguments(tmp_path / "run", method=method, alpha=None, policy=policy)
    parsed = jax_distill.parse_arguments(words)
    trainer = prepare(parsed, print).trainer
    batch = trainer.rollouts.batch(Source.DATASET, trainer.batches.step(0))
    values, fixed = trainer.scheduled()
    state, result = jax.eval_shape(
        lambda *given: trainer.steps._train(*given[:4], fixed, *given[4:]),
        trainer.state,
        trainer.teacher.parameters,
        trainer.teacher.with_lists(batch),
        values,
        np.float32(1),
        np.bool_(True),
    )
    assert result.loss.shape == ()
    assert jax.tree.structure(state) == jax.tree.structure(trainer.state)


def test_bad_input(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the torch script has no word for; ../test_bad_input.py has the rest."""
    for changes, message in (
        ({"mesh": "data=3"}, "--mesh data=3 does not divide 1 devices"),
        ({"mesh": "rows=1"}, "write axes among data, fsdp, tensor"),
        ({"optim": "adamw_torch"}, "--optim"),
        ({"schedule": ["temperature=linear:2:1"], "label_weight": 0.5}, "leave one of them out"),
    ):
        run = tmp_path / "run"
        assert jax_distill.main(arguments(run, **changes)) == 2, changes
        assert message in capsys.readouterr().err, changes
        assert not run.exists()
