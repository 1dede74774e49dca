"""The trainer's loss against the library's, and its scale under accumulation and padding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from families.build import tiny_family
from tiny import tiny_model
from transformers import AutoTokenizer

import amidmath as am
from amidmath.integrations.torch_loop.loss.batch import next_token_mask
from amidmath.integrations.torch_loop.models.model_files import context_of
from amidmath.integrations.torch_loop.settings.config import AMiDConfig
from amidmath.integrations.torch_loop.training.trainer import AMiDTrainer

ROWS = Dataset.from_list(
    [
        {"prompt": "a short one: ", "completion": "yes"},
        {"prompt": "b: ", "completion": "a much longer completion than the others have"},
        {"prompt": "a rather longer prompt here: ", "completion": "no"},
        {"prompt": "c: ", "completion": "middling length"},
    ]
)


@pytest.fixture
def make_trainer(student_dir: Path, tmp_path: Path) -> Callable[..., AMiDTrainer]:
    def make(**changes: Any) -> AMiDTrainer:
        settings = {
            "output_dir": str(tmp_path),
            "alpha": 0.5,
            "lam": 0.3,
            "max_length": 64,
            "max_steps": 1,
            "optim": "sgd",
            "learning_rate": 1.0,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "train_sampling_strategy": "sequential",
        }
        return AMiDTrainer(
            tiny_model(1, 2),
            tiny_model(2, 1),
            AMiDConfig(**(settings | changes)),
            train_dataset=ROWS,
            processing_class=AutoTokenizer.from_pretrained(student_dir),
        )

    return make


def test_loss_is_the_mean_over_completion_tokens(make_trainer: Callable[..., AMiDTrainer]) -> None:
    trainer = make_trainer(per_device_train_batch_size=4)
    batch = next(iter(trainer.get_train_dataloader()))
    total, count = 0.0, 0
    for row in trainer.train_dataset:
        ids = torch.tensor([row["input_ids"]])
        labelled = [t for t, label in enumerate(row["labels"]) if label != -100]
        student = trainer.model(input_ids=ids).logits[0].double()
        teacher = trainer.teacher.model(input_ids=ids).logits[0].double()
        at = [t - 1 for t in labelled]
        loss = am.AMiD(alpha=0.5, lam=0.3)(student[at], teacher[at], reduction="sum")
        total, count = total + float(loss.detach()), count + len(at)
    found = float(trainer.compute_loss(trainer.model, dict(batch)).detach())
    assert found == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_packed_rows_do_not_see_each_other(
    make_trainer: Callable[..., AMiDTrainer], strategy: str
) -> None:
    loss = {}
    for packing in (False, True):
        trainer = make_trainer(
            per_device_train_batch_size=4, packing=packing, packing_strategy=strategy
        )
        batch = dict(next(iter(trainer.get_train_dataloader())))
        assert ("attention_mask" in batch) is not packing
        loss[packing] = float(trainer.compute_loss(trainer.model, batch).detach())
    assert loss[True] == pytest.approx(loss[False], rel=1e-5)


@pytest.mark.parametrize("max_length", [64, 20])
def test_joined_rows_are_cut_and_do_not_see_each_other(
    make_trainer: Callable[..., AMiDTrainer], max_length: int
) -> None:
    loss, tokens = {}, {}
    for joined in (False, True):
        trainer = make_trainer(
            per_device_train_batch_size=4,
            padding_free=joined,
            max_length=max_length,
            drop_unlearnable_rows=True,
        )
        assert trainer.settings.max_length == max_length
        batch = dict(next(iter(trainer.get_train_dataloader())))
        assert ("attention_mask" in batch) is not joined
        tokens[joined] = int((batch["labels"][:, 1:] != -100).sum())
        loss[joined] = float(trainer.compute_loss(trainer.model, batch).detach())
    assert tokens[True] == tokens[False]
    assert loss[True] == pytest.approx(loss[False], rel=1e-5)


def test_accumulation_and_padding_do_not_change_the_step(
    make_trainer: Callable[..., AMiDTrainer],
) -> None:
    weights = []
    for batch, accumulation in ((4, 1), (2, 2), (1, 4)):
        trainer = make_trainer(
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    start = make_trainer().model.state_dict()
    for name, whole in weights[0].items():
        assert not torch.equal(whole, start[name]), name
        for other in weights[1:]:
            torch.testing.assert_close(
                other[name] - start[name], whole - start[name], rtol=1e-3, atol=1e-7
            )


def test_the_teacher_does_not_train(make_trainer: Callable[..., AMiDTrainer]) -> None:
    trainer = make_trainer()
    before = {name: value.clone() for name, value in trainer.teacher.model.state_dict().items()}
    trainer.train()
    assert not any(p.requires_grad for p in trainer.teacher.model.parameters())
    assert all(torch.equal(before[n], v) for n, v in trainer.teacher.model.state_dict().items())


def test_a_batch_without_labels_gives_zero(make_trainer: Callable[..., AMiDTrainer]) -> None:
    trainer = make_trainer(per_device_train_batch_size=4)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert float(loss) == 0.0
    assert all(not p.grad.any() for p in trainer.model.parameters() if p.grad is not None)


def test_next_token_mask() -> None:
    labels = torch.tensor([[-100, -100, 7, 8], [5, 6, -100, -100]])
    expected = torch.tensor([[False, True, True, False], [True, False, False, False]])
    assert torch.equal(next_token_mask(labels), expected)


def test_bf16_stays_off_on_the_cpu(tmp_path: Path) -> None:
    config = AMiDConfig(str(tmp_path), use_cpu=True)
    assert config.bf16 is False
    assert AMiDConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True


def test_a_family_without_a_limit_to_its_context() -> None:
    assert context_of(tiny_model(1, 2)) == 128
    assert context_of(tiny_family("xlnet")) is None
