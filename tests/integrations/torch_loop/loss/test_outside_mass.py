"""--vocab common says how probable the tokens are that one side has alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny import byte_tokenizer, tiny_model

import amidmath as am
from amidmath.integrations.torch_loop.loss.batch import Batch
from amidmath.integrations.torch_loop.loss.outside_mass import OutsideMass
from amidmath.integrations.torch_loop.models.states import States
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

ROWS = [{"prompt": "a short one: ", "completion": "yes"}, {"prompt": "b: ", "completion": "longer"}]
LABELS = torch.tensor([[-100, 1, 2, 3]])


def trainer(folder: Path, student_tokens: int, **settings: Any) -> AMiDTrainer:
    config = AMiDConfig(
        str(folder),
        max_length=64,
        max_steps=1,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        eval_steps=1,
        optim="sgd",
        learning_rate=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **settings,
    )
    return AMiDTrainer(
        tiny_model(1, 2, vocab_size=student_tokens),
        tiny_model(2, 1),
        config,
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS[:1]),
        processing_class=byte_tokenizer(),
    )


def logged(run: AMiDTrainer, name: str) -> float:
    return float(next(line[name] for line in run.state.log_history if name in line))


def mass(model: torch.nn.Module, rows: Any, common: int) -> float:
    """The softmax's mass of the tokens from ``common`` on, over the positions that count."""
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            p = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double().softmax(-1)
            at = [t - 1 for t, label in enumerate(row["labels"]) if label != -100]
            total, count = total + float(p[at, common:].sum()), count + len(at)
    return total / count


@pytest.mark.parametrize("student_tokens", [448, 320])
def test_it_is_logged_at_steps_and_evaluations(tmp_path: Path, student_tokens: int) -> None:
    run = trainer(tmp_path, student_tokens, vocab="common")
    run.train()
    common = min(student_tokens, 384)
    assert run.teacher.model is not None
    sides = {"outside_student": run.student, "outside_teacher": run.teacher.model}
    for name, model in sides.items():
        for prefix, rows in (("", run.train_rows), ("eval_", run.eval_rows)):
            expected = mass(model, rows, common)
            assert logged(run, prefix + name) == pytest.approx(expected, rel=1e-5, abs=1e-9)
    assert max(logged(run, name) for name in sides) > 0.01


@pytest.mark.parametrize("vocab", ["strict", "common"])
def test_nothing_is_said_where_there_is_nothing_outside(tmp_path: Path, vocab: str) -> None:
    run = trainer(tmp_path, 384, vocab=vocab)
    run.train()
    assert not [name for line in run.state.log_history for name in line if "outside" in name]


def test_of_a_cache_what_was_taken_off_the_lists_counts() -> None:
    head = am.Head(torch.zeros(10, 8))
    student = States(am.Hidden(torch.zeros(1, 4, 8), head), head)
    logs = torch.log(torch.tensor([0.5, 0.25, 0.125])).expand(1, 4, 3)
    top = am.TopK(logs, torch.tensor([3, -1, 0]).expand(1, 4, 3))  # -1: a token beyond the 10th
    outside = OutsideMass(teacher=None)  # type: ignore[arg-type]
    outside.of_cache = (12, 10)
    batch = Batch(LABELS, None, "common")
    outside.look("train", student, top, batch)
    assert outside.take("train") == {"outside_teacher": 0.25, "outside_student": 0.0}
    assert outside.take("train") == {}
